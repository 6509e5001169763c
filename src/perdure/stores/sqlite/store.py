"""The store itself: what the Store protocol asks for, on the loop. See the package for the whole."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import sqlite3
import zlib
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, TypeVar

from perdure.core.journal import (
    Answer,
    Message,
    Outcome,
    Start,
    decode_frame,
    decode_message,
    decode_start,
    encode_frame,
    encode_start,
)
from perdure.errors import (
    StoreClosed,
    StoreDamaged,
    StoreError,
)
from perdure.stores.clock import Alarm, SystemClock
from perdure.stores.local.dispatch import Dispatcher, Member
from perdure.stores.notices import CHANGES_LIMIT, Feed, Notices
from perdure.stores.port import (
    LEASE_SECONDS,
    LINE_LIMIT,
    PAYLOAD_LIMIT_BYTES,
    Committed,
    Counts,
    Delivery,
    Filter,
    Journal,
    Key,
    Row,
    Transition,
    Wake,
)
from perdure.stores.sql.index import COLUMNS, COUNTS, SETTLED, counts_of, query_of
from perdure.stores.sqlite.faults import Mismatch, about, explained
from perdure.stores.sqlite.file import connect, open_file
from perdure.stores.sqlite.keys import deadline_in_line, read_key
from perdure.stores.sqlite.lock import Lock
from perdure.stores.sqlite.schema import NOTHING_OPEN, frame_checksum, state_checksum
from perdure.stores.sqlite.writer import Accept, Unit, Writer, may_be_routed

T = TypeVar("T")

RING_RETRY_SECONDS = 1.0
"""How long after a failure to read what is due it is read again."""
DUE_BATCH_LIMIT = 1_000
ROWS_LIMIT = 500
"""Rows that are read by their ids at a time."""
READ_BATCH_LIMIT = 100
"""Reads that go to the reader's thread together."""
PURGE_FRAMES_LIMIT = 2_000
"""Frames that one purge removes at most, or one journal: what comes meanwhile waits for it."""

_Read = tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]

log = logging.getLogger("perdure.sqlite")


class SqliteStore:
    """A store in one SQLite file, served by this process alone."""

    def __init__(self, path: str, *, payload_limit: int = PAYLOAD_LIMIT_BYTES, line_limit: int = LINE_LIMIT) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        self.clock = SystemClock()
        self.payload_limit = payload_limit
        self.line_limit = line_limit
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
        self._changed: dict[str, None] = {}  # ids of rows that somebody wants to know the change of, in order
        self._telling = False
        self._units: list[Unit] = []
        self._flush_scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._unanswered: set[str] = set()  # messages posted here, whose answer need not be looked for
        self._reads: list[_Read] = []
        self._reading = False
        self._reader = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="perdure-sqlite-read")
        self._sequence = 0
        self._opened_at = 0

    # --- life ---------------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            self._lock = await self._loop.run_in_executor(self._reader, Lock.take, self.path)
        except BaseException:
            self._reader.shutdown(wait=False)
            raise
        try:
            opened = await self._loop.run_in_executor(self._reader, open_file, self.path)
            self._read_db = await self._loop.run_in_executor(self._reader, connect, self.path)
            with explained(self.path):
                self._writer = Writer(self.path, opened, self._loop, self._written, self.line_limit)
        except BaseException:
            self._lock.release()
            self._reader.shutdown(wait=False)
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
        self._notices.fail(StoreClosed(about(self.path, "the store is closed")))
        await self._loop.run_in_executor(self._reader, self._read_db.close)
        self._reader.shutdown(wait=False)
        self._lock.release()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError(
                about(self.path, f"it was opened by process {self._pid}; a forked child must open one of its own")
            )
        if not self._open:
            raise StoreClosed(about(self.path, "the store is closed"))

    # --- writing ------------------------------------------------------------------------------------------------------
    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        self._check()
        return self._enqueue(Unit(accepts=[self._accept(start) for start in starts], strict=True))

    def post(self, message: Message, /) -> asyncio.Future[None]:
        self._check()
        self._unanswered.add(message.id)
        return self._enqueue(Unit(messages=[message], must_exist=True))

    def commit(self, transition: Transition, told: Committed, /) -> None:
        if not self._open:
            self._loop.call_soon(told, 0, StoreClosed(about(self.path, "the store is closed")))
            return
        effects = transition.effects
        unit = Unit(
            transition=transition,
            ended=transition.released or transition.outcome is not None,
            told=told,
            frame=None if transition.frame is None else encode_frame(transition.frame),
            accepts=[self._accept(start) for start in effects.starts] if effects.starts else (),
            messages=effects.messages,
        )
        if effects.enlist is not None:
            self._sequence += 1
            unit.place = self._sequence
        for delivery in transition.acknowledge:
            if type(delivery.item) is Message:
                unit.done_messages = (*unit.done_messages, delivery.item.id)
        self._put(unit)

    def _accept(self, start: Start) -> Accept:
        if start.due > self.clock.now():
            return Accept(start, encode_start(start), "scheduled", 0)
        self._sequence += 1
        return Accept(start, encode_start(start), "pending", self._sequence)

    def _enqueue(self, unit: Unit) -> asyncio.Future[Any]:
        unit.future = future = self._loop.create_future()
        self._put(unit)
        return future

    def _put(self, unit: Unit) -> None:
        self._units.append(unit)
        if not self._flush_scheduled:
            # All that is asked for in this round of the loop goes to the writer together.
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        units, self._units = self._units, []
        if units:
            self._writer.put(units)

    def _written(self, units: Sequence[Unit]) -> None:
        """Act on what is durable: hand out starts and messages, tell who waits. Runs on the loop."""
        for unit in units:
            if unit.error is None and self._open:
                self._hand_out(unit)
            elif unit.error is not None:
                self._unanswered.difference_update(message.id for message in unit.messages)
            if (transition := unit.transition) is not None:
                try:
                    unit.told(transition.expected + (unit.frame is not None), unit.error)
                except Exception as error:  # noqa: BLE001  a fault of who is told: the others are told all the same
                    text = f"what follows a commit for invocation {transition.id} failed"
                    self._loop.call_exception_handler({"message": text, "exception": error})
            elif (future := unit.future) is not None and not future.done():
                if unit.error is not None:
                    future.set_exception(unit.error)
                elif unit.purge:
                    future.set_result(unit.purged)
                else:
                    future.set_result([accept.new for accept in unit.accepts] if unit.strict else None)
        if self._notices.watched and self._open:
            self._note_changes(units)
        self._dispatcher.pump()

    def _hand_out(self, unit: Unit) -> None:
        for accept in unit.accepts:
            if accept.new:
                self._queue(accept)
        for sequence, start in unit.promoted:
            if start.key is None:
                self._dispatcher.queue(Delivery(start.id, start.handler, start, fresh=True, token=sequence))
            else:
                self._wake_in_line(start)
        for message, handler, begun in unit.routes:
            self._dispatcher.offer(Delivery(message.to, handler, message), begun=begun)
        if unit.must_exist and not unit.routes:  # posted before, and answered perhaps
            self._unanswered.difference_update(message.id for message in unit.messages)
        if unit.transition is not None:
            self._after_commit(unit.transition, unit.ended)
        for sequence, data, checksum in unit.granted:
            start = self._start_from(data, checksum)
            self._dispatcher.queue_granted(Delivery(start.id, start.handler, start, fresh=True, token=sequence))
        for id, handler in unit.woken:
            self._dispatcher.offer(Delivery(id, handler, Wake()))

    def _queue(self, accept: Accept) -> None:
        start = accept.start
        if accept.status == "scheduled":
            self._alarm.by(start.due)
        elif start.key is not None:
            self._wake_in_line(start)
        else:
            self._dispatcher.queue(Delivery(start.id, start.handler, start, fresh=True, token=accept.sequence))

    def _wake_in_line(self, start: Start) -> None:
        if (due := deadline_in_line(start)) is not None:
            self._alarm.by(due)

    def _after_commit(self, transition: Transition, ended: bool) -> None:
        effects = transition.effects
        self._dispatcher.committed(transition.id, transition.acknowledge, ended=ended)
        if ended and effects.wake is not None:
            if effects.wake <= self._rung_to:
                self._rung_to = 0.0
            self._alarm.by(effects.wake)
        for answer in effects.answers:
            self._unanswered.discard(answer.message)
            self._notices.answered(answer)
        if ended and (outcome := transition.outcome) is not None:
            self._notices.settled(transition.id, outcome)

    # --- changes ------------------------------------------------------------------------------------------------------
    def _note_changes(self, units: Sequence[Unit]) -> None:
        """Have the rows that changed told to who watches them. They are read again: a unit holds only part of them."""
        for unit in units:
            if unit.error is None:
                ids = [accept.start.id for accept in unit.accepts if accept.new]
                ids += [start.id for _, start in unit.promoted]
                if (transition := unit.transition) is not None and transition.status is not None:
                    ids.append(transition.id)
                for id in ids:
                    if self._notices.wants(id):
                        self._changed.pop(id, None)
                        self._changed[id] = None
        if len(self._changed) > CHANGES_LIMIT:
            self._changed.clear()
            self._notices.missed()
        if self._changed and not self._telling:
            self._telling = True
            self._spawn(self._tell_changes())

    async def _tell_changes(self) -> None:
        try:
            while self._changed:
                ids = [*self._changed][:ROWS_LIMIT]
                for id in ids:
                    del self._changed[id]
                made = self._notices.feeds_made
                marks = ",".join("?" * len(ids))
                query = f"SELECT {_ROW} FROM invocation WHERE id IN ({marks})"
                found = await self._read(lambda db, query=query, ids=ids: db.execute(query, ids).fetchall())
                rows = {row.id: row for row in map(self._row_from, found)}
                for id in ids:
                    if id in rows:
                        self._notices.changed(rows[id], made)
        except StoreError:
            self._notices.missed()  # who reads the index is told why it cannot be read
            raise
        finally:
            self._telling = False

    # --- deliveries ---------------------------------------------------------------------------------------------------
    def subscribe(
        self,
        handlers: Collection[str],
        deliver: Callable[[Delivery], None],
        *,
        partitions: Collection[int] | None = None,
        lost: Callable[[str], None] | None = None,
        lease: float = LEASE_SECONDS,
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
                "SELECT message.data, message.checksum, handler, status, sequence FROM message "
                f"JOIN invocation ON invocation.id = message.invocation WHERE answered = 0 AND handler IN ({marks})",
                handlers,
            ).fetchall()
            return owned, open_messages

        owned, open_messages = await self._read(read)
        for id, handler in owned:
            if self._dispatcher.owner(id) is None:
                self._dispatcher.offer(Delivery(id, handler, Wake(), attempt=2))
        messages = [(self._message_from(data, checksum), *rest) for data, checksum, *rest in open_messages]
        for message, handler, status, sequence in sorted(messages, key=lambda each: each[0].at):  # in the order sent
            if not self._dispatcher.holds(message):
                begun = may_be_routed(message, status, sequence)
                self._dispatcher.offer(Delivery(message.to, handler, message, attempt=2), begun=begun)
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
            self._unanswered.discard(delivery.item.id)
            self._enqueue(Unit(done_messages=[delivery.item.id]))

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
                "SELECT min(at) FROM (SELECT min(due) AS at FROM invocation WHERE status = 'scheduled' AND due > ? "
                "UNION ALL SELECT min(wake) FROM invocation WHERE wake > ?)",
                (now, now),
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
            await self._enqueue(Unit(promoted=[*enumerate(due, first)]))
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
            if _is_gone(db, id):
                return Journal()
            raise StoreDamaged(
                about(self.path, f"the journal of {id!r} ends at {len(rows)}, and had {known[0]} frames")
            )
        for number, (revision, data, checksum) in enumerate(rows, 1):
            if revision != number or checksum != frame_checksum(id, revision, data):
                raise StoreDamaged(about(self.path, f"frame {number} of the journal of {id!r} is missing or changed"))
        return Journal(tuple(decode_frame(data, id) for _, data, _ in rows), len(rows), done=True)  # one transaction

    async def revision(self, id: str, /) -> int:
        query = "SELECT revision FROM invocation WHERE id = ?"
        found = await self._read(lambda db: db.execute(query, (id,)).fetchone())
        return 0 if found is None else found[0]

    async def outcome(self, id: str, /) -> Outcome | None:
        def read(db: sqlite3.Connection) -> Outcome | None:
            row = db.execute("SELECT status FROM invocation WHERE id = ?", (id,)).fetchone()
            if row is None or row[0] not in ("completed", "failed", "cancelled"):
                return None
            last = db.execute(
                "SELECT revision, data, checksum FROM frame WHERE id = ? ORDER BY revision DESC LIMIT 1", (id,)
            ).fetchone()
            if last is None and _is_gone(db, id):
                return None
            if last is None or last[2] != frame_checksum(id, last[0], last[1]):
                raise StoreDamaged(about(self.path, f"the last frame of {id!r} is missing or changed"))
            outcome = decode_frame(last[1], id).outcome
            if outcome is None:
                raise StoreDamaged(about(self.path, f"{id!r} is {row[0]}, and its journal does not say how it ended"))
            return outcome

        return await self._read(read)

    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        self._check()
        return self._notices.watch(id)

    def events(self, filter: Filter, /) -> Feed:
        self._check()
        return self._notices.events(filter)

    async def mail(self, id: str, /) -> list[Message]:
        query = "SELECT data, checksum FROM message WHERE invocation = ? AND answered = 0"
        rows = await self._read(lambda db: db.execute(query, (id,)).fetchall())
        return sorted((self._message_from(*row) for row in rows), key=lambda each: each.at)

    def _message_from(self, data: bytes, checksum: int) -> Message:
        if zlib.crc32(data) != checksum:
            raise StoreDamaged(about(self.path, "a message was changed"))
        return decode_message(data)

    async def answer(self, message_id: str, /) -> Answer:
        self._check()
        waiting = self._notices.await_answer(message_id)
        if message_id in self._unanswered:
            return await waiting
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
            raise StoreDamaged(about(self.path, "the start of an invocation was changed"))
        return decode_start(data)

    async def key(self, name: str, /) -> Key:
        def read(db: sqlite3.Connection) -> Key:
            try:
                return read_key(db, name)
            except Mismatch as damaged:
                raise StoreDamaged(about(self.path, str(damaged))) from damaged

        return await self._read(read)

    def serves(self, handler: str, /) -> bool | None:
        return self._dispatcher.serves(handler)

    def served(self) -> set[str]:
        return self._dispatcher.served()

    async def row(self, id: str, /) -> Row | None:
        found = await self._read(lambda db: db.execute(f"SELECT {_ROW} FROM invocation WHERE id = ?", (id,)).fetchone())
        return None if found is None else self._row_from(found)

    def _row_from(self, found: tuple[Any, ...]) -> Row:
        *described, sequence, wake, revision, checksum = found
        row = Row(*described)
        if state_checksum(row.id, row.status, sequence, row.updated_at, wake, revision) != checksum:
            raise StoreDamaged(about(self.path, f"the row of {row.id!r} was changed"))
        return row

    async def search(self, filter: Filter, /) -> list[Row]:
        query, values = query_of(filter, _ROW)
        rows = await self._read(lambda db: db.execute(query, values).fetchall())
        return [self._row_from(row) for row in rows]

    async def counts(self) -> Counts:
        return counts_of(await self._read(lambda db: db.execute(COUNTS).fetchall()))

    async def purge(self, before: float, /, *, limit: int, id: str | None = None) -> int:
        query, values = (_DUE, (before, limit)) if id is None else (_DUE_OF_ID, (id, before))
        found = await self._read(lambda db: db.execute(query, values).fetchall())
        chosen: list[tuple[str, float]] = []
        frames = 0
        for each, revision in found:
            frames += revision
            if chosen and frames > PURGE_FRAMES_LIMIT:
                break
            if not self._dispatcher.has(each):
                chosen.append((each, before))
        return await self._enqueue(Unit(purge=chosen)) if chosen else 0

    async def backup(self, target: str, /) -> None:
        """Copy the database to `target` while it is served."""
        self._check()
        path = os.path.abspath(os.path.expanduser(target))
        if os.path.exists(path):
            raise StoreError(about(path, "it exists: a backup does not overwrite"))

        def copy(db: sqlite3.Connection) -> None:
            with explained(path), sqlite3.connect(path) as to:
                db.backup(to)
            to.close()

        await self._read(copy)

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        self._check()
        future: asyncio.Future[T] = self._loop.create_future()
        self._reads.append((read, future))
        if not self._reading:
            # All that is asked for in this round of the loop goes to the reader together, and what is asked for while
            # it reads goes next: with one hop for each, two threads that want the interpreter wait for it every time.
            self._reading = True
            self._loop.call_soon(self._send_reads)
        return await future

    def _send_reads(self) -> None:
        limit = READ_BATCH_LIMIT if self._open else len(self._reads)
        reads, self._reads = self._reads[:limit], self._reads[limit:]
        self._reading = bool(reads) and self._open
        if not self._open:
            for _, future in reads:
                if not future.done():
                    future.set_exception(StoreClosed(about(self.path, "the store is closed")))
        elif reads:
            self._loop.run_in_executor(self._reader, self._execute_reads, reads)

    def _execute_reads(self, reads: Sequence[_Read]) -> None:
        """Read, in the reader's thread; whatever a read raises is for whoever asked for it."""
        found: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        for read, future in reads:
            try:
                with explained(self.path):
                    found.append((future, read(self._read_db), None))
            except BaseException as error:  # noqa: BLE001
                found.append((future, None, error))
        self._loop.call_soon_threadsafe(self._reads_ended, found)

    def _reads_ended(self, found: Sequence[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
        for future, value, error in found:
            if future.done():
                continue  # whoever asked has given up
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        self._send_reads()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_ended)

    def _spawned_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._open:
            log.error("reading what to deliver failed: %s", error, exc_info=error)


def _is_gone(db: sqlite3.Connection, id: str) -> bool:
    """Tell whether an invocation was purged between two reads."""
    return db.execute("SELECT 1 FROM invocation WHERE id = ?", (id,)).fetchone() is None


# Named, since SQLite would rather sort all that has ever settled, for each piece of a sweep.
_DUE = (
    f"SELECT id, revision FROM invocation INDEXED BY invocation_settled WHERE {SETTLED} AND updated_at <= ? "
    f"AND {NOTHING_OPEN} ORDER BY updated_at LIMIT ?"
)
_DUE_OF_ID = f"SELECT id, revision FROM invocation WHERE id = ? AND {SETTLED} AND updated_at <= ? AND {NOTHING_OPEN}"
_ROW = f"{COLUMNS}, sequence, wake, revision, state_checksum"
