"""Four worker processes that get what is theirs late and out of turn, and die: order and state are kept."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab
from tests.scenarios.fleet import ManyProcesses
from tests.scenarios.lab import JetStreamLab, Lab

Join = Callable[..., Awaitable[JetStreamLab]]
MakeFleet = Callable[..., Awaitable[ManyProcesses]]

PROCESSES = 4
LATE_SECONDS = 0.1
"""How late a delivery comes to a worker, at most; each is late by itself, so that they overtake each other."""
KEYS = ("one", "two", "three")


# --- verbs ------------------------------------------------------------------------------------------------------------
async def order_about(labs: Sequence[Lab], id: str, chance: random.Random) -> str:
    """Pause and resume by turns, each when the one before was applied; return the status that follows from the last."""
    paused = False
    for _ in range(chance.randint(1, 5)):
        await chance.choice(labs).ask("resume" if paused else "pause", id=id)
        paused = not paused
        assert (await chance.choice(labs).status(id) == "paused") is paused
    if chance.random() < 0.4:
        await chance.choice(labs).ask("cancel", id=id)
        if paused:  # that it is cancelled is recorded, and happens when it goes on
            await chance.choice(labs).ask("resume", id=id)
        return "cancelled"
    return "paused" if paused else "free"


async def test_of_pause_resume_and_cancel_over_four_workers_the_last_one_issued_holds(
    make_lab: MakeLab, join: Join, seed: int
) -> None:
    chance = random.Random(seed)
    lab = await make_lab(delay=LATE_SECONDS)
    labs = [lab, *[await join(lab) for _ in range(PROCESSES - 1)]]
    ids = {f"a{at}": await chance.choice(labs).start(bodies.asks, f"a{at}") for at in range(20)}
    for tag in [*ids][::2]:  # the others wait for an answer only
        lab.close_gate(f"before {tag}-answered")
    awakeables = {tag: await lab.awakeable(id) for tag, id in ids.items()}
    for tag in [*ids][::2]:
        await chance.choice(labs).ask("resolve", awakeable=awakeables[tag], value=tag)
        await lab.noted(f"at before {tag}-answered")
    orders = await asyncio.gather(*(order_about(labs, id, random.Random(f"{seed} {id}")) for id in ids.values()))
    expected = dict(zip(ids, orders, strict=True))
    for tag, status in expected.items():
        if status == "cancelled":
            await lab.has_status(ids[tag], status)
    await asyncio.sleep(2 * LATE_SECONDS)  # whatever was still on its way has come
    found = {tag: await lab.status(id) for tag, id in ids.items()}
    assert {tag: status for tag, status in found.items() if status in ("cancelled", "paused")} == {
        tag: status for tag, status in expected.items() if status != "free"
    }
    for at, (tag, status) in enumerate(expected.items()):
        if at % 2 == 0:
            lab.open_gate(f"before {tag}-answered")
        if status == "cancelled":
            continue
        if status == "paused":
            await lab.ask("resume", id=ids[tag])
        if at % 2:
            await lab.ask("resolve", awakeable=awakeables[tag], value=tag)
        assert await lab.result(ids[tag]) == tag
        assert lab.count(f"ran {tag}-asked") == 1
    assert await lab.ask("flaws", ids=[*ids.values()]) == []


# --- keys -------------------------------------------------------------------------------------------------------------
async def test_keyed_starts_that_come_late_to_four_dying_workers_run_in_their_order_and_fold_into_the_state(
    make_fleet: MakeFleet, join: Join, seed: int
) -> None:
    chance = random.Random(seed)
    fleet = await make_fleet(PROCESSES, delay=LATE_SECONDS)
    clients: dict[str, Lab] = {"a": fleet.lab, "b": await join(fleet.lab, workers=0)}
    keys = {f"{name}{at}": chance.choice(KEYS) for name in clients for at in range(60)}

    async def submit(name: str) -> None:
        many = [[[tag], {"id": tag, "key": key}] for tag, key in keys.items() if tag.startswith(name)]
        for at in range(0, len(many), 10):
            await clients[name].ask("start_each", handler="append", many=many[at : at + 10])

    async def kill_some() -> None:
        for _ in range(PROCESSES):
            await asyncio.sleep(chance.uniform(0.1, 0.5))
            await fleet.kill_one(chance)

    await asyncio.gather(*map(submit, clients), kill_some())
    results = dict(zip(keys, await fleet.lab.results([*keys], timeout=60), strict=True))
    for key in KEYS:
        order = (await fleet.lab.state(key))["tags"]
        for name in clients:
            mine = [tag for tag in order if tag.startswith(name)]
            assert mine == [tag for tag in keys if keys[tag] == key and tag.startswith(name)]
        for at, tag in enumerate(order):
            assert results[tag] == order[: at + 1]
    assert await fleet.lab.ask("flaws", ids=[*keys]) == []
