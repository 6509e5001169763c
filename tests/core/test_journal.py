"""The types of the journal are the wire format: bytes that were written once must read the same for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast, get_args

import msgspec
import pytest

from perdure.core import journal
from perdure.core.failures import Failure
from perdure.core.journal import (
    STATUSES,
    Accepted,
    Answer,
    Attempted,
    Busy,
    CallChild,
    CallStep,
    Cancel,
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
    Join,
    Joined,
    Keep,
    MarkPatch,
    Message,
    OpenAwakeable,
    Parent,
    Pause,
    Paused,
    Raised,
    Refused,
    Reject,
    Released,
    Request,
    Resolve,
    Resume,
    Resumed,
    Retried,
    RetryInvocation,
    Returned,
    SendStart,
    SetTimer,
    Settled,
    Start,
    Waited,
    decode_frame,
    decode_message,
    decode_start,
    describe,
    encode_frame,
    encode_message,
    encode_start,
    known_status,
    repeats,
    settles_before_begin,
    step_type,
)
from perdure.errors import NewerJournal, StoreDamaged

encode = msgspec.msgpack.encode

START = Start("id", "handler", b"\x80", 1.5, 2.5, 7, "key", 9.0, Parent("up", 1, 3), True, ("held",))
FAILURE = Failure(
    "builtins",
    "ValueError",
    "no",
    ["no"],
    {"x": 1},
    ["note"],
    "trace",
    [],
    Failure("m", "E", "why"),
    "script",
)

# If one of these tests fails, the encoding was changed, and journals that exist cannot be read any more. Add fields at
# the end with a default, and new lines here; never change a line.
GOLDEN_COMMANDS: list[tuple[Command, str]] = [
    (CallStep(0, "name", b"12345678"), "94a47374657000a46e616d65c4083132333435363738"),
    (SetTimer(1, 2.5), "93a574696d657201cb4004000000000000"),
    (SetTimer(1, 2.5, True), "94a574696d657201cb4004000000000000c3"),
    (
        CallChild(2, START),
        (
            "93a56368696c64029ba26964a768616e646c6572c40180cb3ff8000000000000cb400400000000000007a36b6579cb40"
            "2200000000000093a275700103c391a468656c64"
        ),
    ),
    (
        SendStart(3, START),
        (
            "93a473656e64039ba26964a768616e646c6572c40180cb3ff8000000000000cb400400000000000007a36b6579cb4022"
            "00000000000093a275700103c391a468656c64"
        ),
    ),
    (OpenAwakeable(4), "92a96177616b6561626c6504"),
    (MarkPatch(5, "patch"), "93a5706174636805a57061746368"),
    (CallStep(0, "name", b"12345678", b"", 3), "96a47374657000a46e616d65c4083132333435363738c40003"),
    (Keep(6, b"value"), "93a46b65657006c40576616c7565"),
]
GOLDEN_ENTRIES: list[tuple[Entry, str]] = [
    (
        Accepted(START, 8),
        (
            "93a861636365707465649ba26964a768616e646c6572c40180cb3ff8000000000000cb400400000000000007a36b6579"
            "cb402200000000000093a275700103c391a468656c6408"
        ),
    ),
    (Claimed(1.5, 2, "worker", "3.11", "0"), "96a7636c61696d6564cb3ff800000000000002a6776f726b6572a4332e3131a130"),
    (
        Granted(1.5, 2, {"cart": b"\x01"}),
        "94a76772616e746564cb3ff80000000000000281a463617274c40101",
    ),
    (Released(1.5, 9.0), "93a872656c6561736564cb3ff8000000000000cb4022000000000000"),
    (
        Released(1.5, None, "a.py:1, in b"),
        "94a872656c6561736564cb3ff8000000000000c0ac612e70793a312c20696e2062",
    ),
    (Returned(1, 1.5, b"\x01", None, 0.25), "96a872657475726e656401cb3ff8000000000000c40101c0cb3fd0000000000000"),
    (Returned(1, 1.5, b"\x01", "message"), "95a872657475726e656401cb3ff8000000000000c40101a76d657373616765"),
    (
        Raised(1, 1.5, FAILURE, "message"),
        (
            "95a672616973656401cb3ff80000000000009aa86275696c74696e73aa56616c75654572726f72a26e6f91a26e6f81a1"
            "780191a46e6f7465a57472616365909aa16da145a3776879908090a090c0a0a6736372697074a76d657373616765"
        ),
    ),
    (
        Attempted(1, 1.5, 2, FAILURE, 2.5),
        (
            "96a9617474656d7074656401cb3ff8000000000000029aa86275696c74696e73aa56616c75654572726f72a26e6f91a2"
            "6e6f81a1780191a46e6f7465a57472616365909aa16da145a3776879908090a090c0a0a6736372697074cb4004000000"
            "000000"
        ),
    ),
    (Fired(1, 1.5), "93a5666972656401cb3ff8000000000000"),
    (Interrupted(1, 1.5, 0.25), "94ab696e74657272757074656401cb3ff8000000000000cb3fd0000000000000"),
    (Interrupted(1, 1.5), "93ab696e74657272757074656401cb3ff8000000000000"),
    (CancelRequested(1.5, True, "message"), "94a663616e63656ccb3ff8000000000000c3a76d657373616765"),
    (Paused(1.5, "reason", "message"), "94a6706175736564cb3ff8000000000000a6726561736f6ea76d657373616765"),
    (Resumed(1.5, "message"), "93a7726573756d6564cb3ff8000000000000a76d657373616765"),
    (Refused(1.5, "message", "reason"), "94a772656675736564cb3ff8000000000000a76d657373616765a6726561736f6e"),
    (
        Retried(1.5, 1, 2, 3, "message", 4, 5, [2], 6.5),
        "9aa772657472696564cb3ff8000000000000010203a76d65737361676504059102cb401a000000000000",
    ),
    (Joined(1.5, Parent("up", 1, 3), "message"), ("94a66a6f696e6564cb3ff800000000000093a275700103a76d657373616765")),
    (Waited(1.5, 3), "93a6776169746564cb3ff800000000000003"),
    (Completed(1.5, b"\x01"), "93a9636f6d706c65746564cb3ff8000000000000c40101"),
    (
        Failed(1.5, FAILURE, 4),
        (
            "94a66661696c6564cb3ff80000000000009aa86275696c74696e73aa56616c75654572726f72a26e6f91a26e6f81a178"
            "0191a46e6f7465a57472616365909aa16da145a3776879908090a090c0a0a673637269707404"
        ),
    ),
    (Cancelled(1.5, True, "message"), "94a963616e63656c6c6564cb3ff8000000000000c3a76d657373616765"),
]
GOLDEN_REQUESTS: list[tuple[Request, str]] = [
    (Resolve(1, b"\x01"), "93a77265736f6c766501c40101"),
    (Reject(1, "reason"), "93a672656a65637401a6726561736f6e"),
    (
        Settled(1, 2, "child", Completed(1.5, b"\x01")),
        "95a7736574746c65640102a56368696c6493a9636f6d706c65746564cb3ff8000000000000c40101",
    ),
    (Cancel(True), "92a663616e63656cc3"),
    (Busy("h"), "92a462757379a168"),
    (Pause(), "91a57061757365"),
    (Resume(), "91a6726573756d65"),
    (RetryInvocation(), "91a57265747279"),
    (
        Join(Start("id", "handler", b"\x80", 1.5, 2.5, 7)),
        ("92a46a6f696e9ca26964a768616e646c6572c40180cb3ff8000000000000cb400400000000000007c0c0c0c290c400"),
    ),
]
GOLDEN_FRAME = (
    Frame("writer", 1.5, [Returned(1, 1.5, b"\x01")], [OpenAwakeable(4)], {"set": b"\x01", "deleted": None}, [2]),
    (
        "96a6777269746572cb3ff80000000000009195a872657475726e656401cb3ff8000000000000c40101c09192a9617761"
        "6b6561626c650482a3736574c40101a764656c65746564c09102"
    ),
)
GOLDEN_START = (
    "9ba26964a768616e646c6572c40180cb3ff8000000000000cb400400000000000007a36b6579cb402200000000000093"
    "a275700103c391a468656c64"
)
DIGESTED = msgspec.structs.replace(START, digest=b"\x01")
GOLDEN_DIGESTED_START = "9c" + GOLDEN_START.removeprefix("9b") + "c40101"
SENT = msgspec.structs.replace(DIGESTED, sender="s")
GOLDEN_SENT_START = "9d" + GOLDEN_DIGESTED_START.removeprefix("9c") + "a173"
TAGGED = msgspec.structs.replace(SENT, tags=(("n", "v"),))
GOLDEN_TAGGED_START = "9e" + GOLDEN_SENT_START.removeprefix("9d") + "9192a16ea176"
DESCRIBED = msgspec.structs.replace(TAGGED, interface=b"\x02")
GOLDEN_DESCRIBED_START = "9f" + GOLDEN_TAGGED_START.removeprefix("9e") + "c40102"
FLOWING = msgspec.structs.replace(DESCRIBED, flow=b"\x03")
GOLDEN_FLOWING_START = "dc0010" + GOLDEN_DESCRIBED_START.removeprefix("9f") + "c40103"
TRACED = msgspec.structs.replace(FLOWING, trace="t")
GOLDEN_TRACED_START = "dc0011" + GOLDEN_FLOWING_START.removeprefix("dc0010") + "a174"
JUDGED = msgspec.structs.replace(TRACED, when_busy="r")
GOLDEN_JUDGED_START = "dc0012" + GOLDEN_TRACED_START.removeprefix("dc0011") + "a172"
GOLDEN_MESSAGE = (Message("m", "to", 1.5, Pause()), "94a16da2746fcb3ff800000000000091a57061757365")
TRACED_MESSAGE = msgspec.structs.replace(GOLDEN_MESSAGE[0], trace="t")
GOLDEN_TRACED_MESSAGE = "95" + GOLDEN_MESSAGE[1].removeprefix("94") + "a174"
GOLDEN_ANSWER = (Answer("m", "why"), "92a16da3776879")


@pytest.mark.parametrize(("one", "golden"), [*GOLDEN_COMMANDS, *GOLDEN_ENTRIES, *GOLDEN_REQUESTS])
def test_bytes_written_by_an_earlier_release_read_as_they_did(one: Any, golden: str):
    kinds: dict[str, Any] = {"command": Command, "entry": Entry, "request": Request}
    union = next(kind for kind in kinds.values() if type(one) in get_args(kind))
    assert msgspec.msgpack.decode(bytes.fromhex(golden), type=union) == one


@pytest.mark.parametrize(("one", "golden"), [*GOLDEN_COMMANDS, *GOLDEN_ENTRIES, *GOLDEN_REQUESTS])
def test_bytes_are_written_as_they_were_but_for_new_fields_at_the_end(one: Any, golden: str):
    assert goes_on(msgspec.msgpack.decode(encode(one)), msgspec.msgpack.decode(bytes.fromhex(golden)))


def goes_on(written: Any, before: Any) -> bool:
    """Report whether what is written now is what was written before, but for new fields at the end, at any depth."""
    if isinstance(written, list) and isinstance(before, list):
        now, then = cast("list[Any]", written), cast("list[Any]", before)
        return all(map(goes_on, now, then)) and len(now) >= len(then)
    return written == before


def test_frames_starts_messages_and_answers_are_written_and_read_as_they_were():
    frame, golden = GOLDEN_FRAME
    assert goes_on(msgspec.msgpack.decode(encode_frame(frame)), msgspec.msgpack.decode(bytes.fromhex(golden)))
    assert decode_frame(bytes.fromhex(golden)) == frame
    assert decode_start(bytes.fromhex(GOLDEN_START)) == START
    assert decode_start(bytes.fromhex(GOLDEN_DIGESTED_START)) == DIGESTED
    assert decode_start(bytes.fromhex(GOLDEN_SENT_START)) == SENT
    assert decode_start(bytes.fromhex(GOLDEN_TAGGED_START)) == TAGGED
    assert encode_start(JUDGED).hex() == GOLDEN_JUDGED_START
    assert decode_start(bytes.fromhex(GOLDEN_JUDGED_START)) == JUDGED
    assert decode_start(bytes.fromhex(GOLDEN_TRACED_START)) == TRACED
    assert decode_start(bytes.fromhex(GOLDEN_DESCRIBED_START)) == DESCRIBED
    assert decode_start(bytes.fromhex(GOLDEN_FLOWING_START)) == FLOWING
    message, golden = GOLDEN_MESSAGE
    assert encode_message(TRACED_MESSAGE).hex() == GOLDEN_TRACED_MESSAGE
    assert decode_message(bytes.fromhex(GOLDEN_TRACED_MESSAGE)) == TRACED_MESSAGE
    assert decode_message(bytes.fromhex(golden)) == message
    answer, golden = GOLDEN_ANSWER
    assert encode(answer).hex() == golden
    assert msgspec.msgpack.decode(bytes.fromhex(golden), type=Answer) == answer


def test_only_a_cancellation_and_a_busy_key_settle_what_has_not_begun():
    ends = [type(request) for request, _ in GOLDEN_REQUESTS if settles_before_begin(Message("m", "to", 1.5, request))]
    assert ends == [Cancel, Busy]


def test_every_kind_has_a_golden_line():
    assert {type(one) for one, _ in GOLDEN_COMMANDS} == set(get_args(Command))
    assert {type(one) for one, _ in GOLDEN_ENTRIES} == set(get_args(Entry))
    assert {type(one) for one, _ in GOLDEN_REQUESTS} == set(get_args(Request))


def test_unknown_fields_of_a_later_release_are_passed_over():
    def longer(one: object) -> bytes:
        return encode([*msgspec.msgpack.decode(encode(one)), "new", {"field": 1}])

    for one, _ in [*GOLDEN_COMMANDS, *GOLDEN_ENTRIES, *GOLDEN_REQUESTS]:
        assert msgspec.msgpack.decode(longer(one), type=type(one)) == one
    readers: list[tuple[Any, Callable[[bytes], Any]]] = [
        (GOLDEN_FRAME[0], decode_frame),
        (START, decode_start),
        (GOLDEN_MESSAGE[0], decode_message),
    ]
    for one, read in readers:
        assert read(longer(one)) == one


# --- what a newer release wrote, and what is damaged ------------------------------------------------------------------
LATER: list[tuple[str, str, Any]] = [
    ("entry", "escalated", ["escalated", 1.5, {"to": "somebody"}]),
    ("entry", "parked", ["parked"]),
    ("entry", "step", ["step", 0, "a", b""]),  # a command of ours is no entry of ours
]
LATER_COMMANDS: list[tuple[str, str, Any]] = [
    ("command", "lock", ["lock", 3, "a"]),
    ("command", "returned", ["returned", 3, 1.5, b""]),
]


@pytest.mark.parametrize(("kind", "tag", "later"), [*LATER, *LATER_COMMANDS])
def test_a_frame_of_a_newer_release_says_whose_it_is_what_is_not_known_and_what_to_do(kind: str, tag: str, later: Any):
    frame, _ = GOLDEN_FRAME
    writer, at, entries, commands, *rest = msgspec.msgpack.decode(encode(frame))
    (entries if kind == "entry" else commands).append(later)
    with pytest.raises(NewerJournal) as refused:
        decode_frame(encode([writer, at, entries, commands, *rest, "new field"]), "order-7")
    error = refused.value
    assert (error.invocation_id, error.kind, error.tag) == ("order-7", kind, tag)
    assert str(error) == (
        f"invocation 'order-7': this release does not know the {kind} {tag!r}; "
        "a newer release wrote this: upgrade this worker"
    )
    with pytest.raises(NewerJournal, match=r"^an invocation: "):
        decode_frame(encode([writer, at, entries, commands, *rest]))


@pytest.mark.parametrize(
    ("request_", "kind", "tag"),
    [
        (["escalate", 1], "request", "escalate"),
        (["released"], "request", "released"),
        (["settled", 0, 1, "child", ["expired", 1.5]], "outcome", "expired"),
    ],
)
def test_a_message_of_a_newer_release_names_the_invocation_that_it_is_for(request_: Any, kind: str, tag: str):
    with pytest.raises(NewerJournal) as refused:
        decode_message(encode(["m", "order-7", 1.5, request_, "new field"]))
    assert (refused.value.invocation_id, refused.value.kind, refused.value.tag) == ("order-7", kind, tag)


def test_a_status_of_a_newer_release_is_told_from_ours():
    assert [known_status(each, "id") for each in sorted(STATUSES)] == sorted(STATUSES)
    assert set(get_args(journal.Status)) == STATUSES
    with pytest.raises(NewerJournal, match="'order-7': this release does not know the status 'quarantined'"):
        known_status("quarantined", "order-7")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        encode_frame(GOLDEN_FRAME[0])[:-3],
        encode(["writer"]),
        encode({"writer": 1}),
        encode(["writer", 1.5, "no list"]),
        encode(["writer", 1.5, [["fired", "no number", 1.5]]]),
        encode(["writer", 1.5, [["fired"]]]),
        encode(["writer", 1.5, [[]]]),
        encode(["writer", 1.5, [[7, 1.5]]]),
        encode(["writer", 1.5, [["", 1.5]]]),
        encode(["writer", 1.5, [["a\x00b", 1.5]]]),
        encode(["writer", 1.5, [["long" * 20, 1.5]]]),
        encode(["writer", "no time", [["fired", 1, 1.5]]]),
    ],
)
def test_bytes_that_are_no_frame_are_damage_and_not_of_a_newer_release(data: bytes):
    with pytest.raises(StoreDamaged, match=r"a frame of the journal of invocation 'order-7' does not decode .*restore"):
        decode_frame(data, "order-7")
    with pytest.raises(StoreDamaged, match=r"a message to invocation '.*' does not decode"):
        decode_message(data)
    with pytest.raises(StoreDamaged, match="the start of an invocation does not decode"):
        decode_start(data)


def test_fields_that_an_earlier_release_did_not_write_have_their_defaults():
    frame = decode_frame(
        encode(["writer", 1.5, [["accepted", ["id", "handler", b"\x80", 1.5, 1.5, 7]], ["released", 1.5]]])
    )
    assert frame == Frame("writer", 1.5, [Accepted(Start("id", "handler", b"\x80", 1.5, 1.5, 7)), Released(1.5)])
    assert (frame.commands, frame.state, frame.cancels, frame.outcome) == ([], {}, [], None)


def test_defaults_are_not_shared():
    one, two = Frame("writer", 1.5, []), Frame("writer", 1.5, [])
    one.commands.append(OpenAwakeable(0))
    one.state["x"] = None
    one.cancels.append(1)
    assert two == Frame("writer", 1.5, [])


@pytest.mark.parametrize("field", ["n", "at", "value"])
def test_facts_cannot_be_changed(field: str):
    with pytest.raises(AttributeError):
        setattr(Returned(1, 1.5, b""), field, 2)


@pytest.mark.parametrize("outcome", [Completed(1.5, b""), Failed(1.5, FAILURE), Cancelled(1.5)])
def test_the_outcome_of_a_frame_is_its_last_entry(outcome: Completed | Failed | Cancelled):
    assert Frame("writer", 1.5, [Fired(1, 1.5), outcome]).outcome is outcome
    assert Frame("writer", 1.5, [outcome, Fired(1, 1.5)]).outcome is None
    assert Frame("writer", 1.5, []).outcome is None


def test_commands_are_the_same_by_what_they_ask_for():
    start = msgspec.structs.replace(START, digest=b"1")
    commands: list[Command] = [
        *(CallStep(0, "a", b"1"), CallStep(1, "a", b"1"), CallStep(0, "b", b"1"), CallStep(0, "a", b"2")),
        *(SetTimer(0, 1.0), SetTimer(0, 2.0), OpenAwakeable(0), MarkPatch(0, "a")),
        *(CallChild(0, start), CallChild(1, start), SendStart(0, start)),
        *(
            CallChild(0, msgspec.structs.replace(start, **{name: other}))
            for name, other in {"id": "other", "handler": "other", "key": None, "due": 0.0, "digest": b"2"}.items()
        ),
    ]
    for one in commands:
        assert [other for other in commands if repeats(one, other)] == [one]


def test_a_child_is_the_same_whatever_the_clock_and_the_seed_say():
    other = msgspec.structs.replace(START, at=99.0, seed=99, parent=None)
    assert repeats(CallChild(0, START), CallChild(0, other))


def test_the_input_of_a_child_is_compared_by_its_digest_if_both_have_one():
    """The bytes of a set come in another order under another hash seed; old journals hold no digest."""
    start = msgspec.structs.replace(START, digest=b"1")
    for kind in (CallChild, SendStart):
        assert repeats(kind(0, start), kind(0, msgspec.structs.replace(start, input=b"\x90")))
        assert repeats(kind(0, start), kind(0, msgspec.structs.replace(start, digest=b"")))
        assert not repeats(kind(0, start), kind(0, msgspec.structs.replace(start, digest=b"2")))


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (CallStep(0, "pay", b"\x01\x02"), "pay"),
        (SetTimer(1, 2.5), "SLEEP"),
        (SetTimer(1, 2.5, rest=True), "REST"),
        (CallChild(2, Start("id", "handler", b"", 1.5, 1.5, 7)), "CHILD:handler"),
        (SendStart(3, Start("id", "handler", b"", 1.5, 1.5, 7)), "SEND:handler"),
        (OpenAwakeable(4), "AWAKEABLE"),
        (MarkPatch(5, "loud"), "PATCH:loud"),
        (Keep(6, b"value"), "KEEP"),
    ],
)
def test_type_of_a_command_is_named_for_people(command: Command, text: str) -> None:
    assert step_type(command) == text


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (None, "nothing"),
        (CallStep(0, "pay", b"\x01\x02"), "#0 step 'pay' (arguments 0102)"),
        (SetTimer(1, 2.5), "#1 timer due at 2.500"),
        (SetTimer(1, 2.5, rest=True), "#1 rest until 2.500"),
        (CallChild(2, Start("id", "handler", b"", 1.5, 1.5, 7)), "#2 child 'handler' (id id)"),
        (CallChild(2, DIGESTED), "#2 child 'handler' (id id, arguments 01, key 'key', due at 2.500)"),
        (SendStart(3, Start("id", "handler", b"", 1.5, 1.5, 7)), "#3 send 'handler' (id id)"),
        (OpenAwakeable(4), "#4 awakeable"),
        (MarkPatch(5, "loud"), "#5 patch 'loud'"),
        (Keep(6, b"value"), "#6 kept value"),
    ],
)
def test_commands_are_described_for_people(command: Command | None, text: str):
    assert describe(command) == text


def test_the_types_of_a_journal_are_arrays_on_the_wire():
    for kind in (*get_args(Command), *get_args(Entry), *get_args(Request), Frame, Start, Parent, Message, Answer):
        assert kind.__struct_config__.array_like, kind
        assert kind.__struct_config__.frozen, kind
    tags = [kind.__struct_config__.tag for union in (Command, Entry, Request) for kind in get_args(union)]
    assert None not in tags
    assert set(get_args(journal.Answering)) < set(get_args(Entry))
