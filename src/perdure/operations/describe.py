"""Describes invocations for `describe` and `list`, from their index rows and journals alone.

Values are decoded without the code that wrote them, to builtin types; one that cannot be is named with its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, assert_never, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.core.failures import Failure
from perdure.core.generations import current, retry_in
from perdure.core.ids import awakeable_id
from perdure.core.journal import (
    Answering,
    Asked,
    Attempted,
    CallChild,
    CallStep,
    Cancelled,
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
    Keep,
    MarkPatch,
    Message,
    OpenAwakeable,
    Paused,
    Raised,
    Reject,
    Released,
    Resolve,
    Resumed,
    RetryInvocation,
    Returned,
    SendStart,
    SetTimer,
    Start,
    Status,
    step_type,
)
from perdure.core.lifecycle import SETTLED
from perdure.core.schema import Schema, decode_schema
from perdure.core.signature import POSITIONAL
from perdure.core.types import decoder
from perdure.errors import Undecodable
from perdure.stores.awakeables import Awakeable, is_open
from perdure.stores.port import Row

WAITS_LIMIT = 5
"""Commands that `waiting_for` names; the others are counted."""
SCHEMAS_LIMIT = 1_000
"""Schemas of answers that are remembered, decoded."""

_decode = decoder(Any)


class JournalStep(Struct, frozen=True):
    """One command of an invocation and what became of it. Times are in UTC.

    `attempts` counts the failed ones so far, and `error` is the last of them, while the step is tried again. `due` is
    when its next attempt begins, or a timer fires. `invocation_id` is what a child or send started. A step's
    `started_at` is when its first attempt began, once one has ended; `took` is how long its last attempt ran, in
    seconds.
    """

    number: int
    step_type: str
    status: str  # "pending", "completed", "failed" or "cancelled"
    started_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: int = 0
    result: Any = None
    error: str | None = None
    due: datetime | None = None
    invocation_id: str | None = None
    took: float | None = None


class AwakeableInfo(Struct, frozen=True):
    """An awakeable of an invocation. One that is `resolved` takes no answer: it has one, or nothing waits for it.

    `schema` is the type of its answer, if that is known.
    """

    id: str
    resolved: bool
    created_at: datetime
    invocation_id: str = ""
    handler: str = ""
    title: str | None = None
    description: str | None = None
    assignees: tuple[str, ...] = ()
    expires_at: datetime | None = None
    schema: Schema | None = None


class Invocation(Struct, frozen=True):
    """An invocation, as the index knows it; `describe` fills in the rest from its journal.

    `waiting_for` lists what it waits for, as text. `result` is in builtin types. `epoch` counts claims, `retries`
    retries. `started_at` is when a worker first accepted it, `ended_at` when it settled, `deadline` the end of its time
    limit. `mail` lists messages that are not yet applied or refused, oldest first. `interface` is the hash of what its
    handler took and returned, as the caller of the start knew it.

    It has waited since `waiting_since`; the wait ends at `waiting_until`, if time ends it. `attempt` is the number of
    the next attempt of a step that is tried again, or of the one that runs; 0 if none is. One that is `gone` was
    purged, and has nothing but its id. `streams` tells how many items each of its streams has.
    """

    id: str
    handler: str
    status: Status
    key: str | None = None
    tags: Mapping[str, str] = {}
    created_at: datetime | None = None
    updated_at: datetime | None = None
    due: datetime | None = None
    waiting_for: str | None = None
    waiting_since: datetime | None = None
    waiting_until: datetime | None = None
    attempt: int = 0
    gone: bool = False
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
    started_at: datetime | None = None
    ended_at: datetime | None = None
    deadline: datetime | None = None
    retries: int = 0
    parent_id: str | None = None
    traceback: str | None = None
    mail: tuple[str, ...] = ()
    interface: str | None = None
    streams: Mapping[str, int] = {}


def from_row(row: Row) -> Invocation:
    """Return what the index knows."""
    if row.gone:
        return Invocation(row.id, row.handler, row.status, gone=True)
    times = (_time(row.created_at), _time(row.updated_at), _time(row.due))
    return Invocation(row.id, row.handler, row.status, row.key, dict(row.tags), *times, *_wait_of(row))


def _wait_of(row: Row) -> tuple[str | None, datetime | None, datetime | None, int]:
    """Return what the index knows of what an invocation waits for: what, since when, until when, in which attempt."""
    if row.status in SETTLED:
        return None, None, None, 0
    if row.status == "paused":
        return "resume", _time(row.updated_at), None, 0
    if row.status == "scheduled":
        return f"its time, {_text_of(row.due)}", _time(row.created_at), _time(row.due), 0
    if row.status == "pending":
        return "a worker" if row.key is None else f"key {row.key!r}, or a worker", _time(row.updated_at), None, 0
    if (wait := row.wait) is None:
        return None, None, None, 0
    until = None if wait.due is None else _time(wait.due)
    text = _waits_text(wait.what, until, again=wait.attempt > 0) + (f", {wait.more} more" if wait.more else "")
    return text, _time(wait.since), until, wait.attempt


def from_journal(
    row: Row,
    start: Start,
    frames: Sequence[Frame],
    mail: Sequence[Message],
    secret: bytes,
    *,
    served: bool | None,
    key_holder: str | None = None,
) -> Invocation:
    """Return what the index and the journal know.

    `served`: a worker here serves the handler. `key_holder` is the holder of its key, if it has one.
    """
    steps: dict[int, JournalStep] = {}
    awakeables: dict[int, AwakeableInfo] = {}
    state: dict[str, Any] = {}
    known: dict[str, Any] = {}
    generation, begun_at = 0, start.due
    stuck_at: str | None = None
    for frame in current(frames):
        if (retried := retry_in(frame)) is not None:
            generation, begun_at = retried.generation, retried.at
        for command in frame.commands:  # commands first: an entry may answer a command of its own frame
            if isinstance(command, OpenAwakeable):
                if command.n not in awakeables:  # a retry opens the same one again
                    id = awakeable_id(start.id, generation, command.n, secret)
                    awakeables[command.n] = _awakeable(id, start, command.asked, frame.at)
            steps[command.n] = _begun(command, frame.at, awakeables.get(command.n))
        for entry in frame.entries:
            if isinstance(entry, (Returned, Raised, Fired, Interrupted, Attempted)):
                if entry.n in steps:
                    steps[entry.n] = _ended(steps[entry.n], entry)
                if entry.n in awakeables:
                    awakeables[entry.n] = replace(awakeables[entry.n], resolved=True)
            elif isinstance(entry, Released):
                stuck_at = entry.stuck_at
            elif isinstance(entry, Granted):
                state.clear()
                _change(state, entry.state)
            else:
                known.update(_fact(entry))
        _change(state, frame.state)
    open_steps = [step for step in steps.values() if step.status == "pending"]
    return replace(
        from_row(row),
        input=input_of(start.input),
        journal=tuple(steps.values()),
        current_step=open_steps[0] if open_steps and row.status not in SETTLED else None,
        state=state,
        awakeables=tuple(_expiring(each, steps.get(n + 1)) for n, each in awakeables.items()),
        waiting_for=_waiting_for(
            *(row, open_steps, known.get("paused_because"), served, key_holder, stuck_at),
            retried=any(isinstance(message.request, RetryInvocation) for message in mail),
        ),
        started_at=_began(frames, steps.values()),
        deadline=None if start.timeout is None else _time(begun_at + start.timeout),
        retries=generation,
        parent_id=None if start.parent is None else start.parent.id,
        mail=tuple(map(_verb, mail)),
        interface=start.interface.hex() or None,
        **known,
    )


def _awakeable(id: str, start: Start, asked: Asked, at: float) -> AwakeableInfo:
    return AwakeableInfo(id, False, _time(at), start.id, start.handler, *_told(asked))


def _expiring(awakeable: AwakeableInfo, timer: JournalStep | None) -> AwakeableInfo:
    """Return an awakeable with the time of its timer, which is the next command, and which a retry sets anew."""
    if awakeable.expires_at is None or timer is None or timer.due is None:
        return awakeable
    return replace(awakeable, expires_at=timer.due)


def _told(asked: Asked) -> tuple[str | None, str | None, tuple[str, ...], datetime | None, Schema | None]:
    expires_at = None if asked.expires_at is None else _time(asked.expires_at)
    return asked.title, asked.description, asked.assignees, expires_at, _schema(asked.schema)


@lru_cache(maxsize=SCHEMAS_LIMIT)
def _schema(data: bytes) -> Schema | None:
    """Decode the schema of an answer; None if there is none, or a newer release wrote it."""
    try:
        return decode_schema(data) if data else None
    except msgspec.MsgspecError:
        return None


def from_index(awakeable: Awakeable, secret: bytes, now: float) -> AwakeableInfo:
    """Return what the index knows of an awakeable."""
    id = awakeable_id(awakeable.invocation, awakeable.generation, awakeable.n, secret)
    place = (awakeable.invocation, awakeable.handler)
    return AwakeableInfo(id, not is_open(awakeable, now), _time(awakeable.at), *place, *_told(awakeable.asked))


def _change(state: dict[str, Any], changes: Mapping[str, bytes | None]) -> None:
    for name, data in changes.items():
        if data is None:
            state.pop(name, None)
        else:
            state[name] = _value(data)


def _began(frames: Sequence[Frame], steps: Iterable[JournalStep]) -> datetime | None:
    """Return when a worker began with it: its first steps may have begun before the claim was committed."""
    claims = (_time(entry.at) for frame in frames for entry in frame.entries if isinstance(entry, Claimed))
    claimed = next(claims, None)
    return claimed and min([claimed, *(step.started_at for step in steps if step.started_at is not None)])


def _verb(message: Message) -> str:
    match message.request:
        case RetryInvocation():
            return "retry"
        case Resolve(n=n) | Reject(n=n):
            return f"{type(message.request).__name__.lower()} #{n}"
        case other:
            return type(other).__name__.lower()


def _waiting_for(
    row: Row,
    open_steps: Sequence[JournalStep],
    paused: str | None,
    served: bool | None,
    key_holder: str | None,
    stuck_at: str | None,
    *,
    retried: bool,
) -> str | None:
    key = f"key {row.key!r}, which invocation {key_holder} holds"
    is_held = key_holder not in (None, row.id)
    if row.status == "failed" and retried and is_held:
        return f"{key}, to be retried"
    if row.status in SETTLED:
        return None
    if row.status == "paused":
        return f"resume ({paused})" if paused else "resume"
    if row.status == "scheduled":
        return f"its time, {_text_of(row.due)}"
    if row.status == "pending" and is_held:
        return key
    if row.status == "pending":
        if served is None:
            return f"a worker that serves workflow {row.handler!r}, or a free slot of it"
        return "a free slot of a worker" if served else f"a worker that serves workflow {row.handler!r}"
    if stuck_at is not None:
        return f"something that nothing can bring: its body waits at {stuck_at}"
    more = len(open_steps) - WAITS_LIMIT
    waits = [_wait(step) for step in open_steps[:WAITS_LIMIT]] + ([f"{more} more"] if more > 0 else [])
    return ", ".join(waits) or None


def _wait(step: JournalStep) -> str:
    return _waits_text(step.step_type, step.due, again=step.attempts > 0)


def _waits_text(what: str, until: datetime | None, *, again: bool) -> str:
    if until is None:
        return what
    return f"{what} {'again at' if again else 'until'} {until.isoformat(timespec='seconds')}"


def _begun(command: Command, at: float, awakeable: AwakeableInfo | None) -> JournalStep:
    kind = step_type(command)
    match command:
        case CallStep(n=n):
            return JournalStep(n, kind, "pending", _time(at))
        case SetTimer(n=n, due=due):
            return JournalStep(n, kind, "pending", _time(at), due=_time(due))
        case CallChild(n=n, start=child):
            return JournalStep(n, kind, "pending", _time(at), invocation_id=child.id)
        case SendStart(n=n, start=sent):
            return JournalStep(n, kind, "completed", _time(at), _time(at), invocation_id=sent.id)
        case OpenAwakeable(n=n):
            return JournalStep(n, f"{kind}:{awakeable.id if awakeable else ''}", "pending", _time(at))
        case MarkPatch(n=n) | Keep(n=n):
            return JournalStep(n, kind, "completed", _time(at), _time(at))
        case _:
            assert_never(command)


def _ended(step: JournalStep, entry: Answering) -> JournalStep:
    at = _time(entry.at)
    if not isinstance(entry, Fired) and entry.took is not None:
        began = step.started_at if step.attempts else _time(entry.at - entry.took)
        step = replace(step, started_at=began, took=entry.took)
    match entry:
        case Returned(value=value):
            return replace(step, status="completed", ended_at=at, result=_value(value), error=None, due=None)
        case Raised(failure=failure):
            return replace(step, status="failed", ended_at=at, error=_text(failure), due=None)
        case Attempted(attempt=attempt, failure=failure, due=due):
            return replace(step, attempts=attempt, error=_text(failure), due=_time(due))
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
        case Completed(at=at, value=value):
            return {"result": _value(value), "ended_at": _time(at)}
        case Failed(at=at, failure=failure):
            return {"error": _text(failure), "traceback": failure.traceback or None, "ended_at": _time(at)}
        case Cancelled(at=at):
            return {"ended_at": _time(at)}
        case _:
            return {}


def _text(failure: Failure) -> str:
    return f"{failure.type}: {failure.message}"


def _value(data: bytes) -> Any:
    try:
        return _decode(data)
    except Undecodable:
        return f"<{len(data):,} bytes that do not decode>"


def input_of(data: bytes) -> Mapping[str, Any]:
    """Return an input by name. What its recorder gave no names is under `*`."""
    found = dict(_mapping(_value(data)))
    if not found.get(POSITIONAL, True):
        del found[POSITIONAL]
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {"": value}


def _text_of(at: float) -> str:
    return _time(at).isoformat(timespec="seconds")


def _time(at: float) -> datetime:
    try:
        return datetime.fromtimestamp(at, UTC)
    except (OverflowError, OSError, ValueError):  # a release before took any number; NaN for what no clock says
        return datetime.max.replace(tzinfo=UTC) if at > 0 else datetime.min.replace(tzinfo=UTC)
