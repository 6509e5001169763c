"""Reads a stream of an invocation, and follows it until the invocation has settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from msgspec import Struct

from perdure.core import journal
from perdure.core.streams import check_stream, items_of
from perdure.errors import InvalidOption, StoreReadOnly, unknown
from perdure.stores.port import Store
from perdure.stores.streams import Following

LOOK_SECONDS = 1.0
"""How often a reader that waits looks whether there is more, or the end, in case a push was lost."""


class StreamPart(Struct, frozen=True, array_like=True):
    """Items of a stream, encoded, that were stored together. `offset` is the number of the first one.

    `step` wrote them in this `attempt`; None: the body did.
    """

    offset: int
    items: list[bytes]
    step: int | None
    attempt: int

    @property
    def end(self) -> int:
        """The number of the item after them."""
        return self.offset + len(self.items)


def check_start(start: int) -> int:
    """Return the number of the first item to read, or raise `InvalidOption`."""
    if type(start) is not int or start < 0:
        raise InvalidOption(f"start={start!r}: give the number of an item, from 0")
    return start


async def parts_of(store: Store, id: str, name: str, start: int, *, follow: bool) -> AsyncGenerator[StreamPart, None]:
    """Yield the items from number `start` on, in order; with `follow`, also those to come, until it has settled.

    Nothing is kept for a reader: it is told that there is more, and reads on from where it is. So a slow one costs
    nothing but itself.
    """
    check_stream(name)
    check_start(start)
    following, watching = store.streams.follow(id, name), _watching(store, id)
    try:
        if await store.row(id) is None:
            raise unknown(id)
        has_ended = not follow or await store.outcome(id) is not None
        while True:
            chunks = await store.streams.read(id, name, start)
            for chunk in chunks:
                batch, skipped = chunk.batch, max(0, start - chunk.offset)
                part = StreamPart(chunk.offset + skipped, items_of(batch)[skipped:], batch.step, batch.attempt)
                start = part.end
                yield part
            if not chunks:
                if has_ended:
                    return
                has_ended = await _news(store, id, following, watching)
    finally:
        following.close()
        if watching is not None:
            watching.cancel()


def _watching(store: Store, id: str) -> asyncio.Future[journal.Outcome] | None:
    """Return a future of the outcome; None where outcomes are not pushed, as of a file that is only read."""
    try:
        return store.watch(id)
    except StoreReadOnly:
        return None


async def _news(store: Store, id: str, following: Following, watching: asyncio.Future[journal.Outcome] | None) -> bool:
    """Wait until there may be more, and report whether the invocation has settled: then the next read is the last."""
    more = asyncio.ensure_future(following.more())
    pushed: list[asyncio.Future[Any]] = [more] if watching is None else [more, watching]
    try:
        done, _ = await asyncio.wait(pushed, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        more.cancel()
    if watching is not None and watching.done():
        watching.result()  # or the error of a store that was closed
        return True
    if done:
        return False
    if await store.row(id) is None:
        raise unknown(id)
    return await store.outcome(id) is not None
