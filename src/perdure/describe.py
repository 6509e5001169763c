"""What `describe` and `list` give: an invocation as people see it, read from its journal and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, assert_never

from msgspec import Struct
from msgspec.structs import replace

from perdure.core.codec import decoder
from perdure.core.generations import current, retry_in
from perdure.core.ids import awakeable_id
from perdure.core.journal import (
    Answering,
    Attempted,
    CallChild,
    CallStep,
    CancelRequested,
    Claimed,
    Command,
    Completed,
    Entry,
    Failed,
    Fired,
    Frame,
    Granted,
    Interrupted,
    MarkPatch,
    OpenAwakeable,
    Paused,
    Raised,
    Resumed,
    Returned,
    SendStart,
    SetTimer,
    Start,
    Status,
)
from perdure.core.lifecycle import SETTLED
from perdure.stores.store import Row

_builtin = decoder(Any)


class JournalStep(Struct, frozen=True):
    """One command of an invocation and what became of it. Times are in UTC; `attempts` counts failed ones so far."""

    number: int
    step_type: str
    status: str  # "pending", "completed", "failed" or "cancelled"
    started_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: int = 0
    result: Any = None
    error: str | None = None


class AwakeableInfo(Struct, frozen=True):
    """An awakeable of an invocation."""

    id: str
    resolved: bool
    created_at: datetime


class Invocation(Struct, frozen=True):
    """An invocation, as the index knows it; `describe` fills in the rest from its journal.

    `waiting_for` says in words what it waits for. `result` is in builtin types. `epoch` counts the workers that ran it.
    """

    id: str
    handler: str
    status: Status
    key: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    due: datetime | None = None
    waiting_for: str | None = None
    input: Mapping[str, Any] = {}
    journal: tuple[JournalStep, ...] = ()
    current_step: JournalStep | None = None
    state: Mapping[str, Any] = {}
    awakeables: tuple[AwakeableInfo, ...] = ()
    result: Any = None
    error: str | None = None
    cancel_requested_at: datetime | None = None
    paused_because: str | None = None
    epoch: int = 0
    worker: str | None = None


def from_row(row: Row) -> Invocation:
    """Return what the index knows."""
    return Invocation(
        row.id, row.handler, row.status, row.key, _time(row.created_at), _time(row.updated_at), _time(row.due)
    )


def from_journal(
    row: Row, start: Start, frames: Sequence[Frame], secret: bytes, *, served: bool, key_holder: str | None = None
) -> Invocation:
    """Return what the index and the journal know.

    `served` says whether a worker here serves the handler, `key_holder` who holds its key, if it has one.
    """
    steps: dict[int, JournalStep] = {}
    awakeables: dict[int, AwakeableInfo] = {}
    state: dict[str, Any] = {}
    known: dict[str, Any] = {}
    generation = 0
    for frame in current(frames):
        if (retried := retry_in(frame)) is not None:
            generation = retried.generation
        for command in frame.commands:  # first, as an entry may answer a command of its own frame
            if isinstance(command, OpenAwakeable):
                if command.n not in awakeables:  # a retry opens the same one again
                    id = awakeable_id(start.id, generation, command.n, secret)
                    awakeables[command.n] = AwakeableInfo(id, resolved=False, created_at=_time(frame.at))
            steps[command.n] = _begun(command, frame.at, awakeables.get(command.n))
        for entry in frame.entries:
            if isinstance(entry, (Returned, Raised, Fired, Interrupted, Attempted)):
                if entry.n in steps:
                    steps[entry.n] = _ended(steps[entry.n], entry)
                if entry.n in awakeables:
                    awakeables[entry.n] = replace(awakeables[entry.n], resolved=True)
            elif isinstance(entry, Granted):
                state.clear()
                _change(state, entry.state)
            else:
                known.update(_fact(entry))
        _change(state, frame.state)
    open_steps = [step for step in steps.values() if step.status == "pending"]
    return replace(
        from_row(row),
        input=_builtin(start.input),
        journal=tuple(steps.values()),
        current_step=open_steps[0] if open_steps and row.status not in SETTLED else None,
        state=state,
        awakeables=tuple(awakeables.values()),
        waiting_for=_waiting_for(row, open_steps, known.get("paused_because"), served, key_holder),
        **known,
    )


def _change(state: dict[str, Any], changes: Mapping[str, bytes | None]) -> None:
    for name, data in changes.items():
        if data is None:
            state.pop(name, None)
        else:
            state[name] = _builtin(data)


def _waiting_for(
    row: Row, open_steps: Sequence[JournalStep], paused: str | None, served: bool, key_holder: str | None
) -> str | None:
    if row.status in SETTLED:
        return None
    if row.status == "paused":
        return f"resume ({paused})" if paused else "resume"
    if row.status == "scheduled":
        return f"its time, {_time(row.due).isoformat(timespec='seconds')}"
    if row.status == "pending" and key_holder not in (None, row.id):
        return f"key {row.key!r}, which invocation {key_holder} holds"
    if row.status == "pending":
        return "a free slot of a worker" if served else f"a worker that serves workflow {row.handler!r}"
    return ", ".join(step.step_type for step in open_steps) or None


def _begun(command: Command, at: float, awakeable: AwakeableInfo | None) -> JournalStep:
    match command:
        case CallStep(n=n, name=name):
            return JournalStep(n, name, "pending", _time(at))
        case SetTimer(n=n):
            return JournalStep(n, "SLEEP", "pending", _time(at))
        case CallChild(n=n, start=child):
            return JournalStep(n, f"CHILD:{child.handler}", "pending", _time(at))
        case SendStart(n=n, start=sent):
            return JournalStep(n, f"SEND:{sent.handler}", "completed", _time(at), _time(at))
        case OpenAwakeable(n=n):
            return JournalStep(n, f"AWAKEABLE:{awakeable.id if awakeable else ''}", "pending", _time(at))
        case MarkPatch(n=n, name=name):
            return JournalStep(n, f"PATCH:{name}", "completed", _time(at), _time(at))
        case _:
            assert_never(command)


def _ended(step: JournalStep, entry: Answering) -> JournalStep:
    at = _time(entry.at)
    match entry:
        case Returned(value=value):
            return replace(step, status="completed", ended_at=at, result=_builtin(value), error=None)
        case Raised(failure=failure):
            return replace(step, status="failed", ended_at=at, error=f"{failure.type}: {failure.message}")
        case Attempted(attempt=attempt, failure=failure):
            return replace(step, attempts=attempt, error=f"{failure.type}: {failure.message}")
        case Fired():
            return replace(step, status="completed", ended_at=at)
        case Interrupted():
            return replace(step, status="cancelled", ended_at=at)
        case _:
            assert_never(entry)


def _fact(entry: Entry) -> dict[str, Any]:
    match entry:
        case Claimed(epoch=epoch, worker=worker):
            return {"epoch": epoch, "worker": worker}
        case CancelRequested(at=at):
            return {"cancel_requested_at": _time(at)}
        case Paused(reason=reason):
            return {"paused_because": reason}
        case Resumed():
            return {"paused_because": None}
        case Completed(value=value):
            return {"result": _builtin(value)}
        case Failed(failure=failure):
            return {"error": f"{failure.type}: {failure.message}"}
        case _:
            return {}


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
