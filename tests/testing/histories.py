"""Workflows whose histories are exported, and a module to run: `python -m tests.testing.histories FOLDER` exports them.

`python -m tests.testing.histories FOLDER replay` replays them in this process.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from perdure import Context, Handle, InvocationCancelled, Retry, Workflow, step, workflow
from perdure.testing import Environment, replay

WORDS = ("one", "two", "three", "four", "five", "six", "seven")
broken: list[str] = []


@step(retry=Retry(max_attempts=2, initial=60, jitter=0))
async def act(name: str, tags: frozenset[str] = frozenset()) -> str:
    if name in broken:
        raise ValueError(name)
    return name


@workflow
async def count(tags: set[str]) -> int:
    return len(await act("counted", frozenset(tags)))


@workflow
async def everything(ctx: Context, words: list[str]) -> str:
    """All kinds of commands, with sets among the arguments."""
    tags = set(words)
    answer = ctx.awakeable(str)
    await act(answer.id)
    ctx.set("tags", sorted(tags))
    ctx.send(count.using(delay=3600), tags)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(act(word, frozenset(tags))) for word in words]
        counted = group.create_task(count(tags))
    if ctx.patched("rounds"):
        await asyncio.sleep(round(10 * ctx.random.random()))
    try:
        async with asyncio.timeout(30):
            given = await answer
    except TimeoutError:
        given = "nothing"
    return f"{given} {counted.result()} {[task.result() for task in tasks]} {ctx.uuid4()}"


@workflow
async def cleans_up(ctx: Context) -> None:
    try:
        await act("first")
        await ctx.awakeable(int)
    finally:
        await act("undo")


@workflow
async def retried() -> list[str]:
    return [await act("before"), *await asyncio.gather(act("fragile"), act("sturdy")), await act("after")]


async def answered(env: Environment, handle: Handle[Any]) -> None:
    await env.advance(20)
    await env.client.resolve(await env.awakeable(handle), "yes")


async def cancelled(env: Environment, handle: Handle[Any]) -> None:
    await env.awakeable(handle)
    await handle.cancel()


async def forced(env: Environment, handle: Handle[Any]) -> None:
    await env.awakeable(handle)
    await env.crash()
    await handle.cancel(force=True)


async def paused(env: Environment, handle: Handle[Any]) -> None:
    await env.awakeable(handle)
    await handle.pause()


async def repaired(env: Environment, handle: Handle[Any]) -> None:
    broken.append("fragile")
    try:
        await handle.result()
    except ValueError:
        broken.clear()
        await handle.retry()


async def left_alone(env: Environment, handle: Handle[Any]) -> None:
    await env.advance(1_000)


Deal = Callable[[Environment, Handle[Any]], Awaitable[None]]
HISTORIES: dict[str, tuple[Workflow[..., Any], tuple[Any, ...], Deal]] = {
    "answered": (everything, (WORDS,), answered),
    "timed-out": (everything, (WORDS,), left_alone),
    "cancelled": (cleans_up, (), cancelled),
    "forced": (cleans_up, (), forced),
    "paused": (cleans_up, (), paused),
    "retried": (retried, (), repaired),
}


async def export(name: str) -> bytes:
    """Run one of them, and return its history."""
    called, arguments, deal = HISTORIES[name]
    async with Environment(everything, count, cleans_up, retried) as env:
        handle = await env.client.start(called, *arguments)
        await deal(env, handle)
        if name != "paused":
            try:
                await handle.result()
            except InvocationCancelled:
                assert name in ("cancelled", "forced")
        return await handle.export()


def main() -> None:
    folder = Path(sys.argv[1])
    for name, (called, _, _) in HISTORIES.items():
        path = folder / f"{name}.json"
        if sys.argv[2:] == ["replay"]:
            replay(called, path.read_bytes())
        else:
            path.write_bytes(asyncio.run(export(name)))


if __name__ == "__main__":
    main()
