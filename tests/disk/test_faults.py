"""A disk that fails: a refused write, a failed sync, no room. What was acknowledged stays, and later writes work."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Struct

from perdure.errors import StoreError, StoreFull
from perdure.stores.sqlite import SqliteStore
from tests.disk.crashes import disks
from tests.disk.layer import Kind, Layer
from tests.disk.work import Work, check

ALL = os.environ.get("PERDURE_DISK") == "all"
SUITE_SECONDS = 10.0
"""How long to try random faults, unless `PERDURE_DISK=all` asks for one at each action."""
CODES: dict[Kind, tuple[int, ...]] = {
    "write": (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_FULL),
    "truncate": (sqlite3.SQLITE_IOERR_TRUNCATE,),
    "sync": (sqlite3.SQLITE_IOERR_FSYNC,),
    "delete": (sqlite3.SQLITE_IOERR_DELETE,),
}

pytestmark = pytest.mark.usefixtures("often_checkpointed")


class Fault(Struct):
    """From action `first` on, so many actions fail. It counts, and ends by itself. The process may be `killed` then."""

    first: int
    times: int
    only: Kind | None = None
    code: int = 0  # which of the codes of its kind
    killed: bool = False
    file: str | None = None
    seen: int = 0

    def fails(self, kind: Kind, file: str) -> int | None:
        if file.startswith("store.db-lock") or self.only not in (None, kind) or self.file not in (None, file):
            return None
        self.seen += 1
        if not self.first < self.seen <= self.first + self.times:
            return None
        codes = CODES[kind]
        return codes[self.code % len(codes)]


async def opened(path: Path, fault: Fault) -> SqliteStore:
    """Open a store; refused by a disk that fails, it is opened again, and after some tries the disk is repaired."""
    for tries in range(10):
        if tries > 5:
            fault.times = 0
        store = SqliteStore(str(path))
        try:
            await store.open()
        except StoreError as error:
            assert str(path) in str(error)  # noqa: PT017  it may not fail
        else:
            return store
    raise AssertionError("it does not open, and the fault is over")


async def suffer(layer: Layer, folder: Path, fault: Fault) -> Work:
    """Do the work while the disk fails, and see that all that was acknowledged is there then, and after a power cut."""
    live = folder / "live"
    live.mkdir()
    path = live / "store.db"
    work = Work()
    layer.fails = fault.fails
    layer.install(live)
    left: list[SqliteStore] = []
    try:
        store = await opened(path, fault)
        await work.run(store)
        await check(store, work.done, work.asked)
        fault.times = 0
        if fault.killed:
            kill(live)
            left.append(store)
            store = await opened(path, fault)
        if "last" not in work.done.starts:
            await work.end(store)
        assert "last" in work.done.starts, f"later writes fail: {work.done.refused}"
        served = len(layer.actions)
        await store.aclose()
        actions = [*layer.actions]
    finally:
        layer.remove()
        layer.fails = lambda _kind, _file: None
        for each in left:
            await each.aclose()
        shutil.rmtree(live.with_name("gone"), ignore_errors=True)
    for moment in (served, len(actions)):
        for disk in disks(actions, moment, random.Random(0), 1):
            await survives(disk.write(folder / "found"), work)
    await survives(path, work)
    shutil.rmtree(live, ignore_errors=True)
    return work


def kill(live: Path) -> None:
    """Leave the process behind that serves a store: what it wrote is there under the same name, synced or not."""
    gone = live.rename(live.with_name("gone"))
    live.mkdir()
    for name in ("store.db", "store.db-wal", "store.db-commit"):
        if (gone / name).exists():
            shutil.copy(gone / name, live / name)


async def survives(path: Path, work: Work) -> None:
    store = SqliteStore(str(path))
    await store.open()
    await check(store, work.done, work.asked)
    await store.aclose()
    shutil.rmtree(path.parent)


def faults(count: int, rng: random.Random) -> Iterator[Fault]:
    """Give faults: one at each action if all are asked for, else random ones for as long as there is time."""
    if ALL:
        for first in range(count):
            for times in (1, 3):
                yield Fault(first, times, code=first % 2, killed=times == 1)
        return
    end = time.monotonic() + SUITE_SECONDS
    while time.monotonic() < end:
        only: Kind | None = rng.choice((None, None, "sync", "write"))
        times = rng.choice((1, 1, 2, 5, 40))
        yield Fault(
            rng.randrange(count if only is None else count // 4), times, only, rng.randrange(2), rng.random() < 0.5
        )


async def test_a_disk_that_fails_loses_nothing_that_was_acknowledged(layer: Layer, folder: Path, seed: int) -> None:
    unharmed = await suffer(layer, folder, Fault(0, 0))
    assert not unharmed.done.refused
    count = len(layer.actions)
    refused: set[str] = set()
    for fault in faults(count, random.Random(seed)):
        repeat = Fault(fault.first, fault.times, fault.only, fault.code, fault.killed)
        try:
            work = await suffer(layer, folder, fault)
        except BaseException as error:
            error.add_note(f"PERDURE_SEED={seed}: {repeat}")
            raise
        refused.update(each.split(":")[0] for each in work.done.refused)
        assert all("store.db" in each for each in work.done.refused), "an error that does not name the file"
    assert refused >= {"StoreError", StoreFull.__name__}


async def test_what_an_opening_could_not_sync_is_not_built_upon(layer: Layer, folder: Path) -> None:
    """The next opening reads it from memory, as if it were on the disk, where it may never be."""
    for first in range(12):
        for times in (1, 3, 40):
            try:
                await suffer(layer, folder, Fault(first, times, "sync"))
            except BaseException as error:
                error.add_note(f"{times} syncs from the {first + 1}th on fail")
                raise


async def test_a_checkpoint_that_fails_at_any_write_is_no_failure_of_the_store(
    layer: Layer, folder: Path, seed: int
) -> None:
    """It leaves a database of old and new pages, which is not a foreign file: the log has all of them."""
    await suffer(layer, folder, Fault(0, 0))
    count = sum(each.kind == "write" and each.file == "store.db" for each in layer.actions)
    assert count > 50
    for first in range(0 if ALL else seed % 4, count, 1 if ALL else 4):
        work = await suffer(layer, folder, Fault(first, 1, "write", code=first % 2, file="store.db"))
        assert not work.done.refused, f"{first}: {work.done.refused}"
