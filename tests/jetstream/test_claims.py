"""Workers that die, or are taken for dead, between a frame that is durable and what follows from it."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.jetstream.conftest import Join
from tests.scenarios import bodies, keyed
from tests.scenarios.conftest import MakeLab
from tests.scenarios.lab import JetStreamLab, Lab, Refusal

LEASE_SECONDS = 1.0


async def held_by_lease() -> None:
    """Wait until a claim is so old that a wake would bring it, and no longer the delivery with which it began."""
    await asyncio.sleep(LEASE_SECONDS * 0.9)


async def killed_before_effects(lab: Lab, id: str, times: int = 1) -> None:
    await lab.noted(f"at effects of {id}", times)
    await lab.kill()


@pytest.mark.parametrize("old", [False, True], ids=["young claim", "old claim"])
async def test_child_begins_though_its_parents_worker_died_before_and_the_next_one_in_its_claim(
    make_lab: MakeLab, old: bool
) -> None:
    lab = await make_lab()
    lab.close_gate("effects of p")
    lab.close_gate("after p-before")
    id = await lab.start(bodies.asks_a_child, "p", id="p")
    await lab.noted("at after p-before")
    if old:
        await held_by_lease()
    lab.open_gate("after p-before")
    await killed_before_effects(lab, id)
    await lab.up()
    await killed_before_effects(lab, id, 2)  # his claim was to do them again
    lab.open_gate("effects of p")
    await lab.up()
    assert await lab.result(id) == ["p child", "p other"]
    assert [lab.count(each) for each in ("ran p-before", "p child", "p other")] == [1, 1, 1]


async def test_send_of_a_waiting_sender_happens_though_two_workers_died_before_it(make_lab: MakeLab) -> None:
    lab = await make_lab()
    lab.close_gate("effects of s")
    id = await lab.start(bodies.sends_at_last, "s", True, id="s")
    await killed_before_effects(lab, id)
    await lab.up()
    await killed_before_effects(lab, id, 2)
    lab.open_gate("effects of s")
    await lab.up()
    await lab.noted("sent by s")
    await lab.ask("resolve", awakeable=await lab.awakeable(id), value=1)
    await lab.result(id)
    assert lab.count("sent by s") == 1


@pytest.mark.parametrize("old", [False, True], ids=["young claim", "old claim"])
async def test_parent_is_told_and_the_key_released_though_the_worker_died_after_the_final_frame(
    make_lab: MakeLab, old: bool
) -> None:
    lab = await make_lab()
    lab.close_gate("before in deadlock")
    parent = await lab.start(keyed.calls, "k", 0)
    await lab.noted("at before in deadlock")
    (child,) = await lab.ask("list", handler="staged")
    behind = await lab.start(keyed.staged, "b", key="k")
    if old:
        await held_by_lease()
    lab.close_gate(f"effects of {child}")
    lab.open_gate("before in deadlock")
    await killed_before_effects(lab, child)
    assert lab.count("at before b") == 0
    await lab.up()
    await killed_before_effects(lab, child, 2)
    lab.open_gate(f"effects of {child}")
    await lab.up()
    assert await lab.result(parent) == "no deadlock"
    assert await lab.result(behind) == ["in deadlock", "b"]
    assert [lab.count(f"ran {each}") for each in ("in deadlock", "b")] == [1, 1]


async def test_zombie_that_releases_a_key_after_the_retry_has_it_again_changes_nothing(
    make_lab: MakeLab, join: Join
) -> None:
    zombie = await make_lab()
    assert isinstance(zombie, JetStreamLab)
    zombie.close_gate("brittle x")
    zombie.close_gate("effects of x")
    id = await zombie.start(keyed.fails_then_holds, "x", key="k", id="x")
    await zombie.noted("at effects of x")  # it has failed, and its key is not released yet
    zombie.signal(signal.SIGSTOP)
    zombie.open_gate("effects of x")
    zombie.open_gate("brittle x")
    zombie.close_gate("before x-held")
    lab = await join(zombie)
    with pytest.raises(Refusal, match="x breaks"):
        await lab.result(id)
    assert await lab.run(keyed.bump, key="k") == 2
    await lab.ask("retry", id=id)
    await lab.noted("at before x-held")
    behind = await lab.start(keyed.bump, key="k")
    zombie.signal(signal.SIGCONT)
    await asyncio.sleep(0.5)
    assert await lab.status(behind) == "pending", "the key was released for one who has it again"
    lab.open_gate("before x-held")
    assert await lab.result(id) == 1
    assert await lab.result(behind) == 3
    assert await lab.state("k") == {"count": 3}


async def test_retry_of_a_failed_group_runs_the_siblings_again_that_it_had_cancelled(make_lab: MakeLab) -> None:
    lab = await make_lab()
    lab.close_gate("brittle g")
    lab.close_gate("before g-beside")
    id = await lab.start(keyed.group_with_a_brittle_one, "g")
    with pytest.raises(Refusal):
        await lab.result(id)
    await lab.restart()
    lab.open_gate("brittle g")
    lab.open_gate("before g-beside")
    await lab.ask("retry", id=id)
    assert await lab.result(id) == ["G-BESIDE", "100"]
    assert (lab.count("tried g"), lab.count("ran g-beside")) == (2, 1)
