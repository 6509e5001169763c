"""Streams: what invocations write while they run, in chunks beside their journals. The third protocol of every store.

A stream is a name of an invocation. Its items are numbered from 0; a chunk holds those that were stored together, and
`offset` is the number of its first one. A store numbers what it appends, so that steps and the body may write to the
same stream. Items never change, and go with their invocation.

* What a step writes is appended by `StreamStore.append`, for the epoch of a claim. Once a later epoch has written to a
  stream, or the invocation has settled, it is refused: `Fenced`.
* What a body writes is in its frame, and an effect of it. `Chunk.body` counts the body's items, by which an effect that
  is done again is known: each item is written once.
* Once an outcome can be seen, everything that belongs to the invocation can be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from perdure.core.streams import STREAM_LIMIT_BYTES, Batch, stream_full
from perdure.errors import Fenced, StoreDamaged

READ_BYTES = 1024 * 1024
"""About how many bytes of chunks one read returns."""


class Chunk(Struct, frozen=True, array_like=True, gc=False):
    """A batch that is stored. `offset` is the number of its first item; `epoch` the latest that has written here.

    `body` counts the items of the body up to here, and `size` the bytes of the steps.
    """

    batch: Batch
    offset: int
    epoch: int
    body: int
    size: int

    @property
    def end(self) -> int:
        """The number of the item after it."""
        return self.offset + self.batch.count


encode_chunk = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Chunk).decode


def decode_chunk(data: bytes, id: str, /) -> Chunk:
    """Return a chunk of a stream of an invocation, or raise `StoreDamaged`."""
    try:
        return _decode(data)
    except msgspec.DecodeError as error:
        text = f"a chunk of a stream of invocation {id!r} does not decode ({error}): restore a backup"
        raise StoreDamaged(text) from error


def next_of_step(last: Chunk | None, id: str, epoch: int, batch: Batch, /) -> Chunk:
    """Return the chunk that a batch of a step becomes after the last one of its stream.

    Raises `Fenced` if a later epoch has written there, and `LimitExceeded` if the stream is full.
    """
    offset, latest, body, size = _place_after(last)
    if latest > epoch:
        raise lost(id, batch.name, epoch)
    size += len(batch.data)
    if size > STREAM_LIMIT_BYTES:
        raise stream_full(batch.name, size)
    return Chunk(batch, offset, epoch, body, size)


def next_of_body(last: Chunk | None, batch: Batch, /) -> Chunk | None:
    """Return the chunk that a batch of a body becomes after the last one of its stream; None if it is there."""
    offset, epoch, body, size = _place_after(last)
    if batch.first < body:
        return None
    return Chunk(batch, offset, epoch, batch.first + batch.count, size)


def _place_after(last: Chunk | None) -> tuple[int, int, int, int]:
    return (0, 0, 0, 0) if last is None else (last.end, last.epoch, last.body, last.size)


def lost(id: str, name: str, epoch: int) -> Fenced:
    """Return the error for a batch of a worker that has lost the invocation."""
    return Fenced(
        f"stream {name!r} of invocation {id!r} takes nothing from claim {epoch} any more: another worker has claimed "
        "the invocation, or it has settled"
    )


class Following(Protocol):
    """Tells one reader of a stream that there may be more."""

    async def more(self) -> None:
        """Wait until items were stored since the last call, or the store closes. A push may be lost."""
        ...

    def close(self) -> None:
        """Stop."""
        ...


class StreamStore(Protocol):
    """The streams of a store."""

    async def append(self, id: str, epoch: int, batch: Batch, /) -> None:
        """Store a batch of a step durably, under the claim `epoch` of the invocation, once.

        Raises `Fenced` if a later claim has written to the stream, if the invocation has settled, or if there is none;
        `LimitExceeded` if the stream is full. Then nothing is written. Callers do not append to one stream at the same
        time under one claim, but for different steps.
        """
        ...

    async def read(self, id: str, name: str, start: int, /) -> Sequence[Chunk]:
        """Read chunks in order, from the one that holds item `start`; at least one, if there is that item."""
        ...

    async def counts(self, id: str, /) -> Mapping[str, int]:
        """Return the names of an invocation's streams, in order, with the number of their items."""
        ...

    def follow(self, id: str, name: str, /) -> Following:
        """Hear of what is stored from now on."""
        ...


class Followers:
    """The readers in one process that follow streams."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], set[Follower]] = {}

    def follow(self, id: str, name: str) -> Follower:
        follower = Follower(self, id, name)
        self._of.setdefault((id, name), set()).add(follower)
        return follower

    def has(self, id: str, name: str) -> bool:
        """Report whether a stream has a follower."""
        return (id, name) in self._of

    def forget(self, follower: Follower) -> None:
        followers = self._of.get(follower.place, set())
        followers.discard(follower)
        if not followers:
            self._of.pop(follower.place, None)

    def tell(self, id: str, name: str) -> None:
        """Tell those who follow a stream that there is more."""
        for follower in self._of.get((id, name), ()):
            follower.tell()

    def tell_all(self) -> None:
        """Let all look, since pushes may have been lost, or the store closes."""
        for followers in self._of.values():
            for follower in followers:
                follower.tell()


class Follower:
    """One of them."""

    def __init__(self, followers: Followers, id: str, name: str) -> None:
        self.place = (id, name)
        self._followers = followers
        self._news = asyncio.Event()

    async def more(self) -> None:
        await self._news.wait()
        self._news.clear()

    def tell(self) -> None:
        self._news.set()

    def close(self) -> None:
        self._followers.forget(self)
