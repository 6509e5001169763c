"""Changes of a SQLite store are read again before they are pushed: never an older state than who watches has read."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from perdure.core.journal import Accepted, Claimed, Frame, Released, Start
from perdure.core.values import encode
from perdure.stores import notices
from perdure.stores.notices import Notices
from perdure.stores.port import Filter, Row, Transition, committed
from perdure.stores.sqlite import SqliteStore

STALL_SECONDS = 0.02
"""Long enough for the writer to report what it has committed, while the loop stands still."""


def stand_still_until_suspended(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        while db.execute("SELECT status FROM invocation").fetchall() != [("suspended",)]:
            pass
    time.sleep(STALL_SECONDS)


async def test_who_registers_and_then_reads_is_told_nothing_older(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "s.db"))
    await store.open()
    others = store.events(Filter())  # so that changes are read at all
    start = Start("a", "work", encode({}), 1e9, 1e9, 3)
    await store.submit([start])
    await others.next()
    claimed = Frame("w", 1.0, [Accepted(start), Claimed(1.0, 1, "w", "3.11", "0")])
    await committed(store, Transition("a", 0, claimed, status="running"))
    for _ in range(3):
        await asyncio.sleep(0)  # the row that says running is being read
    cast("Any", store)._reading._pool.submit(int).result()  # noqa: SLF001  the loop stands still: it is read, and not pushed
    events = store.events(Filter(id="a"))
    released = Frame("w", 2.0, [Released(2.0)])
    suspended = committed(store, Transition("a", 1, released, status="suspended", released=True))
    await others.next()  # the older state is pushed
    stand_still_until_suspended(tmp_path / "s.db")  # it is committed, and nobody here knows
    row = await store.row("a")
    assert row is not None
    assert row.status == "suspended"
    rows = await asyncio.wait_for(events.next(), 5)
    assert rows is not None
    assert [each.status for each in rows] == ["suspended"]
    await suspended
    await store.aclose()


def row(n: int) -> Row:
    return Row(f"i{n}", "work", "pending", None, 1.0, float(n), 1.0)


async def test_feed_keeps_the_newest_of_each_and_no_more_than_its_limit() -> None:
    told = Notices()
    feed, other = told.events(Filter()), told.events(Filter(id="i3"))
    for _ in range(3):
        for n in range(notices.CHANGES_LIMIT):
            told.changed(row(n), told.feeds_made)
    told.changed(row(3), told.feeds_made)
    found = await feed.next()
    assert found is not None
    assert len(found) == notices.CHANGES_LIMIT
    assert found[-1] == row(3)
    for n in range(notices.CHANGES_LIMIT + 1):
        told.changed(row(n), told.feeds_made)
    assert await feed.next() is None, "it says that it does not know"
    told.changed(row(1), told.feeds_made)
    assert await feed.next() == [row(1)]
    assert await other.next() == [row(3)]
    feed.close()
    feed.close()
    other.close()
    assert not told.watched
