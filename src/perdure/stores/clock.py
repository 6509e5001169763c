"""Clocks: the system's, and one that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable

from perdure.stores.port import Timer

LONGEST_WAIT_SECONDS = 3600.0
"""The system clock is read again at least this often: it may be set, and a laptop may sleep."""


class SystemClock:
    """The wall clock, never going back while the process lives."""

    def __init__(self) -> None:
        self._last = 0.0

    def now(self) -> float:
        now = time.time()
        if now > self._last:
            self._last = now
        return self._last

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        return _SystemTimer(self, when, callback)


class _SystemTimer:
    """Waits on the event loop's clock, and looks at the wall clock before it calls."""

    def __init__(self, clock: SystemClock, when: float, callback: Callable[[], object]) -> None:
        self._clock = clock
        self._when = when
        self._callback = callback
        self._wait()

    def _wait(self) -> None:
        left = max(0.0, self._when - self._clock.now())
        self._handle = asyncio.get_running_loop().call_later(min(left, LONGEST_WAIT_SECONDS), self._look)

    def _look(self) -> None:
        if self._clock.now() >= self._when:
            self._callback()
        else:
            self._wait()

    def cancel(self) -> None:
        self._handle.cancel()


class VirtualClock:
    """A clock for tests: `now` changes only by `move_to`, which calls what is due on the way, in order."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._timers: list[tuple[float, int, _VirtualTimer]] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        timer = _VirtualTimer(callback)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        if when <= self._now:
            asyncio.get_running_loop().call_soon(self.move_to, self._now)
        return timer

    def next_due(self) -> float | None:
        """Return when the next timer is due, if there is one."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def move_to(self, when: float) -> None:
        """Set the time to `when`, and call what is due by then."""
        while (due := self.next_due()) is not None and due <= when:
            self._now = max(self._now, due)
            timer = heapq.heappop(self._timers)[2]
            if (callback := timer.callback) is not None:
                callback()
        self._now = max(self._now, when)


class _VirtualTimer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Alarm:
    """Rings at the earliest time that was asked for since it last rang."""

    def __init__(self, clock: SystemClock | VirtualClock, ring: Callable[[], object]) -> None:
        self._clock = clock
        self._ring = ring
        self._timer: Timer | None = None
        self._when = float("inf")

    def by(self, when: float) -> None:
        """Ring at `when`, or earlier if that was asked for."""
        if when < self._when:
            self.cancel()
            self._when = when
            self._timer = self._clock.call_at(when, self._rung)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._when = float("inf")

    def _rung(self) -> None:
        self._timer = None
        self._when = float("inf")
        self._ring()
