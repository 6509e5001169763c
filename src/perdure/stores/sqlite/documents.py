"""Documents in the file. `apply` runs in the writer's thread, in its transaction."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import zlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from perdure.errors import PerdureError, StoreDamaged
from perdure.stores.documents import (
    Check,
    Delete,
    Document,
    DocumentKey,
    Fence,
    Put,
    Scan,
    Write,
    check_writes,
    fences_of,
    joined,
    split,
)
from perdure.stores.sqlite.checked import RESTORE, has_table
from perdure.stores.sqlite.faults import about
from perdure.stores.sqlite.unit import DocumentWrites, Unit

T = TypeVar("T")

_LAST = "SELECT value FROM meta WHERE name = 'document'"
_NOTE_LAST = "INSERT OR REPLACE INTO meta VALUES ('document', ?)"
_READ = "SELECT value, revision, checksum FROM document WHERE collection = ? AND key = ?"
_PUT = "INSERT OR REPLACE INTO document (collection, key, value, revision, checksum) VALUES (?, ?, ?, ?, ?)"
_REVISION = "SELECT revision FROM document WHERE collection = ? AND key = ?"
_DELETE = "DELETE FROM document WHERE collection = ? AND key = ?"


class Read(Protocol):
    """Runs a read of the file in the reading thread."""

    def __call__(self, read: Callable[[sqlite3.Connection], T], /) -> Awaitable[T]: ...


class SqliteDocuments:
    """The documents of a file. `enqueue` hands a unit to the writer, or raises if the file is only read."""

    def __init__(self, path: str, read: Read, enqueue: Callable[[Unit], asyncio.Future[Any]]) -> None:
        self._path = path
        self._read = read
        self._enqueue = enqueue

    async def write(self, collection: str, writes: Sequence[Write], /, fence: Fence | None = None) -> list[int]:
        return await self._enqueue(Unit(documents=DocumentWrites(collection, writes, fence)))

    async def read(self, collection: str, keys: Sequence[DocumentKey], /) -> list[Document | None]:
        def read(db: sqlite3.Connection) -> list[Document | None]:
            return [_read_one(db, collection, key) for key in keys]

        return await self._checked(read, [None] * len(keys))

    async def scan(self, collection: str, which: Scan, /) -> list[Document]:
        query, values = _query_of(collection, which)

        def read(db: sqlite3.Connection) -> list[Document]:
            with contextlib.closing(db.execute(query, values)) as rows:
                if not which.values:
                    return [Document(_key_of(key), b"", revision) for key, revision in rows]
                return which.take(_document_of(collection, key, *row) for key, *row in rows)

        return await self._checked(read, [])

    async def _checked(self, read: Callable[[sqlite3.Connection], T], nothing: T) -> T:
        def checked(db: sqlite3.Connection) -> T:
            try:
                return read(db)
            except sqlite3.OperationalError:
                if has_table(db, "document"):
                    raise
                return nothing  # a file of an earlier release, which is only read

        try:
            return await self._read(checked)
        except _Damaged as error:
            raise StoreDamaged(about(self._path, str(error))) from None


class _Damaged(Exception):
    """A row does not match its checksum."""


def document_of(path: str, collection: str, key: bytes, value: Any, revision: Any, recorded: Any) -> Document:
    """Return the document of a row, or raise `StoreDamaged`."""
    try:
        return _document_of(collection, key, value, revision, recorded)
    except _Damaged as error:
        raise StoreDamaged(about(path, str(error))) from None


def apply(db: sqlite3.Connection, units: Sequence[Unit]) -> None:
    """Make the writes of units that have any. One that may not be made gets its error, and the others go on."""
    last: int = (db.execute(_LAST).fetchone() or (0,))[0]
    before = last
    for unit in units:
        writes = unit.documents
        assert writes is not None
        try:
            token = check_writes(partial(_read_one, db), writes.collection, writes.writes, writes.fence)
        except (PerdureError, _Damaged) as error:
            unit.error = StoreDamaged(str(error)) if isinstance(error, _Damaged) else error
            continue
        writes.revisions.clear()
        if isinstance(token, Put):
            last += 1
            _put(db, fences_of(writes.collection), token, last)
        for write in writes.writes:
            match write:
                case Put():
                    last += 1
                    _put(db, writes.collection, write, last)
                    writes.revisions.append(last)
                case Delete(key):
                    place = (writes.collection, _encoded(key))
                    (revision,) = db.execute(_REVISION, place).fetchone() or (0,)
                    db.execute(_DELETE, place)
                    writes.revisions.append(revision)
                case Check(_, revision):
                    writes.revisions.append(revision)
    if last != before:
        db.execute(_NOTE_LAST, (last,))


def _put(db: sqlite3.Connection, collection: str, put: Put, revision: int) -> None:
    key = _encoded(put.key)
    row = (collection, key, put.value, revision, checksum(collection, key, put.value, revision))
    db.execute(_PUT, row)


def _read_one(db: sqlite3.Connection, collection: str, key: DocumentKey) -> Document | None:
    encoded = _encoded(key)
    row = db.execute(_READ, (collection, encoded)).fetchone()
    return None if row is None else _document_of(collection, encoded, *row)


def _document_of(collection: str, key: bytes, value: Any, revision: Any, recorded: Any) -> Document:
    whole = isinstance(value, bytes) and isinstance(revision, int)
    if not whole or checksum(collection, key, value, revision) != recorded:
        name = key.decode(errors="replace").replace("\0", "/")
        raise _Damaged(f"document {name!r} of collection {collection!r} was changed: {RESTORE}")
    return Document(_key_of(key), value, revision)


def _query_of(collection: str, which: Scan) -> tuple[str, list[Any]]:
    columns = "key, value, revision, checksum" if which.values else "key, revision"
    bounds: list[tuple[str, bytes]] = []
    if begin := which.prefix.encode():
        bounds += [("key >= ?", begin), ("key < ?", _after_all(begin))]
    if which.after is not None:
        bounds.append(("key < ?" if which.reverse else "key > ?", _encoded(which.after)))
    where = " AND ".join(["collection = ?", *(condition for condition, _ in bounds)])
    order = "DESC" if which.reverse else "ASC"
    query = f"SELECT {columns} FROM document WHERE {where} ORDER BY key {order} LIMIT ?"
    return query, [collection, *(value for _, value in bounds), which.limit]


def _after_all(prefix: bytes) -> bytes:
    """Return the least string that is greater than all that begin with a prefix. UTF-8 has no byte 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _encoded(key: DocumentKey) -> bytes:
    return joined(key).encode()


def _key_of(encoded: bytes) -> DocumentKey:
    return split(encoded.decode())


def checksum(collection: str, key: bytes, value: bytes, revision: int) -> int:
    return zlib.crc32(value, zlib.crc32(b"%s\n%s\n%d" % (collection.encode(), key, revision)))
