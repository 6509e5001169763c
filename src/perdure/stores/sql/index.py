"""The index in SQL: how rows are found and counted in a table `invocation`, for all stores that keep one in SQLite.

The table has at least the columns of `COLUMNS`, and the indexes of `INDEXES`. Beside it is the table of `TAGS`: a row
for each tag, with the time of creation, by which an invocation with it is found. `finding` chooses among the indexes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from perdure.core.tags import Tags
from perdure.stores.port import MINUTE_SECONDS, Counts, Minute, Row
from perdure.stores.sql.bounds import Bounded
from perdure.stores.waits import Wait

COLUMNS = "id, handler, status, key, created_at, updated_at, due, tags, wait"
"""Those that `row_of` takes. Tags and the wait are in JSON, NULL if there are none."""
BEFORE_TAGS = COLUMNS.replace(", tags, wait", ", NULL, NULL")
"""The same of a table without them."""
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
CREATE INDEX invocation_by_time ON invocation (created_at, id);
CREATE INDEX invocation_by_handler ON invocation (handler, created_at, id);
CREATE INDEX invocation_by_status ON invocation (status, created_at, id, handler) WHERE {LIVELY};
CREATE INDEX invocation_settled ON invocation (updated_at, status, handler, due) WHERE {SETTLED};
"""
"""A store has `invocation_by_key (key, created_at)` and `invocation_queued (handler, …, status)` of what is pending
besides, as its queues need them. The status is in it since SQLite does not see that all its rows have the same."""
COUNTS = (  # each from an index alone; what is left is completed
    "SELECT NULL, handler, count(*) FROM invocation GROUP BY handler "
    f"UNION ALL SELECT status, NULL, count(*) FROM invocation WHERE {LIVELY} GROUP BY status "
    "UNION ALL SELECT 'pending', NULL, count(*) FROM invocation WHERE status = 'pending'"
)

MINUTES = (  # from the index alone
    f"SELECT CAST(updated_at / {MINUTE_SECONDS} AS INTEGER) * {MINUTE_SECONDS}.0 AS minute, handler, status, count(*), "
    "sum(max(updated_at - due, 0.0)), max(max(updated_at - due, 0.0)) "
    f"FROM invocation INDEXED BY invocation_settled WHERE {SETTLED} AND updated_at >= ? "
    "AND (? IS NULL OR handler = ?) GROUP BY minute, handler, status ORDER BY minute, handler, status"
)


_encode_tags = _encode_wait = msgspec.json.Encoder().encode
_decode_tags = msgspec.json.Decoder(Tags).decode
_decode_wait = msgspec.json.Decoder(Wait).decode


def tags_text(tags: Tags) -> str:
    """Return tags for the column; empty if there are none."""
    return _encode_tags(tags).decode() if tags else ""


def wait_text(wait: Wait | None) -> str:
    """Return a wait for the column; empty if there is none."""
    return "" if wait is None else _encode_wait(wait).decode()


def tag_rows(id: str, created_at: float, tags: Tags) -> list[tuple[str, str, float, str]]:
    """Return the rows of `TAGS` for an invocation."""
    return [(name, value, created_at, id) for name, value in tags]


def row_of(columns: Sequence[Any]) -> Row:
    """Return the row of columns selected by `COLUMNS`."""
    id, handler, status, key, created_at, updated_at, due, tags, wait = columns
    told = (_decode_tags(tags) if tags else (), _decode_wait(wait) if wait else None)
    return Row(id, handler, status, key, created_at, updated_at, due, *told)


def minutes_of(db: Bounded, since: float, handler: str | None) -> list[Minute]:
    """Count what ended since a time, by minute, handler and status."""
    return [Minute(*row) for row in db.rows(MINUTES, (since, handler, handler))]


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


def select(columns: str, source: str, conditions: Sequence[str], order: str) -> str:
    """Return a query of what meets all conditions, whose last value is a limit."""
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    return f"SELECT {columns} FROM {source} {where}ORDER BY {order} LIMIT ?"
