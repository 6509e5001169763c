"""Every store keeps the contract of `perdure.testing.contract`."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.core.effects import Effects
from perdure.core.journal import Accepted
from perdure.core.values import encode
from perdure.errors import Conflict
from perdure.stores.documents import Put
from perdure.stores.memory import MemoryStore
from perdure.stores.port import Store
from perdure.stores.sqlite import SqliteStore
from perdure.testing.contract import StoreContract
from perdure.testing.contract.rewriting import NEW, OLD


class EmbeddedContract(StoreContract):
    """What the stores of one process promise beyond the contract."""

    async def test_start_given_back_comes_before_one_that_is_new(self) -> None:
        async with self.opened() as store:
            first = self.inbox(room=3)
            await store.submit([self.start(f"s{n}") for n in range(4)])
            assert await first.starts(3) == ["s0", "s1", "s2"]
            first.subscription.close()
            assert await self.inbox(room=4).starts(4) == ["s0", "s1", "s2", "s3"]

    async def test_starts_that_are_due_together_come_in_the_order_accepted(self) -> None:
        async with self.opened() as store:
            due = store.clock.now() + 0.2
            await store.submit([self.start(id, due=due) for id in "cab"])
            await store.submit([self.start(id, due=due) for id in "fde"])
            assert await self.inbox(room=6).starts(6) == [*"cabfde"]

    async def test_starts_that_fell_due_together_meanwhile_come_in_the_order_accepted(self) -> None:
        async with self.opened() as store:
            due = store.clock.now() + 0.2
            await store.submit([self.start(id, due=due) for id in "cab"])
            store = await self.reopened()
            await store.submit([self.start(id, due=due) for id in "fde"])
            await asyncio.sleep(max(0.0, due - store.clock.now()))
            await self.reopened()
            assert await self.inbox(room=6).starts(6) == [*"cabfde"]

    async def test_starts_of_a_key_that_are_due_together_get_it_in_the_order_accepted(self) -> None:
        async with self.opened() as store:
            due = store.clock.now() + 0.2
            await store.submit([self.start(id, due=due, key="k") for id in "cab"])
            inbox = self.inbox(room=3)
            for id in "cab":
                start, revision = await self.granted(inbox, id)
                await self.settled(start, revision)

    async def test_more_starts_than_are_queued_at_once_that_are_due_together_come_in_the_order_accepted(self) -> None:
        async with self.opened() as store:
            due = store.clock.now() + 1.0
            ids = [f"s{n}" for n in random.Random(1).sample(range(2_500), 2_500)]
            await store.submit([self.start(id, due=due) for id in ids])
            assert await self.inbox(room=len(ids)).starts(len(ids)) == ids


class TestMemoryStore(EmbeddedContract):
    def make(self, **limits: int) -> Store:
        return MemoryStore(None, **limits)

    def reopen(self, store: Store, /) -> Store:
        assert isinstance(store, MemoryStore)
        store.restart()
        return store

    async def test_first_commit_that_comes_after_a_purge_is_refused(self) -> None:
        """In a simulation several processes share the store: one that stood still may come so late."""
        async with self.opened() as store:
            start = await self.completed(self.inbox())
            assert await self.purge(start.id) == 1
            with pytest.raises(Conflict):
                await self.commit(start, 0, self.frame(Accepted(start), self.claim()), "running", effects=Effects())
            assert not (await store.journal(start.id)).frames


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

    async def test_what_is_rewritten_is_not_left_in_the_file(self) -> None:
        async with self.opened() as store:
            await store.documents.write("notes", [Put(("a", f"{n}"), encode(OLD) * 200) for n in range(50)])
            await self.rewritten()
            assert not os.path.getsize(f"{self.path}-wal")
        content = Path(self.path).read_bytes()
        assert NEW.encode() in content
        assert OLD.encode() not in content
