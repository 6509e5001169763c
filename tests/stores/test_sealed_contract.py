"""A sealed store keeps the contract that every store keeps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from perdure.core.journal import Start
from perdure.core.values import digest, encode
from perdure.encryption import Encrypted
from perdure.stores.memory import MemoryStore
from perdure.stores.port import Store
from perdure.stores.sealed import Sealed
from perdure.stores.sqlite import SqliteStore
from perdure.testing.contract import StoreContract
from perdure.testing.contract.shared import StoreCase

KEYS = {"new": b"n" * 32, "old": b"o" * 32}


class SealedStarts(StoreCase):
    """Starts that have digests, as those of clients have."""

    def start(self, id: str | None = None, **changes: Any) -> Start:
        changes.setdefault("digest", digest(changes.get("input", encode({}))))
        return super().start(id, **changes)


class TestSealedMemoryStore(SealedStarts, StoreContract):
    def make(self, **limits: int) -> Store:
        return Sealed(MemoryStore(None, **limits), Encrypted(KEYS))

    def reopen(self, store: Store, /) -> Store:
        assert isinstance(store, Sealed)
        assert isinstance(store.inner, MemoryStore)
        store.inner.restart()
        return Sealed(store.inner, Encrypted(KEYS))


class TestSealedSqliteStore(SealedStarts, StoreContract):
    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
            self.path = os.path.join(folder, "store.db")
            yield

    def make(self, **limits: int) -> Store:
        return Sealed(SqliteStore(self.path, **limits), Encrypted(KEYS))

    def reopen(self, store: Store, /) -> Store:
        return Sealed(SqliteStore(self.path), Encrypted(KEYS))
