"""A worker that stops or dies beside others of its process: what it held goes on with them at once."""

from __future__ import annotations

import time

import pytest

from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab
from tests.scenarios.lab import until

AT_ONCE_SECONDS = 60.0
"""What would be waited for otherwise never comes: the rest is for slow machines."""


@pytest.mark.parametrize("ending", ["stop", "crash"])
async def test_what_a_worker_held_goes_on_with_another_at_once(make_lab: MakeLab, ending: str) -> None:
    lab = await make_lab(max_concurrent=3)
    asking = await lab.start(bodies.asks, "asking")
    awakeable = await lab.awakeable(asking)
    sleeping = await lab.start(bodies.sleeps, "sleeping", 0.6)
    await lab.noted("began sleeping")
    for at in range(3):
        lab.close_gate(f"before run{at}-b")
    running = [await lab.start(bodies.three, f"run{at}") for at in range(3)]
    for at in range(3):
        await lab.noted(f"at before run{at}-b")
    queued = await lab.start_many(bodies.three, [[f"queued{at}"] for at in range(5)])  # no slot is free
    await lab.ask("start_worker")
    await lab.noted("ran queued4-c")  # the other has room
    began = time.monotonic()
    if ending == "stop":
        await lab.ask("stop_worker", number=0, grace=0.05)
    else:
        await lab.ask("crash_worker", number=0)
    for at in range(3):
        await lab.noted(f"at before run{at}-b", 2)
        lab.open_gate(f"before run{at}-b")
    await lab.ask("resolve", awakeable=awakeable, value="there")
    assert await lab.results([*running, *queued]) == [
        *([f"RUN{at}-{each}" for each in "ABC"] for at in range(3)),
        *([f"QUEUED{at}-{each}" for each in "ABC"] for at in range(5)),
    ]
    assert await lab.result(asking) == "there"
    assert time.monotonic() - began < AT_ONCE_SECONDS, lab.report()
    await lab.result(sleeping)
    for at in range(3):
        assert [lab.count(f"ran run{at}-{each}") for each in "abc"] == [1, 1, 1]

    async def free() -> bool:
        return await lab.ask("slots") == [0, 0] and (await lab.ask("runners"))[0] == 0

    await until(free)


async def test_last_worker_that_stops_leaves_all_to_the_next_one(make_lab: MakeLab) -> None:
    lab = await make_lab(max_concurrent=2)
    lab.close_gate("before a-b")
    ids = await lab.start_many(bodies.three, [["a"], ["b"], ["c"], ["d"], ["e"]])
    await lab.noted("at before a-b")
    await lab.ask("stop_worker", number=0, grace=0.0)
    before = lab.notes()
    lab.open_gate("before a-b")
    began = time.monotonic()
    await lab.ask("start_worker")
    await lab.results(ids)
    assert time.monotonic() - began < AT_ONCE_SECONDS
    after = lab.notes()
    assert after[: len(before)] == before
    assert [lab.count(f"ran {tag}-{each}") for tag in "abcde" for each in "abc"] == [1] * 15


async def test_no_outcome_is_lost_on_a_parent_that_one_worker_has_kept_while_another_went_on(make_lab: MakeLab) -> None:
    """A turn that was kept since then knows nothing of the child: it must not drop what it was told of it."""
    lab = await make_lab(workers=2)
    ids = await lab.start_many(bodies.calls_often, [[f"a{at}", 8] for at in range(20)])
    assert await lab.results(ids) == [[f"a{at} {n}" for n in range(8)] for at in range(20)]


async def test_wake_for_what_another_worker_has_written_is_not_lost_on_one_that_kept_an_older_turn(
    make_lab: MakeLab,
) -> None:
    lab = await make_lab(workers=2, max_concurrent=1)
    id = await lab.start(bodies.asks_then_sleeps, "s", 1.3)
    await lab.has_status(id, "suspended")
    awakeable = await lab.awakeable(id)
    lab.close_gate("before one-a")
    lab.close_gate("before two-a")
    blockers = [await lab.start(bodies.three, "one")]  # the first worker is busy: the other one takes the answer
    await lab.noted("at before one-a")
    await lab.ask("resolve", awakeable=awakeable, value="go")
    await lab.noted("answered s")
    await lab.has_status(id, "suspended")
    blockers.append(await lab.start(bodies.three, "two"))  # both are as busy: the wake comes to the first one
    await lab.noted("at before two-a")
    assert await lab.result(id, 5) == "go"
    for name in ("one", "two"):
        lab.open_gate(f"before {name}-a")
    await lab.results(blockers)
