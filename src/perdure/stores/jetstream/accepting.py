"""Makes starts and messages durable: each is stored when its future resolves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from perdure.core.journal import Message, Start, Status, encode_message, encode_start, settles_before_begin
from perdure.core.lifecycle import SETTLED
from perdure.errors import PerdureError, StoreError, StoreUnavailable, unknown
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.journals import NOTHING, Journals, Tail
from perdure.stores.jetstream.keys.keys import LIMIT, Keys
from perdure.stores.jetstream.keys.lanes import Lanes
from perdure.stores.jetstream.layout.facts import Facts, facts_of_start, lines_of
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.ownership.leases import Leases
from perdure.stores.jetstream.queue.finding import Finder
from perdure.stores.jetstream.watching import Watching
from perdure.stores.jetstream.wire.protocol import WrongSequence
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.jetstream.writing import Writing
from perdure.stores.port import Clock, id_conflict, identity_of, key_queue_full

CLOSING_SECONDS = 5.0
"""How long a post waits at most to learn whether a purge in progress removes its invocation."""
CLOSING_POLL_SECONDS = 0.05


class Accepting:
    """Makes starts and messages durable."""

    def __init__(
        self,
        wire: Wire,
        layout: Layout,
        blobs: Blobs,
        journals: Journals,
        keys: Keys,
        leases: Leases,
        finder: Finder,
        watching: Watching,
        writing: Writing,
        clock: Clock,
        key_queue_limit: int,
    ) -> None:
        self._wire = wire
        self._layout = layout
        self._blobs = blobs
        self._journals = journals
        self._keys = keys
        self._leases = leases
        self._finder = finder
        self._watching = watching
        self._writing = writing
        self._clock = clock
        self._key_queue_limit = key_queue_limit
        self._lanes = Lanes(self._enqueue)
        self.cancel_unbegun: Callable[[Message], object]  # settles an invocation whose body has not begun

    # --- starts -------------------------------------------------------------------------------------------------------

    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        if len(starts) == 1:
            start = starts[0]
            if start.is_due(self._clock.now()):
                if start.key is not None:
                    return self._writing.work(self._submit_keyed(start, self._lanes.add(start)))
                if not start.chosen:
                    data = encode_start(start)
                    if not self._blobs.is_large(data):
                        return self._submit_plain(start, data)
        return self._writing.work(self._submit(starts))

    def _submit_plain(self, start: Start, data: bytes) -> asyncio.Future[list[bool]]:
        """Queue a start with a generated id and no key: nothing has to be read before."""
        future: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        facts = facts_of_start(start, "pending", self._clock.now(), kind="start")

        def told(_: int, error: StoreError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result([True])
            elif isinstance(error, WrongSequence):
                future.set_result([False])
            else:
                future.set_exception(error)

        self._wire.put(self._layout.start(start.handler, start.id), data, told, expected=0, headers=lines_of(facts))
        return future

    async def _submit_keyed(self, _: Start, accepted: asyncio.Future[bool]) -> list[bool]:
        return [await accepted]

    async def _enqueue(self, key: str, starts: Sequence[Start], sent: bool) -> list[bool | Exception]:
        """Put starts into the queue of a key: reserve all ids first, then take the positions, in order."""
        tails = await self._journals.tails([*dict.fromkeys(start.id for start in starts if start.chosen or sent)])
        room = None
        if not sent:
            room = self._key_queue_limit - await self._keys.waiting(key)
            if room < len(starts) and (await self._keys.read(key)).holder is None:
                room += 1

        async def take_id(start: Start) -> bool | Exception:
            tail = tails.get(start.id, NOTHING)
            try:
                if not sent:
                    await self._check_identity(start, tail)
                if tail.has_frames or (sent and tail.facts.kind == "gone"):
                    return False
                return await self._reserve(start, tail, sent)
            except PerdureError as error:
                return error

        refused: dict[int, Exception] = {}
        for n, start in enumerate(starts):
            if room is not None and tails.get(start.id, NOTHING).facts.kind in ("none", "gone"):
                room -= 1
                if room < 0:
                    refused[n] = key_queue_full(key, self._key_queue_limit)
        taking = [_be(refused[n]) if n in refused else take_id(start) for n, start in enumerate(starts)]
        results = await asyncio.gather(*taking)
        await self._take_positions(key, starts, results)
        return results

    async def _take_positions(self, key: str, starts: Sequence[Start], results: Sequence[bool | Exception]) -> None:
        """Put the starts into the queue of the key whose ids are reserved and that have not begun."""
        now = self._clock.now()
        joined: list[Start] = []
        for start, result in zip(starts, results, strict=True):
            if isinstance(result, Exception):
                continue
            accepted = start if result else await self._reserved(start.id)
            if accepted is not None and accepted.key == key and accepted.is_due(now):
                joined.append(accepted)
                if accepted.timeout is not None:  # it must time out even if it never gets the key
                    await self._leases.set_wake(accepted.id, "limit", accepted.due + accepted.timeout, LIMIT)
        if joined:
            await self._keys.join(key, joined, now)

    async def _submit(self, starts: Sequence[Start]) -> list[bool]:
        together: dict[str, bytes] = {}
        joining: dict[str, int] = {}
        for start in starts:
            if together.setdefault(start.id, identity_of(start)) != identity_of(start):
                raise id_conflict(start.id)
        chosen = [start.id for start in starts if start.chosen or start.key is not None]
        tails = await self._journals.tails([*dict.fromkeys(chosen)]) if chosen else {}
        for start in starts:
            tail = tails.get(start.id, NOTHING)
            await self._check_identity(start, tail)
            if start.key is not None and tail.facts.kind in ("none", "gone"):
                joining[start.key] = joining.get(start.key, 0) + 1
        for key, count in joining.items():
            await self._check_key_queue(key, count)
        first: dict[str, asyncio.Future[bool]] = {}
        results: list[asyncio.Future[bool] | None] = []
        for start in starts:
            if start.id in first:
                results.append(None)
                continue
            accepting = asyncio.ensure_future(self._accept(start, tails.get(start.id, NOTHING)))
            first[start.id] = accepting
            results.append(accepting)
        await asyncio.gather(*first.values())
        return [False if each is None else each.result() for each in results]

    async def _check_identity(self, start: Start, tail: Tail) -> None:
        if tail.facts.kind in ("none", "gone"):
            return
        identity = tail.facts.identity
        if not identity:
            known = await self._journals.start(start.id)
            if known is None:
                return
            identity = identity_of(known).hex()
        if identity != identity_of(start).hex():
            raise id_conflict(start.id)

    async def _check_key_queue(self, key: str, joining: int) -> None:
        ahead = await self._keys.waiting(key) + joining - 1
        if ahead >= self._key_queue_limit and (await self._keys.read(key)).holder is None:
            ahead -= 1
        if ahead >= self._key_queue_limit:
            raise key_queue_full(key, ahead)

    async def _accept(self, start: Start, tail: Tail, *, sent: bool = False) -> bool:
        """Make a start durable; return false if its id exists. `sent`: by a workflow, and dropped if the id exists."""
        if start.key is not None and start.is_due(self._clock.now()):
            return await self._lanes.add(start, sent=True)  # the limit of a client's start was checked before
        new = True
        if start.chosen or start.key is not None:
            if tail.has_frames:
                return False
            new = await self._reserve(start, tail, sent)
            if not new:
                # The process that accepted it may have died before it queued it; its time and key are those of then.
                if (accepted := await self._reserved(start.id)) is not None:
                    await self.queue(accepted)
                return False
        return await self.queue(start)

    async def _reserved(self, id: str) -> Start | None:
        """Return the start of an invocation that was accepted and has not begun."""
        kind = (await self._journals.tail(id)).facts.kind
        return await self._journals.start(id) if kind == "reserved" else None

    async def _reserve(self, start: Start, tail: Tail, sent: bool) -> bool:
        """Store a start on the subject of its journal, before the first frame, where a later submit finds it."""
        if tail.facts.kind == "reserved":
            return False
        now = self._clock.now()
        status: Status = "pending" if start.is_due(now) else "scheduled"
        facts = facts_of_start(start, status, now, identity=identity_of(start).hex())
        facts, data = await self._blobs.save(start.id, facts, encode_start(start))
        subject = self._layout.journal(start.id)
        try:
            await self._wire.store(subject, data, expected=tail.sequence, headers=lines_of(facts))
        except WrongSequence:
            again = await self._journals.tail(start.id)
            if again.facts.kind == "gone":
                return await self._reserve(start, again, sent)
            if not sent:
                await self._check_identity(start, again)
            return False
        return True

    async def queue(self, start: Start) -> bool:
        """Queue a start: as a schedule, in the queue of its key, or for a worker."""
        now = self._clock.now()
        reserved = start.chosen or start.key is not None
        facts = facts_of_start(start, "pending", now, kind="start")
        if not start.is_due(now):
            return await self._schedule(start, facts)
        if start.key is not None:
            return await self._lanes.add(start, sent=True)
        if reserved:
            facts = _quiet(facts)
        facts, data = await self._blobs.save(start.id, facts, encode_start(start))
        try:
            await self._wire.store(
                self._layout.start(start.handler, start.id), data, expected=0, headers=lines_of(facts)
            )
        except WrongSequence:
            return False
        return True

    async def _schedule(self, start: Start, facts: Facts) -> bool:
        facts, data = await self._blobs.save(start.id, facts, encode_start(start))
        target = self._layout.start(start.handler, start.id)
        if start.key is not None:
            target = self._layout.nudge(start.key, self._layout.journal(start.id).rpartition(".")[2])
        headers = self._leases.schedule_headers(start.due, target)
        subject = self._layout.delayed(start.id, start.key)
        try:
            await self._wire.store(subject, data, expected=0, headers=headers + lines_of(facts))
        except WrongSequence:
            return False
        if not start.chosen and start.key is None:
            self._watching.announce(facts, "scheduled")
        return True

    async def send(self, start: Start) -> None:
        if start.key is not None and start.is_due(self._clock.now()):
            await self._lanes.add(start, sent=True)  # before any await, to keep the order sent
            return
        tail = await self._journals.tail(start.id) if start.chosen or start.key is not None else NOTHING
        if tail.facts.kind == "gone":
            return
        await self._accept(start, tail, sent=True)

    # --- messages -----------------------------------------------------------------------------------------------------
    def post(self, message: Message, /) -> asyncio.Future[None]:
        return self._writing.work(self._post(message))

    async def _post(self, message: Message) -> None:
        tail, answer = await asyncio.gather(self._journals.tail(message.to), self._watching.read_answer(message.id))
        if tail.facts.kind == "gone":
            raise unknown(message.to)
        if not (tail.has_frames or tail.problem) and await self._finder.start(message.to, tail) is None:
            if not (await self._journals.tail(message.to)).has_frames:
                raise unknown(message.to)
        if answer is not None:
            return
        subject = self._layout.message(message.to, message.id)
        sequence = await self.put_message(message)
        if settles_before_begin(message) and not (tail.has_frames or tail.problem):
            self.cancel_unbegun(message)
        for _ in range(int(CLOSING_SECONDS / CLOSING_POLL_SECONDS)):  # a purge may be in progress
            if tail.facts.status not in SETTLED:
                return
            tail = await self._journals.tail(message.to)
            if tail.facts.kind == "gone":
                if sequence:
                    await self._wire.delete(self._layout.stream_of(subject), sequence)
                raise unknown(message.to)
            if tail.facts.kind != "closing":
                return
            await asyncio.sleep(CLOSING_POLL_SECONDS)
        raise StoreUnavailable(
            f"invocation {message.to!r} is being purged: it is unknown whether the message was accepted"
        )

    async def put_message(self, message: Message) -> int:
        """Queue a message; return its sequence, 0 if it is queued already."""
        facts, data = await self._blobs.save(message.to, Facts(message.to, kind="message"), encode_message(message))
        try:
            return await self._wire.store(
                self._layout.message(message.to, message.id), data, expected=0, headers=lines_of(facts)
            )
        except WrongSequence:
            return 0


async def _be(error: Exception) -> Exception:
    return error


def _quiet(facts: Facts) -> Facts:
    """Return the facts marked as no news for the index."""
    return replace(facts, quiet=True)
