"""A test that hangs fails and says what its tasks wait for. Without this it would hold up the whole run."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Generator
from types import FrameType
from typing import Any

import pytest

HANGS_AFTER_SECONDS = 400  # several times the slowest test on a machine with much else to do


def _give_up(_signal: int, _frame: FrameType | None) -> None:
    try:
        tasks: set[asyncio.Task[Any]] = asyncio.all_tasks()
    except RuntimeError:  # no loop runs: the traceback of the failure says where the test is
        tasks = set()
    for task in tasks:
        task.print_stack(file=sys.stderr)
    pytest.fail(f"hangs: not done after {HANGS_AFTER_SECONDS} s; the captured stderr shows its tasks")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    if not hasattr(signal, "setitimer"):  # Windows
        return (yield)
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, HANGS_AFTER_SECONDS)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
