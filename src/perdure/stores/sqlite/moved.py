"""Detects that a served database was moved, removed or replaced. SQLite would go on, and its commits would be lost."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import Any

from perdure.stores.sqlite.file import connect_to_read

_Id = tuple[int, int]
_UNKNOWN: _Id = (0, 0)
_MAGIC = b"SQLite format 3\0"
"""A database begins so."""


class MoveDetector:
    """Compares a database and its log with what they were when they were opened.

    Device and inode tell whether a file was replaced. A file may also be copied over the database: only checkpoints
    write to the database, and each leaves it at a later commit. So when it has changed, its commit number and secret
    are read without the log: an earlier commit or another secret is a foreign copy. A checkpoint that failed half way,
    for example on a full disk, leaves a mixture of old and new pages, which may not be readable without the log: then
    the next write looks again.
    """

    def __init__(self, path: str, secret: bytes) -> None:
        self._path = path
        self._log = path + "-wal"
        self._secret = secret
        self._id, self._changed_at = _look(path)
        self._log_id, _ = _look(self._log)
        self._commit = (self._meta_inside() or {}).get("commit", 0)

    def moved(self) -> str | None:
        """Return what happened to the database or its log, None if both are where they were opened."""
        id, changed_at = _look(self._path)
        if id is None:
            return "it was moved or removed"
        if id not in (self._id, _UNKNOWN):
            return "it was replaced by another file"
        if changed_at != self._changed_at and id is not _UNKNOWN:
            meta = self._meta_inside()
            if meta is None:
                if not self._may_be_half_way(changed_at[1]):
                    return "another file was copied over it"
            elif meta["secret"] != self._secret or meta["commit"] < self._commit:
                return "another file was copied over it"
            else:
                self._changed_at, self._commit = changed_at, meta["commit"]
        log_id, _ = _look(self._log)
        if self._log_id is None:
            self._log_id = log_id  # SQLite creates it with the first write
        elif log_id not in (self._log_id, _UNKNOWN):
            return f"its log {self._log} was moved, removed or replaced"
        return None

    def _meta_inside(self) -> dict[str, Any] | None:
        """Return the secret and the number of the last commit that was checkpointed; None if they cannot be read."""
        try:
            with closing(connect_to_read(self._path, "&immutable=1")) as db:
                meta = dict(db.execute("SELECT name, value FROM meta WHERE name IN ('commit', 'secret')").fetchall())
        except (sqlite3.Error, UnicodeDecodeError):
            return None
        return meta if isinstance(meta.get("secret"), bytes) and isinstance(meta.get("commit"), int) else None

    def _may_be_half_way(self, size: int) -> bool:
        """Report whether a database that cannot be read without its log may be ours: a checkpoint only lets it grow."""
        if size < self._changed_at[1]:
            return False
        try:
            with open(self._path, "rb") as file:
                return file.read(len(_MAGIC)) == _MAGIC
        except OSError:
            return True  # it cannot be told: a commit tells


def _look(path: str) -> tuple[_Id | None, tuple[int, int]]:
    """Return device and inode of a file, None if it is missing, with its time of change and size."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None, (0, 0)
    except OSError:
        return _UNKNOWN, (0, 0)  # the next commit will fail if the file is gone
    return (status.st_dev, status.st_ino), (status.st_mtime_ns, status.st_size)
