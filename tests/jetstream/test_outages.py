"""Scenario 36 on one server: it is killed while workers are, and the way of one worker to it is cut, or stalls."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from examples.services.nats_server import Server
from tests.jetstream.proxy import Proxy
from tests.jetstream.test_processes import LEASE_SECONDS, SLACK_SECONDS, Join, check_histories
from tests.scenarios import bodies, keyed
from tests.scenarios.engine import Options
from tests.scenarios.lab import JetStreamLab


@pytest.mark.parametrize("how", ["cut", "stall"])
async def test_work_of_a_worker_whose_connection_breaks_is_taken_over_after_its_lease_and_it_comes_back(
    nats: Server, namespace: str, way: Proxy, join: Join, tmp_path: Path, how: str
) -> None:
    options = Options(lease=LEASE_SECONDS, max_concurrent=4, serves=("three", "increment", "staged"))
    lab = JetStreamLab(tmp_path / "lab", options, way.url, namespace)
    await lab.up()
    try:
        for point in ("before c0-b", "before c1-b", "before c2-b", "before one"):
            lab.close_gate(point)
        held = await lab.start_many(bodies.three, [[f"c{at}"] for at in range(3)])
        held.append(await lab.start(keyed.staged, "one", key="k"))
        for point in ("before c0-b", "before c1-b", "before c2-b", "before one"):
            await lab.noted(f"at {point}")
        other = await join(lab, url=nats.url, max_concurrent=20)
        behind = await other.start_many(keyed.increment, [[f"n{at}"] for at in range(30)], key="k")
        side_by_side = await other.start_many(bodies.three, [[f"o{at}"] for at in range(20)])
        if how == "cut":
            await way.cut()
        else:
            way.stall()
        for point in ("before c0-b", "before c1-b", "before c2-b", "before one"):
            await lab.noted(f"at {point}", 2, wait=2 * LEASE_SECONDS + SLACK_SECONDS)
            lab.open_gate(point)  # the one that is cut goes on with its steps too, and cannot say so
        expected = [*([f"C{at}-{each}" for each in "ABC"] for at in range(3)), ["one"]]
        assert await other.results(held) == expected
        assert await other.results(behind, timeout=30) == [*range(1, 31)]
        await other.results(side_by_side)
        if how == "cut":
            await way.mend()
        else:
            way.flow()
        assert await lab.results(held, timeout=20) == expected
        await other.stop(grace=0.0)  # what is started now is for the one that is back
        more = await lab.start_many(bodies.three, [[f"m{at}"] for at in range(20)])
        more.append(await lab.start(keyed.increment, "last", key="k"))
        await lab.results(more, timeout=20)
        assert await lab.state("k") == {"count": 31, "tags": ["one"]}
        tags = [*(f"o{at}" for at in range(20)), *(f"m{at}" for at in range(20))]
        assert [lab.count(f"ran {tag}-{each}") for tag in tags for each in "abc"] == [1] * 120
        assert [lab.count(f"ran c{at}-a") for at in range(3)] == [1] * 3
        await check_histories(lab, [*held, *behind, *side_by_side, *more])
        assert "has taken it over" in lab.report() or "reloading" in lab.report()
    finally:
        await lab.close()


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


async def test_server_killed_takes_nothing_from_processes_that_go_on(
    own_nats: Server, join: Join, tmp_path: Path
) -> None:
    """Whoever is connected again first does not take the others for dead."""
    lab = JetStreamLab(tmp_path / "lab", Options(max_concurrent=20, serves=("three",)), own_nats.url, "killed")
    await lab.up()
    try:
        tags = [f"g{at}" for at in range(15)]
        for tag in tags:
            lab.close_gate(f"before {tag}-b")
        others = [await join(lab) for _ in range(2)]
        ids = await lab.start_many(bodies.three, [[tag] for tag in tags])
        for tag in tags:  # some for each of them
            await lab.noted(f"at before {tag}-b")
        for _ in range(2):
            await asyncio.to_thread(own_nats.kill)
            await asyncio.to_thread(own_nats.start)
            await asyncio.sleep(1.0)
        for tag in tags:
            lab.open_gate(f"before {tag}-b")
        await others[0].results(ids)
        assert [lab.count(f"at before {tag}-b") for tag in tags] == [1] * 15
        await check_histories(lab, ids)
    finally:
        await lab.close()


async def test_worker_that_reconnects_keeps_what_it_has_in_hand(
    nats: Server, namespace: str, way: Proxy, join: Join, tmp_path: Path
) -> None:
    options = Options(lease=15.0, serves=("asks_often",))
    lab = JetStreamLab(tmp_path / "lab", options, way.url, namespace)
    await lab.up()
    try:
        lab.close_gate("before held-0")
        id = await lab.start(bodies.asks_often, "held", 1, 1)
        await lab.noted("at before held-0")
        other = await join(lab, url=nats.url)
        awakeable = await other.awakeable(id)
        await way.cut()
        resolving = asyncio.ensure_future(other.ask("resolve", awakeable=awakeable, value=1))
        await asyncio.sleep(0.1)
        await way.mend()
        await resolving
        lab.open_gate("before held-0")
        assert await other.result(id) == [1]
        assert lab.count("at before held-0") == 1, "it ran elsewhere too"
        await check_histories(other, [id])
    finally:
        await lab.close()
