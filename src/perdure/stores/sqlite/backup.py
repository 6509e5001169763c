"""Online backup: copies one snapshot of a served file, in pieces, through a separate connection."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress

from perdure.errors import StoreClosed, StoreError
from perdure.stores.sqlite.faults import about, explained
from perdure.stores.sqlite.file import connect
from perdure.stores.sqlite.lock import NEW_FILE_MODE, SUFFIXES, open_apart

PIECE_PAGES = 256
"""Pages copied at a time: 1 MiB. Commits have the disk to themselves between two pieces."""
PAUSE_SHARE = 0.5
"""How long to pause after each piece, as a fraction of the time that the piece took."""


Source = Callable[[], AbstractContextManager[sqlite3.Connection]]
"""Connects to the file to copy. Its exit raises if what was read is not one snapshot of the file."""


class Backups:
    """The backups of one file that are in progress."""

    def __init__(self, path: str, source: Source | None = None) -> None:
        self._path = path
        self._source = source
        self._running: dict[asyncio.Future[None], threading.Event] = {}

    async def take(self, target: str) -> None:
        """Copy a snapshot of the file to `target`, which must not exist."""
        stop = threading.Event()
        with explained(target):
            target = os.path.abspath(os.path.expanduser(target))
        # In its own thread: in the reading thread, reads would wait for it.
        pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="perdure-sqlite-backup")
        work = asyncio.get_running_loop().run_in_executor(pool, back_up, self._path, target, stop, self._source)
        self._running[work] = stop
        try:
            await asyncio.shield(work)
        finally:
            stop.set()
            pool.shutdown(wait=False)
            work.add_done_callback(self._ended)

    def _ended(self, work: asyncio.Future[None]) -> None:
        del self._running[work]
        if not work.cancelled():
            work.exception()  # marks it as retrieved: the caller got it, or was cancelled

    async def end(self) -> None:
        """Abort all backups, and wait until their threads end."""
        for stop in self._running.values():
            stop.set()
        if self._running:
            await asyncio.wait([*self._running])


def back_up(path: str, target: str, stop: threading.Event, source: Source | None = None) -> None:
    """Copy the database at `path` to a new file, which appears when it is complete. Runs in its own thread.

    The copy is the state at the beginning. A read transaction holds that snapshot: commits go on, and the write-ahead
    log grows until the copy ends.
    """
    _check_target(path, target)
    part = f"{target}.part-{os.getpid()}-{threading.get_ident()}"
    try:
        with explained(target):
            descriptor = open_apart(part, os.O_CREAT | os.O_EXCL)
            try:
                os.fchmod(descriptor, NEW_FILE_MODE)
                _copy(path, source or (lambda: closing(connect(path))), part, descriptor, stop)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.link(part, target)  # unlike rename, it never overwrites a file that was created meanwhile
            _sync_folder(os.path.dirname(target))
    except FileExistsError:
        raise _exists(target) from None
    finally:
        with suppress(OSError):
            os.unlink(part)


def _copy(path: str, connected: Source, part: str, descriptor: int, stop: threading.Event) -> None:
    with connected() as source, closing(sqlite3.connect(part, isolation_level=None)) as copy:
        source.execute("BEGIN")
        source.execute("SELECT value FROM meta WHERE name = 'commit'").fetchone()  # takes the snapshot
        copy.execute("PRAGMA synchronous = OFF")
        began = time.monotonic()

        def between(_status: int, _remaining: int, _total: int) -> None:
            nonlocal began
            if stop.is_set():
                raise StoreClosed(about(path, "the store was closed during the backup"))
            os.fdatasync(descriptor)  # per piece: one large sync would delay every commit on the same disk
            time.sleep((time.monotonic() - began) * PAUSE_SHARE)
            began = time.monotonic()

        source.backup(copy, pages=PIECE_PAGES, progress=between)


def _check_target(path: str, target: str) -> None:
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise StoreError(about(target, f"its folder {folder} does not exist: create it"))
    for suffix in (*SUFFIXES, "-journal"):
        if os.path.lexists(target + suffix):
            raise _exists(target + suffix)
    if os.path.exists(path) and stat.S_ISREG(os.stat(path).st_mode):
        return
    raise StoreError(about(path, "it no longer exists, so it cannot be backed up"))


def _exists(target: str) -> StoreError:
    return StoreError(about(target, "it exists, and a backup overwrites nothing: name another file"))


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
