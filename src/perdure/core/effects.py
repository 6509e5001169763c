"""The effects of a frame, derived from the frame alone, so that the next owner can redo them.

A store writes the frame first and its effects after it. When a worker dies in between, the next owner reads the last
frame and redoes its effects; each is idempotent.
"""

from __future__ import annotations

from msgspec import Struct

from perdure.core.history import History
from perdure.core.journal import (
    Accepted,
    Answer,
    CallChild,
    CallStep,
    Cancel,
    Cancelled,
    CancelRequested,
    Claimed,
    Completed,
    Frame,
    Granted,
    Join,
    Joined,
    Message,
    Outcome,
    Parent,
    Paused,
    Raised,
    Refused,
    Released,
    Resumed,
    Retried,
    Returned,
    SendStart,
    Settled,
    Start,
    Waited,
)
from perdure.core.streams import Batch


class Release(Struct, frozen=True):
    """The invocation releases its key, or leaves the queue of the key.

    If it holds the key in this generation, the key gets `state` (None: unchanged) and goes to the next in the queue.
    """

    key: str
    generation: int
    state: dict[str, bytes] | None = None


class Enlist(Struct, frozen=True):
    """The invocation takes the last position in the queue of a key, to run again in `generation`.

    Starts need no such effect: the store queues them. An invocation that has a position, or the key, keeps it.
    """

    key: str
    generation: int


class Effects(Struct, frozen=True):
    """What a store does after a frame: starts to submit, messages to post, answers to give, the wake to set.

    `wake` is the time at which the invocation wants to be delivered again; None leaves whatever is set. `written` are
    items of streams.
    """

    starts: tuple[Start, ...] = ()
    messages: tuple[Message, ...] = ()
    answers: tuple[Answer, ...] = ()
    wake: float | None = None
    release: Release | None = None
    enlist: Enlist | None = None
    written: tuple[Batch, ...] = ()


SENT_BY_WORKFLOWS = ("settled:", "cancel:", "force:", "join:", "busy:")
"""Prefixes of ids of messages that frames bring about, or a start whose key is busy: no caller waits for an answer."""

NO_EFFECTS = Effects()
_QUIET = frozenset({Accepted, Claimed, Granted, Waited, Completed})


def effects_of(start: Start, frame: Frame, history: History, /) -> Effects:
    """Return the effects of a frame of `start`'s journal; `history` is the journal up to it, folded.

    A parent is told the outcome once, and not again in a later generation.
    """
    alone = start.parent is None and start.key is None and not history.joined
    if alone and not frame.cancels and not frame.written and _says_nothing(frame):
        return NO_EFFECTS
    starts = [command.start for command in frame.commands if isinstance(command, (CallChild, SendStart))]
    messages: list[Message] = []
    answers: list[Answer] = []
    wake: float | None = None
    for entry in frame.entries:
        match entry:
            case (
                Returned(message=str(message))
                | Raised(message=str(message))
                | CancelRequested(message=str(message))
                | Paused(message=str(message))
                | Resumed(message=str(message))
                | Joined(message=message)
                | Retried(message=message)
                | Cancelled(message=str(message))
            ):
                answers.append(Answer(message))
            case Refused(message=message, reason=reason):
                answers.append(Answer(message, reason))
            case Released(wake=at):
                wake = at
            case _:
                pass
    outcome = frame.outcome
    if start.parent is not None and not history.generation and outcome is not None:
        told = Settled(start.parent.generation, start.parent.n, start.id, outcome)
        messages.append(Message(f"settled:{start.id}", start.parent.id, frame.at, told))
    if outcome is not None:
        messages += [outcome_for(parent, start.id, outcome, frame.at) for parent in history.joined]
    messages += [join(each.start, frame.at) for each in frame.commands if type(each) is CallChild and each.start.chosen]
    if frame.cancels:
        force = isinstance(outcome, Cancelled) and outcome.forced
        name = "force" if force else "cancel"  # a forced one must not be dropped as a repeated plain one
        cancelled = (started for n in frame.cancels if (started := history.children.get(n)) is not None)
        messages += [Message(f"{name}:{each.id}", each.id, frame.at, Cancel(force)) for each in cancelled]
    release: Release | None = None
    if start.key is not None and outcome is not None:
        changed = dict(history.key_state) if history.key_state_changed and not history.rolled_back else None
        release = Release(start.key, history.generation, changed)
    if not (starts or messages or answers or release or frame.written) and wake is None:
        return NO_EFFECTS
    return Effects(tuple(starts), tuple(messages), tuple(answers), wake, release, written=tuple(frame.written))


def outcome_for(parent: Parent, child: str, outcome: Outcome, at: float, /) -> Message:
    """Return the message that tells a joined parent the outcome of its child."""
    id = f"settled:{child}:{parent.id}:{parent.generation}:{parent.n}"
    return Message(id, parent.id, at, Settled(parent.generation, parent.n, child, outcome))


def join(start: Start, at: float, /) -> Message:
    """Return the message that makes a child with a chosen id report to this parent too, if it existed before."""
    parent = start.parent
    assert parent is not None
    return Message(f"join:{parent.id}:{parent.generation}:{parent.n}", start.id, at, Join(start))


def _says_nothing(frame: Frame) -> bool:
    """Tell, fast, whether a frame holds only steps and their results, as most frames do."""
    for entry in frame.entries:
        if type(entry) is Returned:
            if entry.message is not None:
                return False
        elif type(entry) not in _QUIET:
            return False
    for command in frame.commands:  # noqa: SIM110  a generator would double the cost
        if type(command) is not CallStep:
            return False
    return True
