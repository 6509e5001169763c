"""What the runner carries out is decided without a loop, a store or a clock: openings, rounds, frames, steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from perdure.core.effects import Release
from perdure.core.failures import Failure
from perdure.core.history import DEATHS_LIMIT
from perdure.core.journal import (
    Accepted,
    Attempted,
    CallStep,
    Cancel,
    Cancelled,
    CancelRequested,
    Claimed,
    Completed,
    Entry,
    Failed,
    Frame,
    Interrupted,
    Message,
    Pause,
    Paused,
    Refused,
    Released,
    Resume,
    Resumed,
    RetryInvocation,
    Returned,
    SetTimer,
    Start,
    Waited,
)
from perdure.core.turn import Pending, Ready, Turn
from perdure.runtime.frames import compose, fire_due, gather, gather_stuck, is_empty, may_hold, outcome_of, release_now
from perdure.runtime.in_progress import InProgress
from perdure.runtime.opening import (
    Begin,
    Done,
    Retry,
    Settled,
    TakeOver,
    Unknown,
    WaitForKey,
    finish,
    opening,
    take_over,
)
from perdure.runtime.record import Record, Writer
from perdure.stores.port import Delivery, Journal, Key, Wake
from perdure.testing.replay import ended_without_its_body

START = Start("id", "handler", b"\x80", 1.0, 1.0, 7)
KEYED = Start("id", "handler", b"\x80", 1.0, 1.0, 7, "key")
WRITER = Writer("me", "3.11", "0")
FAILED = Failed(2.0, Failure("builtins", "ValueError", "no"))


def frame(*entries: Entry, **more: Any) -> Frame:
    return Frame("other", 2.0, [*entries], **more)


def record(*frames: Frame, start: Start | None = START, key: Key | None = None) -> Record:
    made = Record("id", WRITER)
    made.read(Journal(frames, len(frames)), start, key or Key())
    return made


def started() -> Delivery:
    return Delivery("id", "handler", START)


def sent(request: Any, id: str = "m") -> Delivery:
    return Delivery("id", "handler", Message(id, "id", 1.0, request))


def woken() -> Delivery:
    return Delivery("id", "handler", Wake())


def turn_of(body: Callable[[Turn], Coroutine[Any, Any, Any]], start: Start = START) -> Turn:
    return Turn(start, body, lambda _: b"\xc0", secret=b"")


async def returns(_: Turn) -> None: ...


async def steps_once(turn: Turn) -> None:
    await turn.call_step("step", b"12345678", bytes, "work")


CLAIM = Claimed(1.0, 1, "other", "3.11", "0")
OPEN = frame(Accepted(START), CLAIM, commands=[CallStep(0, "step", b"12345678")])
RELEASED = frame(Accepted(START), CLAIM, Released(2.0), commands=[CallStep(0, "step", b"12345678")])
ENDED = frame(Accepted(START), CLAIM, Completed(2.0, b"\xc0"))


# --- openings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("frames", "inbox", "must_claim", "expected"),
    [
        ((), [started()], False, Begin),
        ((), [started()], True, TakeOver),
        ((), [sent(Cancel())], False, Begin),
        ((), [sent(Cancel())], True, Begin),
        ((OPEN,), [woken()], False, TakeOver),
        ((RELEASED,), [woken()], False, Begin),
        ((RELEASED,), [woken()], True, TakeOver),
        ((ENDED,), [woken()], True, Settled),
    ],
)
def test_opening_follows_from_journal_and_deliveries(
    frames: tuple[Frame, ...], inbox: list[Delivery], must_claim: bool, expected: type
) -> None:
    assert type(opening(record(*frames), frames, inbox, must_claim=must_claim)) is expected


def test_invocation_that_the_store_does_not_know_is_unknown() -> None:
    assert opening(record(start=None), (), [woken()], must_claim=False) == Unknown()


def test_claim_takes_starts_and_leaves_messages() -> None:
    start, message = started(), sent(Pause())
    claim = take_over(record(OPEN), START, [start, message], 3.0)
    assert claim.paused_because is None
    assert claim.inbox == [message]
    assert claim.transition.acknowledge == [start]
    assert [type(each) for each in (claim.transition.frame or frame()).entries] == [Claimed]


def test_invocation_whose_owners_died_again_and_again_is_paused() -> None:
    deaths = [frame(Claimed(2.0, n, "other", "3.11", "0")) for n in range(2, DEATHS_LIMIT + 1)]
    claim = take_over(record(OPEN, *deaths), START, [woken()], 3.0)
    assert claim.paused_because is not None
    assert claim.transition.released
    assert [type(each) for each in (claim.transition.frame or frame()).entries] == [Claimed, Paused, Released]


# --- what has settled -------------------------------------------------------------------------------------------------
def test_what_comes_too_late_is_refused_and_acknowledged() -> None:
    late = [sent(Pause()), woken()]
    found = finish(record(ENDED), START, late, 3.0)
    assert found.then == Done()
    assert found.inbox == []
    assert list(found.transition.acknowledge) == late
    assert [each.message for each in found.transition.effects.answers if each.refused] == ["m"]


def test_retry_is_next_and_what_came_after_it_waits() -> None:
    before, retry, after = sent(Pause(), "a"), sent(RetryInvocation(), "b"), sent(Pause(), "c")
    found = finish(record(frame(Accepted(START), CLAIM, FAILED)), START, [before, retry, after], 3.0)
    assert isinstance(found.then, Retry)
    assert found.then.delivery is retry
    assert found.inbox == [after]
    assert list(found.transition.acknowledge) == [before]


@pytest.mark.parametrize(("holder", "expected"), [("other", WaitForKey), ("id", Retry)])
def test_retry_of_a_keyed_invocation_waits_for_its_key(holder: str, expected: type) -> None:
    failed = record(frame(Accepted(KEYED), CLAIM, FAILED), start=KEYED, key=Key(holder, 1))
    found = finish(failed, KEYED, [sent(RetryInvocation()), woken()], 3.0)
    assert type(found.then) is expected
    assert (found.transition.effects.enlist is not None) == (expected is WaitForKey)


# --- rounds and frames ------------------------------------------------------------------------------------------------
def test_first_round_begins_the_body_and_may_hold_its_frame() -> None:
    known = record()
    turn = turn_of(steps_once)
    start = started()
    round = gather(known, turn, [], [start], 1.0)
    ready = turn.ready()
    assert round.taken == [start]
    assert may_hold(ready, round)
    assert not is_empty(ready, round)
    transition = compose(known, START, None, round, ready, None, None)
    written = transition.frame
    assert written is not None
    assert [type(each) for each in written.entries] == [Accepted, Claimed]
    assert known.owned
    turn.close()


def test_outcome_is_the_last_entry_and_ends_the_claim() -> None:
    known = record()
    turn = turn_of(returns)
    round = gather(known, turn, [], [started()], 1.0)
    ready, outcome = outcome_of(known, turn.ready(), round)
    transition = compose(known, START, None, round, ready, outcome, None)
    assert isinstance(transition.outcome, Completed)
    assert not known.owned
    assert transition.status == "completed"
    turn.close()


def test_message_behind_the_end_of_the_body_stays_in_the_inbox() -> None:
    known = record()
    turn = turn_of(returns)
    late = sent(Pause())
    round = gather(known, turn, [], [started(), late], 1.0)
    assert round.inbox == [late]
    turn.close()


def test_invocation_that_is_cancelled_before_it_ran_ends_without_its_body() -> None:
    known = record()
    turn = turn_of(steps_once)
    cancel, other = sent(Cancel(), "a"), sent(Pause(), "b")
    round = gather(known, turn, [], [cancel, other], 1.0)
    assert not turn.begun
    assert [type(each) for each in round.entries] == [Cancelled]
    assert round.inbox == [other]
    assert round.taken == [cancel]


def test_resume_asks_for_the_commands_to_be_taken_up() -> None:
    known = record(frame(Accepted(START), CLAIM, Paused(2.0, "asked for"), Released(2.0)))
    turn = turn_of(steps_once)
    turn.replay([frame(Accepted(START), CLAIM, Paused(2.0, "asked for"), Released(2.0))])
    round = gather(known, turn, [], [sent(Resume())], 3.0)
    assert round.resumed
    assert turn.begun
    turn.close()


async def sleeps(_: Turn) -> None:
    await asyncio.sleep(5)


def test_body_that_resumes_before_it_has_begun_begins_then() -> None:
    paused = frame(Accepted(START), CLAIM, Paused(2.0, "its workers died"), Released(2.0))
    turn = turn_of(sleeps)
    turn.replay([paused])
    round = gather(record(paused), turn, [], [sent(Resume())], 9.0)
    assert round.entries == [Waited(9.0, 0), Resumed(9.0, "m")]
    assert turn.ready().commands == [SetTimer(0, 14.0)]
    turn.close()


def test_time_at_which_a_body_begins_is_recorded_if_the_body_looks_at_it() -> None:
    for body, recorded in ((steps_once, []), (sleeps, [Waited(9.0, 0)]), (returns, [])):
        turn = turn_of(body)
        round = gather(record(), turn, [], [started()], 9.0)
        assert round.entries == recorded
        assert may_hold(turn.ready(), round) is (body is steps_once)
        turn.close()


def test_stuck_invocation_is_paused_once_and_refuses_to_resume() -> None:
    known = record(RELEASED)
    first = gather_stuck(known, "why", [], [woken()], 3.0)
    assert [type(each) for each in first.entries] == [Paused]
    again = gather_stuck(known, "why", [], [sent(Resume())], 4.0)
    assert [type(each) for each in again.entries] == [Refused]


def test_stuck_invocation_that_was_never_granted_its_key_is_cancelled_without_its_body() -> None:
    for frames in (
        [],
        [frame(Accepted(KEYED), Claimed(2.0, 1, "other", "3.11", "0"), Paused(2.0, "why"), Released(2.0))],
    ):
        known = record(*frames, start=KEYED)
        round = gather_stuck(known, "why", [], [sent(Cancel())], 3.0)
        assert [type(each) for each in round.entries] == [Cancelled]
        assert known.history.outcome is not None


@pytest.mark.parametrize(("timed_out", "outcome"), [(False, Cancelled), (True, Failed)])
@pytest.mark.parametrize("has_key", [False, True])
def test_cancellation_that_an_earlier_release_recorded_without_the_key_ends_the_invocation_without_its_body(
    timed_out: bool, outcome: type, has_key: bool
) -> None:
    paused = frame(Accepted(KEYED), CLAIM, Paused(2.0, "why"), Released(2.0))
    request = CancelRequested(3.0, timed_out=True) if timed_out else CancelRequested(3.0, message="c")
    asked = frame(Claimed(3.0, 2, "other", "3.11", "0"), request, Released(3.0))
    known = record(paused, asked, start=KEYED, key=Key("id" if has_key else "other"))
    turn = turn_of(steps_once, KEYED)
    turn.replay([paused, asked])
    resume = sent(Resume())
    round = gather(known, turn, [], [woken(), resume], 4.0)
    assert [type(each) for each in round.entries] == [outcome]
    assert isinstance(known.history.outcome, outcome)
    assert round.inbox == [resume]  # refused once the outcome is durable
    assert not turn.begun
    ended = compose(known, KEYED, None, round, Ready(), known.history.outcome, None)
    assert ended.effects.release == Release("key", 0)
    assert ended.frame is not None
    assert ended_without_its_body([paused, asked, ended.frame])  # and replays as such
    turn.close()


def test_timers_and_next_attempts_that_are_due_are_told_apart() -> None:
    async def waits(turn: Turn) -> None:
        turn.loop.call_at(5.0, int)
        await turn.call_step("step", b"12345678", bytes, "work")

    known = record()
    turn = turn_of(waits)
    round = gather(known, turn, [], [started()], 1.0)
    due = [0, 1]
    again = fire_due(known, turn, lambda _: due.pop(0) if due else None, {}, round)
    timer = next(n for n, command in enumerate(turn.ready().commands) if isinstance(command, SetTimer))
    assert [n for n, _ in again] == [1 - timer]
    assert len(round.entries) == 1
    turn.close()


def test_failed_attempt_of_a_step_that_the_body_has_cancelled_ends_the_step() -> None:
    async def cancels(turn: Turn) -> None:
        one, two = (turn.call_step("step", b"12345678", bytes, "work") for _ in range(2))
        await one
        two.cancel()
        await asyncio.wait([two])

    known = record()
    turn = turn_of(cancels)
    gather(known, turn, [], [started()], 1.0)
    failed = Attempted(1, 2.0, 1, FAILED.failure, 3.0, 0.5)
    round = gather(known, turn, [Returned(0, 2.0, b"\xc0"), failed], [], 2.0)
    assert round.entries == [Returned(0, 2.0, b"\xc0"), Interrupted(1, 2.0, 0.5)]
    assert not round.attempted
    assert turn.ready().outcome is not None
    turn.close()


def test_round_that_brought_nothing_needs_no_frame() -> None:
    known = record(RELEASED)
    turn = turn_of(steps_once)
    turn.replay([RELEASED])
    assert is_empty(turn.ready(), gather(known, turn, [], [woken()], 3.0))
    turn.close()


def test_handing_over_wakes_at_once_unless_it_is_paused() -> None:
    assert release_now(record(OPEN), [], [], 3.0).effects.wake == 3.0
    assert release_now(record(OPEN, frame(Paused(2.0, "asked for"))), [], [], 3.0).effects.wake is None


# --- steps ------------------------------------------------------------------------------------------------------------
class Attempt:
    def __init__(self, *, is_over: bool = False) -> None:
        self.is_over = is_over


def pending(*, cancelled: bool = False) -> Pending:
    return Pending(CallStep(0, "step", b""), None, bytes, "work", cancel_requested=cancelled)


def test_new_steps_are_those_that_are_wanted_and_have_not_begun_early() -> None:
    steps = InProgress[Attempt]()
    ready = Ready(commands=[CallStep(n, "step", b"") for n in range(4)])
    known = {0: pending(), 1: pending(cancelled=True), 3: pending()}
    assert [each.n for each in steps.new(ready, known)] == [0, 3]
    steps.begun_early.add(0)
    assert [each.n for each in steps.new(ready, known)] == [3]
    steps.begun_early.add(3)
    assert not steps.new(ready, known)


def test_step_that_has_not_begun_ends_at_once_when_it_is_cancelled() -> None:
    steps = InProgress[Attempt]()
    steps.queue(0, pending())
    steps.queue(1, pending())
    steps.cancel_unbegun(0, pending(), 2.0)
    assert steps.arrivals == [Interrupted(0, 2.0)]
    assert [each.n for each in steps.waiting] == [1]
    steps.running[2] = Attempt()
    steps.cancel_unbegun(2, pending(), 2.0)
    assert len(steps.arrivals) == 1


def test_step_whose_end_a_resumption_has_brought_does_not_end_twice() -> None:
    steps = InProgress[Attempt]()
    steps.arrivals.append(Interrupted(0, 1.0))
    steps.cancel_unbegun(0, pending(cancelled=True), 2.0)
    assert steps.arrivals == [Interrupted(0, 1.0)]


def test_slot_is_needed_until_the_last_thread_of_an_abandoned_step_ends() -> None:
    steps = InProgress[Attempt]()
    attempt = Attempt()
    steps.running[0] = attempt
    assert steps.leave_behind(0, attempt)
    assert not steps.leave_behind(0, attempt)
    assert steps.needs_slot(is_paused=False)
    assert not steps.ended(0, attempt)
    assert steps.needs_slot(is_paused=False)
    attempt.is_over = True
    assert not steps.needs_slot(is_paused=False)


def test_open_commands_are_those_of_which_nothing_has_arrived_or_waits() -> None:
    steps = InProgress[Attempt]()
    steps.arrivals.append(Returned(0, 1.0, b""))
    steps.queue(1, pending())
    known = {n: pending() for n in range(3)}
    assert [n for n, _ in steps.open(known)] == [2]


def test_abandoned_steps_are_given_back_to_be_cancelled_and_nothing_waits() -> None:
    steps = InProgress[Attempt]()
    steps.running[0] = attempt = Attempt()
    steps.queue(1, pending())
    steps.arrivals.append(Returned(2, 1.0, b""))
    assert steps.abandon() == [attempt]
    assert not steps.needs_claim
    assert steps.needs_slot(is_paused=False)
