"""Implements the protocol of documents.

The revision of a document is the sequence of its message. A single write is one put; several are one atomic batch.
Every message is guarded by the sequence of the one that it replaces, whatever the caller asked for: the put is repeated
when a connection breaks, and must not undo what others have written since the first time. What has no message of its
own (a check, a fence that is unchanged) is guarded by one that carries nothing else.

A deletion is a message without a value, which is removed once it is stored. Values too large for a message are written
in pieces before it, and removed when it was refused, or after the message that replaces it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import msgspec
from msgspec import Struct

from perdure.errors import StoreDamaged, StoreError, StoreUnavailable
from perdure.stores.documents import (
    SEPARATOR,
    Check,
    Delete,
    Document,
    DocumentKey,
    Fence,
    Put,
    Scan,
    Write,
    check_writes,
    fence_key,
    fences_of,
    joined,
)
from perdure.stores.jetstream.background import Background
from perdure.stores.jetstream.documents.blobs import DocumentBlobs
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.wire.batches import Batches
from perdure.stores.jetstream.wire.protocol import PerhapsStored, Stored, WrongSequence, raise_error
from perdure.stores.jetstream.wire.wire import Guarded, Wire
from perdure.stores.jetstream.writing import Writing
from perdure.stores.rewriting import Rewriting

READ_AT_A_TIME = 32
"""Documents that one request reads: of up to 1 MiB each, and the server drops a client that reads too slowly."""
FIRST_READ = 4
"""Documents that a scan of limited size reads before it knows how large they are."""
NAMES_OF_A_PAGE = 100_000
"""Subjects that the server lists in one answer."""


class _Record(Struct, array_like=True, frozen=True):
    """The payload of a document's message: its value, or the name of its pieces; or that it was deleted.

    `revision` is that of a document that was rewritten, as it was before.
    """

    value: bytes = b""
    blob: str = ""
    is_gone: bool = False
    revision: int = 0


class _Found(Struct, frozen=True):
    """The last message of a document: its sequence, 0 if there is none, and what it holds."""

    sequence: int = 0
    record: _Record = _Record(is_gone=True)

    @property
    def revision(self) -> int:
        return 0 if self.record.is_gone else self.record.revision or self.sequence


class _Plan(Struct):
    """What a write puts: messages, and guards of subjects that it does not change."""

    messages: list[Guarded] = []
    guards: list[tuple[str, int]] = []
    kept: dict[str, tuple[str, bytes]] = {}  # blobs to be written for it: of which document, and what they hold
    replaced: list[str] = []  # blobs that it makes superfluous
    deletes: list[int] = []  # positions of messages that delete
    puts: list[int] = []  # positions of messages that put, in the order of `revisions` that are None
    revisions: list[int | None] = []  # the results; None: the sequence of a message that puts


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


class JetStreamDocuments:
    """The documents of a store. `check` raises if it is closed, `refuse` if it is only read."""

    def __init__(
        self,
        wire: Wire,
        layout: Layout,
        writing: Writing,
        tasks: Background,
        check: Callable[[], None],
        refuse: Callable[[], None],
    ) -> None:
        self._wire = wire
        self._layout = layout
        self._writing = writing
        self._tasks = tasks
        self._check = check
        self._refuse = refuse
        self._batches = Batches(wire)
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    # --- writing ------------------------------------------------------------------------------------------------------
    async def write(self, collection: str, writes: Sequence[Write], /, fence: Fence | None = None) -> list[int]:
        self._check()
        self._refuse()
        return await self._writing.work(self._write(collection, writes, fence))

    async def _write(self, collection: str, writes: Sequence[Write], fence: Fence | None) -> list[int]:
        part = (collection, writes[0].key[0])
        if part not in self._turns:
            try:
                return await self._attempt(collection, writes, fence)
            except WrongSequence:
                pass  # another write came first: decide again, with what it wrote
        # One write of this process at a time, where they are in each other's way.
        async with self._turns.setdefault(part, asyncio.Lock()):
            while True:
                try:
                    return await self._attempt(collection, writes, fence)
                except WrongSequence:
                    continue

    async def _attempt(self, collection: str, writes: Sequence[Write], fence: Fence | None) -> list[int]:
        part = writes[0].key[0]
        partition = self._layout.partition_of_part(collection, part)
        stream, blobs = self._layout.stream("K", partition), DocumentBlobs(self._wire, self._layout, partition)
        plan = await self._plan(stream, collection, writes, fence, blobs)
        # A caller that is cancelled does not wait for the outcome, and what must follow it follows.
        first = await asyncio.shield(self._writing.work(self._settle(stream, partition, plan, blobs)))
        if isinstance(first, PerhapsStored):
            raise StoreUnavailable(
                f"documents of {collection!r} under {part!r}: the connection broke during a write, and somebody has "
                "written since: whether this write was made is unknown. Read them again"
            ) from first
        if isinstance(first, StoreError):
            raise first
        puts = iter(plan.puts)
        return [first + next(puts) if revision is None else revision for revision in plan.revisions]

    async def _settle(self, stream: str, partition: int, plan: _Plan, blobs: DocumentBlobs) -> int | StoreError:
        """Put the messages and remove what is superfluous then; return the sequence of the first, or the error."""
        named = False
        try:
            for blob, (what, value) in plan.kept.items():
                await blobs.write(what, blob, value)
            named = True
            first = await self._put(stream, partition, plan)
        except StoreError as error:
            if not named or isinstance(error, WrongSequence):  # no message names them, or none does any more
                self._remove(blobs, plan.kept)
            return error
        for position in plan.deletes:
            self._tasks.spawn(self._wire.delete(stream, first + position))
        self._remove(blobs, plan.replaced)
        return first

    def _remove(self, blobs: DocumentBlobs, names: Iterable[str]) -> None:
        for blob in names:
            self._tasks.spawn(blobs.remove("", blob))

    async def _plan(
        self, stream: str, collection: str, writes: Sequence[Write], fence: Fence | None, blobs: DocumentBlobs
    ) -> _Plan:
        """Decide what to put, from what is there. Raises `RevisionConflict` or `Fenced`."""
        plan = _Plan()
        subjects = [self._layout.document(collection, write.key) for write in writes]
        if fence is not None:
            subjects.append(self._layout.document(fences_of(collection), fence_key(writes[0].key[0], fence)))
        found = await self._find(stream, subjects)

        def find(where: str, key: DocumentKey) -> Document | None:
            at = found[self._layout.document(where, key)]
            return Document(key, at.record.value, at.revision) if at.revision else None

        token = check_writes(find, collection, writes, fence)
        for write, subject in zip(writes, subjects, strict=False):
            at = found[subject]
            match write:
                case Put(key, value):
                    record = _Record(value)
                    if blobs.is_large(value):
                        record = _Record(blob=blobs.new_name(value))
                        plan.kept[record.blob] = "/".join(key), value
                    plan.puts.append(len(plan.messages))
                    plan.messages.append(Guarded(subject, _encode(record), at.sequence))
                    plan.revisions.append(None)
                    plan.replaced += [at.record.blob] if at.record.blob else []
                case Delete() if at.revision:
                    plan.deletes.append(len(plan.messages))
                    plan.messages.append(Guarded(subject, _encode(_Record(is_gone=True)), at.sequence))
                    plan.revisions.append(at.revision)
                    plan.replaced += [at.record.blob] if at.record.blob else []
                case Delete() | Check():
                    plan.guards += [(subject, at.sequence)] if write.if_revision is not None else []
                    plan.revisions.append(at.revision)
        if isinstance(token, Put):
            plan.messages.append(Guarded(subjects[-1], _encode(_Record(token.value)), found[subjects[-1]].sequence))
        elif token is not None:
            plan.guards.append((subjects[-1], found[subjects[-1]].sequence))
        return plan

    async def _put(self, stream: str, partition: int, plan: _Plan) -> int:
        """Put the messages under all guards; return the sequence of the first."""
        messages, guards = [*plan.messages], plan.guards
        if not messages and len(guards) < 2:
            return 0  # there is nothing to write, and the read was the check
        for number, (subject, sequence) in enumerate(guards):
            messages.append(Guarded(self._layout.guard(partition, number), b"", sequence, subject))
        if len(messages) > 1:
            return await self._batches.store(stream, messages)
        (message,) = messages
        return await self._wire.store(message.subject, message.payload, expected=message.expected)

    async def rewrite(self, stored: Stored, rewriting: Rewriting, refuse: Callable[[], object]) -> bool:
        """Rewrite a document under its revision; report whether anything has changed, or somebody has written it.

        `refuse` is called before anything is written.
        """
        collection, key = self._layout.document_of(stored.subject)
        stream, found = self._layout.stream_of(stored.subject), _found(stored)
        blobs = DocumentBlobs(self._wire, self._layout, self._layout.partition_of_part(collection, key[0]))
        if not found.revision:
            return False
        document = Document(key, await self._value(blobs, key, found), found.revision)
        value = rewriting.document(collection, document).value
        if value == document.value:
            return False
        refuse()
        record, plan = _Record(value, revision=found.revision), _Plan()
        if blobs.is_large(value):
            record = _Record(blob=blobs.new_name(value), revision=found.revision)
            plan.kept[record.blob] = "/".join(key), value
        plan.messages.append(Guarded(stored.subject, _encode(record), stored.sequence))
        plan.replaced += [found.record.blob] if found.record.blob else []
        done = await self._settle(stream, 0, plan, blobs)
        if isinstance(done, StoreError) and not isinstance(done, WrongSequence):
            raise done
        return True

    # --- reading ------------------------------------------------------------------------------------------------------
    async def read(self, collection: str, keys: Sequence[DocumentKey], /) -> list[Document | None]:
        self._check()
        return await self._read_each(collection, keys)

    async def _read_each(
        self, collection: str, keys: Sequence[DocumentKey], *, values: bool = True
    ) -> list[Document | None]:
        documents: dict[DocumentKey, Document] = {}
        by_partition: dict[int, list[DocumentKey]] = {}
        for key in keys:
            by_partition.setdefault(self._layout.partition_of_part(collection, key[0]), []).append(key)
        for partition, some in by_partition.items():
            documents.update({each.key: each for each in await self._read(partition, collection, some, values)})
        return [documents.get(key) for key in keys]

    async def _read(self, partition: int, collection: str, keys: Sequence[DocumentKey], values: bool) -> list[Document]:
        stream, blobs = self._layout.stream("K", partition), DocumentBlobs(self._wire, self._layout, partition)
        subjects = [self._layout.document(collection, key) for key in keys]
        found = await self._find(stream, subjects)
        documents: list[Document] = []
        for key, subject in zip(keys, subjects, strict=True):
            at = found[subject]
            while at.revision:
                try:
                    value = await self._value(blobs, key, at) if values else b""
                except StoreDamaged:  # its pieces are removed once another write has replaced it
                    now = (await self._find(stream, [subject]))[subject]
                    if now.sequence == at.sequence:
                        raise
                    at = now
                else:
                    documents.append(Document(key, value, at.revision))
                    break
        return documents

    async def _value(self, blobs: DocumentBlobs, key: DocumentKey, found: _Found) -> bytes:
        return await blobs.fetch("/".join(key), found.record.blob) if found.record.blob else found.record.value

    async def scan(self, collection: str, which: Scan, /) -> list[Document]:
        self._check()
        *within, _ = which.prefix.split(SEPARATOR)
        partitions = range(self._layout.partitions)
        if within:
            partitions = [self._layout.partition_of_part(collection, within[0])]
        keys = [key for each in partitions for key in await self._keys(each, collection, within)]
        keys = sorted((key for key in keys if which.has(joined(key))), reverse=which.reverse)
        documents: list[Document] = []
        while keys and not which.is_full(documents):  # some may have been deleted meanwhile
            count = self._next_read(which, documents)
            some, keys = keys[:count], keys[count:]
            found = await self._read_each(collection, some, values=which.values)
            documents += [each for each in found if each is not None]
        return documents

    def _next_read(self, which: Scan, documents: Sequence[Document]) -> int:
        """Return how many documents a scan reads next: as many as are wanted, by the size of those before."""
        left = which.limit - len(documents)
        if which.bytes is None or not which.values:
            return left
        if not documents:
            return min(left, FIRST_READ)
        size = sum(len(each.value) for each in documents)
        return min(left, 1 + (which.bytes - size) * len(documents) // max(size, 1))

    async def _keys(self, partition: int, collection: str, within: Sequence[str]) -> list[DocumentKey]:
        """Return the keys of documents in a partition that begin with these parts and have more, in no order."""
        stream = self._layout.stream("K", partition)
        filter = self._layout.documents(partition, collection, within)
        found: list[str] = []
        while True:
            answer = await self._wire.api(f"STREAM.INFO.{stream}", {"subjects_filter": filter, "offset": len(found)})
            raise_error(answer, stream)
            state: dict[str, Any] = answer.get("state") or {}
            subjects: dict[str, int] = state.get("subjects") or {}
            found += subjects
            if len(subjects) < NAMES_OF_A_PAGE:
                return [self._layout.document_key(subject) for subject in found]

    async def _find(self, stream: str, subjects: Sequence[str]) -> dict[str, _Found]:
        """Read the last message of each document, from the leader."""
        messages: dict[str, Stored] = {}
        if self._wire.is_clustered:  # another replica may lag
            for begin in range(0, len(subjects), READ_AT_A_TIME):
                some = subjects[begin : begin + READ_AT_A_TIME]
                for each in await asyncio.gather(*(self._wire.last(stream, subject) for subject in some)):
                    messages.update({each.subject: each} if each is not None else {})
        else:
            for begin in range(0, len(subjects), READ_AT_A_TIME):
                messages.update(await self._wire.last_of(stream, subjects[begin : begin + READ_AT_A_TIME]))
        return {subject: _found(messages.get(subject)) for subject in subjects}


def _found(message: Stored | None) -> _Found:
    if message is None:
        return _Found()
    try:
        return _Found(message.sequence, _decode(message.data))
    except msgspec.DecodeError as error:
        text = f"jetstream: {message.subject}: its message does not decode ({error}): restore a backup"
        raise StoreDamaged(text) from error
