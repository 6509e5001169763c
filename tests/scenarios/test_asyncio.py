"""Determinism: the same winners in the same order, whatever was killed in between and however turns are kept."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab
from tests.scenarios.lab import Lab


def naps(chance: random.Random, count: int = 6) -> list[float]:
    return [round(chance.uniform(0.001, 0.04), 4) for _ in range(count)]


async def finish(lab: Lab, ids: list[str], *between: Any) -> list[Any]:
    """Answer the two awakeables of each with something in between, and return the results."""
    opened = [await lab.awakeable(id) for id in ids]
    await between[0]() if between else None
    for each in opened:
        await lab.ask("resolve", awakeable=each, value=1)
    opened = [await lab.awakeable(id, 1) for id in ids]
    await between[-1]() if between else None
    for each in opened:
        await lab.ask("resolve", awakeable=each, value=2)
    return await lab.results(ids)


def traces(lab: Lab, ids: list[str]) -> list[str]:
    lines = [line.split(" ", 2) for line in lab.notes() if line.startswith("trace ")]
    assert len(lines) == len(ids), "a trace was noted twice"
    by_id = {line[1]: line[2] for line in lines}
    return [by_id[id] for id in ids]


async def test_gathered_results_are_in_the_right_places_after_a_kill(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    ids = [await lab.start(bodies.gathered, [naps(chance, 3) for _ in range(3)]) for _ in range(5)]
    expected = [[f"{branch}-{at}" for at in range(3)] for branch in range(3)]
    assert await finish(lab, ids, lab.restart) == [expected] * 5
    assert traces(lab, ids) == [str(expected)] * 5


MODES: dict[str, dict[str, Any]] = {"kept": {}, "cache=0": {"cache": 0}, "always_replay": {"always_replay": True}}


@pytest.mark.parametrize("mode", MODES)
async def test_winner_and_order_are_the_same_after_kills_and_replays(make_lab: MakeLab, mode: str, seed: int) -> None:
    chance = random.Random(seed)
    lab = await make_lab(**MODES[mode])
    ids = [await lab.start(workflow, naps(chance)) for workflow in bodies.ORDERED for _ in range(2)]
    seeds = iter((1, 4242))

    async def restart() -> None:
        await lab.restart(hash_seed=next(seeds))

    results = await finish(lab, ids, restart)
    assert results == traces(lab, ids)
    assert "diverge" not in lab.report()


async def test_timeouts_and_waits_end_alike_in_every_mode(make_lab: MakeLab) -> None:
    for options in MODES.values():
        lab = await make_lab(**options)
        id = await lab.start(bodies.timed, [0.001, 2.0, 0.001], 0.3)
        assert await finish(lab, [id]) == ["0 slept late overslept 2 slept"], options


@pytest.mark.parametrize("mode", MODES)
async def test_time_limit_around_a_step_ends_it_in_time(make_lab: MakeLab, mode: str) -> None:
    lab = await make_lab(**MODES[mode])
    lab.close_gate("before slow")
    assert await lab.ask("run", handler="impatient", args=["slow", 0.3], options={}) == "gave up"


async def test_time_limit_around_a_step_that_runs_again_after_a_kill_ends_it_in_time(lab: Lab) -> None:
    lab.close_gate("before slow")
    id = await lab.start(bodies.impatient, "slow", 1.0)
    await lab.noted("at before slow")
    await asyncio.sleep(0.2)  # beyond the first frame
    await lab.restart()
    assert await lab.result(id, 5) == "gave up"


async def test_cleanup_does_nothing_when_a_turn_is_dropped_in_the_middle(make_lab: MakeLab) -> None:
    lab = await make_lab(cache=0)
    id = await lab.start(bodies.tidy, "t")
    await lab.noted("ran t-work")
    await lab.ask("resolve", awakeable=await lab.awakeable(id), value="a")
    second = await lab.awakeable(id, 1)
    await lab.has_status(id, "suspended")
    assert await lab.ask("runners") == [0]
    before = (await lab.work()).turns
    assert lab.count("at before t-cleanup") == 0
    await lab.ask("resolve", awakeable=second, value="b")
    assert await lab.result(id) == "ab"
    assert (await lab.work()).turns > before
    assert lab.count("ran t-cleanup") == 1
    assert lab.count("ran t-work") == 1


async def test_body_that_blocks_is_reported_with_its_stack_and_others_go_on(lab: Lab) -> None:
    blocked = await lab.start(bodies.blocks, "b")
    await lab.noted("blocking b")
    assert await lab.run(bodies.three, "other") == ["OTHER-A", "OTHER-B", "OTHER-C"]
    assert await lab.result(blocked) == "B-LAST"
    assert f"the body of invocation {blocked} (blocks) blocks the worker" in lab.report()
    assert "this_is_the_blocking_line" in lab.report()
