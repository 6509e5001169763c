"""Many processes in one: each is an event loop of its own, and one world runs them all, in an order drawn by chance.

What may be drawn, and what may not:

* The callbacks of one process run in the order in which they became ready: asyncio promises it, and code relies on it.
* Which process runs next, and how many of its callbacks run before another's, is free: processes share only messages.
* Timers due at the same time become ready in any order: asyncio promises none.
* Time stands still while something is ready, or passes nevertheless, as on a machine that is slow.

A process that has ended never runs again: neither its callbacks nor its timers, nor the `finally` of its coroutines.
One that stands still keeps them until it goes on. There are no threads and there is no I/O.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context, copy_context
from random import Random
from typing import Any, TypeVar, cast

from perdure.testing.simulation.violation import Violation

T = TypeVar("T")

MOST_BURST = 16
"""The most callbacks of one process that run before another process may."""

MOST_CALLBACKS = 200_000
"""Callbacks of one run. More are taken for a loop without end."""

HURRY_SECONDS = 1.0
"""The most time that passes at once while something is ready."""

DROP_ROUNDS = 10
"""How often a coroutine that awaits in its cleanup is closed at the end of a run."""

_set_running_loop = events._set_running_loop  # noqa: SLF001


class Handle:
    """A callback that is to run in a process."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "process")

    def __init__(
        self, process: Process, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> None:
        self.process = process
        self.callback = callback
        self.args = args
        self.context = copy_context() if context is None else context
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled


class Timer(Handle):
    """A callback that is to run at a time."""

    __slots__ = ("at",)

    def __init__(
        self,
        process: Process,
        at: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context | None,
    ) -> None:
        super().__init__(process, callback, args, context)
        self.at = at

    def when(self) -> float:
        return self.at


class World:
    """Time, and the processes that live in it. `hurry` is the chance that time passes while something is ready."""

    def __init__(self, chance: Random, *, hurry: float = 0.0) -> None:
        self.now = 0.0
        self.callbacks = 0
        self.processes: list[Process] = []
        self.current: Process | None = None
        self.violation: Violation | None = None
        self.is_over = False
        self._chance = chance
        self._hurry = hurry
        self._timers: list[tuple[float, float, int, Timer]] = []
        self._numbers = 0
        self._ended: list[Process] = []
        self.hand = Process(self, "world")  # what happens to processes from outside

    def run(self) -> None:
        """Run until `is_over` is set; raise the violation that was reported, or that nothing can happen any more."""
        random, hurry = self._chance.random, self._hurry
        previous = events._get_running_loop()  # noqa: SLF001
        try:
            while not self.is_over:
                runnable = [each for each in self.processes if each.ready and each.runs]
                if not runnable:
                    if not self._pass_time(float("inf")):
                        raise Violation(13, "nothing is ready and no timer is set, and it has not ended")
                    continue
                if hurry and random() < hurry:
                    self._pass_time(self.now + HURRY_SECONDS)
                    continue
                process = runnable[int(random() * len(runnable))] if len(runnable) > 1 else runnable[0]
                self._run_some(process, 1 + int(random() * random() * MOST_BURST))
                if self.violation is not None:
                    raise self.violation
        finally:
            _set_running_loop(previous)
            self.current = None

    def report(self, violation: Violation) -> None:
        """Note what is wrong: the run ends with it after the present callbacks. The first one counts."""
        if self.violation is None:
            self.violation = violation

    def _run_some(self, process: Process, count: int) -> None:
        ready = process.ready
        self.current = process
        _set_running_loop(process)
        for _ in range(min(count, len(ready))):
            handle = ready.popleft()
            if not handle.is_cancelled:
                self.callbacks += 1
                try:
                    handle.context.run(handle.callback, *handle.args)
                except Exception as error:  # noqa: BLE001  nothing may escape to the loop
                    process.call_exception_handler({"message": "an exception reached the loop", "exception": error})
            if not process.runs:
                break
        if self.callbacks > MOST_CALLBACKS:
            raise Violation(13, f"it does not end within {MOST_CALLBACKS:,} callbacks")

    def _pass_time(self, limit: float) -> bool:
        """Let time pass until the next timer; false if there is none up to the limit."""
        timers = self._timers
        while timers and (timers[0][3].is_cancelled or timers[0][3].process.is_ended):
            heapq.heappop(timers)
        if not timers or timers[0][0] > limit:
            return False
        self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= self.now:
            timer = heapq.heappop(timers)[3]
            if not timer.is_cancelled and not timer.process.is_ended:
                timer.process.ready.append(timer)
        return True

    def set_timer(self, timer: Timer) -> None:
        self._numbers += 1
        heapq.heappush(self._timers, (timer.at, self._chance.random(), self._numbers, timer))

    def forget(self, process: Process) -> None:
        """Take a process that has ended out of the order; what it was made of is kept until the end of the run."""
        self.processes.remove(process)
        self._ended.append(process)

    def close(self) -> None:
        """End all processes, and drop what is left of their coroutines, without a word."""
        for process in [*self.processes]:
            process.end()
        previous = events._get_running_loop()  # noqa: SLF001
        try:
            for process in self._ended:
                _set_running_loop(process)
                process.drop_tasks()
        finally:
            _set_running_loop(previous)
        self._timers.clear()


class Process(asyncio.AbstractEventLoop):
    """One process: an event loop whose callbacks the world runs."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.ready: deque[Handle] = deque()
        self.runs = True
        self.is_ended = False
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._context = Context()
        self.at_drop: list[Callable[[], object]] = []  # called at the end of the run, before its tasks are dropped
        world.processes.append(self)

    def __repr__(self) -> str:
        return f"<process {self.name}>"

    # --- its life -----------------------------------------------------------------------------------------------------
    def end(self) -> None:
        """End at once, as by SIGKILL."""
        if not self.is_ended:
            self.is_ended, self.runs = True, False
            self.ready.clear()
            self.world.forget(self)

    def stand_still(self, seconds: float) -> None:
        """Run nothing for a while; then go on as if nothing had happened."""
        if self.runs:
            self.runs = False
            self.world.hand.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self.runs = not self.is_ended

    def receive(self, callback: Callable[..., object], *args: Any, delay: float = 0.0) -> None:
        """Run a callback that another process sends, at once or later."""
        if delay:
            self.call_later(delay, callback, *args, context=self._context)
        else:
            self.call_soon(callback, *args, context=self._context)

    def drop_tasks(self) -> None:
        """Close the coroutines of an ended process, whose cleanup finds a loop that does nothing."""
        for call in self.at_drop:
            call()
        for task in [*self._tasks.values()]:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
                coroutine = cast("Coroutine[Any, Any, Any]", task.get_coro())
                for _ in range(DROP_ROUNDS):
                    with suppress(BaseException):
                        coroutine.close()
                        break
            else:
                task._log_traceback = False  # noqa: SLF001
        self._tasks.clear()
        self.ready.clear()

    # --- what asyncio calls -------------------------------------------------------------------------------------------
    def time(self) -> float:
        return self.world.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        handle = Handle(self, callback, args, context)
        if not self.is_ended:
            self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        timer = Timer(self, when, callback, args, context)
        if not self.is_ended:
            self.world.set_timer(timer)
        return timer

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_at(self.world.now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **_: Any,
    ) -> asyncio.Task[T]:
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name or "task", context=context)
        self._tasks[id(task)] = task
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(id(task), None)

    def get_task_factory(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report what nothing has caught: in the engine every exception is contained or awaited."""
        if not self.is_ended:
            error = context.get("exception")
            violation = Violation(0, f"{self.name}: {context.get('message')}: {type(error).__name__}: {error}")
            violation.__cause__ = error
            self.world.report(violation)
