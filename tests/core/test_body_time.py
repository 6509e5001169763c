"""The time of a body begins when the body begins, whatever it had to wait for, and is the same on replay."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.authoring.context import Context
from perdure.core.journal import (
    Accepted,
    CallStep,
    Claimed,
    Failed,
    Fired,
    Frame,
    Granted,
    Paused,
    Resumed,
    Retried,
    Returned,
    SetTimer,
    Waited,
)
from perdure.core.values import digest, encode
from tests.core.driver import START, Body, Driver, make_turn, step

HOUR = 3600.0
LATE = START.due + HOUR
BAD = ValueError("bad")


def dues(driver: Driver) -> list[float]:
    return [each.due for frame in driver.frames for each in frame.commands if isinstance(each, SetTimer)]


def waits_of(driver: Driver) -> list[Waited]:
    return [each for frame in driver.frames for each in frame.entries if isinstance(each, Waited)]


def replays(driver: Driver) -> bool:
    """Report whether the code replays the whole journal, and has the same time then."""
    turn = driver.fresh()
    turn.replay(driver.frames)
    return turn.divergence is None and turn.loop.now == driver.turn.loop.now


def begun(body: Body, begins: float = LATE, **more: Any) -> Driver:
    driver = Driver(body, begins=begins, **more)
    driver.commit()
    return driver


# --- what the body sees -----------------------------------------------------------------------------------------------
async def sleeps(ctx: Context) -> Any:
    await asyncio.sleep(5)


async def under_a_timeout(ctx: Context) -> Any:
    async with asyncio.timeout(5):
        return await step("one")


async def looks_at_the_loop(ctx: Context) -> Any:
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(began + 5 - asyncio.get_running_loop().time())


async def looks_at_the_context(ctx: Context) -> Any:
    await asyncio.sleep(ctx.now().timestamp() + 5 - asyncio.get_running_loop().time())


async def sets_an_absolute_timer(ctx: Context) -> Any:
    loop = asyncio.get_running_loop()
    waits = loop.create_future()
    loop.call_at(loop.time() + 5, waits.set_result, None)
    await waits


EVERY = [sleeps, under_a_timeout, looks_at_the_loop, looks_at_the_context, sets_an_absolute_timer]


@pytest.mark.parametrize("body", EVERY)
@pytest.mark.parametrize("evict", [False, True])
def test_body_that_waited_for_an_hour_begins_then(body: Body, evict: bool):
    driver = begun(body, evict=evict)
    assert dues(driver) == [LATE + 5]
    assert waits_of(driver) == [Waited(LATE, 0)]
    driver.finish()
    driver.check_replay()


async def steps_first(ctx: Context) -> Any:
    await step("one")
    await asyncio.sleep(5)


def test_body_that_asks_for_steps_only_needs_no_record_of_its_time():
    driver = begun(steps_first)
    assert waits_of(driver) == []
    driver.returns(0)
    assert dues(driver) == [driver.now + 5]
    driver.finish()
    driver.check_replay()


def test_body_that_begins_when_it_is_due_needs_no_record_of_its_time():
    driver = begun(sleeps, START.due)
    assert waits_of(driver) == []
    assert dues(driver) == [START.due + 5]


def test_body_of_a_journal_without_a_record_begins_when_it_was_due():
    frames = [Frame("w", LATE, [Accepted(START), Claimed(LATE, 1, "w", "3.11", "0")], [SetTimer(0, START.due + 5)])]
    turn = make_turn(sleeps)
    turn.replay(frames)
    assert turn.divergence is None
    assert turn.loop.now == START.due


# --- clocks apart -----------------------------------------------------------------------------------------------------
def test_body_of_a_start_without_a_delay_begins_by_the_clock_of_its_worker():
    behind = START.due - HOUR
    driver = begun(sleeps, behind)
    assert dues(driver) == [behind + 5]
    driver.finish()
    driver.check_replay()


@pytest.mark.parametrize("body", [steps_first, sleeps])
def test_time_of_a_worker_whose_clock_is_behind_is_recorded_even_if_the_body_did_not_look(body: Body):
    driver = begun(body, START.due - HOUR)
    assert waits_of(driver) == [Waited(START.due - HOUR, 0)]
    driver.finish()
    assert max(dues(driver)) < START.due
    driver.check_replay()


def test_body_of_a_delayed_start_never_begins_before_it_is_due():
    start = replace(START, due=START.at + 60)
    driver = Driver(sleeps, start, begins=start.due - 0.5)
    driver.commit()
    assert dues(driver) == [start.due + 5]


@pytest.mark.parametrize(
    ("delay", "now", "due"), [(0, -HOUR, True), (-1, -HOUR, True), (0, HOUR, True), (1, 0, False), (1, 1, True)]
)
def test_start_without_a_delay_is_due_by_any_clock(delay: float, now: float, due: bool):
    assert replace(START, due=START.at + delay).is_due(START.at + now) is due


# --- claims, keys and pauses before it --------------------------------------------------------------------------------
def test_claims_of_workers_that_died_at_once_are_no_beginning():
    frames = [
        Frame("w", 1500.0, [Accepted(START), Claimed(1500.0, 1, "w", "3.11", "0")]),
        Frame("v", 2000.0, [Claimed(2000.0, 2, "v", "3.11", "0")]),
    ]
    turn = make_turn(sleeps)
    turn.replay(frames)
    turn.wait_until(LATE)
    turn.begin()
    ready, waited = turn.ready(), turn.waited()
    assert ready.commands == [SetTimer(0, LATE + 5)]
    assert waited is not None
    frames.append(Frame("v", LATE, [waited], ready.commands))
    again = make_turn(sleeps)
    again.replay(frames)
    assert again.divergence is None
    assert again.loop.now == turn.loop.now == LATE


def test_body_that_waited_for_its_key_begins_when_it_has_it():
    start = replace(START, key="key")
    turn = make_turn(sleeps, start)
    turn.wait_until(LATE)
    turn.deliver(Granted(LATE, 0, {}))
    ready, waited = turn.ready(), turn.waited()
    assert ready.commands == [SetTimer(0, LATE + 5)]
    assert waited is not None
    assert waited == Waited(LATE, 0)
    again = make_turn(sleeps, start)
    again.replay([Frame("w", LATE, [Accepted(start), Granted(LATE, 0, {}), waited], ready.commands)])
    assert again.divergence is None
    assert again.loop.now == LATE


def test_body_that_was_paused_before_it_began_begins_when_the_pause_is_over():
    turn = make_turn(sleeps)
    frames = [Frame("w", START.due, [Accepted(START), Paused(START.due, "asked for")])]
    turn.replay(frames)
    turn.wait_until(LATE - 10)
    assert turn.waited() is None, "it has not begun"
    turn.wait_until(LATE)
    turn.deliver(Resumed(LATE))
    ready, waited = turn.ready(), turn.waited()
    assert ready.commands == [SetTimer(0, LATE + 5)]
    assert waited is not None
    assert waited == Waited(LATE, 0)
    frames.append(Frame("w", LATE, [waited, Resumed(LATE)], ready.commands))
    again = make_turn(sleeps)
    again.replay(frames)
    assert again.divergence is None
    assert again.loop.now == LATE


@pytest.mark.parametrize("evict", [False, True])
def test_facts_that_a_pause_held_back_come_when_it_is_over(evict: bool):
    driver = Driver(steps_first, evict=evict)
    driver.give(Paused(driver.now, "asked for"))
    driver.returns(0)
    driver.now += HOUR
    resumed = driver.now
    driver.turn.wait_until(resumed)
    if evict:  # `give` makes another turn
        driver.evict = False
    driver.give(Resumed(resumed))
    assert dues(driver) == [resumed + 5]
    assert waits_of(driver) == [Waited(resumed)]
    driver.finish()
    assert replays(driver)


# --- retries ----------------------------------------------------------------------------------------------------------
DAYS = 3 * 24 * HOUR


def retry_later(driver: Driver, body: Body | None = None) -> float:
    """Retry three days later, perhaps with other code; return when."""
    driver.now += DAYS
    if body is not None:
        driver.body = body
    driver.retries()
    return driver.now


def test_retried_body_has_the_time_of_the_retry_once_the_step_has_its_result():
    async def body(ctx: Context) -> Any:
        await step("one")
        await asyncio.sleep(5)

    driver = Driver(body)
    driver.finish(answers={"one": BAD})
    at = retry_later(driver)
    driver.returns(0)
    assert dues(driver)[-1] == pytest.approx(at + 5, abs=0.1)
    driver.finish()
    driver.check_replay()


def raises_at(where: int) -> Body:
    """Return a body that raises by itself: at once, after a step, or after the time limit of one was set."""

    async def body(ctx: Context) -> Any:
        if where == 0:
            raise BAD
        await step("one")
        if where == 1:
            raise BAD
        async with asyncio.timeout(10):
            if where == 2:
                raise BAD
            await step("two")
        async with asyncio.timeout(10):
            return await step("three")

    return body


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_new_code_of_a_retried_body_runs_at_the_time_of_the_retry(where: int, batch: int):
    driver = Driver(raises_at(where), batch=batch)
    driver.finish()
    assert isinstance(driver.outcome, Failed)
    at = retry_later(driver, raises_at(9))
    assert driver.turn.loop.now >= at
    driver.finish()
    assert driver.value == "three"
    assert all(due >= at for due in dues(driver)[1 if where == 2 else 0 :])
    assert replays(driver)


def test_outcomes_that_a_retry_keeps_do_not_bring_their_time_back():
    async def body(ctx: Context) -> Any:
        async def waits() -> Any:
            await step("kept")
            await asyncio.sleep(5)

        async with asyncio.TaskGroup() as group:
            group.create_task(waits())
            group.create_task(step("fails"))

    driver = Driver(body, batch=9)
    driver.raises(1, BAD)
    driver.returns(0)
    driver.finish()
    at = retry_later(driver)
    driver.finish()
    assert dues(driver)[-1] >= at + 5
    driver.check_replay()


@pytest.mark.parametrize("batch", [1, 2])
def test_second_retry_of_new_code_runs_at_its_own_time(batch: int):
    async def fails_again(ctx: Context) -> Any:
        await step("one")
        async with asyncio.timeout(10):
            await step("two")
        raise BAD

    driver = Driver(raises_at(1), batch=batch)
    driver.finish()
    first = retry_later(driver, fails_again)
    driver.finish()
    assert isinstance(driver.outcome, Failed)
    second = retry_later(driver, raises_at(9))
    assert second > first + DAYS - 1
    driver.finish()
    assert driver.value == "three"
    assert first < dues(driver)[0] < second < dues(driver)[-1]
    assert replays(driver)


def test_body_out_of_time_goes_on_at_the_time_of_the_retry():
    async def body(ctx: Context) -> Any:
        await asyncio.Event().wait()

    async def repaired(ctx: Context) -> Any:
        await asyncio.sleep(5)

    driver = Driver(body)
    driver.commit()
    driver.cancels(timed_out=True)
    driver.finish()
    assert isinstance(driver.outcome, Failed)
    at = retry_later(driver, repaired)
    assert dues(driver)[-1] == at + 5
    driver.finish()
    assert replays(driver)


def test_retry_of_an_earlier_release_replays_by_the_old_rule():
    """It has no record of the time, and issued the timers of new code twice: at the old time, and again."""

    async def repaired(ctx: Context) -> Any:
        await step("one")
        await asyncio.sleep(5)

    driver = Driver(raises_at(1))
    driver.finish()
    due = driver.turn.loop.now + 5
    retry_later(driver, repaired)
    *before, last = driver.frames
    found = next(each for each in last.entries if isinstance(each, Retried))
    old = replace(
        last,
        entries=[replace(found, again=[1], rested=DAYS)],
        commands=[SetTimer(1, due), SetTimer(1, due + DAYS)],
    )
    turn = make_turn(repaired)
    turn.replay([*before, old])
    assert turn.divergence is None
    assert turn.loop.now == due - 5


# --- the clock never goes back ----------------------------------------------------------------------------------------
def test_clock_never_goes_back_within_a_body():
    seen: list[float] = []

    async def body(ctx: Context) -> Any:
        loop = asyncio.get_running_loop()
        seen.append(loop.time())
        await step("one")
        seen.append(loop.time())
        await asyncio.sleep(1)
        seen.append(loop.time())

    driver = begun(body)
    driver.give(Returned(0, LATE - 1, encode(None)))  # of a worker whose clock is behind
    driver.give(Fired(1, LATE + 1))
    assert seen == [LATE, LATE, LATE + 1]


def step_of(name: str, n: int = 0) -> CallStep:
    return CallStep(n, name, digest(encode(())))


def test_body_that_begins_in_a_later_frame_has_the_time_of_that_frame():
    """The one that a worker wrote before its body had asked for anything is not the beginning of the next."""
    frames = [
        Frame("w", LATE, [Accepted(START), Claimed(LATE, 1, "w", "3.11", "0"), Waited(LATE, 0)]),
        Frame("w", LATE + 9, [Claimed(LATE + 9, 2, "v", "3.11", "0"), Waited(LATE + 9, 0)], [SetTimer(0, LATE + 14)]),
    ]
    turn = make_turn(sleeps)
    turn.replay(frames)
    assert turn.divergence is None
    assert turn.loop.now == LATE + 9
