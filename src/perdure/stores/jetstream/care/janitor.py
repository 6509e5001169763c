"""Periodically finds stuck invocations and keys, reports and repairs them.

Every unsettled invocation has a delivery, a wake or a position in a key queue, or waits for a message from outside
(`stores.liveness`). Operators delete messages, backups are restored in parts, and programs have bugs: so a
worker's process, one of them at a time, looks for invocations that nothing would ever bring, and for keys that would
never be granted. Clients that die while they submit leave the third kind: an id that is taken, with a start that is
queued nowhere.

Most is seen by what is not there: the subjects of the queue name the invocations that something brings. Only of the
others journals are read, slowly. What looks wrong is looked at again some leases later; if nothing has changed, it is
reported, and gets a wake, a note to look at its key, or the start that was to be queued. All of these are hints, which
a worker that gets them checks the journal: nothing here writes to one, and two that do the same do no harm.
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
"""How long after a round has begun another one may, whichever process makes it."""
TRIES_IN_A_PERIOD = 4
"""How often each process that has workers tries to be the one."""
PATIENCE_LEASES = 3
"""For so many leases what looks wrong must stay as it is before anything is done."""
SHARE = 0.1
"""The share of its time that a round may keep the store busy, while it looks."""
PAGE_LIMIT = 2_000
"""Ids, or keys, that are taken from the index at a time."""
LOOKS_LIMIT = 20
"""Journals that are looked at together."""
SUSPECTS_LIMIT = 10_000
"""What may look wrong before it is looked at again; what else there is waits for its turn."""

Queue = Callable[[Start], Awaitable[bool]]

log = logging.getLogger("perdure.jetstream")


class Invocation(Struct, frozen=True):
    """An invocation that nothing brings: where its journal ends, what is wrong, and what would have it go on."""

    id: str
    sequence: int
    says: str
    wakes: str = ""  # the invocation to wake
    start: Start | None = None  # or what to queue


class HeldUp(Struct, frozen=True):
    """A key that is not granted: its holder, what is wrong, and the invocation to wake, if any."""

    name: str
    holder: str | None
    generation: int
    says: str
    wakes: str = ""
    released: bool = False  # no holder is left that could release it


Suspect = Invocation | HeldUp


class Janitor:
    """One for each store; `run` is for those that have workers."""

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
        """Make rounds, when it is this process's turn, until the store is closed."""
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
        """Take the turn if no process has it: a record that the server removes when the next may begin."""
        headers = b"Nats-TTL: %ds\r\n" % max(1, int(self._period))
        try:
            await self._wire.store(self._layout.janitor(), b"", expected=0, headers=headers)
        except WrongSequence:
            return False
        return True

    async def round(self, patience: float | None = None) -> list[str]:
        """Look at everything once; return what was done, as it was logged. `patience` is in seconds."""
        if patience is None:
            patience = PATIENCE_LEASES * self._leases.lease
        self._journals = self._shared.apart()  # what workers here know of their journals is not replaced
        done: list[str] = []
        suspects: list[Suspect] = []
        idle, began = await self._consumers.idle(), self._wire.now()
        async for suspect in self._suspects(self._clock.now() - patience):
            suspects.append(suspect)
            if len(suspects) == SUSPECTS_LIMIT:
                done += await self._see_to(suspects, patience)
                suspects = []
        done += await self._see_to(suspects, patience)
        if idle:
            await asyncio.sleep(max(0.0, began + patience - self._wire.now()))
            again = await self._consumers.idle()
            done += await self._consumers.remove(dict(idle.items() & again.items()))
        return done

    # --- looking ------------------------------------------------------------------------------------------------------
    async def _suspects(self, before: float) -> AsyncGenerator[Suspect, None]:
        """Iterate over what looks wrong, and has not changed in the index since a time."""
        for partition in range(self._layout.partitions):
            brought = await self._brought(partition)
            unsettled = partial(self._projection.unsettled, partition, before, PAGE_LIMIT)
            async for ids in self._pages(unsettled):
                left = [id for id in ids if token(id) not in brought]
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

    async def _brought(self, partition: int) -> set[str]:
        """Return the ids, as tokens, for which there is something in the queue of a partition, schedules included."""
        found: set[str] = set()
        stream = self._layout.stream("Q", partition)
        for kind, position in (("start.", 5), ("msg.", 4), ("to.", 5), ("key.", 5)):
            async for subject in self._projection.subjects(stream, f"{self._layout.namespace}.q.{partition}.{kind}>"):
                found.add(subject.split(".")[position])
        async for subject in self._projection.subjects(stream, f"{self._layout.namespace}.t.{partition}.>"):
            found.add(subject.split(".")[3])
        return found

    async def _slowly(self, look: Callable[[str], Awaitable[Suspect | None]], names: list[str]) -> list[Suspect]:
        """Look at some at a time, and rest in between."""
        found: list[Suspect] = []
        for at in range(0, len(names), LOOKS_LIMIT):
            began = self._wire.now()
            found += filter(None, await asyncio.gather(*map(look, names[at : at + LOOKS_LIMIT])))
            await asyncio.sleep((self._wire.now() - began) * (1 / SHARE - 1))
        return found

    # --- invocations --------------------------------------------------------------------------------------------------
    async def _look_at(self, id: str) -> Invocation | None:
        """Tell what is wrong with an invocation, if anything is."""
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
        return None if found is None or await self._is_brought(id, tail.facts.key) else found

    async def _look_at_reserved(self, id: str, tail: Tail) -> Invocation | None:
        """Tell whether an id is taken by a start that is queued nowhere."""
        start = await self._journals.start(id)
        if start is None or await self._is_brought(id, start.key):
            return None
        return Invocation(id, tail.sequence, "its id is taken and its start is queued nowhere", start=start)

    async def _owed(self, id: str, tail: Tail, history: History, waits: Waits) -> Invocation | None:
        """Tell what an invocation that nothing brings is owed by its journal."""
        if history.outcome is not None or history.start is None:
            return None
        if history.claimed:
            return Invocation(id, tail.sequence, "nothing would bring it to another worker if its own died", id)
        if history.paused is not None:
            return None
        for says in owed(history, waits, None):
            return Invocation(id, tail.sequence, says, id)
        return await self._children(id, tail, waits)

    async def _children(self, id: str, tail: Tail, waits: Waits) -> Invocation | None:
        """Tell whether an invocation waits for a child that will not tell it how it ended."""
        children = {each.start.id: each.start for each in waits.commands.values() if isinstance(each, CallChild)}
        tails = await self._journals.tails([*children]) if children else {}
        for child, end in tails.items():
            has_ended = end.has_frames and end.facts.status in SETTLED
            if not has_ended and end.facts.kind not in ("none", "gone"):
                continue
            if await self._is_brought(child, children[child].key):
                continue
            if has_ended:
                return Invocation(id, tail.sequence, f"its child {child} has ended, and it is not told", child)
            return Invocation(id, tail.sequence, f"its child {child} does not exist", id)
        return None

    async def _is_brought(self, id: str, key: str | None) -> bool:
        """Ask the leaders whether there is anything that brings an invocation."""
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
        """Tell what is wrong with a key for which an invocation waits, if anything is."""
        if not await self._keys.waiting(name):
            return None
        key = await self._keys.read(name)
        subject = self._layout.nudge(name, "look")
        if await self._wire.last(self._layout.stream_of(subject), subject) is not None:
            return None
        holder, generation = key.holder, key.generation
        if holder is None:
            return HeldUp(name, None, generation, "it has no holder, and others wait for it")
        if await self._has_position(name, key):
            return HeldUp(name, holder, generation, f"it was granted to {holder}, which has not been told")
        tail = await self._journals.tail(holder)
        has_settled = tail.has_frames and tail.facts.status in SETTLED
        if not has_settled and tail.facts.kind not in ("none", "gone"):
            return None
        if await self._is_brought(holder, name):
            return None
        if has_settled:
            return HeldUp(name, holder, generation, f"{holder} has ended and has not released it", holder)
        return HeldUp(name, holder, generation, f"its holder {holder} does not exist", released=True)

    async def _has_position(self, name: str, key: Key) -> bool:
        assert key.holder is not None
        subject = self._layout.key_position(name, key.holder, key.generation)
        return await self._wire.last(self._layout.stream_of(subject), subject) is not None

    # --- doing --------------------------------------------------------------------------------------------------------
    async def _see_to(self, suspects: Iterable[Suspect], patience: float) -> list[str]:
        """Look again, some leases later, and have go on what is still the same."""
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
    """Return what is logged of it."""
    if isinstance(suspect, HeldUp):
        does = f"{suspect.wakes} is woken" if suspect.wakes else "it is granted to the next"
        return f"key {suspect.name!r} would never be granted: {suspect.says}; {does}"
    if suspect.start is not None:
        return f"invocation {suspect.id} would never begin: {suspect.says}; it is queued now"
    return f"invocation {suspect.id} would never go on: {suspect.says}; {suspect.wakes} is woken"
