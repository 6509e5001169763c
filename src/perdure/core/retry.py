"""When a failed step is tried again: the policy a user writes, and the arithmetic.

The arithmetic is exponential back-off with proportional jitter, as in AWS Architecture Blog, "Exponential Backoff And
Jitter" (2015), bounded above. It is our own since a library's would read a clock and draw its own random numbers, and
both must come from outside: the due time of the next attempt is journaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from math import inf

from perdure.errors import InvalidOption, NonRetryable

Duration = float | timedelta
"""Seconds, or a timedelta."""

DURATION_LIMIT_SECONDS = 100 * 365 * 86_400.0
"""The longest wait that may be asked for: a hundred years."""


def seconds(what: str, duration: Duration, /, *, positive: bool = False) -> float:
    """Return a duration in seconds, or raise `InvalidOption` naming `what`: negative, not finite or no number."""
    value = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(value, bool) or not isinstance(value, (int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOption(f"{what} must be a number of seconds or a timedelta, not {type(value).__name__}")
    if not (value > 0 if positive else value >= 0) or value > DURATION_LIMIT_SECONDS:
        least = "more than 0" if positive else "at least 0"
        raise InvalidOption(f"{what} is {value} seconds: give {least} and at most {DURATION_LIMIT_SECONDS:.0f}")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often, and how long apart, a failing step is tried.

    The wait before attempt k + 1 is `initial * factor ** (k - 1)` seconds, at most `maximum`, changed by up to
    `jitter` of itself in either direction. `max_attempts` counts the first attempt; None means without end. Only
    exceptions that are instances of `on` and not of `never` are tried again. The default is ten attempts over
    about 50 seconds.
    """

    max_attempts: int | None = 10
    initial: Duration = 0.1
    factor: float = 2.0
    maximum: Duration = 60.0
    jitter: float = 0.2
    on: tuple[type[BaseException], ...] = (Exception,)
    never: tuple[type[BaseException], ...] = (NonRetryable,)

    def __post_init__(self) -> None:
        if self.max_attempts is not None and self.max_attempts < 1:
            raise InvalidOption(f"Retry(max_attempts={self.max_attempts}): give at least 1, or None for no end")
        if not 1 <= self.factor < inf:
            raise InvalidOption(f"Retry(factor={self.factor}): give at least 1, and not infinity")
        if not 0 <= self.jitter <= 1:
            raise InvalidOption(f"Retry(jitter={self.jitter}): give a share between 0 and 1")
        seconds("Retry(initial=…)", self.initial)
        seconds("Retry(maximum=…)", self.maximum)

    def delay(self, error: BaseException, attempt: int, chance: float) -> float | None:
        """Return the seconds to wait after `attempt` (from 1) failed with `error`, or None to give up.

        `chance` is a random number in [0, 1) that places the wait within its jitter.
        """
        if not isinstance(error, self.on) or isinstance(error, self.never):
            return None
        if self.max_attempts is not None and attempt >= self.max_attempts:
            return None
        initial, maximum = seconds("initial", self.initial), seconds("maximum", self.maximum)
        try:
            wait = initial * float(self.factor) ** (attempt - 1)
        except OverflowError:
            wait = maximum if initial else 0.0
        return min(wait, maximum) * (1 + self.jitter * (2 * chance - 1))


DEFAULT_RETRY = Retry()
