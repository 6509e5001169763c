"""Lanes: starts with a key on their way into its queue, in the order in which they were submitted.

While a batch is in flight, further starts of its key wait; then they go as one batch, in two round trips.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from perdure.core.journal import Start

Enqueue = Callable[[str, Sequence[Start], bool], Awaitable[list[bool | Exception]]]
"""Puts starts into the queue of a key; returns for each whether it is new, or its error."""


class Lanes:
    """The lanes of the keys in use."""

    def __init__(self, enqueue: Enqueue) -> None:
        self._enqueue = enqueue
        self._waiting: dict[tuple[str, bool], list[tuple[Start, asyncio.Future[bool]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, start: Start, *, sent: bool = False) -> asyncio.Future[bool]:
        """Add a start; the future tells whether it is new. `sent`: by a workflow, so that no limit refuses it."""
        assert start.key is not None
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        lane = (start.key, sent)
        waiting = self._waiting.get(lane)
        if waiting is None:
            self._waiting[lane] = [(start, future)]
            task = asyncio.ensure_future(self._run(lane))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            waiting.append((start, future))
        return future

    async def _run(self, lane: tuple[str, bool]) -> None:
        while batch := self._waiting[lane]:
            self._waiting[lane] = []
            try:
                results = await self._enqueue(lane[0], [start for start, _ in batch], lane[1])
            except Exception as error:  # noqa: BLE001  it is set on the futures instead
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
        del self._waiting[lane]
