"""Bodies that poll, run on, end the process, cancel themselves or wait for nothing: contained, and replayed."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
from msgspec.structs import replace

from perdure.authoring.context import Context
from perdure.core import causes, resting, where
from perdure.core.causes import Causes
from perdure.core.failures import failure_of
from perdure.core.journal import (
    Accepted,
    Cancelled,
    Completed,
    Failed,
    Fired,
    Frame,
    Paused,
    Raised,
    Resumed,
    Returned,
    SetTimer,
)
from perdure.core.retry import DURATION_LIMIT_SECONDS
from perdure.core.turn import Turn, current_turn
from perdure.core.values import encode
from tests.core.driver import SECRET, START, Body, Driver, diverges, first, make_turn, play, step

few = pytest.mark.usefixtures("few_callbacks")


@pytest.fixture
def few_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bodies rest soon, so that tests are fast."""
    monkeypatch.setattr(resting, "CALLBACKS_PER_DRAIN_LIMIT", 50)
    monkeypatch.setattr(resting, "UNRESTED_CALLBACKS_LIMIT", 1_000)


def failure_in(driver: Driver) -> str:
    assert isinstance(driver.outcome, Failed)
    return f"{driver.outcome.failure.type}: {driver.outcome.failure.message}"


def rests_in(driver: Driver) -> list[SetTimer]:
    every = [command for frame in driver.frames for command in frame.commands]
    return [each for each in every if isinstance(each, SetTimer) and each.rest]


# --- polling ----------------------------------------------------------------------------------------------------------
async def polls(ctx: Context) -> Any:
    task = asyncio.ensure_future(step("a"))
    while not task.done():
        await asyncio.sleep(0)
    return task.result()


async def polls_the_clock(ctx: Context) -> Any:
    deadline = ctx.now().timestamp() + 0.01
    while asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0)
    return await step("then")


async def polls_in_branches(ctx: Context) -> Any:
    done: list[str] = []

    async def branch(name: str) -> None:
        await step(name)
        done.append(name)

    async def watch() -> None:
        while len(done) < 2:
            await asyncio.sleep(0)

    await asyncio.gather(branch("a"), watch(), branch("b"), watch())
    return done


async def polls_by_callbacks(ctx: Context) -> Any:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(step("a"))
    asked = 0

    def ask() -> None:
        nonlocal asked
        asked += 1
        if not task.done():
            loop.call_soon(ask)

    ask()
    return [await task, asked > 1]


async def polls_after_its_end(ctx: Context) -> Any:
    async def cleans_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            task = asyncio.ensure_future(step("undo"))
            while not task.done():
                await asyncio.sleep(0)

    left = asyncio.create_task(cleans_up())
    await asyncio.sleep(0)
    return left.get_name()


async def counts_long(ctx: Context) -> Any:
    total = 0
    for _ in range(400):
        await asyncio.sleep(0)
        total += 1
    return [total, await step("then")]


@few
@pytest.mark.parametrize(
    ("body", "value"),
    [
        (polls, "a"),
        (polls_the_clock, "then"),
        (polls_in_branches, ["a", "b"]),
        (polls_by_callbacks, ["a", True]),
        (polls_after_its_end, "task-2"),
        (counts_long, [400, "then"]),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_body_that_polls_rests_goes_on_with_the_next_fact_and_replays(body: Body, value: Any, batch: int):
    driver = play(body, batch=batch)
    assert driver.value == value
    assert rests_in(driver)


@few
def test_a_body_that_polls_rests_longer_and_longer_until_a_fact_comes():
    driver = Driver(polls)
    for _ in range(20):
        (n,) = driver.turn.pending.keys() - {0}
        driver.fires(n)
    rests = rests_in(driver)
    lasted = [round(rest.due - before.due, 3) for before, rest in itertools.pairwise(rests[16:])]
    assert [round(rests[0].due - START.due, 3), *lasted] == [0.001, 60.0, 60.0, 60.0, 60.0]
    driver.returns(0, "a")
    assert driver.value == "a"
    assert driver.frames[-1].cancels == [rests[-1].n]  # the rest that was not needed any more
    driver.check_replay()


@few
def test_rests_begin_short_again_after_a_fact_and_after_a_wait():
    async def body(ctx: Context) -> Any:
        for name in ("a", "b"):
            task = asyncio.ensure_future(step(name))
            while not task.done():
                await asyncio.sleep(0)
        await step("waits")
        return await polls(ctx)

    driver = play(body, lambda: rest_twice_then_answer())
    begun = [frame.at for frame in driver.frames for each in frame.commands if isinstance(each, SetTimer)]
    lasted = [round(rest.due - at, 3) for rest, at in zip(rests_in(driver), begun, strict=True)]
    assert lasted[:2] == [0.001, 0.002]
    assert lasted.count(0.001) == 3


def rest_twice_then_answer() -> Callable[[Turn], int]:
    rested = 0

    def choose(turn: Turn) -> int:
        nonlocal rested
        timers = [n for n, each in turn.pending.items() if isinstance(each.command, SetTimer)]
        if timers and rested < 2:
            rested += 1
            return timers[0]
        rested = 0
        return first(turn)

    return choose


@few
def test_the_drain_ends_while_a_body_polls_so_that_others_run():
    turn = make_turn(polls)
    turn.begin()
    assert {type(each.command).__name__ for each in turn.pending.values()} == {"CallStep", "SetTimer"}
    assert turn.stuck_at is None
    turn.deliver(Returned(0, 1001.0, encode("a")))
    assert turn.ready().outcome == Completed(1001.0, encode("a"))


@few
def test_a_body_that_runs_on_for_nothing_fails_in_the_end_with_its_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resting, "RESTS_LIMIT", 5)

    async def body(ctx: Context) -> Any:
        while True:
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                continue

    driver = Driver(body)
    driver.finish()
    assert len(rests_in(driver)) == 5
    assert failure_in(driver).startswith("perdure.errors.LimitExceeded: the body of invocation 'one' ran 250 callbacks")
    assert "last at test_strange_bodies.py:" in failure_in(driver)
    driver.check_replay()
    driver.retries()
    assert failure_in(driver).startswith("perdure.errors.LimitExceeded")


@few
def test_a_body_that_waits_for_something_else_too_may_rest_without_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resting, "RESTS_LIMIT", 2)
    driver = Driver(polls)
    for _ in range(10):
        driver.fires(max(driver.turn.pending))
    driver.returns(0, "a")
    assert driver.value == "a"
    driver.check_replay()


@few
def test_a_body_that_asks_for_much_does_not_rest():
    async def body(ctx: Context) -> Any:
        return len(await asyncio.gather(*(step(f"s{i}") for i in range(200))))

    driver = play(body, batch=50)
    assert driver.value == 200
    assert not rests_in(driver)


def test_a_body_that_was_recorded_without_rests_replays_without(monkeypatch: pytest.MonkeyPatch):
    driver = play(counts_long)
    assert not rests_in(driver)
    monkeypatch.setattr(resting, "CALLBACKS_PER_DRAIN_LIMIT", 50)
    turn = make_turn(counts_long)
    turn.replay(driver.frames)
    assert turn.divergence is None
    monkeypatch.setattr(resting, "UNRESTED_CALLBACKS_LIMIT", 200)
    turn = diverges(counts_long, driver.frames)
    assert str(turn.divergence) == (
        "the journal has no rest here, the code now asks for 200 callbacks and more without waiting"
    )


def test_a_body_that_was_recorded_with_other_bounds_rests_where_its_journal_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resting, "CALLBACKS_PER_DRAIN_LIMIT", 50)
    monkeypatch.setattr(resting, "SHORTEST_REST_SECONDS", 7.0)
    driver = play(polls, lambda: rest_twice_then_answer())
    monkeypatch.setattr(resting, "CALLBACKS_PER_DRAIN_LIMIT", 20)
    monkeypatch.setattr(resting, "SHORTEST_REST_SECONDS", 0.5)
    turn = make_turn(polls)
    turn.replay(driver.frames)
    assert turn.divergence is None
    assert turn.loop.now == driver.turn.loop.now


@few
def test_a_cancellation_reaches_a_body_that_polls():
    async def body(ctx: Context) -> Any:
        try:
            while True:
                await asyncio.sleep(0)
        finally:
            await step("undo")

    driver = Driver(body)
    driver.cancels()
    driver.finish()
    assert isinstance(driver.outcome, Cancelled)
    assert driver.names[-1] == "undo"
    driver.check_replay()


@few
def test_a_retry_keeps_the_rests_of_what_it_keeps():
    async def body(ctx: Context) -> Any:
        tasks = [asyncio.ensure_future(step(name)) for name in ("a", "b")]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
        return [task.result() for task in tasks]

    driver = Driver(body)
    driver.fires(2)
    driver.returns(0, "a")
    driver.raises(1, ValueError("no"))
    assert failure_in(driver) == "ValueError: no"
    driver.retries()
    driver.finish()
    assert driver.value == ["a", "b"]
    driver.check_replay()


# --- what ends a process ----------------------------------------------------------------------------------------------
class Odd(BaseException):
    pass


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, Odd, StopAsyncIteration])
@pytest.mark.parametrize("after", [0, 1])
def test_what_ends_a_process_is_a_failure_of_the_one_invocation(kind: type[BaseException], after: int):
    async def body(ctx: Context) -> Any:
        for _ in range(after):
            await step("a")
        raise kind("the end")

    driver = play(body)
    assert failure_in(driver).endswith(f"{kind.__name__}: the end")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_ends_the_process_fails_the_invocation_after_its_cleanup(kind: type[BaseException]):
    async def body(ctx: Context) -> Any:
        def ends() -> None:
            raise kind("the end")

        asyncio.get_running_loop().call_soon(ends)
        try:
            await asyncio.Event().wait()
        finally:
            await step("undo")

    driver = play(body)
    assert failure_in(driver) == f"{kind.__name__}: the end"
    assert driver.names == ["undo"]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_task_that_ends_the_process_fails_the_invocation_if_nobody_looks_at_it(kind: type[BaseException]):
    async def ends() -> None:
        await step("a")
        raise kind("the end")

    async def forgets(ctx: Context) -> Any:
        task = asyncio.create_task(ends())
        await step("b")
        await step("c")
        return task.get_name()

    async def looks(ctx: Context) -> Any:
        task = asyncio.create_task(ends())
        await asyncio.wait([task])
        return type(task.exception()).__name__

    driver = Driver(forgets)
    driver.finish()
    assert failure_in(driver) == f"{kind.__name__}: the end"
    driver.check_replay()
    assert play(looks).value == kind.__name__


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, Odd])
def test_a_group_raises_what_ends_a_process_as_asyncio_does(kind: type[BaseException]):
    async def ends() -> None:
        await step("a")
        raise kind("the end")

    async def body(ctx: Context) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(ends())
            group.create_task(step("b"))

    driver = play(body)
    assert "the end" in failure_in(driver) or kind is Odd
    assert isinstance(driver.outcome, Failed)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Odd])
def test_the_failure_of_a_step_or_child_is_an_exception_whatever_it_is_called(kind: type[BaseException]):
    async def body(ctx: Context) -> Any:
        try:
            await step("a")
        except Exception as error:  # noqa: BLE001
            return str(error)

    driver = Driver(body)
    driver.raises(0, kind("the end"))
    assert kind.__name__ in driver.value
    driver.check_replay()


def interrupted_here() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1_000_000):
        pass


def test_ctrl_c_during_a_drain_is_for_the_process_and_nothing_leaves_the_turn():
    async def body(ctx: Context) -> Any:
        await step("a")
        interrupted_here()

    turn = make_turn(body)
    turn.begin()
    turn.ready()
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            turn.deliver(Returned(0, 1001.0, encode(None)))
    finally:
        signal.signal(signal.SIGINT, previous)
    ready = turn.ready()
    assert ready.commands == []
    assert ready.outcome is None
    assert current_turn() is None


def test_ctrl_c_by_the_handler_of_asyncio_is_for_the_process_too():
    asked: list[int] = []

    async def main() -> None:
        async def body(ctx: Context) -> Any:
            interrupted_here()  # the first only cancels main()
            asked.append(1)
            interrupted_here()

        turn = make_turn(body)
        asyncio.get_running_loop().call_soon(turn.begin)
        await asyncio.sleep(60)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
    finally:
        signal.signal(signal.SIGINT, previous)
    assert asked == [1]


# --- bodies that are none ---------------------------------------------------------------------------------------------
def gives(value: object) -> Any:
    def made(_: Turn) -> object:
        return value

    return made


def fails(_: Turn) -> Any:
    raise ZeroDivisionError("division by zero")


def takes_less() -> Any:
    return None


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (gives(7), "TypeError: workflow 'handler' gave a int when called, and nothing to await"),
        (gives(None), "TypeError: workflow 'handler' gave a NoneType when called, and nothing to await"),
        (takes_less, "TypeError: takes_less() takes 0 positional arguments but 1 was given"),
        (fails, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_body_that_makes_no_coroutine_fails_its_invocation(made: Any, text: str):
    turn = Turn(START, made, encode, secret=SECRET)
    turn.deliver(Accepted(START))
    outcome = turn.ready().outcome
    assert isinstance(outcome, Failed)
    assert f"{outcome.failure.type}: {outcome.failure.message}".startswith(text)
    turn.close()


def test_a_body_is_given_the_context_that_the_runtime_makes():
    async def body(ctx: Context) -> Any:
        return ctx.invocation_id

    turn = Turn(START, lambda turn: body(cast("Context", turn.context)), encode, secret=SECRET, context=Context)
    turn.deliver(Accepted(START))
    assert turn.ready().outcome == Completed(1000.0, encode("one"))
    turn.close()


def test_a_group_with_more_than_a_refusal_is_the_failure():
    async def body(ctx: Context) -> Any:
        async def connects() -> None:
            await asyncio.open_connection("localhost", 1)

        async def fails() -> None:
            raise ValueError("no")

        async with asyncio.TaskGroup() as group:
            group.create_task(connects())
            group.create_task(fails())

    assert failure_in(play(body)).startswith("ExceptionGroup: ")


def test_a_body_that_makes_something_else_to_await_is_awaited():
    class Waits:
        def __await__(self) -> Any:
            return step("a").__await__()

    turn = Turn(START, gives(Waits()), encode, secret=SECRET)
    turn.deliver(Accepted(START))
    turn.deliver(Returned(0, 1001.0, encode("a")))
    assert turn.ready().outcome == Completed(1001.0, encode("a"))
    turn.close()


def test_an_encoder_that_fails_in_any_way_fails_the_invocation():
    def encode_result(value: Any) -> bytes:
        raise RecursionError("too deep")

    async def body(_: Turn) -> None:
        return None

    turn = Turn(START, body, encode_result, secret=SECRET)
    turn.deliver(Accepted(START))
    outcome = turn.ready().outcome
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "RecursionError"
    turn.close()


# --- cancelling itself ------------------------------------------------------------------------------------------------
async def awaits_what_it_cancelled(ctx: Context) -> Any:
    task = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    task.cancel()
    await task


async def raises_cancelled(ctx: Context) -> Any:
    raise asyncio.CancelledError("mine")


async def cancels_its_own_task(ctx: Context) -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await step("a")


@pytest.mark.parametrize("body", [awaits_what_it_cancelled, raises_cancelled, cancels_its_own_task])
def test_a_body_that_lets_a_cancellation_of_its_own_escape_has_failed_and_was_not_cancelled(body: Body):
    driver = play(body)
    assert failure_in(driver) == (
        "asyncio.exceptions.CancelledError: the body raised CancelledError without having been cancelled"
    )
    assert isinstance(driver.outcome, Failed)
    assert body.__name__ in driver.outcome.failure.traceback


async def leaves_tasks_that_make_others_for_ever(ctx: Context) -> Any:
    async def undying() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            asyncio.create_task(undying())  # noqa: RUF006
            await asyncio.sleep(0)

    task = asyncio.create_task(undying())
    await step("a")
    return task.get_name()


def test_tasks_that_make_others_as_they_are_cancelled_do_not_keep_a_body_from_ending():
    assert play(leaves_tasks_that_make_others_for_ever).value == "task-2"


# --- waiting for nothing ----------------------------------------------------------------------------------------------
async def waits_for_an_event(ctx: Context) -> Any:
    await step("a")
    await asyncio.Event().wait()


async def waits_for_ever(ctx: Context) -> Any:
    await step("a")
    await asyncio.sleep(math.inf)


async def waits_in_a_branch(ctx: Context) -> Any:
    await asyncio.gather(step("a"), asyncio.get_running_loop().create_future())


async def waits_in_its_cleanup(ctx: Context) -> Any:
    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await step("a")
    return task.get_name()


async def waits_for_a_thread(ctx: Context) -> Any:
    await step("a")
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (waits_for_an_event, "waits_for_an_event"),
        (waits_for_ever, "waits_for_ever"),
        (waits_in_a_branch, "waits_in_a_branch"),
        (waits_in_its_cleanup, "waits_in_its_cleanup.<locals>.stubborn"),
        (waits_for_a_thread, "waits_for_a_thread"),
    ],
)
def test_a_body_that_can_never_go_on_says_at_which_line_it_waits(body: Body, place: str):
    driver = Driver(body)
    assert driver.turn.stuck_at is None  # a step is pending
    driver.returns(0, "a")
    stuck = str(driver.turn.stuck_at)
    assert stuck.startswith("test_strange_bodies.py:")
    assert stuck.endswith(f", in {place}")
    driver.check_replay()
    again = make_turn(body)
    again.replay(driver.frames)
    assert again.stuck_at == stuck


@few
def test_a_body_that_only_polls_says_so_too_after_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resting, "STUCK_AFTER_RESTS", 2)

    async def body(ctx: Context) -> Any:
        while True:
            await asyncio.sleep(0)

    turn = make_turn(body)
    assert turn.stuck_at is None  # it has not begun
    turn.begin()
    assert turn.stuck_at is None
    turn.deliver(Fired(0, 1001.0))
    assert turn.stuck_at is not None
    assert turn.stuck_at.startswith("test_strange_bodies.py:")


def test_a_body_that_waits_for_the_outside_or_has_ended_or_is_paused_is_not_stuck():
    async def waits(ctx: Context) -> Any:
        return await ctx.awakeable(int)

    driver = Driver(waits)
    assert driver.turn.stuck_at is None
    driver.returns(0, 1)
    assert driver.turn.stuck_at is None
    driver = Driver(waits_for_an_event)
    driver.give(Paused(1001.0, "asked for"))
    driver.returns(0, "a")
    assert driver.turn.stuck_at is None
    driver.give(Resumed(1002.0))
    assert driver.turn.stuck_at is not None
    driver.turn.close()
    assert driver.turn.stuck_at is None


def test_a_task_without_a_line_of_the_users_is_named():
    def body(_: Turn) -> Any:
        return asyncio.Event().wait()

    turn = Turn(START, body, encode, secret=SECRET)
    turn.begin()
    assert turn.stuck_at == "task 'workflow'"
    turn.close()


def test_awaits_within_awaits_are_followed_to_a_depth(monkeypatch: pytest.MonkeyPatch):
    async def deep(levels: int) -> None:
        await (deep(levels - 1) if levels else asyncio.Event().wait())

    async def body(ctx: Context) -> Any:
        await deep(5)

    turn = make_turn(body)
    turn.begin()
    assert str(turn.stuck_at).endswith("<locals>.deep")
    monkeypatch.setattr(where, "STACK_LIMIT", 1)
    assert str(turn.stuck_at).endswith("<locals>.body")


# --- numbers ----------------------------------------------------------------------------------------------------------
NAN, INF = math.nan, math.inf


async def never(ctx: Context) -> Any:
    await asyncio.Event().wait()


WAITS: dict[str, Callable[[float], Any]] = {
    "sleep": asyncio.sleep,
    "timeout": lambda seconds: timed(asyncio.timeout(seconds)),
    "timeout_at": lambda seconds: timed(asyncio.timeout_at(asyncio.get_running_loop().time() + seconds)),
    "reschedule": lambda seconds: rescheduled(seconds),
    "wait_for": lambda seconds: asyncio.wait_for(asyncio.get_running_loop().create_future(), seconds),
    "wait": lambda seconds: asyncio.wait([asyncio.create_task(asyncio.sleep(1))], timeout=seconds),
    "call_later": lambda seconds: called(seconds),
    "as_completed": lambda seconds: completed(seconds),
}


async def timed(timeout: asyncio.Timeout) -> None:
    async with timeout:
        await step("a")


async def rescheduled(seconds: float) -> None:
    async with asyncio.timeout(5) as timeout:
        timeout.reschedule(asyncio.get_running_loop().time() + seconds)
        await step("a")


async def called(seconds: float) -> None:
    asyncio.get_running_loop().call_later(seconds, print)
    await step("a")


async def completed(seconds: float) -> None:
    for one in asyncio.as_completed([step("a")], timeout=seconds):
        await one


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("seconds", [NAN, 1e300, -NAN, 1e10])
def test_a_wait_that_is_no_number_or_too_long_is_a_value_error_in_the_body(wait: str, seconds: float):
    async def body(ctx: Context) -> Any:
        try:
            await WAITS[wait](seconds)
        except ValueError as error:
            return str(error)

    driver = play(body)
    assert "not a number" in driver.value or "at most 3153600000" in driver.value
    assert not any(isinstance(each, SetTimer) and each.due > 2000 for frame in driver.frames for each in frame.commands)


@pytest.mark.parametrize("wait", ["timeout", "timeout_at", "reschedule", "call_later", "as_completed"])
def test_an_infinite_wait_is_no_limit(wait: str):
    async def body(ctx: Context) -> Any:
        await WAITS[wait](INF)
        return "done"

    driver = play(body)
    assert driver.value == "done"
    assert all(command.due < 2000 for frame in driver.frames for command in timers_in(frame))


def timers_in(frame: Frame) -> list[SetTimer]:
    return [command for command in frame.commands if isinstance(command, SetTimer)]


def test_an_infinite_sleep_ends_by_cancellation():
    async def body(ctx: Context) -> Any:
        async with asyncio.timeout(5):
            await asyncio.sleep(INF)

    assert failure_in(play(body)) == "TimeoutError: "


def test_a_wait_that_is_over_before_it_begins_is_due_now():
    async def body(ctx: Context) -> Any:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        for seconds in (-INF, -1e300, -1e12):
            loop.call_later(seconds, lambda: None)
        loop.call_later(-5, future.set_result, "late")
        return await future

    driver = play(body)
    assert [timer.due for timer in timers_in(driver.frames[0])] == [1000.0, 1000.0, 1000.0, 995.0]


@pytest.mark.parametrize("seconds", [INF, 1e300, -1e300, 2 * DURATION_LIMIT_SECONDS])
def test_a_journal_of_a_release_that_took_any_number_replays(seconds: float):
    async def body(ctx: Context) -> Any:
        asyncio.get_running_loop().call_later(seconds, print)
        return await step("a")

    async def plain(ctx: Context) -> Any:
        return await step("a")

    driver = Driver(plain)
    old = [SetTimer(0, 1000.0 + seconds), replace(driver.frames[0].commands[0], n=1)]
    turn = make_turn(body)
    turn.replay([replace(driver.frames[0], commands=old)])
    assert turn.divergence is None
    turn.deliver(Returned(1, 1001.0, encode("a")))
    assert turn.ready().outcome == Completed(1001.0, encode("a"))


def test_the_longest_wait_is_allowed_and_a_subclass_of_float_is_a_float():
    class Seconds(float):
        pass

    async def body(ctx: Context) -> Any:
        loop = asyncio.get_running_loop()
        loop.call_later(DURATION_LIMIT_SECONDS, print)
        loop.call_at(Seconds(1234.5), print)
        await step("a")

    driver = play(body)
    due = [timer.due for timer in timers_in(driver.frames[0])]
    assert due == [1000.0 + DURATION_LIMIT_SECONDS, 1234.5]
    assert {type(each) for each in due} == {float}


# --- failures ---------------------------------------------------------------------------------------------------------
def test_a_body_that_catches_thousands_of_failures_keeps_none_of_them():
    async def body(ctx: Context) -> Any:
        for i in range(3_000):
            try:
                await step("a", i)
            except ValueError:
                continue
        await step("last")

    driver = Driver(body, batch=4_000)
    for n in range(3_000):
        driver.give(Raised(n, 1001.0, failure_of(ValueError("no"))))
    gc.collect()
    kept = cast("Any", driver.turn)._causes  # noqa: SLF001
    assert len(kept) <= 2 * causes.SWEPT_AT
    driver.raises(3_000, KeyError("the cause"))
    driver.commit()
    assert isinstance(driver.outcome, Failed)
    assert driver.outcome.cause == 3_000


def test_a_failure_that_the_body_still_holds_is_found_however_many_came_after_it():
    async def body(ctx: Context) -> Any:
        results = await asyncio.gather(*(step("a", i) for i in range(300)), return_exceptions=True)
        raise results[7]

    driver = Driver(body, batch=1_000)
    for n in range(300):
        driver.give(Raised(n, 1001.0, failure_of(ValueError(n))))
    driver.commit()
    assert isinstance(driver.outcome, Failed)
    assert driver.outcome.cause == 7


def test_failures_that_are_all_held_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(causes, "KEPT_LIMIT", 100)
    known, held = Causes(), [ValueError(n) for n in range(1_000)]
    for n, error in enumerate(held):
        known.add(error, n)
    assert len(known) <= 2 * 100 + causes.SWEPT_AT
    assert known.of(held[-1]) == [999]
    assert known.of(held[0]) == []


def test_a_thread_that_a_body_starts_cannot_wake_it():
    async def body(ctx: Context) -> Any:
        future = asyncio.get_running_loop().create_future()
        said: list[str] = []

        def work() -> None:
            try:
                future.get_loop().call_soon_threadsafe(future.set_result, None)
            except Exception as error:  # noqa: BLE001
                said.append(type(error).__name__)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return said

    assert play(body).value == ["IoInWorkflow"]
