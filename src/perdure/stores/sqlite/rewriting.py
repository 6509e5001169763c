"""Rewrites the values of a file, part by part: rows are read and changed on the loop, and written by the writer.

Each row is written only if it is as it was read, with a new checksum. One that does not match its checksum stays.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.core.journal import Answer, decode_message, decode_start, encode_message, encode_start
from perdure.errors import StoreError
from perdure.stores.port import Key
from perdure.stores.rewriting import (
    PART_BYTES,
    PART_LIMIT,
    Left,
    Rewriting,
    rewritten,
    rewritten_chunk,
    rewritten_frame,
)
from perdure.stores.sql import awakeables
from perdure.stores.sqlite import documents, keys, streams
from perdure.stores.sqlite.checked import check_answer, check_frame, damaged, damaged_awakeable, message_of, start_of
from perdure.stores.sqlite.schema import answer_checksum, frame_checksum, key_checksum

Row = Sequence[Any]
Write = tuple[str, tuple[Any, ...]]
"""A statement, and its values."""
Change = Callable[[str, Rewriting, Row], list[Write]]
"""Returns what is to be written for a row of the file at a path. Raises `StoreError` for one that must stay."""


class Page(Struct, frozen=True):
    """Rows of one table of `TABLES`. `next` is the position after them, None at the end of the last table."""

    table: int
    rows: list[Row]
    next: str | None


class _Table(Struct, frozen=True):
    """How to read a table, the columns of `place` first, and what to do with a row. `of`: whom its rows belong to."""

    name: str
    of: str
    place: str
    columns: str
    change: Change


def read_page(db: sqlite3.Connection, after: str) -> Page:
    """Read the next rows, in the reading thread."""
    number, place = _decode_position(after.encode()) if after else (0, [])
    table = _TABLES[number]
    marks = ", ".join("?" * len(place))
    beyond = f"WHERE ({table.place}) > ({marks})" if place else ""
    query = f"SELECT {table.place}, {table.columns} FROM {table.name} {beyond} ORDER BY {table.place} LIMIT ?"
    rows: list[Row] = []
    size = 0
    cursor = db.execute(query, (*map(_of_json, place), PART_LIMIT))
    for row in cursor:
        rows.append(row)
        size += sum(len(each) for each in row if isinstance(each, bytes))
        if size > PART_BYTES:
            break
    cursor.close()
    following: tuple[int, list[str | int]] = number + 1, []
    if len(rows) == PART_LIMIT or size > PART_BYTES:
        following = number, [*map(_to_json, rows[-1][: table.place.count(",") + 1])]
    return Page(number, rows, _encode_position(following).decode() if following[0] < len(_TABLES) else None)


def writes_for(path: str, rewriting: Rewriting, table: int, row: Row) -> list[Write] | Left:
    """Return what is to be written for a row, perhaps nothing, or why it stays as it is."""
    try:
        return _TABLES[table].change(path, rewriting, row)
    except StoreError as error:
        return Left(f"{_TABLES[table].of} {row[0]!r}", str(error))


def apply(db: sqlite3.Connection, writes: Sequence[Write]) -> None:
    """Write what is as it was read, in the writer's transaction."""
    for statement, values in writes:
        db.execute(statement, values)


# --- rows -------------------------------------------------------------------------------------------------------------
def _start(path: str, rewriting: Rewriting, row: Row) -> list[Write]:
    id, data, checksum = row
    start_of(path, id, data, checksum)
    new = rewritten(data, decode_start, encode_start, rewriting.start)
    if new == data:
        return []
    return [
        ("UPDATE invocation SET start = ?, checksum = ? WHERE id = ? AND start = ?", (new, zlib.crc32(new), id, data))
    ]


def _frame(path: str, rewriting: Rewriting, row: Row) -> list[Write]:
    id, revision, data, checksum = row
    check_frame(path, id, revision, data, checksum)
    new = rewritten_frame(rewriting, id, data)
    if new == data:
        return []
    values = (new, frame_checksum(id, revision, new), id, revision, data)
    return [("UPDATE frame SET data = ?, checksum = ? WHERE id = ? AND revision = ? AND data = ?", values)]


def _message(path: str, rewriting: Rewriting, row: Row) -> list[Write]:
    id, to, data, checksum, answer, answered, answer_sum = row
    message_of(path, to, data, checksum)
    check_answer(path, to, id, answer, answered, answer_sum)
    writes: list[Write] = []
    if (new := rewritten(data, decode_message, encode_message, rewriting.message)) != data:
        values = (new, zlib.crc32(new), id, data)
        writes.append(("UPDATE message SET data = ?, checksum = ? WHERE id = ? AND data = ?", values))
    if answer is not None and (said := rewriting.answer(Answer(id, answer)).refused) != answer:
        values = (said, answer_checksum(id, said), id, answer)
        writes.append(("UPDATE message SET answer = ?, answer_checksum = ? WHERE id = ? AND answer = ?", values))
    return writes


def _key(path: str, rewriting: Rewriting, row: Row) -> list[Write]:
    name, holder, generation, state, grant, checksum = row
    if key_checksum(name, holder, generation, state, grant) != checksum:
        raise damaged(path, f"the row of key {name!r} was changed")
    found = Key(holder, generation, keys.decode_state(state), grant)
    if (changed := rewriting.key(name, found)) == found:
        return []
    new = keys.encode_state(changed.state)
    values = (new, key_checksum(name, holder, generation, new, grant), name, holder, generation, grant, state)
    where = "name = ? AND holder IS ? AND generation = ? AND number = ? AND state = ?"
    return [(f"UPDATE key SET state = ?, checksum = ? WHERE {where}", values)]


def _awakeable(path: str, rewriting: Rewriting, row: Row) -> list[Write]:
    invocation, generation, n, data, is_open, checksum = row
    found = awakeables.decode((invocation, data, is_open, checksum))
    if found is None:
        raise damaged_awakeable(path, invocation)
    if (changed := rewriting.awakeable(found)) == found:
        return []
    new = awakeables.encode(changed)
    values = (new, zlib.crc32(new), invocation, generation, n, data)
    where = "invocation = ? AND generation = ? AND n = ? AND data = ?"
    return [(f"UPDATE awakeable SET data = ?, checksum = ? + is_open WHERE {where}", values)]


def _document(path: str, rewriting: Rewriting, row: Row) -> list[Write]:
    collection, key, *stored = row
    found = documents.document_of(path, collection, key, *stored)
    changed = replace(found, value=rewriting.document(collection, found).value)
    if changed == found:
        return []
    checksum = documents.checksum(collection, key, changed.value, found.revision)
    values = (changed.value, checksum, collection, key, found.revision)
    return [("UPDATE document SET value = ?, checksum = ? WHERE collection = ? AND key = ? AND revision = ?", values)]


def _stream(path: str, rewriting: Rewriting, row: Row) -> list[Write]:
    id, name, position, data, checksum = row
    if streams.checksum(id, name, position, data) != checksum:
        raise damaged(path, streams.changed(id, name, position))
    new = rewritten_chunk(rewriting, id, data)
    if new == data:
        return []
    values = (new, streams.checksum(id, name, position, new), id, name, position, data)
    where = "invocation = ? AND name = ? AND position = ? AND data = ?"
    return [(f"UPDATE stream SET data = ?, checksum = ? WHERE {where}", values)]


_TABLES = (
    _Table("invocation", "invocation", "id", "start, checksum", _start),
    _Table("frame", "invocation", "id, revision", "data, checksum", _frame),
    _Table("message", "message", "id", "invocation, data, checksum, answer, answered, answer_checksum", _message),
    _Table("key", "key", "name", "holder, generation, state, number, checksum", _key),
    _Table("awakeable", "invocation", "invocation, generation, n", "data, is_open, checksum", _awakeable),
    _Table("document", "a document of", "collection, key", "value, revision, checksum", _document),
    _Table("stream", "invocation", "invocation, name, position", "data, checksum", _stream),
)
_encode_position = msgspec.json.Encoder().encode
_decode_position = msgspec.json.Decoder(tuple[int, list[str | int]]).decode


def _to_json(part: str | int | bytes) -> str | int:
    """Return a part of a place for JSON: keys of documents are bytes."""
    return f"0x{part.hex()}" if isinstance(part, bytes) else f"={part}" if isinstance(part, str) else part


def _of_json(part: str | int) -> str | int | bytes:
    if isinstance(part, int):
        return part
    return bytes.fromhex(part[2:]) if part.startswith("0x") else part[1:]
