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
from perdure import connect
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
