"""Periodically finds stuck invocations and keys, reports and repairs them.

Every unsettled invocation has a delivery, a wake or a position in a key queue, or waits for a message from outside
(`stores.liveness`). Operators delete messages, backups are restored in part, and programs have bugs. So one process
with workers at a time searches for invocations that will never be delivered to a worker, for keys that will never be
granted, for reserved ids without a queued start, which clients leave that die while they submit, and for messages that
the server would not deliver (`consumers`).

The subjects of the queue name all invocations that will be delivered; only the journals of others are read, at a
limited rate. A suspect is checked again some leases later. If it has not changed, it is reported and gets a wake, a
look at its key, or its start queued. All of these are hints, for which a worker checks the journal: the janitor writes
to no journal, and two janitors that do the same do no harm.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from functools import partial

from msgspec import Struct

from perdure.core.effects import Release
from perdure.core.history import History
from perdure.core.journal import CallChild, Start
from perdure.core.lifecycle import SETTLED
from perdure.errors import StoreClosed, StoreDamaged, StoreError
from perdure.stores.jetstream.care.consumers import Consumers
from perdure.stores.jetstream.index.projection import Projection
from perdure.stores.jetstream.journal.journals import Journals, Tail
from perdure.stores.jetstream.keys.keys import Keys
from perdure.stores.jetstream.layout.subjects import Layout, token
from perdure.stores.jetstream.ownership.leases import Leases
from perdure.stores.jetstream.wire.protocol import WrongSequence
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.liveness import Waits, owed
from perdure.stores.port import Clock, Key

PERIOD_SECONDS = 600.0
"""The time from the beginning of one round to the next, in any process."""
TRIES_IN_A_PERIOD = 4
"""How often each process with workers tries to make the next round."""
PATIENCE_LEASES = 3
"""For how many leases a suspect must stay unchanged before it is repaired."""
SHARE = 0.1
"""The fraction of its time for which a round may keep the store busy."""
PAGE_LIMIT = 2_000
"""Ids or keys that are read from the index at a time."""
LOOKS_LIMIT = 20
"""Journals that are read concurrently."""
SUSPECTS_LIMIT = 10_000
"""Suspects that are collected before they are checked again and repaired."""

Queue = Callable[[Start], Awaitable[bool]]

log = logging.getLogger("perdure.jetstream")


class Invocation(Struct, frozen=True):
    """An invocation that will not be delivered: the end of its journal, what is wrong, and the repair."""

    id: str
    sequence: int
    says: str
    wakes: str = ""  # the invocation to wake,
    start: Start | None = None  # or the start to queue


class HeldUp(Struct, frozen=True):
    """A key that will not be granted: its holder, what is wrong, and the invocation to wake, if any."""

    name: str
    holder: str | None
    generation: int
    says: str
    wakes: str = ""
    released: bool = False  # no holder is left that could release it


Suspect = Invocation | HeldUp


class Janitor:
    """The janitor of one store. `run` is for processes with workers."""

    def __init__(
        self,
        wire: Wire,
        layout: Layout,
        journals: Journals,
        keys: Keys,
        leases: Leases,
        projection: Projection,
        clock: Clock,
        queue: Queue,
        period: float = PERIOD_SECONDS,
    ) -> None:
        self._wire = wire
        self._layout = layout
        self._keys = keys
        self._leases = leases
        self._projection = projection
        self._clock = clock
        self._queue = queue
        self._period = period
        self._shared = self._journals = journals
        self._consumers = Consumers(wire, layout)

    async def run(self) -> None:
        """Make rounds, whenever no other process does, until the store is closed."""
        while True:
            await asyncio.sleep(self._period / TRIES_IN_A_PERIOD * random.uniform(0.5, 1.0))  # noqa: S311  jitter
            try:
                if self._leases.holdings.members and self._wire.is_up and await self._is_our_turn():
                    await self.round()
            except StoreClosed:
                return
            except StoreError as error:
                log.error("the check for stuck invocations failed; the next is due in %g s: %s", self._period, error)
            except Exception:
                log.exception("the check for stuck invocations failed; the next is due in %g s", self._period)

    async def _is_our_turn(self) -> bool:
        """Take the turn unless another process has it: a record that the server expires after one period."""
        headers = b"Nats-TTL: %ds\r\n" % max(1, int(self._period))
        try:
            await self._wire.store(self._layout.janitor(), b"", expected=0, headers=headers)
        except WrongSequence:
            return False
        return True

    async def round(self, patience: float | None = None) -> list[str]:
        """Check everything once, and repair; return the lines that were logged. `patience` is in seconds."""
        if patience is None:
            patience = PATIENCE_LEASES * self._leases.lease
        self._journals = self._shared.apart()  # a separate cache: the workers' tails must not be replaced
        done: list[str] = []
        suspects: list[Suspect] = []
        idle, passed_over, began = await self._consumers.idle(), await self._consumers.passed_over(), self._wire.now()
        async for suspect in self._suspects(self._clock.now() - patience):
            suspects.append(suspect)
            if len(suspects) == SUSPECTS_LIMIT:
                done += await self._check_again_and_repair(suspects, patience)
                suspects = []
        done += await self._check_again_and_repair(suspects, patience)
        if idle or passed_over:
            await asyncio.sleep(max(0.0, began + patience - self._wire.now()))
            done += await self._consumers.queue_again(passed_over & await self._consumers.passed_over())
            again = await self._consumers.idle()
            done += await self._consumers.remove(dict(idle.items() & again.items()))
        return done

    # --- suspects -----------------------------------------------------------------------------------------------------
    async def _suspects(self, before: float) -> AsyncGenerator[Suspect, None]:
        """Iterate over the suspects that have not changed in the index since `before`."""
        for partition in range(self._layout.partitions):
            queued = await self._queued_ids(partition)
            unsettled = partial(self._projection.unsettled, partition, before, PAGE_LIMIT)
            async for ids in self._pages(unsettled):
                left = [id for id in ids if token(id) not in queued]
                for suspect in await self._slowly(self._look_at, left):
                    yield suspect
        async for keys in self._pages(partial(self._projection.waited_for, PAGE_LIMIT)):
            for suspect in await self._slowly(self._look_at_key, keys):
                yield suspect

    @staticmethod
    async def _pages(read: Callable[[str], Awaitable[list[str]]]) -> AsyncGenerator[list[str], None]:
        after = ""
        while page := await read(after):
            yield page
            after = page[-1]

    async def _queued_ids(self, partition: int) -> set[str]:
        """Return the ids, as tokens, for which the queue of a partition holds a message or schedule."""
        found: set[str] = set()
        stream = self._layout.stream("Q", partition)
        for kind, position in (("start.", 5), ("msg.", 4), ("to.", 5), ("key.", 5)):
            async for subject in self._projection.subjects(stream, f"{self._layout.namespace}.q.{partition}.{kind}>"):
                found.add(subject.split(".")[position])
        async for subject in self._projection.subjects(stream, f"{self._layout.namespace}.t.{partition}.>"):
            found.add(subject.split(".")[3])
        return found

    async def _slowly(self, look: Callable[[str], Awaitable[Suspect | None]], names: list[str]) -> list[Suspect]:
        """Look at some at a time, at a limited rate."""
        found: list[Suspect] = []
        for at in range(0, len(names), LOOKS_LIMIT):
            began = self._wire.now()
            found += filter(None, await asyncio.gather(*map(look, names[at : at + LOOKS_LIMIT])))
            await asyncio.sleep((self._wire.now() - began) * (1 / SHARE - 1))
        return found

    # --- invocations --------------------------------------------------------------------------------------------------
    async def _look_at(self, id: str) -> Invocation | None:
        """Return what is wrong with an invocation, if anything."""
        try:
            frames, tail = await self._journals.read(id)
            if tail.facts.kind == "reserved":
                return await self._look_at_reserved(id, tail)
        except StoreDamaged as error:
            log.warning("%s", error)
            return None
        if tail.facts.kind != "frame" or tail.facts.status in SETTLED:
            return None
        found = await self._owed(id, tail, History.of(frames), Waits.of(frames))
        return None if found is None or await self._has_delivery(id, tail.facts.key) else found

    async def _look_at_reserved(self, id: str, tail: Tail) -> Invocation | None:
        """Return what is wrong with a reserved id: its start may be queued nowhere."""
        start = await self._journals.start(id)
        if start is None or await self._has_delivery(id, start.key):
            return None
        return Invocation(id, tail.sequence, "its id is reserved, but its start is queued nowhere", start=start)

    async def _owed(self, id: str, tail: Tail, history: History, waits: Waits) -> Invocation | None:
        """Return what an invocation without a delivery is owed, according to its journal."""
        if history.outcome is not None or history.start is None:
            return None
        if history.claimed:
            return Invocation(id, tail.sequence, "it would not be delivered to another worker if its owner died", id)
        if history.paused is not None:
            return None
        for says in owed(history, waits, None):
            return Invocation(id, tail.sequence, says, id)
        return await self._children(id, tail, waits)

    async def _children(self, id: str, tail: Tail, waits: Waits) -> Invocation | None:
        """Return what is wrong with the children of an invocation: one may have ended without reporting its outcome."""
        children = {each.start.id: each.start for each in waits.commands.values() if isinstance(each, CallChild)}
        tails = await self._journals.tails([*children]) if children else {}
        for child, end in tails.items():
            has_ended = end.has_frames and end.facts.status in SETTLED
            if not has_ended and end.facts.kind not in ("none", "gone"):
                continue
            if await self._has_delivery(child, children[child].key):
                continue
            if has_ended:
                return Invocation(
                    id, tail.sequence, f"its child {child} has ended without reporting its outcome", child
                )
            return Invocation(id, tail.sequence, f"its child {child} does not exist", id)
        return None

    async def _has_delivery(self, id: str, key: str | None) -> bool:
        """Ask the leaders whether there is any message or schedule for an invocation."""
        layout = self._layout
        own = layout.stream("Q", layout.partition(id))
        sources = [(own, each) for each in (layout.any_start(id), layout.messages(id), layout.all_passed_on(id))]
        sources.append((own, layout.schedules(id)))
        if key is not None:
            keyed = layout.stream("Q", layout.partition(key))
            subjects = (layout.key_positions(key, id), layout.delayed(id, key), layout.nudge(key, token(id)))
            sources += [(keyed, each) for each in subjects]
        for stream, subject in sources:
            if await self._wire.last(stream, subject) is not None:
                return True
        return False

    # --- keys ---------------------------------------------------------------------------------------------------------
    async def _look_at_key(self, name: str) -> HeldUp | None:
        """Return what is wrong with a key for which an invocation waits, if anything."""
        if not await self._keys.waiting(name):
            return None
        key = await self._keys.read(name)
        subject = self._layout.nudge(name, "look")
        if await self._wire.last(self._layout.stream_of(subject), subject) is not None:
            return None
        holder, generation = key.holder, key.generation
        if holder is None:
            return HeldUp(name, None, generation, "it has no holder, but invocations wait for it")
        if await self._has_position(name, key):
            return HeldUp(name, holder, generation, f"it was granted to {holder}, which was not woken")
        tail = await self._journals.tail(holder)
        has_settled = tail.has_frames and tail.facts.status in SETTLED
        if not has_settled and tail.facts.kind not in ("none", "gone"):
            return None
        if await self._has_delivery(holder, name):
            return None
        if has_settled:
            return HeldUp(name, holder, generation, f"{holder} has ended without releasing it", holder)
        return HeldUp(name, holder, generation, f"its holder {holder} does not exist", released=True)

    async def _has_position(self, name: str, key: Key) -> bool:
        assert key.holder is not None
        subject = self._layout.key_position(name, key.holder, key.generation)
        return await self._wire.last(self._layout.stream_of(subject), subject) is not None

    # --- repairs ------------------------------------------------------------------------------------------------------
    async def _check_again_and_repair(self, suspects: Iterable[Suspect], patience: float) -> list[str]:
        """Check suspects again after `patience` seconds, and repair those that have not changed."""
        invocations = {each.id: each for each in suspects if isinstance(each, Invocation)}
        keys = {each.name: each for each in suspects if isinstance(each, HeldUp)}
        if not invocations and not keys:
            return []
        await asyncio.sleep(patience)
        again = await self._slowly(self._look_at, [*invocations])
        again += await self._slowly(self._look_at_key, [*keys])
        before: list[Suspect] = [*invocations.values(), *keys.values()]
        return [await self._repair(each) for each in again if each in before]

    async def _repair(self, suspect: Suspect) -> str:
        said = _say(suspect)
        log.warning("%s", said)
        if isinstance(suspect, HeldUp):
            await self._free(suspect)
        elif suspect.start is not None:
            await self._queue(suspect.start)
        else:
            await self._leases.wake_now(suspect.wakes)
        return said

    async def _free(self, key: HeldUp) -> None:
        if key.wakes:
            await self._leases.wake_now(key.wakes)
        elif key.released and key.holder is not None:
            await self._keys.release(key.holder, Release(key.name, key.generation))
        else:
            await self._keys.ask_to_look(key.name)


def _say(suspect: Suspect) -> str:
    """Return the line to log."""
    if isinstance(suspect, HeldUp):
        does = f"waking {suspect.wakes}" if suspect.wakes else "granting it to the next"
        return f"key {suspect.name!r} would never be granted: {suspect.says}; {does}"
    if suspect.start is not None:
        return f"invocation {suspect.id} would never begin: {suspect.says}; queueing it"
    return f"invocation {suspect.id} would never continue: {suspect.says}; waking {suspect.wakes}"
