"""A retry: what it keeps of the journal of a failed invocation, and what is issued again.

Values only; `Turn.retry` runs the body to the cut and carries the retry out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from sys import maxsize

from msgspec import Struct
from msgspec.structs import replace

from perdure.core.generations import Cut, current, cut_of, joined, keep
from perdure.core.ids import derived_id, seed_of
from perdure.core.journal import (
    Answering,
    Attempted,
    CallChild,
    Command,
    Entry,
    Failed,
    Frame,
    Interrupted,
    Parent,
    Raised,
    Retried,
    SetTimer,
    Start,
    undo_of,
)
from perdure.core.pending import Pending

Boundary = tuple[int, int]
"""The first command of each later generation."""


class Plan(Struct, frozen=True):
    """Where a retry cuts. `before` are the frames to replay whole, `last` is the frame that is cut.

    `recorded` counts the commands in them; `cancelled` are the commands that the body had asked to end. `undone` is the
    last command that was a compensation, -1 if none was.
    """

    cut: Cut
    before: list[Frame]
    last: Frame
    recorded: int
    cancelled: set[int]
    undone: int = -1

    @property
    def cause(self) -> int | None:
        """The command before whose failure the cut is."""
        return self.cut.causes[0] if self.cut.causes else None


def plan(frames: Sequence[Frame], generation: int, at: float, message: str, /) -> Plan:
    """Find where to cut the journal of a failed invocation."""
    held = current(frames)
    failed = held[-1].outcome
    assert isinstance(failed, Failed)
    cut = cut_of(held, failed)
    cause = cut.causes[0] if cut.causes else None
    *before, last = joined(keep(held, Retried(at, generation, cause, maxsize, message, cut.frames, cut.entries)))
    recorded = 1 + max((command.n for frame in (*before, last) for command in frame.commands), default=-1)
    undone = [command.n for frame in held for command in frame.commands if undo_of(command) is not None]
    return Plan(cut, before, last, recorded, {n for frame in held for n in frame.cancels}, max(undone, default=-1))


def boundaries_in(frames: Iterable[Frame], /) -> list[Boundary]:
    """Return the first command of each generation of a journal."""
    retries = (entry for frame in frames for entry in frame.entries if type(entry) is Retried)
    return [(retried.issued, retried.generation) for retried in retries]


def sort(plan: Plan, issued: int, pending: Mapping[int, Pending], at: float, /) -> tuple[list[Entry], list[int]]:
    """Split what came after the cut into outcomes to keep and commands to issue again.

    A result is kept. A failure is dropped if it made the invocation fail too, or was caused by a cancellation after the
    cut. Interrupted steps run on. The time at rest does not count for timers. What failed after the body had asked it
    to end is not issued again: it ends as asked. A child that has not answered ends or is issued again likewise: its
    outcome may have come when nothing waited for it any more, and is not told again.
    """
    causes = [n for n in plan.cut.causes if n in pending]
    kept: list[Answering] = [Interrupted(n, at) for n in causes if pending[n].cancel_requested]
    again = {n for n in causes if not pending[n].cancel_requested}
    for entry in plan.cut.later:
        if not isinstance(entry, Answering) or entry.n >= issued:
            continue
        waiting = pending.get(entry.n)
        if waiting is None or entry.n in again or entry.n in causes:
            continue
        answer = _kept(plan, entry, waiting)
        if answer is not None:
            kept.append(answer)
        elif not isinstance(entry, Interrupted) or isinstance(waiting.command, CallChild):
            again.add(entry.n)
    kept = [entry for entry in kept if entry.n not in again]
    answered = again.union(entry.n for entry in kept if not isinstance(entry, Attempted))
    for n, waiting in pending.items():
        if n in answered or n >= issued:  # new code has issued the latter, at the time of the retry
            continue
        if isinstance(waiting.command, SetTimer):
            again.add(n)
        elif isinstance(waiting.command, CallChild):
            if waiting.cancel_requested:
                kept.append(Interrupted(n, at))
            else:
                again.add(n)
    return [*kept], sorted(again)


def _kept(plan: Plan, entry: Answering, waiting: Pending) -> Answering | None:
    """Return what a retry keeps of an answer that came after the cut; None if nothing."""
    if not isinstance(entry, (Raised, Interrupted)):
        return entry
    if not waiting.cancel_requested:
        return None if entry.n in plan.cancelled else entry
    if isinstance(entry, Raised) and entry.n in plan.cut.unwanted:
        return Interrupted(entry.n, entry.at)
    return entry


def issued_again(command: Command, retried: Retried, by: Start, /) -> Command:
    """Return a command as a retry of invocation `by` issues it: a timer due later, a child with a new id."""
    if isinstance(command, SetTimer):
        return replace(command, due=command.due + retried.rested)
    if isinstance(command, CallChild):
        start, n = command.start, command.n
        id = derived_id(by.id, retried.generation, n)
        parent = Parent(by.id, retried.generation, n)
        due = retried.at + max(0.0, start.due - start.at)
        again = replace(start, id=id, at=retried.at, due=due, seed=seed_of(id), parent=parent)
        return CallChild(n, again, command.undo)
    return command
