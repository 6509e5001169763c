"""Encryption at rest: what a store keeps is sealed with keys that the store never sees (extra `encryption`)."""

from __future__ import annotations

import functools
import hmac
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from perdure.errors import InvalidOption

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ImportError as error:
    raise ImportError(f"perdure.encryption needs cryptography: pip install 'perdure[encryption]' ({error})") from error

KEY_BYTES = 32
NAME_LIMIT_BYTES = 64
"""The longest name of a key, as UTF-8. It stands before each value."""
CIPHERS_LIMIT = 4_096
"""Derived keys that are kept ready, each for one invocation or part of a collection."""
_NONCE_BYTES = 12
_SALT = b"perdure"


class Codec(Protocol):
    """Encrypts values on their way to the store, and decrypts them on the way back.

    `scope` names what has a key of its own, such as an invocation of a store; `place` the value within it. A value must
    not decrypt in another place.
    """

    @property
    def names(self) -> Sequence[str]:
        """The names of the keys: the first encrypts."""
        ...

    def encode(self, data: bytes, scope: bytes, place: bytes, /, name: str | None = None) -> bytes:
        """Encrypt under the first key, or the named one."""
        ...

    def decode(self, data: bytes, scope: bytes, place: bytes, /, name: str) -> bytes | None:
        """Decrypt what `encode` gave under the named key; None if it was changed, or is in another place."""
        ...

    def takes_plain(self, now: float, /) -> bool:
        """Report whether values that are not encrypted are taken at a time, in seconds since the Unix epoch."""
        ...


class Encrypted:
    """AES-256-GCM. `keys` are 32 bytes each, by name: the first encrypts, all decrypt.

    Each invocation, and the documents under each first part of a key, have a key of their own (HKDF-SHA256), and each
    value a random nonce. Values that are not encrypted are refused, but until `allow_plain_until`, an aware datetime:
    for a store that was in use before.
    """

    def __init__(self, keys: Mapping[str, bytes], /, *, allow_plain_until: datetime | None = None) -> None:
        self._extracted = {_checked_name(name): _extracted(name, key) for name, key in _checked(keys).items()}
        self.names = (*self._extracted,)
        if allow_plain_until is not None and (
            not isinstance(allow_plain_until, datetime) or allow_plain_until.tzinfo is None  # pyright: ignore[reportUnnecessaryIsInstance]
        ):
            raise InvalidOption(f"Encrypted(allow_plain_until={allow_plain_until!r}): give a datetime with a time zone")
        self._plain_until = 0.0 if allow_plain_until is None else allow_plain_until.timestamp()
        self._cipher = functools.lru_cache(CIPHERS_LIMIT)(self._new_cipher)

    def __repr__(self) -> str:
        return f"Encrypted(keys {', '.join(map(repr, self.names))})"  # without the keys

    def encode(self, data: bytes, scope: bytes, place: bytes, /, name: str | None = None) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher(self.names[0] if name is None else name, scope).encrypt(nonce, data, place)

    def decode(self, data: bytes, scope: bytes, place: bytes, /, name: str) -> bytes | None:
        try:
            return self._cipher(name, scope).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], place)
        except (InvalidTag, ValueError):  # ValueError: it was cut off
            return None

    def takes_plain(self, now: float, /) -> bool:
        return now < self._plain_until

    def _new_cipher(self, name: str, scope: bytes) -> AESGCM:
        return AESGCM(hmac.digest(self._extracted[name], scope + b"\x01", "sha256"))  # HKDF-Expand, of one block


def _checked(keys: Mapping[str, bytes]) -> Mapping[str, bytes]:
    if not isinstance(keys, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOption(
            f"Encrypted(): give a mapping of names to keys of {KEY_BYTES} bytes, not {type(keys).__name__}"
        )
    if not keys:
        raise InvalidOption(f"Encrypted({{}}): give at least one key of {KEY_BYTES} bytes, by its name")
    return keys


def _checked_name(name: str) -> str:
    is_text = isinstance(name, str)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not is_text or not name or not name.isprintable() or " " in name or len(name.encode()) > NAME_LIMIT_BYTES:
        text = f"printable characters without spaces, at most {NAME_LIMIT_BYTES} bytes, such as '2026-11'"
        raise InvalidOption(f"Encrypted(): {name!r} is no name of a key: give {text}")
    return name


def _extracted(name: str, key: bytes) -> bytes:
    """Return what the keys of scopes are derived from (HKDF-Extract). The texts of errors do not show the key."""
    if not isinstance(key, (bytes, bytearray)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOption(f"Encrypted(): key {name!r} is {type(key).__name__}, not bytes: decode it first")
    if len(key) != KEY_BYTES:
        raise InvalidOption(
            f"Encrypted(): key {name!r} has {len(key)} bytes, not {KEY_BYTES}: use os.urandom({KEY_BYTES})"
        )
    return hmac.digest(_SALT, key, "sha256")
