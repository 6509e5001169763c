"""What a message does to an invocation, in every state it can find it in."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.authoring.context import Context
from perdure.core.apply import apply, may_retry, repeats, reply_to
from perdure.core.failures import Failure
from perdure.core.history import History
from perdure.core.journal import (
    Accepted,
    CallChild,
    Cancel,
    Cancelled,
    CancelRequested,
    Completed,
    Entry,
    Failed,
    Frame,
    Interrupted,
    Join,
    Joined,
    Message,
    Outcome,
    Parent,
    Pause,
    Paused,
    Raised,
    Refused,
    Reject,
    Request,
    Resolve,
    Resume,
    Resumed,
    Retried,
    RetryInvocation,
    Returned,
    Settled,
    Start,
)
from perdure.core.turn import Turn
from perdure.core.values import encode
from tests.core.driver import START, Driver, child, make_turn, step

FAILURE = Failure("builtins", "ValueError", "no")


async def body(ctx: Context) -> Any:
    """Command 0 is an awakeable of int, 1 a child, 2 a step."""
    promise = ctx.awakeable(int)
    return await asyncio.gather(promise, child("other"), step("a"), return_exceptions=True)


@pytest.fixture
def driver() -> Driver:
    made = Driver(body)
    assert [type(one).__name__ for one in made.frames[0].commands] == ["OpenAwakeable", "CallChild", "CallStep"]
    return made


def sent(request: Request, turn: Turn | None, history: History | None = None) -> Entry | None:
    return apply(Message("m", "one", 1.0, request), history or History(start=START), turn, 5.0)


def refusal(entry: Entry | None) -> str:
    assert isinstance(entry, Refused)
    assert (entry.at, entry.message) == (5.0, "m")
    return entry.reason


# --- awakeables -------------------------------------------------------------------------------------------------------
def test_a_resolved_awakeable_returns_and_a_rejected_one_raises(driver: Driver):
    assert sent(Resolve(0, encode(7)), driver.turn) == Returned(0, 5.0, encode(7), "m")
    rejected = sent(Reject(0, "not today"), driver.turn)
    assert isinstance(rejected, Raised)
    assert (rejected.n, rejected.at, rejected.message) == (0, 5.0, "m")
    assert rejected.failure.type == "perdure.errors.AwakeableRejected"
    assert "not today" in rejected.failure.message
    assert rejected.failure.fields["reason"] == "not today"


def test_a_value_of_the_wrong_shape_is_refused_and_the_awakeable_stays(driver: Driver):
    assert "the value has the wrong shape" in refusal(sent(Resolve(0, encode("seven")), driver.turn))
    assert driver.turn.waits_for(0) is not None


def test_an_awakeable_is_open_until_it_is_answered(driver: Driver):
    assert driver.turn.open_awakeables() == [0]
    driver.returns(0, 7)
    assert driver.turn.open_awakeables() == []


def test_a_cancellation_during_a_pause_is_known_before_the_body_begins(driver: Driver):
    assert driver.turn.cancelled_unbegun is None  # it has begun
    turn = make_turn(body, replace(START, key="k"))
    assert turn.cancelled_unbegun is None
    turn.deliver(Paused(1.0, "asked for"))
    turn.deliver(CancelRequested(2.0))
    assert turn.cancelled_unbegun == CancelRequested(2.0)


def test_a_second_answer_is_refused(driver: Driver):
    driver.returns(0, 7)
    for request in (Resolve(0, encode(8)), Reject(0, "late")):
        assert "resolved or rejected already" in refusal(sent(request, driver.turn))


@pytest.mark.parametrize("request_", [Resolve(0, encode(7)), Reject(0, "no")])
def test_the_very_answer_that_an_awakeable_has_is_a_repeat_and_no_other(driver: Driver, request_: Resolve | Reject):
    history = History(start=START)
    history.add(driver.frames[0])
    entry = apply(message := Message("m", "one", 1.0, request_), history, driver.turn, 5.0)
    assert entry is not None
    assert not repeats(message, history, 5.0)
    history.note(entry)
    again = replace(message, id="m2")
    assert repeats(again, history, 6.0)
    for other in (
        *(Resolve(0, encode(8)), Resolve(0, encode("no")), Reject(0, "other"), Reject(0, ""), Resolve(0, b"")),
        *(replace(request_, n=1), replace(request_, n=99), replace(request_, generation=1), Cancel(), Pause()),
    ):
        assert not repeats(replace(message, request=other), history, 6.0)
    history.note(Completed(7.0, b""))
    assert repeats(again, history, 8.0)


def test_an_answer_that_a_retry_superseded_is_no_repeat(driver: Driver):
    history = History(start=START)
    history.add(driver.frames[0])
    history.note(Returned(0, 2.0, encode(7), "m"))
    history.note(Failed(3.0, FAILURE))
    message = Message("m2", "one", 1.0, Resolve(0, encode(7)))
    kept, again, cut = (copy.deepcopy(history) for _ in range(3))
    kept.note(Retried(4.0, 1, None, 1, "r", 1, 0))
    again.note(Retried(4.0, 1, None, 1, "r", 1, 0, [0]))
    cut.note(Retried(4.0, 1, None, 0, "r", 0, 0))
    assert [repeats(message, each, 5.0) for each in (kept, again, cut)] == [True, False, False]


def test_a_second_answer_is_refused_while_the_first_waits_for_the_end_of_a_pause(driver: Driver):
    driver.give(Paused(2.0, "asked for"))
    driver.returns(0, 7)
    assert "resolved or rejected already" in refusal(sent(Resolve(0, encode(8)), driver.turn))


@pytest.mark.parametrize("n", [1, 2, 99])
def test_only_awakeables_are_resolved(driver: Driver, n: int):
    assert "nothing waits for it" in refusal(sent(Resolve(n, encode(7)), driver.turn))
    assert "nothing waits for it" in refusal(sent(Reject(n, "no"), driver.turn))


def test_without_the_fitting_code_nothing_can_be_resolved():
    assert "resume it first" in refusal(sent(Resolve(0, encode(7)), None))


# --- children ---------------------------------------------------------------------------------------------------------
def test_the_outcome_of_a_child_is_the_answer_to_its_command(driver: Driver):
    assert sent(Settled(0, 1, "c", Completed(2.0, b"\x07")), driver.turn) == Returned(1, 5.0, b"\x07", "m")
    assert sent(Settled(0, 1, "c", Failed(2.0, FAILURE)), driver.turn) == Raised(1, 5.0, FAILURE, "m")
    cancelled = sent(Settled(0, 1, "c", Cancelled(2.0)), driver.turn)
    assert isinstance(cancelled, Raised)
    assert cancelled.failure.type == "perdure.errors.ChildCancelled"
    assert cancelled.failure.fields["invocation_id"] == "c"


def test_a_child_cancelled_because_the_body_asked_ends_as_a_cancelled_task_does():
    async def gives_up(ctx: Context) -> Any:
        try:
            async with asyncio.timeout(5):
                return await child("other")
        except TimeoutError:
            return "too late"

    driver = Driver(gives_up)
    driver.fires(0)
    entry = sent(Settled(0, 1, "c", Cancelled(2.0)), driver.turn)
    assert entry == Interrupted(1, 5.0)
    driver.give(Interrupted(1, 5.0))
    assert driver.value == "too late"
    driver.check_replay()


@pytest.mark.parametrize(("generation", "n"), [(0, 0), (0, 2), (0, 99), (1, 1)])
def test_the_outcome_of_a_child_that_nobody_waits_for_is_passed_over(driver: Driver, generation: int, n: int):
    assert sent(Settled(generation, n, "c", Completed(2.0, b"")), driver.turn) is None


def test_the_outcome_of_a_child_is_taken_once(driver: Driver):
    driver.raises(1, ValueError("no"))
    assert sent(Settled(0, 1, "c", Completed(2.0, b"")), driver.turn) is None


def having_child(*entries: Entry, cancels: Sequence[int] = ()) -> History:
    """Return the history of an invocation whose command 1 is child "c", with these entries after it."""
    begun = replace(START, id="c", parent=Parent("one", 0, 1))
    frames = [
        Frame("w", 1.0, [Accepted(START)], [CallChild(1, begun)]),
        Frame("w", 2.0, [*entries], cancels=[*cancels]),
    ]
    return History.of(frames)


def test_without_the_fitting_code_the_outcome_of_a_child_is_kept_for_it():
    settled = Settled(0, 1, "c", Completed(2.0, b"\x07"))
    assert sent(settled, None, having_child()) == Returned(1, 5.0, b"\x07", "m")
    assert sent(Settled(0, 1, "c", Failed(2.0, FAILURE)), None, having_child()) == Raised(1, 5.0, FAILURE, "m")
    gone = Settled(0, 1, "c", Cancelled(2.0))
    assert isinstance(sent(gone, None, having_child()), Raised)
    assert sent(gone, None, having_child(cancels=[1, 2])) == Interrupted(1, 5.0)


@pytest.mark.parametrize("ended", [Returned(1, 2.0, b"", "x"), Raised(1, 2.0, FAILURE, "x"), Interrupted(1, 2.0)])
def test_without_the_fitting_code_the_outcome_of_a_child_is_taken_once(ended: Entry):
    assert sent(Settled(0, 1, "c", Completed(2.0, b"")), None, having_child(ended)) is None


@pytest.mark.parametrize(("generation", "n", "child"), [(1, 1, "c"), (0, 2, "c"), (0, 1, "other")])
def test_without_the_fitting_code_the_outcome_of_another_child_is_passed_over(generation: int, n: int, child: str):
    assert sent(Settled(generation, n, child, Completed(2.0, b"")), None, having_child()) is None


def test_a_retry_waits_again_for_the_children_that_it_starts_again():
    failed = having_child(Raised(1, 2.0, FAILURE, "x"), Failed(2.0, FAILURE, 1), cancels=[1])
    again = replace(START, id="d", parent=Parent("one", 1, 1))
    failed.add(Frame("w", 3.0, [Retried(3.0, 1, 1, 2, "r", 1, 0, [1])], [CallChild(1, again)]))
    assert isinstance(sent(Settled(1, 1, "d", Cancelled(2.0)), None, failed), Raised)
    kept = having_child(Returned(1, 2.0, b"", "x"), Failed(2.0, FAILURE))
    kept.add(Frame("w", 3.0, [Retried(3.0, 1, None, 2, "r", 2, 0)]))
    assert sent(Settled(0, 1, "c", Completed(2.0, b"")), None, kept) is None


# --- cancel, pause, resume --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("paused", [None, "because"])
def test_cancelling_is_possible_at_any_time_before_the_end(paused: str | None):
    history = History(start=START, paused=paused)
    for turn in (None, make_turn(body)):
        assert sent(Cancel(), turn, history) == CancelRequested(5.0, False, "m")
        assert sent(Cancel(force=True), turn, history) == Cancelled(5.0, True, "m")


def test_a_pause_follows_a_resume_and_the_other_way_round():
    running, paused = History(start=START), History(start=START, paused="because")
    assert sent(Pause(), None, running) == Paused(5.0, "asked for", "m")
    assert sent(Resume(), None, paused) == Resumed(5.0, "m")
    assert "it is paused, and only a" in refusal(sent(Pause(), None, paused))
    assert refusal(sent(Resume(), None, running)) == "it is suspended, and only a paused invocation can be resumed"


# --- after the end ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("outcome", "status"),
    [(Completed(2.0, b""), "completed"), (Failed(2.0, FAILURE), "failed"), (Cancelled(2.0), "cancelled")],
)
def test_a_settled_invocation_refuses_everything_and_passes_over_its_children(outcome: Outcome, status: str):
    history = History(start=START, outcome=outcome)
    requests: list[Request] = [Cancel(), Cancel(force=True), Pause(), Resume()]
    for request in requests:
        assert f"it is {status}, and only" in refusal(sent(request, None, history))
    for answer in (Resolve(0, b""), Reject(0, "no")):
        assert refusal(sent(answer, None, history)) == f"nothing waits for this awakeable: its invocation is {status}"
    assert sent(Settled(0, 1, "c", Completed(2.0, b"")), None, history) is None


def test_only_a_failed_invocation_may_be_retried_and_once_by_a_message():
    message = Message("m", "one", 1.0, RetryInvocation())
    failed = History(start=START, outcome=Failed(2.0, FAILURE))
    assert may_retry(message, failed)
    assert sent(RetryInvocation(), None, failed) is None
    assert not may_retry(Message("m", "one", 1.0, Resume()), failed)
    assert not may_retry(message, History(start=START, outcome=Failed(2.0, FAILURE), messages={"m": None}))
    again = History(start=START, outcome=Failed(2.0, FAILURE), messages={"m": None})
    assert sent(RetryInvocation(), None, again) is None
    for history in (History(outcome=Completed(2.0, b"")), History(outcome=Cancelled(2.0)), History(claimed=True)):
        assert refusal(sent(RetryInvocation(), None, history)) == (
            f"it is {history.status}, and only a failed invocation can be retried"
        )


def test_an_awakeable_of_a_superseded_generation_is_not_the_one_that_is_open(driver: Driver):
    assert "nothing waits for it" in refusal(sent(Resolve(0, encode(7), 1), driver.turn))
    assert "nothing waits for it" in refusal(sent(Reject(0, "no", 1), driver.turn))


def test_what_a_message_becomes_can_be_delivered():
    async def promised(ctx: Context) -> Any:
        return await ctx.awakeable(int)

    driver = Driver(promised)
    entry = sent(Reject(0, "not today"), driver.turn)
    assert entry is not None
    driver.give(entry)
    assert isinstance(driver.outcome, Failed)
    assert (driver.outcome.cause, driver.outcome.failure.type) == (0, "perdure.errors.AwakeableRejected")
    driver.check_replay()


# --- others who await it ----------------------------------------------------------------------------------------------
CHOSEN = replace(START, parent=Parent("first", 0, 0), digest=b"1", chosen=True)
OTHER = Parent("other", 2, 5)


def joining(start: Start | None = None, **changes: Any) -> Message:
    return Message("m", "one", 1.0, Join(replace(start or CHOSEN, **{"parent": OTHER, **changes})))


def test_another_parent_joins_what_has_not_ended_and_is_told_at_once_what_has():
    history = History(start=CHOSEN)
    assert apply(joining(), history, None, 5.0) == Joined(5.0, OTHER, "m")
    assert reply_to(joining(), CHOSEN, history, 5.0) is None
    ended = History(start=CHOSEN, outcome=Completed(2.0, b"\x07"))
    assert apply(joining(), ended, None, 5.0) is None
    told = reply_to(joining(), CHOSEN, ended, 5.0)
    assert told == Message("settled:one:other:2:5", "other", 5.0, Settled(2, 5, "one", Completed(2.0, b"\x07")))


def test_the_parent_that_started_it_need_not_join(driver: Driver):
    for parent in (CHOSEN.parent, None):
        for history in (History(start=CHOSEN), History(start=CHOSEN, outcome=Completed(2.0, b""))):
            assert apply(joining(parent=parent), history, None, 5.0) is None
            assert reply_to(joining(parent=parent), CHOSEN, history, 5.0) is None
    assert apply(joining(), History(), None, 5.0) is None
    assert reply_to(Message("m", "one", 1.0, Pause()), CHOSEN, History(start=CHOSEN), 5.0) is None
    assert sent(Join(replace(driver.start, parent=OTHER)), driver.turn) == Joined(5.0, OTHER, "m")


@pytest.mark.parametrize("other", [{"handler": "another"}, {"digest": b"2"}, {"digest": b"", "input": b"\x90"}])
def test_a_parent_that_meant_another_start_is_told_of_the_conflict(other: dict[str, Any]):
    history = History(start=CHOSEN)
    assert apply(joining(**other), history, None, 5.0) is None
    told = reply_to(joining(**other), CHOSEN, history, 5.0)
    assert told is not None
    assert told.to == "other"
    assert isinstance(told.request, Settled)
    assert isinstance(told.request.outcome, Failed)
    assert told.request.outcome.failure.type == "perdure.errors.IdConflict"
    assert reply_to(joining(digest=b""), CHOSEN, history, 5.0) is None
