"""A body's way through asyncio is a function of its journal: live, replayed, evicted, cancelled, paused, diverged."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import subprocess
import sys
import threading
from asyncio import as_completed as as_completed_by_name
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import workflow
from perdure.authoring.context import Context
from perdure.core import issuer
from perdure.core.failures import failure_of
from perdure.core.ids import awakeable_id, derived_id
from perdure.core.journal import (
    Accepted,
    Attempted,
    CallChild,
    CallStep,
    Cancelled,
    CancelRequested,
    Claimed,
    Command,
    Completed,
    Entry,
    Failed,
    Fired,
    Frame,
    Interrupted,
    Paused,
    Raised,
    Released,
    Resumed,
    Returned,
    SendStart,
    Start,
    describe,
)
from perdure.core.turn import Divergence, Turn, current_turn
from perdure.core.values import encode
from perdure.errors import CalledOutsideWorkflow, LimitExceeded, PayloadTooLarge, Undecodable, Unencodable
from tests.core import bodies
from tests.core.bodies import BODIES, REFUSAL, WAYS, Refusal
from tests.core.driver import (
    SECRET,
    START,
    Body,
    Choose,
    Driver,
    asks_for_nothing,
    by_ranks,
    child,
    diverges,
    first,
    in_order,
    last,
    make_turn,
    nothing_happens,
    play,
    step,
)


def failure_in(driver: Driver) -> str:
    assert isinstance(driver.outcome, Failed)
    return f"{driver.outcome.failure.type}: {driver.outcome.failure.message}"


# --- scenario 8 -------------------------------------------------------------------------------------------------------
@given(ranks=st.lists(st.integers(0, 2), max_size=9))
@settings(max_examples=30, deadline=None)
def test_results_of_a_gather_are_in_their_places_in_every_interleaving(ranks: list[int]):
    driver = play(bodies.gathers, lambda: by_ranks(ranks))
    assert driver.value == [["a0", "a1", "a2"], ["b0", "b1", "b2"], ["c0", "c1", "c2"]]


def test_results_are_in_their_places_however_many_facts_share_a_frame():
    for batch, order in itertools.product((1, 2, 9, 99), itertools.permutations(range(3))):
        driver = play(bodies.gathers, lambda order=order: by_ranks(order * 3), batch=batch)
        assert driver.value == [["a0", "a1", "a2"], ["b0", "b1", "b2"], ["c0", "c1", "c2"]]


# --- scenario 9 -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
@pytest.mark.parametrize("way", range(len(WAYS)))
def test_a_replay_has_the_same_winner_and_order(body: Body, way: int):
    play(body, WAYS[way], REFUSAL)
    play(body, WAYS[way], REFUSAL, batch=3)


@pytest.mark.parametrize(
    ("body", "choose", "value"),
    [
        (bodies.waits_for_the_first, in_order(3), [["d"], ["a", "b", "c", "e", "f"]]),
        (bodies.takes_coroutines_as_completed, in_order(7, 0, 3), list("hadbcefg")),
        (bodies.takes_tasks_as_completed, in_order(7, 0, 3), list("hadbcefg")),
        (bodies.takes_some_as_completed, first, "too late"),
        (bodies.groups, last, [["a0", "a1"], ["b0", "b1"], ["c0", "c1"]]),
        (bodies.waits_for_failures, in_order(1, 2), [["None", "Refusal('no')"], ["slow"]]),
        (bodies.times_out, in_order(1, 0), "twice"),
        (bodies.shields, in_order(0), "kept"),
        (bodies.drains_tasks, in_order(0), [True] * 6),
        (bodies.locks, first, ["a", "b", "c", "d"]),
        (bodies.limits, in_order(1, 2, 0), ["b", "c", "a", "d", "e", "f"]),
        (bodies.signals, first, ["a", "b", "c"]),
        (bodies.notifies, first, ["b", "a", "c"]),
        (bodies.meets, in_order(1, 2, 0), [["a", 2], ["b", 0], ["c", 1]]),
        (bodies.generates, first, [0, 1, 0, 1, 1]),
        (bodies.varies, last, ["b", "a", "outer"]),
        (bodies.yields, first, ["a", "b", "c", "b", "c", "b"]),
        (bodies.sleeps, first, [[0, 1, 2, 2, 3], 1003.0]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_asyncio_means_what_it_means_elsewhere(body: Body, choose: Choose, value: Any):
    driver = Driver(body)
    driver.finish(choose, REFUSAL)
    got = driver.value
    assert got == value or (body is bodies.waits_for_failures and [sorted(got[0]), got[1]] == value)
    driver.check_replay()


def test_a_failing_branch_cancels_its_siblings_whose_cleanup_runs():
    driver = play(bodies.groups_with_a_failure, lambda: in_order(2), REFUSAL)
    assert sorted(driver.value) == ["a", "b", "c", "d", "no"]
    assert driver.names.count("undo") == 4
    assert not any(name.endswith("again") for name in driver.names)


def test_generators_left_open_are_closed_at_the_end_and_their_cleanup_is_not_cancelled():
    driver = play(bodies.generates)
    assert driver.names[-1] == "open closed"
    assert not any(frame.cancels for frame in driver.frames)


def test_a_generator_expression_is_taken_as_asyncio_takes_it():
    async def body(ctx: Context) -> Any:
        return [await one for one in asyncio.as_completed(step(name) for name in "abcd")]

    driver = play(body, lambda: last)
    if sys.version_info >= (3, 12):
        assert driver.value == list("dcba")
    else:
        assert failure_in(driver) == "TypeError: expect an iterable of futures, not generator"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="new in 3.13")
def test_as_completed_is_an_async_iterator_too():
    async def body(ctx: Context) -> Any:
        results: Any = asyncio.as_completed([step(name) for name in "abcd"])
        return [await one async for one in results]

    assert play(body, lambda: last).value == list("dcba")


def test_as_completed_takes_nothing_that_is_no_iterable_of_awaitables():
    async def body(ctx: Context) -> Any:
        one = asyncio.ensure_future(step("a"))
        try:
            return [await each for each in asyncio.as_completed(one)]
        finally:
            await one

    assert re.match("TypeError: expects? an iterable of (futures|awaitables), not ", failure_in(play(body)))


def test_as_completed_imported_by_name_takes_tasks_but_no_coroutines():
    async def takes_tasks(ctx: Context) -> Any:
        tasks = [asyncio.create_task(step(name)) for name in "abcd"]
        return [await one for one in as_completed_by_name(tasks)]

    async def takes_coroutines(ctx: Context) -> Any:
        return [await one for one in as_completed_by_name([step("a")])]

    assert play(takes_tasks, lambda: last).value == list("dcba")
    assert "Write `asyncio.as_completed(...)`" in failure_in(play(takes_coroutines))


def test_timers_fire_by_the_journal_and_the_clock_never_goes_back():
    async def body(ctx: Context) -> Any:
        loop = asyncio.get_running_loop()
        seen = [loop.time()]
        await asyncio.sleep(10)
        seen.append(loop.time())
        await step("late")
        return [*seen, loop.time()]

    driver = Driver(body)
    driver.fires(0)
    driver.give(Returned(1, 5.0, encode(None)))
    assert driver.value == [1000.0, 1010.0, 1010.0]


# --- scenario 10 ------------------------------------------------------------------------------------------------------
async def two_steps(ctx: Context) -> Any:
    return [await step("a", 1), await step("b", 2)]


async def two_branches(ctx: Context) -> Any:
    return await asyncio.gather(step("a", 1), step("b", 2))


def recorded(body: Body, answers: int = 99) -> list[Frame]:
    """Return the journal of a body after so many answers."""
    driver = Driver(body)
    for _ in range(answers):
        if driver.outcome is not None:
            break
        driver.answer(first(driver.turn))
    driver.turn.close()
    return driver.frames


async def other_name(ctx: Context) -> Any:
    return [await step("a", 1), await step("c", 2)]


async def other_order(ctx: Context) -> Any:
    return [await step("b", 2), await step("a", 1)]


async def other_argument(ctx: Context) -> Any:
    return [await step("a", 1), await step("b", 3)]


async def fewer(ctx: Context) -> Any:
    return await step("a", 1)


async def none_at_all(ctx: Context) -> Any:
    return None


async def more(ctx: Context) -> Any:
    return [await step("a", 1), await step("b", 2), await step("c", 3)]


async def a_sleep(ctx: Context) -> Any:
    return [await step("a", 1), await asyncio.sleep(1)]


async def swapped_branches(ctx: Context) -> Any:
    return await asyncio.gather(step("b", 2), step("a", 1))


async def an_awakeable(ctx: Context) -> Any:
    return [await step("a", 1), await ctx.awakeable(int)]


async def a_send(ctx: Context) -> Any:
    turn = current_turn()
    assert turn is not None
    await step("a", 1)
    return turn.send(lambda id: Start(id, "other", b"\x80", 0, 0, 0))


async def a_child(ctx: Context) -> Any:
    return [await step("a", 1), await child("other")]


async def another_child(ctx: Context) -> Any:
    return [await step("a", 1), await child("other", "argument")]


def test_a_turn_says_that_its_body_has_ended_until_that_is_taken():
    turn = make_turn(two_steps)
    turn.begin()
    assert not turn.ended
    turn.deliver(Returned(0, 1.0, encode(1)))
    turn.deliver(Returned(1, 2.0, encode(2)))
    assert turn.ended
    assert turn.ready().outcome == Completed(1000.0, encode([1, 2]))
    turn.close()


async def promises(ctx: Context) -> Any:
    return await ctx.awakeable(int)


async def forgets_to_wait(ctx: Context) -> Any:
    return ctx.awakeable(int).id


@pytest.mark.parametrize(
    ("old", "answers", "new", "journal", "code"),
    [
        (two_steps, 1, other_name, "#1 step 'b' (arguments ", "#1 step 'c' (arguments "),
        (two_steps, 1, other_order, "#0 step 'a' (arguments ", "#0 step 'b' (arguments "),
        (two_steps, 1, other_argument, "#1 step 'b' (arguments ", "#1 step 'b' (arguments "),
        (two_steps, 1, fewer, "#1 step 'b' (arguments ", "nothing there"),
        (two_steps, 0, none_at_all, "#0 step 'a' (arguments ", "nothing there"),
        (two_steps, 1, a_sleep, "#1 step 'b' (arguments ", "#1 timer due at 1001.0"),
        (two_steps, 1, an_awakeable, "#1 step 'b' (arguments ", "#1 awakeable"),
        (two_steps, 1, a_send, "#1 step 'b' (arguments ", "#1 send 'other' (id "),
        (two_steps, 1, a_child, "#1 step 'b' (arguments ", "#1 child 'other' (id "),
        (a_child, 1, another_child, "#1 child 'other' (id ", "#1 child 'other' (id "),
        (fewer, 1, more, "nothing", "#1 step 'b' (arguments "),
        (two_steps, 2, more, "nothing", "#2 step 'c' (arguments "),
        (more, 2, two_steps, "#2 step 'c' (arguments ", "nothing there"),
        (two_branches, 0, swapped_branches, "#0 step 'a' (arguments ", "#0 step 'b' (arguments "),
        (two_branches, 1, two_steps, "#1 step 'b' (arguments ", "nothing there"),
        (promises, 0, forgets_to_wait, "no end of the body here", "the body's end here, completed"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_code_that_asks_for_something_else_diverges_with_both_sides_in_words(
    old: Body, answers: int, new: Body, journal: str, code: str
):
    turn = diverges(new, recorded(old, answers))
    assert turn.divergence is not None
    assert turn.divergence.recorded.startswith(journal)
    assert turn.divergence.issued.startswith(code)
    assert str(turn.divergence).startswith(f"the journal has {journal}")
    if new is other_argument:
        assert turn.divergence.recorded != turn.divergence.issued
    with nothing_happens():
        turn.close()


async def cancels_and_goes_on(ctx: Context) -> Any:
    task = asyncio.ensure_future(step("a", 1))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def just_goes_on(ctx: Context) -> Any:
    task = asyncio.ensure_future(step("a", 1))
    await asyncio.wait([task])


def test_other_cancellations_and_other_ends_diverge():
    turn = diverges(just_goes_on, recorded(cancels_and_goes_on, 0))
    assert str(turn.divergence) == ("the journal has an end asked for commands [0], the code now asks for that of []")
    turn.close()


def test_another_kind_of_end_diverges():
    async def fails(ctx: Context) -> Any:
        await step("a", 1)
        raise Refusal("no")

    turn = diverges(fails, recorded(fewer))
    assert str(turn.divergence) == (
        "the journal has the body's end here, completed, the code now asks for the body's end here, failed"
    )
    turn.close()


def test_a_forced_cancellation_is_no_end_of_the_body():
    frames = recorded(two_steps, 1)
    frames.append(Frame("writer", 2000.0, [Cancelled(2000.0, forced=True)], cancels=[0]))
    turn = make_turn(two_steps)
    turn.replay(frames)
    assert turn.divergence is None
    turn.close()


def test_the_order_of_a_set_of_strings_diverges_rather_than_swaps():
    words = ["ab", "cd", "ef"]

    async def body(ctx: Context) -> Any:
        return await asyncio.gather(*(step("same", word) for word in words))

    frames = recorded(body, 1)
    words.reverse()  # as a set does under another hash seed
    turn = diverges(body, frames)
    assert turn.divergence is not None
    assert turn.divergence.recorded.startswith("#0 step 'same'")
    turn.close()


def test_after_a_divergence_the_body_cannot_hide_it_and_nothing_leaves_the_turn():
    seen: list[str] = []

    async def body(ctx: Context) -> Any:
        loop = asyncio.get_running_loop()
        asks: list[Callable[[], Any]] = [
            lambda: ctx.set("x", 1),
            lambda: ctx.delete("x"),
            lambda: ctx.patched("new"),
            lambda: ctx.awakeable(int),
            lambda: loop.call_later(1, print),
        ]
        task = asyncio.ensure_future(step("a", 1))
        timer = loop.call_later(5, print)
        await asyncio.sleep(0)
        for name in ("unknown", "another"):
            try:
                await step(name)
            except BaseException as error:  # noqa: BLE001
                seen.append(type(error).__name__)
        for ask in asks:
            try:
                ask()
            except BaseException as error:  # noqa: BLE001
                seen.append(type(error).__name__)
        timer.cancel()
        task.cancel()
        asyncio.ensure_future(step("later"))  # noqa: RUF006
        return "as if nothing had been"

    async def old(ctx: Context) -> Any:
        asyncio.get_running_loop().call_later(5, print)
        await step("a", 1)

    turn = diverges(body, recorded(old, 0))
    assert seen == ["TurnClosed"] * 6  # a patch of which the journal knows nothing is just not there
    turn.deliver(Returned(0, 1001.0, encode("a")))
    turn.deliver(CancelRequested(1002.0))
    before = turn.divergence
    turn.deliver(Returned(99, 1003.0, encode("a")))
    assert turn.divergence is before
    assert asks_for_nothing(turn)
    with nothing_happens():
        turn.close()


def test_entries_after_a_divergence_are_not_delivered():
    frames = recorded(two_steps)
    merged = [Frame("writer", 0.0, [entry for frame in frames for entry in frame.entries], frames[0].commands)]
    turn = diverges(two_steps, merged)
    assert turn.divergence is not None
    assert turn.divergence.issued.startswith("#1 step 'b'")
    turn.close()


def test_an_answer_to_a_command_that_was_never_issued_diverges():
    answers: list[Entry] = [
        Returned(7, 1.0, b"\xc0"),
        Raised(7, 1.0, failure_of(Refusal("no"))),
        Fired(7, 1.0),
        Interrupted(7, 1.0),
        Attempted(7, 1.0, 1, failure_of(Refusal("no")), 2.0),
    ]
    for entry in answers:
        turn = make_turn(two_steps)
        turn.begin()
        turn.deliver(entry)
        assert turn.divergence == Divergence("an answer to command #7", "1 commands and no more")
        turn.close()


def test_an_answer_that_the_annotation_no_longer_accepts_diverges():
    def refuse(_: bytes) -> Any:
        raise Undecodable("it is a str")

    async def body(ctx: Context) -> Any:
        turn = current_turn()
        assert turn is not None
        return await turn.call_step("a", b"", refuse, None)

    turn = make_turn(body)
    turn.begin()
    turn.deliver(Returned(0, 1.0, b"\xa1x"))
    assert turn.divergence is not None
    assert turn.divergence.recorded == "a value for #0 step 'a' (arguments )"
    assert "it is a str" in turn.divergence.issued
    assert turn.ready().outcome is None
    turn.close()


def test_facts_held_by_a_pause_stop_at_a_divergence():
    def refuse(_: bytes) -> Any:
        raise Undecodable("it is a str")

    async def body(ctx: Context) -> Any:
        turn = current_turn()
        assert turn is not None
        return await asyncio.gather(turn.call_step("a", b"", refuse, None), step("b"))

    turn = make_turn(body)
    turn.begin()
    for entry in (Paused(1.0, "asked for"), Returned(0, 1.0, b"\xc0"), Returned(1, 1.0, b"\xc0"), Resumed(2.0)):
        turn.deliver(entry)
    assert turn.divergence is not None
    assert 1 in turn.pending
    turn.close()


def test_state_is_recorded_and_checked():
    async def body(ctx: Context) -> Any:
        ctx.set("count", 1)
        ctx.set("gone", "x")
        await step("a", ctx.get("count", int))
        ctx.delete("gone")
        ctx.delete("never there")
        ctx.set("count", ctx.get("count", int, 0) + 1)
        await step("b")
        return [ctx.get("count", int), ctx.get("gone", str), ctx.get("gone", str, "default")]

    async def other_value(ctx: Context) -> Any:
        ctx.set("count", 2)
        ctx.set("gone", "x")
        await step("a", 1)

    async def other_name(ctx: Context) -> Any:
        ctx.set("counter", 1)
        ctx.set("gone", "x")
        await step("a", 1)

    driver = play(body)
    assert driver.value == [2, None, "default"]
    assert [frame.state for frame in driver.frames] == [
        {"count": b"\x01", "gone": b"\xa1x"},
        {"gone": None, "never there": None, "count": b"\x02"},
        {},
    ]
    assert driver.turn.state == {"count": b"\x02"}
    for other, names in ((other_value, "['count', 'gone']"), (other_name, "['counter', 'gone']")):
        turn = diverges(other, driver.frames)
        assert str(turn.divergence) == (
            f"the journal has changes of state ['count', 'gone'], the code now asks for {names}, or other values"
        )
        turn.close()


# --- scenario 41 ------------------------------------------------------------------------------------------------------
def test_fresh_processes_with_other_heaps_and_hash_seeds_ask_for_the_same(tmp_path: Path):
    file = tmp_path / "journals"
    root = Path(__file__).resolve().parents[2]

    def run(mode: str, seed: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.core.bodies", mode, str(file)]
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join((str(root / "src"), str(root))),
        }
        return subprocess.Popen(command, cwd=root, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT)

    for mode, seeds in (("record", ("1",)), ("replay", ("2", "3", "random"))):
        for process in [run(mode, seed) for seed in seeds]:
            said, _ = process.communicate(timeout=60)
            assert process.returncode == 0, said


# --- scenario 42 ------------------------------------------------------------------------------------------------------
class Door:
    async def __aenter__(self) -> Door:
        await step("open")
        return self

    async def __aexit__(self, *_: object) -> None:
        await step("shut")


async def cleans_up_with_steps(ctx: Context) -> Any:
    try:
        await step("a")
        await asyncio.sleep(5)
    finally:
        await step("undo a")
        await asyncio.sleep(1)
        await asyncio.gather(step("undo b"), child("undoing"))
        asyncio.get_running_loop().call_soon(print, "never")


async def swallows_everything(ctx: Context) -> Any:
    for name in "abc":
        try:
            await step(name)
        except BaseException:  # noqa: BLE001
            await asyncio.sleep(0)


async def uses_stacks(ctx: Context) -> Any:
    async with Door(), AsyncExitStack() as stack:
        await stack.enter_async_context(Door())
        stack.push_async_callback(step, "pushed")
        await step("inside")


async def leaves_generators_open(ctx: Context) -> Any:
    one, two = bodies.numbers("one", 5), bodies.numbers("two", 5)
    async for _ in one:
        break
    await anext(two)
    await step("with both open")
    cycle: list[Any] = [bodies.numbers("in a cycle", 5), two]
    cycle.append(cycle)
    await anext(cycle[0])
    del cycle, one, two
    await step("with one in a cycle")


async def iterates_over_a_generator_that_awaits_in_its_cleanup(ctx: Context) -> Any:
    async def stubborn() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            for _ in range(3):
                await asyncio.sleep(0)

    generator = stubborn()
    await anext(generator)
    await step("with it open")


async def groups_under_a_timeout(ctx: Context) -> Any:
    async def branch(name: str) -> None:
        try:
            async with asyncio.timeout(5):
                await step(name)
        finally:
            await step(f"undo {name}")

    async with asyncio.timeout(50), asyncio.TaskGroup() as group:
        group.create_task(branch("a"))
        group.create_task(branch("b"))
        await step("c")


async def starts_tasks_in_its_cleanup(ctx: Context) -> Any:
    try:
        await step("a")
    finally:
        async with asyncio.TaskGroup() as group:
            group.create_task(step("b"))
            group.create_task(step("c"))


async def sets_futures_in_its_cleanup(ctx: Context) -> Any:
    future = asyncio.get_running_loop().create_future()
    waiter = asyncio.ensure_future(asyncio.wait_for(future, None))
    try:
        await step("a")
    finally:
        future.set_result(1)
        await waiter


escaped: list[str] = []


async def opens_generators_in_its_cleanup(ctx: Context) -> Any:
    async def late() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            if current_turn() is None:
                escaped.append("closed outside the turn")

    try:
        await step("a")
    finally:
        async for _ in late():
            break


async def waits_on_a_condition(ctx: Context) -> Any:
    condition = asyncio.Condition()

    async def hold() -> None:
        async with condition:
            await step("held")
            condition.notify_all()

    async def wait() -> None:
        async with condition:
            await condition.wait()

    await asyncio.gather(wait(), wait(), hold())


CLEANING = (
    *(cleans_up_with_steps, swallows_everything, uses_stacks, leaves_generators_open),
    *(iterates_over_a_generator_that_awaits_in_its_cleanup, groups_under_a_timeout),
    *(starts_tasks_in_its_cleanup, sets_futures_in_its_cleanup, opens_generators_in_its_cleanup),
    waits_on_a_condition,
)


@pytest.mark.parametrize("body", [*CLEANING, *BODIES], ids=lambda body: body.__name__)
async def test_a_turn_closed_at_any_await_leaves_no_trace(body: Body):
    """On a running host loop, where a task or a plain call of a step could escape to."""
    host_tasks = asyncio.all_tasks()
    driver = Driver(body)
    driver.finish(first, REFUSAL)
    driver.turn.close()
    for position in range(len(driver.frames)):
        turn = make_turn(body)
        turn.replay(driver.frames[:position])
        with nothing_happens():
            turn.close()
            for _ in range(3):
                await asyncio.sleep(0)
        assert not escaped
        assert asyncio.all_tasks() == host_tasks
        assert asks_for_nothing(turn)
        assert not turn.pending
        assert not turn.unseen
        assert not turn.loop.live_tasks()
        with pytest.raises(CalledOutsideWorkflow):
            turn.set_state("x", b"")


USES: dict[str, Callable[[Context], Any]] = {
    "set": lambda ctx: ctx.set("x", 1),
    "delete": lambda ctx: ctx.delete("x"),
    "awakeable": lambda ctx: ctx.awakeable(int),
    "patched": lambda ctx: ctx.patched("p"),
    "send": lambda ctx: ctx.send(never_sent),
}


@workflow
async def never_sent() -> None: ...


@pytest.mark.parametrize("where", ["here", "in a thread", "on a loop"])
@pytest.mark.parametrize("how", ["completed", "closed", "diverged", "waiting"])
@pytest.mark.parametrize("use", USES)
def test_a_context_that_was_kept_is_refused_outside_of_its_body(use: str, how: str, where: str):
    kept: list[Context] = []

    async def body(ctx: Context) -> Any:
        kept.append(ctx)
        return await step("a")

    driver = Driver(body)
    if how == "completed":
        driver.finish(first)
    if how in ("closed", "completed"):
        driver.turn.close()
    if how == "diverged":
        driver.turn.loop.stopped = True
    refused: list[BaseException] = []

    def uses() -> None:
        try:
            USES[use](kept[-1])
        except BaseException as error:  # noqa: BLE001  whatever it is
            refused.append(error)

    async def uses_on_a_loop() -> None:
        uses()

    if where == "here":
        uses()
    elif where == "in a thread":
        thread = threading.Thread(target=uses)
        thread.start()
        thread.join()
    else:
        asyncio.run(uses_on_a_loop())
    [error] = refused
    assert type(error) is CalledOutsideWorkflow, repr(error)
    assert "'one'" in str(error)


@pytest.mark.parametrize("diverge", [False, True])
def test_a_body_that_swallows_everything_for_ever_does_not_hold_up_its_worker(diverge: bool):
    async def stubborn(ctx: Context) -> Any:
        while True:
            with suppress(BaseException):
                await step("poll" if not diverge else "other")
            with suppress(BaseException):
                await child("other")
            with suppress(BaseException):
                await asyncio.sleep(60)

    async def polls(ctx: Context) -> Any:
        await step("poll")

    turn = make_turn(stubborn)
    turn.replay(recorded(polls, 0))
    assert (turn.divergence is not None) == diverge
    with nothing_happens():
        turn.close()
    assert asks_for_nothing(turn)


def test_a_turn_that_never_began_can_be_closed_and_closed_again():
    turn = make_turn(two_steps)
    assert not turn.begun
    turn.close()
    turn.close()
    assert not turn.begun


# --- the beginning of the body ---------------------------------------------------------------------------------------
def test_claims_of_workers_that_died_at_once_come_before_the_body():
    driver = Driver(two_steps)
    driver.finish()
    _, *rest = driver.frames
    claims = [Frame("w1", 1000.0, [Accepted(START), Claimed(1000.0, 1, "w1", "3.11", "0")])]
    claims.append(Frame("w2", 1000.0, [Claimed(1000.0, 2, "w2", "3.11", "0")]))
    started = Frame("w2", 1000.0, [Released(1000.0)], driver.frames[0].commands)
    turn = make_turn(two_steps)
    turn.replay(claims)
    assert not turn.begun
    turn.close()
    turn = make_turn(two_steps)
    turn.replay([*claims, started, *rest])
    assert turn.divergence is None
    assert turn.begun


async def waits_for_nothing_in_the_journal(ctx: Context) -> Any:
    try:
        await asyncio.Event().wait()
    finally:
        await step("undo")


def test_a_body_that_asks_for_nothing_at_first_is_replayed_too():
    driver = Driver(waits_for_nothing_in_the_journal)
    driver.cancels()
    assert driver.names == ["undo"]
    driver.returns(0)
    assert isinstance(driver.outcome, Cancelled)
    driver.check_replay()


def test_a_body_that_was_paused_before_it_began_begins_when_the_pause_is_over():
    frames = [
        Frame("w", 1000.0, [Accepted(START), Claimed(1000.0, 1, "w", "3.11", "0"), Paused(1000.0, "set aside")]),
        Frame("w", 1001.0, [CancelRequested(1001.0)]),
    ]
    turn = make_turn(waits_for_nothing_in_the_journal)
    turn.replay(frames)
    assert not turn.begun
    turn.deliver(Resumed(1002.0))
    assert turn.begun
    assert [describe(command) for command in turn.ready().commands] == ["#0 step 'undo' (arguments f9be920e63136958)"]


# --- the end of the body ----------------------------------------------------------------------------------------------
def test_tasks_that_outlive_the_body_are_cancelled_and_awaited():
    ended: list[str] = []

    async def branch(name: str) -> None:
        try:
            await step(name)
        finally:
            ended.append(name)
            await step("undo", name)

    async def spawns_in_cleanup() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            asyncio.create_task(branch("spawned"))  # noqa: RUF006
            await asyncio.sleep(0)

    async def body(ctx: Context) -> Any:
        tasks = [asyncio.create_task(branch(name)) for name in "ab"]
        tasks.append(asyncio.create_task(spawns_in_cleanup()))
        await step("main")
        return len(tasks)

    driver = play(body, lambda: in_order(0))
    assert driver.value == 3
    assert driver.names == ["main", "a", "b", "SetTimer", "spawned", "undo", "undo", "undo"]
    assert [frame.cancels for frame in driver.frames[:2]] == [[], [1, 2, 3, 4]]
    assert driver.frames[-1].outcome is not None
    assert sum(frame.outcome is not None for frame in driver.frames) == 1


def test_a_step_abandoned_in_the_drain_that_issued_it_is_asked_to_end_in_the_same_frame():
    driver = Driver(cancels_and_goes_on)
    assert driver.names == ["a"]
    assert driver.frames[0].cancels == [0]
    assert driver.turn.pending[0].cancel_requested
    driver.interrupts(0)
    driver.check_replay()


def test_a_timer_abandoned_in_the_drain_that_set_it_waits_for_nothing():
    async def body(ctx: Context) -> Any:
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        return "done"

    driver = play(body)
    assert driver.names == ["SetTimer"]
    assert driver.frames[0].cancels == [0]


def test_a_late_answer_to_an_abandoned_command_is_discarded():
    async def body(ctx: Context) -> Any:
        turn = current_turn()
        assert turn is not None
        _, future = turn.open_awakeable(bytes.decode)
        timer = asyncio.get_running_loop().call_later(5, print)
        future.cancel()
        timer.cancel()
        return await step("a")

    driver = Driver(body)
    driver.give(Returned(0, 1001.0, b"late"))
    driver.give(Fired(1, 1002.0))
    assert driver.turn.divergence is None
    driver.finish()
    driver.check_replay()


def test_facts_after_the_end_change_nothing():
    async def body(ctx: Context) -> Any:
        ctx.awakeable(int)
        return await step("a")

    driver = Driver(body, batch=9)
    driver.returns(1, "done")
    driver.returns(0, 7)
    driver.cancels()
    driver.commit()
    assert driver.value == "done"
    driver.check_replay()


def test_a_step_that_raises_stop_iteration_fails_as_a_coroutine_does():
    driver = play(two_steps, answers={"a": StopIteration(3)})
    assert failure_in(driver) == "RuntimeError: a step or child raised StopIteration"
    assert isinstance(driver.outcome, Failed)
    assert driver.outcome.cause == 0


def test_a_result_that_cannot_be_encoded_fails_the_invocation():
    def refuse(value: object) -> bytes:
        raise Unencodable(f"the result is {value!r}")

    turn = Turn(START, lambda turn: none_at_all(Context(turn)), refuse, secret=SECRET)
    turn.begin()
    outcome = turn.ready().outcome
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "perdure.errors.Unencodable"
    turn.close()


def test_a_body_cannot_end_the_worker():
    async def exits(ctx: Context) -> Any:
        await step("a")
        sys.exit(3)

    async def exits_in_a_task_left_over(ctx: Context) -> Any:
        async def branch() -> None:
            try:
                await asyncio.sleep(100)
            finally:
                sys.exit(4)

        task = asyncio.create_task(branch())
        await step("a")
        return task.done()

    driver = play(exits)
    assert failure_in(driver) == "SystemExit: 3"
    assert play(exits_in_a_task_left_over, lambda: in_order(0, 1)).value is False


def test_what_a_task_raises_unseen_is_kept_for_the_log():
    async def boom() -> None:
        raise Refusal("unseen")

    async def body(ctx: Context) -> Any:
        asyncio.create_task(boom())  # noqa: RUF006
        await step("a")

    driver = Driver(body)
    driver.returns(0)
    assert [str(context["exception"]) for context in driver.turn.unseen] == ["unseen"]
    driver.turn.close()


def test_a_failure_names_the_command_that_caused_it():
    async def plain(ctx: Context) -> Any:
        await step("a")
        await step("bad")

    async def wrapped(ctx: Context) -> Any:
        try:
            await step("bad")
        except Refusal as error:
            raise RuntimeError("wrapped") from error

    async def grouped(ctx: Context) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(step("a"))
            group.create_task(step("bad"))

    async def own(ctx: Context) -> Any:
        with suppress(Refusal):
            await step("bad")
        raise RuntimeError("own")

    async def own_loop(ctx: Context) -> Any:
        error, other = RuntimeError("one"), RuntimeError("two")
        error.__cause__, other.__cause__ = other, error
        raise error

    for body, cause in ((plain, 1), (wrapped, 0), (grouped, 1), (own, None), (own_loop, None)):
        driver = Driver(body)
        driver.finish(first, REFUSAL)
        assert isinstance(driver.outcome, Failed)
        assert driver.outcome.cause == cause, body.__name__
        driver.turn.close()


# --- cancelling -------------------------------------------------------------------------------------------------------
async def is_cancelled_anywhere(ctx: Context) -> Any:
    try:
        await step("a")
        await asyncio.sleep(5)
        await asyncio.gather(step("b"), asyncio.sleep(1))
        await child("other")
        await asyncio.Event().wait() if ctx.get("never", int) else None
        async with asyncio.timeout(3):
            await ctx.awakeable(type(None))
    except asyncio.CancelledError:
        await step("undo")
        await asyncio.sleep(1)
        raise
    return "done"


@pytest.mark.parametrize("awaits", range(7))
@pytest.mark.parametrize("again", [False, True])
def test_a_cancellation_surfaces_at_every_await_and_its_cleanup_runs_once(awaits: int, again: bool):
    driver = Driver(is_cancelled_anywhere)
    for _ in range(awaits):
        driver.answer(first(driver.turn))
    driver.cancels()
    if again:
        driver.cancels()
        driver.check_replay()
    for _ in range(20):
        if driver.outcome is None:
            driver.answer(first(driver.turn))
            if again:
                driver.cancels()
    if awaits < 6:
        assert isinstance(driver.outcome, Cancelled)
        assert driver.names.count("undo") == 1
        assert driver.names[-2:] == ["undo", "SetTimer"]  # a second cancellation does not cut the cleanup short
    driver.check_replay()
    driver.turn.close()


def test_a_cancelled_body_that_returns_is_completed_and_one_that_raises_is_failed():
    async def returns(ctx: Context) -> Any:
        try:
            await step("a")
        except asyncio.CancelledError:
            return "anyway"

    async def raises(ctx: Context) -> Any:
        try:
            await step("a")
        finally:
            raise Refusal("in cleanup")

    for body in (returns, raises):
        driver = Driver(body)
        driver.cancels()
        driver.interrupts(0)
        driver.check_replay()
        assert isinstance(driver.outcome, Completed if body is returns else Failed)


def test_a_body_past_its_time_limit_fails():
    driver = Driver(two_steps, start=Start("one", "handler", b"\x80", 1000.0, 1000.0, 42, timeout=5.0))
    driver.cancels(timed_out=True)
    driver.interrupts(0)
    driver.check_replay()
    assert isinstance(driver.outcome, Failed)
    assert driver.outcome.failure.type == "perdure.errors.InvocationTimedOut"
    assert "5" in driver.outcome.failure.message


def test_a_body_that_raises_cancelled_error_by_itself_is_failed():
    async def body(ctx: Context) -> Any:
        await step("a")
        raise asyncio.CancelledError

    driver = play(body)
    assert failure_in(driver).startswith("asyncio.exceptions.CancelledError: the body raised CancelledError without")


def test_a_cancellation_while_left_over_tasks_end_changes_nothing():
    async def body(ctx: Context) -> Any:
        task = asyncio.create_task(step("a"))
        await asyncio.sleep(0)
        return task.done()

    driver = Driver(body)
    assert driver.outcome is None
    driver.cancels()
    driver.interrupts(0)
    assert driver.value is False
    driver.check_replay()


def test_a_timed_out_step_ends_only_when_the_journal_says_so():
    seen: list[str] = []

    async def body(ctx: Context) -> Any:
        try:
            async with asyncio.timeout(5):
                await step("slow")
        except TimeoutError:
            seen.append("late")
            return "late"

    for last_entry in (Interrupted(1, 1010.0), Returned(1, 1010.0, encode("too late to count"))):
        seen.clear()
        driver = Driver(body)
        driver.fires(0)
        assert driver.frames[-1].cancels == [1]
        assert not seen
        assert driver.outcome is None
        driver.give(last_entry)
        assert driver.value == "late"
        driver.check_replay()


def test_asking_a_step_to_end_twice_asks_once_and_an_ended_one_not_at_all():
    async def body(ctx: Context) -> Any:
        turn = current_turn()
        assert turn is not None
        future = turn.call_step("a", b"", encode, None)
        assert future.cancel()
        assert future.cancel("again")
        await asyncio.wait([future])
        assert not future.cancel()
        turn.cancel_command(0)
        return "ended"

    driver = play(body)
    assert driver.value == "ended"
    assert [frame.cancels for frame in driver.frames] == [[0], []]


def test_a_step_that_fails_while_it_is_asked_to_end_raises_its_failure_as_a_task_does():
    async def body(ctx: Context) -> Any:
        try:
            async with asyncio.timeout(5):
                await step("slow")
        except Refusal:
            return "refused"

    driver = Driver(body)
    driver.fires(0)
    driver.raises(1, Refusal("no"))
    assert driver.value == "refused"
    driver.check_replay()


# --- pausing ----------------------------------------------------------------------------------------------------------
def test_facts_wait_for_the_end_of_a_pause_on_replay_too():
    async def body(ctx: Context) -> Any:
        return await asyncio.gather(step("a"), step("b"), step("c"), asyncio.sleep(1))

    driver = Driver(body)
    driver.give(Paused(1001.0, "asked for"))
    assert driver.turn.paused
    held: list[Entry] = [
        Returned(0, 1002.0, encode("A")),
        Raised(1, 1003.0, failure_of(Refusal("no"))),
        Fired(3, 1004.0),
    ]
    for entry in held:
        driver.give(entry)
    assert driver.turn.waits_for(0) is None
    assert driver.turn.waits_for(2) is driver.turn.pending[2]
    assert driver.turn.waits_for(9) is None
    assert driver.turn.loop.now == 1000.0
    driver.check_replay()
    driver.give(Resumed(1005.0))
    assert not driver.turn.paused
    assert driver.turn.loop.now == 1004.0
    assert driver.outcome is None
    driver.interrupts(2)
    assert failure_in(driver) == "tests.core.bodies.Refusal: no"
    driver.check_replay()


def test_a_cancellation_during_a_pause_waits_too():
    driver = Driver(two_steps)
    driver.give(Paused(1001.0, "asked for"))
    driver.cancels()
    assert not driver.frames[-1].cancels
    driver.give(Resumed(1005.0))
    assert driver.frames[-1].cancels == [0]
    driver.interrupts(0)
    assert isinstance(driver.outcome, Cancelled)
    driver.check_replay()


def test_what_is_not_the_bodys_affair_is_passed_over():
    driver = Driver(two_steps)
    for entry in (Claimed(1.0, 1, "worker", "3.11", "0"), Released(1.0)):
        driver.give(entry)
    driver.finish()
    driver.check_replay()


def test_failed_attempts_are_remembered_and_move_the_clock():
    driver = Driver(two_steps)
    driver.give(Attempted(0, 1001.0, 1, failure_of(Refusal("no")), 1005.0))
    pending = driver.turn.pending[0]
    assert (pending.attempts, pending.retry_due, driver.turn.loop.now) == (1, 1005.0, 1001.0)
    driver.finish()
    driver.give(Attempted(0, 2001.0, 2, failure_of(Refusal("no")), 2005.0))
    assert driver.turn.divergence is None


# --- patches, randomness, ids -----------------------------------------------------------------------------------------
async def before_patch(ctx: Context) -> Any:
    await step("a")
    await step("b")
    return "old"


async def after_patch(ctx: Context) -> Any:
    await step("a")
    if ctx.patched("loud"):
        await step("shout")
    await step("b")
    return "new" if ctx.patched("loud") else "old"


def test_a_patch_is_false_for_old_journals_and_true_for_new_ones_and_stays_so():
    old = Driver(before_patch)
    old.answer(0)
    turn = make_turn(after_patch)
    turn.replay(old.frames)
    assert turn.divergence is None
    turn.deliver(Returned(1, 2000.0, encode(None)))
    assert turn.ready().outcome == Completed(2000.0, encode("old"))
    turn.close()

    new = play(after_patch)
    assert new.value == "new"
    assert new.names == ["a", "MarkPatch", "shout", "b"]
    turn = diverges(before_patch, new.frames)
    assert str(turn.divergence).startswith("the journal has #1 patch 'loud', the code now asks for #1 step 'b'")
    turn.close()


def test_a_patch_at_the_end_of_what_is_recorded_is_false():
    async def patched_at_the_end(ctx: Context) -> Any:
        await step("a")
        return ctx.patched("loud")

    driver = Driver(fewer)
    driver.turn.close()
    live = Driver(patched_at_the_end)
    live.finish()
    assert live.value is True
    old = [*driver.frames, Frame("writer", 0.0, [Returned(0, 1.0, encode(None)), Completed(1.0, encode(False))])]
    turn = make_turn(patched_at_the_end)
    turn.replay([Frame("writer", 0.0, [Accepted(START)], live.frames[0].commands), old[1]])
    assert turn.divergence is None
    turn.close()


def test_ids_derive_from_the_invocation_the_generation_and_the_number():
    async def body(ctx: Context) -> Any:
        turn = current_turn()
        assert turn is not None
        promise = ctx.awakeable(int)
        sent = turn.send(lambda id: Start(id, "other", b"\x80", 0, 0, 0))
        return [promise.id, sent, await child("third"), await promise]

    driver = Driver(body)
    assert driver.names == ["OpenAwakeable", "SendStart", "CallChild"]
    called = driver.frames[0].commands[2]
    assert isinstance(called, CallChild)
    assert called.start.id == derived_id("one", 0, 2)
    assert called.start.parent is not None
    assert (called.start.parent.id, called.start.parent.generation, called.start.parent.n) == ("one", 0, 2)
    driver.returns(2, "third")
    driver.returns(0, 5)
    assert driver.value == [awakeable_id("one", 0, 0, SECRET), derived_id("one", 0, 1), "third", 5]
    driver.check_replay()
    later = make_turn(body, generation=1)
    later.begin()
    commands: list[Command] = later.ready().commands
    assert isinstance(commands[1], SendStart)
    assert commands[1].start.id == derived_id("one", 1, 1) != derived_id("one", 0, 1)
    later.close()


def test_randomness_is_a_function_of_the_start():
    def drawn(seed: int) -> Any:
        driver = Driver(bodies.is_random, start=Start("one", "handler", b"\x80", 1000.0, 1000.0, seed))
        driver.finish()
        driver.check_replay()
        return driver.value

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_the_names_of_tasks_are_the_same_whatever_the_seed():
    async def body(ctx: Context) -> Any:
        task = asyncio.create_task(step("a"))
        main = asyncio.current_task()
        assert main is not None
        await task
        return [main.get_name(), task.get_name()]

    for seed in (1, 2**63 - 1):
        driver = Driver(body, start=Start("one", "handler", b"\x80", 1000.0, 1000.0, seed))
        driver.finish()
        assert driver.value == ["workflow", "task-2"]


# --- limits and borders -----------------------------------------------------------------------------------------------
def test_a_body_that_issues_without_end_is_stopped_and_its_replay_is_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(issuer, "COMMANDS_PER_DRAIN_LIMIT", 5)

    async def body(ctx: Context) -> Any:
        try:
            for _ in range(9):
                ctx.awakeable(int)
        except LimitExceeded as error:
            return [error.size, error.limit]

    driver = Driver(body)
    driver.commit()
    assert driver.value == [6, 5]
    assert driver.names == ["OpenAwakeable"] * 5
    driver.check_replay()


def test_the_limit_counts_anew_after_every_wait(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(issuer, "COMMANDS_PER_DRAIN_LIMIT", 2)
    assert play(bodies.locks).value == ["a", "b", "c", "d"]


def test_a_context_is_not_for_other_code():
    kept: list[Context] = []

    async def body(ctx: Context) -> Any:
        kept.append(ctx)
        await step("a")

    driver = Driver(body)
    for ask in (lambda: kept[0].set("x", 1), lambda: kept[0].patched("new"), lambda: kept[0].awakeable(int)):
        with pytest.raises(CalledOutsideWorkflow):
            ask()
    driver.finish()
    driver.check_replay()


def test_what_is_too_large_is_refused_before_it_leaves_the_body_and_again_on_replay():
    async def body(ctx: Context) -> Any:
        turn = current_turn()
        assert turn is not None
        try:
            ctx.set("name", "x" * 100)
        except PayloadTooLarge as error:
            await step("told", error.limit)
        return ctx.get("name", str)

    def limited() -> Turn:
        return Turn(START, lambda turn: body(Context(turn)), encode, secret=SECRET, payload_limit=50)

    turn = limited()
    turn.deliver(Accepted(START))
    ready = turn.ready()
    assert ready.state == {}
    assert [type(command) for command in ready.commands] == [CallStep]
    again = limited()
    again.replay([Frame("writer", 1000.0, [Accepted(START)], ready.commands)])
    assert again.divergence is None
    for one in (turn, again):
        one.close()


def test_stubs_are_made_by_what_the_runtime_gave():
    async def body(ctx: Context) -> Any:
        turn = current_turn()
        assert turn is not None
        return turn.make_stub("stub", None, 5)

    def run(turn: Turn) -> Any:
        turn.begin()
        outcome = turn.ready().outcome
        turn.close()
        return outcome

    made = Turn(
        START,
        lambda turn: body(Context(turn)),
        encode,
        secret=SECRET,
        stubs=lambda stub, turn, retry, timeout: [stub, turn.start.id, retry, timeout],
    )
    assert run(made) == Completed(1000.0, encode(["stub", "one", None, 5]))
    failed = run(make_turn(body))
    assert isinstance(failed, Failed)
    assert failed.failure.type == "perdure.errors.CalledOutsideWorkflow"


def test_no_turn_is_current_outside_a_drain():
    assert current_turn() is None
    driver = Driver(two_steps)
    assert current_turn() is None
    driver.turn.close()
    assert current_turn() is None


async def test_no_turn_is_current_on_another_loop():
    assert current_turn() is None


def test_replaying_is_seen_from_inside():
    async def body(ctx: Context) -> Any:
        seen = [ctx.is_replaying]
        await step("a")
        return [*seen, ctx.is_replaying]

    driver = Driver(body)
    turn = make_turn(body)
    turn.replay(driver.frames)
    turn.deliver(Returned(0, 1001.0, encode("a")))
    assert turn.ready().outcome == Completed(1001.0, encode([True, False]))
    turn.close()
