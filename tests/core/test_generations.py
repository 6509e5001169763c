"""Retries, by hand: what a generation keeps of the ones before it, and what it issues again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.authoring.context import Context
from perdure.core.effects import effects_of
from perdure.core.failures import failure_of
from perdure.core.generations import current, replayable
from perdure.core.history import History
from perdure.core.journal import (
    Accepted,
    Attempted,
    CallChild,
    Cancelled,
    Completed,
    Entry,
    Failed,
    Interrupted,
    Outcome,
    Parent,
    Paused,
    Raised,
    Resumed,
    Retried,
    Returned,
    SetTimer,
    Start,
    key_number,
)
from perdure.core.turn import current_turn
from perdure.core.types import decoder
from perdure.core.values import encode
from perdure.errors import AwakeableRejected, ChildCancelled
from tests.core.driver import START, Body, Driver, by_ranks, child, child_future, comparable, last, make_turn, step

BAD = ValueError("bad")


class Refusal(Exception):
    pass


def failed(driver: Driver) -> Failed:
    assert isinstance(driver.outcome, Failed)
    return driver.outcome


def fail(body: Body, answers: dict[str, Any], *, batch: int = 1) -> Driver:
    """Run a body until it has failed."""
    driver = Driver(body, batch=batch)
    driver.finish(answers=answers)
    failed(driver)
    return driver


def retried(entries: list[Entry]) -> Retried:
    assert isinstance(entries[0], Retried)
    return entries[0]


def answered(driver: Driver, name: str) -> int:
    """Count the results that a step got."""
    return sum(
        1
        for frame in driver.frames
        if not any(isinstance(entry, Retried) for entry in frame.entries)
        for entry in frame.entries
        if isinstance(entry, Returned) and decoder(Any)(entry.value) == name
    )


# --- the failed step --------------------------------------------------------------------------------------------------
async def four(ctx: Context) -> Any:
    return [await step(name) for name in ("one", "two", "three", "four")]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_retry_goes_on_from_the_failed_step(batch: int):
    driver = fail(four, {"three": BAD}, batch=batch)
    assert failed(driver).cause == 2
    first = retried(driver.retries())
    assert (first.generation, first.cause, first.issued, first.again) == (1, 2, 3, [2])
    assert [*driver.turn.pending] == [2]
    assert driver.turn.pending[2].generation == 1
    driver.finish()
    driver.commit()
    assert driver.value == ["one", "two", "three", "four"]
    assert [answered(driver, name) for name in ("one", "two", "three", "four")] == [1, 1, 1, 1]
    driver.check_replay()


def test_retry_after_retry_is_a_generation_of_its_own():
    driver = fail(four, {"three": BAD})
    for generation in (1, 2, 3):
        assert retried(driver.retries()).generation == generation
        assert driver.turn.pending[2].generation == generation
        driver.finish(answers={"three": BAD})
        driver.check_replay()
    driver.retries()
    driver.finish(answers={"four": BAD})
    last_one = retried(driver.retries())
    assert (last_one.generation, last_one.cause, last_one.issued) == (5, 3, 4)
    driver.finish()
    assert driver.value == ["one", "two", "three", "four"]
    assert answered(driver, "three") == 1
    driver.check_replay()


def test_attempts_begin_anew():
    driver = Driver(four)
    driver.give(Attempted(0, 1000.5, 1, failure_of(BAD), 1001.0))
    assert driver.turn.pending[0].attempts == 1
    driver.raises(0, BAD)
    driver.retries()
    assert (driver.turn.pending[0].attempts, driver.turn.pending[0].retry_due) == (0, 0.0)
    driver.check_replay()


# --- the failure path -------------------------------------------------------------------------------------------------
async def undoes(ctx: Context) -> Any:
    ctx.set("seen", "begun")
    await step("one")
    ctx.set("seen", "one")
    try:
        await step("two")
    except ValueError:
        ctx.set("seen", "undone")
        ctx.set("undo", ctx.random.random())
        sends()
        await child("undo child")
        await asyncio.sleep(5)
        await step("undo one")
        raise
    ctx.set("seen", "done")
    sends()
    await child("good child")
    await asyncio.sleep(7)
    return await step("three")


def sends() -> str:
    turn = current_turn()
    assert turn is not None
    return turn.send(lambda id: Start(id, "other", b"\x80", turn.loop.now, turn.loop.now, 0))


def test_what_the_failure_path_did_is_superseded_and_its_ids_are_not_used_again():
    driver = fail(undoes, {"two": BAD})
    assert driver.turn.state["seen"] == encode("undone")
    driver.retries()
    assert driver.turn.state == {"seen": encode("one")}
    driver.finish()
    assert driver.value == "three"
    driver.check_replay()
    assert [each.handler for each in driver.started] == ["other", "undo child", "other", "good child"]


def test_the_failure_path_may_be_taken_again_in_each_generation():
    driver = fail(undoes, {"two": BAD})
    for _ in range(3):
        driver.retries()
        driver.finish(answers={"two": BAD})
    driver.retries()
    driver.finish()
    driver.check_replay()
    assert len(driver.started) == 2 * 5


def test_a_step_that_fails_on_the_failure_path_is_what_is_retried():
    driver = fail(undoes, {"two": BAD, "undo one": Refusal("no")})
    assert retried(driver.retries()).cause == failed_cause(driver, "undo one")
    driver.finish()
    assert failed(driver).failure.message == "bad"
    driver.check_replay()
    driver.retries()
    driver.finish()
    assert driver.value == "three"
    driver.check_replay()


def failed_cause(driver: Driver, name: str) -> int:
    return next(each.n for frame in driver.frames for each in frame.commands if getattr(each, "name", "") == name)


def test_a_failed_cleanup_is_retried_under_its_cancellation():
    async def body(ctx: Context) -> Any:
        try:
            await step("one")
        finally:
            await step("clean")

    driver = Driver(body)
    driver.cancels()
    driver.finish(answers={"clean": BAD})
    driver.retries()
    driver.finish()
    assert isinstance(driver.outcome, Cancelled)
    driver.check_replay()


def test_randomness_on_the_failure_path_is_not_drawn_again():
    async def body(ctx: Context) -> Any:
        try:
            await step("one")
        except ValueError:
            await step("undo", str(ctx.uuid4()))
            raise
        return str(ctx.uuid4())

    driver = fail(body, {"one": BAD})
    drawn = next(decoder(Any)(e.value) for f in driver.frames for e in f.entries if isinstance(e, Returned))[1]
    driver.retries()
    driver.finish()
    assert driver.value != drawn
    driver.check_replay()


# --- compensations and kept values ------------------------------------------------------------------------------------
async def undo(name: str, first: int | None = None) -> Any:
    """Issue a step as a compensation, which command `first` tried first: this one, by default."""
    turn = current_turn()
    assert turn is not None
    turn.undoing = turn.next_number if first is None else first
    return await step(name)


async def compensated(ctx: Context) -> Any:
    try:
        await step("one")
        await step("two")
    except ValueError:
        await undo("undo one")
        raise


def test_a_retry_that_would_go_back_before_what_was_undone_is_refused():
    driver = fail(compensated, {"two": BAD})
    assert (
        driver.refuses_to_retry() == "its saga has undone what it did before it failed: start it anew, with restart()"
    )


def test_a_compensation_that_is_tried_again_has_the_idempotency_key_of_the_first_try():
    async def body(ctx: Context) -> Any:
        try:
            return await undo("undo")
        except ValueError:
            await step("stand")
        return await undo("undo", 0)

    driver = fail(body, {"undo": BAD, "stand": Refusal()})
    assert retried(driver.retries()).again == [1]
    driver.answer(1)
    (again,) = driver.turn.pending.values()
    assert (again.command.n, key_number(again.command), again.generation) == (2, 0, 0)
    driver.finish()
    assert driver.value == "undo"
    driver.check_replay()


def test_a_compensation_whose_own_failure_is_retried_keeps_its_idempotency_key():
    async def body(ctx: Context) -> Any:
        await step("one")
        return await undo("undo")

    driver = fail(body, {"undo": BAD})
    assert retried(driver.retries()).again == [1]
    (again,) = driver.turn.pending.values()
    assert (key_number(again.command), again.generation) == (1, 0)
    driver.finish()
    driver.check_replay()


def test_a_replay_gives_what_was_kept_whatever_the_code_would_keep_now():
    async def body(ctx: Context, value: bytes = b"old") -> Any:
        turn = current_turn()
        assert turn is not None
        kept = turn.keep(value)
        await step("one")
        return [kept.decode(), await step("two")]

    async def edited(ctx: Context) -> Any:
        return await body(ctx, b"new")

    driver = Driver(body)
    driver.answer(1)
    turn = make_turn(edited)
    turn.replay(driver.frames)
    assert turn.divergence is None
    turn.deliver(Returned(2, 2000.0, encode("two")))
    assert turn.ready().outcome == Completed(2000.0, encode(["old", "two"]))
    turn.close()


def test_code_that_does_not_fit_what_was_kept_says_so():
    async def body(ctx: Context) -> Any:
        turn = current_turn()
        assert turn is not None
        turn.misfit("a graph", "none that fits")

    turn = make_turn(body)
    turn.begin()
    assert str(turn.divergence) == "the journal has a graph, the code now asks for none that fits"
    turn.close()


# --- siblings ---------------------------------------------------------------------------------------------------------
async def grouped(ctx: Context) -> Any:
    async def branch(name: str) -> list[Any]:
        return [await step(f"{name}1"), await step(f"{name}2")]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(branch(name)) for name in "abc"]
    return [task.result() for task in tasks]


GROUPED = [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]]


def test_siblings_that_the_failure_cancelled_run_again():
    driver = Driver(grouped)
    driver.returns(0, "a1")
    driver.raises(1, BAD)
    assert driver.turn.pending[2].cancel_requested
    driver.finish()
    first = retried(driver.retries())
    assert (first.cause, first.issued, first.again) == (1, 4, [1])
    assert {n: each.cancel_requested for n, each in driver.turn.pending.items()} == {1: False, 2: False, 3: False}
    assert {n: each.generation for n, each in driver.turn.pending.items()} == {1: 1, 2: 0, 3: 0}
    driver.finish()
    assert driver.value == GROUPED
    driver.check_replay()


async def grouped_with_a_handled_failure(ctx: Context) -> Any:
    async def patient() -> Any:
        try:
            return await step("a")
        except ConnectionError:
            return "handled"

    async with asyncio.TaskGroup() as group:
        first = group.create_task(patient())
        second = group.create_task(step("b"))
    return [first.result(), second.result()]


def test_a_sibling_that_failed_because_it_was_cancelled_runs_again():
    driver = Driver(grouped_with_a_handled_failure)
    driver.raises(1, BAD)
    driver.raises(0, ConnectionError("cut off while ending"))
    first = retried(driver.retries())
    assert (first.cause, first.again) == (1, [0, 1])
    driver.finish()
    assert driver.value == ["a", "b"]
    driver.check_replay()


def test_a_result_that_came_after_the_failure_is_kept():
    driver = Driver(grouped)
    driver.raises(1, BAD)
    driver.returns(0, "a1")
    driver.interrupts(2)
    failed(driver)
    entries = driver.retries()
    assert [type(entry) for entry in entries] == [Retried, Returned]
    assert sorted(driver.turn.pending) == [1, 2, 3]
    assert driver.turn.pending[3].generation == 1  # a2, issued by the result that was kept
    driver.finish()
    assert driver.value == GROUPED
    assert answered(driver, "a1") == 1
    driver.check_replay()


def test_failures_together_are_retried_together():
    driver = Driver(grouped, batch=3)
    for n in range(3):
        driver.raises(n, BAD)
    driver.commit()
    assert retried(driver.retries()).again == [0, 1, 2]
    driver.finish()
    assert driver.value == GROUPED
    driver.check_replay()


def test_of_a_group_of_failures_the_first_delivered_is_where_it_is_cut():
    async def body(ctx: Context) -> Any:
        results = await asyncio.gather(step("a"), step("b"), step("c"), return_exceptions=True)
        if bad := [each for each in results if isinstance(each, Exception)]:
            raise ExceptionGroup("some", bad)
        return results

    driver = Driver(body)
    driver.raises(2, BAD)
    driver.returns(1, "b")
    driver.raises(0, BAD)
    assert (failed(driver).cause, failed(driver).causes) == (0, [0, 2])
    first = retried(driver.retries())
    assert (first.cause, first.again) == (2, [0, 2])
    driver.finish()
    assert driver.value == ["a", "b", "c"]
    assert answered(driver, "b") == 1
    driver.check_replay()


def test_another_failure_that_the_body_had_handled_stays():
    async def body(ctx: Context) -> Any:
        first, second = await asyncio.gather(step("a"), step("b"), return_exceptions=True)
        if isinstance(first, BaseException):
            raise first
        return repr(second)

    driver = Driver(body)
    driver.raises(0, BAD)
    driver.raises(1, Refusal("stays"))
    assert [type(entry) for entry in driver.retries()] == [Retried, Raised]
    driver.finish()
    assert driver.value == "Refusal('stays')"
    driver.check_replay()


def test_an_end_asked_for_before_the_failure_stays():
    async def body(ctx: Context) -> Any:
        doomed = asyncio.ensure_future(step("doomed"))
        await step("a")
        doomed.cancel()
        result = await step("b")
        await asyncio.wait([doomed])
        return [result, doomed.cancelled()]

    driver = Driver(body)
    driver.returns(0 if driver.names[0] == "a" else 1, "a")
    b = failed_cause(driver, "b")
    driver.raises(b, BAD)
    doomed = failed_cause(driver, "doomed")
    driver.interrupts(doomed)
    failed(driver)
    assert [type(entry) for entry in driver.retries()] == [Retried, Interrupted]
    driver.finish()
    assert driver.value == ["b", True]
    driver.check_replay()


@pytest.mark.parametrize("make", [step, child])
def test_what_failed_when_it_was_asked_to_end_is_not_issued_again_and_ends_as_asked(make: Callable[[str], Any]):
    async def body(ctx: Context) -> Any:
        doomed = asyncio.ensure_future(make("doomed"))
        await asyncio.sleep(0)
        await step("a")
        doomed.cancel()
        try:
            return await doomed
        except asyncio.CancelledError:
            return "ended"

    driver = Driver(body)
    driver.returns(1, "a")
    driver.raises(0, BAD)
    failed(driver)
    assert [type(entry) for entry in driver.retries()] == [Retried, Interrupted]
    driver.finish()
    assert driver.value == "ended"
    driver.check_replay()


def test_a_failure_that_the_body_had_stored_is_retried_over_a_later_generation():
    """The first retry is after the stored failure, which the second one cuts before: what came since is sorted out."""

    async def body(ctx: Context) -> Any:
        stored = await asyncio.gather(step("a"), return_exceptions=True)
        value = await step("b")
        if isinstance(stored[0], BaseException):
            raise stored[0]
        return [*stored, value]

    driver = fail(body, {"a": BAD, "b": Refusal("no")})
    assert retried(driver.retries()).cause == 1
    driver.finish()
    second = retried(driver.retries())
    assert (second.generation, second.cause, second.issued) == (2, 0, 1)
    assert driver.turn.pending[0].generation == 2
    driver.finish()
    assert driver.value == ["a", "b"]
    driver.check_replay()


# --- children, awakeables, timers -------------------------------------------------------------------------------------
def test_a_failed_child_is_started_anew_under_another_id():
    async def body(ctx: Context) -> Any:
        return await child("other", 1)

    driver = fail(body, {"": BAD})
    old = driver.started[0]
    driver.retries()
    new = driver.started[1]
    assert old.id != new.id
    assert new == msgspec.structs.replace(
        old, id=new.id, parent=Parent("one", 1, 0), at=new.at, due=new.due, seed=new.seed
    )
    assert driver.turn.pending[0].generation == 1
    driver.finish()
    assert driver.value == "other"
    driver.check_replay()


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_child_that_the_failure_cancelled_is_started_anew(interrupted: bool):
    async def body(ctx: Context) -> Any:
        async with asyncio.TaskGroup() as group:
            one, two = group.create_task(child("other")), group.create_task(step("bad"))
        return [one.result(), two.result()]

    driver = Driver(body)
    driver.raises(1, BAD)
    if interrupted:
        driver.interrupts(0)
    else:
        driver.raises(0, ChildCancelled("cancelled"))
    assert retried(driver.retries()).again == [0, 1]
    driver.finish()
    assert driver.value == ["other", "bad"]
    driver.check_replay()


async def first_of_group(ctx: Context) -> Any:
    """Wait for the second of three children, ask the others to end, and end as the first does."""
    fails, quick, slow = (child_future(name) for name in ("fails", "quick", "slow"))
    await asyncio.wait([quick])
    fails.cancel()
    slow.cancel()
    await asyncio.wait([fails])
    await step("report")
    return "ended" if fails.cancelled() else fails.result()


@pytest.mark.parametrize("has_failed", [True, False])
def test_a_child_that_was_asked_to_end_after_the_cut_is_started_anew_and_ends_if_the_body_asks_again(has_failed: bool):
    """It failed in its cleanup, or its outcome found no parent any more: nothing brings that outcome again."""
    driver = Driver(first_of_group)
    driver.raises(0, BAD)
    driver.returns(1, "quick")
    assert driver.turn.pending[2].cancel_requested
    if has_failed:
        driver.raises(2, ValueError("in its cleanup"))
    driver.returns(3, "report")
    assert failed(driver).cause == 0
    entries = driver.retries()
    assert [type(entry) for entry in entries] == [Retried, Returned]
    assert retried(entries).again == [0, 2]
    frame = driver.frames[-1]
    assert frame.cancels == [0, 2]
    told = effects_of(START, frame, History.of(driver.frames)).messages
    assert [message.to for message in told] == [each.id for each in driver.started[3:]]
    driver.finish()
    assert driver.value == "ended"
    driver.check_replay()


def test_a_child_that_was_asked_to_end_before_the_cut_and_has_not_answered_ends_as_asked():
    driver = Driver(first_of_group)
    driver.returns(1, "quick")
    driver.raises(0, ValueError("in its cleanup"))
    driver.returns(3, "report")
    assert failed(driver).cause == 0
    assert 2 in driver.turn.pending
    entries = driver.retries()
    assert [(type(entry), getattr(entry, "n", None)) for entry in entries] == [
        (Retried, None),
        (Interrupted, 0),
        (Interrupted, 2),
    ]
    driver.finish()
    assert driver.value == "ended"
    driver.check_replay()


def test_a_child_whose_id_was_chosen_cannot_be_started_anew():
    async def body(ctx: Context) -> Any:
        turn = current_turn()
        assert turn is not None

        def start(_: str, parent: Parent) -> Start:
            return Start("mine", "other", b"\x80", 1.0, 1.0, 0, parent=parent, chosen=True)

        return await turn.call_child(start, decoder(Any))

    assert "'mine' failed" in fail(body, {"": BAD}).refuses_to_retry()


def test_a_rejected_awakeable_is_open_again_under_its_id():
    ids: list[str] = []

    async def body(ctx: Context) -> Any:
        promise = ctx.awakeable(str)
        ids.append(promise.id)
        return await promise

    driver = Driver(body)
    driver.raises(0, AwakeableRejected("no"))
    assert retried(driver.retries()).again == [0]
    assert driver.turn.waits_for(0) is not None
    assert driver.turn.pending[0].generation == 0
    driver.returns(0, "yes")
    assert driver.value == "yes"
    assert len({*ids}) == 1
    driver.check_replay()


def test_time_at_rest_does_not_count_for_timers():
    async def body(ctx: Context) -> Any:
        async with asyncio.timeout(10):
            return await step("one")

    driver = Driver(body)
    driver.now += 4
    driver.raises(1, BAD)
    driver.now += 1000
    assert retried(driver.retries()).again == [0, 1]
    timer = driver.turn.pending[0].command
    assert isinstance(timer, SetTimer)
    assert timer.due == pytest.approx(driver.now + 6, abs=0.01)
    driver.finish()
    assert driver.value == "one"
    driver.check_replay()


def test_a_timer_that_fired_after_the_failure_has_fired():
    async def body(ctx: Context) -> Any:
        async def sleeps() -> str:
            await asyncio.sleep(5)
            return await step("woke")

        slept, one = await asyncio.gather(sleeps(), step("one"), return_exceptions=True)
        if isinstance(one, BaseException):
            raise one
        return [slept, one]

    driver = fail(body, {"one": BAD})
    timer = next(each.n for frame in driver.frames for each in frame.commands if isinstance(each, SetTimer))
    entries = driver.retries()
    assert timer not in retried(entries).again
    driver.finish()
    assert driver.value == ["woke", "one"]
    driver.check_replay()


# --- the body itself --------------------------------------------------------------------------------------------------
class Code:
    """Code that is deployed while invocations of it have failed."""

    good = False


def test_a_body_that_raised_is_run_again_over_what_it_has():
    code = Code()

    async def body(ctx: Context) -> Any:
        one = await step("one")
        sends()
        if not code.good:
            raise Refusal("bug")
        return [one, await step("two")]

    driver = fail(body, {})
    assert failed(driver).cause is None
    first = retried(driver.retries())
    assert (first.cause, first.issued, first.again) == (None, 2, [])
    assert comparable(driver.outcome) != comparable(None)
    failed(driver)
    driver.check_replay()
    code.good = True
    driver.retries()
    driver.finish()
    assert driver.value == ["one", "two"]
    assert len(driver.started) == 1
    assert driver.turn.pending == {}
    driver.replayed()
    driver.check_ids()


def test_a_body_that_raised_at_once_is_run_again():
    code = Code()

    async def body(ctx: Context) -> Any:
        if not code.good:
            raise Refusal("bug")
        assert ctx.patched("repaired")
        return await child("other")

    driver = fail(body, {})
    driver.retries()
    failed(driver)
    code.good = True
    driver.retries()
    assert driver.turn.pending[1].generation == 2
    driver.finish()
    assert driver.value == "other"
    driver.replayed()


def test_repaired_code_goes_on_with_siblings_that_its_failure_had_cancelled():
    code = Code()

    async def body(ctx: Context) -> Any:
        async def checks() -> Any:
            one = await step("one")
            if not code.good:
                raise Refusal("bug")
            return one

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(checks()), group.create_task(step("two"))]
        return [task.result() for task in tasks]

    driver = fail(body, {})
    driver.retries()
    driver.finish()
    failed(driver)
    driver.check_replay()
    code.good = True
    driver.retries()
    driver.finish()
    assert driver.value == ["one", "two"]
    assert answered(driver, "one") == 1
    driver.replayed()


@pytest.mark.parametrize("make", [step, child])
@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_repaired_code_goes_on_with_a_sibling_that_its_failure_cancelled_and_that_did_not_end_as_asked(
    make: Callable[[str], Any], fails: bool, batch: int
):
    code = Code()

    async def body(ctx: Context) -> Any:
        async def checks() -> Any:
            one = await step("one")
            if not code.good:
                raise Refusal("bug")
            return one

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(checks()), group.create_task(make("two")), group.create_task(make("three"))]
        return [task.result() for task in tasks]

    driver = Driver(body, batch=batch)
    driver.commit()
    driver.returns(0, "one")
    driver.interrupts(2)
    if fails:
        driver.raises(1, BAD)
    else:
        driver.returns(1, "two")
    driver.commit()
    assert failed(driver).cause == (1 if fails else None)
    entries = driver.retries()
    assert [type(entry) for entry in entries] == [Retried, Interrupted, Interrupted if fails else Returned]
    failed(driver)
    driver.check_replay()
    code.good = True
    driver.retries()
    driver.finish()
    assert driver.value == ["one", "two", "three"]
    driver.replayed()
    driver.check_ids()


def test_a_result_that_came_after_its_cancellation_is_kept_by_repaired_code():
    code = Code()

    async def body(ctx: Context) -> Any:
        two = asyncio.create_task(step("two"))
        one = await step("one")
        if not code.good:
            two.cancel()
            await asyncio.wait([two])
            raise Refusal("bug")
        return [one, await two]

    driver = Driver(body)
    one = driver.names.index("one")
    driver.returns(one, "one")
    driver.returns(1 - one, "two")
    failed(driver)
    code.good = True
    entries = driver.retries()
    assert [type(entry) for entry in entries] == [Retried, Returned]
    assert retried(entries).again == []
    assert driver.value == ["one", "two"]
    driver.replayed()


def test_what_a_body_did_after_the_end_that_it_had_asked_for_is_kept():
    async def body(ctx: Context) -> Any:
        two = asyncio.create_task(step("two"))
        await step("one")
        two.cancel()
        await asyncio.wait([two])
        sends()
        raise Refusal("bug")

    driver = Driver(body)
    one = driver.names.index("one")
    driver.returns(one, "one")
    driver.returns(1 - one, "two")
    failed(driver)
    driver.retries()
    failed(driver)
    assert len(driver.started) == 1
    driver.check_replay()


def test_a_body_that_raised_before_any_fact_is_run_again_with_the_step_it_had_cancelled():
    code = Code()

    async def body(ctx: Context) -> Any:
        one = asyncio.create_task(step("one"))
        await asyncio.sleep(0)
        if not code.good:
            raise Refusal("bug")
        return await one

    driver = fail(body, {})
    assert [type(entry) for frame in driver.frames for entry in frame.entries] == [Accepted, Interrupted, Failed]
    first = retried(driver.retries())
    assert (first.frames, first.entries, first.issued) == (0, 1, 1)
    driver.finish()
    failed(driver)
    driver.check_replay()
    code.good = True
    driver.retries()
    driver.finish()
    assert driver.value == "one"


def test_of_answers_that_a_retry_leaves_out_none_comes_back():
    """A step that failed with others after its cancellation, and had attempts before: it is issued again, once."""
    driver = Driver(grouped)
    driver.raises(1, BAD)
    driver.give(Attempted(0, 1000.5, 1, failure_of(BAD), 1001.0))
    driver.raises(0, BAD)
    driver.interrupts(2)
    entries = driver.retries()
    assert [type(entry) for entry in entries] == [Retried]
    assert retried(entries).again == [0, 1]
    assert driver.turn.pending[0].attempts == 0
    driver.finish()
    assert driver.value == GROUPED
    driver.check_replay()


def test_other_code_is_refused_with_both_sides():
    driver = fail(four, {"three": BAD})

    async def changed(ctx: Context) -> Any:
        return [await step(name) for name in ("one", "new", "three")]

    assert "'new'" in driver.refuses_to_retry(changed)
    assert "'new'" in fail(four, {"three": BAD}, batch=4).refuses_to_retry(changed)

    async def shorter(ctx: Context) -> Any:
        raise Refusal("less")

    assert "diverges" in driver.refuses_to_retry(shorter)

    async def sends_first(ctx: Context) -> Any:
        await step("one")
        sends()
        raise Refusal("bug")

    async def does_not(ctx: Context) -> Any:
        await step("one")
        raise Refusal("bug")

    assert "nothing there" in fail(sends_first, {}).refuses_to_retry(does_not)


def test_an_unfitting_cut_is_a_divergence():
    driver = fail(four, {"one": BAD})
    driver.retries()
    frames = [*driver.frames]
    again = retried([entry for entry in frames[-1].entries if isinstance(entry, Retried)])
    frames[-1] = msgspec.structs.replace(frames[-1], entries=[msgspec.structs.replace(again, again=[7])])
    turn = driver.fresh()
    turn.replay(frames)
    assert turn.divergence is not None
    assert "#7" in str(turn.divergence)


# --- time limits and pauses -------------------------------------------------------------------------------------------
def test_an_invocation_that_ran_out_of_time_goes_on():
    driver = Driver(grouped, start=msgspec.structs.replace(START, timeout=9.0))
    driver.returns(0, "a1")
    driver.cancels(timed_out=True)
    driver.finish()
    assert failed(driver).failure.qualname == "InvocationTimedOut"
    first = retried(driver.retries())
    assert (first.cause, first.again) == (None, [])
    driver.finish()
    assert driver.value == GROUPED
    driver.check_replay()


def test_a_failure_that_arrived_during_a_pause_is_left_out():
    driver = Driver(grouped)
    driver.give(Paused(1000.5, "because"))
    driver.returns(0, "a1")
    driver.raises(1, BAD)
    driver.give(Attempted(2, 1000.7, 1, failure_of(BAD), 1000.8))
    driver.returns(2, "c1")
    driver.give(Resumed(1001.0))
    driver.finish()
    failed(driver)
    entries = driver.retries()
    assert [type(entry) for entry in entries] == [Retried, Returned]
    assert driver.turn.pending.keys() == {1, 3, 4}
    assert {n: each.generation for n, each in driver.turn.pending.items()} == {1: 1, 3: 0, 4: 1}
    driver.finish()
    assert driver.value == GROUPED
    assert [answered(driver, name) for name in ("a1", "c1")] == [1, 1]
    driver.check_replay()


def test_a_pause_at_the_end_is_over():
    driver = Driver(four)
    driver.batch = 3
    driver.raises(0, BAD)
    driver.give(Paused(1000.9, "too late"))
    driver.commit()
    failed(driver)
    driver.retries()
    assert not driver.turn.paused
    driver.finish()
    assert isinstance(driver.outcome, Completed)
    driver.check_replay()


def test_a_pause_that_came_before_the_body_could_begin_is_over():
    async def body(ctx: Context) -> Any:
        raise Refusal("bug")

    driver = Driver(body)
    frame = driver.frames[0]
    driver.frames = [
        msgspec.structs.replace(frame, entries=[Accepted(START), Paused(1000.0, "late"), failed(driver)]),
    ]
    driver.retries()
    failed(driver)


# --- reading ----------------------------------------------------------------------------------------------------------
def test_a_journal_without_retries_is_read_as_it_is():
    frames = fail(four, {"three": BAD}).frames
    assert current(frames) is frames
    assert replayable(frames) is frames


def test_the_current_frames_do_not_show_what_is_superseded():
    driver = fail(undoes, {"two": BAD})
    driver.retries()
    commands = [command for frame in current(driver.frames) for command in frame.commands]
    assert [command.n for command in commands] == [0, 1, 1]
    assert not any(isinstance(command, CallChild) for command in commands)
    entries = [entry for frame in current(driver.frames) for entry in frame.entries]
    assert not any(isinstance(entry, Failed | Raised) for entry in entries)


# --- all together -----------------------------------------------------------------------------------------------------
@st.composite
def programs(draw: st.DrawFn) -> tuple[list[list[str]], bool, dict[str, int]]:
    """Branches of commands, whether they are a group, and how often each command fails."""
    kinds = st.sampled_from(["step", "child", "sleep", "send", "set", "undo"])
    branches = draw(st.lists(st.lists(kinds, min_size=1, max_size=4), min_size=1, max_size=4))
    names = [f"{b}.{i}" for b, branch in enumerate(branches) for i in range(len(branch))]
    failures = draw(st.dictionaries(st.sampled_from(names), st.integers(1, 3), max_size=4))
    return branches, draw(st.booleans()), failures


def body_of(branches: list[list[str]], grouped: bool) -> Body:
    async def body(ctx: Context) -> Any:
        async def branch(number: int) -> list[Any]:
            results: list[Any] = []
            for place, kind in enumerate(branches[number]):
                name = f"{number}.{place}"
                match kind:
                    case "child":
                        results.append(await child(name))
                    case "sleep":
                        await asyncio.sleep(place + number)
                    case "send":
                        sends()
                    case "set":
                        ctx.set(name, place)
                    case _:
                        try:
                            results.append(await step(name))
                        except Exception:
                            if kind == "undo":
                                ctx.set("undone", name)
                                sends()
                                await step(f"undo {name}")
                                await child(f"undo {name}")
                            raise
            return results

        if not grouped:
            return await asyncio.gather(*(branch(number) for number in range(len(branches))))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(branch(number)) for number in range(len(branches))]
        return [task.result() for task in tasks]

    return body


@given(programs(), st.lists(st.integers(0, 7), max_size=30), st.integers(1, 3))
def test_whatever_fails_retries_end_where_a_run_without_failures_does(
    program: tuple[list[list[str]], bool, dict[str, int]], ranks: list[int], batch: int
):
    branches, grouped, failures = program
    body = body_of(branches, grouped)
    model = Driver(body)
    model.finish()
    driver = Driver(body, batch=batch)
    left, choose = dict(failures), by_ranks(ranks)
    outcome: Outcome | None = None
    for _ in range(sum(failures.values()) + 1):
        while driver.outcome is None and (driver.turn.pending or driver.entries):
            if not driver.turn.pending:
                driver.commit()
                continue
            n = choose(driver.turn)
            pending = driver.turn.pending[n]
            command = pending.command
            name = command.start.handler if isinstance(command, CallChild) else getattr(command, "name", "")
            if left.get(name, 0) and not pending.cancel_requested:
                left[name] -= 1
                driver.raises(n, BAD)
            else:
                driver.answer(n)
        outcome = driver.outcome
        if isinstance(outcome, Completed):
            break
        driver.retries()
    assert isinstance(outcome, Completed)
    assert outcome.value == failed_never(model)
    assert driver.turn.state == model.turn.state
    driver.check_replay()
    first: dict[str, int] = {}
    for frame in driver.frames:
        for entry in frame.entries:
            if isinstance(entry, Returned) and not any(isinstance(each, Retried) for each in frame.entries):
                value = decoder(Any)(entry.value)
                first[value] = first.get(value, 0) + 1
    if batch == 1 and not any("undo" in branch for branch in branches):
        assert {name: times for name, times in first.items() if times > 1} == {}
    for one in (driver, model):
        one.turn.close()


def failed_never(model: Driver) -> bytes:
    assert isinstance(model.outcome, Completed)
    return model.outcome.value


def test_the_end_is_the_same_when_the_turn_is_rebuilt_before_every_fact():
    plain, evicted = fail(grouped, {"b1": BAD}), Driver(grouped, evict=True)
    evicted.finish(answers={"b1": BAD})
    for driver in (plain, evicted):
        driver.retries()
        driver.finish(last)
    assert evicted.commands == plain.commands
    assert comparable(evicted.outcome) == comparable(plain.outcome)
