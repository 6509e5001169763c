"""The writer: one thread that commits everything that waits, one transaction at a time.

A unit is written whole or not at all; one that conflicts fails alone. After a failed write nothing that SQLite holds in
memory is trusted: the database is reopened, and its commit number tells whether the write was committed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, cast

from perdure.core.journal import (
    Answer,
    Message,
    Start,
    Status,
    encode_message,
)
from perdure.errors import StoreDamaged, StoreError, unknown
from perdure.stores.awakeables import Awakeable
from perdure.stores.port import Transition, conflict, id_conflict, identity_of
from perdure.stores.sql import awakeables, index
from perdure.stores.sql.index import SETTLED
from perdure.stores.sqlite import documents, rewriting, streams
from perdure.stores.sqlite.faults import Mismatch, about, explain, quietly
from perdure.stores.sqlite.file import BUSY_MILLISECONDS, Opened, connect, side_file
from perdure.stores.sqlite.keys import Keys, queue_deadline
from perdure.stores.sqlite.lock import make_beside, open_apart
from perdure.stores.sqlite.moved import MoveDetector
from perdure.stores.sqlite.schema import NO_TIME, NOTHING_OPEN, answer_checksum, frame_checksum, state_checksum
from perdure.stores.sqlite.unit import Accept, Route, Unit

BATCH_LIMIT = 2_000
"""Transitions, submits and posts that share one transaction at most."""
LOOK_SECONDS = 2.0
"""How often an idle writer checks that its file was not moved. A busy one checks with every transaction."""

log = logging.getLogger("perdure.sqlite")


# --- the writer -------------------------------------------------------------------------------------------------------
class Writer:
    """Commits units, one transaction at a time, in its own thread.

    `written` is called on the loop with each batch, and how many seconds writing it took. `lost` is called on the loop,
    once, when the file or its log was moved, removed or replaced. From then on nothing is written or acknowledged.
    `now` is the time by the store's clock, which the retention goes by too.
    """

    def __init__(
        self,
        path: str,
        opened: Opened,
        loop: asyncio.AbstractEventLoop,
        written: Callable[[Sequence[Unit], float], None],
        lost: Callable[[StoreError], None],
        keys: Keys,
        now: Callable[[], float],
    ) -> None:
        self._path = path
        self._now = now
        self._number = opened.commit_number
        self._loop = loop
        self._report = written
        self._report_lost = lost
        self._lost: StoreError | None = None
        self._waiting: list[Unit] = []
        self._ready = threading.Condition()
        self._closing = False
        self._keys = keys
        self._tails: dict[str, int] = {}  # the revisions of the journals that this writer extended last
        self._db = connect(path)
        make_beside(path, "-commit")
        self._side = open_apart(side_file(path))
        os.truncate(self._side, os.pwrite(self._side, b"%020d\n" % self._number, 0))
        self._detector = MoveDetector(path, opened.secret)
        # Daemon: it must not keep a process alive that exits without closing its store. Nothing acknowledged is lost.
        self._thread = threading.Thread(target=self._run, name="perdure-sqlite-write", daemon=True)
        self._thread.start()

    def put(self, units: Sequence[Unit]) -> None:
        with self._ready:
            self._waiting += units
            self._ready.notify()

    def close(self) -> None:
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                began = perf_counter()
                self._write(batch)
                self._tell(self._report, batch, perf_counter() - began)
            else:
                self._check_file()
        with quietly():
            self._db.close()
        os.close(self._side)

    def _next_batch(self) -> list[Unit] | None:
        """Wait for units. Return an empty batch when it is time to check the file, None when the store closes."""
        with self._ready:
            if not self._waiting and not self._closing:
                self._ready.wait(LOOK_SECONDS)
            if not self._waiting and self._closing:
                return None
            batch, self._waiting = self._waiting[:BATCH_LIMIT], self._waiting[BATCH_LIMIT:]
            return batch

    def _tell(self, report: Callable[..., None], *what: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(report, *what)
        except RuntimeError:  # the loop was closed, and the store was not
            log.warning("%s", about(self._path, "its event loop ended before it was closed: close the client first"))

    def _check_file(self) -> None:
        """Check that the file and its log are where they were opened; if not, refuse everything from now on."""
        if self._lost is None and (moved := self._detector.moved()) is not None:
            text = (
                f"{moved} while it was served. Nothing is acknowledged after commit {self._number}. "
                "Stop this process, put the file and its log back, or restore a backup, and start it again"
            )
            self._lost = StoreDamaged(about(self._path, text))
            log.critical("%s", self._lost)
            self._tell(self._report_lost, self._lost)

    def _write(self, batch: list[Unit]) -> None:
        try:
            self._check_file()
            if self._lost is None:
                self._transact_or_recover(batch)
                self._check_file()  # a write to a file that was moved meanwhile is not acknowledged
        except Exception as error:
            log.exception("%s", about(self._path, "writing failed with an unexpected error"))
            for unit in batch:
                unit.error = unit.error or explain(self._path, error)
        if self._lost is not None:
            for unit in batch:
                unit.error = StoreDamaged(str(self._lost))

    def _transact_or_recover(self, batch: list[Unit]) -> None:
        try:
            self._transact(batch)
        except (Mismatch, sqlite3.IntegrityError):
            self._one_by_one(batch)
        except Exception as error:  # noqa: BLE001  it fails these units, not the writer
            self._recover(batch, error)

    def _one_by_one(self, batch: list[Unit]) -> None:
        """Write each unit in its own transaction, so that one that conflicts fails alone."""
        for unit in batch:
            unit.error = None
            try:
                self._transact([unit], alone=True)
            except Mismatch as mismatch:
                unit.error = mismatch.error
            except sqlite3.IntegrityError as error:
                transition = unit.transition
                unit.error = explain(self._path, error)
                if transition is not None:
                    unit.error = conflict(transition.id, transition.expected)
            except Exception as error:  # noqa: BLE001  it fails this unit, not the writer
                self._recover([unit], error)

    def _recover(self, batch: list[Unit], error: Exception) -> None:
        """Reopen the database after a failed write, and learn from its commit number whether it was committed."""
        expected = self._number + 1
        with quietly():
            self._db.rollback()
        with quietly():
            self._db.close()
        try:
            self._db = connect(self._path)
            number = cast("int", self._db.execute("SELECT value FROM meta WHERE name = 'commit'").fetchone()[0])
        except Exception as worse:  # noqa: BLE001  whether these units were written is unknown
            error, number = worse, expected - 1
        if number == expected:
            self._number = expected
            return
        for unit in batch:
            unit.error = explain(self._path, error)

    def _transact(self, batch: list[Unit], *, alone: bool = False) -> None:
        db, now = self._db, self._now()
        if alone:
            batch[0].forget_reports()
        if any(unit.rewrites for unit in batch):
            db.execute("PRAGMA secure_delete = ON")  # what is written over is not to stay in the file
        db.execute("BEGIN IMMEDIATE")
        try:
            _apply(db, batch, now, self._tails, self._keys, self._number + 1, alone=alone)
            for unit in batch:
                rewriting.apply(db, unit.rewrites)
                if unit.purge:  # after everything else: a message of this transaction keeps its invocation
                    unit.purged = _purge(db, unit.purge)
            db.execute("UPDATE meta SET value = ? WHERE name = 'commit'", (self._number + 1,))
            db.execute("COMMIT")
        except BaseException:
            self._keys.forget()
            with quietly():
                db.execute("ROLLBACK")
            raise
        self._number += 1
        for unit in batch:
            if (transition := unit.transition) is not None and unit.frame is not None:
                if unit.ended:
                    self._tails.pop(transition.id, None)
                else:
                    self._tails[transition.id] = transition.expected + 1
        try:
            os.pwrite(self._side, b"%020d\n" % self._number, 0)
        except OSError as error:
            # The commit is durable. A lower number only weakens the check at the next opening.
            log.warning("%s", about(self._path, f"the last commit number could not be written: {error}"))
        if any(unit.checkpoint for unit in batch):
            self._empty_log()

    def _empty_log(self) -> None:
        """Write the log into the database, and empty it, unless somebody reads it: then a later checkpoint does."""
        try:
            self._db.execute("PRAGMA busy_timeout = 0")
            try:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
        except sqlite3.Error as error:  # what was to be written is durable
            log.warning("%s", about(self._path, f"its log could not be emptied: {error}"))


_FrameRow = tuple[str, int, bytearray, int]
# Rows hold bytearrays, and values that `nullif` turns into NULL: for each bytes and None parameter sqlite3 looks for an
# adapter and discards the error that there is none, which takes longer than inserting a frame.


def _apply(
    db: sqlite3.Connection,
    batch: Sequence[Unit],
    now: float,
    tails: Mapping[str, int],
    keys: Keys,
    commit: int,
    *,
    alone: bool,
) -> None:
    """Write the units of a batch as transaction number `commit`: frames first, acknowledgements last.

    Generated ids are assumed to be new. If one exists, the insert fails, and each unit is written again `alone`, which
    looks up every id.
    """
    frames: list[_FrameRow] = []
    changes: list[tuple[Any, ...]] = []
    inserts: list[tuple[Any, ...]] = []
    seen: dict[str, bytes] = {}
    documented: list[Unit] = []
    for unit in batch:
        if unit.documents is not None:
            documented.append(unit)
        if (transition := unit.transition) is not None:
            if unit.frame is not None:
                revision = transition.expected + 1
                checksum = frame_checksum(transition.id, revision, unit.frame)
                frames.append((transition.id, revision, bytearray(unit.frame), checksum))
            if transition.status is not None:
                changes.append(_change_row(transition, transition.status, now))
        for accept in unit.accepts:
            start = accept.start
            accept.new = not (alone or start.chosen or not unit.strict) or _is_new(db, seen, unit, start)
            if accept.new:
                inserts.append(_row_of(accept, now))
    if frames:
        _insert_frames(db, frames, tails)
    if inserts:
        db.executemany(_INSERT_INVOCATION, inserts)
    if changes:
        db.executemany(_CHANGE_STATUS, changes)
    _write_the_rest(db, batch, now)
    keys.apply(db, batch, commit, now)
    _write_called_for(db, batch)
    _write_acknowledgements(db, batch)
    if documented:
        documents.apply(db, documented)


def _note_awakeables(db: sqlite3.Connection, transition: Transition, told: Sequence[Awakeable]) -> None:
    if transition.frame is None:  # a late redo changes nothing
        last = db.execute("SELECT max(revision) FROM frame WHERE id = ?", (transition.id,)).fetchone()
        if last != (transition.expected,):
            return
    awakeables.note(db, transition.id, told)


def _write_called_for(db: sqlite3.Connection, batch: Sequence[Unit]) -> None:
    for unit in batch:
        if unit.called_for:
            _insert_messages(db, unit, unit.called_for)


def _write_acknowledgements(db: sqlite3.Connection, batch: Sequence[Unit]) -> None:
    answers: list[tuple[Any, ...]] = []
    done: list[tuple[int, str]] = []
    for unit in batch:  # nearly all have neither
        if unit.transition is not None and unit.transition.effects.answers:
            answers += map(_answer_row, unit.transition.effects.answers)
        if unit.done_messages:
            done += [(answer_checksum(message, None), message) for message in unit.done_messages]
        if unit.done_wakes:
            _forget_wakes(db, unit.done_wakes)
    if answers:
        db.executemany(_ANSWER, answers)
    if done:
        db.executemany("UPDATE message SET answered = 1, answer_checksum = ? WHERE id = ? AND answered = 0", done)


def _forget_wakes(db: sqlite3.Connection, wakes: Sequence[tuple[str, float]]) -> None:
    """Forget wakes that were acknowledged, unless others were set meanwhile. A damaged row stays as it is."""
    query = (
        "SELECT status, sequence, updated_at, revision, wait, state_checksum FROM invocation WHERE id = ? AND wake = ?"
    )
    for id, at in wakes:
        row = db.execute(query, (id, at)).fetchone()
        if row is None:
            continue
        status, sequence, updated_at, revision, wait, recorded = row
        if state_checksum(id, status, sequence, updated_at, at, revision, wait) == recorded:
            checksum = state_checksum(id, status, sequence, updated_at, None, revision, wait)
            db.execute("UPDATE invocation SET wake = NULL, state_checksum = ? WHERE id = ?", (checksum, id))


def _purge(db: sqlite3.Connection, chosen: Sequence[tuple[str, float]]) -> int:
    """Remove the invocations that are still settled, unchanged and without an open message; return how many."""
    due = [(id,) for id, before in chosen if db.execute(_MAY_GO, (id, before)).fetchone() is not None]
    for statement in _PURGE:
        db.executemany(statement, due)
    return len(due)


def _change_row(transition: Transition, status: Status, now: float) -> tuple[Any, ...]:
    id, wake = transition.id, transition.effects.wake
    revision = transition.expected + (transition.frame is not None)
    wait = index.wait_text(transition.wait)
    checksum = state_checksum(id, status, None, now, wake, revision, wait)
    return status, now, NO_TIME if wake is None else wake, wait, revision, checksum, id, revision


def _write_the_rest(db: sqlite3.Connection, batch: Sequence[Unit], now: float) -> None:
    """Write tags, awakeables, items of streams, messages and promoted starts, which few units have."""
    for unit in batch:
        for accept in unit.accepts:
            if accept.start.tags and accept.new:
                start = accept.start
                db.executemany(index.PUT_TAG, index.tag_rows(start.id, start.at, start.tags))
        if (transition := unit.transition) is not None and transition.awakeables is not None:
            _note_awakeables(db, transition, transition.awakeables)
        if transition is not None:
            for written in transition.effects.written:
                streams.append_of_body(db, transition.id, written)
        if unit.messages:
            _insert_messages(db, unit, unit.messages)
        if unit.items is not None:
            streams.append_of_step(db, unit)
        if unit.promoted:
            db.executemany(_PROMOTE, [_promoted_row(sequence, start, now) for sequence, start in unit.promoted])


def _answer_row(answer: Answer) -> tuple[Any, ...]:
    return answer.refused, answer_checksum(answer.message, answer.refused), answer.message


def _promoted_row(sequence: int, start: Start, now: float) -> tuple[Any, ...]:
    position, wake = (sequence, None) if start.key is None else (None, queue_deadline(start))
    return position, now, wake, state_checksum(start.id, "pending", position, now, wake, 0), start.id


_MAY_GO = f"SELECT 1 FROM invocation WHERE id = ? AND {SETTLED} AND updated_at <= ? AND {NOTHING_OPEN}"
_PURGE = (
    "DELETE FROM message WHERE invocation = ?",
    "DELETE FROM frame WHERE id = ?",
    *awakeables.PURGE,
    index.PURGE_TAGS,
    streams.PURGE,
    "DELETE FROM invocation WHERE id = ?",
)
_ANSWER = "UPDATE message SET answered = 1, answer = ?, answer_checksum = ? WHERE id = ? AND answered = 0"
_PROMOTE = (
    "UPDATE invocation SET status = 'pending', sequence = ?, updated_at = ?, wake = ?, state_checksum = ? "
    "WHERE id = ? AND status = 'scheduled'"
)
_INSERT_INVOCATION = (
    "INSERT INTO invocation (id, handler, key, created_at, due, identity, start, checksum, status, sequence, "
    "updated_at, wake, revision, state_checksum, tags) VALUES (?, ?, nullif(?, ''), ?, ?, ?, ?, ?, ?, nullif(?, 0), ?, "
    f"nullif(?, {NO_TIME}), 0, ?, nullif(?, ''))"
)
_CHANGE_STATUS = (  # a late redo changes nothing
    f"UPDATE invocation SET status = ?, sequence = NULL, updated_at = ?, wake = nullif(?, {NO_TIME}), "
    "wait = nullif(?, ''), revision = ?, state_checksum = ? WHERE id = ? AND revision <= ?"
)


def _row_of(accept: Accept, now: float) -> tuple[Any, ...]:
    start = accept.start
    waits = start.key is not None and accept.status == "pending"
    sequence = 0 if waits else accept.sequence
    wake = queue_deadline(start) if accept.status == "pending" else None
    return (
        start.id,
        start.handler,
        start.key or "",
        start.at,
        start.due,
        bytearray(identity_of(start)),
        bytearray(accept.data),
        zlib.crc32(accept.data),
        accept.status,
        sequence,
        now,
        NO_TIME if wake is None else wake,
        state_checksum(start.id, accept.status, sequence or None, now, wake, 0),
        index.tags_text(start.tags),
    )


def _insert_frames(db: sqlite3.Connection, frames: Sequence[_FrameRow], tails: Mapping[str, int]) -> None:
    """Append frames, each only if the journal ends at the revision before it.

    The primary key refuses a revision that exists. The one before is looked up, except where this writer wrote it last,
    which is nearly always the case.
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
                raise Mismatch(conflict(frame[0], frame[1] - 1))
            db.execute("INSERT INTO frame VALUES (?, ?, ?, ?)", frame)


def _is_new(db: sqlite3.Connection, seen: dict[str, bytes], unit: Unit, start: Start) -> bool:
    """Report whether an id is new. An id that exists with another input raises if the unit is strict."""
    identity = identity_of(start)
    known = seen.get(start.id)
    if known is None:
        row = db.execute("SELECT identity FROM invocation WHERE id = ?", (start.id,)).fetchone()
        known = row[0] if row is not None else None
    if known is None:
        seen[start.id] = identity
        return True
    if known != identity and unit.strict:
        raise Mismatch(id_conflict(start.id))
    return False


def _insert_messages(db: sqlite3.Connection, unit: Unit, messages: Sequence[Message]) -> None:
    for message in messages:
        query = "SELECT handler, status, sequence FROM invocation WHERE id = ?"
        row = db.execute(query, (message.to,)).fetchone()
        if row is None:
            if unit.must_exist:
                raise Mismatch(unknown(message.to))
            continue
        data = encode_message(message)
        inserted = db.execute(
            "INSERT OR IGNORE INTO message (id, invocation, data, checksum) VALUES (?, ?, ?, ?)",
            (message.id, message.to, data, zlib.crc32(data)),
        )
        if inserted.rowcount:
            unit.routes.append(Route.of(message, *row))
