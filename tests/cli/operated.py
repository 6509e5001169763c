"""Workflows in every state, for the verbs that look at them and tell them something."""

from __future__ import annotations

import asyncio
from pathlib import Path

from perdure import Client, Context, Retry, connect, step, stream, workflow


class Broken(Exception):
    pass


@step
async def greet(name: str) -> str:
    letters = stream("letters", str)
    for letter in name:
        letters.write(letter)
    return f"Hello, {name}!"


@step(retry=Retry(max_attempts=1))
async def charge(cents: int) -> int:
    if not Path("repaired").exists():
        raise Broken(f"cannot charge {cents}\nsecond line \x1b[31m")
    return cents


@workflow
async def hello(name: str) -> str:
    return await greet(name)


@workflow
async def approval(ctx: Context, amount: int) -> str:
    ctx.set("cart", {"items": ["a", b"bytes"]})
    await greet("boss")
    try:
        return await ctx.awakeable(str, title=f"Is {amount} right?", assignees=["boss"])
    finally:
        ctx.set("asked", True)


@workflow
async def payment(ctx: Context, cents: int) -> int:
    await greet("payer")
    return await charge(cents)


@workflow
async def long(text: str) -> str:
    await asyncio.sleep(86_400)
    return text


SERVED = (hello, approval, payment, long)
LONG = "x" * 5_000


async def fill(url: str) -> dict[str, str]:
    """Leave invocations in every state in a store that is then closed; return the awakeables, by invocation."""
    async with connect(url) as client:
        async with client.worker(*SERVED), asyncio.timeout(20):
            await client.run(hello.using(id="done"), "World")
            await client.start(payment.using(id="broken"), 500)
            await client.start(payment.using(id="broken-2"), 700)
            await client.start(long.using(id="long"), LONG)
            for id in ("ask-1", "ask-2", "paused", "gone"):
                await client.start(approval.using(id=id), 5)
            for id, status in {"broken": "failed", "broken-2": "failed", "gone": "suspended"}.items():
                await reached(client, id, status)
            await client.handle("paused").pause()
            await client.handle("gone").cancel()
            await reached(client, "gone", "cancelled")
        await client.start(hello.using(id="later", delay=86_400), "tomorrow")
        await client.start(hello.using(id="queued", tags={"tenant": "acme", "from": "web"}), "soon")
        return {id: (await client.handle(id).describe()).awakeables[0].id for id in ("ask-1", "ask-2", "gone")}


async def reached(client: Client, id: str, status: str) -> None:
    async for state in client.handle(id).watch():
        if state.status == status:
            return
