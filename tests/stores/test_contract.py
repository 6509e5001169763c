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


class EmbeddedContract(StoreContract):
    """What the stores of one process promise beyond the contract."""

    async def test_start_given_back_comes_before_one_that_is_new(self) -> None:
        async with self.opened() as store:
            first = self.inbox(room=3)
            await store.submit([self.start(f"s{n}") for n in range(4)])
            assert await first.starts(3) == ["s0", "s1", "s2"]
            first.subscription.close()
            assert await self.inbox(room=4).starts(4) == ["s0", "s1", "s2", "s3"]


class TestMemoryStore(EmbeddedContract):
    def make(self, **limits: int) -> Store:
        return MemoryStore(None, **limits)

    def reopen(self, store: Store, /) -> Store:
        assert isinstance(store, MemoryStore)
        store.restart()
        return store


class TestSqliteStore(EmbeddedContract):
    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
            self.path = os.path.join(folder, "store.db")
            yield

    def make(self, **limits: int) -> Store:
        return SqliteStore(self.path, **limits)

    def reopen(self, store: Store, /) -> Store:
        return SqliteStore(self.path)
