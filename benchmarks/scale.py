"""Show that the embedded engine carries what it must: many suspended invocations, many timers, a sweep of old ones.

    python -m benchmarks.scale [--only suspended timers sweep] [--stores sqlite memory] [--count 100000]

Each part runs in a process of its own, through the public client with default settings (SQLite with synchronous=FULL,
in a temporary folder), and prints what it measured beside its bar. The exit status is 1 if a bar is missed.

* suspended: invocations that each wait for an awakeable, in one serving process, without anybody who waits for them.
  Resident memory may grow by 100 MB; resolving all of them, from the first to the last end, may take 60 s.
* reopened: a process that finds the same invocations when it opens the file (SQLite only), and resolves them.
* timers: 10,000 invocations that wake at one instant, and 1,000 that sleep 0 to 1,000 ms. None early, all end.
* sweep: 100,000 settled invocations are purged while others run: what that does to the latency of a commit.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

from benchmarks.embedded import run
from perdure import Client, Context, connect, step, workflow

COUNT = 100_000
IN_FLIGHT = 500
"""Requests that the client has open at a time."""
CALM_SECONDS = 10.0
"""Between the last suspension and the look at memory."""
GROWTH_LIMIT_MB = 100.0
RESOLVE_LIMIT_SECONDS = 60.0
WAKES = 10_000
SLEEPS = 1_000
SLEEP_LIMIT_SECONDS = 1.0
LATE_LIMIT_SECONDS = 15.0
"""How late the last of `WAKES` timers of one instant may be."""

handed_out: list[TextIO] = []
"""Where the step writes the ids of awakeables, which a real one would send to somebody."""
late: list[float] = []


@step
async def hand_out(id: str) -> None:
    handed_out[0].write(f"{id}\n")


@workflow
async def approval(ctx: Context) -> bool:
    promise = ctx.awakeable(bool)
    await hand_out(promise.id)
    return await promise


@step
async def note_lateness(due: float) -> None:
    late.append(time.time() - due)


@workflow
async def wakes_at(ctx: Context, due: float) -> None:
    await asyncio.sleep(due - ctx.now().timestamp())
    await note_lateness(due)


@workflow
async def sleeps(ctx: Context, seconds: float) -> None:
    due = ctx.now().timestamp() + seconds
    await asyncio.sleep(seconds)
    await note_lateness(due)


@step
async def add_one(number: int) -> int:
    return number + 1


@workflow
async def one_step(number: int) -> int:
    return await add_one(number)


# --- what parts share -------------------------------------------------------------------------------------------------
def resident_mb() -> float:
    """Return the resident memory of this process; where the system does not say, the most that it ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 1e6


async def in_lanes(items: Iterable[Any], do: Callable[[Any], Awaitable[Any]]) -> float:
    """Do something with each item, IN_FLIGHT at a time; return the seconds it took."""
    left = iter(items)

    async def lane() -> None:
        for item in left:
            await do(item)

    started = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
    return time.perf_counter() - started


async def until_all_are(client: Client, status: str, count: int) -> None:
    while (await client.stats()).by_status.get(status, 0) < count:  # type: ignore[call-overload]
        await asyncio.sleep(0.2)


@asynccontextmanager
async def serving(url: str, ids: Path, mode: str) -> AsyncGenerator[Client]:
    """Open a store with a worker of all workflows here."""
    with ids.open(mode) as file:
        handed_out[:] = [file]
        async with connect(url) as client, client.worker(approval, wakes_at, sleeps, one_step):
            yield client


async def resolve_all(client: Client, ids: Path, count: int) -> float:
    started = time.perf_counter()
    with ids.open() as file:
        await in_lanes((line.strip() for line in file), lambda id: client.resolve(id, True))
    await until_all_are(client, "completed", count)
    return time.perf_counter() - started


# --- suspended --------------------------------------------------------------------------------------------------------
async def suspend(url: str, folder: Path, count: int, *, and_resolve: bool) -> dict[str, float]:
    ids = folder / "ids"
    async with serving(url, ids, "w") as client:
        await in_lanes(range(IN_FLIGHT), lambda _: client.run(one_step, 1))  # warm
        gc.collect()
        before = resident_mb()
        started = time.perf_counter()
        await in_lanes(range(count), lambda _: client.start(approval))
        await until_all_are(client, "suspended", count)
        measured = {"suspended in s": time.perf_counter() - started, "just after, MB": resident_mb() - before}
        await asyncio.sleep(CALM_SECONDS)
        measured["grown by MB"] = resident_mb() - before
        handed_out[0].flush()
        if and_resolve:
            measured["resolved in s"] = await resolve_all(client, ids, IN_FLIGHT + count)
            measured["in the end, MB"] = resident_mb() - before
    return measured


async def reopen(url: str, folder: Path, count: int) -> dict[str, float]:
    before = resident_mb()
    started = time.perf_counter()
    async with serving(url, folder / "ids", "a") as client:
        opened = time.perf_counter() - started
        await client.run(one_step, 1)
        measured = {"opened in s": opened, "first result after s": time.perf_counter() - started}
        await asyncio.sleep(CALM_SECONDS)
        measured["grown by MB"] = resident_mb() - before
        measured["resolved in s"] = await resolve_all(client, folder / "ids", IN_FLIGHT + 1 + count)
        measured["in the end, MB"] = resident_mb() - before
    return measured


# --- timers -----------------------------------------------------------------------------------------------------------
async def timers(url: str, folder: Path, _count: int) -> dict[str, float]:
    measured: dict[str, float] = {}
    async with serving(url, folder / "ids", "w") as client:
        await in_lanes(range(IN_FLIGHT), lambda _: client.run(one_step, 1))
        due = time.time() + 15.0
        await in_lanes(range(WAKES), lambda _: client.start(wakes_at, due))
        measured["wakes asked for, s before they were due"] = due - time.time()
        await until_all_are(client, "completed", IN_FLIGHT + WAKES)
        measured |= {"wakes": len(late), "earliest wake late by s": min(late), "last wake late by s": max(late)}
        late.clear()
        chance = random.Random(7)
        lengths = [chance.uniform(0, SLEEP_LIMIT_SECONDS) for _ in range(SLEEPS)]
        await asyncio.gather(*(client.start(sleeps, each) for each in lengths))
        await until_all_are(client, "completed", IN_FLIGHT + WAKES + SLEEPS)
        measured |= {"sleeps": len(late), "earliest sleep late by s": min(late), "last sleep late by s": max(late)}
    return measured
