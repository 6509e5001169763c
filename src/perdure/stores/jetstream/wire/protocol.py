"""The protocol between client and NATS server: stored messages, headers, error codes. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from perdure.errors import StoreError
from perdure.stores.jetstream.wire.checks import stream_gone

WRONG_SEQUENCE = 10071
ANOTHER_IN_FLIGHT = 10164
ELECTING = frozenset({10006, 10008, 10009})
"""Error codes of the API while there is no leader."""
NOT_NOW = ELECTING | {ANOTHER_IN_FLIGHT}
TOO_MANY, UNAVAILABLE = 429, 503
"""Codes of transient errors: the message was not stored, and must be put again."""
NO_MESSAGE = 10037
NO_STREAM = 10059
NOT_DELETED = frozenset({NO_MESSAGE, 10057, 10043})
"""There was nothing to delete."""
FULL = frozenset({10077, 10023, 10047})
BATCHES_DISABLED = 10174
BATCH_AGAIN = frozenset({10176, 10210, 10211})
"""The server has lost part of the batch, or has too many at once: it was not stored."""

HEADER_LINE = b"NATS/1.0\r\n"


Arrived = Callable[[str, str, bytes, bytes], None]
"""Called with subject, reply subject, payload and raw headers of a message."""


class WrongSequence(StoreError):
    """The guard of a put did not hold: the subject has another last message."""


class PerhapsStored(WrongSequence):
    """The guard of a put that was sent again did not hold: it, or another, was stored the first time."""


class Stored(Struct, frozen=True):
    """A message in a stream."""

    subject: str
    sequence: int
    data: bytes
    headers: bytes = b""

    def header(self, name: bytes) -> bytes | None:
        """Return the value of a header; `name` ends with a colon and a space."""
        return header(self.headers, name)


class ApiError(Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class Ack(Struct):
    seq: int = 0
    error: ApiError | None = None


class StoredJson(Struct):
    subject: str
    seq: int
    data: bytes = b""
    hdrs: bytes = b""


class LastJson(Struct):
    message: StoredJson | None = None
    error: ApiError | None = None


decode_ack = msgspec.json.Decoder(Ack).decode
decode_last = msgspec.json.Decoder(LastJson).decode
encode = msgspec.json.Encoder().encode


def header(headers: bytes, name: bytes) -> bytes | None:
    """Return the value of a header in raw headers; `name` ends with a colon and a space."""
    at = headers.find(b"\r\n" + name)
    if at < 0:
        return None
    at += 2 + len(name)
    return headers[at : headers.find(b"\r\n", at)]


def status_of(headers: bytes | None) -> int:
    """Return the status in raw headers, 0 if there is none."""
    if not headers or headers[8:9] != b" ":
        return 0
    return int(headers[9:12])


def raise_error(answer: dict[str, Any], stream: str) -> None:
    error: dict[str, Any] | None = answer.get("error")
    if error is not None:
        if error.get("err_code") == NO_STREAM:
            raise stream_gone(stream)
        raise StoreError(f"jetstream: {stream}: {error.get('description')} ({error.get('err_code')})")
