"""Turns from which nothing may leave any more: those of bodies that diverged, and those that were closed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from perdure.core.pending import Ready
from perdure.core.recorded import Divergence
from perdure.core.turn import Turn, current_turn

Breach = Callable[[int, str], None]


class Silence:
    """Watches the turns of one worker."""

    def __init__(self, breach: Breach, count: Callable[[str], None]) -> None:
        diverged: dict[int, Turn] = {}  # kept, so that no other turn gets the same number

        class Watched(Turn):
            __slots__ = ()

            def ready(self) -> Ready:
                ready = super().ready()
                if (self.loop.closed or id(self) in diverged) and _says_something(ready):
                    how = "diverged" if id(self) in diverged else "was closed"
                    breach(11, f"{self.start.id}: its body {how}, and asks for {ready}")
                return ready

            def _diverge(self, divergence: Divergence) -> None:
                if id(self) not in diverged:
                    diverged[id(self)] = self
                    count("divergence")
                super()._diverge(divergence)

        self._kind = Watched

    def watch(self, turn: Turn) -> Turn:
        """Watch a turn that was just made."""
        turn.__class__ = self._kind
        return turn


def _says_something(ready: Ready) -> bool:
    return bool(ready.commands or ready.state or ready.cancels or ready.outcome is not None)


def strays(chance: Random, share: float) -> bool:
    """Report whether a body that is replayed asks for something else here than it did when it ran.

    Only where something is recorded: there it must be noticed.
    """
    turn: Any = current_turn()
    is_recorded = turn is not None and bool(turn._recorded)  # noqa: SLF001
    return is_recorded and chance.random() < share
