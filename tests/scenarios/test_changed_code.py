"""Scenario 10: code that changed under an old journal is stopped before any effect, and goes on once it fits again."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

import pytest

from perdure import Workflow, step, workflow
from perdure.client import Client
from perdure.core.journal import Status
from perdure.errors import MessageRefused

ran: list[str] = []


@step
async def pack(item: str) -> str:
    ran.append(f"pack {item}")
    return f"packed {item}"


@step
async def ship(item: str) -> str:
    ran.append(f"ship {item}")
    return f"shipped {item}"


def ordered(name: str, body: Callable[[str], Awaitable[str]]) -> Workflow[[str], str]:
    @workflow(name="order")
    async def order(item: str) -> str:
        return await body(item)

    order.fn.__doc__ = name
    return order


async def as_it_was(item: str) -> str:
    packed = await pack(item)
    await asyncio.sleep(1.5)  # long enough for the test to see it asleep
    return f"{packed}, {await ship(item)}"


async def other_step(item: str) -> str:
    shipped = await ship(item)
    await asyncio.sleep(0.4)
    return shipped


async def other_order(item: str) -> str:
    await asyncio.sleep(0.4)
    return await pack(item)


async def other_argument(item: str) -> str:
    packed = await pack(f"{item}!")
    await asyncio.sleep(0.4)
    return packed


async def fewer_steps(item: str) -> str:
    await asyncio.sleep(0.4)
    return item


async def nothing_left(item: str) -> str:
    return item


CHANGED = [other_step, other_order, other_argument, fewer_steps, nothing_left]


async def until(client: Client, id: str, *wanted: Status) -> Status:
    async with asyncio.timeout(60):
        while (status := (await client.handle(id).describe()).status) not in wanted:
            await asyncio.sleep(0.01)
    return status


@pytest.mark.parametrize("changed", CHANGED, ids=lambda body: body.__name__)
async def test_changed_code_is_stopped_with_both_sides_shown_and_goes_on_when_it_fits_again(
    changed: Callable[[str], Awaitable[str]], client: Client
) -> None:
    ran.clear()
    original, other = ordered("original", as_it_was), ordered("changed", changed)
    async with client.worker(original):
        await client.start(original.using(id="o-1"), "book")
        await until(client, "o-1", "suspended")
    async with client.worker(other):
        await until(client, "o-1", "paused")
        shown = (await client.handle("o-1").describe()).paused_because or ""
        assert "the journal has" in shown
        assert "the code now asks for" in shown
        assert "pack" in shown
        with pytest.raises(MessageRefused, match="diverges"):
            await client.handle("o-1").resume()
    assert ran == ["pack book"]
    async with client.worker(original):
        handle = client.handle("o-1", original)
        await handle.resume()
        assert await handle.result(timeout=60) == "packed book, shipped book"
    assert ran == ["pack book", "ship book"]


# --- children and sends -----------------------------------------------------------------------------------------------
@workflow
async def wrap(items: list[str]) -> list[str]:
    return [await pack(item) for item in items]


async def has_wrapped(item: str) -> str:
    return (await wrap([item, "card"]))[0]


async def wraps_other(item: str) -> str:
    return (await wrap([item, "ribbon"]))[0]


async def wraps_in_another_order(item: str) -> str:
    return (await wrap(["card", item]))[0]


@pytest.mark.parametrize("changed", [wraps_other, wraps_in_another_order], ids=lambda body: body.__name__)
async def test_child_with_other_input_is_a_divergence_and_not_the_old_result(
    changed: Callable[[str], Awaitable[str]], client: Client
) -> None:
    original, other = ordered("original", has_wrapped), ordered("changed", changed)
    async with client.worker(original):  # nobody serves the child
        await client.start(original.using(id="o-1"), "book")
        await until(client, "o-1", "suspended")
    async with client.worker(other, wrap):
        assert await until(client, "o-1", "paused", "completed") == "paused"
        shown = (await client.handle("o-1").describe()).paused_because or ""
        assert shown.count("#0 child 'wrap' (id ") == 2
        recorded, issued = re.findall(r"arguments ([0-9a-f]{16})", shown)
        assert recorded != issued
    async with client.worker(original, wrap):
        handle = client.handle("o-1", original)
        await handle.resume()
        assert await handle.result(timeout=60) == "packed book"
