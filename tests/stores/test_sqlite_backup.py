"""A backup is one state of the file, taken while it is served, and takes nothing from those who use it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from perdure.errors import StoreClosed, StoreError
from perdure.stores.port import Filter
from perdure.stores.sqlite import SqliteStore, SqliteView, backup
from tests.stores.test_sqlite_file import facts, fill, opened, start


@pytest.fixture
def in_steps(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Let a backup copy one page for each release of a semaphore."""
    steps = threading.Semaphore(0)
    sync = os.fdatasync

    def step(descriptor: int) -> None:
        steps.acquire()
        sync(descriptor)

    monkeypatch.setattr(backup, "PIECE_PAGES", 1)
    monkeypatch.setattr(backup.os, "fdatasync", step)
    return steps


async def test_commits_reads_and_timers_go_on_while_a_backup_stands_still(
    tmp_path: Path, in_steps: threading.Semaphore
) -> None:
    store = await opened(tmp_path / "s.db")
    await fill(store)
    before = {row.id for row in await store.search(Filter(limit=1_000))}
    backing_up = asyncio.create_task(store.backup(str(tmp_path / "copy.db")))
    for n in range(20):
        await asyncio.wait_for(store.submit([start(f"w{n}", size=5_000)]), 30)
        assert await asyncio.wait_for(store.start(f"w{n}"), 30) == start(f"w{n}", size=5_000)
        in_steps.release()
    assert not backing_up.done()
    assert not (tmp_path / "copy.db").exists(), "it appears when it is whole"
    in_steps.release(10_000)
    await asyncio.wait_for(backing_up, 30)
    await store.aclose()
    restored = await facts(tmp_path / "copy.db")
    assert before <= {row.id for row in restored["rows"]}
    assert restored["set aside"] == []
    assert restored["secret"] == store.secret


async def test_a_backup_that_is_given_up_or_closed_leaves_nothing(
    tmp_path: Path, in_steps: threading.Semaphore
) -> None:
    store = await opened(tmp_path / "s.db")
    await fill(store)
    (tmp_path / "copies").mkdir()
    given_up = asyncio.create_task(store.backup(str(tmp_path / "copies" / "a.db")))
    in_steps.release(2)
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    closed = asyncio.create_task(store.backup(str(tmp_path / "copies" / "b.db")))
    await asyncio.sleep(0)
    in_steps.release(2)
    closing_store = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    in_steps.release(10_000)
    await asyncio.wait_for(closing_store, 30)
    with pytest.raises(StoreClosed):
        await closed
    assert list((tmp_path / "copies").iterdir()) == []
    assert not (tmp_path / "s.db-wal").exists(), "the log was merged: no connection was left open"


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal", "-commit", "-lock"])
async def test_a_backup_overwrites_nothing_and_lies_beside_nothing_of_another_file(suffix: str, tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    (tmp_path / f"copy.db{suffix}").write_text("mine")
    with pytest.raises(StoreError, match="overwrites nothing"):
        await store.backup(str(tmp_path / "copy.db"))
    assert (tmp_path / f"copy.db{suffix}").read_text() == "mine"
    with pytest.raises(StoreError, match="create it"):
        await store.backup(str(tmp_path / "none" / "copy.db"))
    (tmp_path / "link.db").symlink_to(tmp_path / "nothing")
    with pytest.raises(StoreError, match="overwrites nothing"):
        await store.backup(str(tmp_path / "link.db"))
    await store.aclose()


async def test_two_backups_at_one_instant_are_both_whole_or_one_is_refused(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    await fill(store)
    names = ["a.db", "b.db", "b.db"]
    found = await asyncio.gather(*(store.backup(str(tmp_path / name)) for name in names), return_exceptions=True)
    assert [type(each) for each in found if each is not None] in ([StoreError], [])
    await store.aclose()
    for name in ("a.db", "b.db"):
        assert (await facts(tmp_path / name))["set aside"] == []
    assert not [each for each in tmp_path.iterdir() if ".part" in each.name]


async def test_a_backup_is_served_as_a_file_of_its_own(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    await fill(store)
    await store.backup(str(tmp_path / "copy.db"))
    copy = SqliteStore(str(tmp_path / "copy.db"))
    await copy.open()  # beside the original, which is served
    assert await copy.submit([start("new")]) == [True]
    assert await store.start("new") is None
    await copy.aclose()
    await store.aclose()
    with closing(sqlite3.connect(tmp_path / "copy.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_file_that_is_only_looked_at_is_backed_up_while_it_is_served_and_after(tmp_path: Path) -> None:
    """`perdure backup` opens the file in this way, since another process may serve it."""
    store = await opened(tmp_path / "s.db")
    await fill(store)
    view = SqliteView(str(tmp_path / "s.db"))
    await view.open()
    await view.backup(str(tmp_path / "served.db"))
    await view.aclose()
    await store.aclose()
    left = {*os.listdir(tmp_path)}
    view = SqliteView(str(tmp_path / "s.db"))
    await view.open()
    await view.backup(str(tmp_path / "stopped.db"))
    with pytest.raises(StoreError, match="it exists, and a backup overwrites nothing"):
        await view.backup(str(tmp_path / "stopped.db"))
    await view.aclose()
    assert {*os.listdir(tmp_path)} - left == {"stopped.db"}, "looking leaves nothing behind"
    expected = await facts(tmp_path / "s.db")
    for copy in ("served.db", "stopped.db"):
        assert (await facts(tmp_path / copy))["rows"] == expected["rows"]


async def test_a_backup_of_a_file_that_a_service_opens_meanwhile_is_none(
    tmp_path: Path, in_steps: threading.Semaphore
) -> None:
    store = await opened(tmp_path / "s.db")
    await fill(store)
    await store.aclose()
    view = SqliteView(str(tmp_path / "s.db"))
    await view.open()
    backing_up = asyncio.create_task(view.backup(str(tmp_path / "copy.db")))
    in_steps.release()
    while not [each for each in os.listdir(tmp_path) if ".part-" in each]:
        await asyncio.sleep(0.001)
    store = await opened(tmp_path / "s.db")
    await store.submit([start("later")])
    in_steps.release(10_000)
    with pytest.raises(StoreError, match="try again"):
        await asyncio.wait_for(backing_up, 30)
    await view.aclose()
    await store.aclose()
    assert not (tmp_path / "copy.db").exists()
