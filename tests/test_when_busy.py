"""What clients say of keys that are busy, and what is refused. What becomes of it is in tests/scenarios."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from perdure import Client, Context, KeyBusy, Schedule, connect, workflow
from perdure.encryption import Encrypted
from perdure.errors import InvalidOption


@workflow
async def noting(ctx: Context, tag: str) -> list[str]:
    seen = [*ctx.get("seen", list[str], default=[]), tag]
    ctx.set("seen", seen)
    return seen


@workflow
async def waits(ctx: Context) -> str:
    return await ctx.awakeable(str)


@workflow
async def calls(ctx: Context, send: bool) -> None:
    busy = noting.using(key="k", when_busy="reject")
    refused = pytest.raises(InvalidOption, match="is for starts by a client")
    if send:
        with refused:
            ctx.send(busy, "x")
    else:
        with refused:
            await busy("x")


async def held(client: Client) -> str:
    await client.start(waits.using(id="holder", key="k"))
    while not (awakeables := [each.id async for each in client.awakeables(open=True)]):
        await asyncio.sleep(0.01)
    assert (await client.handle("holder").describe()).status == "suspended"
    return awakeables[0]


@pytest.mark.parametrize("sealed", [False, True])
async def test_one_that_was_turned_away_waits_for_its_key_when_it_is_retried_or_restarted(sealed: bool) -> None:
    codec = Encrypted({"a": b"k" * 32}) if sealed else None
    async with connect("memory:", codec=codec) as client, client.worker(noting, waits):
        awakeable = await held(client)
        busy = noting.using(id="busy", key="k", when_busy="reject")
        with pytest.raises(KeyBusy) as refused:
            await client.run(busy, "busy")
        assert (refused.value.key, refused.value.holder) == ("k", "holder")
        again = await client.handle("busy", noting).restart()
        retrying = asyncio.create_task(client.handle("busy").retry())
        await client.resolve(awakeable, "done")
        await retrying
        both = await asyncio.gather(again.result(), client.handle("busy", noting).result())
        assert sorted(map(len, both)) == [1, 2]


async def test_a_child_and_what_is_sent_only_wait() -> None:
    async with connect("memory:") as client, client.worker(calls, noting):
        for send in (False, True):
            await client.run(calls, send)


async def test_what_makes_no_sense_is_refused() -> None:
    async with connect("memory:") as client:
        with pytest.raises(InvalidOption, match="needs a key"):
            await client.start(noting.using(when_busy="reject"), "x")
        with pytest.raises(InvalidOption, match="give one of 'enqueue', 'reject'"):
            noting.using(key="k", when_busy=cast("Any", "wait"))
        with pytest.raises(InvalidOption, match="overlap="):
            Schedule(noting.using(key="k", when_busy="reject").bind("x"), every=60)
