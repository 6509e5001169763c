"""Seals, opens or shows one field.

A sealed value is `MAGIC`, the length of the key's name, the name, and what the codec made. No value in msgpack or JSON
begins with the first byte of `MAGIC`. Sealed text is that in base64, after `TEXT`.

A start is sealed with its digest, which core compares. The digest that the store sees in its place is keyed (HMAC): it
is the same for equal starts, so that the store can compare it, and cannot be guessed from small inputs.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.core.failures import Failure
from perdure.core.journal import CallStep, Start
from perdure.errors import KeyMissing, Tampered, Unopened, Unsealed

if TYPE_CHECKING:
    from perdure.encryption import Codec

MAGIC = b"\xc1S\x01"
TEXT = "sealed:"
SHOWN = "sealed"
"""What is shown in place of a value that this process cannot open."""
KEYED_BYTES = 16
"""Bytes of a keyed digest, after the name of its key."""
DIGEST_KEY_NAME_BYTES = 4

State = dict[str, bytes] | dict[str, bytes | None]

_REMEDY = "connect(codec=Encrypted(…)) with its keys, or name them in the file of PERDURE_KEYS_FILE"
_KINDS = {b"i": "invocation", b"k": "key", b"d": "document", b"m": "the answer to message", b"s": "the store"}

_encode = msgspec.msgpack.Encoder().encode
_decode_input = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode
_decode_failure = msgspec.msgpack.Decoder(Failure).decode
_decode_state = msgspec.msgpack.Decoder(dict[str, bytes | None]).decode


class DigestKey(Struct, frozen=True):
    """The key of the digests of starts. `name` stands before each."""

    name: bytes
    key: bytes

    def digest_of(self, start: Start) -> bytes:
        """Return the keyed digest of a plain start. Without a digest, its input stands for it."""
        told = b"\1" + start.digest if start.digest else b"\0" + start.input
        return self.name + hmac.digest(self.key, told, "sha256")[:KEYED_BYTES]


class Fields(Protocol):
    """What is done to each field. `scope` names what has a key of its own, `place` the field within it."""

    def value(self, data: bytes, scope: bytes, place: bytes, /) -> bytes: ...
    def text(self, text: str, scope: bytes, place: bytes, /) -> str: ...
    def failure(self, failure: Failure, scope: bytes, place: bytes, /) -> Failure: ...
    def state(self, state: State, scope: bytes, place: bytes, /) -> dict[str, Any]: ...
    def step(self, step: CallStep, scope: bytes, place: bytes, /) -> CallStep: ...
    def start(self, start: Start, scope: bytes, place: bytes, /) -> Start: ...


def is_sealed(data: bytes) -> bool:
    return data.startswith(MAGIC)


def name_in(data: bytes) -> str | None:
    """Return the name of the key under which a value is sealed; None if it is not. It is not opened."""
    if not data.startswith(MAGIC):
        return None
    begin = len(MAGIC) + 1
    return data[begin : begin + (data[begin - 1] if len(data) >= begin else 0)].decode(errors="replace")


def sealed_under(codec: Codec, name: str, data: bytes, scope: bytes, place: bytes) -> bytes:
    """Seal a value under a key of the codec."""
    return _header(name) + codec.encode(data, scope, place, name)


def _header(name: str) -> bytes:
    encoded = name.encode()
    return MAGIC + bytes((len(encoded),)) + encoded


class Sealing:
    """Seals each field for a store. Without a codec it refuses to."""

    def __init__(self, codec: Codec | None, store_id: bytes, digest_key: DigestKey | None) -> None:
        self._codec = codec
        self._store = store_id
        self._digest_key = digest_key
        self._header = b"" if codec is None else _header(codec.names[0])

    def value(self, data: bytes, scope: bytes, place: bytes, /) -> bytes:
        if self._codec is None:
            raise no_codec()
        return self._header + self._codec.encode(data, self._store + scope, place)

    def text(self, text: str, scope: bytes, place: bytes, /) -> str:
        return TEXT + base64.b64encode(self.value(text.encode(), scope, place)).decode()

    def failure(self, failure: Failure, scope: bytes, place: bytes, /) -> Failure:
        return Failure(failure.module, failure.qualname, SHOWN, [self.value(_encode(failure), scope, place)])

    def state(self, state: State, scope: bytes, place: bytes, /) -> dict[str, Any]:
        return {"": self.value(_encode(state), scope, place)} if state else state

    def step(self, step: CallStep, scope: bytes, place: bytes, /) -> CallStep:
        sealed = self.value(_encode((step.digest, step.checks)), scope, place)
        return CallStep(step.n, step.name, sealed, undo=step.undo)

    def start(self, start: Start, scope: bytes, place: bytes, /) -> Start:
        inner = self.value(_encode((start.input, start.digest)), scope, place)
        assert self._digest_key is not None  # there is one where there is a codec
        return replace(start, input=inner, digest=self._digest_key.digest_of(start))


class Opening:
    """Opens each field. Raises `Unopened`. Plain ones pass if the codec takes them `now`.

    Without a codec plain ones pass, and sealed ones raise `KeyMissing`. Without a digest key, keyed digests are not
    compared.
    """

    def __init__(
        self, codec: Codec | None, store_id: bytes, digest_key: DigestKey | None, now: Callable[[], float]
    ) -> None:
        self._codec = codec
        self._store = store_id
        self._digest_key = digest_key
        self._now = now
        self._names = {} if codec is None else {name.encode(): name for name in codec.names}

    def value(self, data: bytes, scope: bytes, place: bytes, /) -> bytes:
        if not data.startswith(MAGIC):
            self._check_plain(scope)
            return data
        begin = len(MAGIC) + 1
        end = begin + (data[begin - 1] if len(data) >= begin else 0)
        name = self._names.get(data[begin:end])
        if name is None or self._codec is None:
            raise key_missing(about(scope), data[begin:end].decode(errors="replace"))
        opened = self._codec.decode(data[end:], self._store + scope, place, name)
        if opened is None:
            text = f"{about(scope)}: a sealed value was changed, or comes from another place: restore it from a backup"
            raise Tampered(text)
        return opened

    def text(self, text: str, scope: bytes, place: bytes, /) -> str:
        if not text.startswith(TEXT):
            self._check_plain(scope)
            return text
        try:
            data = base64.b64decode(text[len(TEXT) :], validate=True)
        except binascii.Error:
            data = MAGIC
        if not data.startswith(MAGIC):
            raise Tampered(f"{about(scope)}: a sealed text was changed: restore it from a backup")
        return self.value(data, scope, place).decode()

    def failure(self, failure: Failure, scope: bytes, place: bytes, /) -> Failure:
        data = failure.args[0] if len(failure.args) == 1 else None
        if not isinstance(data, bytes) or not data.startswith(MAGIC):
            self._check_plain(scope)
            return failure
        return _decode_failure(self.value(data, scope, place))

    def state(self, state: State, scope: bytes, place: bytes, /) -> dict[str, Any]:
        data = state.get("") if len(state) == 1 else None
        if data is None or not data.startswith(MAGIC):
            if state:
                self._check_plain(scope)
            return state
        return _decode_state(self.value(data, scope, place))

    def step(self, step: CallStep, scope: bytes, place: bytes, /) -> CallStep:
        if not step.digest.startswith(MAGIC):
            self._check_plain(scope)
            return step
        digest, checks = _decode_input(self.value(step.digest, scope, place))
        return CallStep(step.n, step.name, digest, checks, step.undo)

    def start(self, start: Start, scope: bytes, place: bytes, /) -> Start:
        if not start.input.startswith(MAGIC):
            self._check_plain(scope)
            return start
        input, digest = _decode_input(self.value(start.input, scope, place))
        opened = replace(start, input=input, digest=digest)
        if self._digest_key is not None and self._digest_key.digest_of(opened) != start.digest:
            raise Tampered(f"{about(scope)}: the digest of its start was changed: restore it from a backup")
        return opened

    def _check_plain(self, scope: bytes) -> None:
        if self._codec is not None and not self._codec.takes_plain(self._now()):
            raise Unsealed(
                f"{about(scope)} has a value that is not sealed: a process without the codec wrote it, or somebody "
                "else. If the store was in use before it was sealed, see Encrypted(allow_plain_until=…)"
            )


class Showing:
    """Opens each field for people: where that fails, it says so in place of the value."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening

    def value(self, data: bytes, scope: bytes, place: bytes, /) -> bytes:
        try:
            return self._opening.value(data, scope, place)
        except Unopened as error:
            return _encode(_shown(error))

    def text(self, text: str, scope: bytes, place: bytes, /) -> str:
        try:
            return self._opening.text(text, scope, place)
        except Unopened as error:
            return _shown(error)

    def failure(self, failure: Failure, scope: bytes, place: bytes, /) -> Failure:
        try:
            return self._opening.failure(failure, scope, place)
        except Unopened as error:
            return Failure(failure.module, failure.qualname, _shown(error))

    def state(self, state: State, scope: bytes, place: bytes, /) -> dict[str, Any]:
        try:
            return self._opening.state(state, scope, place)
        except Unopened as error:
            return {_shown(error): _encode(_shown(error))}

    def step(self, step: CallStep, scope: bytes, place: bytes, /) -> CallStep:
        return step  # its digests are not shown

    def start(self, start: Start, scope: bytes, place: bytes, /) -> Start:
        try:
            return self._opening.start(start, scope, place)
        except Unopened as error:
            return replace(start, input=_encode({_shown(error): _shown(error)}))


def no_codec() -> KeyMissing:
    """Return the error for what only a process with keys can do."""
    return KeyMissing(f"this store is sealed, and this process has no keys for it: {_REMEDY}")


def key_missing(what: str, name: str) -> KeyMissing:
    """Return the error for what is sealed under a key that this process does not have."""
    return KeyMissing(f"{what} is sealed under key {name!r}, which this process does not have: {_REMEDY}", key=name)


def about(scope: bytes) -> str:
    """Return what a scope names, for people."""
    kind, _, name = scope.partition(b"/")
    what = _KINDS[kind]
    shown = name.replace(b"\0", b"/").decode(errors="replace")
    return f"{what} {shown!r}" if shown else what


def _shown(error: Unopened) -> str:
    if isinstance(error, KeyMissing):
        return SHOWN
    return "tampered" if isinstance(error, Tampered) else "unsealed"
