"""Settled: the outcome of a child."""

from __future__ import annotations

from typing import assert_never

from perdure.core.failures import failure_of
from perdure.core.history import History
from perdure.core.journal import (
    CallChild,
    Cancelled,
    Completed,
    Entry,
    Failed,
    Interrupted,
    Message,
    Raised,
    Returned,
    Settled,
)
from perdure.core.lifecycle import SETTLED
from perdure.core.turn import Turn
from perdure.errors import ChildCancelled


def settled(request: Settled, message: Message, history: History, turn: Turn | None, at: float, /) -> Entry | None:
    if history.status in SETTLED:
        return None
    if turn is None:  # kept until code that fits is deployed: it is not sent again
        if not history.waits_for_child(request.n, request.generation, request.child):
            return None
        unwanted = request.n in history.children_unwanted
    else:
        pending = turn.waits_for(request.n)
        if pending is None or not isinstance(pending.command, CallChild) or pending.generation != request.generation:
            return None
        unwanted = pending.cancel_requested
    match request.outcome:
        case Completed(value=value):
            return Returned(request.n, at, value, message.id)
        case Failed(failure=failure):
            return Raised(request.n, at, failure, message.id)
        case Cancelled() if unwanted:
            return Interrupted(request.n, at)  # it ended as the body asked: CancelledError, as with a task
        case Cancelled():
            error = ChildCancelled(f"child {request.child!r} was cancelled", invocation_id=request.child)
            return Raised(request.n, at, failure_of(error), message.id)
        case _:
            assert_never(request.outcome)
