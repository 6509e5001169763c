"""A test that hangs fails and says what its tasks wait for. Without this it would hold up the whole run."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import signal
import sys
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any

import pytest

HANGS_AFTER_SECONDS = 400  # several times the slowest test on a machine with much else to do
"""The limit of a test that has no other: `pytest.mark.limit(seconds)`."""
HANGS_AGAIN_AFTER_SECONDS = 60
"""How long the end of a test that hangs may take, such as that of its fixtures, before that is given up too."""


def _awaited_by(found: Any) -> Any:
    """Return what a coroutine or generator awaits. What drives an async generator shows it to the collector alone."""
    for name in ("cr_await", "ag_await", "gi_yieldfrom"):
        if hasattr(found, name):
            return getattr(found, name)
    inside: list[Any] = [] if isinstance(found, asyncio.Future) else gc.get_referents(found)
    return next((each for each in inside if inspect.isasyncgen(each) or asyncio.isfuture(each)), None)


def _stack(task: asyncio.Task[Any]) -> Generator[str]:
    """Yield the lines in which a task and what it awaits stand, the innermost last."""
    found: Any = task.get_coro()
    while found is not None:
        frame = getattr(found, "cr_frame", None) or getattr(found, "ag_frame", None) or getattr(found, "gi_frame", None)
        yield f"    {found!r}" if frame is None else f"    {frame.f_code.co_filename}:{frame.f_lineno} {found!r}"
        found = _awaited_by(found)


def _hear_hangups() -> None:
    """Undo what `nohup` does: the processes that tests start inherit it, and these hear SIGHUP as any other does."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


_hear_hangups()


def _give_up(_signal: int, _frame: FrameType | None) -> None:
    try:
        tasks: set[asyncio.Task[Any]] = asyncio.all_tasks()
    except RuntimeError:  # no loop runs: the traceback of the failure says where the test is
        tasks = set()
    for task in tasks:
        print(repr(task), *_stack(task), sep="\n", file=sys.stderr)
    print("threads:", *(each.name for each in threading.enumerate()), file=sys.stderr)
    pytest.fail("hangs: not done within its limit; the captured stderr shows its tasks")


@contextlib.contextmanager
def _limited(item: pytest.Item) -> Generator[None]:
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    marker = item.get_closest_marker("limit")
    seconds: float = HANGS_AFTER_SECONDS if marker is None else marker.args[0]
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, HANGS_AGAIN_AFTER_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    with _limited(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    with _limited(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    with _limited(item):
        return (yield)
