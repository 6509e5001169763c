"""Ids: new ones from a time and random bytes, and derived ones that are the same on every replay."""

from __future__ import annotations

import hashlib
import hmac

from perdure.errors import BadId

ID_LENGTH_LIMIT = 200
"""Characters in an id, a key or a handler's name that a user chooses; a JetStream subject must hold them escaped."""

_MAC_BYTES = 8
_NUMBER_LENGTH_LIMIT = 18


def new_id(at: float, random: bytes) -> str:
    """Return a UUIDv7 (RFC 9562) as 32 hex digits, from a time in seconds and ten random bytes. It sorts by time."""
    number = int.from_bytes(random, "big")
    time = int(at * 1000) & 0xFFFF_FFFF_FFFF
    value = time << 80 | 0x7 << 76 | (number & 0xFFF) << 64 | 0b10 << 62 | (number >> 12) & (1 << 62) - 1
    return f"{value:032x}"


def derived_id(invocation_id: str, generation: int, n: int) -> str:
    """Return the id of the invocation that command `n` of `generation` starts."""
    source = f"{invocation_id}\n{generation}\n{n}".encode()
    return hashlib.blake2b(source, digest_size=16, person=b"perdure-start").hexdigest()


def seed_of(id: str) -> int:
    """Return the seed of the randomness of an invocation that another one starts."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8, person=b"perdure-seed").digest(), "big") >> 1


def idempotency_key(invocation_id: str, generation: int, n: int, name: str) -> str:
    """Return the idempotency key of a step: the same on every attempt and after every crash."""
    source = f"{invocation_id}\n{generation}\n{n}\n{name}".encode()
    return hashlib.blake2b(source, digest_size=16, person=b"perdure-step").hexdigest()


def awakeable_id(invocation_id: str, generation: int, n: int, secret: bytes) -> str:
    """Return the id under which the outside answers awakeable `n`. It names the invocation and cannot be guessed."""
    return f"{invocation_id}~{generation}~{n}~{_mac(invocation_id, generation, n, secret)}"


def parse_awakeable_id(text: str, secret: bytes) -> tuple[str, int, int]:
    """Return the invocation id, generation and command number that an awakeable's id carries, or raise `BadId`."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]  a checker may not be watching
        raise BadId(f"an awakeable's id must be a str, not {type(text).__name__}")
    match text.rsplit("~", 3):
        case [invocation_id, generation, n, mac] if text.isprintable() and _is_number(generation) and _is_number(n):
            expected = _mac(invocation_id, int(generation), int(n), secret)
            if hmac.compare_digest(mac.encode(), expected.encode()):
                return invocation_id, int(generation), int(n)
        case _:
            pass
    raise BadId(
        f"{text[:ID_LENGTH_LIMIT]!r}: this store handed out no such awakeable; pass the `.id` of one, unchanged"
    )


def check_name(what: str, text: str) -> str:
    """Return an id, key or handler name that a user chose, or raise `BadId` when no store could hold it."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]  a checker may not be watching
        raise BadId(f"{what} must be a str, not {type(text).__name__}")
    if not text:
        raise BadId(f"{what} must have at least one character")
    if len(text) > ID_LENGTH_LIMIT:
        raise BadId(f"{what} has {len(text)} characters where the limit is {ID_LENGTH_LIMIT}: {text[:40]!r}...")
    if not text.isprintable():
        raise BadId(f"{what} {text!r} has characters that cannot be printed: use letters, digits and punctuation")
    return text


RESERVED_IDS = frozenset({".", "..", "stats"})
"""Ids that no new invocation may have: in the path of a URL they mean something else."""


def check_new_id(id: str) -> str:
    """Return the id that a user chose for a new invocation, or raise `BadId`."""
    check_name("an invocation's id", id)
    if id in RESERVED_IDS:
        raise BadId(f"an invocation cannot have the id {id!r}: in a URL it means something else")
    return id


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= _NUMBER_LENGTH_LIMIT


def _mac(invocation_id: str, generation: int, n: int, secret: bytes) -> str:
    return hmac.digest(secret, f"{invocation_id}\n{generation}\n{n}".encode(), "sha256")[:_MAC_BYTES].hex()
