"""How a page of the index is found: in one of several ways, each of which reads a part of one index.

SQLite cannot know which part is small, and takes the primary key for a prefix that all ids have. So `search` chooses.
It tries the likeliest way for a moment, newest first, which nearly always fills the page; else it counts what each way
would read. No way reads more rows than the smallest of these parts has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from perdure.stores.port import Filter
from perdure.stores.sql.bounds import Bounded
from perdure.stores.sql.index import COLUMNS, LIVELY, select

TRY_STEPS = 50_000
"""Steps of SQLite's virtual machine, a few milliseconds, for which the likeliest way is tried."""
COUNT_LIMITS = (2_000, 50_000)
"""Entries of an index that are counted at most: first so many, and if each way has more, so many, which takes a few
milliseconds. Reading as many rows takes fifty."""

_TIMES = frozenset({"created_after", "created_before", "before"})
_PRIMARY_KEY = "INDEXED BY sqlite_autoindex_invocation_1"


class Way(Struct, frozen=True):
    """A way to find rows: by an index, or by the tag at this position in the filter.

    Entries that match in these `fields` of the filter are read, or counted. They come newest first, or else all of them
    are read and sorted.
    """

    fields: frozenset[str]
    by: str = ""
    tag: int | None = None


_ANY = Way(frozenset())
"""The way that SQLite takes."""


def ways_of(filter: Filter) -> list[Way]:
    """Return the ways to find what passes a filter, the likeliest first."""
    if filter.id is not None:
        return [Way(frozenset({"id"}), _PRIMARY_KEY)]
    found = [Way(_TIMES, tag=n) for n in range(len(filter.tags))]
    if filter.key is not None:
        found.append(Way(_TIMES | {"key"}, "INDEXED BY invocation_by_key"))
    if filter.status not in (None, "pending", "completed"):
        found.append(Way(_TIMES | {"status"}, "INDEXED BY invocation_by_status"))
    if filter.handler is not None:
        found.append(Way(_TIMES | {"handler"}, "INDEXED BY invocation_by_handler"))
    if not found:  # each of the others reads less
        found.append(Way(_TIMES, "INDEXED BY invocation_by_time"))
    if len(found) == 1 and _terms(filter).keys() <= found[0].fields:
        return found  # all its entries pass
    if filter.status == "pending":
        found.append(Way(frozenset({"status", "handler"}), "INDEXED BY invocation_queued"))
    if filter.status == "completed":
        found.append(Way(frozenset({"status"}), "INDEXED BY invocation_settled"))
    if filter.id_prefix is not None:
        found.append(Way(frozenset({"id_prefix"}), _PRIMARY_KEY))
    return found


def search(db: Bounded, filter: Filter, columns: str = COLUMNS) -> list[Any]:
    """Return the rows that pass a filter, newest first."""
    ways = ways_of(filter)
    if len(ways) == 1:
        return db.rows(*query_of(filter, ways[0], columns))
    found = db.rows_within(TRY_STEPS, *query_of(filter, ways[0], columns))
    if found is not None:
        return found
    return db.rows(*query_of(filter, _smallest(db, filter, ways), columns))


def _smallest(db: Bounded, filter: Filter, ways: Sequence[Way]) -> Way:
    """Return the way that reads least; the likeliest if all read much."""
    for limit in COUNT_LIMITS:
        counts = [db.rows(*count_of(filter, way, limit))[0][0] for way in ways]
        if min(counts) < limit:
            return ways[counts.index(min(counts))]
    return ways[0]


def query_of(filter: Filter, way: Way, columns: str = COLUMNS) -> tuple[str, list[Any]]:
    """Return the query that lists what passes a filter, newest first, and its values."""
    terms, place, source = _terms(filter, way), "created_at, id", f"invocation {way.by}"
    others = [*filter.tags]
    if way.tag is not None:
        place, source = "tag.at, tag.invocation", "tag CROSS JOIN invocation"  # the tag's rows are read first
        terms["join"] = ("invocation.id = tag.invocation", ())
        del others[way.tag]
    for n, each in enumerate(others):
        other = f"SELECT 1 FROM tag t WHERE (t.name, t.value, t.at, t.invocation) = (?, ?, {place})"
        terms[f"tag {n}"] = (f"EXISTS ({other})", each)
    order = ", ".join(f"{each} DESC" for each in place.split(", "))
    conditions, values = _joined(terms.values())
    return select(columns, source, conditions, order), [*values, filter.limit]


def count_of(filter: Filter, way: Way, limit: int) -> tuple[str, list[Any]]:
    """Return the query that counts the entries that a way reads, up to a limit, and its values."""
    wanted = way.fields | {"tag"}
    conditions, values = _joined(term for name, term in _terms(filter, way).items() if name in wanted)
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    source = f"invocation {way.by}" if way.tag is None else "tag"
    return f"SELECT count(*) FROM (SELECT 1 FROM {source} {where}LIMIT ?)", [*values, limit]


def plain_query_of(filter: Filter, columns: str = COLUMNS) -> tuple[str, list[Any]]:
    """Return the query that lists what passes a filter, in whatever way SQLite likes, and its values."""
    return query_of(filter, _ANY, columns)


_Term = tuple[str, Sequence[Any]]


def _terms(filter: Filter, way: Way = _ANY) -> dict[str, _Term]:
    """Return the conditions by the fields of the filter, with their values. Those of other tags are left out."""
    at, id = ("created_at", "id") if way.tag is None else ("tag.at", "tag.invocation")
    terms: dict[str, _Term] = {}
    if way.tag is not None:
        terms["tag"] = ("tag.name = ? AND tag.value = ?", filter.tags[way.tag])
    if filter.status in ("pending", "completed"):
        terms["status"] = (
            f"status = '{filter.status}'",
            (),
        )  # written out, or SQLite does not find its index
    elif filter.status is not None:
        terms["status"] = (f"status = ? AND {LIVELY}", (filter.status,))
    for name, condition in (
        ("id", "id = ?"),
        ("handler", "handler = ?"),
        ("key", "key = ?"),
        ("created_after", f"{at} >= ?"),
        ("created_before", f"{at} < ?"),
    ):
        if (value := getattr(filter, name)) is not None:
            terms[name] = (condition, (value,))
    if filter.id_prefix is not None:
        terms["id_prefix"] = (f"{id} >= ? AND {id} < ?", (filter.id_prefix, filter.id_prefix + "\U0010ffff"))
    if filter.before is not None:
        terms["before"] = (f"({at}, {id}) < (?, ?)", filter.before)
    return terms


def _joined(terms: Iterable[_Term]) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    for condition, more in terms:
        conditions.append(condition)
        values += more
    return conditions, values
