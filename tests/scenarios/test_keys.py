"""Keys: one at a time, in order, with shared state, through crashes."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from perdure.stores.clock import VirtualClock
from tests.scenarios import keyed
from tests.scenarios.conftest import MakeLab
from tests.scenarios.engine import Options
from tests.scenarios.lab import GoneError, Lab, MemoryLab, Refusal


# --- order and state --------------------------------------------------------------------------------------------------
async def test_thousand_concurrent_increments_of_one_key_with_kills_are_exactly_a_thousand(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    ids = await lab.start_many(keyed.increment, [[f"n{at}"] for at in range(1_000)], key="counter")
    for _ in range(4):
        await asyncio.sleep(chance.uniform(0.02, 0.15))
        await lab.restart()
    results = await lab.results(ids, timeout=60)
    assert results == [*range(1, 1_001)], "they ran in the order in which they were accepted"
    assert await lab.state("counter") == {"count": 1_000}


async def test_increments_of_one_key_over_four_dying_workers_are_exactly_as_many(make_lab: MakeLab, seed: int) -> None:
    chance = random.Random(seed)
    lab = await make_lab(workers=4, max_concurrent=5)
    ids = await lab.start_many(keyed.increment, [[f"n{at}"] for at in range(300)], key="counter")
    alive = [0, 1, 2, 3]
    for _ in range(6):
        await asyncio.sleep(chance.uniform(0.01, 0.1))
        await lab.ask("crash_worker", number=alive.pop(chance.randrange(len(alive))))
        alive.append(await lab.ask("start_worker"))
    assert await lab.results(ids, timeout=60) == [*range(1, 301)]
    assert sum(await lab.ask("slots")) == 0


async def test_invocations_of_different_keys_run_side_by_side_and_of_one_key_do_not(lab: Lab) -> None:
    for tag in ("a", "b", "c"):
        lab.close_gate(f"before {tag}")
    first = await lab.start(keyed.staged, "a", key="one")
    second = await lab.start(keyed.staged, "b", key="two")
    behind = await lab.start(keyed.staged, "c", key="one")
    await lab.noted("at before a")
    await lab.noted("at before b")
    assert await lab.status(behind) == "pending"
    assert lab.count("at before c") == 0
    lab.open_gate("before a")
    assert await lab.result(first) == ["a"]
    await lab.noted("at before c")
    lab.open_gate("before b")
    lab.open_gate("before c")
    assert await lab.result(second) == ["b"]
    assert await lab.result(behind) == ["a", "c"]


async def test_sends_to_one_key_are_processed_in_the_order_sent(lab: Lab) -> None:
    lab.close_gate("before k-1")
    sent = await lab.run(keyed.sends_in_order, "k", 5)
    await lab.noted("at before k-1")
    await lab.restart()
    lab.open_gate("before k-1")
    expected = [f"k-{n}" for n in range(5)]
    assert await lab.result(sent[-1]) == expected
    ran = [note for note in lab.notes() if note.startswith("ran ")]
    assert [*dict.fromkeys(ran)] == [f"ran {tag}" for tag in expected]


async def test_state_of_an_unkeyed_invocation_is_its_own(lab: Lab) -> None:
    assert await lab.run(keyed.bump) == 1
    assert await lab.run(keyed.bump) == 1
    assert await lab.run(keyed.bump, key="k") == 1
    assert await lab.run(keyed.bump, key="k") == 2
    assert await lab.state("k") == {"count": 2}
    assert await lab.state("unused") == {}


async def test_suspended_holder_keeps_its_key_for_days_and_others_wait(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    clock = VirtualClock()
    lab = MemoryLab(tmp_path_factory.mktemp("days"), Options(), clock)
    await lab.up()
    holder = await lab.start(keyed.holds, "a", key="k")
    await lab.has_status(holder, "suspended")
    waiting = await lab.start(keyed.staged, "b", key="k")
    for _ in range(4):
        clock.move_to(clock.now() + 86_400)
        await lab.restart()
    described = await lab.describe(waiting)
    assert described["status"] == "pending"
    assert described["waiting_for"] == f"key 'k', which invocation {holder} holds"
    await lab.ask("resolve", awakeable=await lab.awakeable(holder), value="at last")
    assert await lab.result(holder) == "at last"
    assert await lab.result(waiting) == ["b"]
    assert await lab.state("k") == {"held by": "a", "answer": "at last", "tags": ["b"]}
    await lab.close()


async def test_suspended_holder_keeps_its_key_through_a_kill(lab: Lab) -> None:
    holder = await lab.start(keyed.holds, "a", key="k")
    await lab.has_status(holder, "suspended")
    waiting = await lab.start(keyed.staged, "b", key="k")
    await lab.restart()
    assert await lab.status(waiting) == "pending"
    await lab.ask("resolve", awakeable=await lab.awakeable(holder), value="now")
    assert await lab.result(waiting) == ["b"]
    assert lab.count("holds a") == 1


async def test_two_thousand_that_wait_for_one_key_take_no_place_in_the_worker(lab: Lab) -> None:
    holder = await lab.start(keyed.holds, "a", key="k")
    await lab.has_status(holder, "suspended")
    nothing: list[str] = []
    ids = await lab.start_many(keyed.bump, [nothing] * 2_000, key="k")
    assert sum(await lab.ask("slots")) == 0
    assert sum(await lab.ask("runners")) == 1
    await lab.restart()
    assert await lab.run(keyed.bump, key="other") == 1
    await lab.ask("resolve", awakeable=await lab.awakeable(holder), value="now")
    assert await lab.results(ids, timeout=60) == [*range(1, 2_001)]


# --- cancel, pause, time ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("killed", [False, True])
async def test_who_is_cancelled_while_it_waits_for_its_key_ends_at_once_and_never_runs(
    lab: Lab, force: bool, killed: bool
) -> None:
    holder = await lab.start(keyed.holds, "a", key="k")
    await lab.has_status(holder, "suspended")
    waiting = await lab.start(keyed.staged, "b", key="k")
    behind = await lab.start(keyed.staged, "c", key="k")
    if killed:
        await lab.restart()
    await lab.ask("cancel", id=waiting, force=force)
    assert await lab.status(waiting) == "cancelled"
    await lab.ask("resolve", awakeable=await lab.awakeable(holder), value="now")
    assert await lab.result(behind) == ["c"]
    assert lab.count("at before b") == 0


async def test_cancelled_holder_cleans_up_with_its_key_and_releases_it(lab: Lab) -> None:
    holder = await lab.start(keyed.cleans_up, "a", key="k")
    await lab.has_status(holder, "suspended")
    waiting = await lab.start(keyed.staged, "b", key="k")
    await lab.ask("cancel", id=holder)
    assert await lab.result(waiting) == ["b"]
    assert await lab.status(holder) == "cancelled"
    assert await lab.state("k") == {"cleaned": "a", "tags": ["b"]}


async def test_holder_cancelled_with_force_releases_its_key_without_cleanup(lab: Lab) -> None:
    holder = await lab.start(keyed.cleans_up, "a", key="k")
    await lab.has_status(holder, "suspended")
    waiting = await lab.start(keyed.staged, "b", key="k")
    await lab.ask("cancel", id=holder, force=True)
    assert await lab.result(waiting) == ["b"]
    assert lab.count("cleaning a") == 0


async def test_paused_holder_keeps_its_key(lab: Lab) -> None:
    holder = await lab.start(keyed.holds, "a", key="k")
    await lab.has_status(holder, "suspended")
    waiting = await lab.start(keyed.staged, "b", key="k")
    await lab.ask("pause", id=holder)
    await lab.ask("resolve", awakeable=await lab.awakeable(holder), value="now")
    await lab.restart()
    assert await lab.status(waiting) == "pending"
    await lab.ask("resume", id=holder)
    assert await lab.result(holder) == "now"
    assert await lab.result(waiting) == ["b"]


@pytest.mark.parametrize("killed", [False, True])
async def test_time_limit_passes_while_the_key_is_awaited_and_the_body_never_runs(lab: Lab, killed: bool) -> None:
    holder = await lab.start(keyed.holds, "a", key="k")
    await lab.has_status(holder, "suspended")
    began = time.time()
    waiting = await lab.start(keyed.staged, "b", key="k", timeout=0.5)
    if killed:
        await lab.restart()
    with pytest.raises(Refusal) as caught:
        await lab.result(waiting)
    assert caught.value.type == "InvocationTimedOut"
    assert time.time() >= began + 0.5
    await lab.ask("resolve", awakeable=await lab.awakeable(holder), value="now")
    assert await lab.run(keyed.bump, key="k") == 1
    assert lab.count("at before b") == 0


async def test_delayed_keyed_start_takes_its_place_when_it_is_due(lab: Lab) -> None:
    lab.close_gate("before a")
    first = await lab.start(keyed.staged, "a", key="k")
    late = await lab.start(keyed.staged, "late", key="k", delay=2)
    second = await lab.start(keyed.staged, "b", key="k")
    await lab.has_status(late, "pending")
    lab.open_gate("before a")
    assert await lab.result(late) == ["a", "b", "late"]
    assert (await lab.result(first), await lab.result(second)) == (["a"], ["a", "b"])


# --- retry ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("killed", [False, True])
async def test_retried_invocation_queues_for_its_key_again_and_sees_what_others_did(lab: Lab, killed: bool) -> None:
    lab.close_gate("brittle x")
    failed = await lab.start(keyed.fails_until_open, "x", key="k")
    with pytest.raises(Refusal, match="x breaks"):
        await lab.result(failed)
    assert await lab.state("k") == {"count": 1}, "what it had changed when it failed stays"
    holder = await lab.start(keyed.holds, "h", key="k")
    await lab.has_status(holder, "suspended")
    lab.open_gate("brittle x")
    retrying = asyncio.ensure_future(lab.ask("retry", id=failed))
    behind = None
    try:
        await lab.waits_for(failed, f"key 'k', which invocation {holder} holds, to be retried")
        await asyncio.sleep(0.1)  # it is accepted: a worker has it queue for the key
        behind = await lab.start(keyed.bump, key="k")
        if killed:
            await lab.restart()
            with pytest.raises(GoneError):
                await retrying
        assert lab.count("tried x") == 1
        assert await lab.status(failed) == "failed"
        await lab.ask("resolve", awakeable=await lab.awakeable(holder), value="done")
        assert await lab.result(behind) == 2
    finally:
        if not killed:
            await retrying
    await lab.has_status(failed, "completed")
    assert await lab.result(failed) == 101
    assert lab.count("tried x") == 2
    assert await lab.state("k") == {"count": 2, "held by": "h", "answer": "done"}


async def test_retry_that_is_refused_gives_the_key_back(make_lab: MakeLab) -> None:
    lab = await make_lab()
    lab.close_gate("brittle x")
    failed = await lab.start(keyed.fails_until_open, "x", key="k")
    with pytest.raises(Refusal, match="x breaks"):
        await lab.result(failed)
    await lab.ask("retry", id=failed)
    with pytest.raises(Refusal, match="x breaks"):
        await lab.result(failed)
    assert await lab.run(keyed.bump, key="k") == 2
    done = await lab.start(keyed.bump, key="k")
    assert await lab.result(done) == 3
    with pytest.raises(Refusal, match="completed"):
        await lab.ask("retry", id=done)
    assert await lab.run(keyed.bump, key="k") == 4


# --- deadlock ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("depth", [0, 1, 3])
async def test_child_that_needs_a_key_of_an_ancestor_is_refused_at_once(lab: Lab, depth: int) -> None:
    assert await lab.run(keyed.calls, "k", depth, key="k") == "deadlock on k"
    assert await lab.run(keyed.calls, "other", depth, key="k") == "no deadlock"
    assert await lab.run(keyed.bump, key="k") == 1


async def test_send_to_the_senders_own_key_runs_after_it(lab: Lab) -> None:
    sent = await lab.run(keyed.sends_to_own_key, key="k")
    assert await lab.result(sent) == ["sent"]
