"""A run again with other input, under another id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure import Client, Context, InvocationCancelled, InvocationTimedOut, Retry, connect, step, workflow
from perdure.errors import IdConflict, IllegalTransition, InvalidOption, UnknownInvocation


@step(retry=Retry(max_attempts=1))
async def charge(card: str, cents: int) -> str:
    if cents > 1_000:
        raise ValueError(f"{card} has no {cents}")
    return f"{card}: {cents}"


@workflow
async def pay(card: str, cents: int) -> str:
    return await charge(card, cents)


@workflow(aliases=["waits_long"])
async def waits(ctx: Context, number: int) -> int:
    return number + await ctx.awakeable(int)


@pytest.fixture(params=["memory", "sqlite"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    url = "memory:" if request.param == "memory" else f"sqlite:{tmp_path / 'store.db'}"
    async with connect(url) as client, client.worker(pay, waits):
        yield client


async def test_failed_invocation_runs_again_with_other_input_under_a_new_id_and_stays_as_it_was(client: Client) -> None:
    handle = await client.start(pay.using(id="o-1"), "visa", 5_000)
    with pytest.raises(ValueError, match="visa has no 5000"):
        await handle.result(timeout=60)
    for _ in range(2):  # idempotent by its id
        again = await handle.restart(pay.bind("visa", 500), id="o-1-again")
        assert again.id == "o-1-again"
        assert await again.result(timeout=60) == "visa: 500"
    with pytest.raises(IdConflict):
        await handle.restart(pay.bind("visa", 600), id="o-1-again")
    other = await handle.restart(pay.using(id="o-2").bind("visa", 700))
    assert (other.id, await other.result(timeout=60)) == ("o-2", "visa: 700")
    assert (await handle.describe()).status == "failed"
    assert (await client.stats()).by_status == {"failed": 1, "completed": 2}


async def test_restart_without_a_call_has_the_same_input_and_a_new_id_each_time(client: Client) -> None:
    handle = await client.start(pay, "visa", 5)
    assert await handle.result(timeout=60) == "visa: 5"
    ids = {handle.id}
    for _ in range(2):
        again = await handle.restart()
        assert await again.result(timeout=60) == "visa: 5"
        ids.add(again.id)
    assert len(ids) == 3


async def test_restart_of_what_was_cancelled_keeps_its_time_limit_unless_told_otherwise(client: Client) -> None:
    handle = await client.start(waits.using(timeout=0.2), 1)
    await handle.cancel()
    with pytest.raises(InvocationCancelled):
        await handle.result(timeout=60)
    again = await handle.restart(waits.bind(2))
    with pytest.raises(InvocationTimedOut):
        await again.result(timeout=60)
    slow = await again.restart(waits.using(timeout=60).bind(2))
    while not (opened := (await slow.describe()).awakeables):
        await asyncio.sleep(0.01)
    await client.resolve(opened[0].id, 40)
    assert await slow.result(timeout=60) == 42


async def test_only_what_is_at_rest_is_restarted_and_only_as_itself(client: Client) -> None:
    handle = await client.start(waits.using(id="w"), 1)
    with pytest.raises(IllegalTransition, match="at rest") as caught:
        await handle.restart()
    assert caught.value.status in ("pending", "running", "suspended")
    await handle.cancel(force=True)
    with pytest.raises(InvalidOption, match="is of workflow 'waits', not 'pay'"):
        await handle.restart(pay.bind("visa", 1))
    for wrong in (handle.restart(id="w"), handle.restart(waits.using(id="w").bind(2))):
        with pytest.raises(InvalidOption, match="its own id"):
            await wrong
    with pytest.raises(UnknownInvocation):
        await client.handle("nobody").restart()
    assert (await client.stats()).total == 1
