"""Runs sequences, and makes one that fails shorter."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple
from unittest import mock

from perdure.stores.clock import VirtualClock
from perdure.stores.port import Store
from perdure.stores.sqlite import SqliteStore
from tests.differential.comparing import Difference
from tests.differential.operations import Operation, code_of, shown
from tests.differential.sides import Side
from tests.differential.world import World

MakeSides = Callable[[], AbstractContextManager[list[Side]]]
SHRINK_RUNS = 400
"""Shorter sequences that are tried at most."""


def sqlite(folder: str, clock: VirtualClock | None) -> Side:
    """Return a store in a file, on a virtual clock if there is one."""

    def make(_: Store | None) -> Store:
        path = os.path.join(folder, "store.db")
        if clock is None:
            return SqliteStore(path)
        with mock.patch("perdure.stores.sqlite.reader.SystemClock", return_value=clock):
            return SqliteStore(path)

    return Side("sqlite", make, clock)


class Folder:
    """A folder in memory if there is one: nothing here is about syncing."""

    def __enter__(self) -> str:
        self._name = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        return self._name

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._name, ignore_errors=True)


class Patience(NamedTuple):
    """How long a store may take to deliver or tell what another has, and how long it may while a sequence is shrunk."""

    seconds: float = 60.0
    shrink_seconds: float = 2.0


async def difference(
    make: MakeSides, operations: Sequence[Operation], patience: float
) -> tuple[Difference, World] | None:
    """Run a sequence; return how the stores differ, if they do."""
    with make() as sides:
        world = World(sides, patience)
        try:
            await world.run(operations)
        except Difference as found:
            return found, world
    return None


async def shrunk(make: MakeSides, operations: Sequence[Operation], patience: float) -> list[Operation]:
    """Leave out operations for as long as the stores still differ."""
    shortest, runs = [*operations], 0
    size = max(1, len(shortest) // 2)
    while size:
        begin = 0
        while begin < len(shortest) and runs < SHRINK_RUNS:
            shorter = shortest[:begin] + shortest[begin + size :]
            runs += 1
            found = await difference(make, shorter, patience)
            if found is None:
                begin += size
            else:
                shortest = shorter[: found[0].number + 1]
        size //= 2
    return shortest


async def check(
    make: MakeSides,
    operations: Sequence[Operation],
    repeat: str,
    patience: Patience = Patience(),  # noqa: B008
) -> None:
    """Run a sequence; raise an AssertionError with the shrunk one and the answers of each store if they differ."""
    found = await difference(make, operations, patience.seconds)
    if found is None:
        return
    shorter = await shrunk(make, operations, patience.shrink_seconds)
    again = await difference(make, shorter, patience.shrink_seconds)
    error, world = again or found
    if again is None:  # it depends on a race: the sequence is printed as it was
        shorter = [*operations]
    raise AssertionError(f"{error}\n\nrepeat it: {repeat}\n\n{code_of(shorter)}\n\n{table_of(shorter, world)}")


def table_of(operations: Sequence[Operation], world: World) -> str:
    """Return the answers of each store to each operation."""
    lines: list[str] = []
    for number, (operation, answers) in enumerate(zip(operations, world.trace.answers, strict=False)):
        lines.append(f"{number:3} {shown(operation)}")
        said = [repr(answer) for answer in answers]
        if len({*said}) == 1:
            lines.append(f"      all: {said[0][:300]}")
        else:
            lines += [f"      {name}: {answer}" for name, answer in zip(world.trace.sides, said, strict=True)]
        if number < len(world.trace.after):
            lines.append(f"      in hand: {world.trace.after[number]}")
    return "\n".join(lines)
