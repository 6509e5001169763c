"""Files of earlier schemas: looked at as they are, brought forward when they are served, with nothing lost."""

from __future__ import annotations

import asyncio
import lzma
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from perdure.core.journal import Start
from perdure.core.values import encode
from perdure.errors import StoreError, StoreTooNew
from perdure.stores.awakeables import AwakeableFilter
from perdure.stores.clock import VirtualClock
from perdure.stores.port import Filter
from perdure.stores.sqlite.schema import SCHEMA_VERSION, meta_checksum, state_checksum
from tests.stores.test_sqlite_file import looked_at, opened, refusal_of, start

SECOND = Path(__file__).resolve().parents[1] / "old" / "2026-11-28" / "sqlite.db.xz"
"""A file that the release of that day wrote."""
LAYOUT = "SELECT name, sql FROM sqlite_master ORDER BY name"
FIRST = (
    "DROP TABLE key",
    "DROP TABLE line",
    "DROP TABLE awakeable",
    "DROP TABLE assignee",
    "DROP TABLE tag",
    "ALTER TABLE invocation DROP COLUMN tags",
    "DROP INDEX invocation_by_time",
    "DROP INDEX invocation_by_status",
    "DROP INDEX invocation_by_handler",
    "DROP INDEX invocation_settled",
    "DROP INDEX invocation_queued",
    "DROP INDEX message_of",
    "CREATE INDEX invocation_by_time ON invocation (created_at, id)",
    "CREATE INDEX invocation_by_status ON invocation (status, handler)",
    "CREATE INDEX invocation_queued ON invocation (handler, sequence) WHERE status = 'pending'",
)
"""What makes the first schema of the present one: it had no keys, tags or awakeables, and other indexes."""


def read(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


async def layout(path: Path) -> list[Any]:
    await (await opened(path)).aclose()
    return read(path, LAYOUT)


def rewrite(path: Path, schema: int, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        (secret,) = db.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()
        for each in statements:
            db.execute(each)
        values = [(schema, "schema"), (meta_checksum(schema, secret), "checksum")]
        db.executemany("UPDATE meta SET value = ? WHERE name = ?", values)
        db.commit()


async def test_a_file_of_the_release_before_is_looked_at_as_it_is_and_brought_forward_when_it_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.stores.sqlite.reader.SystemClock", VirtualClock)  # nothing in it is due yet
    path = tmp_path / "s.db"
    path.write_bytes(lzma.decompress(SECOND.read_bytes()))
    assert read(path, "SELECT value FROM meta WHERE name = 'schema'") == [(2,)]
    columns = {
        table: ", ".join(name for _, name, *_ in read(path, f"PRAGMA table_info({table})"))
        for table in ("invocation", "frame", "message", "key", "line")
    }
    tables = [f"SELECT {found} FROM {table} ORDER BY 1, 2" for table, found in columns.items()]
    before = [read(path, each) for each in tables]
    statuses = dict(read(path, "SELECT status, count(*) FROM invocation GROUP BY status"))
    assert {"completed", "failed", "cancelled", "suspended", "paused", "scheduled"} <= statuses.keys()
    whole = path.read_bytes()
    view = await looked_at(path)
    rows = await view.search(Filter(limit=1_000))
    assert (await view.counts()).by_status == statuses
    assert await view.search(Filter(tags=(("a", "b"),))) == []
    held = [name for (name,) in read(path, "SELECT name FROM key WHERE holder IS NOT NULL")]
    assert held
    for name in held:
        assert (await view.key(name)).holder is not None
    with pytest.raises(StoreError, match="without an index of awakeables: serve it once with this release"):
        await view.awakeables(AwakeableFilter(0.0))
    await view.aclose()
    assert path.read_bytes() == whole
    store = await opened(path)
    assert store.set_aside == []
    assert await store.search(Filter(limit=1_000)) == rows
    assert (await store.counts()).by_status == statuses
    for status in statuses:
        listed = await store.search(Filter(status=status, limit=1_000))
        assert len(listed) == statuses[status]
    await store.aclose()
    assert [read(path, each) for each in tables] == before
    assert read(path, "SELECT value FROM meta WHERE name = 'schema'") == [(SCHEMA_VERSION,)]
    assert read(path, LAYOUT) == await layout(tmp_path / "new.db")
    assert read(path, "PRAGMA integrity_check") == [("ok",)]
    assert await opened_twice(path)


async def opened_twice(path: Path) -> bool:
    for _ in range(2):
        await (await opened(path)).aclose()
    return True


async def test_a_file_of_the_first_schema_is_brought_forward_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await opened(path)
    await store.submit([Start("old", "work", encode({}), 1.0, 1.0, 3)])
    secret = store.secret
    await store.aclose()
    expected = read(path, LAYOUT)
    rewrite(path, 1, *FIRST)
    with pytest.raises(StoreError, match="serve it once"):
        await looked_at(path)
    for _ in range(2):
        store = await opened(path)
        assert store.secret == secret
        assert await store.start("old") is not None
        await store.submit([start("i0")])
        assert (await store.key("k")).holder == "i0"
        await store.aclose()
    assert read(path, LAYOUT) == expected


async def test_a_file_without_the_order_of_what_is_scheduled_gets_the_index_and_its_starts_come_first(
    tmp_path: Path,
) -> None:
    """Earlier releases stored no sequence for what is scheduled, and did not have the index."""
    path = tmp_path / "store.db"
    clock = VirtualClock()
    with mock.patch("perdure.stores.sqlite.reader.SystemClock", return_value=clock):
        due = clock.now() + 100.0
        store = await opened(path)
        await store.submit([Start(id, "work", encode({}), 1.0, due, 3) for id in ("x", "y")])
        await store.aclose()
        expected = read(path, LAYOUT)
        with closing(sqlite3.connect(path)) as db:
            found = db.execute("SELECT id, status, updated_at, wake, revision FROM invocation").fetchall()
            for id, status, at, wake, revision in found:
                values = (state_checksum(id, status, None, at, wake, revision), id)
                db.execute("UPDATE invocation SET sequence = NULL, state_checksum = ? WHERE id = ?", values)
            db.execute("DROP INDEX invocation_due")
            db.execute("CREATE INDEX invocation_scheduled ON invocation (due) WHERE status = 'scheduled'")
            db.commit()
        store = await opened(path)
        assert read(path, LAYOUT) == expected
        await store.submit([Start(id, "work", encode({}), 1.0, due, 3) for id in ("b", "a")])
        came: list[str] = []
        store.subscribe(["work"], lambda delivery: came.append(delivery.id)).request(4)
        clock.move_to(due)
        while len(came) < 4:
            await asyncio.sleep(0.001)
        assert came == ["x", "y", "b", "a"]
        await store.aclose()


async def test_a_later_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await (await opened(path)).aclose()
    rewrite(path, SCHEMA_VERSION + 1)
    whole = path.read_bytes()
    error = await refusal_of(path)
    assert isinstance(error, StoreTooNew)
    assert error.schema == SCHEMA_VERSION + 1
    assert "upgrade" in str(error)
    assert path.read_bytes() == whole
    with pytest.raises(StoreTooNew):
        await looked_at(path)


async def test_a_file_whose_indexes_were_changed_half_way_is_not_lost(tmp_path: Path) -> None:
    """A process that ends while it brings a file forward has written nothing of it."""
    path = tmp_path / "s.db"
    path.write_bytes(lzma.decompress(SECOND.read_bytes()))
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    db.execute("DROP INDEX invocation_settled")
    db.close()
    store = await opened(path)
    assert store.set_aside == []
    await store.aclose()
