"""Due times of an invocation: timers, next attempts of steps, its time limit; and one alarm for all."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container
from math import isfinite

from perdure.stores.port import Clock, Timer

DEADLINE = -1
"""Stands for the invocation's time limit among the numbers of commands."""


class Agenda:
    """Due times of commands, by number. Once the alarm is armed, `ring` is called at the earliest."""

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
        """Forget all times; an armed alarm may still ring."""
        self._due.clear()

    def pop(self, by: float, /) -> int | None:
        """Remove and return the first command that is due by then, if any."""
        return heapq.heappop(self._due)[1] if self._due and self._due[0][0] <= by else None

    def next(self, wanted: Container[int] | None, /) -> float | None:
        """Return the earliest time, dropping commands that are no longer `wanted`; None wants all."""
        due = self._due
        while due and wanted is not None and due[0][1] != DEADLINE and due[0][1] not in wanted:
            heapq.heappop(due)
        return due[0][0] if due else None

    def arm(self, at: float, /) -> None:
        """Ring at `at`, unless an earlier alarm is armed."""
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
