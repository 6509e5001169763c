"""What an invocation waits for by time: timers, next attempts of steps, its own limit; and one alarm for all."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container
from math import isfinite

from perdure.stores.port import Clock, Timer

DEADLINE = -1
"""Stands for the invocation's own time limit among the numbers of commands."""


class Agenda:
    """Times at which commands are due, by number. `ring` is called at the first of them, once it is armed."""

    __slots__ = ("_alarm", "_alarm_at", "_clock", "_due", "_ring")

    def __init__(self, clock: Clock, ring: Callable[[], object]) -> None:
        self._clock = clock
        self._ring = ring
        self._due: list[tuple[float, int]] = []
        self._alarm: Timer | None = None
        self._alarm_at = float("inf")

    def add(self, at: float, n: int, /) -> None:
        """Note that command `n` is due at `at`. Infinity, which a release before journaled, is never."""
        if isfinite(at):
            heapq.heappush(self._due, (at, n))

    def clear(self) -> None:
        """Forget all times; an alarm that is armed may still ring."""
        self._due.clear()

    def pop(self, by: float, /) -> int | None:
        """Take out the first command that is due by then, if one is."""
        return heapq.heappop(self._due)[1] if self._due and self._due[0][0] <= by else None

    def next(self, wanted: Container[int] | None, /) -> float | None:
        """Return the first time, dropping those of commands that are not `wanted` any more; None wants all."""
        due = self._due
        while due and wanted is not None and due[0][1] != DEADLINE and due[0][1] not in wanted:
            heapq.heappop(due)
        return due[0][0] if due else None

    def arm(self, at: float, /) -> None:
        """Ring at `at`, unless it rings before."""
        if at < self._alarm_at:
            self.disarm()
            self._alarm_at = at
            self._alarm = self._clock.call_at(at, self._rung)

    def disarm(self) -> None:
        """Do not ring."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._alarm_at = float("inf")

    def _rung(self) -> None:
        self._alarm = None
        self._alarm_at = float("inf")
        self._ring()
