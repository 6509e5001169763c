"""A sealed store keeps the contract that every store keeps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from perdure.core.journal import Start
from perdure.core.values import digest, encode
from perdure.encryption import Encrypted
from perdure.stores.memory import MemoryStore
from perdure.stores.port import Store
from perdure.stores.rewriting import Rewriting
from perdure.stores.sealed import Sealed
from perdure.stores.sealed import walk as walks
from perdure.stores.sealed.documents import document_with
from perdure.stores.sqlite import SqliteStore
from perdure.testing.contract import StoreContract
from perdure.testing.contract.rewriting import Replacing
from perdure.testing.contract.shared import StoreCase

KEYS = {"new": b"n" * 32, "old": b"o" * 32}


class SealedStarts(StoreCase):
    """Starts that have digests, as those of clients have."""

    def start(self, id: str | None = None, **changes: Any) -> Start:
        changes.setdefault("digest", digest(changes.get("input", encode({}))))
        return super().start(id, **changes)

    def rewriting(self) -> Rewriting:
        assert isinstance(self.store, Sealed)
        within: Any = Within(self.store)
        return within


class Within:
    """What `Replacing` does, within what is sealed."""

    def __init__(self, store: Sealed) -> None:
        self._sealing, self._opening = vars(store)["_sealing"], vars(store)["_opens"]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def change(*what: Any) -> Any:
            walk: Any = document_with if name == "document" else getattr(walks, f"{name}_with")
            opened = walk(self._opening, *what)
            changed = getattr(Replacing(), name)(*what[:-1], opened)
            return what[-1] if changed == opened else walk(self._sealing, *what[:-1], changed)

        return change


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
