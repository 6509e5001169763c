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


async def test_log_that_is_cut_at_any_byte_of_its_last_commits_is_refused(
    layer: Layer, folder: Path, seed: int
) -> None:
    """It was synced, so this is no power failure. What is left is shorter, and never taken for the whole."""
    recording = await recorded(layer, folder)
    log = "store.db-wal"
    history, actions = [at for at, _ in recording.work.history], recording.actions
    commits = [pair for pair in itertools.pairwise(history) if actions[pair[1] - 1].file == log]
    rng = random.Random(seed)
    for before, moment in commits[-3:]:
        whole = next(iter(disks(recording.actions, moment, rng, 0)))
        assert whole.files["store.db-commit"]
        begin = min(each.at for each in actions[before:moment] if each.file == log and each.kind == "write")
        sizes = [*range(begin, len(whole.files[log]))]
        for size in sizes if ALL else sorted(rng.sample(sizes, 60)):
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
