"""A history leaves its store as text, whole, without the secret, and is read for as long as journals are."""

from __future__ import annotations

import base64

import msgspec
import pytest

from perdure.core.exported import VERSION, Exported, export, load
from perdure.core.ids import awakeable_id
from perdure.core.journal import (
    Accepted,
    CallStep,
    Claimed,
    Frame,
    OpenAwakeable,
    Retried,
    Returned,
    encode_frame,
    encode_start,
)
from perdure.errors import Undecodable
from tests.core.driver import START

FRAMES = (
    Frame("w", 1.0, [Accepted(START), Claimed(1.0, 1, "w", "3.11", "0")], [OpenAwakeable(0), CallStep(1, "a", b"1")]),
    Frame("w", 2.0, [Returned(1, 2.0, b"\xff\x00")], state={"x": b"\x01", "gone": None}),
)


def test_what_was_exported_is_read_as_it_was():
    loaded = load(export(FRAMES, START, b"secret"))
    assert (loaded.start, loaded.frames) == (START, FRAMES)
    assert loaded.awakeables == {(0, 0): awakeable_id("one", 0, 0, b"secret")}
    assert load(export((), START, b"").decode()).frames == ()
    assert (loaded.sealed_in, load(export((), START, b"", b"store")).sealed_in) == (b"", b"store")


def test_awakeables_are_named_for_every_generation():
    again = Frame("w", 3.0, [Retried(3.0, 1, 0, 1, "m", 1, 0, [0])], [OpenAwakeable(0)])
    loaded = load(export([*FRAMES, again], START, b"secret"))
    assert loaded.awakeables == {(each, 0): awakeable_id("one", each, 0, b"secret") for each in (0, 1)}


def test_people_can_read_whose_it_is():
    text = export(FRAMES, START, b"")
    assert text.startswith(b'{\n "format": "perdure history",\n "version": 1,\n "id": "one",\n "handler": "handler",\n')


def test_later_versions_and_other_texts_are_refused():
    later = Exported("perdure history", VERSION + 1, start=encode_start(START))
    with pytest.raises(Undecodable, match="upgrade"):
        load(msgspec.json.encode(later))
    for text in (b"", b"[]", b'{"format": "x", "version": 1}', msgspec.json.encode(Exported("perdure history", 1))):
        with pytest.raises(Undecodable, match="damaged, or something else"):
            load(text)


def test_a_history_of_a_newer_release_says_so():
    text = export(FRAMES, START, b"")
    frame = msgspec.msgpack.decode(encode_frame(FRAMES[0]))
    frame[2].append(["escalated", 1.5])
    later = base64.b64encode(encode_frame(FRAMES[0])), base64.b64encode(msgspec.msgpack.encode(frame))
    with pytest.raises(Undecodable, match=r"'one': this release does not know the entry 'escalated'.*upgrade"):
        load(text.replace(*later))
