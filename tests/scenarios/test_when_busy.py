"""What a start does that finds its key busy, held against a model through 200 random schedules and many crashes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from perdure.errors import StoreClosed
from tests.scenarios import keyed
from tests.scenarios.lab import GoneError, Lab, Refusal, until

SCHEDULES = 200
KILLS = 8
RULES = ("enqueue", "reject", "interrupt", "rollback")


@dataclass
class Model:
    """One key: what has it and waits for it, the first first, what is set in it, and how each start ended."""

    queue: list[str] = field(default_factory=list[str])
    seen: list[str] = field(default_factory=list[str])
    ended: dict[str, str] = field(default_factory=dict[str, str])

    def start(self, id: str, rule: str) -> None:
        if self.queue and rule == "reject":
            self.ended[id] = f"KeyBusy {self.queue[0]}"
            return
        if self.queue and rule in ("interrupt", "rollback"):
            if rule == "interrupt":
                self.seen.append(self.queue[0])
            self.ended |= dict.fromkeys(self.queue, "InvocationCancelled")
            self.queue = []
        self.queue.append(id)

    def finish(self) -> None:
        holder = self.queue.pop(0)
        self.seen.append(holder)
        self.ended[holder] = "done"


async def in_spite_of_kills(ask: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
    """Ask again while the process is gone."""
    while True:
        try:
            return await ask(*args, **options)
        except (GoneError, StoreClosed):
            await asyncio.sleep(0.01)


async def ended(lab: Lab, id: str) -> str:
    try:
        return await in_spite_of_kills(lab.result, id)
    except Refusal as refusal:
        return " ".join(filter(None, (refusal.type, refusal.fields.get("holder"))))


async def follow(lab: Lab, key: str, seed: int) -> None:
    """Carry out one schedule, and compare at every rest."""
    chance, model = random.Random(seed), Model()
    for n in range(chance.randint(3, 6)):
        before = len(model.ended)
        if model.queue and chance.random() < 0.3:
            holder = await in_spite_of_kills(lab.awakeable, model.queue[0])
            await in_spite_of_kills(lab.ask, "resolve", awakeable=holder, value="done")
            model.finish()
        else:
            id, rule = f"{key}-{n}", chance.choice(RULES)
            options = {"id": id, "key": key, "when_busy": rule, "delay": chance.choice([None, 0.05])}
            await in_spite_of_kills(lab.start, keyed.listed, id, **options)
            model.start(id, rule)
            if len(model.queue) > 1 and chance.random() < 0.5 and options["delay"] is None:
                continue  # the next follows at once
        for id in [*model.ended][before:]:
            assert await ended(lab, id) == model.ended[id], (key, seed, id)
        if model.queue:  # what the last has set is durable once it waits
            await in_spite_of_kills(lab.awakeable, model.queue[0])
            for id in model.queue[1:]:
                await in_spite_of_kills(lab.has_status, id, "pending")
    while model.queue:
        holder = await in_spite_of_kills(lab.awakeable, model.queue[0])
        await in_spite_of_kills(lab.ask, "resolve", awakeable=holder, value="done")
        model.finish()
        assert await ended(lab, [*model.ended][-1]) == "done", (key, seed)

    async def agrees() -> bool:
        return (await in_spite_of_kills(lab.state, key)).get("seen", []) == model.seen

    try:
        await until(agrees)
    except TimeoutError:
        raise AssertionError(f"{key} {seed}: {await lab.state(key)}, and the model says {model.seen}") from None


async def test_random_schedules_end_as_the_model_says_wherever_workers_die(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    following = asyncio.gather(*(follow(lab, f"k{n}", chance.randrange(2**32)) for n in range(SCHEDULES)))
    for _ in range(KILLS):
        await asyncio.sleep(chance.uniform(0.05, 6 if lab.store == "jetstream" else 0.6))  # they take a minute there
        if following.done():
            break
        await lab.restart()
    await following


async def test_holder_that_is_paused_is_cancelled_once_it_goes_on(lab: Lab) -> None:
    await lab.start(keyed.listed, "a", id="a", key="k")
    await lab.awakeable("a")
    await lab.ask("pause", id="a")
    await lab.start(keyed.listed, "b", id="b", key="k", when_busy="reject")
    assert await ended(lab, "b") == "KeyBusy a"
    await lab.start(keyed.listed, "c", id="c", key="k", when_busy="interrupt")
    await asyncio.sleep(0.2)
    assert (await lab.status("a"), await lab.status("c")) == ("paused", "pending")
    await lab.ask("resume", id="a")
    assert await ended(lab, "a") == "InvocationCancelled"
    await lab.awakeable("c")
    await lab.ask("cancel", id="c")
