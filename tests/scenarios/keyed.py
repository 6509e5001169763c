"""Workflows of the scenarios that share the state of a key."""

from __future__ import annotations

import asyncio

from perdure import Context, KeyDeadlock, Retry, step, workflow
from tests.scenarios.bodies import remember, stage
from tests.scenarios.notes import closed, freeze, gate, note


@step(retry=Retry(max_attempts=1))
async def brittle(tag: str) -> int:
    note(f"tried {tag}")
    if closed(f"brittle {tag}"):
        raise ValueError(f"{tag} breaks")
    return 100


@workflow
async def increment(ctx: Context, tag: str) -> int:
    count = ctx.get("count", int, default=0)
    await remember(f"saw {tag} {count}")
    ctx.set("count", count + 1)
    return count + 1


@workflow
async def bump(ctx: Context) -> int:
    count = ctx.get("count", int, default=0) + 1
    ctx.set("count", count)
    return count


@step
async def frosty(tag: str) -> None:
    """Note that it ran, and stop the process as long as its gate is closed: what it did is not journaled yet."""
    await gate(f"before {tag}")
    note(f"ran {tag}")
    if closed(f"frost {tag}"):
        freeze()


@workflow
async def counts_in_frost(ctx: Context, tag: str, early: bool) -> int:
    """Count in the key around a step that may stop the process; the first one, or one that a frame is before."""
    if not early:
        await remember(f"counts {tag}")
    count = ctx.get("count", int, default=0) + 1
    await frosty(tag)
    ctx.set("count", count)
    return count


@workflow
async def staged(ctx: Context, tag: str) -> list[str]:
    """Add a tag to the key's list, with a gate in the middle."""
    seen = ctx.get("tags", list[str], default=[])
    await stage(tag)
    ctx.set("tags", [*seen, tag])
    return [*seen, tag]


@workflow
async def append(ctx: Context, tag: str) -> list[str]:
    """Add a tag to the key's list, with a step in the middle."""
    seen = ctx.get("tags", list[str], default=[])
    await remember(f"appends {tag}")
    ctx.set("tags", [*seen, tag])
    return [*seen, tag]


@workflow
async def holds(ctx: Context, tag: str) -> str:
    """Hold the key until somebody answers."""
    ctx.set("held by", tag)
    await remember(f"holds {tag}")
    answer = await ctx.awakeable(str)
    ctx.set("answer", answer)
    return answer


@workflow
async def sends_in_order(ctx: Context, key: str, count: int) -> list[str]:
    return [ctx.send(staged.using(key=key), f"{key}-{n}") for n in range(count)]


@workflow
async def cleans_up(ctx: Context, tag: str) -> None:
    try:
        await asyncio.sleep(10_000)
    finally:
        await remember(f"cleaning {tag}")
        ctx.set("cleaned", tag)


@workflow
async def fails_until_open(ctx: Context, tag: str) -> int:
    """Count in the key, then fail in a step as long as its gate is closed."""
    count = ctx.get("count", int, default=0) + 1
    ctx.set("count", count)
    return count + await brittle(tag)


@workflow
async def calls(ctx: Context, key: str, depth: int) -> str:
    """Call a child at the end of a chain, which needs `key`."""
    try:
        if depth:
            return await calls(key, depth - 1)
        await staged.using(key=key)("in deadlock")
    except KeyDeadlock as error:
        return f"deadlock on {error.key}"
    return "no deadlock"


@workflow
async def sends_to_own_key(ctx: Context) -> str:
    return ctx.send(staged.using(key=ctx.key), "sent")


@workflow
async def fails_then_holds(ctx: Context, tag: str) -> int:
    """Count in the key, fail in a step as long as its gate is closed, and then hold the key behind another."""
    count = ctx.get("count", int, default=0) + 1
    ctx.set("count", count)
    await brittle(tag)
    await stage(f"{tag}-held")
    return count


@workflow
async def group_with_a_brittle_one(tag: str) -> list[str]:
    """Run a step beside one that fails, and cancels it, as long as its gate is closed."""
    async with asyncio.TaskGroup() as group:
        beside = group.create_task(stage(f"{tag}-beside"))
        failing = group.create_task(brittle(tag))
    return [beside.result(), str(failing.result())]


@workflow
async def listed(ctx: Context, tag: str) -> str:
    """Add a tag to the key's list, then wait for an answer."""
    ctx.set("seen", [*ctx.get("seen", list[str], default=[]), tag])
    return await ctx.awakeable(str)
