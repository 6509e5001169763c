"""Retention: what has settled goes when it has been kept for long enough, and nothing runs again for it."""

from __future__ import annotations

import asyncio

import pytest

from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab
from tests.scenarios.lab import Lab, Refusal, until


async def only_left(lab: Lab, *ids: str) -> None:
    async def left() -> bool:
        return await lab.ask("list") == [*ids]

    await until(left)


async def test_nothing_that_settled_runs_again_though_all_workers_were_down_for_longer_than_it_is_kept(
    make_lab: MakeLab,
) -> None:
    lab = await make_lab(retention=1.0)
    chosen = await lab.start(bodies.three, "chosen", id="chosen")
    ids = [
        *await lab.start_many(bodies.three, [[f"n{at}"] for at in range(20)]),
        await lab.start(bodies.parent, "p"),
        await lab.start(bodies.asks_a_child, "c"),
        chosen,
    ]
    sent = await lab.run(bodies.sender, "s", 0.05)
    await lab.results([*ids, sent])
    before = sorted(lab.notes())
    await lab.kill()
    await asyncio.sleep(1.2)
    await lab.up()
    await only_left(lab)
    await asyncio.sleep(0.2)
    assert sorted(lab.notes()) == before
    with pytest.raises(Refusal, match="retention has ended"):
        await lab.ask("cancel", id=ids[0])
    with pytest.raises(Refusal, match="retention has ended"):
        await lab.result(chosen)
    await lab.restart()
    await asyncio.sleep(0.1)
    assert sorted(lab.notes()) == before


@pytest.mark.parametrize("cache", [0, 1_000])
async def test_loop_of_send_and_sleep_does_not_repeat_old_sends(make_lab: MakeLab, cache: int) -> None:
    lab = await make_lab(retention=0.2, cache=cache)
    id = await lab.start(bodies.ticks, "tick", 2, 0.8)
    for n in range(2):
        await lab.noted(f"tick {n}")
        await only_left(lab, id)  # what it sent has settled and is gone, and its own last frame still says to send it
        await lab.restart()
    await only_left(lab)
    assert [lab.count(f"tick {n}") for n in range(2)] == [1, 1]


async def test_message_for_a_settled_sender_does_not_repeat_what_it_sent(lab: Lab) -> None:
    sent = await lab.run(bodies.sender, "s", 0.0, id="sender")
    await lab.result(sent)
    left = ["sender"]
    if lab.store == "jetstream":  # that its sender's last effects are done is not known for ever
        left = [sent, "sender"]
        with pytest.raises(Refusal, match="may send it again"):
            await lab.ask("purge", id=sent)
    else:
        await lab.ask("purge", id=sent)
    for _ in range(2):
        with pytest.raises(Refusal, match="refused"):
            await lab.ask("cancel", id="sender")
        await lab.restart()
    assert sorted(await lab.ask("list")) == sorted(left)
    await lab.restart(retention=0.1)
    await only_left(lab)
    assert lab.count("ran s-a") == 1


async def test_parent_gets_the_result_of_a_child_that_was_purged_before_it_looked(lab: Lab) -> None:
    lab.close_gate("before p-child-a")
    id = await lab.start(bodies.parent, "p")
    await lab.noted("at before p-child-a")
    await lab.ask("pause", id=id)
    lab.open_gate("before p-child-a")
    await lab.noted("ran p-child-c")
    await lab.restart(retention=0.1)
    await only_left(lab, id)
    await lab.restart(retention=None)
    await lab.ask("resume", id=id)
    assert await lab.result(id) == ["parent", *(f"P-CHILD-{each}" for each in "ABC")]
    assert lab.count("ran p-child-b") == 1


async def test_kill_in_the_middle_of_a_sweep_leaves_whole_invocations_and_the_next_goes_on(make_lab: MakeLab) -> None:
    lab = await make_lab()
    ids = await lab.start_many(bodies.noting, [[f"note {at}"] for at in range(300)])
    await lab.results(ids)
    kept = await lab.start(bodies.asks, "kept")
    awakeable = await lab.awakeable(kept)
    left = 301
    while left > 1:
        await lab.restart(retention=0.1)
        await until(lambda left=left: fewer(lab, left))
        await lab.kill()
        await lab.up(retention=None)  # opening a file checks every row of it
        left = await total(lab)
    await lab.ask("resolve", awakeable=awakeable, value="there")
    assert await lab.result(kept) == "there"
    assert all(lab.count(f"note {at}") == 1 for at in range(300))


async def total(lab: Lab) -> int:
    return (await lab.ask("stats"))["total"]


async def fewer(lab: Lab, than: int) -> bool:
    return await total(lab) < than


async def test_purge_by_hand_refuses_what_has_not_settled(lab: Lab) -> None:
    id = await lab.start(bodies.asks, "a")
    awakeable = await lab.awakeable(id)
    with pytest.raises(Refusal, match="cancel it first") as refusal:
        await lab.ask("purge", id=id)
    assert refusal.value.type == "IllegalTransition"
    await lab.ask("resolve", awakeable=awakeable, value="x")
    await lab.result(id)
    await lab.ask("purge", id=id)
    for operation, arguments in (("purge", {"id": id}), ("resolve", {"awakeable": awakeable, "value": "y"})):
        with pytest.raises(Refusal) as refusal:
            await lab.ask(operation, **arguments)
        assert refusal.value.type == "UnknownInvocation"
