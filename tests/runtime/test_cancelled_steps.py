"""A step that the body cancels while its attempt fails: whatever comes first, it ends, and it is not tried again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure import InvocationCancelled, Retry, connect, step, workflow
from perdure.client import Client
from perdure.operations.local import store_behind
from perdure.stores.memory import MemoryStore

RESULT_SECONDS = 10.0


class World:
    may_fail: asyncio.Event
    attempts = 0


@pytest.fixture(autouse=True)
def world() -> None:
    World.may_fail, World.attempts = asyncio.Event(), 0


@step(retry=Retry(max_attempts=5, initial=0, jitter=0))
async def fails() -> str:
    World.attempts += 1
    await World.may_fail.wait()
    raise ConnectionError("it failed")


@step
async def quick() -> str:
    return "quick"


@workflow
async def cancels() -> str:
    failing = asyncio.create_task(fails())
    await quick()
    failing.cancel()
    await asyncio.wait([failing])
    return "cancelled" if failing.cancelled() else "failed"


async def on_commit(client: Client, act: Any) -> None:
    """Have something happen whenever a frame is about to be written."""
    store = await store_behind(client.operations)
    assert isinstance(store, MemoryStore)
    store.hook = lambda kind, _: act() if kind == "frame" else None


async def test_step_whose_attempt_fails_while_its_cancellation_is_committed_ends_cancelled() -> None:
    async with connect("memory:") as client, client.worker(cancels):
        await on_commit(client, World.may_fail.set)
        assert await asyncio.wait_for(client.run(cancels), RESULT_SECONDS) == "cancelled"
        assert World.attempts == 1


@pytest.mark.parametrize("rounds", range(6))
async def test_step_whose_attempt_fails_just_after_its_cancellation_was_committed_ends_cancelled(rounds: int) -> None:
    async def fail_soon() -> None:
        for _ in range(rounds):
            await asyncio.sleep(0)
        World.may_fail.set()

    tasks: list[asyncio.Task[None]] = []
    async with connect("memory:") as client, client.worker(cancels):
        await on_commit(client, lambda: tasks.append(asyncio.create_task(fail_soon())))
        assert await asyncio.wait_for(client.run(cancels), RESULT_SECONDS) == "cancelled"
        assert World.attempts == 1
    await asyncio.gather(*tasks)


@step(retry=Retry(max_attempts=1))
async def fails_when_asked() -> None:
    World.attempts += 1
    try:
        await World.may_fail.wait()
    except asyncio.CancelledError:
        raise ConnectionError("it failed while it was asked to end") from None


@workflow
async def waits_for_it() -> str:
    await fails_when_asked()
    return "done"


async def test_retry_of_what_failed_while_it_was_cancelled_ends_it_as_cancelled() -> None:
    async with connect("memory:") as client, client.worker(waits_for_it):
        handle = await client.start(waits_for_it)
        while not World.attempts:
            await asyncio.sleep(0.001)
        await handle.cancel()
        with pytest.raises(ConnectionError, match="asked to end"):
            await handle.result(timeout=RESULT_SECONDS)
        await handle.retry()
        with pytest.raises(InvocationCancelled):
            await handle.result(timeout=RESULT_SECONDS)
        assert World.attempts == 1
