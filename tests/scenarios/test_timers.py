"""Timers: never early, always once, and not late by the time that a worker was down."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from perdure.testing import Environment
from tests.scenarios import bodies
from tests.scenarios.conftest import kept_turns_only
from tests.scenarios.lab import Lab
from tests.scenarios.notes import open_notes


async def due_of(lab: Lab, id: str) -> Any:
    """When the timer of an invocation is due."""
    (due,) = {call["due"] for call in (await lab.describe(id))["journal"] if call["step_type"] == "SLEEP"}
    assert due is not None
    return due


async def test_sleep_ends_when_it_was_due_though_the_worker_was_killed_in_between(lab: Lab) -> None:
    id = await lab.start(bodies.sleeps, "s", 1.2)
    await lab.noted("began s")
    await lab.has_status(id, "suspended")
    due = await due_of(lab, id)
    await lab.restart()
    assert await due_of(lab, id) == due, "it does not begin anew"
    began, ended = await lab.result(id)
    assert ended - began >= 1.2
    assert time.time() - began >= 1.2


async def test_sleep_that_fell_due_while_nothing_ran_ends_at_once_on_restart(lab: Lab) -> None:
    id = await lab.start(bodies.sleeps, "s", 0.3)
    await lab.noted("began s")
    await lab.has_status(id, "suspended")
    due = await due_of(lab, id)
    await lab.kill()
    await asyncio.sleep(0.4)
    await lab.up()
    assert await due_of(lab, id) == due
    began, ended = await lab.result(id)
    assert ended - began >= 0.3
    assert lab.count("ended s") == 1


async def test_thousand_sleeps_at_once_all_end_and_none_early(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    waits = [chance.uniform(0, 500) for _ in range(1_000)]
    late = await lab.run(bodies.many_sleeps, waits)
    assert len(late) == 1_000
    assert min(late) >= 0
    ids = await lab.start_many(bodies.many_sleeps, [[[each]] for each in waits])
    late = [each for (each,) in await lab.results(ids, 10)]
    assert len(late) == 1_000
    assert min(late) >= 0


@kept_turns_only
async def test_ten_thousand_sleeps_until_one_instant_all_end(lab: Lab) -> None:
    late = await lab.run(bodies.sleeps_until, time.time() + 0.3, 10_000)
    assert len(late) == 10_000
    assert min(late) >= -1e-6
    ids = await lab.start_many(bodies.sleeps_until, [[time.time() + 1.0, 10]] * 1_000)
    found = await lab.results(ids, 10)
    assert [len(each) for each in found] == [10] * 1_000
    assert min(min(each) for each in found) >= -1e-6


async def test_delayed_start_comes_once_and_not_early_though_its_sender_is_gone(tmp_path: Path) -> None:
    open_notes(tmp_path)
    async with Environment(bodies.sender, bodies.three) as env:
        sent = await env.client.run(bodies.sender, "late", 90)
        await env.advance(timedelta(seconds=89.9))
        assert (await env.client.handle(sent).describe()).status == "scheduled"
        assert (tmp_path / "notes").read_text() == ""
        await env.advance(timedelta(seconds=0.2))
        assert await env.client.handle(sent, bodies.three).result() == ["LATE-A", "LATE-B", "LATE-C"]
        await env.advance(timedelta(days=1))
    assert (tmp_path / "notes").read_text().splitlines().count("ran late-a") == 1


async def test_delayed_start_comes_once_though_everything_was_killed_meanwhile(lab: Lab) -> None:
    began = time.time()
    sent = await lab.run(bodies.sender, "late", 0.8)
    await lab.restart()
    assert await lab.result(sent) == ["LATE-A", "LATE-B", "LATE-C"]
    assert time.time() - began >= 0.8
    assert lab.count("ran late-a") == 1
