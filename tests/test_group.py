"""Groups: outcomes in the order given, and the four rules for when to stop waiting."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest

from perdure import (
    Call,
    Cancelled,
    Completed,
    Context,
    Failed,
    WaitDuration,
    WaitForQuota,
    WaitQuotaOrDuration,
    connect,
    step,
    workflow,
)
from perdure.errors import InvalidOption
from perdure.testing import Environment


@workflow
async def slow(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@workflow
async def checked(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number


@workflow
async def family(ctx: Context, numbers: list[int]) -> list[int]:
    group = await ctx.run_all([checked.bind(number) for number in numbers], concurrency=2)
    return [*group.values(), group.failed]


async def test_outcomes_come_in_the_order_given() -> None:
    async with connect("memory:") as client, client.worker(checked, slow):
        group = await client.run_all([checked.bind(n) for n in (3, -1, 4)])
    assert [each.status for each in group.results] == ["completed", "failed", "completed"]
    assert (group.completed, group.failed, group.cancelled, group.values()) == (2, 1, 0, [3, 4])
    first, second, _ = group.results
    assert isinstance(first, Completed)
    assert first.duration >= 0
    assert isinstance(second, Failed)
    assert str(second.error) == "-1 is negative"
    assert group.total_duration > 0


async def test_quota_cancels_the_others() -> None:
    async with connect("memory:") as client, client.worker(checked, slow):
        calls = [slow.bind(30.0), slow.bind(0.01), slow.bind(30.0), slow.bind(0.02)]
        group = await client.run_all(calls, wait=WaitForQuota(2))
        assert [each.status for each in group.results] == ["cancelled", "completed", "cancelled", "completed"]
        stopped = group.results[0]
        assert isinstance(stopped, Cancelled)
        assert (await client.handle(stopped.id).describe()).status == "cancelled"


async def test_duration_cancels_what_has_not_ended() -> None:
    began = time.monotonic()
    async with connect("memory:") as client, client.worker(slow):
        group = await client.run_all([slow.bind(0.01), slow.bind(30.0)], wait=WaitDuration(timedelta(seconds=0.5)))
    assert [each.status for each in group.results] == ["completed", "cancelled"]
    assert time.monotonic() - began < 20


async def test_quota_or_duration_ends_with_what_comes_first() -> None:
    async with connect("memory:") as client, client.worker(slow):
        early = await client.run_all([slow.bind(0.01), slow.bind(30.0)], wait=WaitQuotaOrDuration(1, 20))
        late = await client.run_all([slow.bind(0.01), slow.bind(30.0)], wait=WaitQuotaOrDuration(2, 0.3))
    assert (early.completed, early.cancelled) == (late.completed, late.cancelled) == (1, 1)


async def test_no_more_than_the_concurrency_run_at_once() -> None:
    running = most = 0

    @step
    async def busy() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    @workflow
    async def works() -> None:
        await busy()

    async with connect("memory:") as client, client.worker(works):
        group = await client.run_all([works.bind() for _ in range(12)], concurrency=3)
    assert group.completed == 12
    assert most == 3


async def test_group_inside_a_workflow_runs_children_and_replays() -> None:
    async with Environment(family, checked) as env:
        assert await env.client.run(family, [1, -2, 3, 4]) == [1, 3, 4, 1]


async def test_empty_group_is_no_work() -> None:
    async with connect("memory:") as client:
        calls: list[Call[int]] = []
        assert (await client.run_all(calls)).results == []


@pytest.mark.parametrize("quota", [0, -1])
def test_quota_below_one_is_refused(quota: int) -> None:
    with pytest.raises(InvalidOption, match="quota"):
        WaitForQuota(quota)
