"""Server-sent events: the changes of all invocations, as one numbered stream; the statuses and streams of one."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from perdure.background import end, log_error
from perdure.core.json_values import to_json
from perdure.errors import StoreClosed, StoreError
from perdure.http.views import UNTYPED
from perdure.operations.access import Access
from perdure.operations.describe import Invocation
from perdure.operations.following import StreamPart
from perdure.operations.listing import Filters
from perdure.operations.port import Operations

KEPT_EVENTS = 1_000
"""Events that are kept for clients that come back, or read slowly."""
AGAIN_SECONDS = 1.0
"""How long the feed waits after a failure of the store."""

log = logging.getLogger("perdure.http")

Event = tuple[int, bytes, Invocation | None]
"""Its number, what is sent, and the invocation that it is about."""


class Feed:
    """Reads the changes once, from the first reader on. Event ids are of this server, and count from 1."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._name = os.urandom(6).hex()
        self._kept: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._count = 0
        self._news = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        if self._pump is not None:
            await end([self._pump])

    async def read(self, last_id: str | None, access: Access) -> AsyncGenerator[bytes, None]:
        """Yield events after the one named, without end, of what the reader may see. `reset`: some may be missing."""
        if self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._run())
        place = self._place_of(last_id)
        if place is None:
            place = self._count
            if last_id is not None:
                yield self._reset()
        yield b": welcome\nid: %s-%d\n\n" % (self._name.encode(), place)
        while True:
            if place < self._first - 1:
                place = self._count
                yield self._reset()
            for number, data, about in [*self._kept]:
                if number > place:
                    if about is None or access.reaches(about.handler, about.key):
                        yield data
                    place = number
            if place == self._count:
                if self._pump.done():
                    return  # the store is closed
                await self._news.wait()

    @property
    def _first(self) -> int:
        return self._kept[0][0] if self._kept else self._count + 1

    def _place_of(self, last_id: str | None) -> int | None:
        """Return the number in an event id; None if it is not of this server, or too old."""
        name, _, number = (last_id or "").rpartition("-")
        if name != self._name or not number.isdecimal() or len(number) > 18:
            return None
        place = int(number)
        return place if self._first - 1 <= place <= self._count else None

    def _reset(self) -> bytes:
        return b"id: %s-%d\nevent: reset\ndata: {}\n\n" % (self._name.encode(), self._count)

    async def _run(self) -> None:
        while True:
            try:
                async for invocation in self._operations.watch_all(Filters(), gone=True):
                    if invocation.gone and not invocation.id:
                        self._add("reset", {})
                    elif invocation.gone:
                        self._add("gone", {"invocation_id": invocation.id}, invocation)
                    else:
                        self._add("changed", _told(invocation), invocation)
            except StoreClosed:
                self._news.set()
                return
            except Exception as error:  # noqa: BLE001  readers hear of it, and the feed goes on
                if isinstance(error, StoreError):
                    log.warning("the changes cannot be read, trying again: %s", error)
                else:
                    log_error(log, "the changes cannot be read, trying again", error=error)
            self._add("reset", {})
            await asyncio.sleep(AGAIN_SECONDS)

    def _add(self, event: str, data: dict[str, Any], about: Invocation | None = None) -> None:
        self._count += 1
        head = b"id: %s-%d\nevent: %s\n" % (self._name.encode(), self._count, event.encode())
        self._kept.append((self._count, head + b"data: %s\n\n" % msgspec.json.encode(data), about))
        self._news.set()  # for those that wait now; others wait for the next
        self._news = asyncio.Event()


def _told(invocation: Invocation) -> dict[str, Any]:
    return {
        "invocation_id": invocation.id,
        "handler": invocation.handler,
        "status": invocation.status,
        "updated_at": invocation.updated_at,
    }


async def changes(operations: Operations, id: str) -> AsyncGenerator[bytes, None]:
    """Yield the statuses of one invocation, the present one first, until it settles."""
    async for invocation in operations.watch(id):
        yield b"event: changed\ndata: %s\n\n" % msgspec.json.encode(_told(invocation))


async def items(operations: Operations, id: str, name: str, start: int) -> AsyncGenerator[bytes, None]:
    """Yield the items of a stream from number `start` on, until its invocation has settled. Its number is their id."""
    async with aclosing(operations.stream(id, name, start)) as parts:
        async for part in parts:
            start = part.end
            yield b"".join(_item(part, n) for n in range(len(part.items)))
    yield b"event: end\ndata: %s\n\n" % msgspec.json.encode({"next": start})


def _item(part: StreamPart, n: int) -> bytes:
    offset = part.offset + n
    told = {"offset": offset, "step": part.step, "attempt": part.attempt, "value": to_json(UNTYPED, part.items[n])}
    return b"id: %d\nevent: item\ndata: %s\n\n" % (offset, msgspec.json.encode(told))
