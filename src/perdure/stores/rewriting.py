"""Going through all that a store keeps, to change values where they are: how a sealed store changes its keys.

The store reads its own rows or messages and writes them again; the `Rewriting` decides what becomes of each, and is all
that knows a key. What somebody has written since is never undone: a store writes only over what it has read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.core.journal import Answer, Frame, Message, Start, decode_frame, encode_frame
from perdure.core.streams import Batch
from perdure.errors import StoreError
from perdure.stores.awakeables import Awakeable
from perdure.stores.documents import Document
from perdure.stores.port import Key
from perdure.stores.streams import Chunk, decode_chunk, encode_chunk

T = TypeVar("T")

PART_LIMIT = 200
"""Rows or messages that are read together."""
PART_BYTES = 1024 * 1024
"""About how many bytes of them."""


class Rewriting(Protocol):
    """What becomes of what a store keeps. An equal value means that it stays.

    It may be asked several times about one thing. It changes values only: nothing by which a store finds or compares.
    """

    def start(self, start: Start, /) -> Start: ...
    def message(self, message: Message, /) -> Message: ...
    def answer(self, answer: Answer, /) -> Answer: ...
    def frame(self, id: str, frame: Frame, /) -> Frame: ...
    def key(self, name: str, key: Key, /) -> Key: ...
    def awakeable(self, awakeable: Awakeable, /) -> Awakeable: ...
    def document(self, collection: str, document: Document, /) -> Document: ...
    def batch(self, id: str, batch: Batch, /) -> Batch: ...


class Left(Struct, frozen=True):
    """Something that stays as it is, and why. If it `waits`, it moves by itself, and can be changed then."""

    what: str
    why: str
    waits: bool = False


class CountsKeys(Rewriting, Protocol):
    """Counts values by the name of the key under which they are sealed, as they are afterwards."""

    @property
    def under(self) -> dict[str, int]: ...


class Reseals(CountsKeys, Protocol):
    """Seals values anew. `left` has those that do not open, by what they belong to."""

    @property
    def left(self) -> dict[str, Left]: ...


class Part(Struct, frozen=True):
    """What became of a part of what a store keeps. `next` is where the next part begins; None: this was the last.

    Of the things that were `seen`, so many were `changed`, or were written by somebody else meanwhile.
    """

    next: str | None
    seen: int = 0
    changed: int = 0
    left: tuple[Left, ...] = ()


def rewritten(
    data: bytes, decode: Callable[[bytes], T], encode: Callable[[T], bytes], change: Callable[[T], T]
) -> bytes:
    """Return encoded data with a change made in it; the same data if it stays.

    Raises `StoreError` if a newer release has written what would be lost.
    """
    found = decode(data)
    changed = change(found)
    if changed == found:
        return data
    if not _has_all(_decode(encode(found)), _decode(data)):
        raise StoreError("a newer release has written it, and this one does not know all of it: run rekey there")
    return encode(changed)


def rewritten_frame(rewriting: Rewriting, id: str, data: bytes) -> bytes:
    """Return an encoded frame as `rewritten`."""
    return rewritten(data, lambda each: decode_frame(each, id), encode_frame, lambda each: rewriting.frame(id, each))


def rewritten_chunk(rewriting: Rewriting, id: str, data: bytes) -> bytes:
    """Return an encoded chunk of a stream as `rewritten`."""

    def change(chunk: Chunk) -> Chunk:
        return replace(chunk, batch=rewriting.batch(id, chunk.batch))

    return rewritten(data, lambda each: decode_chunk(each, id), encode_chunk, change)


_decode = msgspec.msgpack.Decoder().decode


def _has_all(again: Any, data: Any) -> bool:
    """Report whether something encoded again has all that it had before. It may have more: fields with defaults."""
    if isinstance(data, list) and isinstance(again, list):
        some, all_now = cast("list[Any]", data), cast("list[Any]", again)
        return len(all_now) >= len(some) and all(map(_has_all, all_now, some))
    if isinstance(data, dict) and isinstance(again, dict):
        named, now = cast("dict[Any, Any]", data), cast("dict[Any, Any]", again)
        return all(name in now and _has_all(now[name], value) for name, value in named.items())
    return bool(again == data)
