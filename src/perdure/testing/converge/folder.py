"""What the processes of a run share beside the store: files to which each appends lines, which no kill takes back."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from perdure.testing.programs.program import Outcome


class Folder:
    """Files of lines. One line is one write of the system: lines of several processes never mix."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, int] = {}

    def append(self, name: str, line: str) -> None:
        """Add a line to a file."""
        if name not in self._files:
            self._files[name] = os.open(self.path / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(self._files[name], f"{line}\n".encode())

    def lines(self, name: str) -> list[str]:
        """Return the lines of a file, none if there is no such file."""
        path = self.path / name
        return path.read_text().splitlines() if path.exists() else []

    def last(self, name: str) -> str | None:
        """Return the last line of a file."""
        found = self.lines(name)
        return found[-1] if found else None

    def close(self) -> None:
        """Close the files."""
        for each in self._files.values():
            os.close(each)
        self._files.clear()


RUNS, ASKS, ANSWERED, MENDED = "runs", "asks", "answered", "mended"
STARTED, SETTLED, OVER = "started", "settled", "over"
CANCELS, PURGES, PURGED = "cancels", "purges", "purged"
ASKED, ACCEPTED = "asked", "accepted"
LOG = "log"


class FolderOutside:
    """The outside of programs: what they ask for is in files."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def ran(self, key: str, attempt: int, /) -> None:
        self._folder.append(RUNS, f"{key} {attempt}")

    def asked(self, awakeable: str, value: str, rejected: bool, /) -> None:
        self._folder.append(ASKS, f"{awakeable} {value} {int(rejected)}")

    def mended(self, tag: str, /) -> bool:
        return tag in self._folder.lines(MENDED)


def cancels_in(folder: Folder) -> dict[str, bool]:
    """Return which programs were to be cancelled: True if that is known to have been accepted."""
    found: dict[str, bool] = {}
    for line in folder.lines(CANCELS):
        word, tag = line.split()
        found[tag] = found.get(tag, False) or word == ACCEPTED
    return found


class Told(Struct, frozen=True):
    """How a program had ended before its purge was asked for."""

    tag: str
    outcome: Outcome


def note_purge(folder: Folder, tag: str, outcome: Outcome) -> None:
    """Note how a program has ended, before it is purged."""
    folder.append(PURGES, msgspec.json.encode(Told(tag, outcome)).decode())


def purges_in(folder: Folder) -> dict[str, Outcome]:
    """Return how those had ended of which a purge was asked for, by tag."""
    told = (msgspec.json.decode(line, type=Told) for line in folder.lines(PURGES))
    return {each.tag: each.outcome for each in told}
