"""What to do when a node fails."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from msgspec import Struct

from perdure.core.retry import Retry

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
