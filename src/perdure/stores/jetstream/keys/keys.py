"""Keys on streams: a record for each, and a queue of waiting invocations that no consumer covers.

    perdure.l.<s>.<key>.<id>.<generation>    a waiting start, or a retry's position, in the order of the stream
    perdure.k.<s>.key.<key>                  the holder, and the state as the last holder left it

To take a position: put it into the queue, then put a note "look at this key". A worker that gets the note, or releases
the key, grants it: the record names the first in line (guarded), then its start goes into the start queue or a wake to
it, then its place goes. Each part is repeated by the next look at the key, until it is done.

Nothing comes before a place that was the first, so the next one is looked for from there on. That takes the server no
time, however long the line is, unless the stream itself begins there: then it goes through all that wait. So before the
first place of all lies a message that stays.

A record is copied into the stream of journals after each change, with the sequence under which it was written. A record
that is older than its copy was lost by the server: it is written again from the copy, and logged.

A releaser that finds the queue empty writes that the key is free, and looks again: the note of a position taken
meanwhile found the key held.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Sequence

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
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.wire.protocol import Stored, WrongSequence
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Key

LOOK = Facts(kind="look")
GRANTED = "=granted"
LIMIT = "=limit"
HEADS_LIMIT = 10_000
"""Queues of keys of which it is remembered where they begin."""
SEEN_LIMIT = 10_000
"""Keys whose record was seen on the present connection; of others, the copy is read too."""


class Record(Struct, frozen=True, array_like=True):
    """A key as it is stored."""

    name: str
    holder: str | None = None
    generation: int = 0
    state: dict[str, bytes] = {}


class Copy(Struct, frozen=True, array_like=True):
    """A record, and the sequence under which it was written."""

    of: int
    record: Record


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode
_encode_copy = msgspec.msgpack.Encoder().encode
_decode_copy = msgspec.msgpack.Decoder(Copy).decode

log = logging.getLogger("perdure.jetstream")


class Keys:
    """Grants keys and takes them back."""

    def __init__(self, wire: Wire, layout: Layout, blobs: Blobs, journals: Journals) -> None:
        self._wire = wire
        self._layout = layout
        self._blobs = blobs
        self._journals = journals.apart()
        self._heads: LRUCache[str, int] = LRUCache(HEADS_LIMIT)  # sequences before which lines have nothing any more
        self._streams: set[str] = set()  # those in which something lies before all lines
        self._seen: LRUCache[str, tuple[int, int]] = LRUCache(SEEN_LIMIT)  # reconnects then, sequence of the record

    async def read(self, name: str) -> Key:
        record, _ = await self._checked_record(name, repair=False)
        return Key(record.holder, record.generation, record.state)

    async def _record(self, name: str) -> tuple[Record, int]:
        subject = self._layout.key(name)
        stored = await self._wire.last(self._layout.stream_of(subject), subject)
        if stored is None:
            return Record(name), 0
        facts = facts_of(stored.headers)
        try:
            return _decode(await self._blobs.load(name, facts, stored.data)), stored.sequence
        except (msgspec.DecodeError, ValueError) as error:
            text = (
                f"jetstream: key {name!r} is damaged: message {stored.sequence} on {subject} does not decode ({error})"
            )
            raise StoreDamaged(f"{text}; restore a backup") from error

    async def _checked_record(self, name: str, *, repair: bool = True) -> tuple[Record, int]:
        """Read a record, and hold it against its copy: the stream of records may have lost its end.

        A server that finds a damaged block drops what follows it. That takes a restart: what was seen on the present
        connection needs no second look.
        """
        reconnects, seen = self._seen.get(name, (-1, 0))
        if reconnects == self._wire.reconnects:
            record, sequence = await self._record(name)
            if sequence >= seen:
                self._saw(name, sequence)
                return record, sequence
        copy = await self._copy(name)  # before the record: what is written in between is in that
        record, sequence = await self._record(name)
        if copy is not None and copy.of > sequence:
            return await self._repair(copy, sequence) if repair else (copy.record, sequence)
        self._saw(name, sequence)
        return record, sequence

    async def _repair(self, copy: Copy, sequence: int) -> tuple[Record, int]:
        """Write a record again as its copy says."""
        name = copy.record.name
        log.error(
            "key %r: its record went back, from message %d of %s to %d: the server lost what followed. Its state and "
            "its holder are restored from the copy among the journals",
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
        """Write a record; false when another process has."""
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
        """Write the copy of a record that is durable. Nobody waits for it: it is for a server that loses the record."""
        facts, data = await self._blobs.save(copy.record.name, Facts(kind="key", quiet=True), _encode_copy(copy))
        self._wire.put(self._layout.key_copy(copy.record.name), data, self._copy_told, headers=ROLLUP + lines_of(facts))

    def _copy_told(self, _sequence: int, error: Exception | None) -> None:
        if error is not None and not isinstance(error, StoreClosed):
            self._wire.limited_log("copies", "the copy of a key could not be written: %s", error)

    # --- the line -----------------------------------------------------------------------------------------------------
    async def waiting(self, name: str) -> int:
        """Return about how many wait for a key: a replica that is behind may answer. It is for the limit."""
        return await self._wire.count(
            self._layout.stream("Q", self._layout.partition(name)), self._layout.whole_line(name)
        )

    async def join(self, name: str, starts: Sequence[Start], at: float) -> None:
        """Give starts their places in the line, in this order; some may have theirs."""
        stream = self._layout.stream("Q", self._layout.partition(name))
        if stream not in self._streams:
            await self._put(self._layout.before_lines(name), b"", lines_of(Facts(kind="first")))
            self._streams.add(stream)
        places: list[tuple[str, bytes, bytes]] = []
        for start in starts:
            facts = facts_of_start(start, "pending", at)
            facts, data = await self._blobs.save(start.id, facts, encode_start(start))
            places.append((self._layout.line(name, start.id, 0), data, lines_of(facts)))
        await self._take(name, places)

    async def enlist(self, id: str, enlist: Enlist) -> None:
        """Give an invocation that runs again a place, unless it has the key."""
        record, _ = await self._checked_record(enlist.key)
        if record.holder == id and record.generation == enlist.generation:
            await self._hand_over(record)
            return
        subject = self._layout.line(enlist.key, id, enlist.generation)
        await self._take(enlist.key, [(subject, id.encode(), lines_of(Facts(id, kind="again")))])

    async def _take(self, name: str, places: Sequence[tuple[str, bytes, bytes]]) -> None:
        """Put places into the line, and a note behind them: all on one stream, so their sequences tell the order.

        After a broken connection or an election the note may have come to be before a place, and was looked at in vain.
        """
        *placed, note = await asyncio.gather(*(self._put(*place) for place in places), self.ask_to_look(name))
        if note < max(placed):
            await self.ask_to_look(name)

    async def _put(self, subject: str, data: bytes, headers: bytes) -> float:
        try:
            return await self._wire.store(subject, data, expected=0, headers=headers)
        except WrongSequence:  # it is there already; its process may have died before the note
            return math.inf

    async def ask_to_look(self, name: str) -> int:
        return await self._wire.store(self._layout.nudge(name, "look"), name.encode(), headers=lines_of(LOOK))

    async def leave(self, name: str, id: str, generation: int) -> None:
        """Give up a place in the line."""
        subject = self._layout.line(name, id, generation)
        await self._wire.purge(self._layout.stream_of(subject), subject)

    async def withdraw(self, name: str, id: str) -> bool:
        """Give up a place so that it cannot be granted any more; false if it has been.

        A grant that is under way has read the place already. It names the record that it replaces: so the record is
        written again, as it is.
        """
        while True:
            record, sequence = await self._checked_record(name)
            if record.holder == id and not record.generation:
                return False
            await self.leave(name, id, 0)
            if await self._write(record, sequence):
                return True

    async def is_waiting(self, name: str, id: str) -> bool:
        subject = self._layout.line(name, id, 0)
        return await self._wire.last(self._layout.stream_of(subject), subject) is not None

    # --- granting -----------------------------------------------------------------------------------------------------
    async def look(self, name: str) -> None:
        """Grant a free key to the first in its queue, and finish what a granter may have left undone."""
        while True:
            record, sequence = await self._checked_record(name)
            if record.holder is not None:
                await self._hand_over(record)
                return
            first = await self._next(name)
            if first is None or await self._grant(record, sequence, first):
                return

    async def _next(self, name: str) -> Stored | None:
        """Return the position that the key is for next. Read the record before.

        A start that is sent again, by a client or by effects that are done again, may take a position although it has
        had the key: between the grant and the first frame nothing tells that it has. It is not granted twice, as its
        release would bring the state of then back. What has had the key, by the record, has ended by now, and its
        journal says so.
        """
        while (first := await self._first(name)) is not None and await self._has_had_it(first):
            await self._wire.delete(self._layout.stream_of(first.subject), first.sequence)
        return first

    async def _has_had_it(self, place: Stored) -> bool:
        """Tell whether a place is for a run that has begun, or has ended without beginning."""
        id, generation = await self._place(place)
        if not generation:
            tail = await self._journals.tail(id)
            return tail.has_frames or tail.facts.kind == "gone"
        return History.of((await self._journals.read(id))[0]).generation >= generation

    async def _first(self, name: str) -> Stored | None:
        """Return the first in the line, as the leader knows it.

        A replica that is behind may not have the position whose note has just come, and there is no other note; or it
        may still have one that is long gone: the key would be held for ever.
        """
        stream = self._layout.stream("Q", self._layout.partition(name))
        found = await self._wire.first(stream, self._layout.whole_line(name), self._heads.get(name, 1))
        if found is None:
            self._heads.pop(name, None)
            return None
        self._heads[name] = found.sequence
        return found

    async def _place(self, stored: Stored) -> tuple[str, int]:
        """Return id and generation of what waits there."""
        generation = int(stored.subject.rpartition(".")[2])
        if generation:
            return stored.data.decode(), generation
        return (await self._start_of(stored)).id, 0

    async def _start_of(self, stored: Stored) -> Start:
        facts = facts_of(stored.headers)
        return decode_start(await self._blobs.load(facts.id, facts, stored.data))

    async def _grant(self, record: Record, sequence: int, first: Stored) -> bool:
        id, generation = await self._place(first)
        granted = Record(record.name, id, generation, record.state)
        if not await self._write(granted, sequence):
            return False
        await self._hand_over(granted, first)
        return True

    async def _hand_over(self, record: Record, place: Stored | None = None) -> None:
        """Bring the key to its holder: as long as that has a position in the queue, it has not been done."""
        id = record.holder
        assert id is not None
        layout = self._layout
        if place is None:
            subject = layout.line(record.name, id, record.generation)
            place = await self._wire.last(layout.stream_of(subject), subject)
            if place is None:
                return
        if record.generation:
            await self._wire.store(layout.wake(id, GRANTED), b"", headers=lines_of(Facts(id, kind="wake")))
        else:
            start = await self._start_of(place)
            with contextlib.suppress(WrongSequence):  # an earlier look has put it there
                await self._wire.store(
                    layout.start(start.handler, id),
                    place.data,
                    expected=0,
                    headers=lines_of(msgspec.structs.replace(facts_of(place.headers), quiet=True)),
                )
        await self._wire.delete(layout.stream_of(place.subject), place.sequence)

    async def release(self, id: str, release: Release) -> None:
        """Take a key back from its holder and grant it to the next; of any other, only its position in the queue."""
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
