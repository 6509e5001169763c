"""Pages and counts of a long list, by every filter, in the index alone: no server, no worker.

    python -m benchmarks.index [--rows N ...] [--table] [--plans] [--only TEXT]

Rows of mixed statuses, handlers, keys, tags and ids are written to a SQLite file as the store has it, or, with
`--table`, to the table of the JetStream store. Each page is read alone, in this process; the best of three times is
printed, and with `--plans` the ways in which SQLite can find it.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from perdure.core.ids import derived_id, new_id
from perdure.core.tags import Tags
from perdure.stores.jetstream.index.table import Table
from perdure.stores.port import Filter
from perdure.stores.sql import finding, index
from perdure.stores.sql.bounds import Bounded
from perdure.stores.sqlite.file import connect
from perdure.stores.sqlite.schema import SCHEMA

ROWS = (100_000, 1_000_000)
READS = 3
SHOWN = 30
BAR_SECONDS = 0.1
START = b"\x00" * 200
"""A start with a small input takes about as much."""
BEGAN = 1_780_000_000.0
STATUSES = ("completed", "failed", "cancelled", "suspended", "paused", "running", "scheduled")
WEIGHTS = (880, 50, 10, 50, 4, 2, 4)
OLD = 1_000
"""So many of the oldest rows have what no other row has: a page of them is behind all others."""


def made(count: int) -> Iterable[tuple[str, str, str, str | None, float, Tags]]:
    """Yield id, handler, status, key, time and tags, oldest first."""
    rng = random.Random(1)
    for n in range(count):
        at = BEGAN + n / 10
        is_old = n < OLD
        if n % 10 < 6:
            id = new_id(at, rng.randbytes(10))
        elif n % 10 < 8:
            id = derived_id(str(n), 0, 0)
        else:
            id = f"old-{n}" if is_old else f"order-{n}"
        status = "pending" if is_old and n % 2 else rng.choices(STATUSES, WEIGHTS)[0]
        handler = "retired" if is_old else "agent" if n % 2 else f"handler{n % 37}"
        key = "old" if is_old else f"k{n % 1000}" if n % 3 == 0 else None
        tags = (("tenant", "old" if is_old else f"t{n % 100}"), ("web", "yes"))[: n % 3]
        yield id, handler, status, key, at, tags


def fill_store(path: Path, count: int) -> sqlite3.Connection:
    """Write the rows as the SQLite store has them."""
    db = connect(str(path))
    for statement in SCHEMA.split(";"):
        db.execute(statement)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = OFF")
    names = "id, handler, key, created_at, due, identity, start, checksum, status, sequence, updated_at, revision"
    insert = f"INSERT INTO invocation ({names}, state_checksum, tags) VALUES (?,?,?,?,?,?,?,0,?,?,?,1,0,nullif(?, ''))"
    db.execute("BEGIN")
    for n, (id, handler, status, key, at, tags) in enumerate(made(count)):
        sequence = n if status in ("pending", "scheduled") else None
        text = index.tags_text(tags)
        db.execute(insert, (id, handler, key, at, at, b"i" * 16, START, status, sequence, at + n % 7, text))
        db.executemany(index.PUT_TAG, index.tag_rows(id, at, tags))
    db.execute("COMMIT")
    return db


def fill_table(path: Path, count: int) -> sqlite3.Connection:
    """Write the rows as the table of the JetStream store has them."""
    db = Table(path, "benchmark")._db  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    columns = "id, handler, status, key, created_at, updated_at, due, shard, sequence, tags"
    insert = f"INSERT INTO invocation ({columns}) VALUES (?,?,?,?,?,?,?,0,1,nullif(?, ''))"
    with db:
        for n, (id, handler, status, key, at, tags) in enumerate(made(count)):
            db.execute(insert, (id, handler, status, key, at, at + n % 7, at, index.tags_text(tags)))
            db.executemany(index.PUT_TAG, index.tag_rows(id, at, tags))
    return db


def filters(count: int) -> dict[str, Filter]:
    """Return the filters: each alone, in pairs, with a cursor deep in the list, and with bounds of time."""
    alone: dict[str, dict[str, Any]] = {"": {}}
    for status in ("pending", *STATUSES):
        alone[f"status={status}"] = {"status": status}
    for handler in ("agent", "handler4", "retired", "nobody"):
        alone[f"handler={handler}"] = {"handler": handler}
    for key in ("k9", "old", "nokey"):
        alone[f"key={key}"] = {"key": key}
    for prefix in ("0", "order-", "order-77", "old-", "zz", "7"):
        alone[f"id_prefix={prefix}"] = {"id_prefix": prefix}
    for tags in ((("tenant", "t7"),), (("web", "yes"),), (("tenant", "old"),), (("tenant", "t7"), ("web", "yes"))):
        alone["tag=" + ",".join(map(":".join, tags))] = {"tags": tags}
    found = dict(alone)
    for name, one in alone.items():
        for other, two in alone.items():
            if name < other and not (one.keys() & two.keys()) and name:
                found[f"{name}&{other}"] = one | two
    middle, end = BEGAN + count / 20, BEGAN + count / 10
    times: dict[str, dict[str, Any]] = {
        "cursor=middle": {"before": (middle, "5")},
        "cursor=oldest": {"before": (BEGAN + OLD / 10, "5")},
        "created_after=end": {"created_after": end},
        "created_after=begin": {"created_after": BEGAN},
        "created_before=middle": {"created_before": middle},
        "created_before=begin": {"created_before": BEGAN},
    }
    for name, one in [*found.items()]:
        for other, two in times.items():
            found[f"{name}&{other}".strip("&")] = one | two
    return {name: Filter(**each) for name, each in found.items()}


def took(read: Callable[[], Any]) -> float:
    """Return the shortest of some times that a read takes, in seconds."""
    times: list[float] = []
    for _ in range(READS):
        begun = time.perf_counter()
        read()
        times.append(time.perf_counter() - begun)
    return min(times)


def ways_of(db: sqlite3.Connection, filter: Filter) -> Iterable[str]:
    """Yield the ways to find what passes a filter, the likeliest first: how SQLite does it, and what it reads."""
    for way in finding.ways_of(filter):
        query, values = finding.query_of(filter, way)
        plan = "; ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}", values))
        yield f"{plan} ({db.execute(*finding.count_of(filter, way, finding.COUNT_LIMITS[-1])).fetchone()[0]:,})"


def measure(db: sqlite3.Connection, count: int, only: str, *, plans: bool) -> None:
    found: list[tuple[float, str, Filter]] = []
    for name, filter in filters(count).items():
        if only in name:
            found.append((took(partial(finding.search, Bounded(db), filter)), name, filter))
    found.sort(key=lambda each: each[:2], reverse=True)
    times = [each for each, *_ in found]
    over = sum(each > BAR_SECONDS for each in times)
    print(
        f"{count:,} rows, {len(found):,} filters: median {statistics.median(times) * 1e3:.2f} ms, {over} over the bar"
    )
    for each, name, filter in found[:SHOWN]:
        print(f"  {each * 1e3:8.2f} ms  ?{name}")
        if plans:
            print("".join(f"               {way}\n" for way in ways_of(db, filter)), end="")
    print(f"  {took(lambda: db.execute(index.COUNTS).fetchall()) * 1e3:8.2f} ms  stats")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plans", action="store_true")
    parser.add_argument("--only", default="")
    chosen = parser.parse_args()
    for count in chosen.rows:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            db = (fill_table if chosen.table else fill_store)(Path(folder) / "index.db", count)
            print(f"filled in {time.perf_counter() - begun:.1f} s")
            measure(db, count, chosen.only, plans=chosen.plans)
            db.close()


if __name__ == "__main__":
    main()
