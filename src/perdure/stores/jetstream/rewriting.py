"""Rewrites the values of a store, part by part: the messages of the streams in their order.

A message cannot be changed, but another can take its place, guarded by the sequence of the one that was read. That is
done where the order of messages means nothing: journals (`Journals.rewrite`), schedules, records of keys, answers,
documents. What waits in a queue keeps its place, and its value, until a worker has it; what is in a stream keeps both
until its invocation is purged.

Values that the store itself moves go from earlier steps to later ones, so that one pass meets each of them.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct

from perdure.core.journal import (
    Answer,
    decode_message,
    decode_start,
    encode_message,
    encode_start,
)
from perdure.errors import StoreClosed, StoreDamaged, StoreError, StoreUnavailable
from perdure.stores.jetstream.documents.documents import JetStreamDocuments
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.journals import Journals
from perdure.stores.jetstream.keys.keys import Keys
from perdure.stores.jetstream.layout.facts import Facts, facts_of, lines_of
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.watching import Watching
from perdure.stores.jetstream.wire.protocol import Stored, WrongSequence
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.rewriting import PART_LIMIT, Left, Part, Rewriting, rewritten, rewritten_chunk, rewritten_frame

_WRITTEN = "what it wrote to a stream stays as it is until it is purged"
_QUEUED_START, _QUEUED_MESSAGE = "its start is in the queue of its workflow", "a message to it is queued"
_STEPS = (
    ("Q", "t.{}.*.start", "schedule"),
    ("Q", "q.{}.key.>", "its start is on its way to its key"),
    ("Q", "l.{}.>", "its start waits for its key"),
    ("Q", "q.{}.start.>", _QUEUED_START),
    ("Q", "q.{}.msg.>", _QUEUED_MESSAGE),
    ("Q", "q.{}.to.>", _QUEUED_MESSAGE),
    ("K", "k.{}.key.>", "key"),
    ("K", "k.{}.answer.>", "answer"),
    ("K", "k.{}.doc.>", "document"),
    ("J", "j.{}.>", "journal"),
    ("B", "b.{}.*.=.*", "stream"),
)
"""The kind of the stream, the subjects in a partition, and what is there: what waits, as text."""
_WITHOUT_VALUE = frozenset({"look", "first", "again", "wake"})
"""The kinds of messages in the queues that hold no value."""


class _Position(Struct, frozen=True, array_like=True):
    """Where a part begins: the step, the partition, the sequence, and the last one there was when the step began.

    What comes later is sealed by those who write now, or moved by the store: then a later step meets it.
    """

    step: int = 0
    partition: int = 0
    sequence: int = 1
    end: int = 0


_encode_position = msgspec.json.Encoder().encode
_decode_position = msgspec.json.Decoder(_Position).decode


class Rewriter:
    """Goes through the streams of a store. `refuse` raises if it is only read."""

    def __init__(
        self,
        wire: Wire,
        layout: Layout,
        journals: Journals,
        keys: Keys,
        blobs: Blobs,
        watching: Watching,
        documents: JetStreamDocuments,
        refuse: Callable[[], object],
    ) -> None:
        self._wire = wire
        self._layout = layout
        self._journals = journals
        self._keys = keys
        self._blobs = blobs
        self._watching = watching
        self._documents = documents
        self._refuse = refuse

    async def part(self, rewriting: Rewriting, after: str) -> Part:
        """Go through the next messages."""
        at = _decode_position(after.encode()) if after else _Position()
        kind, subjects, what = _STEPS[at.step]
        filter = f"{self._layout.namespace}.{subjects.format(at.partition)}"
        stream = self._layout.stream(kind, at.partition)
        if not at.end and (last := await self._wire.last(stream, filter)) is not None:
            at = msgspec.structs.replace(at, end=last.sequence)
        found = await self._wire.batch(stream, filter, at.sequence, PART_LIMIT) if at.end else []
        found = [each for each in found if each.sequence <= at.end]
        changed, left, done = 0, list[Left](), set[str]()
        for each in found:
            if (id := facts_of(each.headers).id) and what == "journal" and id in done:
                continue  # it was rewritten as a whole
            try:
                result = await self._rewrite(rewriting, each, what)
            except (StoreClosed, StoreUnavailable):
                raise
            except StoreError as error:
                now = await self._wire.first(stream, each.subject, each.sequence)
                if now is None or now.sequence != each.sequence:  # it was removed or replaced, with its pieces
                    result = True
                else:
                    result = Left(f"invocation {id!r}" if id else f"the message on {each.subject}", str(error))
            if isinstance(result, Left):
                left.append(result)
            elif result:
                changed += 1
                done.add(id)
        return Part(self._after(at, found), len(found), changed, tuple(left))

    def _after(self, at: _Position, found: list[Stored]) -> str | None:
        following = at
        if found and found[-1].sequence < at.end:
            following = _Position(at.step, at.partition, found[-1].sequence + 1, at.end)
        else:
            step, partition = divmod(at.step * self._layout.partitions + at.partition + 1, self._layout.partitions)
            if step == len(_STEPS):
                return None
            following = _Position(step, partition)
        return _encode_position(following).decode()

    async def _rewrite(self, rewriting: Rewriting, stored: Stored, what: str) -> bool | Left:
        facts = facts_of(stored.headers)
        match what:
            case "journal":
                return await self._journal(rewriting, stored, facts)
            case "schedule":
                return await self._schedule(rewriting, stored, facts)
            case "key":
                return await self._keys.rewrite(stored, rewriting, self._refuse)
            case "answer":
                return await self._answer(rewriting, stored)
            case "stream":
                stays = rewritten_chunk(rewriting, facts.id, stored.data) == stored.data
                return False if stays else Left(f"invocation {facts.id!r}", _WRITTEN, waits=True)
            case "document":
                return await self._documents.rewrite(stored, rewriting, self._refuse)
            case _:
                stays = facts.kind in _WITHOUT_VALUE or await self._queued(rewriting, stored, facts) == stored.data
                return False if stays else Left(f"invocation {facts.id!r}", what, waits=True)

    async def _queued(self, rewriting: Rewriting, stored: Stored, facts: Facts) -> bytes:
        """Return what would become of the payload of a start or message in a queue: the same if it stays."""
        data = await self._blobs.load(facts.id, facts, stored.data)
        if facts.kind == "message":
            again = rewritten(data, decode_message, encode_message, rewriting.message)
        else:
            again = rewritten(data, decode_start, encode_start, rewriting.start)
        return stored.data if again == data else again

    async def _journal(self, rewriting: Rewriting, stored: Stored, facts: Facts) -> bool | Left:
        if facts.kind == "reserved":
            stays = await self._queued(rewriting, stored, facts) == stored.data
        elif facts.kind == "frame":
            frames = await self._journals.frames_in(facts.id, facts, stored.data)
            stays = all(rewritten_frame(rewriting, facts.id, each) == each for each in frames)
        else:
            return False
        if stays:
            return False
        self._refuse()
        return await self._journals.rewrite(facts.id, rewriting)

    async def _schedule(self, rewriting: Rewriting, stored: Stored, facts: Facts) -> bool:
        """Put a delayed start in the place of another, for the same time."""
        before = await self._blobs.load(facts.id, facts, stored.data)
        data = rewritten(before, decode_start, encode_start, rewriting.start)
        if data == before:
            return False
        self._refuse()
        headers = b"".join(
            b"%s%s\r\n" % (name, stored.header(name) or b"") for name in (b"Nats-Schedule: ", b"Nats-Schedule-Target: ")
        )
        again, data = await self._blobs.save(facts.id, msgspec.structs.replace(facts, blob=""), data)
        try:
            await self._wire.store(stored.subject, data, expected=stored.sequence, headers=headers + lines_of(again))
        except WrongSequence:  # it was due, or withdrawn
            return True
        if facts.blob:
            await self._blobs.remove(facts.id, facts.blob)
        return True

    async def _answer(self, rewriting: Rewriting, stored: Stored) -> bool:
        try:
            answer = msgspec.msgpack.decode(stored.data, type=Answer)
        except msgspec.DecodeError as error:
            raise StoreDamaged(f"jetstream: the answer on {stored.subject} does not decode: {error}") from error
        changed = rewriting.answer(answer)
        if changed == answer:
            return False
        self._refuse()
        await self._watching.store_answer(changed, stored.sequence)
        return True
