"""Ends an invocation whose body has not begun: there is nothing to clean up, so no worker is needed."""

from __future__ import annotations

from perdure.core.busy import turned_away
from perdure.core.effects import Effects, effects_of
from perdure.core.history import History
from perdure.core.journal import Accepted, Busy, Cancelled, Frame, Message, Outcome, Start, Status


def outcome_unbegun(start: Start, message: Message, at: float, /) -> Outcome:
    """Return the outcome of such an invocation, which `message` ends."""
    if isinstance(message.request, Busy):
        return turned_away(start, message.request, at)
    return Cancelled(at, message=message.id)


def ended_unbegun(start: Start, message: Message, writer: str, at: float, /) -> tuple[Frame, Effects, Status]:
    """Return the only frame of such an invocation, its effects, and its status from then on."""
    frame = Frame(writer, at, [Accepted(start), outcome_unbegun(start, message, at)])
    history = History.of([frame])
    return frame, effects_of(start, frame, history), history.status
