"""Opens a file to read only, even while it is served. Nothing is written, and no file is left beside it.

The first connection to a file creates its -wal and -shm. If a reader created them, they would belong to its user, and
the service could not write to them. So a file without a log is opened as `immutable` until a log appears, and a log
without its -shm, as a crash of the machine leaves it, is read in a copy.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from perdure.errors import StoreError
from perdure.stores.sqlite.aside import Aside
from perdure.stores.sqlite.faults import about, explained
from perdure.stores.sqlite.file import (
    LOOK_LIMIT_BYTES,
    Opened,
    check_commit,
    check_size,
    decode,
    read_meta,
    remembered_commit,
    verify,
)
from perdure.stores.sqlite.lock import Viewing, check_path
from perdure.stores.sqlite.schema import READABLE_VERSION

COPY_LIMIT_BYTES = 1 << 30
"""Files with a log and no -shm are read in a copy, up to this size."""

_Seen = tuple[object, ...]


class Look:
    """A read-only connection to a file, reopened when a service opens or closes the file, or the file is replaced."""

    def __init__(self, path: str, aside: Aside) -> None:
        self.path = path
        self._aside = aside
        self._viewing = Viewing()
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._db: sqlite3.Connection | None = None
        self._seen: _Seen = ()

    def open(self) -> Opened:
        """Connect, and return the metadata. Files up to `LOOK_LIMIT_BYTES` are checked completely."""
        if not os.path.exists(self.path):
            raise StoreError(about(self.path, "there is no such file: name the one that the workers use"))
        check_path(self.path)
        try:
            return self._connect()
        except BaseException:
            self.close()
            raise

    def current(self) -> sqlite3.Connection:
        """Return the connection, reopened if the file was served, closed or replaced since."""
        if self._db is None or self._state() != self._seen:
            with explained(self.path):
                self._connect()
        assert self._db is not None
        return self._db

    @property
    def is_current(self) -> bool:
        """Report whether what was just read through the connection is valid."""
        return self._state() == self._seen

    def close(self) -> None:
        self._disconnect()
        self._viewing.end()

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None

    def _connect(self) -> Opened:
        self._disconnect()
        remembered = remembered_commit(self.path)  # before the database is read, which may grow meanwhile
        with explained(self.path):
            check_size(self.path)
            self._viewing.begin(self.path)
            self._seen = self._state()
            db = self._db = sqlite3.connect(self._uri(), uri=True, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA query_only = ON")
            db.execute("PRAGMA busy_timeout = 5000")
            db.text_factory = decode
            db.execute("BEGIN")  # one snapshot for all checks
            opened = read_meta(db, self.path)
            if opened.schema < READABLE_VERSION:
                text = f"its schema has version {opened.schema}, and this release reads from {READABLE_VERSION}"
                raise StoreError(about(self.path, f"{text}: serve it once with this release, which migrates it"))
            check_commit(self.path, opened, remembered)
            if os.path.getsize(self.path) <= LOOK_LIMIT_BYTES:
                verify(db, self.path, self._aside, opened.schema)
            db.execute("COMMIT")
            return opened

    def _state(self) -> _Seen:
        """Return the state of the file that must not change while a connection is used."""
        try:
            status = os.stat(self.path)
            if not self._has("-wal"):
                return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
            return status.st_dev, status.st_ino, "log", self._has("-shm")
        except OSError:
            return ("gone",)

    def _has(self, suffix: str) -> bool:
        return os.path.exists(self.path + suffix)

    def _uri(self) -> str:
        if not self._has("-wal"):
            return f"{Path(self.path).as_uri()}?mode=ro&immutable=1"
        if self._has("-shm"):
            return f"{Path(self.path).as_uri()}?mode=ro"
        return Path(self._copied()).as_uri()

    def _copied(self) -> str:
        size = os.path.getsize(self.path) + os.path.getsize(self.path + "-wal")
        if size > COPY_LIMIT_BYTES:
            text = f"its log is left from a crash, and {size:,} bytes are too many to copy for reading"
            raise StoreError(about(self.path, f"{text}: serve it once, which closes the log"))
        self._copy = tempfile.TemporaryDirectory(prefix="perdure-look-")
        copy = os.path.join(self._copy.name, "store.db")
        for suffix in ("", "-wal"):
            shutil.copyfile(self.path + suffix, copy + suffix)
        return copy


@contextmanager
def looked_at(path: str) -> Generator[sqlite3.Connection]:
    """Connect to a file to copy it. The exit raises if the file was opened, closed or replaced meanwhile."""
    look = Look(path, Aside(path))
    try:
        look.open()
        yield look.current()
        if not look.is_current:
            raise StoreError(about(path, "a worker opened or closed it while it was copied: try again"))
    finally:
        look.close()
