"""What is known while a sequence runs: the stores, their invocations as a worker knows them, and the time."""

from __future__ import annotations

import time
from collections.abc import Sequence

from perdure.core.journal import Message, Start
from perdure.stores.clock import VirtualClock
from tests.differential.bodies import Body
from tests.differential.operations import Due
from tests.differential.sides import Side

FAR_SECONDS = 5_000.0
SOON_SECONDS = 0.12
"""How long what is due `soon` takes on a clock that is not ours."""
AGO_SECONDS = 10_000.0
"""How long ago the first start of a sequence was made."""


class State:
    """The stores that are compared with the first, and what a worker knows: the same on all, or it is a difference.

    `patience` is in seconds, for what a store is to deliver or tell.
    """

    def __init__(self, sides: Sequence[Side], patience: float) -> None:
        self.sides = sides
        self.first = sides[0]
        self.patience = patience
        self.clock: VirtualClock | None = self.first.clock
        self.base = self.clock.now() if self.clock is not None else time.time()
        self.bodies: dict[str, Body] = {}
        self.starts: dict[str, Start] = {}  # all ever, the latest of each id
        self.messages: dict[str, Message] = {}
        self.purged: set[str] = set()
        self.gone: set[str] = set()  # messages whose invocation was purged: on a server their answers may outlast it
        self.open: set[str] = set()  # handlers
        self.declined: set[str] = set()
        self.are_local = all(side.is_local for side in sides)
        self._made = 0  # counts times

    def may_settle_itself(self, id: str) -> bool:
        """Tell whether some stores would settle what is cancelled themselves: see decisions 52 and 57.

        Others leave it to a worker.
        """
        return not self.are_local and id in self.bodies and not self.bodies[id].frames

    def exists(self, start: Start) -> None:
        """Note that a start was accepted."""
        if start.id not in self.bodies:
            self.bodies[start.id] = Body(start)
            self.starts[start.id] = start

    # --- times --------------------------------------------------------------------------------------------------------
    def time(self) -> float:
        """Return a time in the past, later than those before."""
        self._made += 1
        return self.base - AGO_SECONDS + self._made

    def now(self) -> float:
        return self.first.store.clock.now()

    def when(self, due: Due | None, now: float) -> float:
        if due == "soon":
            return self.now() + SOON_SECONDS
        return self.now() + FAR_SECONDS if due == "far" else now
