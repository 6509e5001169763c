"""What a disk may hold after the machine lost power: what was synced, and any part of what was not.

What a sync failed to write is not written by a later one (https://wiki.postgresql.org/wiki/Fsync_Errors).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from tests.disk.layer import Action

SECTOR_BYTES = 512
SIDE = "store.db-commit"

Keep = Callable[[Action], list[Action]]
"""Returns what was written of an action that was not synced."""


class Disk(Struct, frozen=True):
    """The files that are found, with their bytes, and what became of the writes that were not synced."""

    files: dict[str, bytes]
    what: str

    def write(self, folder: Path) -> Path:
        """Put the files into an empty folder, and return the path of the store."""
        folder.mkdir()
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder / "store.db"


class _File(Struct, eq=False):
    """What a file holds for sure, and what was done to it since it was last synced.

    What a sync `lost` can be read, and may never be written; what was written over it later may be.
    """

    synced: bytes = b""
    since: list[tuple[Action, bool]] = []  # in order; what is marked is synced
    is_new: bool = True  # it was never synced
    lost: set[int] = set()  # places in `since`

    def sync(self) -> None:
        self.is_new = False
        self.since = [(action, at not in self.lost) for at, (action, _) in enumerate(self.since)]
        if not self.lost:
            self.synced, self.since = self.holds(lambda _: []), []

    def lose(self) -> None:
        """Note that a sync failed: what it was to write is not written by the next one."""
        self.lost.update(at for at, (_, is_synced) in enumerate(self.since) if not is_synced)

    def holds(self, keep: Keep) -> bytes:
        """Return what the file holds, with some of what was not synced."""
        data = bytearray(self.synced)
        for action, is_synced in self.since:
            for each in [action] if is_synced else keep(action):
                _apply(data, each)
        return bytes(data)


class _Folder:
    """The names in a folder. A name that was given or taken is so for sure once the folder is synced.

    SQLite does that when it first syncs a log or journal that it has made.
    """

    def __init__(self) -> None:
        self.synced: dict[str, _File | None] = {}
        self.since: list[tuple[str, _File | None]] = []
        self._now: dict[str, _File | None] = {}

    def follow(self, action: Action) -> None:
        file = self._now.get(action.file)
        if action.kind == "delete":
            self._name(action.file, None)
            if action.at:
                self._sync()
            return
        if file is None:
            file = _File()
            self._name(action.file, file)
        if action.kind == "lost":
            file.lose()
        elif action.kind == "sync":
            if file.is_new and action.file.endswith(("-wal", "-journal")):
                self._sync()
            file.sync()
        else:
            file.since.append((action, False))

    def _name(self, name: str, file: _File | None) -> None:
        self._now[name] = file
        self.since.append((name, file))

    def _sync(self) -> None:
        self.synced.update(self.since)
        self.since.clear()


def disks(actions: Sequence[Action], moment: int, rng: random.Random, samples: int) -> Iterator[Disk]:
    """Give what may be found when the power fails after the first actions, `moment` of them.

    That is all, nothing that was not synced, and samples of what lies between.
    """
    folder = _Folder()
    for action in actions[:moment]:
        folder.follow(action)
    side = (actions[moment] if moment < len(actions) else actions[-1]).note  # as it was before the next action
    yield _disk({**folder.synced, **dict(folder.since)}, side, "everything was written", lambda action: [action])
    yield _disk(folder.synced, None, "nothing was written that was not synced", lambda _: [])
    for _ in range(samples):
        names = {**folder.synced, **{name: file for name, file in folder.since if rng.random() < 0.5}}
        found = side if rng.random() < 0.7 else None
        share = rng.choice((0.2, 0.5, 0.9))
        yield _disk(names, found, "some was written", lambda action, share=share: _some(action, rng, share))


def _some(action: Action, rng: random.Random, share: float) -> list[Action]:
    """Keep an action or not, or tear a write: at a byte, or into sectors of which some were written."""
    if rng.random() >= share:
        return []
    size = len(action.data)
    if action.kind != "write" or size < 2 or rng.random() < 0.7:
        return [action]
    if rng.random() < 0.5:
        return [Action("write", action.file, action.at, action.data[: rng.randrange(1, size)])]
    begins = [begin for begin in range(0, size, SECTOR_BYTES) if rng.random() < 0.5]
    return [Action("write", action.file, action.at + at, action.data[at : at + SECTOR_BYTES]) for at in begins]


def _disk(names: dict[str, _File | None], side: bytes | None, what: str, keep: Keep) -> Disk:
    found = {} if side is None else {SIDE: side}
    found.update({name: file.holds(keep) for name, file in names.items() if file is not None})
    return Disk(found, what)


def _apply(data: bytearray, action: Action) -> None:
    if action.kind == "truncate":
        del data[action.at :]
    else:
        data.extend(bytes(max(0, action.at - len(data))))
        data[action.at : action.at + len(action.data)] = action.data
