"""Resolve and reject: the answer to an awakeable."""

from __future__ import annotations

from perdure.core.failures import failure_of
from perdure.core.history import History
from perdure.core.journal import Entry, Message, OpenAwakeable, Raised, Refused, Reject, Resolve, Returned
from perdure.core.lifecycle import MISFIT, SETTLED
from perdure.core.turn import Pending, Turn
from perdure.errors import AwakeableRejected, Undecodable


def resolve(request: Resolve, message: Message, history: History, turn: Turn | None, at: float, /) -> Entry:
    pending = _awaited(request, message, history, turn, at)
    if isinstance(pending, Refused):
        return pending
    try:
        pending.decode(request.value)
    except Undecodable as error:
        return Refused(at, message.id, f"{MISFIT}: {error}")
    return Returned(request.n, at, request.value, message.id)


def reject(request: Reject, message: Message, history: History, turn: Turn | None, at: float, /) -> Entry:
    pending = _awaited(request, message, history, turn, at)
    if isinstance(pending, Refused):
        return pending
    return _rejected(request, message, at)


def repeats(message: Message, history: History, at: float, /) -> bool:
    """Report whether a message gives an awakeable the very answer that it has.

    A step that answers one may run again, after a crash: that is no error, even if the invocation has ended since.
    """
    request = message.request
    if isinstance(request, Resolve):
        answer: Returned | Raised = Returned(request.n, at, request.value, message.id)
    elif isinstance(request, Reject):
        answer = _rejected(request, message, at)
    else:
        return False
    return history.was_answered(request.n, request.generation, answer)


def _rejected(request: Reject, message: Message, at: float) -> Raised:
    error = AwakeableRejected(f"rejected: {request.reason}", reason=request.reason)
    return Raised(request.n, at, failure_of(error), message.id)


def _awaited(
    request: Resolve | Reject, message: Message, history: History, turn: Turn | None, at: float
) -> Pending | Refused:
    if history.status in SETTLED:
        return Refused(at, message.id, f"nothing waits for this awakeable: its invocation is {history.status}")
    if turn is None:
        return Refused(at, message.id, "its code diverges from its journal: resume it first, then send this again")
    pending = turn.waits_for(request.n)
    if pending is None or not isinstance(pending.command, OpenAwakeable) or pending.generation != request.generation:
        return Refused(
            at, message.id, "this awakeable is resolved or rejected already, or nothing waits for it any more"
        )
    expires_at = turn.expiry_of(request.n)
    if expires_at is not None and min(at, message.at) >= expires_at:  # its timer has yet to fire
        return Refused(at, message.id, "this awakeable has expired")
    return pending
