"""What a message does to an invocation: the entry that applies it, or the reason why it is refused.

A retry is different: it needs the turn brought to where it failed, see `Turn.retry`. Here is said whether it may be.
"""

from __future__ import annotations

from typing import assert_never

from perdure.core.effects import outcome_for
from perdure.core.failures import failure_of
from perdure.core.history import History
from perdure.core.journal import (
    CallChild,
    Cancel,
    Cancelled,
    CancelRequested,
    Completed,
    Entry,
    Failed,
    Interrupted,
    Join,
    Joined,
    Message,
    OpenAwakeable,
    Pause,
    Paused,
    Raised,
    Refused,
    Reject,
    Request,
    Resolve,
    Resume,
    Resumed,
    RetryInvocation,
    Returned,
    Settled,
    Start,
)
from perdure.core.lifecycle import SETTLED, Verb, refusal
from perdure.core.turn import Turn
from perdure.errors import AwakeableRejected, ChildCancelled, IdConflict, Undecodable


def apply(message: Message, history: History, turn: Turn | None, at: float, /) -> Entry | None:
    """Return the entry that a message becomes, `Refused` with the reason, or None when it needs none.

    `turn` may be None only while the invocation is paused with code that diverges from its journal, or settled.
    """
    request = message.request
    if may_retry(message, history):
        return None
    status = history.status
    if (verb := _VERBS.get(type(request))) is not None and (reason := refusal(status, verb)) is not None:
        return Refused(at, message.id, reason)
    match request:
        case Resolve() | Reject():
            if status in SETTLED:
                return Refused(at, message.id, f"nobody waits for this awakeable: its invocation is {status}")
            return _answer_awakeable(message, request, turn, at)
        case Settled():
            return None if status in SETTLED else _child_settled(message, request, history, turn, at)
        case Cancel(force=True):
            return Cancelled(at, forced=True, message=message.id)
        case Cancel():
            return CancelRequested(at, message=message.id)
        case Pause():
            return Paused(at, "asked for", message.id)
        case Resume():
            return Resumed(at, message.id)
        case Join():
            return None if status in SETTLED else _joined(message, request, turn, history, at)
        case RetryInvocation():  # the one that was applied before
            return None
        case _:
            assert_never(request)


def _joined(message: Message, request: Join, turn: Turn | None, history: History, at: float) -> Entry | None:
    known = turn.start if turn is not None else history.start
    parent = request.start.parent
    if known is None or parent is None or parent == known.parent or not _same(request.start, known):
        return None
    return Joined(at, parent, message.id)


def reply_to(message: Message, start: Start, history: History, at: float, /) -> Message | None:
    """Return what is to be sent back at once for a message that no entry is made of."""
    if not isinstance(request := message.request, Join):
        return None
    parent = request.start.parent
    if parent is None or parent == start.parent:
        return None  # it started this invocation, and is told
    if not _same(request.start, start):
        text = f"invocation {start.id!r} exists with another workflow or input: choose another id for this child"
        failure = failure_of(IdConflict(text, invocation_id=start.id))
        return outcome_for(parent, start.id, Failed(at, failure), at)
    return None if history.outcome is None else outcome_for(parent, start.id, history.outcome, at)


def _same(one: Start, other: Start) -> bool:
    digests = one.digest and other.digest
    same_input = one.digest == other.digest if digests else one.input == other.input
    return one.handler == other.handler and same_input


_VERBS: dict[type[Request], Verb] = {Pause: "pause", Resume: "resume", Cancel: "cancel", RetryInvocation: "retry"}


def may_retry(message: Message, history: History, /) -> bool:
    """Tell whether a message asks for the retry of an invocation that has failed, and was not applied before."""
    asked = isinstance(message.request, RetryInvocation) and message.id not in history.messages
    return asked and refusal(history.status, "retry") is None


def _answer_awakeable(message: Message, request: Resolve | Reject, turn: Turn | None, at: float) -> Entry:
    pending = turn.waits_for(request.n) if turn is not None else None
    if turn is None:
        return Refused(at, message.id, "its code diverges from its journal: resume it first, then send this again")
    if pending is None or not isinstance(pending.command, OpenAwakeable) or pending.generation != request.generation:
        return Refused(at, message.id, "this awakeable is resolved or rejected already, or nobody waits for it now")
    if isinstance(request, Reject):
        return Raised(
            request.n,
            at,
            failure_of(AwakeableRejected(f"rejected: {request.reason}", reason=request.reason)),
            message.id,
        )
    try:
        pending.decode(request.value)
    except Undecodable as error:
        return Refused(at, message.id, f"the value has the wrong shape: {error}")
    return Returned(request.n, at, request.value, message.id)


def _child_settled(message: Message, request: Settled, history: History, turn: Turn | None, at: float) -> Entry | None:
    if turn is None:  # it is kept until there is code that fits: nobody would send it again
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
            return Interrupted(request.n, at)  # it ended as the body had asked: CancelledError, as of a task
        case Cancelled():
            return Raised(
                request.n,
                at,
                failure_of(ChildCancelled(f"child {request.child!r} was cancelled", invocation_id=request.child)),
                message.id,
            )
        case _:
            assert_never(request.outcome)
