"""Children of a chosen id that exists: one run, and everybody who awaits it gets its outcome."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from perdure import Client, Context, Retry, Workflow, connect, step, workflow
from perdure.errors import IdConflict
from perdure.testing import crash_everywhere

ran: Counter[str] = Counter()
broken: set[str] = set()


@pytest.fixture(autouse=True)
def clean() -> None:
    ran.clear()
    broken.clear()


@step(retry=Retry(max_attempts=1))
async def act(name: str) -> str:
    ran[name] += 1
    if name in broken:
        raise ValueError(name)
    return name


@workflow
async def shared(name: str, wait: float = 0.0) -> str:
    await asyncio.sleep(wait)
    return await act(name)


@workflow
async def awaits(name: str, wait: float = 0.0) -> str:
    return "got " + await shared.using(id="shared")(name, wait)


@workflow
async def holds(ctx: Context) -> str:
    return await ctx.awakeable(str)


@workflow
async def awaits_holder(ctx: Context) -> str:
    return "got " + await holds.using(id="held")()


SERVED: tuple[Workflow[..., object], ...] = (shared, awaits, holds, awaits_holder)


@pytest.fixture(params=["memory", "sqlite"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    url = "memory:" if request.param == "memory" else f"sqlite:{tmp_path / 'store.db'}"
    async with connect(url) as client, client.worker(*SERVED):
        yield client


@pytest.mark.parametrize("wait", [0.0, 0.1])
async def test_all_who_await_a_child_of_one_id_get_the_result_of_its_one_run(client: Client, wait: float) -> None:
    results = await asyncio.wait_for(asyncio.gather(*(client.run(awaits, "x", wait) for _ in range(5))), 60)
    assert results == ["got x"] * 5
    assert await asyncio.wait_for(client.run(awaits, "x", wait), 10) == "got x", "long after it was settled"
    assert ran == {"x": 1}
    assert (await client.stats()).by_handler["shared"] == 1


async def test_child_that_a_client_has_started_answers_its_parent_too(client: Client) -> None:
    handle = await client.start(shared.using(id="shared"), "x", 0.1)
    assert await asyncio.wait_for(client.run(awaits, "x", 0.1), 10) == "got x"
    assert await handle.result() == "x"
    assert ran == {"x": 1}


async def test_failure_of_a_shared_child_reaches_all_who_await_it(client: Client) -> None:
    broken.add("x")
    awaiting = [asyncio.create_task(client.run(awaits, "x", 0.05)) for _ in range(3)]
    for each in awaiting:
        with pytest.raises(ValueError, match="x"):
            await asyncio.wait_for(each, 60)
    assert ran == {"x": 1}


async def test_child_of_an_id_that_has_another_input_or_workflow_fails_its_parent_and_not_the_first(
    client: Client,
) -> None:
    first = await client.start(holds.using(id="held"))
    await client.start(shared.using(id="shared"), "x", 0.0)
    with pytest.raises(IdConflict, match="'shared' exists with another"):
        await asyncio.wait_for(client.run(awaits, "y"), 60)
    assert await asyncio.wait_for(client.run(awaits, "x"), 10) == "got x"

    waiting = await client.start(awaits_holder)
    async with asyncio.timeout(60):
        while not (opened := (await first.describe()).awakeables) or (await waiting.describe()).status != "suspended":
            await asyncio.sleep(0.01)
        await client.resolve(opened[0].id, "it")
        assert await waiting.result() == "got it"
    assert ran == {"x": 1}


async def test_shared_child_is_run_once_and_answers_all_through_a_crash_at_any_commit() -> None:
    points = 0
    for env in crash_everywhere(shared, awaits):
        ran.clear()
        points += 1
        async with env:
            handles = [await env.client.start(awaits, "x", 5) for _ in range(2)]
            assert [await each.result() for each in handles] == ["got x"] * 2
            assert await env.client.run(awaits, "x", 5) == "got x"
            assert ran["x"] in (1, 2)
    assert points > 10
