"""What follows from a frame: derived from the frame alone, so that whoever takes over can do it again.

A store writes the frame first and its effects after it. When a worker dies in between, the next owner reads the last
frame and redoes its effects; each is idempotent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from msgspec import Struct

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
    Message,
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
)


class Effects(Struct, frozen=True):
    """What a store does after a frame: starts to submit, messages to post, answers to give, the wake to set.

    `wake` is the time at which the invocation wants to be delivered again; None leaves whatever is set.
    """

    starts: tuple[Start, ...] = ()
    messages: tuple[Message, ...] = ()
    answers: tuple[Answer, ...] = ()
    wake: float | None = None


NO_EFFECTS = Effects()
_QUIET = frozenset({Accepted, Claimed, Completed})


def effects_of(start: Start, frame: Frame, child: Callable[[int], Start | None], /, generation: int = 0) -> Effects:
    """Return the effects of a frame of `start`'s journal; `child(n)` is the start of command n if it is a child.

    Who waits for an invocation is told its outcome once: not again in a later generation.
    """
    if start.parent is None and not frame.cancels and _says_nothing(frame):
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
    if start.parent is not None and not generation and (outcome := frame.outcome) is not None:
        told = Settled(start.parent.generation, start.parent.n, start.id, outcome)
        messages.append(Message(f"settled:{start.id}", start.parent.id, frame.at, told))
    if frame.cancels:
        force = isinstance(frame.outcome, Cancelled) and frame.outcome.forced
        name = "force" if force else "cancel"  # a forced one is not lost behind a plain one
        cancelled = (started for n in frame.cancels if (started := child(n)) is not None)
        messages += [Message(f"{name}:{each.id}", each.id, frame.at, Cancel(force)) for each in cancelled]
    if not (starts or messages or answers) and wake is None:
        return NO_EFFECTS
    return Effects(tuple(starts), tuple(messages), tuple(answers), wake)


def _says_nothing(frame: Frame) -> bool:
    """Tell, fast, whether a frame is one of the many that hold only steps and what they returned."""
    for entry in frame.entries:
        kind = type(entry)
        if kind is Returned:
            if cast("Returned", entry).message is not None:
                return False
        elif kind not in _QUIET:
            return False
    for command in frame.commands:  # noqa: SIM110  a generator would double the cost
        if type(command) is not CallStep:
            return False
    return True
