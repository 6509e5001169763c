"""`client.awakeables()`: what waits for an answer, on the embedded stores; JetStream is in tests/jetstream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure import Client, Context, Handle, Retry, connect, step, workflow
from perdure.core.lifecycle import SETTLED
from perdure.errors import BadId, InvalidOption, IoInWorkflow
from perdure.operations.describe import AwakeableInfo
from perdure.operations.listing import AwakeableFilters
from tests.scenarios.lab import until

broken: list[str] = []


@step(retry=Retry(max_attempts=1))
async def fails(name: str) -> None:
    if name in broken:
        raise RuntimeError(name)


@step
async def passes() -> int:
    return 1


@workflow
async def expense(ctx: Context, cents: int) -> bool:
    return await ctx.awakeable(bool, title=f"{cents} EUR", assignees=["finance", "ada"] if cents > 100 else ["ada"])


@workflow
async def two(ctx: Context) -> int:
    first, second = ctx.awakeable(int, title="first"), ctx.awakeable(int, title="second")
    return await first + await passes() + await second


@workflow
async def impatient(ctx: Context) -> str:
    asked = ctx.awakeable(str, title="soon")
    try:
        async with asyncio.timeout(0.05):
            return await asked
    except TimeoutError:
        return await ctx.awakeable(str, title="later")


@workflow
async def brief(ctx: Context) -> str:
    kept = ctx.awakeable(str, title="kept")
    try:
        return await ctx.awakeable(str, title="brief", expires=0.05)
    except TimeoutError:
        return await kept


@workflow
async def beside(ctx: Context) -> int:
    asked = ctx.awakeable(int, title="beside a step")
    await passes()
    await asyncio.sleep(3600)
    return await asked


@workflow
async def breaks(ctx: Context) -> int:
    kept = ctx.awakeable(int, title="kept")
    await fails(ctx.invocation_id)
    return await kept


ALL = (expense, two, impatient, brief, beside, breaks)


@pytest.fixture(params=["memory", "sqlite"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    url = "memory:" if request.param == "memory" else f"sqlite:{tmp_path}/app.db"
    async with connect(url) as made, made.worker(*ALL):
        yield made


async def titles(client: Client, open: bool | None = True) -> list[str | None]:
    return [each.title async for each in client.awakeables(open=open)]


async def are_open(client: Client, *expected: str) -> list[AwakeableInfo]:
    """Wait until these are open, oldest first."""

    async def found() -> list[AwakeableInfo] | None:
        listed = [each async for each in client.awakeables()]
        return listed if [each.title for each in listed] == [*expected] else None

    return await until(found)


async def test_open_ones_are_listed_with_all_that_describe_tells_of_them(client: Client) -> None:
    handles = [await client.start(expense, 400)]
    await are_open(client, "400 EUR")
    handles.append(await client.start(expense, 50))
    first, second = await are_open(client, "400 EUR", "50 EUR")
    assert [first, second] == [each for handle in handles for each in (await handle.describe()).awakeables]
    assert (first.invocation_id, first.handler) == (handles[0].id, "expense")
    assert [each.title async for each in client.awakeables(assignee="finance")] == ["400 EUR"]
    assert [each.title async for each in client.awakeables(handler="two")] == []
    await client.resolve(first.id, True)
    assert await handles[0].result()
    assert await titles(client) == ["50 EUR"]
    (answered,) = [each async for each in client.awakeables(open=False)]
    assert (answered.id, answered.resolved) == (first.id, True)
    await handles[1].cancel()
    await until(lambda: _is_settled(handles[1]))
    assert await titles(client) == []
    assert await titles(client, None) == ["400 EUR", "50 EUR"]
    await handles[0].purge()
    assert await titles(client, None) == ["50 EUR"]


async def _is_settled(handle: Handle[Any]) -> bool:
    return (await handle.describe()).status in SETTLED


async def test_each_answer_takes_one_off_the_list(client: Client) -> None:
    handle = await client.start(two)
    first, second = await are_open(client, "first", "second")
    await client.resolve(second.id, 2)
    assert await titles(client) == ["first"]
    await client.resolve(first.id, 1)
    assert await handle.result() == 4
    assert await titles(client) == []


async def test_one_whose_wait_was_given_up_stays_open_and_one_whose_time_is_over_does_not(
    client: Client,
) -> None:
    await client.start(impatient)
    await are_open(client, "soon", "later")
    await client.start(brief)
    await are_open(client, "soon", "later", "kept")
    assert await titles(client, False) == ["brief"]


async def test_one_is_listed_while_its_invocation_does_something_else(client: Client) -> None:
    await client.start(beside)
    await are_open(client, "beside a step")


async def test_retry_opens_again_what_it_keeps(client: Client) -> None:
    broken.append("breaks")
    handle = await client.start(breaks.using(id="breaks"))
    await until(lambda: _is_settled(handle))
    assert await titles(client) == []
    (kept,) = (await handle.describe()).awakeables
    broken.clear()
    await handle.retry()
    (opened,) = await are_open(client, "kept")
    assert opened.id == kept.id
    await client.resolve(opened.id, 5)
    assert await handle.result() == 5


async def test_listing_goes_on_over_many_pages(client: Client) -> None:
    for cents in range(450):
        await client.start(expense, cents)
    await until(lambda: _count(client, 450))
    found = [each async for each in client.awakeables()]
    assert len({each.id for each in found}) == 450
    assert [each.created_at for each in found] == sorted(each.created_at for each in found)


async def _count(client: Client, expected: int) -> bool:
    return len(await titles(client)) == expected


async def test_cursor_of_other_filters_is_refused(client: Client) -> None:
    await client.start(two)
    await are_open(client, "first", "second")
    page = await client.operations.awakeables({"open": True}, limit=1)
    assert page.next is not None
    following = await client.operations.awakeables({"open": True, "handler": None}, limit=1, cursor=page.next)
    assert [each.title for each in following.awakeables] == ["second"]
    for other in (AwakeableFilters(open=None), AwakeableFilters(open=True, handler="two")):
        with pytest.raises(InvalidOption, match="other filters"):
            await client.operations.awakeables(other, limit=1, cursor=page.next)


async def test_wrong_filters_are_named_at_once(client: Client) -> None:
    with pytest.raises(InvalidOption, match=r"open='yes': give True, False, or None for all"):
        client.awakeables(open="yes")  # type: ignore[arg-type]
    with pytest.raises(BadId, match="assignee to look for"):
        client.awakeables(assignee="")


async def test_a_body_lists_none(client: Client) -> None:
    @workflow
    async def looks() -> None:
        client.awakeables()

    async with client.worker(looks):
        with pytest.raises(IoInWorkflow, match=r"client.awakeables\(\)"):
            await client.run(looks)
