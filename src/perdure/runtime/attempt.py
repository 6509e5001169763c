"""Steps on the host's loop: one attempt at a time, in a task or a thread, with its time limit.

A step's command carries its `Work` through the turn: the call of a decorated function, or a gRPC call. This module runs
one attempt of it and returns its end as an entry. The runner decides when it begins, and journals the entry.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any, NoReturn, Protocol

from perdure.authoring.step import StepInfo, Work, current_step
from perdure.authoring.streams import current_attempt
from perdure.core.failures import Failure
from perdure.core.failures import failure_of as plain_failure_of
from perdure.core.journal import Attempted, Interrupted, Raised, Returned, Status
from perdure.core.retry import next_wait
from perdure.errors import too_large, unknown
from perdure.runtime.streams import Owner as StreamOwner
from perdure.runtime.streams import Tap
from perdure.stores.port import Clock, Store

THREADS_LIMIT = 64
"""Sync steps that one worker runs at the same time; others wait for a thread."""

log = logging.getLogger("perdure.worker")


_Outcome = tuple[Any, BaseException | None]
"""What a function returned, or what it raised."""

AttemptEnd = Returned | Raised | Attempted | Interrupted
"""How an attempt ended."""


class Host(Protocol):
    """Where attempts run: the worker."""

    loop: asyncio.AbstractEventLoop
    store: Store
    clock: Clock
    chance: Random
    pid: int

    def failure_of(self, error: BaseException, /) -> Failure: ...
    def threads(self) -> concurrent.futures.ThreadPoolExecutor: ...
    def attach(self, trace: str, /) -> None: ...
    def channel(self, service: str, /) -> Any: ...


class Attempt:
    """One attempt of a step in progress: its task, and the parts of the worker that the step may use."""

    __slots__ = (
        "_escaped",
        "_host",
        "_info",
        "_owner",
        "_tap",
        "_value",
        "began",
        "busy_threads",
        "cancelled",
        "task",
        "work",
    )

    def __init__(
        self,
        work: Work,
        info: StepInfo,
        host: Host,
        owner: Owner,
        variables: contextvars.Context | None,
        trace: str = "",
    ) -> None:
        self.work = work
        self.cancelled = False  # the body asked it to end
        self.busy_threads = 0
        self.began = host.clock.now()
        self._value: bytes | None = None  # the encoded result
        self._escaped: BaseException | None = None  # an exception that the task must not raise
        self._host = host
        self._owner = owner
        self._info = info
        self._tap: Tap | None = None  # made when it writes to a stream
        context = contextvars.Context() if variables is None else variables.copy()
        context.run(_enter, self, info)
        if trace:
            context.run(host.attach, trace)
        self.task: asyncio.Task[None] = host.loop.create_task(self._run(info), name=work.name, context=context)

    @property
    def is_over(self) -> bool:
        """Whether its task and all its threads have ended."""
        return not self.busy_threads and self.task.done()

    async def _run(self, info: StepInfo) -> None:
        work, value = self.work, None
        try:
            if work.timeout is None:
                value = await work.run(self, info)
            else:
                async with asyncio.timeout(work.timeout):
                    value = await work.run(self, info)
        except (KeyboardInterrupt, SystemExit) as error:
            self._escaped = error  # raised by a task, it would end the host's loop and the service
        finally:
            if os.getpid() != self._host.pid:
                _end_fork(work.name, self._escaped or sys.exc_info()[1])
            if self._tap is not None:
                await self._tap.end()  # before its own end: then nothing comes after that
        if self._tap is not None:
            self._tap.check()
        self._value = value

    def fact(self, n: int, number: int, at: float, /) -> AttemptEnd:
        """Return the entry for the end of this attempt, which is attempt `number` of command `n`.

        If the step is to be retried, the entry says when. An exception of a policy or translator is a failure of the
        step.
        """
        value, limit, took = self._value, self._host.store.payload_limit, at - self.began
        if value is not None and len(value) <= limit:
            return Returned(n, at, value, None, took)
        task, work = self.task, self.work
        if value is not None:
            error: BaseException = too_large(f"the result of step {work.name!r}", len(value), limit)
        elif task.cancelled():
            if self.cancelled:
                return Interrupted(n, at, took)
            error = RuntimeError(f"step {work.name!r} raised CancelledError, though nothing had cancelled it")
        else:
            raised = task.exception() if self._escaped is None else self._escaped
            assert raised is not None, "an attempt without a value has raised"
            error = raised
        try:
            failure = self._host.failure_of(error)
            if not self.cancelled:
                wait = next_wait(work.retry, error, number, self._host.chance.random())
                if wait is not None:
                    return Attempted(n, at, number, failure, at + wait, took)
        except BaseException as broken:  # noqa: BLE001  a policy or translator may raise anything
            if broken is not error and broken.__cause__ is None:
                with suppress(Exception):  # one that cannot be modified
                    broken.__cause__ = error
            failure = plain_failure_of(broken)
        return Raised(n, at, failure, None, took)

    def sink(self) -> Tap:
        """Return what takes the items that this attempt writes to streams. Called on any thread."""
        with _making:
            if self._tap is None:
                self._tap = Tap(
                    self._owner, self._host.store, self._host.loop, self._info.number, self._info.attempt - 1
                )
            return self._tap

    def leave(self) -> None:
        """Take nothing more that it writes to streams: it was left behind."""
        if self._tap is not None:
            self._tap.drop()

    def channel(self, service: str, /) -> Any:
        """Return the gRPC channel to a service."""
        return self._host.channel(service)

    async def status_of(self, id: str, /) -> Status:
        """Return the index row of another invocation."""
        row = await self._host.store.row(id)
        if row is None:
            raise unknown(id)
        return row.status

    async def in_thread(self, fn: Callable[[], Any], /) -> Any:
        """Run `fn` in a thread. A cancelled wait leaves the thread running: it counts as busy until it ends."""
        loop = self._host.loop

        def ended(_: concurrent.futures.Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop is closed: no slot is left to give back
                loop.call_soon_threadsafe(freed)

        def freed() -> None:
            self.busy_threads -= 1
            self._owner.settle_down()

        def call() -> _Outcome:
            value, raised = None, None
            try:
                value = fn()
            except BaseException as error:  # noqa: BLE001  a future refuses StopIteration, and takes some for its own
                raised = error
            if os.getpid() != self._host.pid:
                _end_fork(self.work.name, raised)
            try:
                return value, raised
            finally:
                del raised  # its traceback holds this frame

        context = contextvars.copy_context()
        future = _submitted(self._host.threads(), partial(context.run, call))
        self.busy_threads += 1
        future.add_done_callback(ended)
        value, error = await asyncio.wrap_future(future)
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame
        return value


def _submitted(
    pool: concurrent.futures.ThreadPoolExecutor, call: Callable[[], _Outcome]
) -> concurrent.futures.Future[_Outcome]:
    """Have `call` run in a thread of a pool. If this raises, it never runs."""
    future: concurrent.futures.Future[_Outcome] = concurrent.futures.Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            future.set_result(call())

    def dropped(queued: concurrent.futures.Future[None]) -> None:
        if queued.cancelled():  # the worker has ended
            future.cancel()

    try:
        pool.submit(run).add_done_callback(dropped)
    except RuntimeError:
        # No thread can be started. The pool has queued the call all the same, and would run it some time, beside later
        # attempts. If a thread has taken it meanwhile, this attempt goes on.
        if future.cancel():
            raise
    return future


def _end_fork(name: str, raised: BaseException | None) -> NoReturn:
    """End a process that a step has forked, when it leaves the step: it must not serve this worker's work as well."""
    code = 1
    if isinstance(raised, SystemExit):
        code = 0 if raised.code is None else raised.code if isinstance(raised.code, int) else 1
    else:
        told = "returned" if raised is None else f"raised {type(raised).__name__}"
        log.error("process %d, which step %s has forked, %s: it ends; let it call os._exit", os.getpid(), name, told)
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(code & 0xFF)


class Owner(StreamOwner, Protocol):
    """The runner that began an attempt. It is called when the last thread of the attempt ends."""

    def settle_down(self) -> None: ...


_making = threading.Lock()


def _enter(attempt: Attempt, info: StepInfo) -> None:
    current_step.set(info)
    current_attempt.set(attempt)
