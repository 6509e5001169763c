"""Counts writes in progress, so that closing a store waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class Writing:
    """The writes in progress."""

    def __init__(self) -> None:
        self._count = 0
        self._none_left: asyncio.Future[None] | None = None

    def begin(self) -> None:
        self._count += 1

    def done(self, _: object = None) -> None:
        self._count -= 1
        if self._none_left is not None and not self._count and not self._none_left.done():
            self._none_left.set_result(None)

    def work(self, work: Awaitable[T]) -> asyncio.Future[T]:
        """Run a write as a task that closing the store waits for."""
        self.begin()
        task = asyncio.ensure_future(work)
        task.add_done_callback(self.done)
        return task

    async def finished(self, timeout: float) -> None:
        """Wait until no write is in progress, for `timeout` seconds at most."""
        if self._count:
            self._none_left = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._none_left], timeout=timeout)
