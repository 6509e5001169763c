"""Steps and recovery: what ran, what ran again, and what the caller hears."""

from __future__ import annotations

import asyncio
import itertools
import random
import time

import pytest

from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab, kept_turns_only
from tests.scenarios.lab import GoneError, Lab, Refusal

BOUNDARIES = [f"{where} x-{name}" for name in "abc" for where in ("before", "after")]


async def test_kill_at_each_boundary_loses_no_acknowledged_step_and_changes_no_result(lab: Lab) -> None:
    for at, boundary in enumerate(BOUNDARIES):
        tag = f"x{at}"
        point = boundary.replace("x-", f"{tag}-")
        lab.close_gate(point)
        id = await lab.start(bodies.three, tag, id=tag)
        await lab.noted(f"at {point}")
        await lab.kill()
        lab.open_gate(point)
        await lab.up()
        assert await lab.result(id) == [f"X{at}-{each}" for each in "ABC"]
        where, step = point.split()
        runs = {name: lab.count(f"ran {tag}-{name}") for name in "abc"}
        expected = {name: 2 if where == "after" and step.endswith(name) else 1 for name in "abc"}
        assert runs == expected, f"killed {boundary}"


async def test_result_is_there_after_a_kill_and_nothing_runs_again(lab: Lab) -> None:
    id = await lab.start(bodies.three, "x")
    assert await lab.result(id) == ["X-A", "X-B", "X-C"]
    await lab.restart()
    assert await lab.result(id) == ["X-A", "X-B", "X-C"]
    assert [lab.count(f"ran x-{name}") for name in "abc"] == [1, 1, 1]


async def test_step_that_fails_twice_is_tried_three_times_with_its_waits_in_between(lab: Lab) -> None:
    assert await lab.run(bodies.patient, "p") == 3
    tries = [line.split() for line in lab.notes() if line.startswith("p ")]
    assert [line[1] for line in tries] == ["1", "2", "3"]
    times = [float(line[2]) for line in tries]
    assert all(later - earlier >= 0.049 for earlier, later in itertools.pairwise(times))


async def test_kill_during_the_wait_between_attempts_neither_skips_it_nor_forgets_the_count(lab: Lab) -> None:
    wait = 4.0
    id = await lab.start(bodies.very_patient, "p", wait)

    async def journaled() -> None:
        while [each["attempts"] for each in (await lab.describe(id))["journal"]] != [1]:
            await asyncio.sleep(0.01)

    await asyncio.wait_for(journaled(), 60)
    await asyncio.sleep(wait / 2)  # so that the next attempt is due long before one that waits anew would be
    await lab.restart()
    up = time.time()
    assert await lab.result(id) == 3
    tries = [line.split() for line in lab.notes() if line.startswith("p ")]
    assert [line[1] for line in tries] == ["1", "2", "3"]
    first, second, _ = (float(line[2]) for line in tries)
    assert second - first >= wait - 0.01
    assert second < up + wait, "it waited anew after the restart"


async def test_step_that_always_fails_ends_after_exactly_its_attempts_and_keeps_its_type(lab: Lab) -> None:
    with pytest.raises(Refusal) as caught:
        await lab.run(bodies.hopeless, "a")
    assert (caught.value.type, caught.value.text) == ("OutOfPaperError", "tray of a is empty")
    assert lab.count("tried a") == 3
    assert await lab.run(bodies.forgiving, "b") == "caught tray of b is empty"
    assert lab.count("tried b") == 3


async def test_non_retryable_failure_has_one_attempt_and_keeps_type_text_and_fields_across_a_kill(lab: Lab) -> None:
    with pytest.raises(Refusal) as caught:
        await lab.run(bodies.selling, "s")
    assert (caught.value.type, caught.value.text) == ("SoldOutError", "s: 2 left")
    assert caught.value.fields["sku"] == "s"
    assert caught.value.fields["left"] == 2
    id = await lab.start(bodies.careful_selling, "t")
    awakeable = await lab.awakeable(id)
    await lab.restart()
    await lab.ask("resolve", awakeable=awakeable, value=1)
    assert await lab.result(id) == ["SoldOutError", "t: 2 left", "t", 2]
    assert (lab.count("sold s"), lab.count("sold t")) == (1, 1)


async def test_result_that_cannot_be_encoded_is_one_clear_error(lab: Lab) -> None:
    with pytest.raises(Refusal, match="step 'gives_object'") as caught:
        await lab.run(bodies.unencodable, "u")
    assert caught.value.type == "Unencodable"
    assert lab.count("gave u") == 1


DEADLY = [
    (bodies.deadly_step, 5),
    (bodies.deadly_body, 5),
    (bodies.deadly_at_once, 5),
    (bodies.deadly_second_step, 6),  # its first claim brought a result, and five more brought none
]


@kept_turns_only
@pytest.mark.parametrize(("workflow", "deaths"), DEADLY, ids=[workflow.name for workflow, _ in DEADLY])
async def test_what_kills_its_worker_five_times_is_paused_before_a_sixth(
    lab: Lab, workflow: bodies.Deadly, deaths: int
) -> None:
    lab.close_gate("deadly d")
    waiting = await lab.start(bodies.asks, "bystander")
    awakeable = await lab.awakeable(waiting)
    await lab.noted("ran bystander-asked")
    id = "d"
    with pytest.raises(GoneError):
        await asyncio.gather(lab.start(workflow, "d", id=id), lab.result(waiting))
    for _ in range(deaths):
        await lab.died()
        await lab.up()
    await lab.has_status(id, "paused")
    assert lab.count("deadly d") == deaths
    found = await lab.describe(id)
    assert "5 workers in a row died" in found["paused_because"]
    assert "5 workers in a row died" in lab.report()
    assert await lab.run(bodies.three, "other") == ["OTHER-A", "OTHER-B", "OTHER-C"]
    await lab.ask("resolve", awakeable=awakeable, value="went on")
    assert await lab.result(waiting) == "went on"
    lab.open_gate("deadly d")
    await lab.ask("resume", id=id)
    assert await lab.result(id) in ("d lives", "D-LAST")
    assert lab.count("deadly d") == deaths + 1


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_what_a_worker_leaves_when_it_ends_under_load_is_finished_after_restart(
    make_lab: MakeLab, how: str, seed: int
) -> None:
    chance = random.Random(seed)
    lab = await make_lab(max_concurrent=10)
    loads = [(f"n{at}", [chance.uniform(0, 0.05) for _ in range(3)]) for at in range(40)]
    ids = await lab.start_many(bodies.busy, loads)
    await asyncio.sleep(chance.uniform(0.05, 0.2))
    if how == "stop":
        await lab.stop()
    else:
        await lab.kill()
    await lab.up()
    assert await lab.results(ids) == [3] * 40
    runs = [lab.count(f"ran {tag}-{at}") for tag, _ in loads for at in range(3)]
    assert min(runs) == 1
    assert max(runs) <= (1 if how == "stop" else 2)
    assert sum(runs) <= 120 + (0 if how == "stop" else 10)


async def test_step_interrupted_by_a_graceful_stop_runs_again_and_its_stop_is_no_outcome(lab: Lab) -> None:
    lab.close_gate("after x-b")
    id = await lab.start(bodies.three, "x")
    await lab.noted("at after x-b")
    await lab.stop(grace=0.1)  # returns, although the step would never end
    lab.open_gate("after x-b")
    await lab.up()
    assert await lab.result(id) == ["X-A", "X-B", "X-C"]
    assert [lab.count(f"ran x-{name}") for name in "abc"] == [1, 2, 1]
