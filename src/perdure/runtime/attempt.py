"""Steps on the host's loop: one attempt at a time, in a task or a thread, with its time limit.

`Work` is what a step's command carries through the turn: the call of a decorated function, or a gRPC call. This module
runs one attempt of it and says what fact its end is. When it begins, and what becomes of the fact, is the runner's
affair.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import random
from collections.abc import Callable
from typing import Any, Protocol

from perdure.authoring.step import StepInfo, Work, current_step
from perdure.core.failures import Failure
from perdure.core.journal import Answering, Attempted, Interrupted, Raised, Returned, Status
from perdure.errors import (
    AnnotationUnresolved,
    IoInWorkflow,
    LimitExceeded,
    ServiceUnknown,
    Undecodable,
    Unencodable,
    too_large,
)
from perdure.stores.port import Store, unknown

THREADS_LIMIT = 64
"""Sync steps that one worker runs at the same time; the others wait for a thread."""

_HOPELESS = (AnnotationUnresolved, IoInWorkflow, LimitExceeded, ServiceUnknown, Undecodable, Unencodable)
"""Failures of a step that another attempt cannot change."""


class Place(Protocol):
    """Where attempts run: the worker."""

    loop: asyncio.AbstractEventLoop
    store: Store

    def threads(self) -> concurrent.futures.ThreadPoolExecutor: ...
    def channel(self, service: str, /) -> Any: ...


class Attempt:
    """One attempt of a step in progress: its task, and what the step may use of its worker."""

    __slots__ = ("_owner", "_place", "busy_threads", "cancelled", "task", "work")

    def __init__(self, work: Work, info: StepInfo, place: Place, owner: Owner) -> None:
        self.work = work
        self.cancelled = False  # the body asked for its end
        self.busy_threads = 0
        self._place = place
        self._owner = owner
        context = contextvars.copy_context()
        context.run(current_step.set, info)
        run = work.run(self, info) if work.timeout is None else self._run_in_time(info, work.timeout)
        self.task: asyncio.Task[bytes] = place.loop.create_task(run, name=work.name, context=context)

    async def _run_in_time(self, info: StepInfo, timeout: float) -> bytes:
        async with asyncio.timeout(timeout):
            return await self.work.run(self, info)

    def fact(
        self, n: int, number: int, at: float, limit: int, failure_of: Callable[[BaseException], Failure], /
    ) -> Answering:
        """Return what to journal of this attempt's end, which is attempt `number` of command `n`.

        `limit` is the most bytes that a result may have. A failure that another attempt may change says when that is
        due.
        """
        task, work = self.task, self.work
        if task.cancelled():
            if self.cancelled:
                return Interrupted(n, at)
            error: BaseException = RuntimeError(
                f"step {work.name!r} raised CancelledError, though nobody had cancelled it"
            )
        elif (raised := task.exception()) is None:
            value = task.result()
            if len(value) <= limit:
                return Returned(n, at, value)
            error = too_large(f"the result of step {work.name!r}", len(value), limit)
        else:
            error = raised
        failure = failure_of(error)
        if not isinstance(error, _HOPELESS) and not self.cancelled:
            wait = work.retry.delay(error, number, random.random())  # noqa: S311  jitter, not a secret
            if wait is not None:
                return Attempted(n, at, number, failure, at + wait)
        return Raised(n, at, failure)

    def channel(self, service: str, /) -> Any:
        """Return the gRPC channel to a service."""
        return self._place.channel(service)

    async def status_of(self, id: str, /) -> Status:
        """Return what the index knows of another invocation."""
        row = await self._place.store.row(id)
        if row is None:
            raise unknown(id)
        return row.status

    async def in_thread(self, fn: Callable[[], Any], /) -> Any:
        """Run `fn` in a thread. A cancelled wait leaves the thread running: it counts as busy until it ends."""
        loop = self._place.loop

        def ended(_: concurrent.futures.Future[Any]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(freed)

        def freed() -> None:
            self.busy_threads -= 1
            self._owner.settle_down()

        context = contextvars.copy_context()
        future = self._place.threads().submit(context.run, fn)
        self.busy_threads += 1
        future.add_done_callback(ended)
        return await asyncio.wrap_future(future)


class Owner(Protocol):
    """Who began an attempt, and wants to know when its last thread ends."""

    def settle_down(self) -> None: ...
