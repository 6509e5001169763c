"""The clock of one process: the world's time, ahead of it by so much, with jumps."""

from __future__ import annotations

from collections.abc import Callable

from perdure.testing.simulation.loop import Process, Timer

EPOCH = 1_700_000_000.0
TICK_SECONDS = 1e-6
"""More than what is lost when a time since the epoch is rounded."""


class ProcessClock:
    """Seconds since the epoch, as one process sees them. Like the system's clock, it may jump ahead and never back."""

    def __init__(self, process: Process, ahead: float = 0.0) -> None:
        self._process = process
        self._ahead = EPOCH + ahead
        self._timers: dict[int, _ClockTimer] = {}
        self._numbers = 0

    def now(self) -> float:
        return self._process.world.now + self._ahead

    def call_at(self, when: float, callback: Callable[[], object], /) -> _ClockTimer:
        self._numbers += 1
        timer = self._timers[self._numbers] = _ClockTimer(self, self._numbers, when, callback)
        timer.wait()
        return timer

    def jump(self, seconds: float) -> None:
        """Set the clock ahead: what has become due meanwhile rings at once."""
        self._ahead += seconds
        for timer in [*self._timers.values()]:
            timer.wait()

    def later(self, when: float, look: Callable[[], None]) -> Timer:
        left = max(0.0, when - self.now())
        return self._process.call_later(left, look)

    def forget(self, number: int) -> None:
        self._timers.pop(number, None)


class _ClockTimer:
    """Waits on the process's loop, and looks at the clock before it calls."""

    __slots__ = ("_callback", "_clock", "_number", "_timer", "_when")

    def __init__(self, clock: ProcessClock, number: int, when: float, callback: Callable[[], object]) -> None:
        self._clock = clock
        self._number = number
        self._when = when
        self._callback = callback
        self._timer: Timer | None = None

    def wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.later(self._when, self._look)

    def _look(self) -> None:
        if self._clock.now() < self._when:
            self._timer = self._clock.later(self._when + TICK_SECONDS, self._look)
            return
        self._clock.forget(self._number)
        self._callback()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._clock.forget(self._number)
