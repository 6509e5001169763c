"""Random programs over keys, while workers are killed: state and results are those of a model.

    PERDURE_RUNS=50 pytest tests/scenarios/test_random_programs.py -k sqlite        many runs, each with its own seed
    PERDURE_RUNS=50 pytest tests/jetstream/test_scenarios.py -k random_programs     the same on a server
    PERDURE_SEED=123 pytest ...                                                     one seed again: programs and kills

What is written, and what must come of it: perdure.testing.programs. Who is killed: tests/scenarios/fleet.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
import pytest

from perdure.testing.programs import KEYS, Author, Model, Outcome, Program, encode
from tests.scenarios.engine import Ended
from tests.scenarios.fleet import Fleet
from tests.scenarios.interpreter import mended
from tests.scenarios.lab import Refusal

RUNS = int(os.environ.get("PERDURE_RUNS") or 3)
ROOTS = 30
GROUP_LIMIT = 5
"""So many are started at a time, at most."""
KILLS = 4
"""One less than deaths in a row that set an invocation aside."""
BETWEEN_KILLS_SECONDS = 0.3
PAUSES = 5
DELAY_SECONDS = 0.03
"""In every other run, deliveries to workers are late by up to so much, each by itself: they overtake each other."""
SETTLE_SECONDS = 90.0
LOOK_SECONDS = 0.05
RETRY_SECONDS = 0.2
"""How long a retry is waited for; one whose key is taken stays."""

MakeFleet = Callable[..., Awaitable[Fleet]]


@pytest.mark.parametrize("run", range(RUNS))
async def test_random_programs_come_to_what_a_model_says_while_workers_are_killed(
    make_fleet: MakeFleet, seed: int, run: int
) -> None:
    roots = Author(random.Random(seed)).programs(ROOTS)
    model = Model(roots)
    fleet = await make_fleet(delay=DELAY_SECONDS * (seed % 2))
    async with asyncio.TaskGroup() as group:
        answering = group.create_task(answer(fleet))
        killing = group.create_task(kill_some(fleet, random.Random(seed + 1)))
        pausing = group.create_task(pause_some(fleet, roots, random.Random(seed + 2)))
        await submit(fleet, roots, random.Random(seed + 3))
        await asyncio.wait([killing, pausing])
        found = await settled(fleet, model)
        answering.cancel()
    states = {key: await fleet.ask("state", key=key) for key in KEYS}
    assert model.differences(states, found) == []
    assert await fleet.ask("flaws", ids=await fleet.ask("list", handler="interpret")) == []


async def submit(fleet: Fleet, roots: list[Program], chance: random.Random) -> None:
    """Start programs, a few at a time. Whose answer is lost is started again: the id is the same."""
    at = 0
    while at < len(roots):
        group = roots[at : at + chance.randint(1, GROUP_LIMIT)]
        at += len(group)
        await fleet.ask(
            "start_each", handler="interpret", many=[[[encode(each).decode()], options(each)] for each in group]
        )
        await asyncio.sleep(chance.random() * BETWEEN_KILLS_SECONDS * KILLS * len(group) / ROOTS)


def options(program: Program) -> dict[str, Any]:
    found: dict[str, Any] = {"id": program.tag, "key": program.key, "delay": program.delay or None}
    return {name: value for name, value in found.items() if value is not None}


async def kill_some(fleet: Fleet, chance: random.Random) -> None:
    for _ in range(KILLS):
        await asyncio.sleep(chance.random() * 2 * BETWEEN_KILLS_SECONDS)
        await fleet.kill_one(chance)


async def pause_some(fleet: Fleet, roots: list[Program], chance: random.Random) -> None:
    """Pause programs for a moment, wherever they are; those that have ended or not begun refuse."""
    for _ in range(PAUSES):
        await asyncio.sleep(chance.random() * BETWEEN_KILLS_SECONDS)
        id = chance.choice(roots).tag
        for verb in ("pause", "resume"):
            with contextlib.suppress(Refusal):
                await fleet.ask(verb, id=id)


async def answer(fleet: Fleet) -> None:
    """Answer what programs ask, each once; who was killed before it said so is told again."""
    answered: set[str] = set()
    while True:
        for note in fleet.lab.notes():
            word, _, rest = note.partition(" ")
            awakeable, _, said = rest.partition(" ")
            if word == "ask" and awakeable not in answered:
                answered.add(awakeable)
                await answer_one(fleet, awakeable, *said.split())
        await asyncio.sleep(LOOK_SECONDS)


async def answer_one(fleet: Fleet, awakeable: str, value: str, rejected: str) -> None:
    try:
        if int(rejected):
            await fleet.ask("reject", awakeable=awakeable, reason=value)
        else:
            await fleet.ask("resolve", awakeable=awakeable, value=value)
    except Refusal as refusal:
        if refusal.type != "MessageRefused":  # the answer to the first time was lost
            raise


async def settled(fleet: Fleet, model: Model) -> dict[str, Outcome]:
    """Wait until all have ended that must, and return what became of them by tag; retry those that fail until then.

    A pause may come late: who was killed before it was answered asks again, and resumes what is paused already.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        found = msgspec.convert(await fleet.ask("endings"), Ended)
        if not found.left and not found.broken and model.must_end() <= found.outcomes.keys():
            assert found.flaws == []
            return found.outcomes
        for id, tag in found.broken.items():
            fleet.lab.close_gate(mended(tag))
            with contextlib.suppress(Refusal):  # it is retried already, or waits for its key
                await fleet.ask("retry", id=id, timeout=RETRY_SECONDS)
        for id, status in found.left.items():
            if status == "paused":
                with contextlib.suppress(Refusal):
                    await fleet.ask("resume", id=id)
        assert time.monotonic() < deadline, f"{found.left}; {await left(fleet, found.left)}"
        await asyncio.sleep(LOOK_SECONDS)


async def left(fleet: Fleet, ids: Iterable[str]) -> list[dict[str, Any]]:
    """Describe some that have not ended."""
    return [await fleet.ask("describe", id=id) for id in itertools.islice(ids, 5)]
