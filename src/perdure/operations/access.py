"""Who may do what: the access of a caller, and the tokens of a store, which name one.

A token is `perd_ID_SECRET`. The store keeps the hash of its secret, so the token is shown once, when it is made. A
token that was revoked stays as a record: a store that has ever had one never serves callers without.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.core.ids import check_name
from perdure.errors import InvalidOption, RevisionConflict
from perdure.operations.documents import Put, whole

if TYPE_CHECKING:
    from perdure.operations.port import Operations

TOKENS = "perdure.tokens"
"""The collection of `Token` by id, as JSON."""
USES = "perdure.token-uses"
"""When each token was last used, by id, in seconds since the Unix epoch. A use and a revocation never collide."""
SECRET_BYTES = 32
"""Random bytes in the secret of a token."""
ID_BYTES = 4
PREFIX = "perd"
NAMES_LIMIT = 100
"""Handlers, and prefixes of keys, that an access may be limited to."""

Role = Literal["read", "operate", "admin"]
"""What a caller may do; each may do what those before it may."""
ROLES: tuple[Role, ...] = ("read", "operate", "admin")


class Access(Struct, frozen=True):
    """What a caller may do, and its name. Without `payloads` it sees names, times and statuses, and no values.

    `handlers` and `key_prefixes` limit it to invocations of these workflows, and of keys that begin with one of these;
    None: no limit.
    """

    name: str
    role: Role = "read"
    payloads: bool = False
    handlers: tuple[str, ...] | None = None
    key_prefixes: tuple[str, ...] | None = None

    @property
    def is_limited(self) -> bool:
        """Whether it may see some invocations only."""
        return self.handlers is not None or self.key_prefixes is not None

    def may(self, role: Role) -> bool:
        """Report whether it has a role, or one above it."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def reaches_handler(self, handler: str) -> bool:
        """Report whether it may see a workflow."""
        return self.handlers is None or handler in self.handlers

    def reaches(self, handler: str, key: str | None) -> bool:
        """Report whether it may see invocations of this workflow and key."""
        if not self.reaches_handler(handler):
            return False
        return self.key_prefixes is None or (key is not None and key.startswith(self.key_prefixes))


class Token(Struct, frozen=True, omit_defaults=True):
    """A token as it is kept: its id, the SHA-256 of its secret in hexadecimal, and what it permits."""

    id: str
    hash: str
    access: Access
    expires: datetime | None = None
    created_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Report whether it permits anything."""
        return self.revoked_at is None and (self.expires is None or now < self.expires)

    def is_proved_by(self, secret: str) -> bool:
        """Report whether this is its secret. How long that takes tells nothing about it."""
        return hmac.compare_digest(self.hash, hash_of(secret))


def hash_of(secret: str) -> str:
    """Return the hash by which a secret is known. It is random and long, so one round suffices."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def parts_of(text: str) -> tuple[str, str] | None:
    """Return the id and the secret in the text of a token; None for other text."""
    prefix, _, rest = text.strip().partition("_")
    id, _, secret = rest.partition("_")
    return (id, secret) if prefix == PREFIX and id.isalnum() and id.isascii() and secret else None


def new_token(
    access: Access, *, expires: datetime | None = None, created_at: datetime | None = None
) -> tuple[Token, str]:
    """Return a new token, as it is kept and as its holder gets it."""
    check_access(access)
    if expires is not None and expires.tzinfo is None:
        raise InvalidOption(f"expires={expires!r}: give a datetime with a time zone, as in datetime.now(UTC)")
    id, secret = secrets.token_hex(ID_BYTES), secrets.token_urlsafe(SECRET_BYTES)
    return Token(id, hash_of(secret), access, expires, created_at), f"{PREFIX}_{id}_{secret}"


def token_of(text: str, access: Access) -> Token:
    """Return the token that a text is, as it is kept; `InvalidOption` if it is none."""
    parts = parts_of(text)
    if parts is None or len(parts[1]) < SECRET_BYTES:
        raise InvalidOption("this is no token: it is perd_ID_SECRET, as `perdure token make` prints one")
    return Token(parts[0], hash_of(parts[1]), access)


def check_access(access: Access) -> Access:
    """Return an access, or raise `InvalidOption` or `BadId` that says what is wrong with it."""
    check_name("the name of a token", access.name)
    if access.role not in ROLES:
        raise InvalidOption(f"role={access.role!r}: there is none of this name; it is one of {', '.join(ROLES)}")
    for what, names in (("a handler", access.handlers), ("a prefix of keys", access.key_prefixes)):
        if names is not None and not 0 < len(names) <= NAMES_LIMIT:
            raise InvalidOption(f"{what}: name 1 to {NAMES_LIMIT}, or none for all")
        for name in names or ():
            check_name(what, name)
    return access


# --- kept in the store ------------------------------------------------------------------------------------------------
_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Token).decode
_decode_use = msgspec.json.Decoder(float).decode


async def add_token(operations: Operations, access: Access, expires: datetime | None, now: datetime) -> str:
    """Make a token durable, and return its text. No two valid ones have one name: it stands for the caller."""
    token, text = new_token(access, expires=expires, created_at=now)
    if any(each.access.name == access.name and each.is_valid(now) for each in await tokens(operations)):
        raise InvalidOption(f"there is a token {access.name!r} already: revoke it first, or choose another name")
    await operations.write_documents(TOKENS, [Put((token.id,), _encode(token), if_revision=0)])
    return text


async def revoke_token(operations: Operations, id: str, now: datetime) -> Token:
    """Make a token invalid for good, and return it; `InvalidOption` if there is none of this id."""
    while True:
        (found,) = await operations.read_documents(TOKENS, [(check_name("the id of a token", id),)])
        if found is None:
            raise InvalidOption(f"there is no token {id!r}: `perdure token list` shows those that there are")
        token = _decode(found.value)
        if token.revoked_at is not None:
            return token
        revoked = replace(token, revoked_at=now)
        try:
            await operations.write_documents(TOKENS, [Put(found.key, _encode(revoked), if_revision=found.revision)])
        except RevisionConflict:
            continue
        return revoked


async def tokens(operations: Operations) -> list[Token]:
    """Return all tokens, the oldest first."""
    scan = operations.scan_documents
    used = {each.key[0]: _decode_use(each.value) async for each in whole(scan, USES)}
    found: list[Token] = []
    async for each in whole(scan, TOKENS):
        at = used.get(each.key[0])
        found.append(replace(_decode(each.value), last_used=None if at is None else datetime.fromtimestamp(at, UTC)))
    return sorted(found, key=lambda each: (each.created_at is not None, each.created_at, each.id))


async def note_use(operations: Operations, id: str, now: datetime) -> None:
    """Record that a token is used."""
    await operations.write_documents(USES, [Put((id,), _encode(now.timestamp()))])
