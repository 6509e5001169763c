"""Errors of SQLite and the operating system as errors of the store: what happened, to which file, and what to do."""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

from perdure.errors import (
    PerdureError,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreReadOnly,
)

log = logging.getLogger("perdure.sqlite")

_Known = tuple[type[StoreError], str, str]
"""The class of an error, what happened, and what to do."""

_RESTORE = "restore it from a backup"
_DISK = "check the system log for disk errors, and repair or replace the disk; acknowledged writes are kept"
_BUG = "this is a bug in Perdure: please report it"
_ROOM = "free some space, or raise the quota; it goes on when there is room"
_MODE = "change the owner or mode of the file, its folder and the files beside it"
_LOCAL = "use a local disk: file locks on network file systems are unreliable"
_PUT_BACK = "stop the process, put the file back, and start it again"

SQLITE_CODES: dict[int, _Known] = {
    sqlite3.SQLITE_ERROR: (StoreError, "SQLite refused a statement", _BUG),
    sqlite3.SQLITE_INTERNAL: (
        StoreError,
        "SQLite reported an internal error",
        "upgrade SQLite; if it stays, report it",
    ),
    sqlite3.SQLITE_PERM: (StoreReadOnly, "access to it was denied", _MODE),
    sqlite3.SQLITE_ABORT: (StoreError, "a statement was aborted", "try the operation again"),
    sqlite3.SQLITE_BUSY: (StoreError, "another program has locked it", "close the other program, and try again"),
    sqlite3.SQLITE_LOCKED: (StoreError, "another connection of this process has locked it", "close that connection"),
    sqlite3.SQLITE_NOMEM: (StoreError, "out of memory", "give the process more memory"),
    sqlite3.SQLITE_READONLY: (StoreReadOnly, "it cannot be written", _MODE),
    sqlite3.SQLITE_INTERRUPT: (StoreError, "a statement was interrupted", "try the operation again"),
    sqlite3.SQLITE_IOERR: (StoreError, "the disk reported an error", _DISK),
    sqlite3.SQLITE_CORRUPT: (StoreDamaged, "it is damaged", _RESTORE),
    sqlite3.SQLITE_NOTFOUND: (StoreError, "SQLite does not know an operation", _BUG),
    sqlite3.SQLITE_FULL: (StoreFull, "no space is left for it", _ROOM),
    sqlite3.SQLITE_CANTOPEN: (
        StoreError,
        "it, or a file beside it, cannot be opened",
        "check that its folder exists, that both files can be read and written, and that `ulimit -n` is not reached",
    ),
    sqlite3.SQLITE_PROTOCOL: (StoreError, "its locks do not work, or too many processes open it", _LOCAL),
    sqlite3.SQLITE_EMPTY: (StoreError, "it is empty", _RESTORE),
    sqlite3.SQLITE_SCHEMA: (StoreError, "its schema was changed meanwhile", "stop whatever changes it, and try again"),
    sqlite3.SQLITE_TOOBIG: (StoreError, "a value is larger than SQLite permits", "store large values elsewhere"),
    sqlite3.SQLITE_CONSTRAINT: (StoreError, "a row violates a constraint", _BUG),
    sqlite3.SQLITE_MISMATCH: (StoreDamaged, "a value has another type than its column", _RESTORE),
    sqlite3.SQLITE_MISUSE: (StoreError, "SQLite was misused", _BUG),
    sqlite3.SQLITE_NOLFS: (
        StoreFull,
        "its file system does not support larger files",
        "move it to another file system",
    ),
    sqlite3.SQLITE_AUTH: (StoreReadOnly, "a statement was not authorized", _BUG),
    sqlite3.SQLITE_FORMAT: (StoreDamaged, "its format is wrong", _RESTORE),
    sqlite3.SQLITE_RANGE: (StoreError, "SQLite was misused", _BUG),
    sqlite3.SQLITE_NOTADB: (StoreDamaged, "it is not a database", "restore it, or name another file"),
    sqlite3.SQLITE_NOTICE: (StoreError, "SQLite reported a notice", "see SQLite's message"),
    sqlite3.SQLITE_WARNING: (StoreError, "SQLite reported a warning", "see SQLite's message"),
}
"""By primary result code (https://www.sqlite.org/rescode.html)."""

EXTENDED_CODES: dict[int, _Known] = {
    sqlite3.SQLITE_BUSY_RECOVERY: (StoreError, "another process is recovering its log", "try again in a second"),
    sqlite3.SQLITE_BUSY_SNAPSHOT: (StoreError, "another program wrote to it", "let no other program write to it"),
    sqlite3.SQLITE_READONLY_CANTINIT: (StoreReadOnly, "its -shm file is not writable, and must be", _MODE),
    sqlite3.SQLITE_READONLY_CANTLOCK: (StoreReadOnly, "its -shm file cannot be locked", _MODE),
    sqlite3.SQLITE_READONLY_DBMOVED: (StoreReadOnly, "it was moved or removed while it was open", _PUT_BACK),
    sqlite3.SQLITE_READONLY_DIRECTORY: (StoreReadOnly, "its folder is not writable, and must be", _MODE),
    sqlite3.SQLITE_READONLY_RECOVERY: (StoreReadOnly, "its log must be recovered, and it cannot be written", _MODE),
    sqlite3.SQLITE_READONLY_ROLLBACK: (StoreReadOnly, "a change must be undone, and it cannot be written", _MODE),
    sqlite3.SQLITE_IOERR_NOMEM: (StoreError, "out of memory", "give the process more memory"),
    sqlite3.SQLITE_IOERR_WRITE: (
        StoreError,
        "the disk refused a write",
        "check for a quota, a file size limit (`ulimit -f`) or disk errors; acknowledged writes are kept",
    ),
    sqlite3.SQLITE_IOERR_CORRUPTFS: (StoreDamaged, "its file system is damaged", "check the file system"),
    sqlite3.SQLITE_IOERR_DATA: (StoreDamaged, "a page does not match its checksum", _RESTORE),
    sqlite3.SQLITE_IOERR_VNODE: (StoreError, "it was removed, or its disk is gone", _PUT_BACK),
    sqlite3.SQLITE_IOERR_DELETE_NOENT: (StoreError, "a file beside it was removed", _PUT_BACK),
    sqlite3.SQLITE_IOERR_LOCK: (StoreError, "it cannot be locked", _LOCAL),
    sqlite3.SQLITE_IOERR_RDLOCK: (StoreError, "it cannot be locked", _LOCAL),
    sqlite3.SQLITE_IOERR_UNLOCK: (StoreError, "it cannot be unlocked", _LOCAL),
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK: (StoreError, "its locks cannot be read", _LOCAL),
    sqlite3.SQLITE_IOERR_SHMLOCK: (StoreError, "its -shm file cannot be locked", _LOCAL),
    sqlite3.SQLITE_IOERR_SHMMAP: (StoreError, "its -shm file cannot be mapped into memory", _LOCAL),
    sqlite3.SQLITE_IOERR_SHMOPEN: (StoreReadOnly, "its -shm file cannot be opened", _MODE),
    sqlite3.SQLITE_IOERR_SHMSIZE: (StoreFull, "its -shm file cannot grow", _ROOM),
    sqlite3.SQLITE_IOERR_GETTEMPPATH: (StoreReadOnly, "there is no folder for temporary files", "set TMPDIR to one"),
    sqlite3.SQLITE_CANTOPEN_ISDIR: (StoreError, "it is a folder", "name a file"),
    sqlite3.SQLITE_CANTOPEN_SYMLINK: (StoreError, "it is a symbolic link that may not be followed", "name the file"),
    sqlite3.SQLITE_CANTOPEN_DIRTYWAL: (StoreDamaged, "its log is incomplete", _RESTORE),
}
"""By extended result code, where it is more precise than the primary one."""

_NO_ACCESS: _Known = (StoreReadOnly, "access to it was denied", _MODE)
_MANY_OPEN: _Known = (StoreError, "too many files are open", "raise the limit (`ulimit -n`), or open fewer")
_GONE: _Known = (StoreError, "it, or its folder, does not exist", "create the folder, or name another file")
_IN_THE_WAY: _Known = (StoreError, "something else has its name", "name a file in a folder")
SYSTEM_ERRORS: dict[int, _Known] = {
    errno.ENOSPC: SQLITE_CODES[sqlite3.SQLITE_FULL],
    errno.EDQUOT: (StoreFull, "the disk quota is used up", _ROOM),
    errno.EFBIG: (StoreFull, "it has reached the file size limit", "raise the limit (`ulimit -f`)"),
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.EROFS: (StoreReadOnly, "its file system is mounted read-only", "remount it, or name another file"),
    errno.EMFILE: _MANY_OPEN,
    errno.ENFILE: _MANY_OPEN,
    errno.ENOENT: _GONE,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EIO: SQLITE_CODES[sqlite3.SQLITE_IOERR],
    errno.ESTALE: (StoreError, "its network file system lost it", _LOCAL),
    errno.ENOLCK: (StoreError, "it cannot be locked", _LOCAL),
    errno.ENAMETOOLONG: (StoreError, "its name is too long", "name another file"),
    errno.ELOOP: (StoreError, "its symbolic links lead in a circle", "name the file"),
    errno.ENOMEM: SQLITE_CODES[sqlite3.SQLITE_NOMEM],
}


def about(path: str, what: str) -> str:
    """Return the text of an error about a store."""
    text = f"store {path}: {what}"
    return text.encode("utf-8", "backslashreplace").decode()  # file names may hold bytes that are not UTF-8


def explain(path: str, error: Exception) -> Exception:
    """Return the store's error for an error of SQLite or the operating system."""
    if isinstance(error, PerdureError):
        return error
    kind, what, remedy = _known(error)
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, sqlite3.Error) and (name := getattr(error, "sqlite_errorname", None)):
        words = f"{error}, {name}"
    wrapped = kind(about(path, f"{what} ({words}): {remedy}"))
    wrapped.__cause__ = error
    return wrapped


def _known(error: Exception) -> _Known:
    if isinstance(error, OSError):
        default = (StoreError, "the system reported an error", "see the system's message")
        return SYSTEM_ERRORS.get(error.errno or 0, default)
    if isinstance(error, UnicodeDecodeError):  # SQLite's message, which quotes the damaged bytes
        return SQLITE_CODES[sqlite3.SQLITE_CORRUPT]
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:  # an error of the driver: used after it was closed, or by the wrong thread
        return StoreError, "the store failed", _BUG
    primary = SQLITE_CODES.get(code & 0xFF, (StoreError, "SQLite reported an error", "see SQLite's message"))
    return EXTENDED_CODES.get(code, primary)


def is_busy(error: sqlite3.Error) -> bool:
    """Report whether another connection holds the lock."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def is_damage(error: sqlite3.Error) -> bool:
    """Report whether SQLite read something that is not a database."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


@contextmanager
def explained(path: str) -> Generator[None]:
    """Turn errors of SQLite and the system into the store's."""
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        raise explain(path, error) from error


@contextmanager
def quietly() -> Generator[None]:
    """Log errors of SQLite instead of raising them: for releasing a connection that may be broken."""
    try:
        yield
    except sqlite3.Error as error:
        log.debug("releasing a connection: %s", error)


class Mismatch(Exception):
    """A unit conflicts with what is stored; `error` says how."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
