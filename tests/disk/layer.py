"""A layer between SQLite and the files of a store: it records writes and syncs, and lets them fail.

It is a VFS of SQLite's own, the default one while it is installed, made with `ctypes` in the library that Python's
sqlite3 uses. So the store under test is the store as it is, with its connections, threads and settings.
https://www.sqlite.org/c3ref/vfs.html and https://www.sqlite.org/c3ref/io_methods.html describe the structures.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import sqlite3
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, ClassVar, Literal

from msgspec import Struct

Kind = Literal["write", "truncate", "sync", "delete", "lost"]


class Action(Struct, frozen=True):
    """What was done to a file. `at` is the offset of a write, or the size after a truncation.

    `lost` is a sync that failed: the system may have dropped what it could not write, and not try again.
    `note` is what the file beside the database, which is never synced, held when it was done.
    """

    kind: Kind
    file: str
    at: int = 0
    data: bytes = b""
    note: bytes | None = None


Fails = Callable[[Kind, str], int | None]
"""Returns the result code with which an action on a file fails, or None."""


class _Vfs(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("version", c_int),
        ("file_size", c_int),
        ("longest_path", c_int),
        ("next", c_void_p),
        ("name", c_void_p),
        ("app_data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
        ("rest", c_void_p * 14),
    ]


class _Methods(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("version", c_int),
        ("close", c_void_p),
        ("read", c_void_p),
        ("write", c_void_p),
        ("truncate", c_void_p),
        ("sync", c_void_p),
        ("rest", c_void_p * 13),
    ]


_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_Delete = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)
_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)


def library() -> ctypes.CDLL | None:
    """Return the SQLite that Python's sqlite3 uses; None if it keeps its names to itself."""
    module = getattr(_sqlite3, "__file__", None)
    sqlite3.connect(":memory:").close()
    maps = Path("/proc/self/maps")
    mapped = maps.read_text().splitlines() if maps.exists() else []
    places = [line.split()[-1] for line in mapped if "libsqlite3" in line]
    for place in dict.fromkeys([*places, module]):
        loaded = ctypes.CDLL(place)
        if hasattr(loaded, "sqlite3_vfs_register"):
            return loaded
    return None


class Layer:
    """Records what is done to the files in a folder. `fails` is asked before each action."""

    def __init__(self, sqlite: ctypes.CDLL) -> None:
        self.actions: list[Action] = []
        self.fails: Fails = lambda _kind, _file: None
        self.folder: Path | None = None
        self._sqlite = sqlite
        sqlite.sqlite3_vfs_find.restype = c_void_p
        sqlite.sqlite3_vfs_register.argtypes = [c_void_p, c_int]
        sqlite.sqlite3_vfs_unregister.argtypes = [c_void_p]
        self._default: int = sqlite.sqlite3_vfs_find(None)
        original = _Vfs.from_address(self._default)
        self._vfs = _Vfs.from_buffer_copy(original)
        self._name = ctypes.create_string_buffer(b"perdure-test")
        self._vfs.name = ctypes.addressof(self._name)
        self._vfs.next = None
        self._real_open: Any = ctypes.cast(original.open, _Open)
        self._real_delete: Any = ctypes.cast(original.delete, _Delete)
        self._open = _Open(self._opened)
        self._delete = _Delete(self._deleted)
        self._vfs.open = ctypes.cast(self._open, c_void_p).value
        self._vfs.delete = ctypes.cast(self._delete, c_void_p).value
        self._methods: dict[int, tuple[_Methods, Any]] = {}  # by the address of those that they stand for
        self._files: dict[int, Path] = {}  # by address

    def install(self, folder: Path) -> None:
        """Begin to record: connections that are opened from now on go through the layer."""
        self.folder = folder
        self.actions.clear()
        self._sqlite.sqlite3_vfs_register(ctypes.addressof(self._vfs), 1)

    def remove(self) -> None:
        self.folder = None
        self._sqlite.sqlite3_vfs_register(self._default, 1)
        self._sqlite.sqlite3_vfs_unregister(ctypes.addressof(self._vfs))

    # --- what SQLite calls --------------------------------------------------------------------------------------------
    def _opened(self, _: int, name: int | None, file: int, flags: int, out: Any) -> int:
        result = self._real_open(self._default, name, file, flags, out)
        if result == sqlite3.SQLITE_OK and name is not None:
            self._files[file] = Path(ctypes.string_at(name).decode())
            pointer = c_void_p.from_address(file)
            assert pointer.value is not None
            pointer.value = ctypes.addressof(self._recording(pointer.value))
        return result

    def _deleted(self, _: int, name: int, sync_folder: int) -> int:
        path = Path(ctypes.string_at(name).decode())
        return self._do("delete", path, lambda: self._real_delete(self._default, name, sync_folder), sync_folder)

    def _recording(self, real: int) -> _Methods:
        """Return methods that record, for the files whose methods are at this address."""
        if real in self._methods:
            return self._methods[real][0]
        if any(ctypes.addressof(each) == real for each, _ in self._methods.values()):
            return _Methods.from_address(real)
        original = _Methods.from_address(real)
        write: Any = ctypes.cast(original.write, _Write)
        truncate: Any = ctypes.cast(original.truncate, _Truncate)
        sync: Any = ctypes.cast(original.sync, _Sync)
        files = self._files

        def on_write(file: int, data: int, size: int, at: int) -> int:
            return self._do("write", files[file], lambda: write(file, data, size, at), at, ctypes.string_at(data, size))

        def on_truncate(file: int, size: int) -> int:
            return self._do("truncate", files[file], lambda: truncate(file, size), size)

        def on_sync(file: int, flags: int) -> int:
            return self._do("sync", files[file], lambda: sync(file, flags))

        methods = _Methods.from_buffer_copy(original)
        callbacks = (_Write(on_write), _Truncate(on_truncate), _Sync(on_sync))
        methods.write, methods.truncate, methods.sync = (ctypes.cast(each, c_void_p).value for each in callbacks)
        self._methods[real] = (methods, callbacks)
        return methods

    def _do(self, kind: Kind, path: Path, real: Callable[[], int], at: int = 0, data: bytes = b"") -> int:
        if path.parent != self.folder:
            return real()
        name = path.name
        if (failed := self.fails(kind, name)) is not None:
            if kind == "sync":
                self._note("lost", name)
            return failed
        result = real()
        if result == sqlite3.SQLITE_OK:
            self._note(kind, name, at, data)
        return result

    def _note(self, kind: Kind, name: str, at: int = 0, data: bytes = b"") -> None:
        assert self.folder is not None
        beside = self.folder / "store.db-commit"
        self.actions.append(Action(kind, name, at, data, beside.read_bytes() if beside.exists() else None))
