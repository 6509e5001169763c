"""Sagas: compensations in reverse order, whatever fails, is cancelled, retried or dies."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from perdure import Context, Retry, step, step_info, workflow
from perdure.errors import (
    CompensationFailed,
    InputRefused,
    InvalidOption,
    InvocationCancelled,
    InvocationTimedOut,
    MessageRefused,
)
from perdure.testing import Environment, crash_everywhere

ONCE = Retry(max_attempts=1)

done: list[str] = []
failing: set[str] = set()
keys: dict[str, set[str]] = {}
"""The idempotency keys with which each undoing ran."""


def forget() -> None:
    done.clear()
    failing.clear()
    keys.clear()


@pytest.fixture(autouse=True)
def fresh() -> None:
    forget()


@step(retry=ONCE)
async def book(what: str) -> str:
    if what in failing:
        raise RuntimeError(f"no {what}")
    done.append(what)
    return f"{what}-1"


@step(retry=ONCE)
async def undo(what: str, *, reason: str = "") -> None:
    keys.setdefault(what, set()).add(step_info().idempotency_key)
    if f"-{what}" in failing:
        raise ValueError(f"cannot undo {what}")
    done.append(f"-{what}")


@workflow
async def undo_elsewhere(what: str) -> None:
    await undo(what)


@workflow
async def trip(ctx: Context, wanted: Sequence[str]) -> list[str]:
    booked: list[str] = []
    async with ctx.saga() as saga:
        for what in wanted:
            saga.add_compensation(undo, what, reason="trip")
            booked.append(await book(what))
    return booked


@workflow
async def waits(ctx: Context, seconds: float, *, limit: float | None = None) -> str:
    try:
        async with asyncio.timeout(limit), ctx.saga() as saga:
            saga.add_compensation(undo, "a")
            await book("a")
            await asyncio.sleep(seconds)
    except TimeoutError:
        return "too late"
    return "in time"


@workflow
async def rest() -> None:
    await asyncio.sleep(5)


@workflow
async def slow_to_undo(ctx: Context) -> None:
    async with ctx.saga() as saga:
        saga.add_compensation(undo, "z")
        saga.add_compensation(rest)
        saga.add_compensation(undo, "a")
        await book("a")
        await book("b")


@workflow
async def nested(ctx: Context) -> None:
    async with ctx.saga() as outer:
        outer.add_compensation(undo, "b")
        async with ctx.saga() as inner:
            inner.add_compensation(undo_elsewhere, "a")
            await book("a")
            await book("b")
            await book("c")


@workflow
async def goes_on(ctx: Context) -> str:
    try:
        async with ctx.saga() as saga:
            saga.add_compensation(undo, "a")
            await book("a")
            await book("b")
    except RuntimeError:
        return await book("last")
    return "not reached"


@workflow
async def misuses(ctx: Context) -> list[str]:
    wrong: list[str] = []
    saga = ctx.saga()
    anything: Any = undo
    for _ in range(2):
        try:
            async with saga:
                saga.add_compensation(anything, 1, 2, 3)
        except (InputRefused, InvalidOption) as error:
            wrong.append(type(error).__name__)
    for call in (len, undo):
        try:
            if call is undo:
                saga.add_compensation(undo, "a")
            else:
                async with ctx.saga() as other:
                    other.add_compensation(anything.fn, "a")
        except InvalidOption as error:
            wrong.append(type(error).__name__)
    return wrong


@workflow
async def ends_before_its_tasks(ctx: Context, how: str) -> str:
    """A task is in the block, or undoes, when the body ends or cancels all its tasks."""

    async def block() -> None:
        async with ctx.saga() as saga:
            saga.add_compensation(undo, "a")
            saga.add_compensation(rest)
            saga.add_compensation(undo, "c")
            if how == "in the block":
                await asyncio.sleep(100)
            raise ValueError

    task = asyncio.create_task(block())
    await asyncio.sleep(1)
    if how == "cancelled":
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            assert each is not None
            each.cancel()
        await asyncio.wait([task])
    return how


@workflow
async def reuses(ctx: Context) -> None:
    what = ["a"]
    async with ctx.saga() as saga:
        for each in "abc":
            what[0] = each
            saga.add_compensation(undo_all, what)
        raise ValueError("odd")


@step
async def undo_all(what: list[str]) -> None:
    done.extend(f"-{each}" for each in what)


async def ended(env: Environment, handle: Any) -> str:
    await env.settle()
    return (await handle.describe()).status


async def test_block_that_succeeds_undoes_nothing() -> None:
    async with Environment(trip) as env:
        assert await env.client.run(trip, ["a", "b"]) == ["a-1", "b-1"]
    assert done == ["a", "b"]


async def test_block_that_raises_is_undone_newest_first_and_raises_what_it_raised() -> None:
    failing.add("c")
    async with Environment(trip) as env:
        with pytest.raises(RuntimeError, match="no c"):
            await env.client.run(trip, ["a", "b", "c", "d"])
    assert done == ["a", "b", "-c", "-b", "-a"]


async def test_retry_of_what_was_undone_is_refused() -> None:
    failing.add("b")
    async with Environment(trip) as env:
        handle = await env.client.start(trip, ["a", "b"])
        assert await ended(env, handle) == "failed"
        failing.clear()
        with pytest.raises(MessageRefused, match=r"its saga has undone what it did .*restart"):
            await handle.retry()
        again = await handle.restart()
        assert await again.result() == ["a-1", "b-1"]
    assert done == ["a", "-b", "-a", "a", "b"]


@pytest.mark.parametrize("wrong", [each for n in (1, 2, 3) for each in itertools.combinations("abc", n)])
async def test_what_failed_to_be_undone_is_tried_again_and_nothing_else_wherever_the_worker_dies(
    wrong: tuple[str, ...],
) -> None:
    """A retry finds one after the other mended, until the last one succeeds."""
    for env in crash_everywhere(trip):
        forget()
        left = [f"-{each}" for each in reversed(wrong)]
        failing.update({"d", *left})
        async with env:
            handle = await env.client.start(trip, ["a", "b", "c", "d"])
            while left:
                assert await ended(env, handle) == "failed"
                with pytest.raises(CompensationFailed) as caught:
                    await handle.result()
                assert [str(each) for each in caught.value.exceptions] == [f"cannot undo {each[1]}" for each in left]
                assert str(caught.value.__cause__) == "no d"
                failing.discard(left.pop())
                await handle.retry()
            await env.settle()
            with pytest.raises(RuntimeError, match="no d"):
                await handle.result()
        undone = Counter(each for each in done if each.startswith("-"))
        assert undone.keys() == {"-a", "-b", "-c", "-d"}
        assert undone.total() <= 4 + env.crashes  # a step that ended when the worker died runs again, under its key
        assert {each: len(found) for each, found in keys.items()} == dict.fromkeys("abcd", 1)


async def test_saga_is_undone_when_its_invocation_is_cancelled_or_its_time_is_over() -> None:
    async with Environment(waits) as env:
        handle = await env.client.start(waits, 9.0)
        await env.advance(1)
        await handle.cancel()
        with pytest.raises(InvocationCancelled):
            await handle.result()
        assert done == ["a", "-a"]
        handle = await env.client.start(waits.using(timeout=5), 9.0)
        await env.advance(6)
        with pytest.raises(InvocationTimedOut):
            await handle.result()
        with pytest.raises(MessageRefused, match="its saga has undone"):
            await handle.retry()
        handle = await env.client.start(waits, 9.0, limit=5.0)
        await env.advance(6)
        assert await handle.result() == "too late"
        assert done == ["a", "-a"] * 3


async def test_cancellation_that_comes_while_it_undoes_goes_on_once_all_is_undone() -> None:
    failing.add("b")
    async with Environment(slow_to_undo, rest) as env:
        handle = await env.client.start(slow_to_undo)
        await env.advance(1)
        await handle.cancel()
        await env.advance(1)
        await handle.cancel()
        assert (await handle.describe()).status == "running" or (await handle.describe()).status == "suspended"
        await env.advance(10)
        with pytest.raises(InvocationCancelled):
            await handle.result()
        assert done == ["a", "-a", "-z"]


async def test_cancelled_invocation_whose_saga_cannot_undo_has_failed_until_a_retry_can() -> None:
    failing.add("-a")
    async with Environment(waits) as env:
        handle = await env.client.start(waits, 9.0)
        await env.advance(1)
        await handle.cancel()
        with pytest.raises(CompensationFailed):
            await handle.result()
        failing.clear()
        await handle.retry()
        with pytest.raises(InvocationCancelled):
            await handle.result()
        assert done == ["a", "-a"]


async def test_children_undo_and_nested_sagas_undo_from_within() -> None:
    failing.update({"c", "-b"})
    async with Environment(nested, undo_elsewhere) as env:
        handle = await env.client.start(nested)
        assert await ended(env, handle) == "failed"
        with pytest.raises(CompensationFailed) as caught:
            await handle.result()
        assert [str(each) for each in caught.value.exceptions] == ["cannot undo b"]
        assert done == ["a", "b", "-a"]
        failing.clear()
        await handle.retry()
        with pytest.raises(RuntimeError, match="no c"):
            await handle.result()
        assert done == ["a", "b", "-a", "-b"]


async def test_failure_after_a_saga_whose_failure_was_caught_is_retried_alone() -> None:
    failing.update({"b", "last"})
    async with Environment(goes_on) as env:
        handle = await env.client.start(goes_on)
        assert await ended(env, handle) == "failed"
        failing.clear()
        await handle.retry()
        assert await handle.result() == "last-1"
    assert done == ["a", "-a", "last"]


@pytest.mark.parametrize("how", ["in the block", "undoing", "cancelled"])
async def test_saga_of_a_task_is_undone_whatever_cancels_the_task(how: str) -> None:
    for env in crash_everywhere(ends_before_its_tasks, rest):
        forget()
        async with env:
            assert await env.client.run(ends_before_its_tasks, how) == how
        assert list(dict.fromkeys(done)) == ["-c", "-a"]


async def test_arguments_of_a_compensation_are_those_of_when_it_was_added() -> None:
    async with Environment(reuses) as env:
        with pytest.raises(ValueError, match="odd"):
            await env.client.run(reuses)
    assert done == ["-c", "-b", "-a"]


async def test_wrong_use_is_refused_where_it_is_made() -> None:
    async with Environment(misuses) as env:
        assert await env.client.run(misuses) == ["InputRefused", "InvalidOption", "InvalidOption", "InvalidOption"]


def test_part_of_a_group_is_such_a_group() -> None:
    group = CompensationFailed("2 of 2", [ValueError("a"), KeyError("b")])
    part = group.subgroup(ValueError)
    assert type(part) is CompensationFailed
    assert [str(each) for each in part.exceptions] == ["a"]
