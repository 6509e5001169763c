"""What to do when a node fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar, cast

from msgspec import Struct

from perdure.core.retry import Retry
from perdure.core.values import encode
from perdure.errors import PerdureError

T_co = TypeVar("T_co", covariant=True)


class Stop(Struct, frozen=True):
    """Fail the flow; nodes that have begun are cancelled. The default."""


class Skip(Struct, frozen=True):
    """Skip the node, and the nodes that need it."""


class Continue(Struct, Generic[T_co], frozen=True):
    """Go on with `default` in place of the result."""

    default: T_co


OnError = Stop | Skip | Retry | Continue[Any]
"""A rule. A `Retry` is the retry policy of a step; if its attempts are used up, the flow fails."""


def rule_problems(rule: object) -> Iterator[str]:
    """Yield what is wrong with a rule."""
    if rule is not None and not isinstance(rule, (Stop, Skip, Retry, Continue)):
        yield f"on_error={rule!r}: give Stop(), Skip(), Continue(default=...) or a Retry"
    if isinstance(rule, Continue):
        try:
            encode(cast("Continue[Any]", rule).default, "the default of on_error=Continue")
        except PerdureError as error:
            yield str(error)
