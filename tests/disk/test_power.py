"""A power failure at any moment loses nothing that was acknowledged, and the store opens again at once.

The moments are all those between two actions on the disk, from the creation of a file to its closing; and after a
failure, those of what was not synced. A file that lost what was synced is refused instead: the medium is broken.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.core.journal import Start
from perdure.errors import StoreDamaged
from perdure.stores.sqlite import SqliteStore
from tests.disk.crashes import Disk, disks
from tests.disk.layer import Action, Layer
from tests.disk.work import Work, check

ALL = os.environ.get("PERDURE_DISK") == "all"
SUITE_SECONDS = 10.0
"""How long to try random moments, unless `PERDURE_DISK=all` asks for all of them."""
SUITE_CUTS = 60
"""Random cuts of each commit that the suite tries."""
ALL_CUTS = 2_000
"""Cuts of each commit that `PERDURE_DISK=all` tries at most. One at every byte took an hour, and nearly all are
somewhere in a page, which is one and the same to SQLite."""
HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24  # of a log, and of a page in it: https://www.sqlite.org/fileformat2.html
FRESH = Start("fresh", "work", b"\x80", 1e9, 1e9, 3)

pytestmark = pytest.mark.usefixtures("often_checkpointed")


class Recording:
    """What a store did to its disk in the course of some work, from its creation to its end."""

    def __init__(self, actions: list[Action], work: Work) -> None:
        self.actions = actions
        self.work = work


async def recorded(layer: Layer, folder: Path) -> Recording:
    live = folder / "live"
    live.mkdir()
    layer.install(live)
    try:
        work = Work()
        work.count_actions = lambda: len(layer.actions)
        for _ in range(2):  # the second time nothing is new but the opening, and more is purged
            store = SqliteStore(str(live / "store.db"))
            await store.open()
            if not work.done.starts:
                await work.run(store)
            await store.aclose()
    finally:
        layer.remove()
    assert not work.done.refused, work.done.refused
    return Recording([*layer.actions], work)


async def survives(disk: Disk, recording: Recording, moment: int, place: Path) -> None:
    """Open a store on what was found after a power failure, see that all is there, and that it can be served."""
    path = disk.write(place)
    done = recording.work.acknowledged_by(moment)
    try:
        store = SqliteStore(str(path))
        await store.open()
        await check(store, done, recording.work.asked)
        assert await store.submit([FRESH]) == [True]
        await store.aclose()
        store = SqliteStore(str(path))
        await store.open()
        await check(store, done, recording.work.asked)
        assert await store.start(FRESH.id) == FRESH
        await store.aclose()
    finally:
        shutil.rmtree(place)


def moments(count: int, rng: random.Random) -> Iterator[int]:
    """Give moments in random order, for as long as there is time."""
    end = time.monotonic() + SUITE_SECONDS
    for moment in rng.sample(range(count), count):
        if not ALL and time.monotonic() > end:
            return
        yield moment


async def test_power_failure_at_any_moment_loses_nothing(layer: Layer, folder: Path, seed: int) -> None:
    recording = await recorded(layer, folder)
    tried = 0
    for moment in moments(len(recording.actions) + 1, random.Random(seed)):
        rng = random.Random(seed + moment)
        for disk in disks(recording.actions, moment, rng, 3 if ALL else 1):
            try:
                await survives(disk, recording, moment, folder / "found")
            except BaseException as error:
                error.add_note(f"PERDURE_SEED={seed}: after {moment} actions, {disk.what}: {sizes(disk)}")
                raise
            tried += 1
    assert tried > 20


def sizes(disk: Disk) -> str:
    return ", ".join(f"{name} {len(data)}" for name, data in sorted(disk.files.items()))


def cuts(begin: int, end: int, page: int, count: int) -> list[int]:
    """Return sizes of a log: all that end at or in a header, and others spread over the pages, `count` in all."""
    in_headers: list[int] = []
    in_pages: list[int] = []
    for size in range(begin, end):
        is_in_header = size < HEADER_BYTES or (size - HEADER_BYTES) % (FRAME_HEADER_BYTES + page) <= FRAME_HEADER_BYTES
        (in_headers if is_in_header else in_pages).append(size)
    step = max(1, len(in_pages) / max(1, count - len(in_headers)))
    spread = [in_pages[int(n * step)] for n in range(int(len(in_pages) / step))]
    return sorted(in_headers + spread)


def test_cuts_are_at_all_bytes_of_headers_and_spread_over_the_pages() -> None:
    assert cuts(0, 32 + 24 + 512, 512, 10_000) == [*range(32 + 24 + 512)]
    found = cuts(0, 32 + 10 * (24 + 4096), 4096, 1_000)
    assert 990 <= len(found) <= 1_000
    assert {*range(33), *range(32 + 24 + 4096, 32 + 24 + 4096 + 25)} <= {*found}
    assert max(after - before for before, after in itertools.pairwise(found)) < 100


async def test_log_that_is_cut_in_its_last_commits_is_refused(layer: Layer, folder: Path, seed: int) -> None:
    """It was synced, so this is no power failure. What is left is shorter, and never taken for the whole."""
    recording = await recorded(layer, folder)
    log = "store.db-wal"
    history, actions = [at for at, _ in recording.work.history], recording.actions
    commits = [pair for pair in itertools.pairwise(history) if actions[pair[1] - 1].file == log]
    rng = random.Random(seed)
    for before, moment in commits[-3:]:
        whole = next(iter(disks(recording.actions, moment, rng, 0)))
        assert whole.files["store.db-commit"]
        writes = [each for each in actions[before:moment] if each.file == log and each.kind == "write"]
        begin, end = min(each.at for each in writes), max(each.at + len(each.data) for each in writes)
        page = int.from_bytes(whole.files["store.db"][16:18], "big")
        sizes = cuts(begin, end, page, ALL_CUTS) if ALL else sorted(rng.sample(range(begin, end), SUITE_CUTS))
        for size in sizes:
            disk = Disk({**whole.files, log: whole.files[log][:size]}, f"cut to {size}")
            await is_whole_or_refused(disk, recording, moment, folder / "found")


async def is_whole_or_refused(disk: Disk, recording: Recording, moment: int, place: Path) -> None:
    path = disk.write(place)
    store = SqliteStore(str(path))
    try:
        await store.open()
    except StoreDamaged as error:
        assert str(path) in str(error)  # noqa: PT017  it may be whole
    else:
        await check(store, recording.work.acknowledged_by(moment), recording.work.asked)
        await store.aclose()
    finally:
        shutil.rmtree(place)
