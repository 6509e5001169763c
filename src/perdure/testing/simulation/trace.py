"""What happened in a run, in order, and how often its rare paths were taken."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from perdure.testing.simulation.clock import EPOCH
from perdure.testing.simulation.loop import World

Event = tuple[float, str, str, str, Any]


class Trace:
    """All events of a run: when, in which process, what, of which invocation, and more."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.events: list[Event] = []
        self.rare: Counter[str] = Counter()

    def time(self) -> float:
        """Return what the clock of the store shows."""
        return self._world.now + EPOCH

    def note(self, what: str, id: str = "", more: Any = "", *, process: str | None = None) -> None:
        """Add an event of the process that runs now."""
        if process is None:
            process = "" if self._world.current is None else self._world.current.name
        self.events.append((self._world.now, process, what, id, more))

    def count(self, path: str) -> None:
        """Count that a rare path was taken."""
        self.rare[path] += 1

    def digest(self) -> str:
        """Return what is the same for every run of the same seed."""
        return hashlib.blake2b("\n".join(map(repr, self.events)).encode(), digest_size=8).hexdigest()

    def last(self, count: int) -> list[str]:
        """Return the last events, for people."""
        return [
            f"{at:12.6f} {process:<9} {what:<14} {id} {more}".rstrip()
            for at, process, what, id, more in self.events[-count:]
        ]
