"""Streams in the file. `apply` runs in the writer's thread, in its transaction."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from perdure.core.streams import Batch
from perdure.errors import PerdureError, StoreDamaged
from perdure.stores.sql.index import SETTLED
from perdure.stores.sqlite.checked import RESTORE, has_table
from perdure.stores.sqlite.faults import Mismatch, about
from perdure.stores.sqlite.unit import StepItems, Unit
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

T = TypeVar("T")

PURGE = "DELETE FROM stream WHERE invocation = ?"

_LAST = "SELECT position, data, checksum FROM stream WHERE invocation = ? AND name = ? ORDER BY position DESC LIMIT 1"
_FROM = (
    "SELECT position, data, checksum FROM stream WHERE invocation = ? AND name = ? AND position >= "
    "ifnull((SELECT max(position) FROM stream WHERE invocation = ? AND name = ? AND position <= ?), 0) "
    "ORDER BY position"
)
_PUT = "INSERT INTO stream (invocation, name, position, data, checksum) VALUES (?, ?, ?, ?, ?)"
_NAMES = "SELECT DISTINCT name FROM stream WHERE invocation = ?"
_RUNS = f"SELECT 1 FROM invocation WHERE id = ? AND NOT {SETTLED}"


class Read(Protocol):
    """Runs a read of the file in the reading thread."""

    def __call__(self, read: Callable[[sqlite3.Connection], T], /) -> Awaitable[T]: ...


class SqliteStreams:
    """The streams of a file. `enqueue` hands a unit to the writer, or raises if the file is only read."""

    def __init__(self, path: str, read: Read, enqueue: Callable[[Unit], asyncio.Future[Any]]) -> None:
        self._path = path
        self._read = read
        self._enqueue = enqueue
        self.followers = Followers()

    async def append(self, id: str, epoch: int, batch: Batch, /) -> None:
        await self._enqueue(Unit(items=StepItems(id, epoch, batch)))

    async def read(self, id: str, name: str, start: int, /) -> Sequence[Chunk]:
        def read(db: sqlite3.Connection) -> list[Chunk]:
            found: list[Chunk] = []
            size = 0
            with contextlib.closing(db.execute(_FROM, (id, name, id, name, start))) as rows:
                for row in rows:
                    chunk = _chunk_of(id, name, *row)
                    if chunk.end > start:
                        found.append(chunk)
                        size += len(chunk.batch.data)
                        if size >= READ_BYTES:
                            break
            return found

        return await self._checked(read, [])

    async def counts(self, id: str, /) -> Mapping[str, int]:
        def read(db: sqlite3.Connection) -> dict[str, int]:
            found = ((name, _last(db, id, name)) for (name,) in db.execute(_NAMES, (id,)).fetchall())
            return {name: last.end for name, last in sorted(found) if last is not None}

        return await self._checked(read, {})

    def follow(self, id: str, name: str, /) -> Follower:
        return self.followers.follow(id, name)

    def written(self, unit: Unit) -> None:
        """Tell those who follow what a unit wrote."""
        if unit.items is not None:
            self.followers.tell(unit.items.id, unit.items.batch.name)
        if (transition := unit.transition) is not None:
            for batch in transition.effects.written:
                self.followers.tell(transition.id, batch.name)

    async def _checked(self, read: Callable[[sqlite3.Connection], T], nothing: T) -> T:
        def checked(db: sqlite3.Connection) -> T:
            try:
                return read(db)
            except sqlite3.OperationalError:
                if has_table(db, "stream"):
                    raise
                return nothing  # a file of an earlier release, which is only read

        try:
            return await self._read(checked)
        except _Damaged as error:
            raise StoreDamaged(about(self._path, str(error))) from None


class _Damaged(Exception):
    """A chunk does not match its checksum."""


def append_of_step(db: sqlite3.Connection, unit: Unit) -> None:
    """Write what a step wrote. If that may not be, the unit gets the error, and others go on."""
    items = unit.items
    assert items is not None
    try:
        if db.execute(_RUNS, (items.id,)).fetchone() is None:
            raise lost(items.id, items.batch.name, items.epoch)
        last = _last(db, items.id, items.batch.name)
        _put(db, items.id, next_of_step(last, items.id, items.epoch, items.batch))
    except (PerdureError, _Damaged) as error:
        unit.error = StoreDamaged(str(error)) if isinstance(error, _Damaged) else error


def append_of_body(db: sqlite3.Connection, id: str, batch: Batch) -> None:
    """Write what a body wrote, unless it is there."""
    try:
        chunk = next_of_body(_last(db, id, batch.name), batch)
    except (PerdureError, _Damaged) as error:
        raise Mismatch(StoreDamaged(str(error))) from None
    if chunk is not None:
        _put(db, id, chunk)


def _last(db: sqlite3.Connection, id: str, name: str) -> Chunk | None:
    row = db.execute(_LAST, (id, name)).fetchone()
    return None if row is None else _chunk_of(id, name, *row)


def _put(db: sqlite3.Connection, id: str, chunk: Chunk) -> None:
    data = encode_chunk(chunk)
    name = chunk.batch.name
    db.execute(_PUT, (id, name, chunk.offset, data, checksum(id, name, chunk.offset, data)))


def _chunk_of(id: str, name: str, position: Any, data: Any, recorded: Any) -> Chunk:
    whole = isinstance(data, bytes) and isinstance(position, int)
    if not whole or checksum(id, name, position, data) != recorded:
        raise _Damaged(f"{changed(id, name, position)}: {RESTORE}")
    return decode_chunk(data, id)


def changed(id: str, name: str, position: object) -> str:
    """Return what is wrong with a chunk that does not match its checksum."""
    return f"item {position!r} of stream {name!r} of invocation {id!r} was changed"


def checksum(id: str, name: str, position: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(f"{id}\n{name}\n{position}".encode()))
