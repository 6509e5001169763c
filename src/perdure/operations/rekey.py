"""What is shown of the keys under which a store is sealed, and of the job that seals everything under one of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from msgspec import Struct

RekeyState = Literal["running", "waiting", "done", "incomplete"]
"""A job that is `waiting` looks again later: something is in a queue, and keeps its key until a worker has it. One that
is `incomplete` has ended, and something stays as it is."""


class SealedPart(Struct, frozen=True):
    """How many values of a part of a store are sealed under each key. `next`: where the next part begins, if any."""

    under: Mapping[str, int]
    next: str | None = None


class LeftSealed(Struct, frozen=True):
    """Something that is not sealed under the new key, and why."""

    what: str
    why: str


class RekeyProgress(Struct, frozen=True):
    """A job that seals all values of a store under the key `key`, and how far it is.

    It goes through everything in passes, until one has changed nothing. In this pass, or the last one, it has `seen`
    so many things, with so many values `under` each key, as they are now. In all passes it has `changed` so many.
    `left` are the first things that stay as they are; `waiting` counts those that are in a queue.
    """

    key: str
    state: RekeyState
    started_at: datetime
    ended_at: datetime | None = None
    passes: int = 0
    seen: int = 0
    changed: int = 0
    waiting: int = 0
    under: Mapping[str, int] = {}
    left: tuple[LeftSealed, ...] = ()
