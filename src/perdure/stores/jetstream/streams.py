"""Implements the protocol of streams: a subject for each, in the streams of large payloads; a message for each chunk.

An append is guarded by the sequence of the chunk before it, so a process that has not seen the last one is refused, and
reads it. An append of a step also looks whether the journal still names this process as the owner, if it was silent
meanwhile: it may have stood still. Whoever appends publishes that there is more; readers subscribe first, then read,
then look now and then.

A reader finds the chunk that holds an item by halving the sequences between the first chunk and the last.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from msgspec import Struct

from perdure.core.streams import Batch
from perdure.errors import Fenced, LimitExceeded
from perdure.stores.jetstream.journal.journals import Journals
from perdure.stores.jetstream.layout.facts import Facts, lines_of
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.wire.protocol import Stored, WrongSequence, raise_error
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.jetstream.writing import Writing
from perdure.stores.streams import (
    READ_BYTES,
    Chunk,
    Follower,
    Followers,
    decode_chunk,
    encode_chunk,
    lost,
    next_of_body,
    next_of_step,
)

SILENT_SECONDS = 1.0
"""After so long without an append, the journal is asked whether the invocation is still this process's."""
KNOWN_LIMIT = 1_000
"""Streams of which the last chunk is remembered, and reads whose continuation is."""
READ_AT_A_TIME = 16
"""Chunks that one read returns at most, of 64 kB each as a rule."""


class _Last(Struct, frozen=True):
    """The last chunk of a stream, and the sequence of its message: none, 0. `at`: when this process appended it."""

    sequence: int = 0
    chunk: Chunk | None = None
    at: float = -SILENT_SECONDS


class JetStreamStreams:
    """The streams of a store. `check` raises if it is closed, `refuse` if it is only read. `name` is the store's."""

    def __init__(
        self,
        wire: Wire,
        layout: Layout,
        journals: Journals,
        writing: Writing,
        name: str,
        check: Callable[[], None],
        refuse: Callable[[], None],
    ) -> None:
        self._wire = wire
        self._layout = layout
        self._journals = journals
        self._writing = writing
        self._name = name
        self._check = check
        self._refuse = refuse
        self.followers = Followers()
        self._heard: dict[tuple[str, str], int] = {}  # subscriptions, by stream
        self._known: OrderedDict[str, _Last] = OrderedDict()  # by subject
        self._next: OrderedDict[tuple[str, int], int] = OrderedDict()  # by subject and item: the sequence to read from
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # --- writing ------------------------------------------------------------------------------------------------------
    async def append(self, id: str, epoch: int, batch: Batch, /) -> None:
        self._check()
        self._refuse()
        await self._writing.work(self._append_of_step(id, epoch, batch))

    async def _append_of_step(self, id: str, epoch: int, batch: Batch) -> None:
        known = self._journals.known(id)
        last = self._known.get(self._layout.items(id, batch.name))
        if known is None or last is None or self._wire.now() - last.at > SILENT_SECONDS:
            known = await self._journals.tail(id)
        if known.facts.owner != self._name or known.facts.epoch != epoch:
            raise lost(id, batch.name, epoch)
        await self._append(id, batch.name, lambda last: next_of_step(last, id, epoch, batch))

    async def append_of_body(self, id: str, batch: Batch) -> None:
        """Write what a body wrote, unless it is there."""
        await self._append(id, batch.name, lambda last: next_of_body(last, batch))

    async def is_written(self, id: str, batch: Batch) -> bool:
        """Report whether what a body wrote is there."""
        return next_of_body((await self._read_last(id, batch.name)).chunk, batch) is None

    async def _append(self, id: str, name: str, next: Callable[[Chunk | None], Chunk | None]) -> None:
        subject = self._layout.items(id, name)
        async with self._turns.setdefault(subject, asyncio.Lock()):
            last = self._known.get(subject)
            while True:
                is_fresh = last is None  # else it may be old: only the guard of an append proves what follows from it
                last = last or await self._read_last(id, name)
                try:
                    chunk = next(last.chunk)
                except (Fenced, LimitExceeded):
                    if is_fresh:
                        raise
                    chunk = None
                if chunk is None and is_fresh:
                    return
                if chunk is not None:
                    try:
                        sequence = await self._put(id, chunk, last.sequence)
                        break
                    except WrongSequence:
                        pass
                last = None
        _remember(self._known, subject, _Last(sequence, chunk, self._wire.now()))
        self.followers.tell(id, name)
        self._wire.publish(self._layout.written(id, name))

    async def _put(self, id: str, chunk: Chunk, expected: int) -> int:
        subject, data = self._layout.items(id, chunk.batch.name), encode_chunk(chunk)
        if len(data) > (limit := self._wire.payload_limit):
            name = chunk.batch.name
            text = f"an item of stream {name!r} takes {len(data):,} bytes, and this server takes {limit:,}: raise its"
            raise LimitExceeded(f"{text} max_payload, or write smaller ones", size=len(data), limit=limit)
        return await self._wire.store(subject, data, expected=expected, headers=lines_of(Facts(id, kind="stream")))

    async def _read_last(self, id: str, name: str) -> _Last:
        subject = self._layout.items(id, name)
        stored = await self._wire.last(self._layout.stream_of(subject), subject)
        return _Last() if stored is None else _Last(stored.sequence, decode_chunk(stored.data, id))

    # --- reading ------------------------------------------------------------------------------------------------------
    async def read(self, id: str, name: str, start: int, /) -> Sequence[Chunk]:
        self._check()
        subject = self._layout.items(id, name)
        stream = self._layout.stream_of(subject)
        sequence = self._next.get((subject, start)) or await self._find(id, subject, start)
        while stored := await self._wire.batch(stream, subject, sequence, READ_AT_A_TIME, size=READ_BYTES):
            chunks = [decode_chunk(each.data, id) for each in stored]
            sequence = stored[-1].sequence + 1
            if chunks[-1].end > start:
                _remember(self._next, (subject, chunks[-1].end), sequence)
                return [each for each in chunks if each.end > start]
        return []

    async def _find(self, id: str, subject: str, start: int) -> int:
        """Return a sequence from which to read: of the chunk that holds item `start`, or one before it."""
        stream = self._layout.stream_of(subject)

        async def first(sequence: int) -> tuple[int, int]:
            """Return the sequence and the offset of the first chunk from a sequence on."""
            stored: Stored | None = await self._wire.first(stream, subject, sequence)
            return (last, start + 1) if stored is None else (stored.sequence, decode_chunk(stored.data, id).offset)

        if not start or (found := await self._wire.last(stream, subject)) is None:
            return 1
        last = found.sequence
        if decode_chunk(found.data, id).offset <= start:
            return last
        low, high = (await first(1))[0], last  # the chunk at `low` is not beyond `start`; those from `high` on are
        while high - low > 1:
            middle = (low + high) // 2
            sequence, offset = await first(middle)
            if offset <= start:
                low = sequence
            else:
                high = middle
        return low

    async def counts(self, id: str, /) -> Mapping[str, int]:
        self._check()
        filter = self._layout.items(id, None)
        stream = self._layout.stream_of(filter)
        answer = await self._wire.api(f"STREAM.INFO.{stream}", {"subjects_filter": filter})
        raise_error(answer, stream)
        state: dict[str, Any] = answer.get("state") or {}
        subjects: dict[str, int] = state.get("subjects") or {}
        lasts = await self._wire.last_of(stream, [*subjects]) if subjects else {}
        chunks = [decode_chunk(each.data, id) for each in lasts.values()]
        return {each.batch.name: each.end for each in sorted(chunks, key=lambda each: each.batch.name)}

    # --- following ----------------------------------------------------------------------------------------------------
    def follow(self, id: str, name: str, /) -> _Follower:
        self._check()
        if (id, name) not in self._heard:
            subject = self._layout.written(id, name)

            def told(_subject: str, _reply: str, _data: bytes, _headers: bytes) -> None:
                self.followers.tell(id, name)

            self._heard[id, name] = self._wire.subscribe(subject, told)
        return _Follower(self.followers.follow(id, name), self._forget)

    def _forget(self, follower: Follower) -> None:
        follower.close()
        if not self.followers.has(*follower.place) and (sid := self._heard.pop(follower.place, None)) is not None:
            self._wire.unsubscribe(sid)
            self._wire.forget(sid)


class _Follower:
    """A follower, and the subscription that it needs."""

    def __init__(self, follower: Follower, forget: Callable[[Follower], None]) -> None:
        self._follower = follower
        self._forget = forget

    async def more(self) -> None:
        await self._follower.more()

    def close(self) -> None:
        self._forget(self._follower)


def _remember(table: OrderedDict[Any, Any], key: object, value: object) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > KNOWN_LIMIT:
        table.popitem(last=False)
