"""The writer: one thread that commits everything that waits, a transaction at a time.

A unit (a submit, a post, a commit) is written whole or not at all; one that conflicts fails alone. After a failed
write nothing that SQLite holds in memory is trusted: the database is opened again, and its commit number says what
happened.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from msgspec import Struct

from perdure.core.journal import (
    Answer,
    Message,
    Start,
    Status,
    encode_message,
)
from perdure.errors import (
    Conflict,
    PerdureError,
)
from perdure.stores.sqlite.faults import about, explain, quietly
from perdure.stores.sqlite.file import Opened, connect, side_file
from perdure.stores.sqlite.schema import NO_TIME, answer_checksum, frame_checksum, state_checksum
from perdure.stores.store import Committed, Transition, id_conflict, identity_of, unknown

BATCH_LIMIT = 2_000
"""Transitions, submits and posts that share one transaction at most."""

log = logging.getLogger("perdure.sqlite")


# --- what waits to be written -----------------------------------------------------------------------------------------
class Accept(Struct):
    """A start with the status and place that it will have."""

    start: Start
    data: bytes
    status: Status
    sequence: int
    new: bool = True


def _tell_nobody(revision: int, error: Exception | None) -> None:
    pass


class Unit(Struct, eq=False):
    """What is written whole or not at all: a submit, a post, a commit, or the store's own housekeeping.

    `strict` makes an id that exists with another input an error; `must_exist`, a message to nobody. A commit is told,
    the others end their future. `ended` says that the transition ends the claim.
    """

    accepts: Sequence[Accept] = ()
    strict: bool = False
    transition: Transition | None = None
    ended: bool = False
    told: Committed = _tell_nobody
    frame: bytes | None = None
    messages: Sequence[Message] = ()
    must_exist: bool = False
    done_messages: Sequence[str] = ()
    promoted: Sequence[tuple[int, Start]] = ()
    future: asyncio.Future[Any] | None = None
    routes: list[tuple[Message, str, Status]] = []
    error: Exception | None = None


# --- the writer -------------------------------------------------------------------------------------------------------
class Writer:
    """Commits what waits, one transaction at a time, in a thread of its own."""

    def __init__(
        self,
        path: str,
        opened: Opened,
        loop: asyncio.AbstractEventLoop,
        written: Callable[[Sequence[Unit]], None],
    ) -> None:
        self._path = path
        self._number = opened.commit_number
        self._loop = loop
        self._report = written
        self._waiting: list[Unit] = []
        self._ready = threading.Condition()
        self._closing = False
        self._tails: dict[str, int] = {}  # the revision of each journal that is being written
        self._db = connect(path)
        self._side = os.open(side_file(path), os.O_RDWR | os.O_CREAT, 0o666)
        os.truncate(self._side, os.pwrite(self._side, b"%020d\n" % self._number, 0))
        self._thread = threading.Thread(target=self._run, name="perdure-sqlite-write")
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
        while True:
            with self._ready:
                while not self._waiting and not self._closing:
                    self._ready.wait()
                if not self._waiting:
                    break
                batch, self._waiting = self._waiting[:BATCH_LIMIT], self._waiting[BATCH_LIMIT:]
            self._write(batch)
            self._loop.call_soon_threadsafe(self._report, batch)
        with quietly():
            self._db.close()
        os.close(self._side)

    def _write(self, batch: list[Unit]) -> None:
        try:
            self._transact(batch)
        except Mismatch:
            self._one_by_one(batch)
        except sqlite3.IntegrityError:
            self._one_by_one(batch)
        except Exception as error:  # noqa: BLE001  whatever it is, it ends these units and not the writer
            self._recover(batch, error)

    def _one_by_one(self, batch: list[Unit]) -> None:
        """Write each unit in a transaction of its own, so that the one that conflicts fails alone."""
        for unit in batch:
            unit.error = None
            unit.routes.clear()
            try:
                self._transact([unit], alone=True)
            except Mismatch as mismatch:
                unit.error = mismatch.error
            except sqlite3.IntegrityError as error:
                transition = unit.transition
                unit.error = explain(self._path, error)
                if transition is not None:
                    unit.error = _conflict(transition.id, transition.expected)
            except Exception as error:  # noqa: BLE001  whatever it is, it ends this unit and not the writer
                self._recover([unit], error)

    def _recover(self, batch: list[Unit], error: Exception) -> None:
        """After a failed write nothing that SQLite holds in memory is trusted: close, open again, see what is there."""
        expected = self._number + 1
        with quietly():
            self._db.rollback()
        with quietly():
            self._db.close()
        try:
            self._db = connect(self._path)
            number = cast("int", self._db.execute("SELECT value FROM meta WHERE name = 'commit'").fetchone()[0])
        except (sqlite3.Error, PerdureError) as worse:
            error, number = worse, expected - 1
        if number == expected:
            self._number = expected
            return
        for unit in batch:
            unit.error = explain(self._path, error)

    def _transact(self, batch: list[Unit], *, alone: bool = False) -> None:
        db, now = self._db, time.time()
        db.execute("BEGIN IMMEDIATE")
        try:
            _apply(db, batch, now, self._tails, alone=alone)
            db.execute("UPDATE meta SET value = ? WHERE name = 'commit'", (self._number + 1,))
            db.execute("COMMIT")
        except BaseException:
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
            # The commit is durable. A number that stays behind only weakens the check at the next opening.
            log.warning("%s", about(self._path, f"the number of the last commit could not be noted: {error}"))


class Mismatch(Exception):
    """A unit does not fit what is stored."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


_FrameRow = tuple[str, int, bytearray, int]
# Rows hold bytearrays, and marks that SQL turns into NULL: for each bytes and None among its parameters sqlite3 looks
# for an adapter, fails, and forgets the error, which takes longer than to insert a frame.


def _apply(db: sqlite3.Connection, batch: Sequence[Unit], now: float, tails: Mapping[str, int], *, alone: bool) -> None:
    """Write the units of a batch: frames first, what follows from them, acknowledgements last.

    Ids that nobody chose are taken to be new; when one is not, the unit is written again `alone`, and looks.
    """
    frames: list[_FrameRow] = []
    changes: list[tuple[Any, ...]] = []
    inserts: list[tuple[Any, ...]] = []
    seen: dict[str, bytes] = {}
    for unit in batch:
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
    _write_messages_and_promote(db, batch, now)
    _write_answers(db, batch)


def _write_answers(db: sqlite3.Connection, batch: Sequence[Unit]) -> None:
    answers: list[tuple[Any, ...]] = []
    done: list[tuple[int, str]] = []
    for unit in batch:  # nearly all have neither
        if unit.transition is not None and unit.transition.effects.answers:
            answers += map(_answer_row, unit.transition.effects.answers)
        if unit.done_messages:
            done += [(answer_checksum(message, None), message) for message in unit.done_messages]
    if answers:
        db.executemany(_ANSWER, answers)
    if done:
        db.executemany("UPDATE message SET answered = 1, answer_checksum = ? WHERE id = ? AND answered = 0", done)


def _change_row(transition: Transition, status: Status, now: float) -> tuple[Any, ...]:
    id, wake = transition.id, transition.effects.wake
    revision = transition.expected + (transition.frame is not None)
    checksum = state_checksum(id, status, None, now, wake, revision)
    return status, now, NO_TIME if wake is None else wake, revision, checksum, id, revision


def _write_messages_and_promote(db: sqlite3.Connection, batch: Sequence[Unit], now: float) -> None:
    for unit in batch:
        if unit.messages:
            _insert_messages(db, unit)
        if unit.promoted:
            db.executemany(_PROMOTE, [_promoted_row(sequence, start, now) for sequence, start in unit.promoted])


def _answer_row(answer: Answer) -> tuple[Any, ...]:
    return answer.refused, answer_checksum(answer.message, answer.refused), answer.message


def _promoted_row(sequence: int, start: Start, now: float) -> tuple[Any, ...]:
    return sequence, now, state_checksum(start.id, "pending", sequence, now, None, 0), start.id


_ANSWER = "UPDATE message SET answered = 1, answer = ?, answer_checksum = ? WHERE id = ? AND answered = 0"
_PROMOTE = (
    "UPDATE invocation SET status = 'pending', sequence = ?, updated_at = ?, state_checksum = ? "
    "WHERE id = ? AND status = 'scheduled'"
)
_INSERT_INVOCATION = (
    "INSERT INTO invocation (id, handler, key, created_at, due, identity, start, checksum, status, sequence, "
    "updated_at, wake, revision, state_checksum) VALUES (?, ?, nullif(?, ''), ?, ?, ?, ?, ?, ?, nullif(?, 0), ?, NULL, "
    "0, ?)"
)
_CHANGE_STATUS = (
    f"UPDATE invocation SET status = ?, sequence = NULL, updated_at = ?, wake = nullif(?, {NO_TIME}), revision = ?, "
    "state_checksum = ? WHERE id = ? AND revision <= ?"  # a redo that comes late changes nothing
)


def _row_of(accept: Accept, now: float) -> tuple[Any, ...]:
    start = accept.start
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
        accept.sequence,
        now,
        state_checksum(start.id, accept.status, accept.sequence or None, now, None, 0),
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
                raise Mismatch(_conflict(frame[0], frame[1] - 1))
            db.execute("INSERT INTO frame VALUES (?, ?, ?, ?)", frame)


def _conflict(id: str, expected: int) -> Conflict:
    return Conflict(f"the journal of {id!r} is not at revision {expected}", invocation_id=id)


def _is_new(db: sqlite3.Connection, seen: dict[str, bytes], unit: Unit, start: Start) -> bool:
    """Tell whether an id that may exist is new; one that exists with another input is an error to who chose it."""
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


def _insert_messages(db: sqlite3.Connection, unit: Unit) -> None:
    unit.routes.clear()
    for message in unit.messages:
        row = db.execute("SELECT handler, status FROM invocation WHERE id = ?", (message.to,)).fetchone()
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
            unit.routes.append((message, row[0], row[1]))
