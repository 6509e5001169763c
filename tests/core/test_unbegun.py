"""What cancels an invocation that has not begun."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perdure.core.apply import apply
from perdure.core.busy import called_for, check_when_busy, is_of_the_store
from perdure.core.effects import Release, effects_of
from perdure.core.failures import failure_of, rebuild
from perdure.core.history import History
from perdure.core.journal import (
    Accepted,
    Answer,
    Cancel,
    Cancelled,
    CancelRequested,
    Failed,
    Frame,
    Granted,
    Message,
    Parent,
    Refused,
    Settled,
    Start,
)
from perdure.core.unbegun import ended_unbegun
from perdure.errors import InvalidOption, KeyBusy


def test_one_frame_settles_it_answers_the_message_tells_the_parent_and_leaves_the_queue_of_the_key() -> None:
    start = Start("child", "h", b"\x80", 1.0, 1.0, 7, key="k", parent=Parent("parent", 0, 3))
    message = Message("m", "child", 2.0, Cancel())
    frame, effects, status = ended_unbegun(start, message, "store", 2.0)
    history = History.of([frame])
    assert history.status == status == "cancelled"
    assert history.start == start
    assert effects.answers == (Answer("m"),)
    assert effects.release == Release("k", 0)
    (told,) = effects.messages
    assert told.to == "parent"
    assert isinstance(told.request, Settled)
    assert told.request.outcome == frame.outcome


def test_one_that_is_turned_away_fails_and_says_which_key_and_who_has_it() -> None:
    start = Start("i", "h", b"\x80", 1.0, 1.0, 7, key="k", when_busy="reject")
    (message,) = called_for(start, ["holder", "waits"], 2.0)
    frame, effects, status = ended_unbegun(start, message, "store", 2.0)
    assert (status, effects.release, effects.answers) == ("failed", Release("k", 0), ())
    assert isinstance(frame.outcome, Failed)
    error = rebuild(frame.outcome.failure)
    assert isinstance(error, KeyBusy)
    assert (error.key, error.holder) == ("k", "holder")
    assert is_of_the_store(frame.outcome.failure)
    assert not is_of_the_store(replace(frame.outcome.failure, notes=["a secret"]))
    late = apply(message, History(start=start, granted=0), None, 3.0)
    assert late == Refused(3.0, message.id, "its body has begun")


def test_a_start_whose_key_is_free_or_that_waits_calls_for_nothing() -> None:
    start = Start("i", "h", b"\x80", 1.0, 1.0, 7, key="k", when_busy="reject")
    assert called_for(start, [], 2.0) == []
    assert called_for(replace(start, when_busy="enqueue"), ["holder"], 2.0) == []


def test_one_that_interrupts_cancels_all_before_it_and_a_rollback_says_so() -> None:
    start = Start("i", "h", b"\x80", 1.0, 1.0, 7, key="k", when_busy="interrupt")
    first, second = called_for(start, ["holder", "waits"], 2.0)
    assert (first.id, first.to, first.request) == ("busy:i:holder", "holder", Cancel())
    assert (second.id, second.to, second.request) == ("busy:i:waits", "waits", Cancel())
    back = called_for(replace(start, when_busy="rollback"), ["holder"], 2.0)
    assert [each.request for each in back] == [Cancel(rollback=True)]


def test_after_a_rollback_the_key_keeps_the_state_that_it_was_granted_with_until_a_retry_gets_it_again() -> None:
    start = Start("i", "h", b"\x80", 1.0, 1.0, 7, key="k")
    granted = Frame("w", 2.0, [Accepted(start), Granted(2.0, 0, {"x": b"1"})], state={"x": b"2"})
    request = apply(Message("m", "i", 3.0, Cancel(rollback=True)), History.of([granted]), None, 3.0)
    assert isinstance(request, CancelRequested)
    failed = Frame("w", 4.0, [request, Failed(4.0, failure_of(ValueError("cleanup")))], state={"x": b"3"})
    history = History.of([granted, failed])
    assert effects_of(start, failed, history).release == Release("k", 0)
    history.note(Granted(5.0, 1, {"x": b"1"}))
    assert not history.rolled_back
    plain = Frame("w", 4.0, [replace(request, rollback=False), Cancelled(4.0)], state={"x": b"3"})
    assert effects_of(start, plain, History.of([granted, plain])).release == Release("k", 0, {"x": b"3"})


def test_a_rule_for_busy_keys_is_one_of_four():
    assert check_when_busy("rollback") == "rollback"
    with pytest.raises(InvalidOption, match="when_busy='wait': give one of 'enqueue', 'reject', 'interrupt'"):
        check_when_busy("wait")
