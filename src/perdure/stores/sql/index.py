"""The index in SQL: how rows are found and counted in a table `invocation`, for all stores that keep one in SQLite.

The table has at least the columns of `COLUMNS`, and the indexes of `INDEXES`. Beside it is the table of `TAGS`: a row
for each tag, with the time of creation, by which an invocation with it is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from perdure.core.tags import Tags
from perdure.stores.port import Counts, Filter, Row

COLUMNS = "id, handler, status, key, created_at, updated_at, due, tags"
"""Those that `row_of` takes. Tags are in JSON, NULL if there are none."""
BEFORE_TAGS = COLUMNS.replace(", tags", ", NULL")
"""The same of a table without tags."""
TAGS = """
CREATE TABLE tag (
    name TEXT NOT NULL, value TEXT NOT NULL, at REAL NOT NULL, invocation TEXT NOT NULL,
    PRIMARY KEY (name, value, at, invocation)
) WITHOUT ROWID;
CREATE INDEX tag_of ON tag (invocation);
"""
PUT_TAG = "INSERT OR IGNORE INTO tag VALUES (?, ?, ?, ?)"
PURGE_TAGS = "DELETE FROM tag WHERE invocation = ?"
LIVELY = "status <> 'pending' AND status <> 'completed'"
"""The statuses that have an index, those of later releases among them. The two that nearly every invocation has at its
ends do without: rows that wait are in an index of their own, and one that is completed is found by its time. That saves
three of five changes to the index. SQLite uses the index only for queries that have these very terms."""
SETTLED = "(status = 'completed' OR status = 'failed' OR status = 'cancelled')"
"""Written with OR: for each IN, SQLite fills a table of the values whenever it changes a row."""
INDEXES = f"""
CREATE INDEX invocation_by_time ON invocation (created_at, id, handler);
CREATE INDEX invocation_by_status ON invocation (status, created_at, id, handler) WHERE {LIVELY};
CREATE INDEX invocation_settled ON invocation (updated_at) WHERE {SETTLED};
"""
COUNTS = (  # each from an index alone; what is left is completed
    "SELECT NULL, handler, count(*) FROM invocation GROUP BY handler "
    f"UNION ALL SELECT status, NULL, count(*) FROM invocation WHERE {LIVELY} GROUP BY status "
    "UNION ALL SELECT 'pending', NULL, count(*) FROM invocation WHERE status = 'pending'"
)


_encode_tags = msgspec.json.Encoder().encode
_decode_tags = msgspec.json.Decoder(Tags).decode


def tags_text(tags: Tags) -> str:
    """Return tags for the column; empty if there are none."""
    return _encode_tags(tags).decode() if tags else ""


def tag_rows(id: str, created_at: float, tags: Tags) -> list[tuple[str, str, float, str]]:
    """Return the rows of `TAGS` for an invocation."""
    return [(name, value, created_at, id) for name, value in tags]


def row_of(columns: Sequence[Any]) -> Row:
    """Return the row of columns selected by `COLUMNS`."""
    id, handler, status, key, created_at, updated_at, due, tags = columns
    return Row(id, handler, status, key, created_at, updated_at, due, _decode_tags(tags) if tags else ())


def counts_of(rows: Iterable[tuple[Any, Any, int]]) -> Counts:
    """Return what `COUNTS` found."""
    counts = Counts()
    for status, handler, count in rows:
        if handler is not None:
            counts.by_handler[handler] = count
        elif count:
            counts.by_status[status] = count
    if completed := sum(counts.by_handler.values()) - sum(counts.by_status.values()):
        counts.by_status["completed"] = completed
    return counts


def query_of(filter: Filter, columns: str = COLUMNS) -> tuple[str, list[Any]]:
    """Return the query that lists what passes a filter, newest first, and its values."""
    conditions, values = _conditions(filter)
    place, source = "created_at, id", "invocation"
    if filter.tags:
        place, source = "tag.at, tag.invocation", "tag CROSS JOIN invocation"  # the rows of a tag are read, in order
        conditions += ["invocation.id = tag.invocation AND tag.name = ? AND tag.value = ?"]
        values += filter.tags[0]
        for each in filter.tags[1:]:
            other = "SELECT 1 FROM tag t WHERE (t.name, t.value, t.at, t.invocation) = (?, ?, tag.at, tag.invocation)"
            conditions.append(f"EXISTS ({other})")
            values += each
    if filter.before is not None:
        conditions.append(f"({place}) < (?, ?)")
        values += filter.before
    order = ", ".join(f"{each} DESC" for each in place.split(", "))
    return select(columns, source, conditions, order), [*values, filter.limit]


def select(columns: str, source: str, conditions: Sequence[str], order: str) -> str:
    """Return a query of what meets all conditions, whose last value is a limit."""
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    return f"SELECT {columns} FROM {source} {where}ORDER BY {order} LIMIT ?"


def _conditions(filter: Filter) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    if filter.status in ("pending", "completed"):
        conditions.append(f"status = '{filter.status}'")  # written out: else SQLite does not see which index has it
    elif filter.status is not None:
        conditions.append(f"status = ? AND {LIVELY}")
        values.append(filter.status)
    for condition, value in (
        ("id = ?", filter.id),
        ("handler = ?", filter.handler),
        ("key = ?", filter.key),
        ("created_at >= ?", filter.created_after),
        ("created_at < ?", filter.created_before),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if filter.id_prefix is not None:
        conditions.append("id >= ? AND id < ?")
        values += [filter.id_prefix, filter.id_prefix + "\U0010ffff"]
    return conditions, values
