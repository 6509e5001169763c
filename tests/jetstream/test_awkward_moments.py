"""Messages at awkward moments, through two processes: before anything began, one after the other, at every instant."""

from __future__ import annotations

import asyncio
import random

from tests.jetstream.conftest import Join
from tests.jetstream.test_processes import check_histories
from tests.scenarios import bodies, keyed
from tests.scenarios.conftest import MakeLab
from tests.scenarios.host import jetstream_at
from tests.scenarios.lab import JetStreamLab, Lab, Refusal, until

TERMINAL = {"completed", "cancelled"}


async def nothing_is_left(lab: Lab) -> None:
    """Wait until the queues hold no start, message, wake, schedule or position; what precedes key queues stays."""
    assert isinstance(lab, JetStreamLab)
    store = jetstream_at(lab.place)
    await store.open()
    try:
        left: list[str] = []

        async def empty() -> bool:
            streams = [store.layout.stream("Q", shard) for shard in range(2)]
            found = await asyncio.gather(*(store.wire.all(each, f"{store.layout.namespace}.>") for each in streams))
            left[:] = [each.subject for some in found for each in some if not each.subject.endswith(".=first")]
            return not left

        try:
            await until(empty)
        except TimeoutError:
            raise AssertionError(f"left behind: {left}") from None
    finally:
        await store.aclose()


async def idle(*labs: Lab) -> None:
    for lab in labs:

        async def free(lab: Lab = lab) -> bool:
            return sum(await lab.ask("slots")) == 0

        await until(free)


async def test_what_was_paused_before_it_was_due_begins_nothing_whoever_gets_its_start(
    make_lab: MakeLab, join: Join
) -> None:
    one = await make_lab()
    other = await join(one)
    ids = [await one.start(bodies.three, f"x{at}", delay=1.0) for at in range(10)]
    pausing = [asyncio.create_task((one, other)[at % 2].ask("pause", id=id)) for at, id in enumerate(ids)]
    await asyncio.wait_for(asyncio.gather(*pausing), 10)
    assert [await one.status(id) for id in ids] == ["paused"] * 10
    assert one.notes() == []
    for id in ids:
        await other.ask("resume", id=id)
    assert await one.results(ids) == [[f"X{at}-{each}" for each in "ABC"] for at in range(10)]
    await check_histories(one, ids)
    await nothing_is_left(one)


async def test_pause_and_resume_one_after_the_other_from_two_slow_processes_leave_it_running(
    make_lab: MakeLab, join: Join
) -> None:
    one = await make_lab(delay=0.02)
    other = await join(one)
    ids = [await one.start(bodies.asks, f"a{at}") for at in range(4)]
    opened = [await one.awakeable(id) for id in ids]

    async def toggle(id: str) -> None:
        for at in range(6):
            await (one, other)[at % 2].ask("pause", id=id)
            await (other, one)[at // 2 % 2].ask("resume", id=id)

    await asyncio.gather(*map(toggle, ids))
    assert await one.ask("list", status="paused") == []
    for each in opened:
        await other.ask("resolve", awakeable=each, value="yes")
    assert await other.results(ids) == ["yes"] * 4
    await check_histories(one, ids)


async def test_cancel_at_every_instant_ends_in_one_status_and_leaves_nothing_behind(
    make_lab: MakeLab, join: Join, seed: int
) -> None:
    chance = random.Random(seed)
    one = await make_lab(max_concurrent=4, delay=0.01)
    other = await join(one)
    labs = (one, other)

    async def started(at: int) -> str:
        lab = labs[at % 2]
        match at % 4:
            case 0:
                return await lab.start(bodies.busy, f"delayed{at}", [0.02, 0.02], delay=chance.uniform(0.1, 0.5))
            case 1:
                return await lab.start(keyed.staged, f"keyed{at}", key=f"k{at % 3}")
            case 2:
                return await lab.start(bodies.parent_with_cleanup, f"parent{at}")
            case _:
                return await lab.start(bodies.busy, f"busy{at}", [0.02, 0.02], id=f"busy{at}")

    async def cancelled_somewhen(id: str) -> str:
        await asyncio.sleep(chance.uniform(0, 0.6))
        try:
            await chance.choice(labs).ask("cancel", id=id)
        except Refusal as refused:
            return refused.type
        return ""

    ids = list(await asyncio.gather(*map(started, range(60))))
    answers = await asyncio.gather(*map(cancelled_somewhen, ids))
    assert "" in answers
    assert set(answers) <= {"", "IllegalTransition"}

    async def over() -> bool:
        return set((await one.ask("stats"))["by_status"]) <= TERMINAL

    await until(over)
    everything = await one.ask("list")
    assert {*ids} <= {*everything}
    statuses = dict(zip(ids, [await one.status(id) for id in ids], strict=True))
    refused = {id for id, answer in zip(ids, answers, strict=True) if answer}
    assert not [id for id in ids if id not in refused and statuses[id] != "cancelled"]
    assert [await other.status(id) for id in ids] == [*statuses.values()]
    await check_histories(one, everything)
    await idle(one, other)
    await nothing_is_left(one)
    for key in ("k0", "k1", "k2"):
        assert isinstance(await other.run(keyed.bump, key=key), int), "the key is free"


async def test_child_that_was_not_begun_never_runs_when_its_parent_is_cancelled(make_lab: MakeLab) -> None:
    lab = await make_lab(max_concurrent=1)
    lab.close_gate("before p-before")
    parent = await lab.start(bodies.asks_a_child, "p")
    await lab.noted("at before p-before")
    lab.close_gate("before b-a")
    blocker = await lab.start(bodies.three, "b")  # it is next when the parent's step ends
    lab.open_gate("before p-before")
    await lab.noted("at before b-a")

    async def asked() -> list[str]:
        return await lab.ask("list", handler="noting")

    (child,) = await until(asked)
    assert await lab.status(child) == "pending"
    await lab.ask("cancel", id=parent)
    lab.open_gate("before b-a")
    await lab.result(blocker)
    for id in (parent, child):
        await lab.has_status(id, "cancelled")
    assert lab.count("p child") == 0
    await idle(lab)
    await nothing_is_left(lab)
