"""Cancel an invocation: with its cleanup, or at once when forced."""

from __future__ import annotations

from perdure.core.history import History
from perdure.core.journal import Cancel, Cancelled, CancelRequested, Entry, Message, Refused
from perdure.core.lifecycle import refusal


def cancel(request: Cancel, message: Message, history: History, at: float, /) -> Entry:
    if (reason := refusal(history.status, "cancel")) is not None:
        return Refused(at, message.id, reason)
    if request.force:
        return Cancelled(at, forced=True, message=message.id)
    return CancelRequested(at, message=message.id, rollback=request.rollback)
