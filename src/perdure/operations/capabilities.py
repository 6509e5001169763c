"""Capabilities: signed texts that let anyone who has one answer one awakeable, until a time.

A capability names its purpose, the awakeable, when it expires, and the key by which it is signed (HMAC-SHA256). The
keys are a document of the store, made on first use, and never leave the store's process: capabilities are made and
checked here. Nothing records those that were made.
"""

from __future__ import annotations

import base64
import hmac
import os
import re
import time
from collections.abc import Sequence
from typing import Literal, Protocol
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from perdure.errors import CapabilityRefused, InvalidOption, RevisionConflict
from perdure.operations.documents import Document, DocumentKey, Put, Write

Purpose = Literal["approve", "hook"]
"""What a capability is for: the page on which a person decides, or the callback of another system."""

PATHS: dict[Purpose, str] = {"approve": "/approve/", "hook": "/api/awakeable-hooks/"}
"""The paths of the routes that take capabilities."""
KEYS = "perdure.keys"
"""The collection of keys: the document `capabilities` holds `_Keys`, as JSON."""
KEY_BYTES = 32
KEY_ID_BYTES = 4
KEYS_LIMIT = 10
"""Keys of a store: that which signs, and earlier ones."""
MAC_BYTES = 16
"""What is kept of a signature: half of it, as RFC 2104 (5) allows, so that links are shorter in mails."""
FRESH_SECONDS = 1.0
"""How long the keys are remembered."""
LINK_SECONDS = 30 * 86_400.0
"""How long a link is valid, unless its maker says otherwise."""
CAPABILITY_LIMIT = 2_000
"""Characters of a capability. The longest id of an awakeable needs about 1,200."""

_DOCUMENT: DocumentKey = ("capabilities",)
_DOMAIN = b"perdure capability\n"
"""What is signed begins with this, so that no other use of a key can make a capability."""
_TEXT = re.compile(rf"[A-Za-z0-9_-]{{{MAC_BYTES},{CAPABILITY_LIMIT}}}")


class Capability(Struct, frozen=True):
    """A capability, and what it is for. `expires_at` is in seconds since the Unix epoch."""

    purpose: Purpose
    text: str
    awakeable_id: str
    expires_at: int

    @property
    def path(self) -> str:
        """Where it is used, below the URL of a server."""
        return f"{PATHS[self.purpose]}{self.text}"


class _Key(Struct, frozen=True):
    id: str
    secret: bytes


class _Keys(Struct, frozen=True):
    """The first key signs; what any of them has signed is valid."""

    keys: tuple[_Key, ...]


class _Signed(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    key: str
    purpose: str
    expires_at: int
    awakeable_id: str


_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(_Signed).decode
_encode_keys = msgspec.json.encode
_decode_keys = msgspec.json.Decoder(_Keys).decode


class HasDocuments(Protocol):
    """The operations that capabilities need."""

    async def read_documents(self, collection: str, keys: Sequence[DocumentKey], /) -> list[Document | None]: ...
    async def write_documents(self, collection: str, writes: Sequence[Write], /) -> list[int]: ...


class Capabilities:
    """Makes and checks the capabilities of one store. It remembers the keys for a moment."""

    def __init__(self) -> None:
        self._keys: tuple[_Key, ...] = ()
        self._read_at = 0.0

    async def make(self, store: HasDocuments, purpose: Purpose, awakeable_id: str, expires_at: float) -> Capability:
        """Make a capability. The first one of a store makes its key."""
        key = (await self._known_keys(store) or await _made_keys(store))[0]
        signed = _Signed(key.id, purpose, int(expires_at), awakeable_id)
        data = _encode(signed)
        text = _text_of(data + _mac(key, data))
        return Capability(purpose, text, awakeable_id, signed.expires_at)

    async def check(self, store: HasDocuments, purpose: Purpose, text: str, now: float) -> Capability:
        """Return what a capability is for; `CapabilityRefused` if it is not valid for this purpose, or expired."""
        signed, data, mac = _parsed(text)
        found = next((each for each in await self._known_keys(store) if each.id == signed.key), None)
        if found is None:
            self._keys = ()  # it may have been made a moment ago
            found = next((each for each in await self._known_keys(store) if each.id == signed.key), None)
        if found is None or not hmac.compare_digest(mac, _mac(found, data)) or signed.purpose != purpose:
            raise _invalid()
        if signed.expires_at <= now:
            raise CapabilityRefused("this link has expired: ask for a new one", expired=True)
        return Capability(purpose, text, signed.awakeable_id, signed.expires_at)

    async def _known_keys(self, store: HasDocuments) -> tuple[_Key, ...]:
        if not self._keys or time.monotonic() > self._read_at + FRESH_SECONDS:
            (document,) = await store.read_documents(KEYS, [_DOCUMENT])
            self._keys = () if document is None else _decode_keys(document.value).keys
            self._read_at = time.monotonic()
        return self._keys


async def rotate_keys(store: HasDocuments, *, revoke: bool) -> None:
    """Make a new key, which signs from now on. With `revoke`, what earlier keys have signed is not valid any more.

    `RevisionConflict` if another process changes the keys at the same time.
    """
    (document,) = await store.read_documents(KEYS, [_DOCUMENT])
    old = () if document is None or revoke else _decode_keys(document.value).keys
    keys = _Keys((_new_key(), *old[: KEYS_LIMIT - 1]))
    revision = 0 if document is None else document.revision
    await store.write_documents(KEYS, [Put(_DOCUMENT, _encode_keys(keys), if_revision=revision)])


def _new_key() -> _Key:
    return _Key(os.urandom(KEY_ID_BYTES).hex(), os.urandom(KEY_BYTES))


async def _made_keys(store: HasDocuments) -> tuple[_Key, ...]:
    """Make the first key, unless another process does so at the same time; return the keys."""
    made = (_new_key(),)
    try:
        await store.write_documents(KEYS, [Put(_DOCUMENT, _encode_keys(_Keys(made)), if_revision=0)])
    except RevisionConflict:
        (document,) = await store.read_documents(KEYS, [_DOCUMENT])
        if document is None:
            raise
        return _decode_keys(document.value).keys
    return made


def _mac(key: _Key, data: bytes) -> bytes:
    return hmac.digest(key.secret, _DOMAIN + data, "sha256")[:MAC_BYTES]


def _text_of(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _parsed(text: str) -> tuple[_Signed, bytes, bytes]:
    """Return what a text says, the bytes that are signed, and the signature, which is not checked here."""
    if _TEXT.fullmatch(text) is None:
        raise _invalid()
    try:
        found = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        signed = _decode(found[:-MAC_BYTES])
    except (ValueError, RecursionError):
        raise _invalid() from None
    if _text_of(found) != text:  # bits of the last character that mean nothing
        raise _invalid()
    return signed, found[:-MAC_BYTES], found[-MAC_BYTES:]


def _invalid() -> CapabilityRefused:
    return CapabilityRefused("this link is not valid: it was changed, cut short, or made for something else")


def check_public_url(url: str) -> str:
    """Return the URL of a server, without the slash at its end, or raise `InvalidOption`."""
    if not _is_public_url(url):
        raise InvalidOption(f"public_url={url!r}: give a scheme and a host, as in https://perdure.example.com")
    return url.rstrip("/")


def _is_public_url(url: str) -> bool:
    try:
        found = urlsplit(url)
        has_host = found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0
    except ValueError:  # a port that is none
        return False
    return has_host and url.isprintable() and " " not in url and not found.query and not found.fragment
