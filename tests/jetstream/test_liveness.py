"""Processes are killed at any moment: whatever they leave unsettled has something that brings it, at once."""

from __future__ import annotations

import asyncio
import random

from tests.jetstream.liveness import check_liveness, store_of
from tests.scenarios import bodies, keyed
from tests.scenarios.conftest import MakeLab
from tests.scenarios.lab import GoneError, JetStreamLab, Lab

KILLS = 6
NOTHING: list[list[object]] = [[]]
COUNT = 12
LIFE_SECONDS = 1.0
"""How long a process lives at most."""


async def submit(lab: Lab, life: int) -> list[str]:
    """Start some of everything; what is not acknowledged when the process dies is nobody's."""
    tags = [f"{life}-{at}" for at in range(COUNT)]
    works = [
        lab.start_many(bodies.three, [[f"three-{tag}"] for tag in tags]),
        lab.start_many(bodies.parent, [[f"parent-{tag}"] for tag in tags]),
        lab.start_many(bodies.sleeps, [[f"sleeps-{tag}", 0.2 + 0.1 * at] for at, tag in enumerate(tags)]),
        lab.start_many(bodies.sender, [[f"sends-{tag}", 0.3] for tag in tags]),
        lab.start_many(bodies.patient, [[f"third-{tag}"] for tag in tags]),
        lab.start_many(keyed.bump, NOTHING * COUNT, key="one"),
        lab.start_many(keyed.bump, NOTHING * COUNT, key="one", delay=0.5),
    ]
    ids: list[str] = []
    for each in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(each, list):
            ids += each
        else:
            assert isinstance(each, GoneError), each
    return ids


async def test_all_that_a_killed_process_leaves_is_brought_and_the_janitor_finds_nothing_to_do(
    make_lab: MakeLab, seed: int
) -> None:
    chance = random.Random(seed)
    lab = await make_lab(janitor=1.0)
    assert isinstance(lab, JetStreamLab)
    ids: list[str] = []
    async with store_of(lab.place) as store:
        for life in range(KILLS):
            submitting = asyncio.ensure_future(submit(lab, life))
            await asyncio.sleep(chance.random() * LIFE_SECONDS)
            await lab.kill()
            ids += await submitting
            await check_liveness(store)
            await lab.up()
    assert ids
    await lab.results(ids, timeout=40)
    assert "would never continue" not in lab.report()
    assert "would never be granted" not in lab.report()
