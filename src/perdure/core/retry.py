"""When a failed step is retried: the policy, and the arithmetic.

The arithmetic is exponential back-off with proportional jitter, as in AWS Architecture Blog, "Exponential Backoff And
Jitter" (2015), bounded above. It is our own since a library's would read a clock and draw its own random numbers, and
both must come from outside: the due time of the next attempt is journaled.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import Any, TypeGuard, cast

from perdure.errors import (
    AnnotationUnresolved,
    BadId,
    BadUrl,
    CalledOutsideWorkflow,
    IdConflict,
    InputRefused,
    InvalidOption,
    IoInWorkflow,
    LimitExceeded,
    MessageRefused,
    NameTaken,
    NonRetryable,
    NotAWorkflow,
    NotRepeatable,
    ServiceUnknown,
    Undecodable,
    Unencodable,
    UnknownInvocation,
)

Duration = float | timedelta
"""Seconds, or a timedelta."""

DURATION_LIMIT_SECONDS = 100 * 365 * 86_400.0
"""The longest wait that a caller may request: a hundred years."""


def seconds(what: str, duration: Duration, /, *, positive: bool = False) -> float:
    """Return a duration in seconds, or raise `InvalidOption` naming `what` for any that is negative or not finite."""
    value = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(value, bool) or not isinstance(value, (int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOption(f"{what} must be a number of seconds or a timedelta, not {type(value).__name__}")
    if not (value > 0 if positive else value >= 0) or value > DURATION_LIMIT_SECONDS:
        least = "more than 0" if positive else "at least 0"
        raise InvalidOption(f"{what} is {value} seconds: give {least} and at most {DURATION_LIMIT_SECONDS:.0f}")
    return float(value)


def whole_number(what: str, number: int, /, *, least: int = 1) -> int:
    """Return a whole number, or raise `InvalidOption` naming `what`: too small, or no whole number."""
    if not _is_whole(number):
        raise InvalidOption(f"{what}: {number!r} is not a whole number")
    if number < least:
        raise InvalidOption(f"{what}: {number!r} is too small, give at least {least}")
    return number


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _classes(field: str, value: object) -> tuple[type[BaseException], ...]:
    """Return a tuple of exception classes; one class stands for itself."""
    classes = (value,) if isinstance(value, type) else value
    if isinstance(classes, tuple):
        found = cast("tuple[object, ...]", classes)
        if all(isinstance(each, type) and issubclass(each, BaseException) for each in found):
            return cast("tuple[type[BaseException], ...]", found)
    raise InvalidOption(
        f"Retry({field}={value!r}): give a tuple of exception classes, such as {field}=(ConnectionError, TimeoutError)"
    )


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often, and at what intervals, a failing step is retried.

    The wait before attempt k + 1 is `initial * factor ** (k - 1)` seconds, at most `maximum`, changed by up to
    `jitter` of itself in either direction. `max_attempts` counts the first attempt; None means no end. Only exceptions
    that are instances of `on` and not of `never` are retried. The default is ten attempts over about 50 seconds.
    """

    max_attempts: int | None = 10
    initial: Duration = 0.1
    factor: float = 2.0
    maximum: Duration = 60.0
    jitter: float = 0.2
    on: tuple[type[BaseException], ...] = (Exception,)
    never: tuple[type[BaseException], ...] = (NonRetryable,)

    def __post_init__(self) -> None:
        attempts: object = self.max_attempts
        if attempts is not None and (not _is_whole(attempts) or attempts < 1):
            raise InvalidOption(f"Retry(max_attempts={attempts!r}): give a whole number from 1, or None for no end")
        if not _is_number(self.factor) or not 1 <= self.factor < inf:
            raise InvalidOption(f"Retry(factor={self.factor!r}): give a number, at least 1, and not infinity")
        if not _is_number(self.jitter) or not 0 <= self.jitter <= 1:
            raise InvalidOption(f"Retry(jitter={self.jitter!r}): give a share between 0 and 1")
        seconds("Retry(initial=…)", self.initial)
        seconds("Retry(maximum=…)", self.maximum)
        object.__setattr__(self, "on", _classes("on", self.on))
        object.__setattr__(self, "never", _classes("never", self.never))

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


# --- what another attempt cannot change -------------------------------------------------------------------------------
_HOPELESS = (AnnotationUnresolved, IoInWorkflow, LimitExceeded, ServiceUnknown, Undecodable, Unencodable)
"""Failures of a step that another attempt cannot change, whatever the policy says."""

_MISTAKES = (
    *(BadId, BadUrl, CalledOutsideWorkflow, InputRefused, InvalidOption, NameTaken, NotAWorkflow, NotRepeatable),
    *(NameError, NotImplementedError, SyntaxError),
    *(IdConflict, MessageRefused, UnknownInvocation),
)
"""Mistakes of the program, and what invocations refuse: not retried unless a policy names the class itself in `on`."""

_WRONG_CALL = re.compile(
    r"\) missing \d+ required (positional|keyword-only) argument"
    r"|\) takes .*arguments?( but| \()"
    r"|\) takes no (keyword )?arguments"
    r"|\) got (an unexpected keyword argument|multiple values for|some positional-only arguments)"
    r"| expected( at least| at most| exactly)? \d+ arguments?, got"
    r"|^function missing required argument| is an invalid keyword argument for "
)
"""CPython's texts of the `TypeError` of a call with wrong arguments. Other `TypeError`s may come from data."""


def is_mistake(error: BaseException) -> bool:
    """Report whether an exception is a mistake of the program, not a fault of the world."""
    return isinstance(error, _MISTAKES) or (isinstance(error, TypeError) and bool(_WRONG_CALL.search(str(error))))


def next_wait(retry: Retry, error: BaseException, attempt: int, chance: float) -> float | None:
    """Return the seconds to wait after `attempt` failed with `error`, or None to give up.

    Raises whatever a policy raises, and `InvalidOption` if it returns anything but None or a number of seconds.
    """
    if isinstance(error, _HOPELESS):
        return None
    named = (each for each in retry.on if each not in (Exception, BaseException))
    if is_mistake(error) and not isinstance(error, tuple(named)):
        return None
    wait: Any = retry.delay(error, attempt, chance)
    if wait is None:
        return None
    if inspect.iscoroutine(wait):
        cast("Any", wait).close()  # it must not warn that it was never awaited
    if isinstance(wait, timedelta):
        raise InvalidOption(f"{type(retry).__name__}.delay() returned {wait!r}: return its total_seconds()")
    return seconds(f"the result of {type(retry).__name__}.delay()", cast("float", wait))
