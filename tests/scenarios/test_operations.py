"""Messages, sends and deploys at awkward moments: late, early, to what has not begun, through several workers."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest

from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab
from tests.scenarios.lab import WAIT_SECONDS, GoneError, Lab, Refusal, until


async def gone(lab: Lab, id: str) -> None:
    with pytest.raises(Refusal) as caught:
        await lab.result(id)
    assert caught.value.type == "InvocationCancelled"


# --- sends ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ending", ["completed", "cancelled", "forced"])
async def test_delayed_send_is_delivered_once_though_its_sender_is_over(lab: Lab, ending: str) -> None:
    if ending == "completed":
        sent = await lab.run(bodies.sender, "s-sent", 3)
    else:
        id = await lab.start(bodies.sends_and_waits, "s", 3)
        await lab.awakeable(id)
        await lab.ask("cancel", id=id, force=ending == "forced")
        await gone(lab, id)
        (sent,) = await lab.ask("list", handler="three")
    assert await lab.status(sent) == "scheduled"
    await lab.restart()
    assert await lab.result(sent) == ["S-SENT-A", "S-SENT-B", "S-SENT-C"]
    await lab.restart()
    await asyncio.sleep(0.05)
    assert [lab.count(f"ran s-sent-{each}") for each in "abc"] == [1, 1, 1]
    assert len(await lab.ask("list", handler="three")) == 1


# --- messages for what has not begun ----------------------------------------------------------------------------------
async def test_messages_for_a_scheduled_invocation_are_kept_until_it_begins(lab: Lab) -> None:
    id = await lab.start(bodies.three, "x", delay=3)
    pausing = asyncio.create_task(lab.ask("pause", id=id))
    await asyncio.sleep(0.1)
    assert not pausing.done()
    assert await lab.status(id) == "scheduled"
    await lab.kill()
    with pytest.raises(GoneError):
        await pausing
    await lab.up()
    await lab.has_status(id, "paused")
    assert lab.notes() == []
    await lab.ask("resume", id=id)
    assert await lab.result(id) == ["X-A", "X-B", "X-C"]
    assert lab.count("ran x-a") == 1


@pytest.mark.parametrize("ending", ["nothing", "kill"])
async def test_messages_for_a_queued_invocation_are_kept_until_it_begins(make_lab: MakeLab, ending: str) -> None:
    """But for a cancellation, where the store knows that the body has not begun: that needs no slot."""
    lab = await make_lab(max_concurrent=1)
    lab.close_gate("before busy-a")
    busy = await lab.start(bodies.three, "busy")
    await lab.noted("at before busy-a")
    paused = await lab.start(bodies.three, "paused")
    ended = await lab.start(bodies.first_step_then_cleanup, "ended")
    pausing = asyncio.create_task(lab.ask("pause", id=paused))
    cancelling = asyncio.create_task(lab.ask("cancel", id=ended))
    knows = lab.store != "jetstream"  # there, a worker has fetched the start already
    if knows:
        await cancelling
    await asyncio.sleep(0.1)
    assert [await lab.status(each) for each in (paused, ended)] == ["pending", "cancelled" if knows else "pending"]
    assert not pausing.done()
    if ending == "kill":
        await lab.kill()
        for each in [pausing] if knows else [pausing, cancelling]:
            with pytest.raises(GoneError):
                await each
        lab.open_gate("before busy-a")
        await lab.up()
    else:
        lab.open_gate("before busy-a")
        await asyncio.gather(pausing, cancelling)
    assert await lab.result(busy) == ["BUSY-A", "BUSY-B", "BUSY-C"]
    await gone(lab, ended)
    await lab.has_status(paused, "paused")
    assert lab.count("at before paused-a") == 0
    if knows or ending == "nothing":
        assert lab.count("ran ended-first") == 0
    await lab.ask("resume", id=paused)
    assert await lab.result(paused) == ["PAUSED-A", "PAUSED-B", "PAUSED-C"]
    assert await lab.ask("slots") == [0]


async def test_messages_that_wait_for_a_scheduled_invocation_are_answered_when_it_is_cancelled(lab: Lab) -> None:
    id = await lab.start(bodies.three, "x", delay=3600)
    waiting = [asyncio.create_task(lab.ask(verb, id=id)) for verb in ("pause", "retry", "pause")]
    await asyncio.sleep(0.1)
    assert not any(each.done() for each in waiting)
    await lab.ask("cancel", id=id)
    for refused in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), WAIT_SECONDS):
        assert isinstance(refused, Refusal)
        assert refused.type == "IllegalTransition"
        assert "it is cancelled" in refused.text
    assert await lab.status(id) == "cancelled"


async def test_messages_for_what_was_never_started_are_refused_and_poison_nothing(lab: Lab) -> None:
    for verb in ("pause", "resume", "cancel", "retry"):
        with pytest.raises(Refusal) as caught:
            await lab.ask(verb, id="nobody")
        assert caught.value.type == "UnknownInvocation"
    with pytest.raises(Refusal):
        await lab.ask("resolve", awakeable="no awakeable", value=1)
    assert await lab.run(bodies.three, "x", id="nobody") == ["X-A", "X-B", "X-C"]
    await lab.restart()
    assert (await lab.ask("stats"))["by_status"] == {"completed": 1}


async def test_awakeable_handed_out_by_the_very_first_step_is_the_same_after_its_worker_died_there(lab: Lab) -> None:
    lab.close_gate("deadly h")
    with suppress(GoneError):  # it may die before it has answered
        await lab.start(bodies.hands_out_first, "h", id="h")
    await lab.died()
    (handed_out,) = (line.split()[-1] for line in lab.notes() if line.startswith("handed out"))
    lab.open_gate("deadly h")
    await lab.up()
    await lab.ask("resolve", awakeable=handed_out, value=7)
    assert await lab.result("h") == 7
    assert set(lab.notes()) == {f"handed out {handed_out}"}


# --- messages through several workers ---------------------------------------------------------------------------------
async def test_pause_and_resume_one_after_the_other_leave_it_running_through_two_slow_workers(
    make_lab: MakeLab,
) -> None:
    lab = await make_lab(workers=2, delay=0.02)
    ids = [await lab.start(bodies.asks, f"a{at}") for at in range(4)]
    opened = [await lab.awakeable(id) for id in ids]

    async def toggle(id: str) -> None:
        for _ in range(8):
            await lab.ask("pause", id=id)
            await lab.ask("resume", id=id)

    await asyncio.gather(*map(toggle, ids))
    assert not set(await lab.ask("list", status="paused"))
    for each in opened:
        await lab.ask("resolve", awakeable=each, value="yes")
    assert await lab.results(ids) == ["yes"] * 4


async def test_last_of_many_requests_decides_though_workers_are_slow_and_die(make_lab: MakeLab, seed: int) -> None:
    chance = random.Random(seed)
    lab = await make_lab(workers=4, delay=0.01)
    ids = [await lab.start(bodies.asks, f"a{at}") for at in range(12)]
    opened = dict(zip(ids, [await lab.awakeable(id) for id in ids], strict=True))
    left = [0, 1, 2]

    async def operate(id: str, last: str) -> None:
        for verb in ("pause", "resume") * 3:
            await lab.ask(verb, id=id)
        if last != "resume":
            await lab.ask(last, id=id)

    async def disturb() -> None:
        while left:
            await asyncio.sleep(chance.uniform(0.01, 0.05))
            await lab.ask("crash_worker", number=left.pop())

    lasts = {id: ("pause", "cancel", "resume")[at % 3] for at, id in enumerate(ids)}
    await asyncio.gather(disturb(), *(operate(id, last) for id, last in lasts.items()))
    wanted = {"pause": "paused", "cancel": "cancelled", "resume": "suspended"}
    for id, last in lasts.items():
        await lab.has_status(id, wanted[last])
    for id, last in lasts.items():
        if last == "cancel":
            continue
        if last == "pause":
            await lab.ask("resume", id=id)
        await lab.ask("resolve", awakeable=opened[id], value="yes")
        assert await lab.result(id) == "yes"


# --- deploys ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("quick", [True, False], ids=["before any frame", "after the first frame"])
async def test_seven_deploys_during_one_long_step_do_not_set_it_aside(lab: Lab, quick: bool) -> None:
    lab.close_gate("before x-a")
    id = await lab.start(bodies.three, "x")
    for deploys in range(1, 8):
        await lab.noted("at before x-a", deploys)
        if not quick:

            async def journaled() -> bool:
                return await lab.ask("frames", id=id) > 0

            await until(journaled)
        await lab.stop(grace=0.01)
        await lab.up()
    assert await lab.status(id) != "paused"
    lab.open_gate("before x-a")
    assert await lab.result(id) == ["X-A", "X-B", "X-C"]
    assert [lab.count(f"ran x-{each}") for each in "abc"] == [1, 1, 1]
    assert lab.count("at before x-a") == 8


# --- inputs with sets -------------------------------------------------------------------------------------------------
async def test_sets_in_the_inputs_of_children_and_sends_replay_under_another_hash_seed(lab: Lab) -> None:
    await lab.restart(hash_seed=1)
    id = await lab.start(bodies.sends_sets, "one two three four five six seven eight nine ten")
    first = await lab.awakeable(id)
    for hash_seed in (2, 3):
        await lab.restart(hash_seed=hash_seed)
        await lab.has_status(id, "suspended")
        await lab.ask("pause", id=id)  # wants its body, and so a replay
        await lab.ask("resume", id=id)
    await lab.ask("resolve", awakeable=first, value="abc")
    assert await lab.result(id) == len("10-2-COUNTED") + 3
    assert "diverge" not in lab.report()
