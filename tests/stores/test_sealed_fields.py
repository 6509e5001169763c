"""Each field of each type that crosses to a store is sealed, or is on the list of those that are plain on purpose."""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast, get_args

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct
from msgspec.structs import asdict, replace

from perdure.core.effects import Effects, Enlist, Release
from perdure.core.failures import Failure, failure_of
from perdure.core.journal import (
    Answer,
    Asked,
    CallStep,
    Command,
    Completed,
    Entry,
    Frame,
    Join,
    Message,
    OpenAwakeable,
    Request,
    Resolve,
    Returned,
    Start,
)
from perdure.core.streams import Batch
from perdure.encryption import Encrypted
from perdure.errors import InvalidOption, KeyMissing, Tampered, Unsealed
from perdure.stores.awakeables import Awakeable
from perdure.stores.port import Key
from perdure.stores.sealed.fields import DigestKey, Opening, Sealing, Showing
from perdure.stores.sealed.walk import (
    awakeable_with,
    batch_with,
    effects_with,
    frame_with,
    key_with,
    message_with,
    outcome_with,
    start_with,
)
from perdure.testing.contract.shared import requests, samples

CODEC = Encrypted({"new": b"n" * 32, "old": b"o" * 32})
DIGEST_KEY = DigestKey(b"name", b"d" * 32)
STORE = b"s" * 16
SEALING = Sealing(CODEC, STORE, DIGEST_KEY)
OPENING = Opening(CODEC, STORE, DIGEST_KEY, time.time)
KEYLESS = Opening(None, STORE, None, time.time)

START = Start(
    "child", "handler", b"\x81\xa1a\xa3low", 1.0, 1.5, 7, "key", 9.0, None, True, ("held",), b"digest00", trace="t"
)
BATCH = Batch("stream", 3, 2, b"\x92\xc4\x01a\xc4\x01b", 2)
PLAIN = {
    *("Start.id", "Start.handler", "Start.key", "Start.held", "Start.sender", "Start.tags"),
    *("Start.interface", "Start.flow", "Start.trace", "Message.trace", "Start.when_busy", "Busy.holder"),
    *("Parent.id", "Claimed.worker", "Claimed.python", "Claimed.hash_seed", "Released.stuck_at"),
    *("Returned.message", "Raised.message", "CancelRequested.message", "Paused.message", "Resumed.message"),
    *("Refused.message", "Joined.message", "Retried.message", "Cancelled.message", "Answer.message"),
    *("CallStep.name", "MarkPatch.name", "Asked.assignees", "Asked.schema", "Frame.writer", "Settled.child"),
    *("Message.id", "Message.to", "Awakeable.invocation", "Awakeable.handler"),
    *("Release.key", "Enlist.key", "Key.holder", "Batch.name"),
    *("Failure.module", "Failure.qualname", "Failure.script"),
}
"""Text and bytes that stores, indexes and people need: no value of a user."""


def texts_in(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield each text and each bytes in a value, with the name of its field; a failure is one."""
    if isinstance(value, Struct):
        for field, each in asdict(value).items():
            yield from texts_in(each, f"{type(value).__name__}.{field}")
    elif isinstance(value, (list, tuple)):
        for each in cast("list[object]", value):
            yield from texts_in(each, name)
    elif isinstance(value, dict):
        for key, each in cast("dict[object, object]", value).items():
            yield from texts_in([key, each], name)
    elif isinstance(value, (str, bytes)) and value:
        yield name, value


def everything() -> Frame:
    """Return a frame with an entry and a command of each type."""
    entries, commands = samples(START)
    commands = [each for each in commands if not isinstance(each, (CallStep, OpenAwakeable))]
    commands += [
        CallStep(0, "step", b"digest00", b"check"),
        OpenAwakeable(4, Asked("title", "more", ("ann",), 9.0, b"schema")),
    ]
    assert {type(each) for each in commands} == {*get_args(Command)}
    assert {type(each) for each in entries} == {*get_args(Entry)}
    return Frame("w", 2.5, entries, commands, {"name": b"\xa5value", "gone": None}, [4], [BATCH])


def crossing() -> list[tuple[Struct, Struct, Struct]]:
    """Return one of everything that crosses: as it is, sealed, and opened again."""
    frame = everything()
    sealed = frame_with(SEALING, "i", frame)
    found: list[tuple[Struct, Struct, Struct]] = [(frame, sealed, frame_with(OPENING, "i", sealed))]
    for request in requests():
        request = Join(START) if isinstance(request, Join) else request
        message = Message(f"m-{type(request).__name__}", "i", 1.0, request, "t")
        sealed = message_with(SEALING, message)
        found.append((message, sealed, message_with(OPENING, sealed)))
    awakeable = Awakeable("i", "handler", 1, 4, 2.5, Asked("title", "more", ("ann",), 9.0))
    sealed = awakeable_with(SEALING, awakeable)
    found.append((awakeable, sealed, awakeable_with(OPENING, sealed)))
    key = Key("i", 1, {"name": b"\xa5value"}, 3)
    sealed = key_with(SEALING, "key", key)
    found.append((key, sealed, key_with(OPENING, "key", sealed)))
    effects = Effects(
        (START,),
        (Message("m", "i", 1.0, Resolve(1, b"\xa1v")),),
        (Answer("m", "why not"),),
        2.0,
        Release("key", 1, {"name": b"\xa5value"}),
        Enlist("key", 1),
        (BATCH,),
    )
    sealed = effects_with(SEALING, "i", effects)
    found.append((effects, sealed, effects_with(OPENING, "i", sealed)))
    sealed = batch_with(SEALING, "i", BATCH)
    found.append((BATCH, sealed, batch_with(OPENING, "i", sealed)))
    return found


def test_each_field_is_sealed_or_plain_on_purpose_and_comes_back_as_it_was() -> None:
    left = set[str]()
    for plain, sealed, opened in crossing():
        if isinstance(plain, Effects):  # answers are opened where they are awaited
            opened = replace(opened, answers=plain.answers)
        assert opened == plain
        before = {(name, text) for name, text in texts_in(plain) if isinstance(text, (str, bytes))}
        after = {(name, text) for name, text in texts_in(sealed)}
        left |= {name for name, _ in before & after}
    assert left <= PLAIN, left - PLAIN


def test_every_request_is_tried() -> None:
    tried = {type(plain.request) for plain, _, _ in crossing() if isinstance(plain, Message)}
    assert tried == {*get_args(Request)}


def test_an_outcome_opens_from_the_journal_and_by_itself() -> None:
    outcome = Completed(2.0, b"\xa5value")
    sealed = frame_with(SEALING, "i", Frame("w", 2.0, [outcome]))
    assert sealed.outcome is not None
    assert outcome_with(OPENING, "i", sealed.outcome) == outcome


SEALED = frame_with(SEALING, "i", Frame("w", 2.0, [Returned(1, 2.0, b"\xa1v")]))
VALUE = msgspec.convert(SEALED.entries[0], Returned)
MESSAGE = message_with(SEALING, Message("m", "i", 1.0, Resolve(1, b"\xa1v")))


@pytest.mark.parametrize(
    "opened",
    [
        lambda: frame_with(OPENING, "another invocation", SEALED),
        lambda: frame_with(OPENING, "i", replace(SEALED, entries=[replace(VALUE, n=2)])),
        lambda: frame_with(OPENING, "i", replace(SEALED, entries=[replace(VALUE, at=3.0)])),
        lambda: frame_with(OPENING, "i", replace(SEALED, entries=[Completed(2.0, VALUE.value)])),
        lambda: message_with(OPENING, replace(MESSAGE, id="n")),
        lambda: message_with(OPENING, replace(MESSAGE, to="j")),
        lambda: start_with(OPENING, replace(start_with(SEALING, START), id="other")),
        lambda: batch_with(OPENING, "j", batch_with(SEALING, "i", BATCH)),
        lambda: batch_with(OPENING, "i", replace(batch_with(SEALING, "i", BATCH), name="other")),
        lambda: batch_with(OPENING, "i", replace(batch_with(SEALING, "i", BATCH), step=7)),
        lambda: batch_with(OPENING, "i", replace(batch_with(SEALING, "i", BATCH), first=0)),
    ],
)
def test_a_value_put_into_another_place_does_not_open(opened: Callable[[], object]) -> None:
    with pytest.raises(Tampered, match="changed, or comes from another place"):
        opened()


def test_a_value_of_another_store_does_not_open() -> None:
    sealed = start_with(SEALING, START)
    with pytest.raises(Tampered):
        start_with(Opening(CODEC, b"t" * 16, DIGEST_KEY, time.time), sealed)


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 5, 8, 12, 20, -1])
def test_a_value_that_was_cut_or_changed_is_named(cut: int) -> None:
    value = SEALING.value(b"\xa1v", b"i/x", b"place")
    for data in (value[: len(value) if cut == 0 else cut], value[:cut] + bytes([value[cut] ^ 1]) + value[cut:][1:]):
        if data == value:
            continue
        with pytest.raises((Tampered, KeyMissing, Unsealed), match="invocation 'x'"):
            OPENING.value(data, b"i/x", b"place")


def test_the_digest_of_a_start_is_keyed_the_same_for_equal_starts_and_may_not_be_changed() -> None:
    sealed, again = start_with(SEALING, START), start_with(SEALING, replace(START, at=2.0, seed=9))
    assert sealed.digest == again.digest != START.digest
    assert sealed.digest == b"name" + hmac.digest(DIGEST_KEY.key, b"\1" + START.digest, "sha256")[:16]
    assert sealed.input != again.input
    assert start_with(SEALING, start_with(OPENING, sealed)).digest == sealed.digest  # not keyed twice
    without = replace(START, digest=b"")
    assert start_with(SEALING, without).digest == start_with(SEALING, without).digest != sealed.digest
    with pytest.raises(Tampered, match="digest"):
        start_with(OPENING, replace(sealed, digest=b"name" + bytes(16)))


def test_keys_are_told_by_name_and_the_first_seals() -> None:
    old = Sealing(Encrypted({"old": b"o" * 32}), STORE, DIGEST_KEY)
    assert start_with(OPENING, start_with(old, START)) == START
    only_old = Opening(Encrypted({"old": b"o" * 32}), STORE, DIGEST_KEY, time.time)
    with pytest.raises(KeyMissing, match="invocation 'child' is sealed under key 'new'") as raised:
        start_with(only_old, start_with(SEALING, START))
    assert raised.value.key == "new"
    another = Opening(Encrypted({"new": b"x" * 32}), STORE, DIGEST_KEY, time.time)
    with pytest.raises(Tampered):
        start_with(another, start_with(SEALING, START))


def test_plain_values_are_refused_unless_they_are_allowed_for_a_time() -> None:
    with pytest.raises(Unsealed, match="allow_plain_until"):
        start_with(OPENING, START)
    for plain in (everything(), Frame("w", 1.0, [], [], {"a": b"\x01"})):
        with pytest.raises(Unsealed):
            frame_with(OPENING, "i", plain)
    until = datetime.now(UTC) + timedelta(hours=1)
    codec = Encrypted({"new": b"n" * 32}, allow_plain_until=until)
    lenient = Opening(codec, STORE, DIGEST_KEY, time.time)
    assert start_with(lenient, START) == START
    assert frame_with(lenient, "i", everything()) == everything()
    over = Opening(codec, STORE, DIGEST_KEY, lambda: until.timestamp() + 1)
    with pytest.raises(Unsealed):
        start_with(over, START)


def test_without_keys_sealed_values_are_shown_as_sealed_and_nothing_can_be_sealed() -> None:
    shown = frame_with(Showing(KEYLESS), "i", frame_with(SEALING, "i", everything()))
    texts = str([text for _, text in texts_in(shown)])
    assert "sealed" in texts
    for value in ("value", "wrong", "why\\nnot", "low", "title", "more"):
        assert value not in texts
    with pytest.raises(KeyMissing, match="PERDURE_KEYS_FILE"):
        start_with(KEYLESS, start_with(SEALING, START))
    with pytest.raises(KeyMissing, match="no keys"):
        start_with(Sealing(None, STORE, None), START)


def test_a_failure_keeps_only_its_class() -> None:
    failure = failure_of(ValueError("wrong", 3))
    sealed = SEALING.failure(failure, b"i/x", b"place")
    assert (sealed.type, sealed.message, sealed.traceback) == ("ValueError", "sealed", "")
    assert OPENING.failure(sealed, b"i/x", b"place") == failure
    assert isinstance(Showing(KEYLESS).failure(sealed, b"i/x", b"place"), Failure)


def test_it_is_aes_256_gcm_under_a_key_derived_by_hkdf() -> None:
    key = os.urandom(32)
    data = Encrypted({"k": key}).encode(b"plain", b"scope", b"place")
    derived = HKDF(SHA256(), 32, b"perdure", b"scope").derive(key)
    assert AESGCM(derived).decrypt(data[:12], data[12:], b"place") == b"plain"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({}, "at least one key"),
        ({"k": b"short"}, "has 5 bytes, not 32"),
        ({"k": b"x" * 33}, "has 33 bytes, not 32"),
        ({"k": "x" * 32}, "is str, not bytes"),
        ({"": b"x" * 32}, "no name of a key"),
        ({"a b": b"x" * 32}, "no name of a key"),
        ({"n" * 65: b"x" * 32}, "no name of a key"),
        ({1: b"x" * 32}, "no name of a key"),
        (b"x" * 32, "give a mapping"),
        ([("k", b"x" * 32)], "give a mapping"),
    ],
)
def test_keys_that_are_none_are_refused_without_showing_them(keys: Any, text: str) -> None:
    with pytest.raises(InvalidOption, match=text) as raised:
        Encrypted(keys)
    assert "xxxx" not in str(raised.value)
    assert "short" not in str(raised.value)


def test_what_is_no_time_with_a_zone_is_refused_and_keys_are_not_shown() -> None:
    for until in (datetime(2026, 1, 1), 5, "2026-01-01"):  # noqa: DTZ001  that is what is refused
        with pytest.raises(InvalidOption, match="time zone"):
            Encrypted({"k": b"x" * 32}, allow_plain_until=until)  # pyright: ignore[reportArgumentType]
    assert repr(Encrypted({"k": b"x" * 32})) == "Encrypted(keys 'k')"
