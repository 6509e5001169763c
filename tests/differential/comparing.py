"""Waits until every store has delivered and told what the first has, or says how they differ."""

from __future__ import annotations

import asyncio
import time

from perdure.stores.port import Filter
from tests.differential import normal
from tests.differential.sides import Side, name_of
from tests.differential.state import SOON_SECONDS, State


class Difference(Exception):
    """The stores differ after an operation."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"after operation {number}: {what}")
        self.number = number
        self.what = what


class Comparison:
    """Compares what is in hand from each store, and what those that wait were told."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def settled(self, number: int) -> str:
        """Wait until all agree, and return what is in hand. Raises `Difference`."""
        for _ in range(6):
            await asyncio.sleep(0)
        deadline = time.monotonic() + self._state.patience
        pause = 0.0
        while True:
            differing = await self._differing()
            if differing is None:
                break
            if time.monotonic() > deadline:
                raise Difference(number, differing)
            await asyncio.sleep(pause)
            pause = min(pause + 0.001, 0.05)
        await self._learn_what_stores_did()
        for side in self._state.sides:
            if side.faults:
                raise Difference(number, f"{side.name}: {'; '.join(side.faults)}")
        return _shown(self.held(self._state.first))

    async def _differing(self) -> str | None:
        """Say how a store differs from the first in what it has delivered and told, if one does."""
        expected = self._state.first
        for side in self._state.sides:
            self.acknowledge_hints(side)
        held, told = self.held(expected), self._told(expected)
        begun = await self._begun_by_store(expected)
        for side in self._state.sides[1:]:
            if (found := self.held(side)) != held:
                return f"in hand from {side.name}: {_shown(found)}; from {expected.name}: {_shown(held)}"
            if (found := self._told(side)) != told:
                return f"told by {side.name}: {found}; by {expected.name}: {told}"
            if (found := await self._begun_by_store(side)) != begun:
                return f"settled by {side.name} itself: {found}; by {expected.name}: {begun}"
        return self._misordered()

    def held(self, side: Side) -> dict[str, set[str]]:
        return side.compared({id: body.history.messages for id, body in self._state.bodies.items() if body.frames})

    def acknowledge_hints(self, side: Side) -> None:
        """Do what a worker does with that for which there is nothing to do."""
        first = self._state.first.held()
        for id, names in side.held().items():
            idle = {name for name in names if self._is_idle(id, name, names, first.get(id, set()))}
            subscription = side.subscription(self._state.starts[id].handler)
            for each in side.take(id, lambda each, idle=idle: name_of(each) in idle):
                subscription.acknowledge(each)
                if name_of(each) == "start":
                    subscription.request(1)
                    side.forget_arrival(id)

    def _is_idle(self, id: str, name: str, names: set[str], first: set[str]) -> bool:
        """Tell whether one of these deliveries of an invocation is one that a store need not make.

        A start may come of what the store has cancelled itself. A wake that was replaced may still come. A message with
        which the journal has dealt may come again, also as what brings a claim. A store may drop the wake of what is
        claimed: the claim brings it, unless it is paused, and then a message must.
        """
        body = self._state.bodies.get(id)
        if name == "start":
            return body is None or body.is_settled_by_store
        if name == "wake":
            is_paused = body is not None and body.history.status == "paused" and body.history.claimed
            return name not in first or (is_paused and names == {"wake"})
        if body is None or name in first or name.removeprefix("message ") not in body.history.messages:
            return False
        return "wake" not in first

    def _misordered(self) -> str | None:
        """Say where the order differs.

        What came before has no order when it comes again. A message for an invocation with a time limit may have come
        before its start, see `Side.compared`.
        """
        first = self._state.first
        for side in self._state.sides[1:]:
            if (found := side.arrived) != first.arrived:
                return f"order of starts from {side.name}: {found}; from {first.name}: {first.arrived}"
            for id, names in self.held(side).items():
                if len(names) < 2:  # a single one may stand for something else, see `Side.compared`
                    continue
                if self._state.starts[id].timeout is not None or any(each.attempt > 1 for each in side.in_hand[id]):
                    continue
                order, expected = side.order(id, names), first.order(id, names)
                if order != expected:
                    return f"order of {id} from {side.name}: {order}; from {first.name}: {expected}"
        return None

    def _told(self, side: Side) -> dict[str, str]:
        told: dict[str, str] = {}
        for name, wait in side.waits.items():
            if wait.done() and not wait.cancelled():
                told[name] = normal.told(wait)
        return told

    async def _begun_by_store(self, side: Side) -> set[str]:
        waiting = [id for id, body in self._state.bodies.items() if body.cancel_sent and not body.frames]
        return {id for id in waiting if await side.store.revision(id)}

    async def _learn_what_stores_did(self) -> None:
        """Take note of what the stores cancelled themselves."""
        for id in await self._begun_by_store(self._state.first):
            self._state.bodies[id].frames = [*(await self._state.first.store.journal(id)).frames]
            for side in self._state.sides:
                side.revisions[id] = [await side.store.revision(id)]

    # --- time passes --------------------------------------------------------------------------------------------------
    async def soon(self) -> None:
        """Let what is due soon become due."""
        if self._state.clock is not None:
            self._state.clock.move_to(self._state.clock.now() + 2 * SOON_SECONDS)
        else:
            await asyncio.sleep(1.2 * SOON_SECONDS)
        await self.all_due_is_queued()

    async def _is_late(self, side: Side) -> bool:
        rows = [await side.store.row(id) for id, body in self._state.bodies.items() if not body.frames]
        rows += await side.store.search(Filter(status="scheduled"))
        return any(row is not None and row.status == "scheduled" and row.due <= self._state.now() for row in rows)

    async def all_due_is_queued(self) -> None:
        """Wait until no store says of a start that is due that it is not: this takes it a write."""
        deadline = time.monotonic() + self._state.patience
        for side in self._state.sides:
            while await self._is_late(side):
                if time.monotonic() > deadline:
                    side.faults.append("a start that is due is not queued")
                    return
                await asyncio.sleep(0.001)


def _shown(held: dict[str, set[str]]) -> str:
    return "; ".join(f"{id}: {', '.join(sorted(names))}" for id, names in sorted(held.items())) or "nothing"
