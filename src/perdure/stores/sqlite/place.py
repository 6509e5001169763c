"""Where a file is while it is served. A database that was moved, removed or replaced takes commits that are lost."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

from perdure.stores.sqlite.file import connect_to_read

_Id = tuple[int, int]
_UNKNOWN: _Id = (0, 0)


class Place:
    """The identity of a database and its log when they were opened, and how far the database itself has come.

    Only checkpoints write the database, and they leave it at a later commit. So when it has changed it is read without
    its log: an earlier commit, or the secret of another store, is a file that was copied over it.
    """

    def __init__(self, path: str, secret: bytes) -> None:
        self._path = path
        self._log = path + "-wal"
        self._secret = secret
        self._id, self._changed_at = _look(path)
        self._log_id, _ = _look(self._log)
        self._commit = self._commit_inside() or 0

    def missing(self) -> str | None:
        """Say what became of the file, if it is not where it was."""
        id, changed_at = _look(self._path)
        if id is None:
            return "it was moved or removed"
        if id not in (self._id, _UNKNOWN):
            return "another file was put in its place"
        if changed_at != self._changed_at and id is not _UNKNOWN:
            commit = self._commit_inside()
            if commit is None or commit < self._commit:
                return "another file was copied over it"
            self._changed_at, self._commit = changed_at, commit
        log_id, _ = _look(self._log)
        if self._log_id is None:
            self._log_id = log_id  # SQLite makes it with the first write
        elif log_id not in (self._log_id, _UNKNOWN):
            return f"its log {self._log} was moved, removed or replaced"
        return None

    def _commit_inside(self) -> int | None:
        """Read the number of the last commit that is in the database itself; None if it is not this store's."""
        try:
            with closing(connect_to_read(self._path, "&immutable=1")) as db:
                meta = dict(db.execute("SELECT name, value FROM meta WHERE name IN ('commit', 'secret')").fetchall())
        except (sqlite3.Error, UnicodeDecodeError):
            return None
        return meta.get("commit") if meta.get("secret") == self._secret else None


def _look(path: str) -> tuple[_Id | None, tuple[int, int]]:
    """Return the identity of a file, and when and to what size it was changed last."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None, (0, 0)
    except OSError:
        return _UNKNOWN, (0, 0)  # it cannot be told: a commit tells
    return (status.st_dev, status.st_ino), (status.st_mtime_ns, status.st_size)
