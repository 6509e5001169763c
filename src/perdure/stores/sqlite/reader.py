"""Reads a file, for the store that serves it and for read-only views.

All reads go through one connection, in their own thread. Every row is verified against its checksum.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Never, Protocol, TypeVar

from perdure.core.journal import Answer, Message, Outcome, Start, decode_frame, known_status
from perdure.core.lifecycle import SETTLED as SETTLED_STATUSES
from perdure.counters import StoreCounters
from perdure.errors import StoreClosed, StoreDamaged, StoreError, StoreReadOnly
from perdure.stores.awakeables import Awakeable, AwakeableFilter
from perdure.stores.clock import SystemClock
from perdure.stores.notices import Feed
from perdure.stores.port import KEY_QUEUE_LIMIT, PAYLOAD_LIMIT_BYTES, Counts, Filter, Journal, Key, Minute, Row
from perdure.stores.read_only import OnlyLooking
from perdure.stores.rewriting import Left, Part, Rewriting
from perdure.stores.sql import awakeables, finding
from perdure.stores.sql.bounds import Bounded
from perdure.stores.sql.index import BEFORE_TAGS, COLUMNS, COUNTS, counts_of, minutes_of
from perdure.stores.sqlite.aside import Aside
from perdure.stores.sqlite.backup import Backups
from perdure.stores.sqlite.checked import (
    ROW,
    check_frames,
    damaged,
    damaged_awakeable,
    last_frame_of,
    message_of,
    row_of,
    start_of,
)
from perdure.stores.sqlite.documents import SqliteDocuments
from perdure.stores.sqlite.faults import Mismatch, about, explained
from perdure.stores.sqlite.file import connect
from perdure.stores.sqlite.keys import read_key
from perdure.stores.sqlite.look import Look, looked_at
from perdure.stores.sqlite.rewriting import Write, read_page, writes_for
from perdure.stores.sqlite.streams import SqliteStreams
from perdure.stores.sqlite.unit import Unit

T = TypeVar("T")

READ_BATCH_LIMIT = 100
"""Reads that are sent to the reading thread together at most."""
ROWS_AT_ONCE = 20
"""Rows that are rewritten without giving others a turn on the loop."""
READ_AGAIN_LIMIT = 3
"""How often reads are repeated at most because their source changed meanwhile."""

_Read = tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]
_Found = tuple[Any, Exception | None]


class Source(Protocol):
    """A connection to read through, which may have to be reopened."""

    def current(self) -> sqlite3.Connection:
        """Return the connection to read through."""
        ...

    @property
    def is_current(self) -> bool:
        """Report whether what was read since `current` is valid; if not, it is read again."""
        ...

    def close(self) -> None: ...


class Served:
    """The connection of the process that serves the file, which no other process changes."""

    is_current = True

    def __init__(self, path: str) -> None:
        self._db = connect(path)

    def current(self) -> sqlite3.Connection:
        return self._db

    def close(self) -> None:
        self._db.close()


class ReadThread:
    """Reads a source in its own thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="perdure-sqlite-read")
        self._source: Source | None = None
        self._reads: list[_Read] = []
        self._busy = False

    def use(self, source: Source) -> None:
        """Read from `source` from now on."""
        self._source = source

    def run(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Run `work` in the thread."""
        return asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def close(self) -> None:
        """Finish the reads in progress, refuse those that wait, and close the source."""
        source, self._source = self._source, None
        if source is not None:
            await self.run(source.close)
        self._pool.shutdown(wait=False)

    async def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._reads.append((read, future))
        if not self._busy:
            # The reads of one iteration of the loop are sent together, and those that come meanwhile next: one hop per
            # read would make the two threads contend for the interpreter's lock each time.
            self._busy = True
            loop.call_soon(self._send)
        return await future

    def _send(self) -> None:
        source = self._source
        limit = READ_BATCH_LIMIT if source is not None else len(self._reads)
        reads, self._reads = self._reads[:limit], self._reads[limit:]
        self._busy = bool(reads) and source is not None
        if source is None:
            for _, future in reads:
                if not future.done():
                    future.set_exception(StoreClosed(about(self._path, "the store is closed")))
        elif reads:
            loop = asyncio.get_running_loop()
            loop.run_in_executor(self._pool, self._execute, loop, source, reads)

    def _execute(self, loop: asyncio.AbstractEventLoop, source: Source, reads: Sequence[_Read]) -> None:
        """Run the reads, in the thread. A caller gets what its read raises."""
        found = [self._found(source, read) for read, _ in reads]
        for _ in range(READ_AGAIN_LIMIT):
            if source.is_current:
                break
            found = [self._found(source, read) for read, _ in reads]
        loop.call_soon_threadsafe(self._ended, reads, found)

    def _found(self, source: Source, read: Callable[[sqlite3.Connection], Any]) -> _Found:
        try:
            with explained(self._path):
                return read(source.current()), None
        except Exception as error:  # noqa: BLE001  the caller gets it, and the other reads go on
            return None, error

    def _ended(self, reads: Sequence[_Read], found: Sequence[_Found]) -> None:
        for (_, future), (value, error) in zip(reads, found, strict=True):
            if future.done():
                continue  # its caller was cancelled
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        self._send()


class SqliteReader:
    """The read half of the Store protocol."""

    def __init__(
        self, path: str, *, payload_limit: int = PAYLOAD_LIMIT_BYTES, key_queue_limit: int = KEY_QUEUE_LIMIT
    ) -> None:
        self.path = os.path.realpath(os.path.expanduser(path))  # the name beside which SQLite keeps its log
        self.clock = SystemClock()
        self.payload_limit = payload_limit
        self.clocks_apart = 0.0
        self.counters = StoreCounters()
        self.key_queue_limit = key_queue_limit
        self.secret = b""
        self._pid = os.getpid()
        self._open = False
        self._lost: StoreError | None = None  # why nothing can be read or written any more
        self._reading = ReadThread(self.path)
        self._aside = Aside(self.path)
        self.documents = SqliteDocuments(self.path, self._read, self._hand_over)
        self.streams = SqliteStreams(self.path, self._read, self._hand_over)

    def _hand_over(self, unit: Unit) -> asyncio.Future[Any]:
        """Hand a unit of documents or streams to the writer."""
        raise NotImplementedError

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError(
                about(self.path, f"it was opened by process {self._pid}: a forked child must open its own store")
            )
        if not self._open:
            raise StoreClosed(about(self.path, "the store is closed"))
        if self._lost is not None:
            raise type(self._lost)(str(self._lost))

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        self._check()
        return await self._reading.read(read)

    def _listed(self, found: Sequence[Any]) -> Row | None:
        """Return a row to list; None if it is damaged, which sets its invocation aside."""
        try:
            return row_of(self.path, found)
        except StoreDamaged as error:
            self._aside.add(found[0], error)
            return None

    @property
    def set_aside(self) -> list[str]:
        """The ids of invocations that this process does not serve: damaged, or readable by a newer release only."""
        return [*self._aside]

    # --- one invocation -----------------------------------------------------------------------------------------------
    async def journal(self, id: str, /) -> Journal:
        self._aside.check(id)
        return await self._read(lambda db: self._journal(db, id))

    def _journal(self, db: sqlite3.Connection, id: str) -> Journal:
        # In this order: a commit between the two reads adds frames, which must not look like missing ones.
        known = db.execute("SELECT revision, status FROM invocation WHERE id = ?", (id,)).fetchone()
        rows = db.execute("SELECT revision, data, checksum FROM frame WHERE id = ? ORDER BY revision", (id,)).fetchall()
        if known is not None:
            if len(rows) < known[0] and _is_gone(db, id):
                return Journal()
            known_status(known[1], id)
        check_frames(self.path, id, 0 if known is None else known[0], rows)
        return Journal(tuple(decode_frame(data, id) for _, data, _ in rows), len(rows), done=True)  # one transaction

    async def revision(self, id: str, /) -> int:
        query = "SELECT ifnull(max(revision), 0) FROM frame WHERE id = ?"  # the row changes with the status only
        return (await self._read(lambda db: db.execute(query, (id,)).fetchone()))[0]

    async def outcome(self, id: str, /) -> Outcome | None:
        def read(db: sqlite3.Connection) -> Outcome | None:
            row = db.execute("SELECT status FROM invocation WHERE id = ?", (id,)).fetchone()
            if row is None or row[0] not in SETTLED_STATUSES:
                return None
            last = db.execute(
                "SELECT revision, data, checksum FROM frame WHERE id = ? ORDER BY revision DESC LIMIT 1", (id,)
            ).fetchone()
            if last is None and _is_gone(db, id):
                return None
            outcome = last_frame_of(self.path, id, last).outcome
            if outcome is None:
                raise damaged(self.path, f"invocation {id!r} is {row[0]}, but its journal has no outcome")
            return outcome

        self._aside.check(id)
        return await self._read(read)

    async def mail(self, id: str, /) -> list[Message]:
        query = "SELECT data, checksum FROM message WHERE invocation = ? AND answered = 0"
        rows = await self._read(lambda db: db.execute(query, (id,)).fetchall())
        return sorted((message_of(self.path, id, *row) for row in rows), key=lambda each: each.at)

    async def start(self, id: str, /) -> Start | None:
        query = "SELECT start, checksum FROM invocation WHERE id = ?"
        row = await self._read(lambda db: db.execute(query, (id,)).fetchone())
        return None if row is None else start_of(self.path, id, *row)

    async def row(self, id: str, /) -> Row | None:
        self._aside.check(id)
        found = await self._read(lambda db: _rows(db, f"SELECT {ROW} FROM invocation WHERE id = ?", (id,)))
        return row_of(self.path, found[0]) if found else None

    # --- keys and lists -----------------------------------------------------------------------------------------------
    async def key(self, name: str, /) -> Key:
        def read(db: sqlite3.Connection) -> Key:
            try:
                return read_key(db, name)
            except Mismatch as mismatch:
                raise StoreDamaged(about(self.path, str(mismatch))) from mismatch

        return await self._read(read)

    async def search(self, filter: Filter, /) -> list[Row]:
        """List invocations, newest first. Those whose row is damaged are left out."""
        found = await self._read(lambda db: _search(db, filter))
        return [row for each in found if (row := self._listed(each)) is not None]

    async def awakeables(self, filter: AwakeableFilter, /) -> list[Awakeable]:
        """List awakeables, oldest first. Those whose row is damaged are left out, and set their invocation aside."""

        def read(db: sqlite3.Connection) -> list[Any]:
            try:
                return Bounded(db, filter.within).rows(query, values)
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                text = "an earlier release wrote it, without an index of awakeables: serve it once with this release"
                raise StoreError(about(self.path, text)) from error

        query, values = awakeables.query_of(filter)
        found: list[Awakeable] = []
        for row in await self._read(read):
            if (awakeable := awakeables.decode(row)) is not None:
                found.append(awakeable)
            else:
                self._aside.add(row[0], damaged_awakeable(self.path, row[0]))
        return found

    async def counts(self) -> Counts:
        def read(db: sqlite3.Connection) -> Counts:
            counts = counts_of(db.execute(COUNTS).fetchall())
            for handler in counts.by_handler if "pending" in counts.by_status else ():
                if (first := db.execute(_QUEUED_FIRST, (handler,)).fetchone()) is not None:
                    counts.due_since[handler] = first[0]
            return counts

        return await self._read(read)

    async def minutes(
        self, since: float, /, *, handler: str | None = None, within: float | None = None
    ) -> list[Minute]:
        return await self._read(lambda db: minutes_of(Bounded(db, within), since, handler))

    # --- rewriting ----------------------------------------------------------------------------------------------------
    async def rewrite(self, rewriting: Rewriting, after: str = "", /) -> Part:
        page = await self._read(lambda db: read_page(db, after))
        writes: list[Write] = []
        left: list[Left] = []
        changed = 0
        for number, row in enumerate(page.rows, 1):
            match writes_for(self.path, rewriting, page.table, row):
                case Left() as why:
                    left.append(why)
                case found:
                    writes += found
                    changed += bool(found)
            if not number % ROWS_AT_ONCE:
                await asyncio.sleep(0)
        if writes or page.next is None:
            await self._write_again(writes, is_last=page.next is None)
        return Part(page.next, len(page.rows), changed, tuple(left))

    async def _write_again(self, writes: Sequence[Write], *, is_last: bool) -> None:
        raise NotImplementedError


class SqliteView(OnlyLooking, SqliteReader):
    """A read-only view of a file, which another process may serve. It takes no lock and has no writer."""

    async def open(self) -> None:
        self._backups = Backups(self.path, partial(looked_at, self.path))
        look = Look(self.path, self._aside)
        try:
            opened = await self._reading.run(look.open)
        except BaseException:
            await self._reading.close()
            raise
        self._reading.use(look)
        self.secret = opened.secret
        self._open = True

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self.streams.followers.tell_all()
            await self._backups.end()
            await self._reading.close()

    async def backup(self, target: str, /) -> None:
        """Copy a snapshot of the file to `target`, which must not exist. Another process may serve the file."""
        self._check()
        await self._backups.take(target)

    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        self._refuse_change("outcomes cannot be awaited: describe the invocation")

    def events(self, filter: Filter, /) -> Feed:
        self._refuse_change("changes cannot be watched: list the invocations")

    async def answer(self, message_id: str, /) -> Answer:
        self._refuse_change("answers cannot be awaited: describe the invocation")

    def serves(self, handler: str, /) -> bool | None:
        return None  # unknown: another process may serve it

    def served(self) -> set[str]:
        return set()

    def _hand_over(self, unit: Unit) -> asyncio.Future[Any]:
        self._refuse_change("no document or stream can be written")

    async def _write_again(self, writes: Sequence[Write], *, is_last: bool) -> None:
        if writes:
            self._refuse_change("nothing can be written")

    def _refuse_change(self, what: str) -> Never:
        self._check()
        raise StoreReadOnly(about(self.path, f"it was opened read-only, so {what}"))


_QUEUED_FIRST = (
    "SELECT due FROM invocation WHERE status = 'pending' AND sequence IS NOT NULL AND handler = ? "
    "ORDER BY sequence LIMIT 1"
)


def _search(db: sqlite3.Connection, filter: Filter) -> list[Any]:
    try:
        return finding.search(Bounded(db, filter.within), filter, ROW)
    except sqlite3.OperationalError as error:
        if not _is_older(error):
            raise
        return _rows(db, *finding.plain_query_of(filter, ROW))


def _rows(db: sqlite3.Connection, query: str, values: Sequence[Any]) -> list[Any]:
    """Read rows for `row_of`. In a file that an earlier release wrote, no invocation has tags."""
    try:
        return db.execute(query, values).fetchall()
    except sqlite3.OperationalError as error:
        if "no such table: tag" in str(error):
            return []
        if not _is_older(error):
            raise
        return db.execute(query.replace(COLUMNS, BEFORE_TAGS), values).fetchall()


def _is_older(error: sqlite3.OperationalError) -> bool:
    """Report whether a file lacks a table, column or index, since an earlier release wrote it."""
    return str(error).startswith("no such")


def _is_gone(db: sqlite3.Connection, id: str) -> bool:
    """Report whether an invocation was purged between two reads."""
    return db.execute("SELECT 1 FROM invocation WHERE id = ?", (id,)).fetchone() is None
