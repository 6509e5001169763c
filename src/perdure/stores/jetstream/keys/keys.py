"""Keys on streams: a record per key, and a queue of waiting invocations that no consumer covers.

    perdure.l.<s>.<key>.<id>.<generation>    a waiting start, or a retry's position, in the order of the stream
    perdure.k.<s>.key.<key>                  the holder, and the state that the last holder left

A start with a rule for a key that is busy has a note of its own, which is stored before its position: the worker that
gets it decides (`Deliveries`), once it has looked at the key.

A start or retry is appended to the queue, followed by a note "look at this key" in the work queue. A worker that gets
the note, or that releases the key, grants the key in three steps: it writes the first in the queue into the record
(guarded), puts its start or a wake into the work queue, and deletes its position. The next look completes a grant that
was interrupted.

The search for the next position begins at the last known first one. That is fast for any length of the queue, unless
the stream begins with the queue: then the server scans all positions. So one message stays before all key queues.

After each change the record is copied into the stream of journals, with the sequence of its write. If a record is older
than its copy, the server lost the newer one: it is restored from the copy, and an error is logged.

A worker that releases a key with an empty queue writes that the key is free, then looks again: a note that came in
between found the key still held.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Sequence

import msgspec
from cachetools import LRUCache
from msgspec import Struct

from perdure.core.effects import Enlist, Release
from perdure.core.history import History
from perdure.core.journal import Start, decode_start, encode_start
from perdure.errors import StoreClosed, StoreDamaged
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.journals import Journals
from perdure.stores.jetstream.layout.facts import ROLLUP, Facts, facts_of, facts_of_start, lines_of
from perdure.stores.jetstream.layout.subjects import Layout, part_of, token
from perdure.stores.jetstream.wire.protocol import Stored, WrongSequence
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Key
from perdure.stores.rewriting import Rewriting

LOOK = Facts(kind="look")
GRANTED = "=granted"
LIMIT = "=limit"
HEADS_LIMIT = 10_000
"""Keys for which the sequence of the first position is cached."""
SEEN_LIMIT = 10_000
"""Keys whose record was read on this connection; for other keys the copy is read too."""


class Record(Struct, frozen=True, array_like=True):
    """The record of a key."""

    name: str
    holder: str | None = None
    generation: int = 0
    state: dict[str, bytes] = {}
    grant: int = 0


class Copy(Struct, frozen=True, array_like=True):
    """A record, and the sequence of its write."""

    of: int
    record: Record


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode
_encode_copy = msgspec.msgpack.Encoder().encode
_decode_copy = msgspec.msgpack.Decoder(Copy).decode

log = logging.getLogger("perdure.jetstream")


class Keys:
    """Grants and releases keys."""

    def __init__(self, wire: Wire, layout: Layout, blobs: Blobs, journals: Journals) -> None:
        self._wire = wire
        self._layout = layout
        self._blobs = blobs
        self._journals = journals.apart()
        self._heads: LRUCache[str, int] = LRUCache(HEADS_LIMIT)  # where the search for each key begins
        self._streams: set[str] = set()  # streams known to hold the message before all key queues
        self._seen: LRUCache[str, tuple[int, int]] = LRUCache(
            SEEN_LIMIT
        )  # (reconnects at that time, sequence of the record)

    async def read(self, name: str) -> Key:
        record, _ = await self._checked_record(name, repair=False)
        return Key(record.holder, record.generation, record.state, record.grant)

    async def _record(self, name: str) -> tuple[Record, int]:
        subject = self._layout.key(name)
        stored = await self._wire.last(self._layout.stream_of(subject), subject)
        if stored is None:
            return Record(name), 0
        try:
            return await self._decoded(name, stored), stored.sequence
        except StoreDamaged:
            again = await self._wire.last(self._layout.stream_of(subject), subject)
            if again is None or again.sequence == stored.sequence:
                raise
            return await self._decoded(name, again), again.sequence  # it was rewritten, and its pieces are others now

    async def _decoded(self, name: str, stored: Stored) -> Record:
        try:
            return _decode(await self._blobs.load(name, facts_of(stored.headers), stored.data))
        except (msgspec.DecodeError, ValueError) as error:
            what = f"message {stored.sequence} on {stored.subject} does not decode ({error})"
            raise StoreDamaged(f"jetstream: key {name!r} is damaged: {what}; restore a backup") from error

    async def _checked_record(self, name: str, *, repair: bool = True) -> tuple[Record, int]:
        """Read a record, and compare it with its copy: the stream of records may have lost its end.

        A server drops everything after a damaged block, but only when it restarts: a record that was read on this
        connection needs no comparison.
        """
        reconnects, seen = self._seen.get(name, (-1, 0))
        if reconnects == self._wire.reconnects:
            record, sequence = await self._record(name)
            if sequence >= seen:
                self._saw(name, sequence)
                return record, sequence
        copy = await self._copy(name)  # the copy first: a write in between makes the record newer, not the copy
        record, sequence = await self._record(name)
        if copy is not None and copy.of > sequence:
            return await self._repair(copy, sequence) if repair else (copy.record, sequence)
        self._saw(name, sequence)
        return record, sequence

    async def _repair(self, copy: Copy, sequence: int) -> tuple[Record, int]:
        """Restore a record from its copy."""
        name = copy.record.name
        log.error(
            "key %r: the server lost its record: message %d of %s is missing, the last one is %d. Restoring holder "
            "and state from the copy in the stream of journals",
            *(name, copy.of, self._layout.stream_of(self._layout.key(name)), sequence),
        )
        if not await self._write(copy.record, sequence):
            return await self._checked_record(name)
        return await self._record(name)

    def _saw(self, name: str, sequence: int) -> None:
        self._seen[name] = self._wire.reconnects, sequence

    async def _copy(self, name: str) -> Copy | None:
        """Read the copy of a record; None if there is none, or if it cannot be read."""
        subject = self._layout.key_copy(name)
        stored = await self._wire.last(self._layout.stream_of(subject), subject)
        if stored is None:
            return None
        try:
            return _decode_copy(await self._blobs.load(name, facts_of(stored.headers), stored.data))
        except (msgspec.DecodeError, ValueError, StoreDamaged) as error:
            self._wire.limited_log(("copy", name), "the copy of key %r does not decode: %s", name, error)
            return None

    async def _write(self, record: Record, expected: int) -> bool:
        """Write a record; false if another process wrote it first."""
        facts, data = await self._blobs.save(record.name, Facts(kind="key"), _encode(record))
        try:
            sequence = await self._wire.store(
                self._layout.key(record.name), data, expected=expected, headers=lines_of(facts)
            )
        except WrongSequence:
            return False
        self._saw(record.name, sequence)
        await self._write_copy(Copy(sequence, record))
        return True

    async def _write_copy(self, copy: Copy) -> None:
        """Write the copy of a durable record, without waiting: it is needed only if the server loses the record."""
        facts, data = await self._blobs.save(copy.record.name, Facts(kind="key", quiet=True), _encode_copy(copy))
        self._wire.put(self._layout.key_copy(copy.record.name), data, self._copy_told, headers=ROLLUP + lines_of(facts))

    def _copy_told(self, _sequence: int, error: Exception | None) -> None:
        if error is not None and not isinstance(error, StoreClosed):
            self._wire.limited_log("copies", "the copy of a key could not be written: %s", error)

    # --- rewriting ----------------------------------------------------------------------------------------------------
    async def rewrite(self, stored: Stored, rewriting: Rewriting, refuse: Callable[[], object]) -> bool:
        """Rewrite the state in a record, and in its copy; report whether anything has changed.

        `refuse` is called before anything is written.
        """
        name = part_of(stored.subject.rpartition(".")[2])  # where the record is in pieces, it alone tells where
        facts = facts_of(stored.headers)
        record = await self._decoded(name, stored)
        state = rewriting.key(record.name, Key(state=record.state)).state
        if state != record.state:
            refuse()
            if await self._write(msgspec.structs.replace(record, state=state), stored.sequence) and facts.blob:
                await self._blobs.remove(record.name, facts.blob)
            return True
        copy = await self._copy(record.name)
        if copy is None or rewriting.key(record.name, Key(state=copy.record.state)).state == copy.record.state:
            return False
        refuse()
        await self._write_copy(Copy(stored.sequence, record))
        return True

    # --- the queue ----------------------------------------------------------------------------------------------------
    async def waiting(self, name: str) -> int:
        """Return the approximate length of a key queue, for the limit: a replica that lags may answer."""
        return await self._wire.count(
            self._layout.stream("Q", self._layout.partition(name)), self._layout.key_queue(name)
        )

    async def join(self, name: str, starts: Sequence[Start], at: float) -> None:
        """Append starts to the queue, in this order. Some may have their positions already."""
        stream = self._layout.stream("Q", self._layout.partition(name))
        if stream not in self._streams:
            await self._put(self._layout.before_key_queues(name), b"", lines_of(Facts(kind="first")))
            self._streams.add(stream)
        positions: list[tuple[str, bytes, bytes]] = []
        asking: list[tuple[str, bytes, bytes]] = []
        for start in starts:
            facts = facts_of_start(start, "pending", at)
            facts, data = await self._blobs.save(start.id, facts, encode_start(start))
            positions.append((self._layout.key_position(name, start.id, 0), data, lines_of(facts)))
            if start.when_busy != "enqueue":
                quiet = lines_of(msgspec.structs.replace(facts, kind="start", quiet=True))
                asking.append((self._layout.nudge(name, token(start.id)), data, quiet))
        await asyncio.gather(*(self._put(*each) for each in asking), self._take(name, positions))

    async def enlist(self, id: str, enlist: Enlist) -> None:
        """Append a retried invocation to the queue, unless it holds the key."""
        record, _ = await self._checked_record(enlist.key)
        if record.holder == id and record.generation == enlist.generation:
            await self._hand_over(record)
            return
        subject = self._layout.key_position(enlist.key, id, enlist.generation)
        await self._take(enlist.key, [(subject, id.encode(), lines_of(Facts(id, kind="again")))])

    async def _take(self, name: str, positions: Sequence[tuple[str, bytes, bytes]]) -> None:
        """Append positions to the queue, and a note after them. They share a stream, so their sequences tell the order.

        After a reconnect or an election the note may precede a position and miss it: then another note is sent.
        """
        *sequences, note = await asyncio.gather(
            *(self._put(*position) for position in positions), self.ask_to_look(name)
        )
        if note < max(sequences):
            await self.ask_to_look(name)

    async def _put(self, subject: str, data: bytes, headers: bytes) -> float:
        try:
            return await self._wire.store(subject, data, expected=0, headers=headers)
        except WrongSequence:  # it exists, but the process that stored it may have died before sending the note
            return math.inf

    async def ask_to_look(self, name: str) -> int:
        return await self._wire.store(self._layout.nudge(name, "look"), name.encode(), headers=lines_of(LOOK))

    async def leave(self, name: str, id: str, generation: int) -> None:
        """Remove a position from the queue."""
        subject = self._layout.key_position(name, id, generation)
        await self._wire.purge(self._layout.stream_of(subject), subject)

    async def withdraw(self, name: str, id: str) -> bool:
        """Remove a position so that it can no longer be granted; return false if it was granted.

        A grant in progress may have read the position already. Its write is guarded by the record that it read, so
        writing the record again, unchanged, makes that grant fail.
        """
        while True:
            record, sequence = await self._checked_record(name)
            if record.holder == id and not record.generation:
                return False
            await self.leave(name, id, 0)
            if await self._write(record, sequence):
                return True

    async def is_waiting(self, name: str, id: str) -> bool:
        subject = self._layout.key_position(name, id, 0)
        return await self._wire.last(self._layout.stream_of(subject), subject) is not None

    async def ahead(self, start: Start) -> list[str]:
        """Return the holder of the key of a start that waits for it, and those that wait before it, in order."""
        assert start.key is not None
        stream, subject = self._layout.stream("Q", self._layout.partition(start.key)), self._layout.key_queue(start.key)
        record, _ = await self._checked_record(start.key)
        own = await self._wire.last(stream, self._layout.key_position(start.key, start.id, 0))
        if own is None or (record.holder == start.id and not record.generation):
            return []
        found = [] if record.holder is None else [record.holder]
        waiting = await self._wire.all(stream, subject)
        found += [facts_of(each.headers).id for each in waiting if each.sequence < own.sequence]
        return [*dict.fromkeys(found)]

    # --- granting -----------------------------------------------------------------------------------------------------
    async def look(self, name: str) -> None:
        """Grant a free key to the first in its queue, or complete a grant that was interrupted."""
        while True:
            record, sequence = await self._checked_record(name)
            if record.holder is not None:
                await self._hand_over(record)
                return
            first = await self._next(name)
            if first is None or await self._grant(record, sequence, first):
                return

    async def _next(self, name: str) -> Stored | None:
        """Return the position to grant next. The record must have been read before.

        A start that is sent twice, by a client or by redone effects, may get a second position: between the grant and
        the first frame nothing shows that it was granted. A second grant would restore an old state on release. But an
        earlier holder has ended by now, as its journal shows: its position is dropped.
        """
        while (first := await self._first(name)) is not None and await self._is_stale(first):
            await self._wire.delete(self._layout.stream_of(first.subject), first.sequence)
        return first

    async def _is_stale(self, position: Stored) -> bool:
        """Report whether the generation at a position has begun, or was purged."""
        id, generation = await self._waiting_at(position)
        if not generation:
            tail = await self._journals.tail(id)
            return tail.has_frames or tail.facts.kind == "gone"
        return History.of((await self._journals.read(id))[0]).generation >= generation

    async def _first(self, name: str) -> Stored | None:
        """Return the first position in the queue, from the leader.

        A replica that lags may miss a position whose only note has just arrived, or still have one that was removed,
        and then the key would be held for ever.
        """
        stream = self._layout.stream("Q", self._layout.partition(name))
        found = await self._wire.first(stream, self._layout.key_queue(name), self._heads.get(name, 1))
        if found is None:
            self._heads.pop(name, None)
            return None
        self._heads[name] = found.sequence
        return found

    async def _waiting_at(self, stored: Stored) -> tuple[str, int]:
        """Return the id and generation of a position."""
        generation = int(stored.subject.rpartition(".")[2])
        if generation:
            return stored.data.decode(), generation
        return (await self._start_of(stored)).id, 0

    async def _start_of(self, stored: Stored) -> Start:
        facts = facts_of(stored.headers)
        return decode_start(await self._blobs.load(facts.id, facts, stored.data))

    async def _grant(self, record: Record, sequence: int, first: Stored) -> bool:
        id, generation = await self._waiting_at(first)
        granted = Record(record.name, id, generation, record.state, first.sequence)
        if not await self._write(granted, sequence):
            return False
        await self._hand_over(granted, first)
        return True

    async def _hand_over(self, record: Record, position: Stored | None = None) -> None:
        """Deliver the holder's start or a wake, then delete its position, which marks a grant that is not complete."""
        id = record.holder
        assert id is not None
        layout = self._layout
        if position is None:
            subject = layout.key_position(record.name, id, record.generation)
            position = await self._wire.last(layout.stream_of(subject), subject)
            if position is None:
                return
        if record.generation:
            await self._wire.store(layout.wake(id, GRANTED), b"", headers=lines_of(Facts(id, kind="wake")))
        else:
            start = await self._start_of(position)
            with contextlib.suppress(WrongSequence):  # an earlier look has queued it
                await self._wire.store(
                    layout.start(start.handler, id),
                    position.data,
                    expected=0,
                    headers=lines_of(msgspec.structs.replace(facts_of(position.headers), quiet=True)),
                )
        await self._wire.delete(layout.stream_of(position.subject), position.sequence)

    async def release(self, id: str, release: Release) -> None:
        """Release a key and grant it to the next. An invocation that does not hold it leaves the queue."""
        name = release.key
        while True:
            record, sequence = await self._checked_record(name)
            if record.holder != id or record.generation != release.generation:
                await self.leave(name, id, release.generation)
                if record.holder is not None:
                    await self._hand_over(record)
                else:
                    await self.look(name)
                return
            await self.leave(name, id, release.generation)
            state = record.state if release.state is None else release.state
            first = await self._next(name)
            if first is not None:
                if await self._grant(Record(name, state=state), sequence, first):
                    return
            elif await self._write(Record(name, state=state), sequence):
                await self.look(name)
                return
