"""Steps on the host's loop: one attempt at a time, in a task or a thread, with its time limit.

`Work` is what a step's command carries through the turn: the call of a decorated function, or a gRPC call. This module
runs one attempt of it. When to try again, and what to journal, is the runner's affair.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
from collections.abc import Callable
from typing import Any, Protocol

from perdure.core.retry import Retry
from perdure.workflow import StepInfo, current_step

THREADS_LIMIT = 64
"""Sync steps that one worker runs at the same time; the others wait for a thread."""


class Work(Protocol):
    """What a step's command needs to run."""

    @property
    def name(self) -> str: ...
    @property
    def retry(self) -> Retry: ...
    @property
    def timeout(self) -> float | None: ...

    async def run(self, host: StepHost, info: StepInfo, /) -> bytes:
        """Run one attempt; return the encoded result."""
        ...


class StepHost(Protocol):
    """What a running step may use of its worker."""

    async def in_thread(self, fn: Callable[[], Any], /) -> Any: ...
    def channel(self, service: str, /) -> Any: ...


class Attempt:
    """One attempt of a step in progress: its task, and the threads it started."""

    __slots__ = ("_host", "busy_threads", "cancelled", "on_thread_end", "task", "work")

    def __init__(
        self,
        work: Work,
        info: StepInfo,
        pool: Callable[[], concurrent.futures.ThreadPoolExecutor],
        channel: Callable[[str], Any],
        loop: asyncio.AbstractEventLoop,
        on_thread_end: Callable[[], None],
    ) -> None:
        self.work = work
        self.cancelled = False  # the body asked for its end
        self.busy_threads = 0
        self.on_thread_end = on_thread_end
        self._host = _Host(self, pool, channel, loop)
        context = contextvars.copy_context()
        context.run(current_step.set, info)
        self.task: asyncio.Task[bytes] = loop.create_task(self._run(info), context=context)

    async def _run(self, info: StepInfo) -> bytes:
        timeout = self.work.timeout
        if timeout is None:
            return await self.work.run(self._host, info)
        async with asyncio.timeout(timeout):
            return await self.work.run(self._host, info)


class _Host:
    __slots__ = ("_attempt", "_loop", "_pool", "channel")

    def __init__(
        self,
        attempt: Attempt,
        pool: Callable[[], concurrent.futures.ThreadPoolExecutor],
        channel: Callable[[str], Any],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._attempt = attempt
        self._pool = pool
        self._loop = loop
        self.channel = channel

    async def in_thread(self, fn: Callable[[], Any], /) -> Any:
        """Run `fn` in a thread. A cancelled wait leaves the thread running: it counts as busy until it ends."""
        attempt, loop = self._attempt, self._loop

        def ended(_: concurrent.futures.Future[Any]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(freed)

        def freed() -> None:
            attempt.busy_threads -= 1
            attempt.on_thread_end()

        context = contextvars.copy_context()
        future = self._pool().submit(context.run, fn)
        attempt.busy_threads += 1
        future.add_done_callback(ended)
        return await asyncio.wrap_future(future)
