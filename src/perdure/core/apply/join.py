"""Join: another invocation asks for this one as its child, by a chosen id that may have existed before."""

from __future__ import annotations

from perdure.core.effects import outcome_for
from perdure.core.failures import failure_of
from perdure.core.history import History
from perdure.core.journal import Entry, Failed, Join, Joined, Message, Start
from perdure.core.lifecycle import SETTLED
from perdure.core.turn import Turn
from perdure.errors import IdConflict


def join(request: Join, message: Message, history: History, turn: Turn | None, at: float, /) -> Entry | None:
    if history.status in SETTLED:
        return None  # `reply_to` returns the answer
    known = turn.start if turn is not None else history.start
    parent = request.start.parent
    if known is None or parent is None or parent == known.parent or not _same(request.start, known):
        return None
    return Joined(at, parent, message.id)


def reply_to(message: Message, start: Start, history: History, at: float, /) -> Message | None:
    """Return the message to send back at once for a message that becomes no entry."""
    if not isinstance(request := message.request, Join):
        return None
    parent = request.start.parent
    if parent is None or parent == start.parent:
        return None  # it started this invocation, and gets the outcome anyway
    if not _same(request.start, start):
        text = f"invocation {start.id!r} exists with another workflow or input: choose another id for this child"
        failure = failure_of(IdConflict(text, invocation_id=start.id))
        return outcome_for(parent, start.id, Failed(at, failure), at)
    return None if history.outcome is None else outcome_for(parent, start.id, history.outcome, at)


def _same(one: Start, other: Start) -> bool:
    digests = one.digest and other.digest
    same_input = one.digest == other.digest if digests else one.input == other.input
    return one.handler == other.handler and same_input
