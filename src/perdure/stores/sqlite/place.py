"""Where a file is while it is served. A database that was moved, removed or replaced takes commits that are lost."""

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


class Place:
    """The identity of a database and its log when they were opened, and how far the database itself has come.

    Only checkpoints write the database, and they leave it at a later commit. So when it has changed it is read without
    its log: an earlier commit, or the secret of another store, is a file that was copied over it. A checkpoint that
    failed half way, for example on a full disk, leaves pages of two times: what can then only be read with the log is
    looked at again with the next write.
    """

    def __init__(self, path: str, secret: bytes) -> None:
        self._path = path
        self._log = path + "-wal"
        self._secret = secret
        self._id, self._changed_at = _look(path)
        self._log_id, _ = _look(self._log)
        self._commit = (self._meta_inside() or {}).get("commit", 0)

    def missing(self) -> str | None:
        """Say what became of the file, if it is not where it was."""
        id, changed_at = _look(self._path)
        if id is None:
            return "it was moved or removed"
        if id not in (self._id, _UNKNOWN):
            return "another file was put in its place"
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
            self._log_id = log_id  # SQLite makes it with the first write
        elif log_id not in (self._log_id, _UNKNOWN):
            return f"its log {self._log} was moved, removed or replaced"
        return None

    def _meta_inside(self) -> dict[str, Any] | None:
        """Read the secret and the last commit that are in the database itself; None if they cannot be read."""
        try:
            with closing(connect_to_read(self._path, "&immutable=1")) as db:
                meta = dict(db.execute("SELECT name, value FROM meta WHERE name IN ('commit', 'secret')").fetchall())
        except (sqlite3.Error, UnicodeDecodeError):
            return None
        return meta if isinstance(meta.get("secret"), bytes) and isinstance(meta.get("commit"), int) else None

    def _may_be_half_way(self, size: int) -> bool:
        """Tell whether a database that cannot be read without its log may be ours: a checkpoint only lets it grow."""
        if size < self._changed_at[1]:
            return False
        try:
            with open(self._path, "rb") as file:
                return file.read(len(_MAGIC)) == _MAGIC
        except OSError:
            return True  # it cannot be told: a commit tells


def _look(path: str) -> tuple[_Id | None, tuple[int, int]]:
    """Return the identity of a file, and when and to what size it was changed last."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None, (0, 0)
    except OSError:
        return _UNKNOWN, (0, 0)  # it cannot be told: a commit tells
    return (status.st_dev, status.st_ino), (status.st_mtime_ns, status.st_size)
