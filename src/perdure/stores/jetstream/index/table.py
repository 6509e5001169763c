"""The table of the index: rows of invocations, and up to where the streams were read. SQLite only; knows no server.

It is a cache that can be rebuilt from the streams, in a temporary file, or in one that outlives the process and that
several processes may share. An older frame never replaces a newer one, so two of them may write the same rows.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.errors import StoreDamaged
from perdure.stores.awakeables import Awakeable, AwakeableFilter
from perdure.stores.jetstream.layout.facts import Facts
from perdure.stores.jetstream.layout.subjects import token
from perdure.stores.port import Counts, Filter, Minute, Row
from perdure.stores.sql import awakeables, finding, index
from perdure.stores.sql.bounds import Bounded
from perdure.stores.sql.index import COUNTS, INDEXES, SETTLED, counts_of

VERSION = 4
"""A file of another version is rebuilt."""
BUSY_SECONDS = 10.0
"""How long to wait for another process that holds the file's lock."""
IDS_LIMIT = 500
"""Ids that are looked up in one query."""

log = logging.getLogger("perdure.jetstream")

_SCHEMA = f"""
CREATE TABLE invocation (
    id TEXT PRIMARY KEY, handler TEXT NOT NULL, status TEXT NOT NULL, key TEXT, created_at REAL NOT NULL,
    updated_at REAL NOT NULL, due REAL NOT NULL, shard INTEGER NOT NULL, sequence INTEGER NOT NULL, open TEXT,
    tags TEXT, wait TEXT, read TEXT
) WITHOUT ROWID;
CREATE INDEX invocation_by_key ON invocation (key, created_at) WHERE key IS NOT NULL;
CREATE INDEX invocation_queued ON invocation (handler, created_at, status) WHERE status = 'pending';
CREATE INDEX invocation_scheduled ON invocation (due) WHERE status = 'scheduled';
CREATE INDEX invocation_unread ON invocation (id) WHERE open IS NOT read;
{INDEXES}
{index.TAGS}
{awakeables.TABLES}
CREATE TABLE gone (id TEXT PRIMARY KEY, sequence INTEGER NOT NULL, shard INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE position (
    shard INTEGER PRIMARY KEY, journal INTEGER NOT NULL, queue INTEGER NOT NULL, looked_at REAL NOT NULL
);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
# `shard` is the partition. `sequence` is that of the last message of the journal, 0 for a start that is only queued.
# `open` names the open awakeables, in JSON: NULL if it never had any. `read` is what `open` was when the table of
# awakeables was last made to agree with it.
_INSERT = "INSERT INTO invocation VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, nullif(?, ''), nullif(?, ''), NULL)"
_TOLD = (
    f"{_INSERT} ON CONFLICT (id) DO UPDATE SET handler = excluded.handler, status = excluded.status, "
    "key = excluded.key, created_at = excluded.created_at, updated_at = excluded.updated_at, due = excluded.due, "
    "shard = excluded.shard, sequence = excluded.sequence, open = excluded.open, wait = excluded.wait "
    "WHERE excluded.sequence > invocation.sequence"
)
_QUEUED = f"{_INSERT} ON CONFLICT (id) DO NOTHING"
_PROMOTE = "UPDATE invocation SET status = 'pending', updated_at = due WHERE status = 'scheduled' AND due <= ?"
_POSITION = (
    "INSERT INTO position VALUES (?, ?, ?, ?) ON CONFLICT (shard) DO UPDATE SET journal = max(journal, "
    "excluded.journal), queue = max(queue, excluded.queue), looked_at = max(looked_at, excluded.looked_at)"
)
_PENDING_SINCE = "SELECT handler, min(due) FROM invocation WHERE status = 'pending' GROUP BY handler"
_DUE = (
    f"SELECT id FROM invocation INDEXED BY invocation_settled WHERE {SETTLED} AND updated_at <= ? "
    "ORDER BY updated_at LIMIT ?"
)
_UNSETTLED = (
    f"SELECT id FROM invocation WHERE id > ? AND shard = ? AND NOT {SETTLED} AND updated_at <= ? ORDER BY id LIMIT ?"
)
_WAITED_FOR = "SELECT DISTINCT key FROM invocation WHERE key > ? AND status = 'pending' ORDER BY key LIMIT ?"

_PURGE_BESIDE = (*awakeables.PURGE, index.PURGE_TAGS)
_UNREAD = "SELECT id, open FROM invocation INDEXED BY invocation_unread WHERE open IS NOT read AND id > ?"
_IS_READ = "UPDATE invocation SET read = ? WHERE id = ?"

NOT_KNOWN = "?"
"""The `open` of an invocation whose last frame does not tell, since an earlier release wrote it."""

NEW_FOLDER_MODE = 0o700
"""The mode of a new folder for the file: ids and keys may name people."""

TEMPORARY = ""
"""SQLite's name for a temporary file, which is deleted with the connection. It costs a worker no memory."""


class Told(Struct):
    """A message of a journal stream: its sequence and the facts of its header."""

    sequence: int
    facts: Facts


class Position(Struct, frozen=True):
    """Up to where a partition was read: the last sequences of both streams, and the time."""

    journal: int = 0
    queue: int = 0
    looked_at: float = 0.0


class Unread(Struct, frozen=True):
    """An invocation whose awakeables in the table may not be what its last frame tells.

    `open` are those that are open now, None if that is not known.
    """

    id: str
    tells: str | None
    open: tuple[tuple[int, int], ...] | None


class Table:
    """The rows. Not thread-safe."""

    def __init__(self, path: Path | None, identity: str) -> None:
        """Open the table of the store with this identity. A file of another store, or a damaged one, is emptied."""
        self._path = path
        self._db = _open(path, f"{VERSION} {identity}")

    def close(self) -> None:
        self._db.close()

    def clear(self) -> None:
        """Forget everything."""
        with self._db as db:
            for table in ("invocation", "gone", "position", "awakeable", "assignee", "tag"):
                db.execute(f"DELETE FROM {table}")

    def positions(self) -> dict[int, Position]:
        found = self._read("SELECT shard, journal, queue, looked_at FROM position")
        return {shard: Position(*rest) for shard, *rest in found}

    # --- answers ------------------------------------------------------------------------------------------------------
    def search(self, filter: Filter) -> list[Row]:
        with self._explained():
            found = finding.search(Bounded(self._db, filter.within), filter)
        try:
            return [index.row_of(each) for each in found]
        except (msgspec.DecodeError, TypeError, ValueError) as error:
            raise self._damaged(error) from error

    def counts(self) -> Counts:
        counts = counts_of(self._read(COUNTS))
        counts.due_since.update(self._read(_PENDING_SINCE))
        return counts

    def minutes(self, since: float, handler: str | None, within: float | None) -> list[Minute]:
        with self._explained():
            return index.minutes_of(Bounded(self._db, within), since, handler)

    def settled(self, before: float, limit: int) -> list[str]:
        """Return the ids of invocations that settled before a time, oldest first."""
        return [id for (id,) in self._read(_DUE, (before, limit))]

    def unsettled(self, shard: int, before: float, limit: int, after: str) -> list[str]:
        """Return the ids of unsettled invocations of a partition that have not changed since `before`, in order."""
        return [id for (id,) in self._read(_UNSETTLED, (after, shard, before, limit))]

    def waited_for(self, limit: int, after: str) -> list[str]:
        """Return the keys for which invocations wait, in order."""
        return [key for (key,) in self._read(_WAITED_FOR, (after, limit))]

    # --- awakeables ---------------------------------------------------------------------------------------------------
    def awakeables(self, filter: AwakeableFilter) -> list[Awakeable]:
        with self._explained():
            found = Bounded(self._db, filter.within).rows(*awakeables.query_of(filter))
        return [each for row in found if (each := awakeables.decode(row)) is not None]

    def unread(self, limit: int, after: str, *, only_open: bool) -> list[Unread]:
        """Return invocations whose journals must be read for their awakeables, in order.

        `only_open` leaves out those that have none open and of which the table knows none. What the table can tell by
        itself, that some were answered, is brought up to date here.
        """
        found: list[Unread] = []
        query = f"{_UNREAD} AND (open <> '[]' OR read IS NOT NULL)" if only_open else _UNREAD
        while len(found) < limit and (rows := self._read(f"{query} ORDER BY id LIMIT ?", (after, limit))):
            for id, tells in rows:
                open = None if tells == NOT_KNOWN else _decode_open(tells or "[]")
                if not self._agrees(id, tells, open):
                    found.append(Unread(id, tells, open))
            after = rows[-1][0]
        return found

    def _agrees(self, id: str, tells: str | None, open: tuple[tuple[int, int], ...] | None) -> bool:
        """Make the table agree with the last frame without the journal, if it has the awakeables that are open."""
        known = {(each.generation, each.n): each for each in awakeables.of(self._db, id)}
        if open is None or not known or not known.keys() >= {*open}:
            return False
        with self._db as db:
            awakeables.note(db, id, [replace(known[each], is_open=True) for each in open])
            db.execute(_IS_READ, (tells, id))
        return True

    def note_awakeables(self, found: Iterable[tuple[Unread, Sequence[Awakeable]]]) -> None:
        """Take in the awakeables of invocations, as their journals have them."""
        with self._db as db:
            for unread, made in found:
                for statement in awakeables.PURGE:
                    db.execute(statement, (unread.id,))
                awakeables.put(db, made)
                db.execute(_IS_READ, (unread.tells, unread.id))

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._explained():
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> StoreDamaged:
        return StoreDamaged(f"the index in {self._path} is damaged ({error}): delete that file, and it is rebuilt")

    # --- following ----------------------------------------------------------------------------------------------------
    def promote(self, now: float) -> None:
        """Mark scheduled invocations that are due as pending."""
        if self._read("SELECT 1 FROM invocation WHERE status = 'scheduled' AND due <= ? LIMIT 1", (now,)):
            with self._db as db:
                db.execute(_PROMOTE, (now,))

    def add_queued(self, found: Iterable[tuple[int, Facts]], now: float) -> None:
        """Insert rows for queued starts that have no journal yet, given with their partitions."""
        queued = [each for each in found if each[1].handler]
        gone = self._gone([facts.id for _, facts in queued])
        left = [each for each in queued if each[1].id not in gone]  # one of a purged invocation is not a new one
        with self._db as db:
            db.executemany(_QUEUED, [_row(facts, 0, shard, now) for shard, facts in left])
            db.executemany(index.PUT_TAG, _tags(facts for _, facts in left))

    def add_told(self, shard: int, found: Sequence[Told], now: float) -> None:
        """Apply messages of the journals, in order, and advance the position with them, in one transaction."""
        last: dict[str, Told] = {}
        gone: dict[str, int] = {}
        for each in found:
            facts = each.facts
            if facts.kind == "gone":
                gone[facts.id] = each.sequence
            elif facts.kind in ("frame", "reserved") and facts.id and (facts.is_pack or facts.asks or not facts.quiet):
                last[facts.id] = each
        there = [each for id, each in last.items() if each.sequence > gone.get(id, 0)]
        with self._db as db:
            for id, sequence in gone.items():  # first: an id may be used again
                db.execute("DELETE FROM invocation WHERE id = ? AND sequence < ?", (id, sequence))
                for statement in _PURGE_BESIDE:
                    db.execute(statement, (id,))
                db.execute("INSERT OR REPLACE INTO gone VALUES (?, ?, ?)", (id, sequence, shard))
            for each in there:
                if each.facts.revision and each.facts.asks:  # what it tells of its awakeables is rewritten too
                    for statement in awakeables.PURGE:
                        db.execute(statement, (each.facts.id,))
                    db.execute(_IS_READ, (None, each.facts.id))
            db.executemany(_TOLD, [_row(each.facts, each.sequence, shard, now) for each in there])
            db.executemany(index.PUT_TAG, _tags(each.facts for each in there))
            db.execute(_POSITION, (shard, found[-1].sequence, 0, 0.0))

    def note(self, shard: int, position: Position) -> None:
        """Advance the position of a partition; it never goes back."""
        with self._db as db:
            db.execute(_POSITION, (shard, position.journal, position.queue, position.looked_at))

    def keep(self, shard: int, there: set[str], read_to: int, since: float) -> int:
        """Remove the rows of a partition whose ids, as tokens of subjects, are not in `there`; return how many.

        Rows newer than `there` stay: those with a sequence above `read_to`, or queued after `since`.
        """
        with self._db as db:
            rows = db.execute(
                "SELECT id FROM invocation WHERE shard = ? AND sequence <= ? AND (sequence > 0 OR updated_at < ?)",
                (shard, read_to, since),
            ).fetchall()
            missing = [(id,) for (id,) in rows if token(id) not in there]
            for statement in ("DELETE FROM invocation WHERE id = ?", *_PURGE_BESIDE):
                db.executemany(statement, missing)
            gone = db.execute("SELECT id FROM gone WHERE shard = ? AND sequence <= ?", (shard, read_to)).fetchall()
            db.executemany("DELETE FROM gone WHERE id = ?", [(id,) for (id,) in gone if token(id) not in there])
        return len(missing)

    def _gone(self, ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for begin in range(0, len(ids), IDS_LIMIT):
            some = ids[begin : begin + IDS_LIMIT]
            marks = ",".join("?" * len(some))
            found.update(id for (id,) in self._read(f"SELECT id FROM gone WHERE id IN ({marks})", some))
        return found


def _row(facts: Facts, sequence: int, shard: int, now: float) -> tuple[Any, ...]:
    status = facts.status
    if facts.kind != "frame":  # it has not begun
        delayed = facts.due > facts.created_at and facts.due > now
        status = "scheduled" if delayed else "pending"
    times = (facts.created_at, facts.at, facts.due)
    tags = index.tags_text(facts.tags)
    wait = index.wait_text(facts.wait)
    return (facts.id, facts.handler, status, facts.key, *times, shard, sequence, _open_of(facts), tags, wait)


def _tags(found: Iterable[Facts]) -> list[tuple[str, str, float, str]]:
    return [row for facts in found for row in index.tag_rows(facts.id, facts.created_at, facts.tags)]


def _open_of(facts: Facts) -> str | None:
    if facts.asks:
        return _encode_open(facts.open).decode()
    rests = facts.kind == "frame" and facts.status in ("suspended", "paused")  # else a worker of today will tell
    return NOT_KNOWN if facts.asks is None and rests else None


_encode_open = msgspec.json.Encoder().encode
_decode_open = msgspec.json.Decoder(tuple[tuple[int, int], ...]).decode


# --- files ------------------------------------------------------------------------------------------------------------
def _open(path: Path | None, identity: str) -> sqlite3.Connection:
    if path is None:
        return _connect(TEMPORARY, identity)
    try:
        path.parent.mkdir(mode=NEW_FOLDER_MODE, parents=True, exist_ok=True)
        try:
            return _connect(str(path), identity)
        except sqlite3.OperationalError:  # locked, full, or cannot be opened
            raise
        except sqlite3.DatabaseError as error:
            log.warning("the index in %s is damaged: rebuilding it: %s", path, error)
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    path.with_name(path.name + suffix).unlink()
            return _connect(str(path), identity)
    except (sqlite3.Error, OSError) as error:
        log.warning("the index cannot be kept in %s, using a temporary file: %s", path, error)
        return _connect(TEMPORARY, identity)


def _connect(path: str, identity: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level="IMMEDIATE")
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        with db:
            db.execute("BEGIN IMMEDIATE")
            found = None
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                found = db.execute("SELECT value FROM meta WHERE name = 'identity'").fetchone()
            if found != (identity,):
                _make(db, identity)
    except BaseException:
        db.close()
        raise
    return db


def _make(db: sqlite3.Connection, identity: str) -> None:
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        db.execute(f"DROP TABLE {name}")
    for statement in filter(str.strip, _SCHEMA.split(";")):
        db.execute(statement)
    db.execute("INSERT INTO meta VALUES ('identity', ?)", (identity,))
