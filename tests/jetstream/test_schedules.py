"""Schedules in several processes, which are killed at every write: each tick is run once, and none is lost."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import pytest

from examples.services.nats_server import Server
from perdure import Client, Context, Schedule, connect, workflow
from perdure.connect import client_from
from perdure.core.schedule import Overlap
from perdure.stores.jetstream import JetStreamStore
from tests.ticking import NAME

pytestmark = pytest.mark.slow

POINTS = 8
"""Before and after each of: a tick is decided, it is started, that is written down, the next is decided."""


async def begin(url: str, log: Path, *point: int) -> Process:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.ticking", url, str(log), *map(str, point)), stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    if await process.stdout.readline() != b"serving\n":  # it was killed before that, or something is wrong
        await process.wait()
        assert process.returncode == -signal.SIGKILL, (await process.stderr.read()).decode()
    return process


async def killed(process: Process) -> None:
    async with asyncio.timeout(60):
        await process.communicate()
    assert process.returncode == -signal.SIGKILL


async def stopped(process: Process) -> None:
    process.terminate()
    await process.communicate()


def runs_in(log: Path) -> dict[str, set[str]]:
    """The numbers that the runs of each tick noted."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in log.read_text().splitlines() if log.exists() else ():
        id, number = line.rsplit(" ", 1)
        found[id].add(number)
    return found


async def more(log: Path, count: int) -> None:
    """Wait until so many more ticks were run."""
    before = len(runs_in(log))
    async with asyncio.timeout(120):
        while len(runs_in(log)) < before + count:
            await asyncio.sleep(0.05)


def lost(log: Path) -> set[int]:
    """The seconds between the first and the last tick that have no run yet."""
    instants = {int(datetime.fromisoformat(id.removeprefix(f"{NAME}@")).timestamp()) for id in runs_in(log)}
    return {*range(min(instants), max(instants))} - instants


async def check(log: Path) -> None:
    """Check that every second has one run. Those that a killed process had begun are taken over after a while."""
    async with asyncio.timeout(120):
        while lost(log):
            await asyncio.sleep(0.05)
    assert {id: numbers for id, numbers in runs_in(log).items() if len(numbers) > 1} == {}


@pytest.mark.parametrize("store", ["sqlite", "nats"])
async def test_process_that_is_killed_at_any_write_loses_no_tick_and_makes_none_come_twice(
    store: str, own_nats: Server, tmp_path: Path
) -> None:
    url, log = f"sqlite:{tmp_path}/app.db" if store == "sqlite" else own_nats.url, tmp_path / "runs"
    for point in range(POINTS):
        await killed(await begin(url, log, point))
    last = await begin(url, log)
    await more(log, 2)
    await check(log)
    async with connect(url, read_only=True) as client:
        told = await client.schedule(NAME).describe()
    await stopped(last)
    assert told.missed == told.skipped == told.refused == 0


async def test_two_processes_run_each_tick_once_also_while_one_of_them_is_killed(
    own_nats: Server, tmp_path: Path
) -> None:
    url, log = own_nats.url, tmp_path / "runs"
    steady = await begin(url, log)
    for point in range(POINTS):
        await killed(await begin(url, log, point))
    other = await begin(url, log)
    await more(log, 3)
    await check(log)
    await asyncio.gather(stopped(steady), stopped(other))


@workflow
async def approved(ctx: Context) -> str:
    return await ctx.awakeable(str)


@workflow
async def quick(ctx: Context) -> str:
    return ctx.invocation_id


@pytest.mark.parametrize("overlap", ["queue", "cancel"])
async def test_overlap_rule_holds_on_a_server(client: Client, overlap: Overlap) -> None:
    async with client.worker(approved, lease=1):
        handle = client.schedule("often", approved)
        await handle.put(Schedule(approved.bind(), every=86_400, overlap=overlap))
        first = await handle.trigger()
        async with asyncio.timeout(60):
            while not (found := [each.id async for each in client.awakeables()]):
                await asyncio.sleep(0.02)
            second = await handle.trigger()
            if overlap == "queue":
                assert (await handle.describe()).waiting == (second.id,)
                await client.resolve(found[0], "yes")
            while (await handle.describe()).waiting:
                await asyncio.sleep(0.02)
            assert (await first.describe()).status == ("completed" if overlap == "queue" else "cancelled")
            while (await second.describe()).status != "suspended":
                await asyncio.sleep(0.02)


async def test_worker_hears_of_a_schedule_that_another_process_has_put(nats: Server, namespace: str) -> None:
    def store() -> JetStreamStore:
        return JetStreamStore([nats.url], namespace=namespace)

    async with client_from(store) as one, client_from(store) as other, other.worker(quick, lease=1):
        await one.schedule("often").put(Schedule(quick.bind(), every=1))
        async with asyncio.timeout(60):
            while (told := await one.schedule("often").describe()).started < 2:
                await asyncio.sleep(0.05)
            assert await one.handle(told.runs[0], quick).result() == told.runs[0]
