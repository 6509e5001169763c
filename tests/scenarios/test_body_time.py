"""The time of a body begins when the body begins, and stays that when another process goes on with it."""

from __future__ import annotations

import asyncio
import time

from tests.scenarios import bodies, keyed
from tests.scenarios.conftest import MakeLab
from tests.scenarios.lab import Lab

WAIT_SECONDS = 0.4
"""How long a body waits before it begins: longer than its timer takes."""
SLEEP_SECONDS = 0.3


async def test_body_that_waits_for_its_key_begins_when_it_has_it(lab: Lab) -> None:
    holder = await lab.start(keyed.holds, "a", key="k")
    await lab.noted("holds a")
    slept = await lab.start(bodies.sleeps, "s", SLEEP_SECONDS, key="k")
    await asyncio.sleep(WAIT_SECONDS)
    released = time.time()
    await lab.ask("resolve", awakeable=await lab.awakeable(holder), value="go")
    began, ended = await lab.result(slept)
    assert began >= released
    assert ended >= began + SLEEP_SECONDS


async def test_body_that_waits_for_a_slot_begins_when_it_has_it(make_lab: MakeLab) -> None:
    lab = await make_lab(max_concurrent=1)
    lab.close_gate("before x-a")
    first = await lab.start(bodies.three, "x")
    await lab.has_status(first, "running")
    slept = await lab.start(bodies.sleeps, "s", SLEEP_SECONDS)
    await asyncio.sleep(WAIT_SECONDS)
    assert lab.count("began s") == 0
    released = time.time()
    lab.open_gate("before x-a")
    began, ended = await lab.result(slept)
    assert began >= released
    assert ended >= began + SLEEP_SECONDS
    await lab.result(first)


async def test_body_whose_worker_comes_late_begins_then_and_keeps_its_time(lab: Lab) -> None:
    await lab.ask("stop_worker", number=0)
    slept = await lab.start(bodies.sleeps, "s", 3 * SLEEP_SECONDS)
    await asyncio.sleep(WAIT_SECONDS)
    came = time.time()
    await lab.ask("start_worker")
    await lab.noted("began s")
    await lab.has_status(slept, "suspended")
    begun = time.time()
    await lab.restart()
    began, ended = await lab.result(slept)
    assert came <= began <= begun
    assert ended >= began + 3 * SLEEP_SECONDS
