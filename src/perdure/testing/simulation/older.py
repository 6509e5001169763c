"""Journals as older releases wrote them: without the last fields of entries, commands and starts.

A field that is absent means the rule that held before there was one. So what an older release would not have written
can be left out of a journal, if it says no more than that rule; and the journal must be read, replay, be continued and
be retried as before.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec
from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from perdure.core.journal import Command, Entry, Frame, Start

_NEW = {
    "returned": ("took",),
    "raised": ("took",),
    "attempted": ("took",),
    "interrupted": ("took",),
    "released": ("stuck_at",),
    "step": ("checks",),
}
"""Fields that say only what a reader may like to know, by tag: they are left out whatever they hold."""

_decode = msgspec.msgpack.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode


class _Shape:
    """The last fields of a type, which may be left out: the default of each, and whether any value may."""

    def __init__(self, kind: type[Struct]) -> None:
        tag = kind.__struct_config__.tag
        informative = _NEW.get(tag, ()) if isinstance(tag, str) else ()
        self.optional: list[tuple[Any, bool]] = []
        self.least = 0 if tag is None else 1
        for each in fields(kind):
            if each.required:
                self.least += 1
            else:
                empty = each.default if each.default_factory is NODEFAULT else each.default_factory()
                self.optional.append(([*empty] if isinstance(empty, tuple) else empty, each.name in informative))

    def shorten(self, value: list[Any]) -> None:
        """Leave out the last fields of an encoded value that say nothing."""
        while len(value) > self.least:
            empty, always = self.optional[len(value) - self.least - 1]
            if not always and value[-1] != empty:
                return
            value.pop()


_BY_TAG = {kind.__struct_config__.tag: _Shape(kind) for union in (Entry, Command) for kind in get_args(union)}
_FRAME, _START = _Shape(Frame), _Shape(Start)
_STARTS = {"accepted": 1, "child": 2, "send": 2}
"""Where the start is in what has one."""


def as_older(data: bytes) -> bytes:
    """Return an encoded frame as an older release would have written it."""
    frame: list[Any] = _decode(data)
    for part in frame[2:4]:
        for each in part:
            if (at := _STARTS.get(each[0])) is not None:
                _START.shorten(each[at])
            if each[0] == "failed" and each[4:] == [[each[3]]]:
                each.pop()  # a cause, and no other
            _BY_TAG[each[0]].shorten(each)
    _FRAME.shorten(frame)
    return _encode(frame)
