"""Awakeables in SQL: a table for all stores that keep their index in SQLite.

A row holds the whole awakeable, but for whether it is open, which is a column: so that closing one needs no row read or
encoded. The other columns repeat what is searched by. SQLite only; the caller has begun a transaction.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from perdure.stores.awakeables import Awakeable, AwakeableFilter
from perdure.stores.sql.index import select

TABLES = """
CREATE TABLE awakeable (
    invocation TEXT NOT NULL, generation INTEGER NOT NULL, n INTEGER NOT NULL, at REAL NOT NULL, handler TEXT NOT NULL,
    expires_at REAL, data BLOB NOT NULL, is_open INTEGER NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (invocation, generation, n)
) WITHOUT ROWID;
CREATE INDEX awakeable_open ON awakeable (at, invocation, generation, n) WHERE is_open = 1;
CREATE TABLE assignee (
    name TEXT NOT NULL, at REAL NOT NULL, invocation TEXT NOT NULL, generation INTEGER NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY (name, at, invocation, generation, n)
) WITHOUT ROWID;
CREATE INDEX assignee_of ON assignee (invocation);
"""
PURGE = ("DELETE FROM awakeable WHERE invocation = ?", "DELETE FROM assignee WHERE invocation = ?")
"""What removes the awakeables of an invocation."""
STORED = "invocation, data, is_open, checksum"
"""The columns that `decode` takes. The checksum is that of `data`, and one more if it is open."""

_ALL = f"SELECT {STORED} FROM awakeable WHERE invocation = ?"
_OPEN = "SELECT generation, n FROM awakeable WHERE invocation = ? AND is_open = 1"
_CLOSE = (
    "UPDATE awakeable SET is_open = 0, checksum = checksum - 1 "
    "WHERE invocation = ? AND generation = ? AND n = ? AND is_open = 1"
)
_PUT = (
    "INSERT INTO awakeable VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (invocation, generation, n) DO UPDATE SET "
    "expires_at = excluded.expires_at, data = excluded.data, is_open = excluded.is_open, checksum = excluded.checksum "
    "WHERE checksum <> excluded.checksum"
)
_ASSIGN = "INSERT OR IGNORE INTO assignee VALUES (?, ?, ?, ?, ?)"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Awakeable).decode


def decode(row: Sequence[Any]) -> Awakeable | None:
    """Return the awakeable of a row; None if the row was changed."""
    invocation, data, is_open, checksum = row
    try:
        if is_open not in (0, 1) or zlib.crc32(data) + is_open != checksum:
            return None
        awakeable = _decode(data)
    except (TypeError, msgspec.DecodeError):
        return None
    if awakeable.invocation != invocation:
        return None
    return awakeable if is_open else replace(awakeable, is_open=False)


def searched_by(awakeable: Awakeable) -> tuple[int, int, float, str, float | None]:
    """Return the columns that repeat what is searched by: generation, n, at, handler, expires_at."""
    return awakeable.generation, awakeable.n, awakeable.at, awakeable.handler, awakeable.asked.expires_at


def assignees_of(awakeable: Awakeable) -> list[tuple[str, float, str, int, int]]:
    """Return the rows of the table of assignees for an awakeable."""
    return [(name, *awakeable.place) for name in dict.fromkeys(awakeable.asked.assignees)]


def of(db: sqlite3.Connection, invocation: str) -> list[Awakeable]:
    """Return the awakeables of an invocation."""
    return [each for row in db.execute(_ALL, (invocation,)) if (each := decode(row)) is not None]


def encode(awakeable: Awakeable) -> bytes:
    """Return the data of a row, which does not tell whether it is open."""
    return _encode(awakeable if awakeable.is_open else replace(awakeable, is_open=True))


def note(db: sqlite3.Connection, invocation: str, told: Sequence[Awakeable]) -> None:
    """Note what a commit told of the awakeables of an invocation: others that are known are not open."""
    were_open = db.execute(_OPEN, (invocation,)).fetchall()
    are_open = {(each.generation, each.n) for each in told if each.is_open}
    if left := [(invocation, *place) for place in were_open if place not in are_open]:
        db.executemany(_CLOSE, left)
    if len(are_open) != len(told) or len(are_open) + len(left) != len(were_open):  # else all that are told are known
        put(db, told)


def put(db: sqlite3.Connection, awakeables: Iterable[Awakeable]) -> None:
    """Write awakeables as they are."""
    for each in awakeables:
        data = encode(each)
        row = (each.invocation, *searched_by(each), data, each.is_open, zlib.crc32(data) + each.is_open)
        db.execute(_PUT, row)
        if each.asked.assignees:
            db.executemany(_ASSIGN, assignees_of(each))


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
    columns = ", ".join(f"w.{each}" for each in STORED.split(", "))
    return select(columns, source, conditions, place), [*values, filter.limit]
