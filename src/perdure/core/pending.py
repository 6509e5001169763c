"""Requests of a body: commands that wait for their answers, and the contents of the next frame."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

from msgspec import Struct

from perdure.core.journal import Command, Outcome
from perdure.core.loop import Future


class Pending(Struct, eq=False):
    """A command that waits for its answer. `attempts` counts the failed ones that are journaled.

    `since` is when it was issued: on a replay, when its frame was written.
    """

    command: Command
    future: Future[Any] | None
    decode: Callable[[bytes], Any]
    work: object = None
    timer: asyncio.TimerHandle | None = None
    generation: int = 0
    cancel_requested: bool = False
    attempts: int = 0
    retry_due: float = 0.0
    variables: Context | None = None  # of the body, where it called a step
    since: float = 0.0


class Ready(Struct, eq=False):
    """Requests of the body since the last `Turn.ready()`.

    `commands`, `state` and the items `written` to streams go into the frame; `cancels` are the commands that the body
    now asks to end; `outcome` is set when the body has ended.
    """

    commands: list[Command] = []
    state: dict[str, bytes | None] = {}
    cancels: list[int] = []
    written: dict[str, list[bytes]] = {}
    outcome: Outcome | None = None
