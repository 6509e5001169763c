"""Load and limits: what several workers do at once, and what replay costs. Work is counted, not time."""

from __future__ import annotations

import asyncio
import random

from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab, kept_turns_only
from tests.scenarios.lab import Lab, until


async def test_workers_that_crash_at_random_never_pass_their_limit_and_leak_no_slot(
    make_lab: MakeLab, seed: int
) -> None:
    chance = random.Random(seed)
    lab = await make_lab(workers=4, max_concurrent=3)
    loads = [[f"n{at}", [chance.uniform(0, 0.03) for _ in range(4)]] for at in range(60)]
    ids = await lab.start_many(bodies.busy, loads)
    alive = [0, 1, 2, 3]
    for _ in range(8):
        await asyncio.sleep(chance.uniform(0.01, 0.08))
        victim = alive.pop(chance.randrange(4))
        await lab.ask("crash_worker", number=victim)
        alive.append(await lab.ask("start_worker"))
    assert await lab.results(ids, 9) == [4] * 60, lab.report()
    assert (await lab.work()).peak <= 3

    async def free() -> bool:
        return await lab.ask("slots") == [0] * 12

    await until(free)
    runs = [lab.count(f"ran {tag}-{at}") for tag, _ in loads for at in range(4)]
    assert min(runs) == 1
    assert sum(runs) <= 240 + 8 * 3


async def replay_work(lab: Lab, steps: int) -> tuple[int, int, int]:
    """Return frames in the journal, and turns and entries that one event costs after a restart."""
    id = await lab.start(bodies.many_steps, steps, 50)
    awakeable = await lab.awakeable(id)
    await lab.restart()
    frames = await lab.ask("frames", id=id)
    await lab.ask("resolve", awakeable=awakeable, value=1)
    assert await lab.result(id) == steps
    work = await lab.work()
    assert work.began == 0
    return frames, work.turns, work.entries


@kept_turns_only
async def test_replay_of_five_times_as_many_steps_is_five_times_the_work(lab: Lab) -> None:
    small = await replay_work(lab, 1_000)
    large = await replay_work(lab, 5_000)
    assert small[1] == large[1] == 1
    assert small[2] <= 1_000 + small[0] * 2 + 10
    assert large[2] <= small[2] * 5.5
    assert large[0] <= small[0] * 5.5
