"""Which fields are sealed, and where each is: one walk, for sealing and for opening.

Sealed are fields that hold or derive from users' values. Plain are ids, handlers, keys, tags, statuses, times, numbers,
names of steps, patches and assignees, and where a body waits in its code. A test walks the types and fails for a field
that is in neither list.

A place is the kind of a field with what tells it from others of its scope: the number of its command and its time, or
the id of its message. It is not the position in the journal, since a retry copies entries, and whoever opens an outcome
has nothing but that.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from perdure.core.busy import is_of_the_store
from perdure.core.effects import NO_EFFECTS, Effects, Release
from perdure.core.journal import (
    Accepted,
    Answer,
    Asked,
    Attempted,
    CallChild,
    CallStep,
    Command,
    Completed,
    Entry,
    Failed,
    Frame,
    Granted,
    Join,
    Keep,
    Message,
    OpenAwakeable,
    Outcome,
    Paused,
    Raised,
    Refused,
    Reject,
    Resolve,
    Returned,
    SendStart,
    Settled,
    Start,
)
from perdure.core.streams import Batch
from perdure.stores.awakeables import Awakeable
from perdure.stores.port import Key
from perdure.stores.sealed.fields import Fields

_pack_time = struct.Struct("<d").pack

_INPUT = b"input"
_KEY_STATE = b"state of a key"


def scope_of(id: str) -> bytes:
    """Return the scope of an invocation."""
    return b"i/" + id.encode()


def _place(kind: bytes, n: int, at: float) -> bytes:
    return b"%b %d %b" % (kind, n, _pack_time(at))


# --- starts and messages ----------------------------------------------------------------------------------------------
def start_with(fields: Fields, start: Start) -> Start:
    """Walk a start, which is sealed in the same way wherever it is: queued, accepted, in the journal of its parent."""
    return fields.start(start, scope_of(start.id), _INPUT)


def message_with(fields: Fields, message: Message) -> Message:
    request, scope = message.request, scope_of(message.to)
    match request:
        case Resolve(n=n, value=value):
            place = b"resolve %d %b" % (n, message.id.encode())
            request = replace(request, value=fields.value(value, scope, place))
        case Reject(n=n, reason=reason):
            place = b"reject %d %b" % (n, message.id.encode())
            request = replace(request, reason=fields.text(reason, scope, place))
        case Settled(outcome=outcome):
            place = b"settled " + message.id.encode()
            request = replace(request, outcome=_outcome(fields, scope, place, outcome))
        case Join(start=start):
            request = Join(start_with(fields, start))
        case _:
            return message
    return replace(message, request=request)


def answer_with(fields: Fields, answer: Answer) -> Answer:
    if answer.refused is None:
        return answer
    return Answer(answer.message, fields.text(answer.refused, b"m/" + answer.message.encode(), b"refused"))


# --- journals ---------------------------------------------------------------------------------------------------------
def frame_with(fields: Fields, id: str, frame: Frame) -> Frame:
    scope = scope_of(id)
    entries = [
        entry if (change := _ENTRIES.get(type(entry))) is None else change(fields, scope, entry)
        for entry in frame.entries
    ]
    commands = [
        command if (change := _COMMANDS.get(type(command))) is None else change(fields, scope, command, frame.at)
        for command in frame.commands
    ]
    state = fields.state(frame.state, scope, _place(b"state", 0, frame.at)) if frame.state else frame.state
    written = [batch_with(fields, id, batch) for batch in frame.written]
    return Frame(frame.writer, frame.at, entries, commands, state, frame.cancels, written)


def outcome_with(fields: Fields, id: str, outcome: Outcome) -> Outcome:
    return _outcome(fields, scope_of(id), _place(b"outcome", 0, outcome.at), outcome)


def _outcome(fields: Fields, scope: bytes, place: bytes, outcome: Outcome) -> Outcome:
    """Walk an outcome. That of a start which is turned away is made by the store itself, of ids and keys: plain."""
    if isinstance(outcome, Completed):
        return Completed(outcome.at, fields.value(outcome.value, scope, place))
    if isinstance(outcome, Failed) and not is_of_the_store(outcome.failure):
        return replace(outcome, failure=fields.failure(outcome.failure, scope, place))
    return outcome


def _accepted(fields: Fields, _: bytes, entry: Accepted) -> Entry:
    return Accepted(start_with(fields, entry.start), entry.sequence)


def _granted(fields: Fields, scope: bytes, entry: Granted) -> Entry:
    place = _place(b"granted", entry.generation, entry.at)
    return replace(entry, state=fields.state(entry.state, scope, place))


def _returned(fields: Fields, scope: bytes, entry: Returned) -> Entry:
    value = fields.value(entry.value, scope, _place(b"returned", entry.n, entry.at))
    return Returned(entry.n, entry.at, value, entry.message, entry.took)


def _failing(fields: Fields, scope: bytes, entry: Raised | Attempted) -> Entry:
    kind = b"raised" if isinstance(entry, Raised) else b"attempt %d" % entry.attempt
    return replace(entry, failure=fields.failure(entry.failure, scope, _place(kind, entry.n, entry.at)))


def _paused(fields: Fields, scope: bytes, entry: Paused) -> Entry:
    return replace(entry, reason=fields.text(entry.reason, scope, _place(b"paused", 0, entry.at)))


def _refused(fields: Fields, scope: bytes, entry: Refused) -> Entry:
    place = _place(b"refused " + entry.message.encode(), 0, entry.at)
    return replace(entry, reason=fields.text(entry.reason, scope, place))


def _ended(fields: Fields, scope: bytes, entry: Outcome) -> Entry:
    return _outcome(fields, scope, _place(b"outcome", 0, entry.at), entry)


def _step(fields: Fields, scope: bytes, command: CallStep, at: float) -> Command:
    return fields.step(command, scope, _place(b"step", command.n, at))


def _child(fields: Fields, _: bytes, command: CallChild | SendStart, __: float) -> Command:
    return replace(command, start=start_with(fields, command.start))


def _awakeable(fields: Fields, scope: bytes, command: OpenAwakeable, at: float) -> Command:
    return replace(command, asked=_asked(fields, scope, command.n, at, command.asked))


def _kept(fields: Fields, scope: bytes, command: Keep, at: float) -> Command:
    return replace(command, value=fields.value(command.value, scope, _place(b"kept", command.n, at)))


_ENTRIES: dict[type, Callable[[Fields, bytes, Any], Entry]] = {
    Accepted: _accepted,
    Granted: _granted,
    Returned: _returned,
    Raised: _failing,
    Attempted: _failing,
    Paused: _paused,
    Refused: _refused,
    Completed: _ended,
    Failed: _ended,
}
_COMMANDS: dict[type, Callable[[Fields, bytes, Any, float], Command]] = {
    CallStep: _step,
    CallChild: _child,
    SendStart: _child,
    OpenAwakeable: _awakeable,
    Keep: _kept,
}


# --- streams ----------------------------------------------------------------------------------------------------------
def batch_with(fields: Fields, id: str, batch: Batch) -> Batch:
    """Walk a batch, which is sealed in the same way in the frame of a body and in its stream."""
    step = b"body" if batch.step is None else b"%d" % batch.step
    place = b"stream %b %d %d %b" % (step, batch.attempt, batch.first, batch.name.encode())
    return replace(batch, data=fields.value(batch.data, scope_of(id), place))


# --- awakeables and keys ----------------------------------------------------------------------------------------------
def awakeable_with(fields: Fields, awakeable: Awakeable) -> Awakeable:
    """Walk an awakeable of the index, which has what its journal has: it is sealed in the same place."""
    scope = scope_of(awakeable.invocation)
    return replace(awakeable, asked=_asked(fields, scope, awakeable.n, awakeable.at, awakeable.asked))


def _asked(fields: Fields, scope: bytes, n: int, at: float, asked: Asked) -> Asked:
    title, description = asked.title, asked.description
    if title is not None:
        title = fields.text(title, scope, _place(b"title", n, at))
    if description is not None:
        description = fields.text(description, scope, _place(b"description", n, at))
    return replace(asked, title=title, description=description)


def key_with(fields: Fields, name: str, key: Key) -> Key:
    return replace(key, state=fields.state(key.state, b"k/" + name.encode(), _KEY_STATE)) if key.state else key


def _release(fields: Fields, release: Release) -> Release:
    if not release.state:
        return release
    return replace(release, state=fields.state(release.state, b"k/" + release.key.encode(), _KEY_STATE))


# --- effects ----------------------------------------------------------------------------------------------------------
def effects_with(fields: Fields, id: str, effects: Effects) -> Effects:
    if effects is NO_EFFECTS:
        return effects
    return replace(
        effects,
        written=tuple(batch_with(fields, id, each) for each in effects.written),
        starts=tuple(start_with(fields, each) for each in effects.starts),
        messages=tuple(message_with(fields, each) for each in effects.messages),
        answers=tuple(answer_with(fields, each) for each in effects.answers),
        release=None if effects.release is None else _release(fields, effects.release),
    )
