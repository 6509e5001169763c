"""Awakeables with a title and an expiry, as users see them, through crashes and on every store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from perdure import Client, Context, Retry, connect, step, workflow
from perdure.errors import AwakeableExpired, MessageRefused
from perdure.testing import Environment, crash_everywhere


@dataclass
class Approval:
    approved: bool


@step
async def notify(awakeable_id: str) -> str:
    return awakeable_id


@workflow
async def expense(ctx: Context, cents: int) -> str:
    approval = ctx.awakeable(
        Approval,
        title=f"Expense of {cents / 100:.2f} EUR",
        description="For *lunch*.",
        assignees=["finance", "ada"],
        expires=timedelta(days=3),
    )
    await notify(approval.id)
    try:
        return "approved" if (await approval).approved else "rejected"
    except AwakeableExpired:
        return "expired"


async def test_approval_is_shown_answered_and_expires_in_its_time() -> None:
    async with Environment(expense) as env:
        first = await env.client.start(expense, 1200)
        await env.settle()
        (asked,) = (await first.describe()).awakeables
        assert (asked.title, asked.description) == ("Expense of 12.00 EUR", "For *lunch*.")
        assert asked.assignees == ("finance", "ada")
        assert asked.expires_at == asked.created_at + timedelta(days=3)
        await env.client.resolve(asked.id, Approval(True))
        assert await first.result() == "approved"
        second = await env.client.start(expense, 1)
        id = await env.awakeable(second)
        await env.advance(timedelta(days=2, hours=23))
        assert (await second.describe()).status == "suspended"
        await env.advance(timedelta(hours=2))
        assert await second.result() == "expired"
        with pytest.raises(MessageRefused, match="nothing waits for this awakeable: its invocation is completed"):
            await env.client.resolve(id, Approval(True))


fails: list[str] = []


@step(retry=Retry(max_attempts=1))
async def may_fail() -> None:
    if fails:
        raise RuntimeError(fails.pop())


@workflow
async def asks_first(ctx: Context) -> bool:
    sure = ctx.awakeable(bool, title="Sure?", expires=timedelta(days=1))
    await may_fail()
    return await sure


async def test_awakeable_that_a_retry_opens_again_shows_its_new_time() -> None:
    fails[:] = ["once"]
    async with Environment(asks_first) as env:
        handle = await env.client.start(asks_first)
        await env.settle()
        assert (await handle.describe()).status == "failed"
        await env.advance(timedelta(days=2))
        await handle.retry()
        await env.settle()
        (shown,) = (await handle.describe()).awakeables
        (listed,) = [each async for each in env.client.awakeables()]
        assert shown.expires_at == listed.expires_at == shown.created_at + timedelta(days=3)


async def test_expiry_holds_wherever_the_worker_dies() -> None:
    for env in crash_everywhere(expense):
        async with env:
            handle = await env.client.start(expense, 1200)
            await env.advance(timedelta(days=4))
            assert await handle.result() == "expired"


async def test_answer_holds_wherever_the_worker_dies() -> None:
    for env in crash_everywhere(expense):
        async with env:
            handle = await env.client.start(expense, 1200)
            await env.client.resolve(await env.awakeable(handle), Approval(False))
            await env.advance(timedelta(days=4))
            assert await handle.result() == "rejected"


@workflow
async def brief(ctx: Context) -> str:
    approval = ctx.awakeable(Approval, title="Quick", expires=0.2)
    await notify(approval.id)
    await approval
    return "answered"


@pytest.fixture(params=["memory", "sqlite"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    url = "memory:" if request.param == "memory" else f"sqlite:{tmp_path}/app.db"
    async with connect(url) as made, made.worker(brief):
        yield made


async def test_invocation_that_lets_its_expiry_escape_fails_by_name(client: Client) -> None:
    handle = await client.start(brief)
    with pytest.raises(AwakeableExpired, match=r"awakeable 'Quick' .* expired: nobody answered it in time") as caught:
        await handle.result()
    (asked,) = (await handle.describe()).awakeables
    assert caught.value.awakeable_id == asked.id
    with pytest.raises(MessageRefused):
        await client.resolve(asked.id, Approval(True))
