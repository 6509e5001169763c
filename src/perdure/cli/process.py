"""The process of a command: its descriptors, its hash seed, its event loop, the signals that end it, and its end.

Knows nothing of workflows.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from types import FrameType
from typing import Any

HASH_SEED = "0"
END_OF_THREADS_SECONDS = 0.5
"""How long threads may take to notice that the process ends."""

HANGUP = [] if sys.platform == "win32" else [signal.SIGHUP]
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, *HANGUP)
_SHOW_CURSOR = b"\x1b[?25h"


# --- its beginning ----------------------------------------------------------------------------------------------------
def open_standard_streams() -> None:
    """Open missing standard streams, as after `perdure stats >&-`, on the null device.

    Otherwise the next file to be opened, such as a database, would take their number, and output would go into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.set_inheritable(opened, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  for the process's life


def fix_hash_seed() -> None:
    """Execute this process anew with a fixed hash seed, unless the environment sets one.

    The order of a set of strings depends on the seed. A body that iterates over one, against the rules, then has the
    same order in every worker.
    """
    if "PYTHONHASHSEED" in os.environ or sys.platform == "win32":  # on Windows, exec returns the console to the shell
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONHASHSEED": HASH_SEED})


# --- its loop ---------------------------------------------------------------------------------------------------------
Stop = Callable[[signal.Signals, "asyncio.Task[Any]"], None]
"""Called on the first signal, with the task of the command."""


def in_loop(work: Coroutine[Any, Any, int], stop: Stop | None = None) -> int:
    """Run `work` in a loop of uvloop, where it is installed; return its exit code, or that of the signal that ended it.

    The first of `STOPPING_SIGNALS` calls `stop` in the loop, which by default cancels `work`. The second ends the
    process at once, even while something blocks the loop.
    """
    signals = _Signals()
    with signals.handled(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            return runner.run(signals.heard_by(work, stop))
        except asyncio.CancelledError:
            return 1 if signals.first is None else 128 + signals.first


class Stopping:
    """The reaction to the first signal: cancel the command while the store opens; later, stop serving."""

    def __init__(self) -> None:
        self._came: asyncio.Future[signal.Signals] | None = None

    def expected(self) -> asyncio.Future[signal.Signals]:
        self._came = asyncio.get_running_loop().create_future()
        return self._came

    def begin(self, number: signal.Signals, command: asyncio.Task[Any]) -> None:
        if self._came is None:
            command.cancel()
        elif not self._came.done():
            self._came.set_result(number)


class _Signals:
    """The `STOPPING_SIGNALS` that a command gets.

    Handlers are set by `signal.signal`, not by the loop: Python calls them between two instructions of the main
    thread, so also while a body blocks the loop. A signal that the process was started to ignore, as a shell
    does with SIGINT for a job in the background, stays ignored.
    """

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self._reacted = False
        self._react: Callable[[], object] | None = None

    @contextlib.contextmanager
    def handled(self) -> Generator[None]:
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
            yield
            return
        heard = [each for each in STOPPING_SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
        before = {each: signal.signal(each, self._handle) for each in heard}
        try:
            yield
        finally:
            if self.first is None:  # else a second one still ends the process at once
                for number, handler in before.items():
                    signal.signal(number, handler)

    async def heard_by(self, work: Coroutine[Any, Any, int], stop: Stop | None) -> int:
        loop = asyncio.get_running_loop()
        here = asyncio.current_task()
        assert here is not None

        def react() -> None:
            self._reacted = True
            assert self.first is not None
            if stop is None:
                here.cancel()
            else:
                stop(self.first, here)

        self._react = lambda: loop.call_soon_threadsafe(react)
        if self.first is not None:
            self._react()
        return await work

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.first is not None:
            if number in HANGUP:  # a terminal that is closed sends it, and its shell sends it again
                return
            self._end_now(signal.Signals(number), frame)
        self.first = signal.Signals(number)
        if self._react is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to end
                self._react()

    def _end_now(self, number: signal.Signals, frame: FrameType | None) -> None:
        """End the process by the signal, after a last line. Takes no lock: the main thread may hold any."""
        text = f"{number.name} again: ended at once."
        if not self._reacted and frame is not None:
            code = frame.f_code
            text += f" The event loop was blocked at {code.co_filename}:{frame.f_lineno}, in {code.co_name}."
        with contextlib.suppress(OSError):
            os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + f"{text}\n".encode(errors="backslashreplace"))
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        os._exit(128 + number)  # where a signal does not end a process


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop  # noqa: PLC0415  it is not there on every system

    return uvloop.new_event_loop


# --- its end ----------------------------------------------------------------------------------------------------------
def ended(code: int) -> int:
    """Return `code`, or end the process with it at once if a step keeps a thread busy, which Python would wait for."""
    end = time.monotonic() + END_OF_THREADS_SECONDS
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                with contextlib.suppress(OSError, ValueError):  # closed, or its reader is gone
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
    return code
