"""Scenario 36 on one server: it is killed while workers are, and the way of one worker to it is cut, or stalls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from examples.services.nats_server import Server
from tests.jetstream.proxy import Proxy
from tests.jetstream.test_processes import LEASE_SECONDS, SLACK_SECONDS, Join, check_histories
from tests.scenarios import bodies, keyed
from tests.scenarios.conftest import MakeLab
from tests.scenarios.engine import Options
from tests.scenarios.lab import JetStreamLab

CUT_SECONDS = 3 * LEASE_SECONDS


@pytest.fixture
async def way(nats: Server) -> AsyncIterator[Proxy]:
    proxy = Proxy(nats.port)
    await proxy.mend()
    yield proxy
    proxy.flow()
    await proxy.cut()


@pytest.mark.parametrize("how", ["cut", "stall"])
async def test_work_of_a_worker_whose_connection_breaks_is_taken_over_once_and_it_comes_back(
    make_lab: MakeLab, way: Proxy, how: str
) -> None:
    lab = await make_lab(max_concurrent=10, serves=("three", "increment"))
    assert isinstance(lab, JetStreamLab)
    cut = lab.beside(way.url)
    await cut.up()
    for at in range(3):
        lab.close_gate(f"before c{at}-b")
    held = await cut.start_many(bodies.three, [[f"c{at}"] for at in range(3)])
    keyed_ids = await lab.start_many(keyed.increment, [[f"n{at}"] for at in range(60)], key="k")
    for at in range(3):
        await lab.noted(f"at before c{at}-b")
    try:
        await way.cut() if how == "cut" else way.stall()
        began = time.monotonic()
        others = await lab.start_many(bodies.three, [[f"o{at}"] for at in range(20)])
        await lab.results(others)
        for at in range(3):  # whoever of the two had it: those of the other one are taken over
            lab.open_gate(f"before c{at}-b")
        assert await lab.results(held, timeout=30) == [[f"C{at}-{each}" for each in "ABC"] for at in range(3)]
        assert await lab.results(keyed_ids, timeout=30) == [*range(1, 61)]
        assert time.monotonic() - began < CUT_SECONDS + LEASE_SECONDS + 2 * SLACK_SECONDS
        await asyncio.sleep(max(0.0, began + CUT_SECONDS - time.monotonic()))
    finally:
        await way.mend() if how == "cut" else way.flow()
    assert await cut.results(held, timeout=20) == [[f"C{at}-{each}" for each in "ABC"] for at in range(3)]
    await lab.stop(grace=0.0)  # what comes now comes to the one that is back
    more = await cut.start_many(bodies.three, [[f"m{at}"] for at in range(20)])
    await cut.results([*more, await cut.start(keyed.increment, "last", key="k")], timeout=20)
    assert await cut.state("k") == {"count": 61}
    tags = [*(f"o{at}" for at in range(20)), *(f"m{at}" for at in range(20))]
    assert [cut.count(f"ran {tag}-{each}") for tag in tags for each in "abc"] == [1] * 120
    await check_histories(cut, [*held, *others, *more, *keyed_ids])
    assert "trying to reconnect" in cut.report() or how == "stall"
    await cut.close()


async def test_server_killed_while_workers_are_killed_too_loses_and_repeats_nothing(
    own_nats: Server, join: Join, tmp_path: Path
) -> None:
    lab = JetStreamLab(
        tmp_path / "lab",
        Options(lease=2.0, max_concurrent=50, serves=("three", "increment", "parent")),
        own_nats.url,
        "killed",
    )
    await lab.up()
    try:
        others = [await join(lab) for _ in range(2)]
        ids = await lab.start_many(bodies.three, [[f"k{at}"] for at in range(200)])
        ids += await lab.start_many(bodies.parent, [[f"p{at}"] for at in range(20)])
        counting = await lab.start_many(keyed.increment, [[f"n{at}"] for at in range(100)], key="k")
        for victim in others:
            await asyncio.sleep(0.1)
            await asyncio.to_thread(own_nats.kill)
            await victim.kill()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(own_nats.start)
            await victim.up()
        assert await lab.results(counting, timeout=60) == [*range(1, 101)]
        await lab.results(ids, timeout=60)
        await others[0].results(ids, timeout=60)
        await check_histories(lab, [*ids, *counting])
    finally:
        await lab.close()
