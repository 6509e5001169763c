"""What steps leave behind that no kill takes back, a line in a file for all they do; and gates to hold them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

GATE_POLL_SECONDS = 0.005


class _Place:
    folder: Path | None = None
    log: int = -1


def open_notes(folder: Path) -> None:
    """Write notes into this folder from now on."""
    close_notes()
    (folder / "gates").mkdir(parents=True, exist_ok=True)
    _Place.folder = folder
    _Place.log = os.open(folder / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def close_notes() -> None:
    if _Place.log >= 0:
        os.close(_Place.log)
    _Place.log = -1


def note(text: str) -> None:
    """Add a line. One write of the system, so that lines of several processes never mix and a kill never halves one."""
    os.write(_Place.log, f"{text}\n".encode())


def gate_of(folder: Path, point: str) -> Path:
    return folder / "gates" / point.replace("/", "_")


def closed(point: str) -> bool:
    """Report whether a test has closed this gate."""
    assert _Place.folder is not None
    return gate_of(_Place.folder, point).exists()


async def gate(point: str) -> None:
    """Say that this point is reached, and wait there while a test keeps the gate closed."""
    note(f"at {point}")
    while closed(point):
        await asyncio.sleep(GATE_POLL_SECONDS)


def freeze() -> None:
    """Stop this process (SIGSTOP), until it is sent SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def _kill_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


_killers: list[Callable[[], None]] = [_kill_process]


def die_by(how: Callable[[], None] | None) -> None:
    """Say what it takes to die; without an argument, as a process does."""
    _killers[:] = [how or _kill_process]


class Dead(BaseException):
    """Ends what is running when the one who dies is not a whole process."""


def die() -> None:
    """End the worker's process here and now."""
    _killers[0]()
    raise Dead
