from __future__ import annotations

import itertools

import msgspec
import pytest

from perdure.core.effects import NO_EFFECTS, Effects, Release, effects_of
from perdure.core.failures import Failure
from perdure.core.history import History
from perdure.core.journal import (
    Accepted,
    Answer,
    Attempted,
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
    Message,
    OpenAwakeable,
    Outcome,
    Parent,
    Paused,
    Raised,
    Refused,
    Released,
    Resumed,
    Retried,
    Returned,
    SendStart,
    Settled,
    Start,
)

START = Start("one", "handler", b"\x80", 1.0, 1.0, 7)
CHILD = Start("child", "other", b"\x80", 1.0, 1.0, 8)
SENT = Start("sent", "other", b"\x80", 1.0, 1.0, 9)
FAILURE = Failure("builtins", "ValueError", "no")
HISTORY = History(children={3: CHILD})


def effects(
    *entries: Entry, start: Start = START, commands: list[Command] | None = None, cancels: list[int] | None = None
):
    return effects_of(start, Frame("writer", 5.0, [*entries], commands or [], {}, cancels or []), HISTORY)


QUIET: list[Entry] = [
    *(
        Accepted(START),
        Claimed(1.0, 1, "worker", "3.11", "0"),
        Granted(1.0, 0, {"a": b"1"}),
        Released(2.0),
        Returned(0, 2.0, b""),
    ),
    *(Raised(0, 2.0, FAILURE), Attempted(0, 2.0, 1, FAILURE, 3.0), Fired(0, 2.0), Interrupted(0, 2.0)),
    *(CancelRequested(2.0, True), Paused(2.0, "because"), Resumed(2.0), Completed(2.0, b""), Failed(2.0, FAILURE)),
    Cancelled(2.0),
]


@pytest.mark.parametrize("entry", QUIET, ids=lambda entry: type(entry).__name__)
def test_facts_that_nobody_outside_waits_for_have_no_effects(entry: Entry):
    assert effects(entry, commands=[CallStep(0, "a", b""), OpenAwakeable(1)], cancels=[0]) is NO_EFFECTS
    assert effects(entry) is NO_EFFECTS


def test_children_and_sends_are_started_in_the_order_issued():
    commands: list[Command] = [CallStep(0, "a", b""), CallChild(1, CHILD), SendStart(2, SENT)]
    assert effects(commands=commands) == Effects(starts=(CHILD, SENT))


ANSWERED: list[tuple[Entry, Answer]] = [
    (Returned(0, 2.0, b"", "m"), Answer("m")),
    (Raised(0, 2.0, FAILURE, "m"), Answer("m")),
    (CancelRequested(2.0, False, "m"), Answer("m")),
    (Paused(2.0, "because", "m"), Answer("m")),
    (Resumed(2.0, "m"), Answer("m")),
    (Joined(2.0, Parent("up", 0, 1), "m"), Answer("m")),
    (Cancelled(2.0, True, "m"), Answer("m")),
    (Refused(2.0, "m", "too late"), Answer("m", "too late")),
]


@pytest.mark.parametrize(("entry", "answer"), ANSWERED, ids=lambda each: type(each).__name__)
def test_every_message_is_answered(entry: Entry, answer: Answer):
    assert effects(entry) == Effects(answers=(answer,))


def test_answers_are_in_the_order_of_the_messages():
    got = effects(Returned(0, 2.0, b"", "m1"), Fired(1, 2.0), Refused(2.0, "m2", "no"), Resumed(2.0, "m3"))
    assert got.answers == (Answer("m1"), Answer("m2", "no"), Answer("m3"))


def test_a_release_sets_its_wake():
    assert effects(Released(2.0, 9.0)) == Effects(wake=9.0)
    assert effects(Returned(0, 2.0, b""), Released(2.0, 0.0)) == Effects(wake=0.0)


@pytest.mark.parametrize("outcome", [Completed(2.0, b""), Failed(2.0, FAILURE), Cancelled(2.0)])
def test_a_parent_is_told_of_the_outcome_once_under_one_id(outcome: Outcome):
    start = Start("one", "handler", b"\x80", 1.0, 1.0, 7, parent=Parent("up", 2, 5))
    told = Message("settled:one", "up", 5.0, Settled(2, 5, "one", outcome))
    assert effects(outcome, start=start) == Effects(messages=(told,))
    assert effects(Returned(0, 2.0, b""), start=start) is NO_EFFECTS


def test_a_parent_is_not_told_again_of_what_comes_of_a_retry():
    start = msgspec.structs.replace(START, parent=Parent("up", 0, 3))
    frame = Frame("writer", 5.0, [Completed(5.0, b"")])
    assert effects_of(start, frame, HISTORY).messages
    assert effects_of(start, frame, History(children={3: CHILD}, generation=1)) == NO_EFFECTS


@pytest.mark.parametrize("outcome", [Completed(2.0, b""), Failed(2.0, FAILURE), Cancelled(2.0)])
def test_whoever_settles_releases_its_key_with_the_state_that_it_leaves(outcome: Outcome):
    start = msgspec.structs.replace(START, key="user-1")
    granted = Granted(1.0, 0, {"a": b"1", "b": b"2"})
    first = Frame("writer", 5.0, [Accepted(start), granted], [], {"a": None, "c": b"3"})
    last = Frame("writer", 6.0, [outcome], [], {"d": b"4"})
    release = Release("user-1", 0, {"b": b"2", "c": b"3", "d": b"4"})
    assert effects_of(start, first, History.of([first])) is NO_EFFECTS
    assert effects_of(start, last, History.of([first, last])) == Effects(release=release)


def test_a_key_whose_state_was_not_changed_is_released_as_it_was():
    start = msgspec.structs.replace(START, key="user-1")
    frame = Frame("writer", 5.0, [Accepted(start), Granted(1.0, 0, {"a": b"1"}), Completed(2.0, b"")])
    assert effects_of(start, frame, History.of([frame])) == Effects(release=Release("user-1", 0, None))


def test_who_was_never_granted_its_key_leaves_the_line():
    start = msgspec.structs.replace(START, key="user-1")
    frame = Frame("writer", 5.0, [Accepted(start), Cancelled(2.0, message="m")])
    expected = Effects(answers=(Answer("m"),), release=Release("user-1", 0, None))
    assert effects_of(start, frame, History.of([frame])) == expected


def test_a_child_that_is_issued_again_is_started():
    retried = Retried(5.0, 1, 3, 4, "m", 0, 0, [3])
    assert effects(retried, commands=[CallChild(3, CHILD)]) == Effects(starts=(CHILD,), answers=(Answer("m"),))


def test_children_whose_end_the_body_asked_for_are_cancelled_and_steps_are_not_the_stores_affair():
    assert effects(cancels=[1, 3]) == Effects(messages=(Message("cancel:child", "child", 5.0, Cancel()),))


def test_a_forced_cancellation_forces_its_children_though_they_were_asked_to_end_before():
    forced = effects(Cancelled(2.0, forced=True), cancels=[1, 3])
    assert forced == Effects(messages=(Message("force:child", "child", 5.0, Cancel(True)),))


def test_effects_are_a_function_of_the_frame():
    """Whoever takes over does the same: pairs of everything, computed twice, and the short cut never lies."""
    everything = [*QUIET, *(entry for entry, _ in ANSWERED), Released(2.0, 9.0)]
    for one, two in itertools.product(everything, repeat=2):
        both = effects(one, two)
        assert both == effects(one, two)
        apart = (effects(one), effects(two))
        assert both.answers == apart[0].answers + apart[1].answers


def test_all_who_joined_are_told_the_outcome_each_under_an_id_of_its_own():
    parents = [Parent("a", 0, 1), Parent("a", 0, 2), Parent("b", 1, 1)]
    outcome = Completed(2.0, b"")
    found = effects_of(START, Frame("w", 5.0, [outcome]), History(start=START, joined=parents))
    assert [(each.to, each.id) for each in found.messages] == [
        ("a", "settled:one:a:0:1"),
        ("a", "settled:one:a:0:2"),
        ("b", "settled:one:b:1:1"),
    ]
    assert {each.request for each in found.messages if isinstance(each.request, Settled)} == {
        Settled(parent.generation, parent.n, "one", outcome) for parent in parents
    }


def test_a_child_of_a_chosen_id_is_joined_in_case_it_exists():
    child = msgspec.structs.replace(CHILD, chosen=True, parent=Parent("one", 0, 1))
    asked = Message("join:one:0:1", child.id, 5.0, Join(child))
    assert effects(commands=[CallChild(1, child)]) == Effects(starts=(child,), messages=(asked,))
