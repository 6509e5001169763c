"""Every store keeps the contract of `perdure.testing.contract`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from perdure.stores.memory import MemoryStore
from perdure.stores.port import Store
from perdure.stores.sqlite import SqliteStore
from perdure.testing.contract import StoreContract


class TestMemoryStore(StoreContract):
    def make(self, **limits: int) -> Store:
        return MemoryStore(None, **limits)

    def reopen(self, store: Store, /) -> Store:
        assert isinstance(store, MemoryStore)
        store.restart()
        return store


class TestSqliteStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
            self.path = os.path.join(folder, "store.db")
            yield

    def make(self, **limits: int) -> Store:
        return SqliteStore(self.path, **limits)

    def reopen(self, store: Store, /) -> Store:
        return SqliteStore(self.path)
