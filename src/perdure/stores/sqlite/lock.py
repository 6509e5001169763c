"""One process for a file: the write lock on a small database beside it."""

from __future__ import annotations

import os
import sqlite3

from perdure.errors import (
    StoreError,
    StoreLocked,
    StoreReadOnly,
)
from perdure.stores.sqlite.faults import about, explained, quietly


class Lock:
    """The write lock on a small database beside the served one. It names its owner to whoever comes second."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @classmethod
    def take(cls, path: str) -> Lock:
        """Take the lock, or raise `StoreLocked` with the owner's process id."""
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            raise StoreError(about(path, f"its folder {folder} does not exist: create it"))
        if os.path.isdir(path):
            raise StoreError(about(path, "it is a folder: name a file"))
        if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
            raise StoreReadOnly(about(path, "the file cannot be written: change its permissions"))
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StoreReadOnly(about(path, f"its folder {folder} cannot be written: change its permissions"))
        with explained(path):
            db = sqlite3.connect(path + "-lock", isolation_level=None, check_same_thread=False, timeout=0)
            try:
                db.execute("CREATE TABLE IF NOT EXISTS owner (pid INTEGER)")
                db.execute("DELETE FROM owner")
                db.execute("INSERT INTO owner VALUES (?)", (os.getpid(),))
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    db.close()
                    raise
                row = db.execute("SELECT pid FROM owner").fetchone()
                db.close()
                pid = row[0] if row else 0
                raise StoreLocked(about(path, f"it is served already, by process {pid}"), pid=pid) from None
            return cls(db)

    def release(self) -> None:
        with quietly():
            self._db.execute("ROLLBACK")
        with quietly():
            self._db.close()
