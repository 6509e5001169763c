"""Where a file is while it is served. A database that was moved, removed or replaced takes commits that are lost."""

from __future__ import annotations

import os

_Id = tuple[int, int]


class Place:
    """The identity of a database and its log when they were opened."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._log = path + "-wal"
        self._id = _id_of(path)
        self._log_id = _id_of(self._log)

    def missing(self) -> str | None:
        """Say what became of the file, if it is not where it was."""
        id = _id_of(self._path)
        if id != self._id:
            return "it was moved or removed" if id is None else "another file was put in its place"
        log_id = _id_of(self._log)
        if self._log_id is None:
            self._log_id = log_id  # SQLite makes it with the first write
        elif log_id != self._log_id:
            return f"its log {self._log} was moved, removed or replaced"
        return None


def _id_of(path: str) -> _Id | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
