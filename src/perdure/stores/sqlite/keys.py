"""Keys in the file: holder, queue and state. Runs in the writer's thread, in its transaction.

The table `line` holds the queues of keys, each ordered by the sequence assigned to its starts. A start that waits for
its key has no position in the queue of its handler (`invocation.sequence` is NULL) until it is granted the key.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from typing import cast

import msgspec

from perdure.core.busy import called_for
from perdure.core.effects import Enlist, Release
from perdure.core.journal import Start
from perdure.errors import StoreDamaged
from perdure.stores.port import Key, key_queue_full
from perdure.stores.sqlite.aside import Aside
from perdure.stores.sqlite.checked import RESTORE, damaged
from perdure.stores.sqlite.faults import Mismatch, about
from perdure.stores.sqlite.schema import key_checksum, line_checksum, state_checksum
from perdure.stores.sqlite.unit import Unit

log = logging.getLogger("perdure.sqlite")

_KEY = "holder, generation, state, number, checksum"
_KEY_BEFORE_GRANTS = _KEY.replace("number", "0")

encode_state = msgspec.msgpack.Encoder().encode
decode_state = msgspec.msgpack.Decoder(dict[str, bytes]).decode


def read_key(db: sqlite3.Connection, name: str) -> Key:
    """Read a key. A key without a row has no holder and no state. A damaged row raises `Mismatch`."""
    try:
        row = db.execute(f"SELECT {_KEY} FROM key WHERE name = ?", (name,)).fetchone()
    except sqlite3.OperationalError as error:  # a view of a file that an earlier release wrote
        if "no such column: number" not in str(error):
            raise
        row = db.execute(f"SELECT {_KEY_BEFORE_GRANTS} FROM key WHERE name = ?", (name,)).fetchone()
    if row is None:
        return Key()
    holder, generation, state, grant, checksum = row
    if key_checksum(name, holder, generation, state, grant) != checksum:
        raise Mismatch(StoreDamaged(f"the row of key {name!r} was changed; {RESTORE}"))
    return Key(holder, generation, decode_state(state), grant)


class Keys:
    """Changes keys, one transaction at a time. `_waiting` caches the lengths of queues."""

    def __init__(self, path: str, key_queue_limit: int, aside: Aside) -> None:
        self._path = path
        self._key_queue_limit = key_queue_limit
        self._aside = aside
        self._waiting: dict[str, int] = {}

    def forget(self) -> None:
        """Forget the cached lengths: a transaction was rolled back."""
        self._waiting.clear()

    def apply(self, db: sqlite3.Connection, batch: Sequence[Unit], commit: int, now: float) -> None:
        """Write the changes of a batch to keys, then grant those of these keys that are free.

        `commit` is the number of this transaction, and so of its grants: sequences begin anew in a file at rest. `now`
        is the time of the messages for which starts call.
        """
        touched: dict[str, Unit] = {}
        for unit in batch:
            for accept in unit.accepts:
                if accept.new and accept.start.key is not None and accept.status == "pending":
                    self._enter(db, unit, accept.start, accept.sequence, now)
                    touched[accept.start.key] = unit
            for position, start in unit.promoted:
                if start.key is not None:
                    self._enter(db, unit, start, position, now)
                    touched[start.key] = unit
            if unit.transition is None:
                continue
            id, effects = unit.transition.id, unit.transition.effects
            if (release := effects.release) is not None:
                self._release(db, id, release)
                touched[release.key] = unit
            if (enlist := effects.enlist) is not None and not self._is_enlisted(db, id, enlist):
                self._add(db, enlist.key, unit.position, id, enlist.generation)
                touched[enlist.key] = unit
        for key, unit in touched.items():
            self._grant(db, key, unit, commit)

    def _enter(self, db: sqlite3.Connection, unit: Unit, start: Start, sequence: int, now: float) -> None:
        """Put a start into the queue of its key, unless it is turned away, and note what it calls for."""
        assert start.key is not None
        if start.when_busy != "enqueue":
            holder = read_key(db, start.key).holder
            ahead = [] if holder is None else [holder]
            ahead += [id for (id,) in db.execute("SELECT id FROM line WHERE key = ? ORDER BY sequence", (start.key,))]
            messages = called_for(start, ahead, now)
            unit.called_for += messages
            if any(message.to == start.id for message in messages):
                return
        self._add(db, start.key, sequence, start.id, 0, strict=unit.strict)

    def _add(
        self, db: sqlite3.Connection, key: str, sequence: int, id: str, generation: int, *, strict: bool = False
    ) -> None:
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = cast("int", db.execute("SELECT count(*) FROM line WHERE key = ?", (key,)).fetchone()[0])
        if strict and waiting >= self._key_queue_limit:
            ahead = waiting - (read_key(db, key).holder is None)  # the first gets the key in this transaction
            if ahead >= self._key_queue_limit:
                raise Mismatch(key_queue_full(key, ahead))
        self._waiting[key] = waiting + 1
        checksum = line_checksum(key, sequence, id, generation)
        db.execute("INSERT INTO line VALUES (?, ?, ?, ?, ?)", (key, sequence, id, generation, checksum))

    def _is_enlisted(self, db: sqlite3.Connection, id: str, enlist: Enlist) -> bool:
        if read_key(db, enlist.key).granted_to(id, enlist.generation):
            return True
        query = "SELECT 1 FROM line WHERE id = ? AND generation = ?"
        return db.execute(query, (id, enlist.generation)).fetchone() is not None

    def _release(self, db: sqlite3.Connection, id: str, release: Release) -> None:
        key = read_key(db, release.key)
        if key.granted_to(id, release.generation):
            state = key.state if release.state is None else release.state
            if state:
                _write_key(db, release.key, Key(state=state))
            else:
                db.execute("DELETE FROM key WHERE name = ?", (release.key,))
        else:
            left = db.execute("DELETE FROM line WHERE id = ? AND generation = ?", (id, release.generation)).rowcount
            self._count_less(release.key, left)

    def _grant(self, db: sqlite3.Connection, name: str, unit: Unit, commit: int) -> None:
        """Grant a free key to the first in its queue."""
        key = read_key(db, name)
        if key.holder is not None:
            return
        first = self._first(db, name)
        if first is None:
            return
        sequence, id, generation = first
        db.execute("DELETE FROM line WHERE key = ? AND sequence = ?", (name, sequence))
        self._count_less(name, 1)
        _write_key(db, name, Key(id, generation, key.state, commit))
        handler, status, data, start_checksum, at, wake, revision = db.execute(
            "SELECT handler, status, start, checksum, updated_at, wake, revision FROM invocation WHERE id = ?", (id,)
        ).fetchone()
        if status != "pending" or revision:
            unit.woken.append((id, handler))
            return
        checksum = state_checksum(id, status, sequence, at, wake, revision)
        db.execute("UPDATE invocation SET sequence = ?, state_checksum = ? WHERE id = ?", (sequence, checksum, id))
        unit.granted.append((sequence, id, data, start_checksum))

    def _first(self, db: sqlite3.Connection, name: str) -> tuple[int, str, int] | None:
        """Return the first in the queue of a key that is not set aside: its position, id and generation."""
        query = "SELECT sequence, id, generation, checksum FROM line WHERE key = ? ORDER BY sequence"
        for sequence, id, generation, checksum in db.execute(query, (name,)):
            if line_checksum(name, sequence, id, generation) != checksum:
                self._aside.add(id, _position_damaged(self._path, name, id))
            elif id not in self._aside:
                return sequence, id, generation
        return None

    def _count_less(self, key: str, left: int) -> None:
        if (waiting := self._waiting.get(key)) is not None:
            if waiting > left:
                self._waiting[key] = waiting - left
            else:
                del self._waiting[key]


def _write_key(db: sqlite3.Connection, name: str, key: Key) -> None:
    state = encode_state(key.state)
    checksum = key_checksum(name, key.holder, key.generation, state, key.grant)
    row = (name, key.holder, key.generation, state, key.grant, checksum)
    db.execute(f"INSERT OR REPLACE INTO key (name, {_KEY}) VALUES (?, ?, ?, ?, ?, ?)", row)


def queue_deadline(start: Start) -> float | None:
    """Return when a start that waits for its key must be woken, so that it times out even if it never gets the key."""
    return None if start.key is None or start.timeout is None else start.due + start.timeout


def verify_keys(db: sqlite3.Connection, path: str, aside: Aside, *, with_grants: bool) -> None:
    """Set aside invocations whose position in a queue is damaged, and log keys that cannot be used."""
    columns = _KEY if with_grants else _KEY_BEFORE_GRANTS
    for name, holder, generation, state, grant, checksum in db.execute(f"SELECT name, {columns} FROM key"):
        if key_checksum(name, holder, generation, state, grant) != checksum:
            _log_damaged(path, f"the row of key {name!r} was changed: invocations that need this key wait; {RESTORE}")
    for key, sequence, id, generation, checksum in db.execute("SELECT * FROM line"):
        if line_checksum(key, sequence, id, generation) != checksum:
            aside.add(id, _position_damaged(path, key, id))
    for (id,) in db.execute("SELECT id FROM line WHERE id NOT IN (SELECT id FROM invocation)"):
        aside.add(id, damaged(path, f"invocation {id!r} waits for a key, but its row is missing"))
    held = "SELECT name, holder FROM key WHERE holder IS NOT NULL AND holder NOT IN (SELECT id FROM invocation)"
    for name, holder in db.execute(held):
        what = f"key {name!r} is held by {holder!r}, whose row is missing: invocations that need this key wait"
        _log_damaged(path, f"{what}; {RESTORE}")


def _position_damaged(path: str, key: str, id: str) -> StoreDamaged:
    return damaged(path, f"the position of invocation {id!r} in the queue of key {key!r} was changed")


def _log_damaged(path: str, what: str) -> None:
    log.error("%s", about(path, what))
