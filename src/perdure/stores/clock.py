"""Clocks: the system's, and one that stands still until a test moves it.

The system's clock is read once from the machine's wall clock, and then follows a clock that counts the seconds that
pass, also while the machine sleeps. So timers take as long as they were asked to, whatever becomes of the wall clock.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Callable
from functools import partial

from perdure.stores.port import Clock, Timer

LONGEST_WAIT_SECONDS = 3600.0
"""The longest single wait on the event loop."""

LOOK_SECONDS = 1.0
"""How often the machine's clock is compared while a timer is set: a jump, or a sleep of the machine, costs no more."""

JUMP_SECONDS = 1.0
"""A difference from the machine's clock that is logged."""

ADOPT_SECONDS = 60.0
"""How long the machine's clock must have been ahead before that is taken for the right time."""

SLOWDOWN = 0.01
"""By which share time goes slower while it is ahead of the machine's clock."""

log = logging.getLogger("perdure.clock")

_COUNTING: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""The clock that counts the seconds that pass, on Linux also while the machine sleeps."""


class SystemClock:
    """Seconds since the epoch that pass evenly: never back, never still, and with no jump that a timer would feel.

    If the machine's clock is set ahead and stays there, its time is adopted after a minute. If it is set back, time
    goes on a hundredth slower until the two agree.
    """

    def __init__(self, wall: Callable[[], float] | None = None, elapsed: Callable[[], float] | None = None) -> None:
        # Builtins, without a frame of ours around them: the time is read a dozen times for each invocation.
        self._wall = wall or time.time
        self._elapsed = elapsed or partial(time.clock_gettime, _COUNTING)
        self._ahead: float = self._wall() - self._elapsed()  # of the counting clock
        self._last = 0.0
        self._timers: set[_SystemTimer] = set()
        self._looking: asyncio.TimerHandle | None = None
        self._looked = 0.0  # the counting clock at the last look
        self._loop_time = 0.0  # the loop's, which may stand still while the machine sleeps
        self._difference: float = 0.0  # of the machine's clock, as last logged
        self._ahead_since: float | None = None  # the machine's clock is ahead since then

    def now(self) -> float:
        elapsed = self._elapsed  # first a variable: CPython is slow to call what an attribute holds
        now = self._ahead + elapsed()
        if now > self._last:
            self._last = now
        return self._last

    def machine_now(self) -> float:
        """Return what the machine's clock shows."""
        return self._wall()

    def machine_at(self, when: float) -> float:
        """Return what the machine's clock shows at `when`, as far as it is known now: for what goes by that clock."""
        now = self.now()  # read first: a moment late is better than early
        return when + (self._wall() - now)

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        timer = _SystemTimer(self, when, callback)
        self._timers.add(timer)
        if self._looking is None or self._looking.cancelled():
            loop = asyncio.get_running_loop()
            self._looked, self._loop_time = self._elapsed(), loop.time()
            self._looking = loop.call_later(LOOK_SECONDS, self._look)
        return timer

    def forget(self, timer: _SystemTimer) -> None:
        self._timers.discard(timer)
        if not self._timers and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look(self) -> None:
        """Compare the machine's clock, and set the timers anew if the loop's has missed some time."""
        loop = asyncio.get_running_loop()
        self._looking = loop.call_later(LOOK_SECONDS, self._look)
        elapsed, loop_time = self._elapsed(), loop.time()
        passed, missed = elapsed - self._looked, (elapsed - self._looked) - (loop_time - self._loop_time)
        self._looked, self._loop_time = elapsed, loop_time
        if self._agree(elapsed, passed) or missed > LOOK_SECONDS / 10:
            for timer in [*self._timers]:
                timer.wait_again()

    def _agree(self, elapsed: float, passed: float) -> bool:
        """Log a jump of the machine's clock, and come closer to it; true if time has jumped ahead with it."""
        difference = self._wall() - (self._ahead + elapsed)
        if abs(difference - self._difference) >= JUMP_SECONDS:
            way = "ahead" if difference > self._difference else "back"
            log.warning(
                "the machine's clock was set %s by %.1f s: timers go by the time that passes, not by it",
                way,
                abs(difference - self._difference),
            )
            self._difference = difference
        if difference < 0:
            self._ahead_since = None
            self._ahead -= min(-difference, SLOWDOWN * max(passed, 0.0))
            self._difference = min(self._difference + SLOWDOWN * passed, 0.0)
        elif difference >= JUMP_SECONDS:
            if self._ahead_since is None:
                self._ahead_since = elapsed
            elif elapsed - self._ahead_since >= ADOPT_SECONDS:
                log.warning("the machine's clock stays ahead by %.1f s: its time is adopted", difference)
                self._ahead += difference
                self._difference, self._ahead_since = 0.0, None
                return True
        else:
            self._ahead_since = None
        return False


class _SystemTimer:
    """Waits on the event loop's clock, and looks at ours before it calls."""

    __slots__ = ("_callback", "_clock", "_handle", "_when")

    def __init__(self, clock: SystemClock, when: float, callback: Callable[[], object]) -> None:
        self._clock = clock
        self._when = when
        self._callback = callback
        self._wait()

    def _wait(self) -> None:
        left = max(0.0, self._when - self._clock.now())
        self._handle = asyncio.get_running_loop().call_later(min(left, LONGEST_WAIT_SECONDS), self._look)

    def wait_again(self) -> None:
        self._handle.cancel()
        self._wait()

    def _look(self) -> None:
        if self._clock.now() >= self._when:
            self._clock.forget(self)
            self._callback()
        else:
            self._wait()

    def cancel(self) -> None:
        self._handle.cancel()
        self._clock.forget(self)


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

    def __init__(self, clock: Clock, ring: Callable[[], object]) -> None:
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
