"""Finds the line of the author's code at which a task waits."""

from __future__ import annotations

import asyncio
from pathlib import PurePath
from types import FrameType
from typing import Any

STACK_LIMIT = 1_000
"""Nested awaits that are followed."""

_NOT_THE_USERS = ("asyncio", "perdure", "anyio")
"""Packages whose lines mean nothing to the author of a body."""


def line_of(task: asyncio.Task[Any], /) -> str:
    """Return the innermost line of the author's code in a task that waits: `file.py:12, in body`."""
    innermost: FrameType | None = None
    one: Any = task.get_coro()
    for _ in range(STACK_LIMIT):
        frame = _frame_of(one)
        if frame is not None and not _is_foreign(frame):
            innermost = frame
        one = _awaited_by(one)
        if one is None:
            break
    if innermost is None:
        return f"task {task.get_name()!r}"
    code = innermost.f_code
    return f"{PurePath(code.co_filename).name}:{innermost.f_lineno}, in {code.co_qualname}"


def _frame_of(one: Any) -> FrameType | None:
    for name in ("cr_frame", "gi_frame", "ag_frame"):
        if (frame := getattr(one, name, None)) is not None:
            return frame
    return None


def _awaited_by(one: Any) -> Any:
    for name in ("cr_await", "gi_yieldfrom", "ag_await"):
        if (inner := getattr(one, name, None)) is not None:
            return inner
    return None


def _is_foreign(frame: FrameType) -> bool:
    package: str = frame.f_globals.get("__name__", "").partition(".")[0]
    return package in _NOT_THE_USERS
