"""Retry policies of one's own: one that works, and some that do what nobody foresaw."""

from __future__ import annotations

from typing import Any, cast

from perdure.core.retry import Retry
from perdure.errors import InvalidOption, RemoteError
from perdure.testing.programs.program import WaysToDecide

MOST_ATTEMPTS = 4
WAIT_SECONDS = 0.01


class PolicyError(Exception):
    """What a policy raises that is broken."""


BROKEN_BY = (PolicyError, InvalidOption, RemoteError)
"""What a step fails with whose policy is broken: it raises, returns no number, or exits."""


class _Decides(Retry):
    """Decides by itself, as its way says."""

    way: WaysToDecide

    def delay(self, error: BaseException, attempt: int, chance: float) -> float | None:
        match self.way:
            case "waits":
                return WAIT_SECONDS if attempt < MOST_ATTEMPTS else None
            case "exits":
                raise SystemExit(1)
            case "nonsense":
                return cast("Any", "soon")
            case "below zero":
                return -1.0
            case _:
                raise PolicyError(self.way)


class _Odd(type):
    """The class of classes that cannot tell what is an instance of theirs."""

    def __instancecheck__(cls, instance: object, /) -> bool:
        raise PolicyError("on")


class OddError(Exception, metaclass=_Odd):
    """A class of exceptions that breaks whoever asks whether something is one."""


def policy_of(way: WaysToDecide) -> Retry:
    """Return a policy that decides in this way."""
    if way == "on":
        return Retry(max_attempts=MOST_ATTEMPTS, initial=WAIT_SECONDS, on=(OddError,))
    return cast("Retry", type(f"Decides{way.title().replace(' ', '')}", (_Decides,), {"way": way})())
