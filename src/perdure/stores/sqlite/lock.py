"""One process serves a file, under whichever name: a lock on the file itself, which also tells the owner's pid.

The lock is a byte range far beyond the end of the file: `LOCK_AT - pid` to `LOCK_AT`. All such ranges overlap, so one
process holds the lock, and the beginning of its range tells the pid. The lock belongs to the open file description
(F_OFD_SETLK): it ends with the process, and two stores of one process exclude each other too. In FILE-lock, a write
lock on a small database keeps out earlier releases, which know no other lock.

Closing any descriptor of a file releases all POSIX locks of this process on it, including SQLite's. So a descriptor of
the database is closed only when no store of this process uses the file; `_used` counts the uses.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import struct
import threading
import time
from contextlib import suppress

from msgspec import Struct

from perdure.errors import StoreDamaged, StoreError, StoreLocked, StoreReadOnly
from perdure.stores.sqlite.faults import about, explained, is_busy, is_damage, quietly
from perdure.stores.sqlite.file import refuse_foreign

LOCK_AT = 1 << 62
"""The byte that all lock ranges share. SQLite's own locks are at 2**30."""
OWNER_WAIT_SECONDS = 1.0
"""How long a process of an earlier release may take to write its pid to FILE-lock."""
NEW_FILE_MODE = 0o600
"""The mode of a new database: it holds a secret and all inputs."""
SUFFIXES = ("", "-wal", "-shm", "-commit", "-lock")
"""The suffixes of the database and the files beside it."""

STDERR = 2
_RANGE = "hhqqi0q"  # struct flock: l_type, l_whence, l_start, l_len, l_pid
_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510  # where SQLite puts shared and exclusive locks
_Id = tuple[int, int]


class _Use(Struct):
    """How this process uses one file: the number of views that read it, and whether a store serves it."""

    views: int = 0
    served: bool = False
    descriptor: int | None = None


_used: dict[_Id, _Use] = {}  # by device and inode; global, since POSIX locks belong to the process
_mutex = threading.Lock()


def _id_of(status: os.stat_result) -> _Id:
    return status.st_dev, status.st_ino


def _after_fork() -> None:
    """Close the parent's descriptors. Closing them in the child releases no lock of the parent."""
    for use in _used.values():
        if use.descriptor is not None:
            os.close(use.descriptor)
    _used.clear()


os.register_at_fork(before=_mutex.acquire, after_in_parent=_mutex.release, after_in_child=_mutex.release)
os.register_at_fork(after_in_child=_after_fork)


class Lock:
    """The right to serve a file."""

    def __init__(self, path: str, id: _Id) -> None:
        self.path = path
        self.id = id
        self._beside: sqlite3.Connection | None = None

    @classmethod
    def take(cls, path: str) -> Lock:
        """Take the lock on a file, which is created if missing, or raise `StoreLocked` with the owner's pid."""
        check_path(path)
        check_writable(path)
        with explained(path), _mutex:
            lock = cls(path, _lock_file(path))
        try:
            refuse_foreign(path)  # before any file is created beside it
            lock._beside = _lock_beside(path)
        except BaseException:
            lock.release()
            raise
        return lock

    def keep_log(self) -> None:
        """Keep the closing of the last connection from checkpointing the log into the file.

        SQLite needs an exclusive lock for it. Ours conflicts with that lock even in the same process.
        """
        use = _used.get(self.id)
        if use is not None and use.descriptor is not None and hasattr(fcntl, "F_OFD_SETLK"):
            shared = struct.pack(_RANGE, fcntl.F_RDLCK, 0, _SHARED_FIRST, _SHARED_SIZE, 0)
            fcntl.fcntl(use.descriptor, fcntl.F_OFD_SETLK, shared)

    def release(self) -> None:
        """Release the lock. All connections of this store must be closed."""
        if (db := self._beside) is not None:
            with quietly():
                db.execute("ROLLBACK")
            with quietly():
                db.close()
            self._beside = None
        with _mutex:
            if (use := _used.get(self.id)) is not None:
                use.served = False
                _release_unused(self.id, use)


class Viewing:
    """Records that this process reads a file, from `begin` to `end`."""

    def __init__(self) -> None:
        self._id: _Id | None = None

    def begin(self, path: str) -> None:
        self.end()
        with _mutex:
            self._id = _id_of(os.stat(path))
            _used.setdefault(self._id, _Use()).views += 1

    def end(self) -> None:
        with _mutex:
            if self._id is not None and (use := _used.get(self._id)) is not None:
                use.views -= 1
                _release_unused(self._id, use)
            self._id = None


def _release_unused(id: _Id, use: _Use) -> None:
    if use.descriptor is not None and not use.served:
        if use.views:
            _set_lock(use.descriptor, fcntl.F_UNLCK)
        else:
            os.close(use.descriptor)
            use.descriptor = None
    if not use.views and use.descriptor is None:
        del _used[id]


# --- the file itself --------------------------------------------------------------------------------------------------
def _lock_file(path: str) -> _Id:
    while True:
        id = _id_of(_made(path))
        use = _used.setdefault(id, _Use())
        if use.served:
            raise _locked(path, os.getpid())
        if use.descriptor is None:
            use.descriptor = open_apart(path)
        opened = _id_of(os.fstat(use.descriptor))
        if opened != id:  # another file took the name meanwhile
            os.close(use.descriptor)
            use.descriptor = None
            _release_unused(id, use)
            continue
        if not _set_lock(use.descriptor, fcntl.F_WRLCK):
            pid = _owner_of(use.descriptor) or _noted_owner(path)
            _release_unused(id, use)
            raise _locked(path, pid)
        use.served = True
        return id


def _made(path: str) -> os.stat_result:
    """Return the status of a file, which is created if missing."""
    with suppress(FileExistsError):
        if not os.path.exists(path):
            descriptor = open_apart(path, os.O_CREAT | os.O_EXCL)
            try:
                os.fchmod(descriptor, NEW_FILE_MODE)  # whatever the umask
            finally:
                os.close(descriptor)
    return os.stat(path)


def _set_lock(descriptor: int, kind: int) -> bool:
    """Lock or unlock; return false if another process holds the lock."""
    try:
        if not hasattr(fcntl, "F_OFD_SETLK"):  # not on Linux: the owner is read from FILE-lock
            fcntl.flock(descriptor, (fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        else:
            pid = os.getpid()
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_RANGE, kind, 0, LOCK_AT - pid, pid + 1, 0))
    except BlockingIOError:
        return False
    return True


def _owner_of(descriptor: int) -> int:
    """Return the pid of the process that holds the lock, 0 if it is unknown."""
    if not hasattr(fcntl, "F_OFD_GETLK"):
        return 0
    wanted = struct.pack(_RANGE, fcntl.F_WRLCK, 0, LOCK_AT, 1, 0)
    kind, _, begin, _, _ = struct.unpack(_RANGE, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted)[: len(wanted)])
    return 0 if kind == fcntl.F_UNLCK else LOCK_AT - begin


def _locked(path: str, pid: int) -> StoreLocked:
    owner = f"process {pid}" if pid else "another process"
    text = f"it is already served by {owner}: stop that process, or open the file with read_only=True"
    return StoreLocked(about(path, text), pid=pid)


def open_apart(path: str, flags: int = 0) -> int:
    """Open a file to read and write it, with a descriptor above those of the standard streams.

    If those are closed, the next open file gets their numbers, and what a library writes to stderr would go into it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, NEW_FILE_MODE)
    if descriptor > STDERR:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, STDERR + 1)
    finally:
        os.close(descriptor)


# --- beside the file --------------------------------------------------------------------------------------------------
def _lock_beside(path: str) -> sqlite3.Connection:
    beside = path + "-lock"
    make_beside(path, "-lock")
    with explained(beside):
        db = sqlite3.connect(beside, isolation_level=None, check_same_thread=False, timeout=0)
        try:
            db.execute("CREATE TABLE IF NOT EXISTS owner (pid INTEGER)")
            db.execute("DELETE FROM owner")
            db.execute("INSERT INTO owner VALUES (?)", (os.getpid(),))
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            db.close()
            if is_busy(error):
                raise _locked(path, _noted_owner(path)) from None
            if is_damage(error):
                text = f"{beside} is damaged, and holds nothing of value: remove it"
                raise StoreDamaged(about(path, text)) from error
            raise
        return db


def _noted_owner(path: str) -> int:
    """Return the pid in FILE-lock, waiting up to `OWNER_WAIT_SECONDS` for it; 0 if there is none."""
    beside = path + "-lock"
    deadline = time.monotonic() + OWNER_WAIT_SECONDS
    while os.path.exists(beside):
        with quietly():
            db = sqlite3.connect(beside, isolation_level=None, timeout=0)
            try:
                row = db.execute("SELECT pid FROM owner").fetchone()
            finally:
                db.close()
            if row is not None:
                return int(row[0])
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return 0


def make_beside(path: str, suffix: str) -> None:
    """Create a file beside the database, with the mode and, as root, the owner of the database."""
    with explained(path + suffix), suppress(FileExistsError):
        like = os.stat(path)
        descriptor = open_apart(path + suffix, os.O_CREAT | os.O_EXCL)
        try:
            if os.geteuid() == 0:
                os.fchown(descriptor, like.st_uid, like.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
        finally:
            os.close(descriptor)


# --- checks before anything is opened ---------------------------------------------------------------------------------
def check_path(path: str) -> None:
    """Check that a path names a regular file, or a new file in an existing folder."""
    with explained(path):
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            raise StoreError(about(path, f"its folder {folder} does not exist: create it"))
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            raise StoreError(about(path, "it is a folder: name a file"))
        if not stat.S_ISREG(mode):
            raise StoreError(about(path, "it is a device, pipe or socket: name a file"))


def check_writable(path: str) -> None:
    """Check that the folder, the database and the files beside it are writable; the error names the one that is not."""
    folder = os.path.dirname(path)
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise _not_writable(path, f"its folder {folder}", folder)
    for suffix in SUFFIXES:
        each = path + suffix
        if os.path.exists(each) and not os.access(each, os.R_OK | os.W_OK, effective_ids=True):
            raise _not_writable(path, "it" if not suffix else f"the file {each} beside it", each)


def _not_writable(path: str, what: str, each: str) -> StoreReadOnly:
    with suppress(OSError):
        if os.statvfs(each).f_flag & os.ST_RDONLY:
            return StoreReadOnly(about(path, f"{what} is on a file system that is mounted read-only: remount it"))
    owner = "another user"
    with suppress(OSError):
        status = os.stat(each)
        owner = f"{_user(status.st_uid)}, with mode {stat.S_IMODE(status.st_mode):04o}"
    text = f"{what} belongs to {owner}, and {_user(os.geteuid())} cannot read and write it: change its owner or mode"
    return StoreReadOnly(about(path, text))


def _user(uid: int) -> str:
    with suppress(ImportError, KeyError):
        import pwd  # noqa: PLC0415  not on every system, and only for an error

        return f"user {pwd.getpwuid(uid).pw_name}"
    return f"user {uid}"
