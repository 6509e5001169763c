"""Several worker processes on one server: they share the work, take over from the dead, and never work on the same."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from examples.services.nats_server import Server
from tests.scenarios import bodies, keyed
from tests.scenarios.conftest import MakeLab
from tests.scenarios.engine import Options
from tests.scenarios.lab import JetStreamLab, Lab

Join = Callable[..., Awaitable[JetStreamLab]]

NOTHING: list[list[object]] = [[]]
LEASE_SECONDS = 1.0
SLACK_SECONDS = 3.0
"""What a slow machine may add to a lease."""


async def check_histories(lab: Lab, ids: list[str]) -> None:
    assert await lab.ask("flaws", ids=ids) == []


async def test_worker_that_joins_gets_work_and_one_that_stops_hands_over_at_once(make_lab: MakeLab, join: Join) -> None:
    lab = await make_lab(max_concurrent=2, lease=15.0)
    for name in ("a0-b", "a1-b"):
        lab.close_gate(f"before {name}")
    ids = await lab.start_many(bodies.three, [[f"a{at}"] for at in range(6)])
    await lab.noted("at before a0-b")
    await lab.noted("at before a1-b")
    other = await join(lab, max_concurrent=10)
    await lab.noted("ran a5-c", wait=5.0)
    began = time.monotonic()
    await lab.stop(grace=0.0)
    for name in ("a0-b", "a1-b"):
        lab.open_gate(f"before {name}")
    assert await other.results(ids) == [[f"A{at}-{each}" for each in "ABC"] for at in range(6)]
    assert time.monotonic() - began < SLACK_SECONDS
    assert [lab.count(f"ran a{at}-a") for at in range(6)] == [1] * 6
    await check_histories(other, ids)


async def test_what_a_killed_process_held_is_taken_over_within_its_lease(make_lab: MakeLab, join: Join) -> None:
    lab = await make_lab()
    asking = await lab.start(bodies.asks, "asking")
    awakeable = await lab.awakeable(asking)
    sleeping = await lab.start(bodies.sleeps, "sleeping", 0.5)
    await lab.noted("began sleeping")
    lab.close_gate("before young-b")
    young = await lab.start(bodies.three, "young")
    await lab.noted("at before young-b")
    lab.close_gate("before child-b")
    other = await join(lab)
    await lab.kill()
    began = time.monotonic()
    await lab.noted("at before young-b", 2)
    assert time.monotonic() - began < LEASE_SECONDS + SLACK_SECONDS
    lab.open_gate("before young-b")
    assert await other.result(young) == ["YOUNG-A", "YOUNG-B", "YOUNG-C"]
    await other.ask("resolve", awakeable=awakeable, value="there")
    assert await other.result(asking) == "there"
    await other.result(sleeping)
    assert lab.count("ran young-a") == 1
    await check_histories(other, [asking, sleeping, young])


async def test_step_longer_than_the_lease_stays_with_its_worker(make_lab: MakeLab, join: Join) -> None:
    lab = await make_lab(max_concurrent=1)
    lab.close_gate("before long-b")
    id = await lab.start(bodies.three, "long")
    await lab.noted("at before long-b")
    other = await join(lab)
    await asyncio.sleep(3.5 * LEASE_SECONDS)
    lab.open_gate("before long-b")
    assert await other.result(id) == ["LONG-A", "LONG-B", "LONG-C"]
    assert [lab.count(f"at before long-{each}") for each in "abc"] == [1, 1, 1]
    await check_histories(other, [id])


async def test_starts_that_find_no_room_for_a_lease_go_to_a_worker_that_has_some(make_lab: MakeLab, join: Join) -> None:
    lab = await make_lab(max_concurrent=4)
    for at in range(4):
        lab.close_gate(f"before a{at}-a")
    ids = await lab.start_many(bodies.three, [[f"a{at}"] for at in range(40)])
    for at in range(4):
        await lab.noted(f"at before a{at}-a")
    other = await join(lab)
    for at in range(4, 40):
        await lab.noted(f"ran a{at}-c", wait=3 * LEASE_SECONDS + SLACK_SECONDS)
    for at in range(4):
        lab.open_gate(f"before a{at}-a")
    await other.results(ids)
    await check_histories(other, ids)


async def test_message_goes_to_the_process_that_owns_the_invocation(make_lab: MakeLab, join: Join) -> None:
    lab = await make_lab(lease=15.0)
    others = [await join(lab) for _ in range(2)]
    lab.close_gate("before b-leaf")
    ids = await lab.start_many(bodies.asks_often, [[f"often{at}", 10, 2] for at in range(3)])

    async def answer(id: str) -> None:
        for at in range(10):
            awakeable = await others[0].awakeable(id, at)
            await others[at % 2].ask("resolve", awakeable=awakeable, value=at)

    await asyncio.gather(*map(answer, ids))
    assert await others[1].results(ids) == [[*range(10)]] * 3
    await check_histories(lab, ids)


async def test_message_for_what_had_not_begun_follows_it_to_the_process_that_begins_it(
    make_lab: MakeLab, join: Join
) -> None:
    lab = await make_lab(max_concurrent=1)
    lab.close_gate("before busy-a")
    await lab.start(bodies.three, "busy")
    await lab.noted("at before busy-a")
    queued = await lab.start(bodies.waits_on, "queued", "sleep")
    cancelling = asyncio.ensure_future(lab.ask("cancel", id=queued))  # who is busy gets the message, and no start
    await asyncio.sleep(LEASE_SECONDS)
    assert await lab.status(queued) == "pending"
    other = await join(lab)
    await asyncio.wait_for(cancelling, SLACK_SECONDS)
    lab.open_gate("before busy-a")
    await other.has_status(queued, "cancelled")


async def test_zombie_that_wakes_after_its_lease_writes_nothing(make_lab: MakeLab, join: Join) -> None:
    lab = await make_lab()
    assert isinstance(lab, JetStreamLab)
    for name in ("z-b", "y-b"):
        lab.close_gate(f"before {name}")
    ids = await lab.start_many(bodies.three, [["z"], ["y"]])
    await lab.noted("at before z-b")
    await lab.noted("at before y-b")
    await asyncio.sleep(LEASE_SECONDS)  # so that its claims are kept by wakes, no longer by its starts
    lab.signal(signal.SIGSTOP)
    other = await join(lab)
    await lab.noted("at before z-b", 2, wait=LEASE_SECONDS + SLACK_SECONDS)
    await lab.noted("at before y-b", 2)
    lab.open_gate("before z-b")
    lab.close_gate("after z-b")
    lab.signal(signal.SIGCONT)
    await asyncio.sleep(0.5)
    lab.open_gate("after z-b")
    lab.open_gate("before y-b")
    assert await other.results(ids) == [[f"{tag}-{each}" for each in "ABC"] for tag in "ZY"]
    await check_histories(other, ids)
    assert "has taken it over" in lab.report() or "reloading" in lab.report()
    assert [lab.count(f"ran {tag}-c") for tag in "zy"] == [1, 1]
    assert await lab.results(ids) == [[f"{tag}-{each}" for each in "ABC"] for tag in "ZY"]


@pytest.mark.parametrize("early", [False, True])
async def test_zombie_stopped_between_its_step_and_its_append_loses_its_key_and_what_it_would_write(
    make_lab: MakeLab, join: Join, early: bool
) -> None:
    lab = await make_lab()
    assert isinstance(lab, JetStreamLab)
    for tag in ("z", "y"):
        lab.close_gate(f"frost {tag}")
        lab.close_gate(f"before {tag}")
    first = await lab.start(keyed.counts_in_frost, "z", early, key="k")
    behind = await lab.start_many(keyed.bump, NOTHING * 5, key="k")
    lab.open_gate("before z")
    await lab.noted("ran z")  # it stands still now, with its key, and what it did is nowhere but here
    lab.open_gate("frost z")
    other = await join(lab)
    assert await other.result(first) == 1
    assert await other.results(behind) == [2, 3, 4, 5, 6]
    second = await other.start(keyed.counts_in_frost, "y", early, key="k")
    lab.open_gate("before y")
    await lab.noted("ran y")  # the key is in other hands
    lab.signal(signal.SIGCONT)
    assert await lab.result(first) == 1
    last = await lab.start(keyed.bump, key="k")
    lab.open_gate("frost y")
    other.signal(signal.SIGCONT)
    assert (await lab.result(second), await lab.result(last)) == (7, 8)
    assert await lab.state("k") == await other.state("k") == {"count": 8}
    assert lab.count("ran z") == 2
    await check_histories(lab, [first, *behind, second, last])


async def test_zombie_that_holds_a_key_past_its_lease_gives_it_to_nobody(make_lab: MakeLab, join: Join) -> None:
    lab = await make_lab()
    assert isinstance(lab, JetStreamLab)
    lab.close_gate("before a")
    lab.close_gate("after b")
    ids = [await lab.start(keyed.staged, tag, key="k") for tag in "abcd"]
    await lab.noted("at before a")
    await asyncio.sleep(LEASE_SECONDS)  # so that its claim is kept by a wake, no longer by its start
    lab.signal(signal.SIGSTOP)
    other = await join(lab)
    await lab.noted("at before a", 2, wait=LEASE_SECONDS + SLACK_SECONDS)
    lab.open_gate("before a")
    await lab.noted("at after b")
    lab.signal(signal.SIGCONT)  # it ends its step and would release, while the next one holds the key
    await asyncio.sleep(0.5)
    assert lab.count("at before c") == 0
    lab.open_gate("after b")
    assert await other.results(ids) == [["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]]
    assert await lab.results(ids) == await other.results(ids)
    assert await lab.state("k") == {"tags": ["a", "b", "c", "d"]}
    assert [lab.count(f"at before {tag}") for tag in "bcd"] == [1, 1, 1]
    await check_histories(other, ids)


async def test_increments_of_one_key_over_three_processes_of_which_two_die_are_exactly_as_many(
    make_lab: MakeLab, join: Join
) -> None:
    lab = await make_lab(max_concurrent=20)
    others = [await join(lab, max_concurrent=20) for _ in range(2)]
    last = others[-1]
    ids = await last.start_many(keyed.bump, NOTHING * 150, key="one")
    side_by_side = await last.start_many(keyed.bump, NOTHING * 50, key="two")
    for each in (lab, others[0]):
        await asyncio.sleep(0.1)
        await each.kill()
    assert sorted(await last.results(ids, timeout=60)) == [*range(1, 151)]
    assert await last.results(ids) == [*range(1, 151)]
    assert await last.results(side_by_side, timeout=60) == [*range(1, 51)]
    assert await last.state("one") == {"count": 150}
    await check_histories(last, [*ids, *side_by_side])


async def test_server_killed_under_load_loses_and_repeats_nothing(own_nats: Server, tmp_path: Path) -> None:
    lab = JetStreamLab(tmp_path / "lab", Options(lease=2.0, max_concurrent=200), own_nats.url, "killed")
    await lab.up()
    try:
        ids = await lab.start_many(bodies.three, [[f"k{at}"] for at in range(300)])
        finishing = asyncio.ensure_future(lab.results(ids, timeout=60))
        for _ in range(2):
            await asyncio.sleep(0.1)
            await asyncio.to_thread(own_nats.kill)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(own_nats.start)
            more = await lab.start_many(bodies.three, [[f"m{len(ids)}-{at}"] for at in range(100)])
            ids += more
        assert await finishing == [[f"K{at}-{each}" for each in "ABC"] for at in range(300)]
        await lab.results(ids, timeout=60)
        for at in range(300):
            assert [lab.count(f"ran k{at}-{each}") for each in "abc"] == [1, 1, 1]
        await check_histories(lab, ids)
        assert "reconnecting, without limit" in lab.report()
    finally:
        await lab.close()


@pytest.mark.parametrize("victims", [1, 2])
async def test_workers_killed_under_load_leave_all_to_the_last(make_lab: MakeLab, join: Join, victims: int) -> None:
    lab = await make_lab(max_concurrent=50)
    others = [await join(lab, max_concurrent=50) for _ in range(victims)]
    last = others[-1]
    ids = await last.start_many(bodies.busy, [[f"b{at}", [0.02] * 5] for at in range(200)])
    parents = await last.start_many(bodies.parent, [[f"p{at}"] for at in range(40)])
    await asyncio.sleep(0.15)
    for each in [lab, *others][:victims]:
        await each.kill()
        await asyncio.sleep(0.1)
    assert await last.results(ids, timeout=40) == [5] * 200
    await last.results(parents, timeout=40)
    await check_histories(last, [*ids, *parents])
