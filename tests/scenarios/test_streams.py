"""Streams: no gap and no repetition, whatever dies; attempts are told apart; nothing of who has lost the invocation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import groupby
from typing import Any

from perdure.core.history import DEATHS_LIMIT
from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab
from tests.scenarios.fleet import Fleet
from tests.scenarios.lab import Lab

Item = tuple[int, str, int | None, int]
"""Its number, its value, and the step and attempt that wrote it."""


async def items_of(fleet: Lab | Fleet, id: str, name: str, start: int = 0, count: int | None = None) -> list[Item]:
    found: Any = await fleet.ask("items", id=id, name=name, start=start, count=count)
    return [(offset, value, step, attempt) for offset, value, step, attempt in found]


def check_words(items: list[Item], tag: str, speeches: int, count: int) -> None:
    """Check a whole stream: each number once; what the body wrote once; of each step, attempts of whole beginnings."""
    assert [item[0] for item in items] == [*range(len(items))]
    by_body = [value for _, value, step, _ in items if step is None]
    assert by_body == [f"{tag} announces {n}" for n in range(speeches)]
    by_step = [(value, step, attempt) for _, value, step, attempt in items if step is not None]
    last: dict[int, list[str]] = {}
    for (step, attempt), some in groupby(by_step, lambda each: each[1:]):
        values = [value for value, _, _ in some]
        number = len(last) if step not in last else len(last) - 1
        assert values == [f"{tag}-{number} {n}" for n in range(len(values))], (step, attempt)
        last[step] = values
    attempts = [attempt for (_, attempt), _ in groupby(by_step, lambda each: each[1:])]
    steps = [step for (step, _), _ in groupby(by_step, lambda each: each[1:])]
    for step in last:
        of = [attempt for attempt, each in zip(attempts, steps, strict=True) if each == step]
        assert of == sorted(set(of)), f"attempts of step {step}: {of}"
    assert [len(values) for values in last.values()] == [count] * speeches


async def test_reader_gets_each_item_once_and_in_order_while_everything_is_killed(
    make_fleet: Callable[..., Awaitable[Fleet]], seed: int
) -> None:
    fleet, chance = await make_fleet(), random.Random(seed)
    speeches, count = 4, 25
    id = await fleet.lab.start(bodies.speaks, "a", speeches, count, 0.02)
    read: list[Item] = []

    async def follow() -> None:
        while True:  # ever anew from where it is: the client's process may die as well
            some = await items_of(fleet, id, "words", len(read), chance.randrange(1, 20))
            if not some:
                return
            read.extend(some)

    reading = asyncio.create_task(follow())
    for _ in range(DEATHS_LIMIT - 1):  # that many in one step would pause it
        await asyncio.sleep(chance.uniform(0.05, 0.4))
        await fleet.kill_one(chance)
    assert await fleet.ask("result", id=id, timeout=90) == speeches
    async with asyncio.timeout(60):
        await reading
    whole = await items_of(fleet, id, "words")
    assert read == whole, fleet.lab.report()
    check_words(whole, "a", speeches, count)
    plans = [*(f"speech {n}" for n in range(speeches)), "silence"]
    assert await items_of(fleet, id, "plans") == [(n, plan, None, 1) for n, plan in enumerate(plans)]


async def test_what_a_step_wrote_before_its_process_died_stays_and_comes_again_as_the_next_attempt(lab: Lab) -> None:
    lab.close_gate("b-0 after 4")
    id = await lab.start(bodies.speaks, "b", 1, 8)
    await lab.noted("at b-0 after 4")
    before = await items_of(lab, id, "words", count=6)
    await lab.kill()
    lab.open_gate("b-0 after 4")
    await lab.up()
    assert await lab.result(id) == 1
    items = await items_of(lab, id, "words")
    assert items[:6] == before == [(0, "b announces 0", None, 1), *((n + 1, f"b-0 {n}", 0, 1) for n in range(5))]
    assert items[6:] == [(n + 6, f"b-0 {n}", 0, 2) for n in range(8)]


async def test_each_attempt_of_a_step_that_fails_is_told_apart(lab: Lab) -> None:
    id = await lab.start(bodies.stammers, "c", 3)
    assert await lab.result(id) == 3
    words = [(f"c {n}", 0, attempt) for attempt in (1, 2, 3) for n in range(3)]
    assert await items_of(lab, id, "words") == [(offset, *word) for offset, word in enumerate(words)]
    assert (await lab.describe(id))["streams"] == {"words": 9}


async def test_streams_go_on_with_a_retry_of_the_invocation(lab: Lab) -> None:
    lab.close_gate("sold out d")
    id = await lab.start(bodies.breaks_off, "d")
    await lab.has_status(id, "failed")
    assert await items_of(lab, id, "words") == [(0, "d", 0, 1)]
    await lab.restart()
    lab.open_gate("sold out d")
    await lab.ask("retry", id=id)
    assert await lab.result(id) == "d"
    assert await items_of(lab, id, "words") == [(0, "d", 0, 1), (1, "d", 0, 2)]
    assert await items_of(lab, id, "plans") == [(0, "before", None, 1), (1, "after", None, 2)]


async def test_readers_of_what_is_queued_or_writes_nothing_end_with_it(make_lab: MakeLab) -> None:
    lab = await make_lab(workers=0)
    id = await lab.start(bodies.three, "e")
    reading = asyncio.create_task(items_of(lab, id, "words"))
    await asyncio.sleep(0.05)
    assert not reading.done()
    await lab.ask("start_worker")
    assert await lab.result(id) == ["E-A", "E-B", "E-C"]
    async with asyncio.timeout(30):
        assert await reading == []
