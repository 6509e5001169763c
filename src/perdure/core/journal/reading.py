"""Decodes stored bytes, and tells those of a newer release from damage.

Journal types are never removed or repurposed, and a later release adds types with new tags. So bytes with an unknown
tag are intact: a worker of that release can read them. Any other failure is damage.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast, get_args

import msgspec

from perdure.core.journal.commands import Command
from perdure.core.journal.entries import Entry, Outcome
from perdure.core.journal.frames import Frame
from perdure.core.journal.requests import Message, Request
from perdure.core.journal.starts import Start
from perdure.errors import NewerJournal, StoreDamaged, StoreError

TAG_LENGTH_LIMIT = 64
"""Characters of the tag of a type. Longer text where a tag belongs is damage."""

_frame = msgspec.msgpack.Decoder(Frame).decode
_start = msgspec.msgpack.Decoder(Start).decode
_message = msgspec.msgpack.Decoder(Message).decode
_anything = msgspec.msgpack.Decoder().decode


def decode_frame(data: bytes, invocation_id: str = "", /) -> Frame:
    """Return a frame of an invocation's journal.

    Raises `NewerJournal` if it has an entry or a command that this release does not know, and `StoreDamaged` if it
    does not decode for any other reason.
    """
    try:
        return _frame(data)
    except msgspec.DecodeError as error:
        raw = _raw(data)
        tagged = [("entry", each, _ENTRIES) for each in _items(_item(raw, 2))]
        tagged += [("command", each, _COMMANDS) for each in _items(_item(raw, 3))]
        what = f"a frame of the journal of invocation {invocation_id!r}"
        raise _unreadable(what, invocation_id, tagged, error) from error


def decode_start(data: bytes, /) -> Start:
    """Return a start, or raise `StoreDamaged`."""
    try:
        return _start(data)
    except msgspec.DecodeError as error:
        raise _unreadable("the start of an invocation", "", [], error) from error


def decode_message(data: bytes, /) -> Message:
    """Return a message; raise `NewerJournal` for a request that this release does not know, else `StoreDamaged`."""
    try:
        return _message(data)
    except msgspec.DecodeError as error:
        raw = _raw(data)
        to, request = _item(raw, 1), _item(raw, 3)
        tagged = [("request", request, _REQUESTS), ("outcome", _item(request, 4), _OUTCOMES)]
        id = to if isinstance(to, str) else ""
        raise _unreadable(f"a message to invocation {id!r}", id, tagged, error) from error


# --- what is in the way -----------------------------------------------------------------------------------------------
def _tags(union: Any) -> frozenset[str]:
    return frozenset(kind.__struct_config__.tag for kind in get_args(union))


_ENTRIES, _COMMANDS, _REQUESTS, _OUTCOMES = map(_tags, (Entry, Command, Request, Outcome))

_Tagged = tuple[str, object, frozenset[str]]
"""An object of a tagged union: its name in texts, the object, and the tags that this release knows."""


def _raw(data: bytes) -> object:
    try:
        return _anything(data)
    except msgspec.DecodeError:
        return None


def _items(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _item(value: object, index: int) -> object:
    return next(iter(_items(value)[index : index + 1]), None)


def _unreadable(what: str, invocation_id: str, tagged: Iterable[_Tagged], error: Exception) -> StoreError:
    for kind, value, known in tagged:
        tag = _item(value, 0)
        if isinstance(tag, str) and tag not in known and tag.isprintable() and 0 < len(tag) <= TAG_LENGTH_LIMIT:
            return NewerJournal.of(kind, tag, invocation_id)
    return StoreDamaged(f"{what} does not decode ({error}): restore the store from a backup")
