"""The index in SQL: how rows are found and counted in a table `invocation`, for all stores that keep one in SQLite.

The table has at least the columns of `COLUMNS`, and the indexes of `INDEXES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from perdure.stores.port import Counts, Filter

COLUMNS = "id, handler, status, key, created_at, updated_at, due"
"""Those of a `Row`, in its order."""
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
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    return f"SELECT {columns} FROM invocation {where}ORDER BY created_at DESC, id DESC LIMIT ?", [*values, filter.limit]


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
    if filter.before is not None:
        conditions.append("(created_at, id) < (?, ?)")
        values += filter.before
    return conditions, values
