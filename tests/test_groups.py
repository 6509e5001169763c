"""What a group says is what the store says: at any moment the rule may strike, on every embedded store."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from perdure import (
    Call,
    Cancelled,
    Client,
    Completed,
    Context,
    Failed,
    Group,
    InvocationCancelled,
    RemoteError,
    Unsettled,
    WaitDuration,
    WaitForQuota,
    WaitQuotaOrDuration,
    connect,
    step,
    workflow,
)
from perdure.errors import IdConflict, InputRefused, InvalidOption, NotAWorkflow, PerdureError, StoreClosed
from perdure.testing import Environment

PATIENCE = 30.0
"""For what comes about in an instant on a machine that is idle."""


@pytest.fixture(params=["memory", "sqlite"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    async with connect("memory:" if request.param == "memory" else f"sqlite:{tmp_path / 'store.db'}") as client:
        yield client


@workflow
async def slow(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@workflow
async def stubborn() -> str:
    """Complete in spite of a cancellation."""
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        return "completed all the same"
    return "slept"


@workflow
async def number(n: int) -> int:
    return n


async def agrees(client: Client, group: Group[Any], started: int | None = None) -> None:
    """Hold what a group says against the store."""
    told = Counter(each.status for each in group.results if each.id)
    assert told == Counter((await client.stats()).by_status)
    for each in group.results:
        if each.id:
            assert (await client.handle(each.id).describe()).status == each.status, each
    if started is not None:
        assert told.total() == started


# --- the rule strikes -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seconds", [0, 0.004, 0.03])
async def test_all_that_a_duration_leaves_over_is_cancelled_in_the_store_too(client: Client, seconds: float) -> None:
    async with client.worker(slow), asyncio.timeout(PATIENCE):
        group = await client.run_all([slow.bind(3600.0) for _ in range(300)], wait=WaitDuration(seconds))
        assert group.cancelled == 300
        assert all(each.id for each in group.results)
        await agrees(client, group, 300)


async def test_members_that_complete_while_they_are_cancelled_are_completed(client: Client) -> None:
    async with client.worker(slow), asyncio.timeout(PATIENCE):
        calls = [slow.bind(0.005 + 0.045 * (n % 50) / 50) for n in range(500)]
        group = await client.run_all(calls, wait=WaitForQuota(100))
        assert group.completed >= 100
        assert group.failed == group.unsettled == 0
        await agrees(client, group, 500)


async def test_member_that_takes_its_cancellation_and_returns_is_completed(client: Client) -> None:
    async with client.worker(stubborn, number), asyncio.timeout(PATIENCE):
        calls = cast("list[Call[int | str]]", [stubborn.bind(), number.bind(1)])
        group = await client.run_all(calls, wait=WaitForQuota(1))
        assert [each.status for each in group.results][1] == "completed"
        await agrees(client, group, 2)


async def test_without_a_worker_a_group_ends_when_its_duration_does(client: Client) -> None:
    began = time.monotonic()
    group = await client.run_all([slow.bind(1.0) for _ in range(20)], wait=WaitDuration(0.2))
    assert time.monotonic() - began < 15, "it must not wait for `settle`"
    assert group.cancelled == 20
    await agrees(client, group, 20)


async def test_member_whose_slot_is_taken_is_cancelled_without_waiting_for_it(client: Client) -> None:
    free = asyncio.Event()

    @step
    async def busy() -> None:
        await free.wait()

    @workflow
    async def holds_the_slot() -> None:
        await busy()

    async with client.worker(holds_the_slot, slow, max_concurrent=1), asyncio.timeout(PATIENCE):
        handle = await client.start(holds_the_slot)
        async for state in handle.watch():
            if state.status == "running":
                break
        group = await client.run_all([slow.bind(1.0) for _ in range(5)], wait=WaitDuration(0.05), settle=PATIENCE)
        assert group.cancelled == 5
        free.set()
        await handle.result()


async def test_members_that_wait_for_room_are_never_started_and_have_no_id(client: Client) -> None:
    async with client.worker(slow), asyncio.timeout(PATIENCE):
        calls = [slow.bind(3600.0) for _ in range(10)]
        group = await client.run_all(calls, wait=WaitDuration(0.05), concurrency=3)
        assert [bool(each.id) for each in group.results] == [True] * 3 + [False] * 7
        await agrees(client, group, 3)


async def test_quota_larger_than_the_group_waits_for_all(client: Client) -> None:
    async with client.worker(number), asyncio.timeout(PATIENCE):
        group = await client.run_all([number.bind(1), number.bind(2)], wait=WaitForQuota(50))
    assert group.values() == [1, 2]


async def test_group_of_thousands_is_whole(client: Client) -> None:
    async with client.worker(number), asyncio.timeout(120):
        group = await client.run_all([number.bind(n) for n in range(5_000)])
    assert group.values() == [*range(5_000)]


# --- settling ---------------------------------------------------------------------------------------------------------
async def test_report_waits_for_cleanup_and_says_what_has_not_ended_within_settle(client: Client) -> None:
    may_end = asyncio.Event()
    cleaned = 0

    @step
    async def undo() -> None:
        nonlocal cleaned
        await may_end.wait()
        cleaned += 1

    @workflow
    async def cleans_up() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await undo()

    async with client.worker(cleans_up, number), asyncio.timeout(PATIENCE):
        group = await client.run_all([cleans_up.bind()], wait=WaitDuration(0.05), settle=0.05)
        (left,) = group.results
        assert isinstance(left, Unsettled)
        assert left.status in ("pending", "running", "suspended")
        assert group.unsettled == 1
        running = asyncio.create_task(client.run_all([cleans_up.bind()], wait=WaitDuration(0.05)))
        await asyncio.sleep(0)
        may_end.set()
        assert (await running).cancelled == 1
        assert cleaned >= 1
        with pytest.raises(InvocationCancelled):
            await client.handle(left.id).result()


async def test_paused_member_is_reported_as_paused_at_once(client: Client) -> None:
    async with client.worker(slow), asyncio.timeout(PATIENCE):
        calls = [slow.using(id="paused").bind(3600.0), slow.using(id="other").bind(3600.0)]
        running = asyncio.create_task(client.run_all(calls, wait=WaitDuration(0.5), settle=3600))
        async for state in client.watch(id_prefix="paused"):
            if state.status == "suspended":
                break
        await client.handle("paused").pause()
        group = await running
        assert group.results[0] == Unsettled("paused", "paused", group.results[0].duration)
        assert group.results[1].status == "cancelled"
        await agrees(client, group, 2)
        await client.handle("paused").resume()
        with pytest.raises(InvocationCancelled):
            await client.handle("paused").result()


# --- the caller leaves ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rounds", range(12))
async def test_wherever_its_caller_is_cancelled_all_members_are(client: Client, rounds: int) -> None:
    async with client.worker(slow), asyncio.timeout(PATIENCE):
        calls = [slow.bind(3600.0) for _ in range(20)]
        running: asyncio.Task[Any] = asyncio.create_task(client.run_all(calls, concurrency=10))
        for _ in range(rounds):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async for each in client.list():
            with pytest.raises(InvocationCancelled):
                await client.handle(each.id).result()


async def test_caller_that_is_cancelled_again_leaves_at_once_and_the_members_are_cancelled(client: Client) -> None:
    async with client.worker(slow), asyncio.timeout(PATIENCE):
        running = asyncio.create_task(client.run_all([slow.using(id=f"m{n}").bind(3600.0) for n in range(20)]))
        await asyncio.sleep(0.05)
        for _ in range(3):
            running.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await running
        for n in range(20):
            with pytest.raises(InvocationCancelled):
                await client.handle(f"m{n}").result()


async def ends_with(error: type[Exception], client: Client) -> bool:
    with pytest.raises(error):
        await client.run_all([slow.bind(3600.0) for _ in range(5)])
    return True


async def test_closing_the_client_ends_its_group_with_the_store(tmp_path: Path) -> None:
    client = connect(f"sqlite:{tmp_path / 'store.db'}")
    async with client, asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(ends_with(StoreClosed, client))
        while (await client.stats()).total < 5:
            await asyncio.sleep(0.001)
        await client.aclose()
    assert await running


# --- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("quota", [2.5, "2", True, None, 0, -1, float("nan")], ids=repr)
def test_quota_that_is_no_whole_number_is_refused(quota: Any) -> None:
    with pytest.raises(InvalidOption, match="quota"):
        WaitForQuota(quota)
    with pytest.raises(InvalidOption, match="quota"):
        WaitQuotaOrDuration(quota, 1)


@pytest.mark.parametrize("duration", [-1, "1", float("nan"), float("inf"), None, True], ids=repr)
def test_duration_that_is_no_number_of_seconds_is_refused(duration: Any) -> None:
    with pytest.raises(InvalidOption, match="duration"):
        WaitDuration(duration)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"wait": 3}, InvalidOption, "wait=3"),
        ({"concurrency": 0}, InvalidOption, "concurrency"),
        ({"concurrency": 2.0}, InvalidOption, "concurrency"),
        ({"settle": -1}, InvalidOption, "settle"),
        ({"settle": float("nan")}, InvalidOption, "settle"),
    ],
    ids=str,
)
async def test_options_of_a_group_are_checked_before_anything_is_started(
    client: Client, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        await client.run_all([number.bind(1)], **options)
    assert (await client.stats()).total == 0


def wrong_calls() -> Iterator[tuple[Any, type[PerdureError], str]]:
    yield [number.using(id="a").bind(1), number.using(id="a").bind(2)], InvalidOption, r"calls\[1\] has the id of calls"
    yield [number.bind(1), 7], NotAWorkflow, r"calls\[1\] is 7"
    yield [number.bind(1), number], NotAWorkflow, r"calls\[1\]"
    yield [number.bind(1), cast("Any", number).bind("x")], InputRefused, r"calls\[1\]: "
    yield [number.bind(1), cast("Any", number).bind(1, 2)], InputRefused, r"calls\[1\]: .*argument"
    yield number.bind(1), NotAWorkflow, "give the calls in a list"


@pytest.mark.parametrize(("calls", "error", "text"), [*wrong_calls()], ids=[each[2] for each in wrong_calls()])
async def test_member_that_cannot_be_one_is_named_before_anything_is_started(
    client: Client, calls: Any, error: type[PerdureError], text: str
) -> None:
    with pytest.raises(error, match=text):
        await client.run_all(calls)
    assert (await client.stats()).total == 0


async def test_calls_may_come_from_a_generator_and_one_call_may_come_twice(client: Client) -> None:
    twice = number.bind(7)
    async with client.worker(number), asyncio.timeout(PATIENCE):
        assert (await client.run_all(number.bind(n) for n in range(3))).values() == [0, 1, 2]
        group = await client.run_all([twice, twice])
    assert group.values() == [7, 7]
    assert len({each.id for each in group.results}) == 2


async def test_id_that_is_taken_is_the_failure_of_its_member_alone(client: Client) -> None:
    async with client.worker(number), asyncio.timeout(PATIENCE):
        await client.run(number.using(id="taken"), 1)
        group = await client.run_all([number.using(id="taken").bind(2), number.bind(3)])
        again = await client.run_all([number.using(id="taken").bind(1)])
    failed = group.results[0]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, IdConflict)
    assert group.values() == [3]
    assert again.values() == [1]


async def test_two_groups_that_share_a_member_report_the_same_of_it(client: Client) -> None:
    async with client.worker(slow), asyncio.timeout(PATIENCE):
        shared = slow.using(id="shared").bind(3600.0)
        first = asyncio.create_task(client.run_all([shared]))
        second = await client.run_all([shared], wait=WaitDuration(0.05))
        assert [each.status for each in (await first).results] == [each.status for each in second.results]
        await agrees(client, second, 1)


# --- outcomes ---------------------------------------------------------------------------------------------------------
class Odd(BaseException):
    """Not an `Exception`: what catches those misses it."""


@workflow
async def interrupts() -> None:
    raise Odd("not the caller's")


@workflow
async def cancels_itself() -> None:
    task = asyncio.ensure_future(asyncio.sleep(3600))
    task.cancel()
    await task


@workflow
async def gathers(ctx: Context) -> list[str]:
    group = await ctx.run_all([interrupts.bind(), cancels_itself.bind()])
    return [each.status for each in group.results]


async def test_member_that_raises_what_would_end_its_caller_is_failed_everywhere(client: Client) -> None:
    async with client.worker(interrupts, cancels_itself, gathers), asyncio.timeout(PATIENCE):
        group = await client.run_all([interrupts.bind(), cancels_itself.bind()])
        assert [each.status for each in group.results] == ["failed", "failed"]
        assert all(isinstance(each, Failed) and isinstance(each.error, Exception) for each in group.results)
        assert await client.run(gathers) == ["failed", "failed"]
        for each in (interrupts, cancels_itself):
            with pytest.raises(RemoteError):
                await client.run(each)
            handle = await client.start(each)
            with pytest.raises(RemoteError):
                await handle.result()


# --- children ---------------------------------------------------------------------------------------------------------
@workflow
async def races(ctx: Context, quota: int, size: int, seconds: float) -> list[tuple[str, str]]:
    group = await ctx.run_all([slow.bind(seconds) for _ in range(size)], wait=WaitForQuota(quota))
    return [(each.id, each.status) for each in group.results]


async def test_group_of_children_has_their_ids_and_what_became_of_them(client: Client) -> None:
    async with client.worker(races, slow), asyncio.timeout(PATIENCE):
        found = await client.run(races, 3, 20, 0.01)
        for id, status in found:
            assert (await client.handle(id).describe()).status == status
        assert Counter(status for _, status in found)["completed"] >= 3


async def test_group_of_children_replays_as_it_was() -> None:
    async with Environment(races, slow) as env:
        found = await env.client.run(races, 3, 8, 5.0)
        assert len({id for id, _ in found}) == 8
        for id, status in found:
            assert (await env.client.handle(id).describe()).status == status


@workflow
async def leaves(ctx: Context) -> list[tuple[str, str]]:
    group = await ctx.run_all([unserved.bind(1)], wait=WaitDuration(0.1), settle=0.2)
    return [(each.id, each.status) for each in group.results]


@workflow
async def unserved(n: int) -> int:
    return n


@workflow
async def keeps_cleaning() -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(3600)


@workflow
async def loses_patience(ctx: Context) -> list[tuple[str, str]]:
    group = await ctx.run_all([keeps_cleaning.bind(), number.bind(1)], wait=WaitDuration(0.1), settle=0.2)
    return [(each.id, each.status) for each in group.results]


async def test_child_that_has_not_ended_within_settle_is_unsettled_and_the_parent_goes_on() -> None:
    async with Environment(loses_patience, keeps_cleaning, number) as env:
        (left, status), (_, other) = await env.client.run(loses_patience)
        assert (status, other) == ("suspended", "completed")
        assert (await env.client.handle(left).describe()).status == "suspended"


async def test_child_that_no_worker_serves_is_cancelled_with_its_group(client: Client) -> None:
    async with client.worker(leaves), asyncio.timeout(PATIENCE):
        ((id, status),) = await client.run(leaves)
        assert status == "cancelled"
        assert (await client.handle(id).describe()).status == "cancelled"


@workflow
async def wrong_group(ctx: Context, how: str) -> str:
    calls: Any = {
        "twice": [number.using(id="a").bind(1), number.using(id="a").bind(1)],
        "no call": [number.bind(1), 7],
        "no input": [number.bind(1), cast("Any", number).bind("x")],
    }[how]
    try:
        await ctx.run_all(calls)
    except PerdureError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize("how", ["twice", "no call", "no input"])
async def test_child_that_cannot_be_a_member_is_named_before_any_is_started(how: str) -> None:
    async with Environment(wrong_group, number) as env:
        assert "calls[1]" in await env.client.run(wrong_group, how)
        assert (await env.client.stats()).total == 1


@workflow
async def is_cancelled(ctx: Context) -> None:
    await ctx.run_all([keeps_tidy.using(id=f"child-{n}").bind() for n in range(3)])


@workflow
async def keeps_tidy() -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        await number.using()(1)


async def test_cancelled_parent_waits_for_the_cleanup_of_its_group() -> None:
    async with Environment(is_cancelled, keeps_tidy, number) as env:
        handle = await env.client.start(is_cancelled)
        await env.settle()
        await handle.cancel()
        with pytest.raises(InvocationCancelled):
            await handle.result()
        for n in range(3):
            assert (await env.client.handle(f"child-{n}").describe()).status == "cancelled"


def test_outcomes_are_told_apart_by_their_status() -> None:
    group = Group([Completed("a", 1, 0.1), Cancelled("b", 0.2), Unsettled("c", "paused")], 0.3)
    assert (group.completed, group.cancelled, group.unsettled, group.values()) == (1, 1, 1, [1])
