"""The SQLite store: one file, no server, every acknowledged write synced to disk.

One writer thread commits everything that waits in one transaction (WAL, `synchronous=FULL`), so that many invocations
share one fsync. Reads go through a connection of their own in another thread. Who gets which delivery is decided in
memory (`dispatch`); the file holds what must outlive the process:

    invocation   one row each: its start, status, place in the queue, next wake; changes only with the status
    frame        the journals: (id, revision) -> bytes, each with a checksum
    message      what was posted, and its answer
    meta         schema version, secret, number of the last commit

Three files stand beside the database: SQLite's own `-wal` and `-shm`, and `-commit`, which keeps the number of the
last commit. It is written after each commit and not synced. SQLite silently drops what follows a damaged page of the
WAL; a database whose commit number is behind that file has lost something that was acknowledged, and is refused.
`-lock` is a database of its own: whoever holds its write lock serves the file. A forked child inherits no such lock.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import secrets
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Callable, Collection, Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from msgspec import Struct

from perdure.core.codec import digest
from perdure.core.journal import (
    Answer,
    Message,
    Outcome,
    Start,
    Status,
    decode_frame,
    decode_message,
    decode_start,
    encode_frame,
    encode_message,
    encode_start,
    settles_before_begin,
)
from perdure.errors import (
    Conflict,
    PerdureError,
    StoreClosed,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreTooNew,
)
from perdure.stores.clock import Alarm, SystemClock
from perdure.stores.dispatch import Dispatcher, Member
from perdure.stores.notices import Notices
from perdure.stores.store import (
    PAYLOAD_LIMIT_BYTES,
    Counts,
    Delivery,
    Filter,
    Journal,
    Row,
    Transition,
    Wake,
    id_conflict,
    unknown,
)

T = TypeVar("T")

SCHEMA_VERSION = 1
BATCH_LIMIT = 2_000
"""Transitions, submits and posts that share one transaction at most."""
VERIFY_LIMIT_BYTES = 64 * 1024 * 1024
"""Files up to this size are checked whole when they are opened; of larger ones, what is not settled."""
RING_RETRY_SECONDS = 1.0
"""How long after a failure to read what is due it is read again."""
DUE_BATCH_LIMIT = 1_000
HEADER_BYTES = 100
"""Wakes and delayed starts that are read at a time."""

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE invocation (
    id TEXT PRIMARY KEY, handler TEXT NOT NULL, key TEXT, created_at REAL NOT NULL, due REAL NOT NULL,
    identity BLOB NOT NULL, start BLOB NOT NULL, checksum INTEGER NOT NULL,
    status TEXT NOT NULL, sequence INTEGER, updated_at REAL NOT NULL, wake REAL, revision INTEGER NOT NULL,
    state_checksum INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX invocation_by_time ON invocation (created_at, id);
CREATE INDEX invocation_by_status ON invocation (status, handler);
CREATE INDEX invocation_by_key ON invocation (key, created_at) WHERE key IS NOT NULL;
CREATE INDEX invocation_queued ON invocation (handler, sequence) WHERE status = 'pending';
CREATE INDEX invocation_scheduled ON invocation (due) WHERE status = 'scheduled';
CREATE INDEX invocation_wake ON invocation (wake) WHERE wake IS NOT NULL;
CREATE TABLE frame (
    id TEXT NOT NULL, revision INTEGER NOT NULL, data BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (id, revision)
) WITHOUT ROWID;
CREATE TABLE message (
    id TEXT PRIMARY KEY, invocation TEXT NOT NULL, data BLOB NOT NULL, checksum INTEGER NOT NULL, answer TEXT,
    answered INTEGER NOT NULL DEFAULT 0, answer_checksum INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX message_open ON message (invocation) WHERE answered = 0;
"""

log = logging.getLogger("perdure.sqlite")


# --- what waits to be written -----------------------------------------------------------------------------------------
class _Accept(Struct):
    """A start with the status and place that it will have."""

    start: Start
    data: bytes
    status: Status
    sequence: int
    new: bool = True


class _Unit:
    """What is written whole or not at all: a submit, a post, a commit, or the store's own housekeeping.

    `strict` makes an id that exists with another input an error; `must_exist`, a message to nobody.
    """

    __slots__ = (
        *("accepts", "done_messages", "error", "frame", "future", "messages", "must_exist", "promoted", "routes"),
        *("strict", "transition"),
    )

    def __init__(
        self,
        *,
        accepts: Sequence[_Accept] = (),
        strict: bool = False,
        transition: Transition | None = None,
        frame: bytes | None = None,
        messages: Sequence[Message] = (),
        must_exist: bool = False,
        done_messages: Sequence[str] = (),
        promoted: Sequence[tuple[int, Start]] = (),
    ) -> None:
        self.future: asyncio.Future[Any] | None = None
        self.accepts = accepts
        self.strict = strict
        self.transition = transition
        self.frame = frame
        self.messages = messages
        self.must_exist = must_exist
        self.done_messages = done_messages
        self.promoted = promoted
        self.routes: list[tuple[Message, str, Status]] = []
        self.error: Exception | None = None


class SqliteStore:
    """A store in one SQLite file, served by this process alone."""

    def __init__(self, path: str, *, payload_limit: int = PAYLOAD_LIMIT_BYTES) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        self.clock = SystemClock()
        self.payload_limit = payload_limit
        self.secret = b""
        self.commits = 0
        self._pid = os.getpid()
        self._open = False
        self._notices = Notices()
        self._dispatcher = Dispatcher(self._fetch, self._forget)
        self._alarm = Alarm(self.clock, self._ring)
        self._rung_to = 0.0
        self._ringing = False
        self._ring_again = False
        self._units: list[_Unit] = []
        self._flush_scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="perdure-sqlite-read")
        self._sequence = 0
        self._opened_at = 0

    # --- life ---------------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = await self._loop.run_in_executor(self._reader, _Lock.take, self.path)
        try:
            opened = await self._loop.run_in_executor(self._reader, _open_file, self.path)
            self._read_db = await self._loop.run_in_executor(self._reader, _connect, self.path)
            with _explained(self.path):
                self._writer = _Writer(self.path, opened, self._loop, self._written)
        except BaseException:
            self._lock.release()
            raise
        self.secret, self._sequence = opened.secret, opened.sequence
        self._opened_at = opened.sequence
        self._open = True

    async def aclose(self) -> None:
        if not self._open:
            return
        if os.getpid() != self._pid:
            self._open = False  # the threads, the connections and the lock are the parent's
            return
        self._flush()
        self._open = False
        self._alarm.cancel()
        self._dispatcher.close()
        await self._loop.run_in_executor(None, self._writer.close)
        self._notices.fail(StoreClosed(_about(self.path, "the store is closed")))
        await self._loop.run_in_executor(self._reader, self._read_db.close)
        self._reader.shutdown(wait=False)
        self._lock.release()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError(
                _about(self.path, f"it was opened by process {self._pid}; a forked child must open one of its own")
            )
        if not self._open:
            raise StoreClosed(_about(self.path, "the store is closed"))

    # --- writing ------------------------------------------------------------------------------------------------------
    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        self._check()
        return self._enqueue(_Unit(accepts=[self._accept(start) for start in starts], strict=True))

    def post(self, message: Message, /) -> asyncio.Future[None]:
        self._check()
        return self._enqueue(_Unit(messages=[message], must_exist=True))

    def commit(self, transition: Transition, /) -> asyncio.Future[int]:
        future: asyncio.Future[int] = self._loop.create_future()
        if not self._open:
            future.set_exception(StoreClosed(_about(self.path, "the store is closed")))
            return future
        effects = transition.effects
        unit = _Unit(
            transition=transition,
            frame=None if transition.frame is None else encode_frame(transition.frame),
            accepts=[self._accept(start) for start in effects.starts] if effects.starts else (),
            messages=effects.messages,
        )
        for delivery in transition.acknowledge:
            if type(delivery.item) is Message:
                unit.done_messages = (*unit.done_messages, delivery.item.id)
        return self._enqueue(unit, future)

    def _accept(self, start: Start) -> _Accept:
        if start.due > self.clock.now():
            return _Accept(start, encode_start(start), "scheduled", 0)
        self._sequence += 1
        return _Accept(start, encode_start(start), "pending", self._sequence)

    def _enqueue(self, unit: _Unit, future: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        unit.future = future or self._loop.create_future()
        self._units.append(unit)
        if not self._flush_scheduled:
            # All that is asked for in this round of the loop goes to the writer together.
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)
        return unit.future

    def _flush(self) -> None:
        self._flush_scheduled = False
        units, self._units = self._units, []
        if units:
            self._writer.put(units)

    def _written(self, units: Sequence[_Unit]) -> None:
        """Act on what is durable: hand out starts and messages, end futures. Runs on the loop."""
        for unit in units:
            future = unit.future
            if unit.error is not None:
                if future is not None and not future.done():
                    future.set_exception(unit.error)
                continue
            transition = unit.transition
            if self._open:
                self._hand_out(unit)
            if future is not None and not future.done():
                if transition is not None:
                    future.set_result(transition.expected + (unit.frame is not None))
                else:
                    future.set_result([accept.new for accept in unit.accepts] if unit.strict else None)
        self._dispatcher.pump()

    def _hand_out(self, unit: _Unit) -> None:
        for accept in unit.accepts:
            if accept.new:
                self._queue(accept)
        for sequence, start in unit.promoted:
            self._dispatcher.queue(Delivery(start.id, start.handler, start, fresh=True, token=sequence))
        for message, handler, status in unit.routes:
            self._route(message, handler, status, 1)
        if unit.transition is not None:
            self._after_commit(unit.transition)

    def _queue(self, accept: _Accept) -> None:
        start = accept.start
        if accept.status == "scheduled":
            self._alarm.by(start.due)
        else:
            self._dispatcher.queue(Delivery(start.id, start.handler, start, fresh=True, token=accept.sequence))

    def _route(self, message: Message, handler: str, status: Status, attempt: int) -> None:
        begun = status not in ("pending", "scheduled") or (status == "scheduled" and settles_before_begin(message))
        self._dispatcher.offer(Delivery(message.to, handler, message, attempt), begun=begun)

    def _after_commit(self, transition: Transition) -> None:
        outcome = transition.outcome
        ended = transition.released or outcome is not None
        self._dispatcher.committed(transition.id, transition.acknowledge, ended=ended)
        if ended and transition.effects.wake is not None:
            if transition.effects.wake <= self._rung_to:
                self._rung_to = 0.0
            self._alarm.by(transition.effects.wake)
        for answer in transition.effects.answers:
            self._notices.answered(answer)
        if outcome is not None:
            self._notices.settled(transition.id, outcome)

    # --- deliveries ---------------------------------------------------------------------------------------------------
    def subscribe(
        self,
        handlers: Collection[str],
        deliver: Callable[[Delivery], None],
        *,
        partitions: Collection[int] | None = None,
    ) -> Member:
        self._check()
        member = self._dispatcher.join(handlers, deliver)
        self._spawn(self._recover(member))
        return member

    async def _recover(self, member: Member) -> None:
        """Offer what was in somebody's hands when he ended, or waited for somebody to serve it."""
        handlers = [*member.handlers]
        marks = ",".join("?" * len(handlers))

        def read(db: sqlite3.Connection) -> tuple[list[Any], list[Any]]:
            owned = db.execute(
                f"SELECT id, handler FROM invocation WHERE status = 'running' AND handler IN ({marks})", handlers
            ).fetchall()
            open_messages = db.execute(
                "SELECT message.data, message.checksum, invocation.handler, invocation.status FROM message "
                f"JOIN invocation ON invocation.id = message.invocation WHERE answered = 0 AND handler IN ({marks})",
                handlers,
            ).fetchall()
            return owned, open_messages

        owned, open_messages = await self._read(read)
        for id, handler in owned:
            if self._dispatcher.owner(id) is None:
                self._dispatcher.offer(Delivery(id, handler, Wake(), attempt=2))
        for data, checksum, handler, status in open_messages:
            if zlib.crc32(data) != checksum:
                raise StoreDamaged(_about(self.path, "a message was changed"))
            message = decode_message(data)
            if not self._dispatcher.holds(message):
                self._route(message, handler, status, 2)
        self._rung_to = 0.0
        self._ring()

    async def _fetch(self, handler: str, after: int, limit: int) -> list[Delivery]:
        rows = await self._read(
            lambda db: db.execute(
                "SELECT sequence, start, checksum FROM invocation WHERE status = 'pending' AND handler = ? "
                "AND sequence > ? ORDER BY sequence LIMIT ?",
                (handler, after, limit),
            ).fetchall()
        )
        found: list[Delivery] = []
        for sequence, data, checksum in rows:
            start = self._start_from(data, checksum)
            attempt = 2 if sequence <= self._opened_at else 1
            found.append(Delivery(start.id, handler, start, attempt, fresh=attempt == 1, token=sequence))
        return found

    def _forget(self, delivery: Delivery) -> None:
        if isinstance(delivery.item, Message):
            self._enqueue(_Unit(done_messages=[delivery.item.id]))

    def _ring(self) -> None:
        if self._ringing:
            self._ring_again = True
            return
        self._ringing = True
        self._spawn(self._answer_ring())

    async def _answer_ring(self) -> None:
        try:
            await self._deliver_due()
        except StoreError as error:
            if self._open:
                log.error("reading what is due failed, trying again: %s", error)
                self._alarm.by(self.clock.now() + RING_RETRY_SECONDS)
        finally:
            self._ringing = False
        if self._ring_again:
            self._ring_again = False
            self._ring()

    async def _deliver_due(self) -> None:
        """Queue the delayed starts that are due, and offer the wakes.

        A wake that is set below `_rung_to` while this reads sets it back and rings again: see `_after_commit`.
        """
        now = self.clock.now()
        rung_to, self._rung_to = self._rung_to, max(self._rung_to, now)

        def read(db: sqlite3.Connection) -> tuple[list[Any], list[Any], Any]:
            starts = db.execute(
                "SELECT start, checksum FROM invocation WHERE status = 'scheduled' AND due <= ? ORDER BY due LIMIT ?",
                (now, DUE_BATCH_LIMIT),
            ).fetchall()
            wakes = db.execute(
                "SELECT id, handler, wake FROM invocation WHERE wake > ? AND wake <= ? ORDER BY wake",
                (rung_to, now),
            ).fetchall()
            following = db.execute(
                "SELECT min(at) FROM (SELECT min(due) AS at FROM invocation WHERE status = 'scheduled' AND due > ?1 "
                "UNION ALL SELECT min(wake) FROM invocation WHERE wake > ?1)",
                (now,),
            ).fetchone()[0]
            return starts, wakes, following

        try:
            starts, wakes, following = await self._read(read)
        except StoreError:
            self._rung_to = 0.0
            raise
        for id, handler, _ in wakes:
            self._dispatcher.wake(Delivery(id, handler, Wake()))
        if starts:
            first, self._sequence = self._sequence + 1, self._sequence + len(starts)
            due = [self._start_from(data, checksum) for data, checksum in starts]
            await self._enqueue(_Unit(promoted=[*enumerate(due, first)]))
        if len(starts) == DUE_BATCH_LIMIT:
            self._ring()
        elif following is not None:
            self._alarm.by(following)

    # --- reading ------------------------------------------------------------------------------------------------------
    async def journal(self, id: str, /) -> Journal:
        return await self._read(lambda db: self._journal(db, id))

    def _journal(self, db: sqlite3.Connection, id: str) -> Journal:
        # In this order: a commit between the two reads adds frames, and must not look like frames that are missing.
        known = db.execute("SELECT revision FROM invocation WHERE id = ?", (id,)).fetchone()
        rows = db.execute("SELECT revision, data, checksum FROM frame WHERE id = ? ORDER BY revision", (id,)).fetchall()
        if known is not None and len(rows) < known[0]:
            raise StoreDamaged(
                _about(self.path, f"the journal of {id!r} ends at {len(rows)}, and had {known[0]} frames")
            )
        for number, (revision, data, checksum) in enumerate(rows, 1):
            if revision != number or checksum != frame_checksum(id, revision, data):
                raise StoreDamaged(_about(self.path, f"frame {number} of the journal of {id!r} is missing or changed"))
        return Journal(tuple(decode_frame(data) for _, data, _ in rows), len(rows))

    async def outcome(self, id: str, /) -> Outcome | None:
        def read(db: sqlite3.Connection) -> Outcome | None:
            row = db.execute("SELECT status FROM invocation WHERE id = ?", (id,)).fetchone()
            if row is None or row[0] not in ("completed", "failed", "cancelled"):
                return None
            last = db.execute(
                "SELECT revision, data, checksum FROM frame WHERE id = ? ORDER BY revision DESC LIMIT 1", (id,)
            ).fetchone()
            if last is None or last[2] != frame_checksum(id, last[0], last[1]):
                raise StoreDamaged(_about(self.path, f"the last frame of {id!r} is missing or changed"))
            outcome = decode_frame(last[1]).outcome
            if outcome is None:
                raise StoreDamaged(_about(self.path, f"{id!r} is {row[0]}, and its journal does not say how it ended"))
            return outcome

        return await self._read(read)

    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        self._check()
        return self._notices.watch(id)

    async def answer(self, message_id: str, /) -> Answer:
        waiting = self._notices.await_answer(message_id)
        row = await self._read(
            lambda db: db.execute("SELECT answer FROM message WHERE id = ? AND answered = 1", (message_id,)).fetchone()
        )
        if row is not None:
            waiting.cancel()
            return Answer(message_id, row[0])
        return await waiting

    async def start(self, id: str, /) -> Start | None:
        row = await self._read(
            lambda db: db.execute("SELECT start, checksum FROM invocation WHERE id = ?", (id,)).fetchone()
        )
        return None if row is None else self._start_from(*row)

    def _start_from(self, data: bytes, checksum: int) -> Start:
        if zlib.crc32(data) != checksum:
            raise StoreDamaged(_about(self.path, "the start of an invocation was changed"))
        return decode_start(data)

    def serves(self, handler: str, /) -> bool:
        return self._dispatcher.serves(handler)

    async def row(self, id: str, /) -> Row | None:
        found = await self._read(lambda db: db.execute(f"SELECT {_ROW} FROM invocation WHERE id = ?", (id,)).fetchone())
        return None if found is None else Row(*found)

    async def search(self, filter: Filter, /) -> list[Row]:
        conditions, values = _conditions(filter)
        where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
        query = f"SELECT {_ROW} FROM invocation {where}ORDER BY created_at DESC, id DESC LIMIT ?"
        rows = await self._read(lambda db: db.execute(query, (*values, filter.limit)).fetchall())
        return [Row(*row) for row in rows]

    async def counts(self) -> Counts:
        rows = await self._read(
            lambda db: db.execute(
                "SELECT status, handler, count(*) FROM invocation GROUP BY status, handler"
            ).fetchall()
        )
        counts = Counts()
        for status, handler, count in rows:
            counts.by_status[status] = counts.by_status.get(status, 0) + count
            counts.by_handler[handler] = counts.by_handler.get(handler, 0) + count
        return counts

    async def backup(self, target: str, /) -> None:
        """Copy the database to `target` while it is served."""
        self._check()
        path = os.path.abspath(os.path.expanduser(target))
        if os.path.exists(path):
            raise StoreError(_about(path, "it exists: a backup does not overwrite"))

        def copy(db: sqlite3.Connection) -> None:
            with _explained(path), sqlite3.connect(path) as to:
                db.backup(to)
            to.close()

        await self._read(copy)

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        self._check()

        def run() -> T:
            with _explained(self.path):
                return read(self._read_db)

        return await self._loop.run_in_executor(self._reader, run)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_ended)

    def _spawned_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._open:
            log.error("reading what to deliver failed: %s", error, exc_info=error)


_ROW = "id, handler, status, key, created_at, updated_at, due"


def _conditions(filter: Filter) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    for column, value in (("status", filter.status), ("handler", filter.handler), ("key", filter.key)):
        if value is not None:
            conditions.append(f"{column} = ?")
            values.append(value)
    if filter.id_prefix is not None:
        conditions.append("id >= ? AND id < ?")
        values += [filter.id_prefix, filter.id_prefix + "\U0010ffff"]
    if filter.before is not None:
        conditions.append("(created_at, id) < (?, ?)")
        values += filter.before
    return conditions, values


def frame_checksum(id: str, revision: int, data: bytes) -> int:
    """Return the checksum of a frame: it covers its place as well as its bytes."""
    return zlib.crc32(data, zlib.crc32(f"{id}\n{revision}".encode()))


def _state_checksum(
    id: str, status: str, sequence: int | None, updated_at: float, wake: float | None, revision: int
) -> int:
    times = _pack_times(updated_at, -1.0 if wake is None else wake)
    return zlib.crc32(times, zlib.crc32(f"{id}\n{status}\n{sequence}\n{revision}".encode()))


_pack_times = struct.Struct("<dd").pack


def _answer_checksum(message_id: str, answer: str | None) -> int:
    """Return the checksum of an answered message, which is never 0: that is the one of an open message."""
    return zlib.crc32(f"{message_id}\n{answer!r}".encode()) | 1 << 32


def _meta_checksum(schema: int, secret: bytes) -> int:
    return zlib.crc32(secret, schema)


# --- the writer -------------------------------------------------------------------------------------------------------
class _Writer:
    """Commits what waits, one transaction at a time, in a thread of its own."""

    def __init__(
        self,
        path: str,
        opened: _Opened,
        loop: asyncio.AbstractEventLoop,
        written: Callable[[Sequence[_Unit]], None],
    ) -> None:
        self._path = path
        self._number = opened.commit_number
        self._loop = loop
        self._report = written
        self._waiting: list[_Unit] = []
        self._ready = threading.Condition()
        self._closing = False
        self._tails: dict[str, int] = {}  # the revision of each journal that is being written
        self._db = _connect(path)
        self._side = os.open(_side_file(path), os.O_RDWR | os.O_CREAT, 0o666)
        os.truncate(self._side, os.pwrite(self._side, b"%020d\n" % self._number, 0))
        self._thread = threading.Thread(target=self._run, name="perdure-sqlite-write")
        self._thread.start()

    def put(self, units: Sequence[_Unit]) -> None:
        with self._ready:
            self._waiting += units
            self._ready.notify()

    def close(self) -> None:
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._waiting and not self._closing:
                    self._ready.wait()
                if not self._waiting:
                    break
                batch, self._waiting = self._waiting[:BATCH_LIMIT], self._waiting[BATCH_LIMIT:]
            self._write(batch)
            self._loop.call_soon_threadsafe(self._report, batch)
        with _quietly():
            self._db.close()
        os.close(self._side)

    def _write(self, batch: list[_Unit]) -> None:
        try:
            self._transact(batch)
        except _Mismatch:
            self._one_by_one(batch)
        except sqlite3.IntegrityError:
            self._one_by_one(batch)
        except Exception as error:  # noqa: BLE001  whatever it is, it ends these units and not the writer
            self._recover(batch, error)

    def _one_by_one(self, batch: list[_Unit]) -> None:
        """Write each unit in a transaction of its own, so that the one that conflicts fails alone."""
        for unit in batch:
            unit.error = None
            unit.routes.clear()
            try:
                self._transact([unit], alone=True)
            except _Mismatch as mismatch:
                unit.error = mismatch.error
            except sqlite3.IntegrityError as error:
                transition = unit.transition
                unit.error = explain(self._path, error)
                if transition is not None:
                    unit.error = _conflict(transition.id, transition.expected)
            except Exception as error:  # noqa: BLE001  whatever it is, it ends this unit and not the writer
                self._recover([unit], error)

    def _recover(self, batch: list[_Unit], error: Exception) -> None:
        """After a failed write nothing that SQLite holds in memory is trusted: close, open again, see what is there."""
        expected = self._number + 1
        with _quietly():
            self._db.rollback()
        with _quietly():
            self._db.close()
        try:
            self._db = _connect(self._path)
            number = cast("int", self._db.execute("SELECT value FROM meta WHERE name = 'commit'").fetchone()[0])
        except (sqlite3.Error, PerdureError) as worse:
            error, number = worse, expected - 1
        if number == expected:
            self._number = expected
            return
        for unit in batch:
            unit.error = explain(self._path, error)

    def _transact(self, batch: list[_Unit], *, alone: bool = False) -> None:
        db, now = self._db, time.time()
        db.execute("BEGIN IMMEDIATE")
        try:
            _apply(db, batch, now, self._tails, alone=alone)
            db.execute("UPDATE meta SET value = ? WHERE name = 'commit'", (self._number + 1,))
            db.execute("COMMIT")
        except BaseException:
            with _quietly():
                db.execute("ROLLBACK")
            raise
        self._number += 1
        for unit in batch:
            if (transition := unit.transition) is not None and unit.frame is not None:
                if transition.released or transition.outcome is not None:
                    self._tails.pop(transition.id, None)
                else:
                    self._tails[transition.id] = transition.expected + 1
        try:
            os.pwrite(self._side, b"%020d\n" % self._number, 0)
        except OSError as error:
            # The commit is durable. A number that stays behind only weakens the check at the next opening.
            log.warning("%s", _about(self._path, f"the number of the last commit could not be noted: {error}"))


class _Mismatch(Exception):
    """A unit does not fit what is stored."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


_FrameRow = tuple[str, int, bytes, int]


def _apply(
    db: sqlite3.Connection, batch: Sequence[_Unit], now: float, tails: Mapping[str, int], *, alone: bool
) -> None:
    """Write the units of a batch: frames first, what follows from them, acknowledgements last.

    Ids that nobody chose are taken to be new; when one is not, the unit is written again `alone`, and looks.
    """
    frames: list[_FrameRow] = []
    changes: list[tuple[Any, ...]] = []
    inserts: list[tuple[Any, ...]] = []
    answers: list[tuple[Any, ...]] = []
    done: list[tuple[int, str]] = []
    seen: dict[str, bytes] = {}
    for unit in batch:
        if (transition := unit.transition) is not None:
            if unit.frame is not None:
                revision = transition.expected + 1
                checksum = frame_checksum(transition.id, revision, unit.frame)
                frames.append((transition.id, revision, unit.frame, checksum))
            if transition.status is not None:
                changes.append(_change_row(transition, transition.status, now))
            answers += map(_answer_row, transition.effects.answers)
        for accept in unit.accepts:
            start = accept.start
            accept.new = not (alone or start.chosen or not unit.strict) or _is_new(db, seen, unit, start)
            if accept.new:
                inserts.append(_row_of(accept, now))
        done += [(_answer_checksum(message, None), message) for message in unit.done_messages]
    if frames:
        _insert_frames(db, frames, tails)
    if inserts:
        db.executemany(_INSERT_INVOCATION, inserts)
    if changes:
        db.executemany(_CHANGE_STATUS, changes)
    _write_messages_and_promote(db, batch, now)
    if answers:
        db.executemany(_ANSWER, answers)
    if done:
        db.executemany("UPDATE message SET answered = 1, answer_checksum = ? WHERE id = ? AND answered = 0", done)


def _change_row(transition: Transition, status: Status, now: float) -> tuple[Any, ...]:
    id, wake = transition.id, transition.effects.wake
    revision = transition.expected + (transition.frame is not None)
    return status, now, wake, revision, _state_checksum(id, status, None, now, wake, revision), id


def _write_messages_and_promote(db: sqlite3.Connection, batch: Sequence[_Unit], now: float) -> None:
    for unit in batch:
        if unit.messages:
            _insert_messages(db, unit)
        if unit.promoted:
            db.executemany(_PROMOTE, [_promoted_row(sequence, start, now) for sequence, start in unit.promoted])


def _answer_row(answer: Answer) -> tuple[Any, ...]:
    return answer.refused, _answer_checksum(answer.message, answer.refused), answer.message


def _promoted_row(sequence: int, start: Start, now: float) -> tuple[Any, ...]:
    return sequence, now, _state_checksum(start.id, "pending", sequence, now, None, 0), start.id


_ANSWER = "UPDATE message SET answered = 1, answer = ?, answer_checksum = ? WHERE id = ? AND answered = 0"
_PROMOTE = (
    "UPDATE invocation SET status = 'pending', sequence = ?, updated_at = ?, state_checksum = ? "
    "WHERE id = ? AND status = 'scheduled'"
)
_INSERT_INVOCATION = (
    "INSERT INTO invocation (id, handler, key, created_at, due, identity, start, checksum, status, sequence, "
    "updated_at, wake, revision, state_checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, 0, ?)"
)
_CHANGE_STATUS = (
    "UPDATE invocation SET status = ?, sequence = NULL, updated_at = ?, wake = ?, revision = ?4, state_checksum = ? "
    "WHERE id = ? AND revision <= ?4"  # a redo that comes late changes nothing
)


def _row_of(accept: _Accept, now: float) -> tuple[Any, ...]:
    start = accept.start
    sequence = accept.sequence or None
    return (
        start.id,
        start.handler,
        start.key,
        start.at,
        start.due,
        _identity(start),
        accept.data,
        zlib.crc32(accept.data),
        accept.status,
        sequence,
        now,
        _state_checksum(start.id, accept.status, sequence, now, None, 0),
    )


def _insert_frames(db: sqlite3.Connection, frames: Sequence[_FrameRow], tails: Mapping[str, int]) -> None:
    """Append frames, each only where its invocation has the revision before it, and not one of its own.

    The primary key refuses a revision that exists. That the one before exists is known for those this writer wrote
    last, which spares nearly every frame a look.
    """
    sure = [frame for frame in frames if frame[1] == 1 or tails.get(frame[0]) == frame[1] - 1]
    db.executemany("INSERT INTO frame VALUES (?, ?, ?, ?)", sure)
    if len(sure) == len(frames):
        return
    for frame in frames:
        if frame[1] != 1 and tails.get(frame[0]) != frame[1] - 1:
            before = db.execute(
                "SELECT 1 FROM frame WHERE id = ? AND revision = ?", (frame[0], frame[1] - 1)
            ).fetchone()
            if before is None:
                raise _Mismatch(_conflict(frame[0], frame[1] - 1))
            db.execute("INSERT INTO frame VALUES (?, ?, ?, ?)", frame)


def _conflict(id: str, expected: int) -> Conflict:
    return Conflict(f"the journal of {id!r} is not at revision {expected}", invocation_id=id)


def _is_new(db: sqlite3.Connection, seen: dict[str, bytes], unit: _Unit, start: Start) -> bool:
    """Tell whether an id that may exist is new; one that exists with another input is an error to who chose it."""
    identity = _identity(start)
    known = seen.get(start.id)
    if known is None:
        row = db.execute("SELECT identity FROM invocation WHERE id = ?", (start.id,)).fetchone()
        known = row[0] if row is not None else None
    if known is None:
        seen[start.id] = identity
        return True
    if known != identity and unit.strict:
        raise _Mismatch(id_conflict(start.id))
    return False


def _insert_messages(db: sqlite3.Connection, unit: _Unit) -> None:
    unit.routes.clear()
    for message in unit.messages:
        row = db.execute("SELECT handler, status FROM invocation WHERE id = ?", (message.to,)).fetchone()
        if row is None:
            if unit.must_exist:
                raise _Mismatch(unknown(message.to))
            continue
        data = encode_message(message)
        inserted = db.execute(
            "INSERT OR IGNORE INTO message (id, invocation, data, checksum) VALUES (?, ?, ?, ?)",
            (message.id, message.to, data, zlib.crc32(data)),
        )
        if inserted.rowcount:
            unit.routes.append((message, row[0], row[1]))


def _identity(start: Start) -> bytes:
    return digest(start.handler.encode() + b"\0" + start.input)


# --- opening and checking a file --------------------------------------------------------------------------------------
class _Opened(Struct):
    """What a file says of itself."""

    secret: bytes
    commit_number: int
    sequence: int


def _side_file(path: str) -> str:
    return path + "-commit"


def _connect(path: str) -> sqlite3.Connection:
    with _explained(path):
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA busy_timeout = 5000")
        return db


def _open_file(path: str) -> _Opened:
    """Open or create the database, see that it is whole, and return what a store needs to know of it."""
    existed = os.path.exists(path) and os.path.getsize(path) > 0
    remembered = _remembered_commit(path)
    if not existed and remembered:
        lost = f"it is missing or empty, and had {remembered} commits: restore it"
        raise StoreDamaged(_about(path, f"{lost}, or remove {_side_file(path)} to begin anew"))
    with _explained(path):
        if existed:
            _check_kind(path)
        db = _connect(path)
        try:
            if existed:
                _read_meta(db, path)  # before anything is written: it may be somebody else's
            if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise StoreError(_about(path, "its file system cannot hold a write-ahead log: use a local disk"))
            if not existed:
                _create(db)
            opened = _read_meta(db, path)
            if opened.commit_number < remembered:
                lost = f"it ends at commit {opened.commit_number}, and {remembered} were acknowledged"
                cause = "its write-ahead log was lost or damaged"
                remedy = f"restore a backup; to go on without what is lost, remove {_side_file(path)}"
                raise StoreDamaged(_about(path, f"{lost}: {cause}; {remedy}"))
            _verify(db, path)
            return opened
        finally:
            db.close()


def _check_kind(path: str) -> None:
    """See that a file begins as a database does. SQLite itself takes a few bytes of anything for an empty one."""
    with open(path, "rb") as file:
        head = file.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES or not head.startswith(b"SQLite format 3\0"):
        raise StoreDamaged(_about(path, "it is not a database, or cut short: restore it, or name another file"))


def _create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    for statement in SCHEMA.split(";"):
        if statement.strip():
            db.execute(statement)
    secret = secrets.token_bytes(16)
    checksum = _meta_checksum(SCHEMA_VERSION, secret)
    values = [("schema", SCHEMA_VERSION), ("secret", secret), ("checksum", checksum), ("commit", 0)]
    db.executemany("INSERT INTO meta VALUES (?, ?)", values)
    db.execute("COMMIT")


def _read_meta(db: sqlite3.Connection, path: str) -> _Opened:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"meta", "invocation", "frame", "message"} <= tables:
        raise StoreError(_about(path, "it is a database of something else: name another file"))
    meta = dict(cast("list[tuple[str, Any]]", db.execute("SELECT name, value FROM meta").fetchall()))
    if not isinstance(meta.get("schema"), int):
        raise StoreDamaged(_about(path, "its description of itself is incomplete"))
    if meta["schema"] > SCHEMA_VERSION:
        text = (
            f"its schema has version {meta['schema']}, and this release knows up to {SCHEMA_VERSION}: upgrade perdure"
        )
        raise StoreTooNew(_about(path, text), schema=meta["schema"])
    whole = meta.keys() >= {"secret", "checksum"} and isinstance(meta.get("commit"), int)
    if not whole or _meta_checksum(meta["schema"], meta["secret"]) != meta["checksum"]:
        raise StoreDamaged(_about(path, "its description of itself was changed"))
    sequence = db.execute("SELECT max(sequence) FROM invocation").fetchone()[0] or 0
    return _Opened(meta["secret"], meta["commit"], sequence)


def _remembered_commit(path: str) -> int:
    try:
        with open(_side_file(path), "rb") as side:
            text = side.read(32).strip()
    except FileNotFoundError:
        return 0
    return int(text) if text.isdigit() else 0


def _verify(db: sqlite3.Connection, path: str) -> None:
    """Check every page and every row of a small file; of a large one, the rows of what is not settled."""
    if os.path.getsize(path) > VERIFY_LIMIT_BYTES:
        _verify_rows(db, path, "WHERE status NOT IN ('completed', 'failed', 'cancelled')")
        return
    (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise StoreDamaged(_about(path, f"SQLite finds it damaged: {verdict}"))
    _verify_rows(db, path, "")
    strays = db.execute("SELECT id FROM frame WHERE id NOT IN (SELECT id FROM invocation) LIMIT 1").fetchone()
    if strays is not None:
        raise StoreDamaged(_about(path, f"it has frames of {strays[0]!r}, which it does not know"))
    query = "SELECT id, invocation, data, checksum, answer, answered, answer_checksum FROM message"
    for id, to, data, checksum, answer, answered, answer_checksum in db.execute(query):
        whole = zlib.crc32(data) == checksum and answer_checksum == (_answer_checksum(id, answer) if answered else 0)
        if not whole or (message := decode_message(data)).id != id or message.to != to:
            raise StoreDamaged(_about(path, f"message {id!r} was changed"))


def _verify_rows(db: sqlite3.Connection, path: str, where: str) -> None:
    query = (
        "SELECT id, handler, key, created_at, due, identity, start, checksum, status, sequence, updated_at, wake, "
        f"revision, state_checksum FROM invocation {where}"
    )
    for id, *described, data, checksum, status, sequence, at, wake, revision, state_checksum in db.execute(query):
        if zlib.crc32(data) != checksum:
            raise StoreDamaged(_about(path, f"the start of {id!r} was changed"))
        start = decode_start(data)
        if [id, *described] != [start.id, start.handler, start.key, start.at, start.due, _identity(start)]:
            raise StoreDamaged(_about(path, f"the row of {id!r} was changed"))
        if _state_checksum(id, status, sequence, at, wake, revision) != state_checksum:
            raise StoreDamaged(_about(path, f"the row of {id!r} was changed"))
        frames = db.execute(
            "SELECT revision, data, checksum FROM frame WHERE id = ? ORDER BY revision", (id,)
        ).fetchall()
        if len(frames) < revision:
            raise StoreDamaged(_about(path, f"the journal of {id!r} ends at {len(frames)}, and had {revision} frames"))
        for number, (at, data, frame_sum) in enumerate(frames, 1):
            if at != number or frame_sum != frame_checksum(id, at, data):
                raise StoreDamaged(_about(path, f"frame {number} of the journal of {id!r} is missing or changed"))


# --- one process for a file -------------------------------------------------------------------------------------------
class _Lock:
    """The write lock on a small database beside the served one. It names its owner to whoever comes second."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @classmethod
    def take(cls, path: str) -> _Lock:
        """Take the lock, or raise `StoreLocked` with the owner's process id."""
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            raise StoreError(_about(path, f"its folder {folder} does not exist: create it"))
        if os.path.isdir(path):
            raise StoreError(_about(path, "it is a folder: name a file"))
        if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
            raise StoreReadOnly(_about(path, "the file cannot be written: change its permissions"))
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StoreReadOnly(_about(path, f"its folder {folder} cannot be written: change its permissions"))
        with _explained(path):
            db = sqlite3.connect(path + "-lock", isolation_level=None, check_same_thread=False, timeout=0)
            try:
                db.execute("CREATE TABLE IF NOT EXISTS owner (pid INTEGER)")
                db.execute("DELETE FROM owner")
                db.execute("INSERT INTO owner VALUES (?)", (os.getpid(),))
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    db.close()
                    raise
                row = db.execute("SELECT pid FROM owner").fetchone()
                db.close()
                pid = row[0] if row else 0
                raise StoreLocked(_about(path, f"it is served already, by process {pid}"), pid=pid) from None
            return cls(db)

    def release(self) -> None:
        with _quietly():
            self._db.execute("ROLLBACK")
        with _quietly():
            self._db.close()


# --- errors -----------------------------------------------------------------------------------------------------------
def _about(path: str, what: str) -> str:
    return f"store {path}: {what}"


def explain(path: str, error: Exception) -> Exception:
    """Return the store's error for one of SQLite's or the system's."""
    if isinstance(error, PerdureError):
        return error
    text = str(error)
    kind: type[StoreError] = StoreError
    if "disk is full" in text or getattr(error, "errno", None) == 28:
        kind = StoreFull
    elif "readonly" in text or "read-only" in text or isinstance(error, PermissionError):
        kind = StoreReadOnly
    elif any(each in text for each in ("malformed", "not a database", "corrupt", "decode to UTF-8")):
        kind = StoreDamaged
    wrapped = kind(_about(path, text))
    wrapped.__cause__ = error
    return wrapped


@contextmanager
def _explained(path: str) -> Generator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise explain(path, error) from error


@contextmanager
def _quietly() -> Generator[None]:
    """For letting go of something that may be broken already."""
    try:
        yield
    except sqlite3.Error as error:
        log.debug("while letting go of the file: %s", error)
