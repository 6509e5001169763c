"""What a process keeps in memory for an invocation is gone when the invocation has settled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from perdure import Context, connect, step, workflow
from perdure.counters import Histogram
from perdure.errors import MessageRefused
from perdure.runtime.worker import FIRST_FRAME_SECONDS

COUNT = 10_000
JOBS = COUNT * 5 // 7  # two kinds of five have a child or send
IN_FLIGHT = 400
SUSPENDED = 2_000
DURABLE = {
    *("_rows", "_digests", "_queued", "_scheduled", "_starts", "_frames", "_messages", "_answers", "_wakes", "_mail"),
    "_awakeables",
    *("_due", "writes"),
}
"""What the memory store holds instead of a disk."""


@step
async def add_one(number: int) -> int:
    return number + 1


@step
async def fails() -> None:
    raise ValueError("always")


@workflow
async def steps(number: int) -> int:
    return await add_one(await add_one(number))


@workflow
async def parent(number: int) -> int:
    return await steps(number)


@workflow
async def sleeps_and_sends(ctx: Context, number: int) -> str:
    await asyncio.sleep(0.001)
    return ctx.send(steps, number)


@workflow
async def asks(ctx: Context) -> int:
    return await ctx.awakeable(int)


@workflow
async def waits_for_ever(ctx: Context) -> int:
    async with asyncio.timeout(1e6):
        return await ctx.awakeable(int)


handed_out: list[str] = []


@step
async def hand_out(id: str) -> None:
    handed_out.append(id)


@workflow
async def hands_out(ctx: Context) -> int:
    promise = ctx.awakeable(int)
    await hand_out(promise.id)
    return await promise


SERVED = (steps, parent, sleeps_and_sends, asks, waits_for_ever, hands_out)


def containers(thing: Any, path: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """Find all containers that an object of ours holds, and how much is in them."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    names = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    for name in [*getattr(thing, "__dict__", {}), *names]:
        value = getattr(thing, name, None)
        if (name in DURABLE and path == "store") or isinstance(thing, Histogram):  # its buckets are as many as ever
            continue
        if isinstance(value, (dict, list, set, deque)):
            yield f"{path}.{name}", len(cast("list[Any]", value))
            held = cast("dict[Any, Any] | list[Any]", value)
            for each in [*(held.values() if isinstance(held, dict) else held)]:
                if type(each).__module__.startswith("perdure."):
                    yield from containers(each, f"{path}.{name}[]", seen)
        elif type(value).__module__.startswith("perdure."):
            yield from containers(value, f"{path}.{name}", seen)


def kept(worker: Any, client: Any) -> dict[str, int]:
    seen: set[int] = set()
    found: dict[str, int] = {}
    for path, thing in (("store", worker.store), ("worker", worker), ("client", client)):
        for name, size in containers(thing, path, seen):
            found[name] = found.get(name, 0) + size
    return found


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_ten_thousand_settled_invocations_leave_nothing_in_memory(kind: str, tmp_path: Path) -> None:
    url = "memory:" if kind == "memory" else f"sqlite:{tmp_path / 'db'}"
    async with connect(url, retention=None) as client, client.worker(*SERVED) as worker:

        async def ask() -> None:
            handle = await client.start(asks)
            while not (opened := (await handle.describe()).awakeables):
                await asyncio.sleep(0.01)
            await client.resolve(opened[0].id, 1)
            with suppress(MessageRefused):
                await client.resolve(opened[0].id, 2)
            assert await handle.result() == 1

        async def cancel() -> None:
            handle = await client.start(waits_for_ever)
            await handle.cancel()
            assert (await handle.describe()).status == "cancelled"

        async def some(count: int) -> None:
            jobs = iter(range(count))

            async def lane() -> None:
                for number in jobs:
                    match number % 5:
                        case 0:
                            await client.run(steps, number)
                        case 1:
                            await client.run(parent, number)
                        case 2:
                            await client.handle(await client.run(sleeps_and_sends, number)).result()
                        case 3:
                            await ask()
                        case _:
                            await cancel()

            await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
            while not worker.quiet:
                await asyncio.sleep(0.01)
            await asyncio.sleep(4 * FIRST_FRAME_SECONDS)  # until the worker has looked twice which are still young

        await some(IN_FLIGHT)
        before = kept(worker, client)
        await some(JOBS)
        assert sum((await client.stats()).by_status.values()) >= COUNT
        after = kept(worker, client)
        grown = {name: (size, before.get(name, 0)) for name, size in after.items() if size > before.get(name, 0) + 10}
        assert grown == {}
        assert sum(after.values()) < 100, after


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_suspended_invocations_are_in_nobodys_hands_and_all_can_be_resolved(kind: str, tmp_path: Path) -> None:
    url = "memory:" if kind == "memory" else f"sqlite:{tmp_path / 'db'}"
    cache = 10
    handed_out.clear()
    async with connect(url, retention=None) as client, client.worker(*SERVED, cache=cache) as worker:

        async def suspended(some: int) -> dict[str, int]:
            await asyncio.gather(*(client.start(hands_out) for _ in range(some)))
            while (await client.stats()).by_status != {"suspended": len(handed_out)} or not worker.quiet:
                await asyncio.sleep(0.01)
            await asyncio.sleep(4 * FIRST_FRAME_SECONDS)
            return kept(worker, client)

        few, many = await suspended(2 * cache), await suspended(SUSPENDED)
        assert many["worker._runners"] == cache
        assert {name: size for name, size in many.items() if size > few.get(name, 0) + cache} == {}
        await asyncio.gather(*(client.resolve(id, 1) for id in handed_out))
        while (await client.stats()).by_status != {"completed": SUSPENDED + 2 * cache}:
            await asyncio.sleep(0.01)
        assert sum(kept(worker, client).values()) < 100
