"""Awakeables in SQL: a table for all stores that keep their index in SQLite.

A row holds the whole awakeable; the other columns repeat what is searched by. Those of an invocation are few, so they
are read, merged and written together. SQLite only; the caller has begun a transaction.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from perdure.stores.awakeables import Awakeable, AwakeableFilter, merged

TABLES = """
CREATE TABLE awakeable (
    invocation TEXT NOT NULL, generation INTEGER NOT NULL, n INTEGER NOT NULL, at REAL NOT NULL, handler TEXT NOT NULL,
    is_open INTEGER NOT NULL, expires_at REAL, data BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (invocation, generation, n)
) WITHOUT ROWID;
CREATE INDEX awakeable_by_time ON awakeable (at, invocation, generation, n);
CREATE INDEX awakeable_open ON awakeable (at, invocation, generation, n) WHERE is_open = 1;
CREATE TABLE assignee (
    name TEXT NOT NULL, at REAL NOT NULL, invocation TEXT NOT NULL, generation INTEGER NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY (name, at, invocation, generation, n)
) WITHOUT ROWID;
CREATE INDEX assignee_of ON assignee (invocation);
"""
PURGE = ("DELETE FROM awakeable WHERE invocation = ?", "DELETE FROM assignee WHERE invocation = ?")
"""What removes the awakeables of an invocation."""
STORED = "invocation, data, checksum"
"""The columns that `decode` takes."""

_ALL = f"SELECT {STORED} FROM awakeable WHERE invocation = ?"
_PUT = "INSERT OR REPLACE INTO awakeable VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ASSIGN = "INSERT OR IGNORE INTO assignee VALUES (?, ?, ?, ?, ?)"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Awakeable).decode


def decode(row: Sequence[Any]) -> Awakeable | None:
    """Return the awakeable of a row; None if the row was changed."""
    invocation, data, checksum = row
    try:
        if zlib.crc32(data) != checksum:
            return None
        awakeable = _decode(data)
    except (TypeError, msgspec.DecodeError):
        return None
    return awakeable if awakeable.invocation == invocation else None


def of(db: sqlite3.Connection, invocation: str) -> list[Awakeable]:
    """Return the awakeables of an invocation."""
    return [each for row in db.execute(_ALL, (invocation,)) if (each := decode(row)) is not None]


def note(db: sqlite3.Connection, invocation: str, told: Sequence[Awakeable]) -> None:
    """Note what a commit told of the awakeables of an invocation: others that are known are not open."""
    known = of(db, invocation)
    before = {*known}
    put(db, [each for each in merged(known, told) if each not in before])


def put(db: sqlite3.Connection, awakeables: Iterable[Awakeable]) -> None:
    """Write awakeables as they are."""
    for each in awakeables:
        data = _encode(each)
        place = (each.at, each.invocation, each.generation, each.n)
        found = (each.handler, each.is_open, each.asked.expires_at, data, zlib.crc32(data))
        db.execute(_PUT, (each.invocation, each.generation, each.n, each.at, *found))
        db.executemany(_ASSIGN, [(name, *place) for name in each.asked.assignees])


def query_of(filter: AwakeableFilter) -> tuple[str, list[Any]]:
    """Return the query that lists what passes a filter, oldest first, as rows for `decode`, and its values."""
    conditions: list[str] = []
    values: list[Any] = []
    if filter.is_open is not None:
        is_open = "(w.is_open = 1 AND (w.expires_at IS NULL OR w.expires_at > ?))"
        conditions.append(f"w.is_open = 1 AND {is_open}" if filter.is_open else f"NOT {is_open}")
        values.append(filter.now)
    if filter.handler is not None:
        conditions.append("w.handler = ?")
        values.append(filter.handler)
    order, source = "w", "awakeable w"
    if filter.assignee is not None:
        order, source = "a", "assignee a JOIN awakeable w USING (invocation, generation, n)"
        conditions.append("a.name = ?")
        values.append(filter.assignee)
    place = f"{order}.at, {order}.invocation, {order}.generation, {order}.n"
    if filter.after is not None:
        conditions.append(f"({place}) > (?, ?, ?, ?)")
        values += filter.after
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    columns = ", ".join(f"w.{each}" for each in STORED.split(", "))
    return f"SELECT {columns} FROM {source} {where}ORDER BY {place} LIMIT ?", [*values, filter.limit]
