"""Pages of the index are found by the index that reads least, whatever the filter, and stop when they take too long."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.index import fill_store, fill_table
from perdure.errors import QueryTooSlow
from perdure.stores.port import Filter, Row, matches
from perdure.stores.sql import finding, index
from perdure.stores.sql.bounds import CHECK_STEPS, Bounded
from perdure.stores.sql.finding import count_of, query_of, search, ways_of

COUNT = 3_000
"""More than a page, and than the rows that are old."""
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0"


@pytest.fixture(scope="module", params=[fill_store, fill_table])
def db(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    with closing(request.param(tmp_path_factory.mktemp("finding") / "index.db", COUNT)) as db:
        yield db


@pytest.fixture(scope="module")
def rows(db: sqlite3.Connection) -> list[Row]:
    """All rows, newest first."""
    found = [index.row_of(each) for each in db.execute(f"SELECT {index.COLUMNS} FROM invocation")]
    return sorted(found, key=lambda row: (row.created_at, row.id), reverse=True)


def filters(rows: Sequence[Row]) -> Iterator[Filter]:
    """Yield filters of every combination of fields, with values that some, many or no rows have."""
    old, middle = rows[-5], rows[len(rows) // 2]
    choices: dict[str, tuple[Any, ...]] = {
        "status": (None, "pending", "completed", "failed"),
        "handler": (None, "agent", old.handler),
        "key": (None, "k9"),
        "id_prefix": (None, "0", "order-2"),
        "tags": ((), (("web", "yes"),), (("tenant", "t7"), ("web", "yes"))),
        "created_after": (None, old.created_at),
        "created_before": (None, middle.created_at),
        "before": (None, (middle.created_at + 20, "5")),
    }
    for values in itertools.islice(itertools.product(*choices.values()), 0, None, 5):  # each value with each other one
        yield Filter(**dict(zip(choices, values, strict=True)), limit=20)


def test_every_way_to_find_a_page_finds_the_same(db: sqlite3.Connection, rows: list[Row]) -> None:
    found_any = 0
    for filter in filters(rows):
        expected = list(itertools.islice((row for row in rows if matches(row, filter)), filter.limit))
        found_any += bool(expected)
        for way in ways_of(filter):
            found = [index.row_of(each) for each in db.execute(*query_of(filter, way))]
            assert found == expected, (filter, way)
        query, values = finding.plain_query_of(filter)
        assert [index.row_of(each) for each in db.execute(query, values)] == expected, filter
    assert found_any > 50


@pytest.mark.parametrize("steps", [1, finding.TRY_STEPS])
def test_a_search_finds_what_matches_however_it_chooses(
    db: sqlite3.Connection, rows: list[Row], monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(finding, "TRY_STEPS", steps)
    for filter in filters(rows):
        expected = list(itertools.islice((row for row in rows if matches(row, filter)), filter.limit))
        assert [index.row_of(each) for each in search(Bounded(db), filter)] == expected, filter


@pytest.mark.parametrize(
    ("filter", "indexes"),
    [
        (Filter(), ["invocation_by_time"]),
        (Filter(created_after=1.0, before=(2.0, "x")), ["invocation_by_time"]),
        (Filter(id="x"), ["PRIMARY KEY"]),
        (Filter(handler="nobody"), ["invocation_by_handler"]),
        (Filter(handler="nobody", created_before=2.0), ["invocation_by_handler"]),
        (Filter(key="k9"), ["invocation_by_key"]),
        (Filter(status="failed"), ["invocation_by_status"]),
        (Filter(status="archived"), ["invocation_by_status"]),  # type: ignore[arg-type]
        (Filter(status="completed"), ["invocation_by_time", "invocation_settled"]),
        (Filter(status="pending"), ["invocation_by_time", "invocation_queued"]),
        (Filter(id_prefix="01"), ["invocation_by_time", "PRIMARY KEY"]),
        (Filter(id_prefix="01", handler="agent"), ["invocation_by_handler", "PRIMARY KEY"]),
        (Filter(status="failed", handler="agent"), ["invocation_by_status", "invocation_by_handler"]),
        (Filter(tags=(("a", "b"),)), ["tag USING PRIMARY KEY"]),
        (Filter(tags=(("a", "b"),), created_after=1.0, before=(2.0, "x")), ["tag USING PRIMARY KEY"]),
        (Filter(tags=(("a", "b"),), handler="agent"), ["tag USING PRIMARY KEY", "invocation_by_handler"]),
    ],
)
def test_each_way_reads_its_index_and_counts_in_it_alone(
    db: sqlite3.Connection, filter: Filter, indexes: list[str]
) -> None:
    def plan(query: str, values: Sequence[Any]) -> str:
        return "; ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}", values))

    ways = ways_of(filter)
    assert len(ways) == len(indexes)
    for way, expected in zip(ways, indexes, strict=True):
        found = plan(*query_of(filter, way))
        assert expected in found.split(";")[0]
        is_sorted = expected in ("invocation_queued", "invocation_settled", "PRIMARY KEY")
        assert ("ORDER BY" in found) == (is_sorted and filter.id is None)
        counting = plan(*count_of(filter, way, 10))
        assert expected in counting
        assert "COVERING" in counting or "PRIMARY KEY" in counting


def read_by(db: sqlite3.Connection, filter: Filter) -> str:
    """Return the last query of a search."""
    queries: list[str] = []
    db.set_trace_callback(queries.append)
    try:
        search(Bounded(db), filter)
    finally:
        db.set_trace_callback(None)
    return queries[-1]


def test_a_common_prefix_is_read_in_the_order_of_time_and_a_rare_one_by_id(
    db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "TRY_STEPS", 5_000)
    assert "BY invocation_by_time" in read_by(db, Filter(id_prefix="0", limit=20))
    assert "BY sqlite_autoindex" in read_by(db, Filter(id_prefix="old-1"))
    assert "BY invocation_queued" in read_by(db, Filter(status="pending"))
    assert "BY invocation_by_handler" in read_by(db, Filter(handler="handler4", tags=(("web", "yes"),)))


def test_counts_are_read_from_indexes_alone(db: sqlite3.Connection, rows: list[Row]) -> None:
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {index.COUNTS}") if "invocation" in row[3]]
    assert len(plan) == 3
    assert all("COVERING INDEX" in each for each in plan)
    counts = index.counts_of(db.execute(index.COUNTS))
    assert sum(counts.by_status.values()) == sum(counts.by_handler.values()) == len(rows)


# --- the bound --------------------------------------------------------------------------------------------------------
def test_a_query_stops_when_its_time_is_over_and_the_connection_goes_on(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as db:
        with pytest.raises(QueryTooSlow, match="stopped after 1 ms: narrow the filter") as stopped:
            Bounded(db, 0.001).rows(ENDLESS)
        assert stopped.value.seconds == 0.001
        assert Bounded(db).rows("SELECT 1") == [(1,)]
        assert Bounded(db, 60.0).rows("SELECT 1") == [(1,)]
        many = (
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {CHECK_STEPS}) SELECT max(i) FROM n"
        )
        assert db.execute(many).fetchall() == [(CHECK_STEPS,)]  # nothing is left that would stop it


def test_all_queries_of_one_question_share_its_time(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as db:
        bounded = Bounded(db, 0.02)
        for _ in range(2):
            with pytest.raises(QueryTooSlow):
                bounded.rows(ENDLESS)


def test_a_query_that_fails_is_not_taken_for_a_slow_one(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as db:
        for read in (Bounded(db, 1.0).rows, partial(Bounded(db).rows_within, 1_000)):
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                read("SELECT * FROM elsewhere")


def test_what_takes_too_many_steps_is_given_up(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as db:
        assert Bounded(db).rows_within(10_000, ENDLESS) is None
        for _ in range(20):
            assert Bounded(db).rows_within(10_000, "SELECT 1") == [(1,)]
