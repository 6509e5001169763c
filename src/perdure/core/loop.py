"""A private event loop: asyncio without I/O, whose clock only the journal moves.

Real `asyncio.Task`, `gather`, `TaskGroup`, `timeout`, `Queue` and the rest run on it unchanged. It knows nothing of
journals: it passes timers to its `Host` (the turn), and runs ready callbacks only when the host calls `drain`.

Three things differ from an ordinary loop, so that every run has the same order:
tasks and futures hash by serial number, since asyncio keeps tasks in sets and sets iterate in address order;
`asyncio.as_completed` creates its tasks in argument order; and the cycle collector rests during a drain, since it
would finalize async generators at a moment that no journal knows.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import inspect
import opcode
import sys
import weakref
from asyncio import events, runners
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from contextvars import Context, copy_context
from sys import maxsize
from typing import Any, NoReturn, Protocol, TypeVar, cast

from perdure.errors import CalledOutsideWorkflow, IoInWorkflow, NotRepeatable, TurnClosed

T = TypeVar("T")

Handler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]
"""A body's handler for exceptions that no code handled."""

TASKS_SWEPT_AT = 64
"""Tasks that a loop tracks before it drops those that have ended."""

CLOSE_ATTEMPTS = 100
"""How often `close` is repeated for a coroutine that keeps awaiting; then it is left as it is."""

REFUSALS_LIMIT = 100
"""Refusals to a dropped body; one that swallows so many waits for ever then."""

_running_loop = events._get_running_loop  # noqa: SLF001
_set_running_loop = events._set_running_loop  # noqa: SLF001


class Host(Protocol):
    """What the loop needs of its turn."""

    def timer_set(self, timer: asyncio.TimerHandle, /) -> None: ...
    def timer_cancelled(self, timer: asyncio.TimerHandle, /) -> None: ...
    def task_failed_unseen(self, context: dict[str, Any], /) -> None: ...


class _Nobody:
    """The host of a loop that is closed."""

    def timer_set(self, timer: asyncio.TimerHandle, /) -> None:
        raise TurnClosed

    def timer_cancelled(self, timer: asyncio.TimerHandle, /) -> None:
        pass

    def task_failed_unseen(self, context: dict[str, Any], /) -> None:
        pass


_NOBODY = _Nobody()


class Future(asyncio.Future[T]):
    """A future that hashes by a serial number, taken from its loop when it is first hashed."""

    serial = 0

    def __hash__(self) -> int:
        if not self.serial:
            self.serial = cast("Loop", self.get_loop()).next_serial()
        return self.serial

    __eq__ = object.__eq__


class Task(asyncio.Task[T]):
    """A task that hashes by its serial number in the loop, and whose name is the same on every run."""

    __slots__ = ("own_context", "serial")

    is_cleanup = False
    """Whether it closes an async generator: the end of the body waits for it and does not cancel it."""
    is_shielded = False
    """Whether it undoes a saga: nothing cancels it, neither the body nor its end."""

    def __init__(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        loop: Loop,
        name: str | None,
        context: Context | None,
    ) -> None:
        self.serial = loop.next_serial()
        self.own_context = context if context is not None else copy_context()  # Task.get_context is 3.12's
        super().__init__(coro, loop=loop, name=name or f"task-{self.serial - loop.salt}", context=self.own_context)

    def __hash__(self) -> int:
        return self.serial

    __eq__ = object.__eq__

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The loop, for libraries that look below the surface: anyio does so where it makes a thread for the body."""
        if sys._getframe(1).f_code.co_qualname == "WorkerThread.__init__":  # pyright: ignore[reportPrivateUsage]
            raise IoInWorkflow(
                "anyio.to_thread, and what is made of it such as anyio.open_file(), runs in a thread, which the body "
                "of a workflow cannot do: put it in a step (@step)"
            )
        return self.get_loop()

    def cancel(self, msg: Any = None) -> bool:
        return not self.is_shielded and super().cancel(msg)

    def drop(self) -> None:
        """End the task without running it again; its `finally` blocks run, see `Loop.close`."""
        self._log_destroy_pending = False
        self.own_context.run(_close, cast("Coroutine[Any, Any, Any]", self.get_coro()))


class Loop(asyncio.AbstractEventLoop):
    """The loop of one turn. Only `drain` runs callbacks, until none is ready."""

    __slots__ = (
        "_generators",
        "_handler",
        "_hooks",
        "_ready",
        "_refusals",
        "_serial",
        "_sweep_at",
        "_tasks",
        "closed",
        "escaped",
        "host",
        "looked",
        "now",
        "salt",
        "stopped",
    )

    def __init__(self, host: Host, now: float, *, salt: int = 0) -> None:
        self.host = host
        self.now = now
        self.looked = False  # at the time: set here, and reset by the turn
        self.salt = salt  # the serial before the first: asyncio keeps the tasks of all loops in one set
        self.closed = False
        self.stopped = False
        self.escaped: list[tuple[BaseException, Task[Any] | None]] = []
        self._handler: Handler | None = None
        self._tasks: dict[int, Task[Any]] = {}  # all live tasks, and some that have ended
        self._sweep_at = TASKS_SWEPT_AT
        self._refusals = 0
        self._ready: collections.deque[asyncio.Handle] = collections.deque()
        self._serial = salt
        self._generators: dict[int, Callable[[], AsyncGenerator[Any, Any] | None]] = {}  # by id, in the order started
        self._hooks = (self._generator_started, self._generator_dropped)
        # Left in place: on any other loop it is the original, and another thread may be draining when this one ends.
        asyncio.as_completed = _as_completed_in_order

    # --- what the turn calls ------------------------------------------------------------------------------------------
    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def drain(self, limit: int = maxsize) -> bool:
        """Run callbacks until none is ready or `stopped` is set; return false after `limit` callbacks.

        A body cannot end the worker: an exception that would end the process is kept in `escaped`.
        """
        ready = self._ready
        previous = _running_loop()
        hooks = sys.get_asyncgen_hooks()
        collecting = gc.isenabled()
        gc.disable()
        sys.set_asyncgen_hooks(*self._hooks)
        _set_running_loop(self)
        try:
            while ready and not self.stopped:
                if not limit:
                    return False
                limit -= 1
                handle = ready.popleft()
                if not handle._cancelled:  # noqa: SLF001
                    try:
                        handle._run()  # noqa: SLF001
                    except (SystemExit, KeyboardInterrupt) as error:
                        self._note_escaped(error, handle)
                    finally:
                        del handle  # from 3.12 on what a task raised keeps this frame, which would keep the task
            return True
        finally:
            _set_running_loop(previous)
            sys.set_asyncgen_hooks(*hooks)
            if collecting:
                gc.enable()

    def _note_escaped(self, error: BaseException, handle: asyncio.Handle) -> None:
        if _is_for_the_process(error):
            self.stopped = True  # the body has seen it, and must not run any further
            raise error
        owner = getattr(handle._callback, "__self__", None)  # noqa: SLF001
        self.escaped.append((error, owner if isinstance(owner, Task) else None))

    def unhandled(self) -> BaseException | None:
        """Return the exception that would end the process: from a callback, or from a task that nothing awaited."""
        escaped, self.escaped = self.escaped, []
        for error, task in escaped:
            if task is None:
                return error
            if task._log_traceback:  # noqa: SLF001
                task.exception()
                return error
        return None

    def fire(self, timer: asyncio.TimerHandle, /) -> None:
        """Make a timer's callback ready."""
        self._ready.append(timer)

    def finish_generators(self) -> bool:
        """Begin to close the open async generators, as `asyncio.run` does at its end; false if there are none."""
        left = self._open_generators()
        self._generators.clear()
        for generator in left:
            self._close_soon(generator)
        return bool(left)

    def close(self) -> None:
        """Drop every task: whatever its body asks for from now on raises `TurnClosed`.

        The body itself cannot call this: like any loop, this one cannot be closed while it runs.

        A dropped coroutine still runs its `finally` blocks. They run here, inside this loop and in their own context,
        where steps and commands refuse, and not later on the host's loop, where a step would be a plain call.
        """
        if _running_loop() is self:
            raise RuntimeError("Cannot close a running event loop")
        self.closed = True
        self._ready.clear()
        if not self.is_spent() and ((live := self.live_tasks()) or self._generators):
            previous = _running_loop()
            hooks = sys.get_asyncgen_hooks()
            sys.set_asyncgen_hooks(*self._hooks)
            _set_running_loop(self)
            try:
                for task in live:
                    task.drop()
                for generator in self._open_generators():
                    _close_generator(generator)
            finally:
                _set_running_loop(previous)
                sys.set_asyncgen_hooks(*hooks)
        self._tasks.clear()
        self._generators.clear()
        self._ready.clear()
        self.escaped = []
        self._handler = None
        # Break the reference cycle of host and loop: both are freed at once, without the collector.
        self.host = _NOBODY
        self._hooks = (None, None)

    def refuse(self) -> None:
        """Raise `TurnClosed` to a dropped body; after too many refusals return, and the caller waits for ever."""
        self._check_inside()
        self._refusals += 1
        if self._refusals <= REFUSALS_LIMIT:
            raise TurnClosed

    def _check_inside(self) -> None:
        """Refuse code outside the body: another thread, or a callback that kept an object of an ended body."""
        if _running_loop() is not self:
            raise CalledOutsideWorkflow("this event loop belongs to a workflow's body, which has ended: use your own")

    def is_spent(self) -> bool:
        """Tell, fast, whether a body left nothing: it made one task, which has ended, and no generator."""
        if len(self._tasks) > 1 or self._generators:
            return False
        for task in self._tasks.values():  # noqa: SIM110  a generator would double the cost
            if not task.done():
                return False
        return True

    def live_tasks(self) -> list[Task[Any]]:
        """Return the tasks that have not ended, in the order they were created."""
        self._tasks = {serial: task for serial, task in self._tasks.items() if not task.done()}
        return [*self._tasks.values()]

    # --- what asyncio calls -------------------------------------------------------------------------------------------
    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        if self.closed:
            self._check_inside()
            raise TurnClosed
        handle = events.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if when != when:
            raise ValueError("a time that is not a number (NaN)")
        timer = events.TimerHandle(when, callback, args, self, context)
        if self.closed or self.stopped:
            self.refuse()
        else:
            self.host.timer_set(timer)
        return timer

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self.host.timer_cancelled(handle)

    def create_future(self) -> asyncio.Future[Any]:
        if self.closed:
            self.refuse()
        return Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **_: Any,
    ) -> asyncio.Task[T]:
        if self.closed:
            _close(cast("Coroutine[Any, Any, Any]", coro))
            self._check_inside()
            raise TurnClosed
        if _from_unordered_as_completed():
            coro.close()
            raise NotRepeatable(
                "asyncio.as_completed was imported by name (`from asyncio import as_completed`) and given coroutines: "
                "it would start them in no repeatable order. Write `asyncio.as_completed(...)`, or give it tasks."
            )
        task = Task(coro, loop=self, name=name, context=context)
        self._tasks[task.serial] = task
        if len(self._tasks) > self._sweep_at:
            self._sweep_at = 2 * len(self.live_tasks()) + TASKS_SWEPT_AT
        return task

    def time(self) -> float:
        self.looked = True
        return self.now

    # False, without running Python code: asyncio asks for every callback, future and task.
    get_debug = bool  # pyright: ignore[reportAssignmentType]
    slow_callback_duration = 0.1  # used in debug mode only

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self.closed

    def set_debug(self, enabled: bool) -> None:
        """Change nothing: debugging would slow every callback down, and the host's loop offers it."""

    # --- unhandled exceptions -----------------------------------------------------------------------------------------
    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Pass the context to the body's handler, if it has set one, during a drain; else to the host.

        Outside a drain the cause is a garbage collection, at a moment that no journal knows: no code of the body may
        run then.
        """
        if self._handler is None or self.closed or _running_loop() is not self:
            self.default_exception_handler(context)
            return
        try:
            self._handler(self, context)
        except Exception as error:  # noqa: BLE001  reported, as asyncio does
            text = "Unhandled error in exception handler"
            self.default_exception_handler({"message": text, "exception": error, "context": context})

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.host.task_failed_unseen(context)

    def set_exception_handler(self, handler: Handler | None) -> None:
        if handler is not None and not callable(handler):
            raise TypeError(f"A callable object or None is expected, got {handler!r}")
        self._handler = handler

    def get_exception_handler(self) -> Handler | None:
        return self._handler

    # --- what makes tasks ---------------------------------------------------------------------------------------------
    def get_task_factory(self) -> None:
        """Return None: the loop makes its tasks itself."""
        return

    def set_task_factory(self, factory: Any) -> None:
        if factory is not None:
            raise NotRepeatable(
                "loop.set_task_factory(): the tasks of a workflow's body are its loop's own, so that they run in the "
                "same order on replay; leave the factory as it is"
            )

    # --- async generators ---------------------------------------------------------------------------------------------
    def _open_generators(self) -> list[AsyncGenerator[Any, Any]]:
        known = (reference() for reference in self._generators.values())
        return [generator for generator in known if generator is not None]

    def _generator_started(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators.pop(id(generator), None)  # an earlier one at this address
        self._generators[id(generator)] = weakref.ref(generator)

    def _generator_dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Finalize an unreferenced generator: at once during a drain, which repeats, else at the end of the body."""
        if self.closed:
            _close_generator(generator)
        elif _running_loop() is self:
            del self._generators[id(generator)]
            self._close_soon(generator)
        else:
            self._generators[id(generator)] = lambda: generator  # at its old position, whenever it was collected

    def _close_soon(self, generator: AsyncGenerator[Any, Any]) -> None:
        cast("Task[None]", self.create_task(generator.aclose())).is_cleanup = True


# --- what a body cannot do --------------------------------------------------------------------------------------------
_OUTSIDE = {
    "call_soon_threadsafe": "is for other threads, whose order no replay could repeat",
    "run_forever": "runs a loop, and this one runs already",
    "run_until_complete": "runs a loop, and this one runs already",
    "stop": "stops a loop, and this one runs as long as its workflow",
}
"""Why a body may not call a method that does no I/O."""


def _refusing(name: str) -> Callable[..., NoReturn]:
    why = _OUTSIDE.get(name, "is I/O")

    def refuse(self: Loop, *_: Any, **__: Any) -> NoReturn:
        raise IoInWorkflow(f"loop.{name}() {why}, which the body of a workflow cannot do: put it in a step (@step)")

    return refuse


def _refusing_async(name: str) -> Callable[..., Coroutine[Any, Any, NoReturn]]:
    refuse = _refusing(name)

    async def refuse_awaited(self: Loop, *_: Any, **__: Any) -> NoReturn:
        refuse(self)

    return refuse_awaited


for _name, _method in vars(asyncio.AbstractEventLoop).items():  # methods of later Pythons too
    if not _name.startswith("_") and callable(_method) and _name not in vars(Loop):
        setattr(Loop, _name, _refusing_async(_name) if inspect.iscoroutinefunction(_method) else _refusing(_name))


def _close(coro: Coroutine[Any, Any, Any]) -> None:
    """Close a coroutine, repeatedly while its cleanup awaits something."""
    for _ in range(CLOSE_ATTEMPTS):
        try:
            coro.close()
        except RuntimeError:  # "coroutine ignored GeneratorExit": it awaited in its cleanup, and waits there now
            continue
        except BaseException:  # noqa: BLE001  its cleanup failed, as it must: steps and commands refuse
            return
        return
    import ctypes  # noqa: PLC0415  for the worst of bodies only

    # Never freed, not even at exit: Python would resume it outside its loop, perhaps for ever.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(coro))


def _close_generator(generator: AsyncGenerator[Any, Any]) -> None:
    closing = generator.aclose()
    try:
        closing.send(None)
    except BaseException:  # noqa: BLE001  closed, or its cleanup failed, as it must
        return
    _close(closing)


def _is_for_the_process(error: BaseException) -> bool:
    """Report whether an exception is Ctrl-C, which may hit any code of the main thread, and not raised by the body.

    asyncio.Runner's signal handler raises it, or Python itself at any instruction that is no `raise` of the body.
    """
    traceback = error.__traceback__
    if not isinstance(error, KeyboardInterrupt) or traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    if frame.f_globals is runners.__dict__:
        return True
    return frame.f_code.co_code[traceback.tb_lasti] not in _RAISING


_RAISING = {opcode.opmap["RAISE_VARARGS"], opcode.opmap["RERAISE"]}


# --- as_completed -----------------------------------------------------------------------------------------------------
_original_as_completed = asyncio.as_completed


def _as_completed_in_order(fs: Iterable[Any], *, timeout: float | None = None) -> Any:
    """`asyncio.as_completed`, creating its tasks in argument order rather than in address order."""
    loop = _running_loop()
    if isinstance(loop, Loop) and not asyncio.isfuture(fs) and not asyncio.iscoroutine(fs):
        fs = [asyncio.ensure_future(f, loop=loop) for f in dict.fromkeys(fs)]
    return _original_as_completed(fs, timeout=timeout)


_UNORDERED = {_original_as_completed.__code__} | {
    iterator.__init__.__code__ for iterator in [getattr(asyncio.tasks, "_AsCompletedIterator", None)] if iterator
}


def _from_unordered_as_completed() -> bool:
    """Report whether the original `as_completed` is creating a task, which it does in address order."""
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_globals is asyncio.tasks.__dict__:
        if frame.f_code in _UNORDERED:
            return True
        frame = frame.f_back
    return False
