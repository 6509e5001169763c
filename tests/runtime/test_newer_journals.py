"""A worker hands back what a newer release wrote; one that can read it goes on; the others never notice."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any, cast

import pytest

from perdure import Context, step, workflow
from perdure.client import Client
from perdure.connect import client_from, make_stub, translators_in_use
from perdure.errors import NewerJournal, StoreDamaged, StoreError
from perdure.runtime.worker import Worker
from perdure.stores import custody
from perdure.stores.memory import MemoryStore
from perdure.stores.port import Journal, Store

pytestmark = pytest.mark.limit(120)


class OldRelease:
    """The store as a worker of an older release sees it: it cannot read the journals of some invocations."""

    def __init__(self, store: MemoryStore, error: type[StoreError] = NewerJournal) -> None:
        self._store = store
        self._error = error
        self.unreadable: set[str] = set()
        self.refused: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def journal(self, id: str, /) -> Journal:
        if id in self.unreadable:
            self.refused.append(id)
            raise self._error(f"invocation {id!r}: this release does not know the entry 'signed'")
        return await self._store.journal(id)


def worker_on(store: Any, *workflows: Any, **options: Any) -> Worker:
    async def opened() -> Store:
        return cast("Store", store)

    return Worker(opened, workflows, translators=translators_in_use, stubs=make_stub, **options)


@step
async def add(left: int, right: int) -> int:
    return left + right


@workflow
async def asks(ctx: Context) -> int:
    return await add(await ctx.awakeable(int), 1)


async def suspended(client: Client, handle: Any) -> str:
    while (await handle.describe()).status != "suspended":
        await asyncio.sleep(0)
    return (await handle.describe()).awakeables[0].id


@pytest.mark.parametrize("error", [NewerJournal, StoreDamaged])
async def test_journal_that_no_worker_can_read_waits_for_one_that_can(
    error: type[StoreError], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    store = MemoryStore()
    async with client_from(lambda: store) as client:
        async with worker_on(store, asks):
            handles = [await client.start(asks) for _ in range(3)]
            awakeables = [await suspended(client, handle) for handle in handles]
        old = OldRelease(store, error)
        old.unreadable = {handles[0].id}
        async with worker_on(old, asks, max_concurrent=1):
            resolving = [asyncio.ensure_future(client.resolve(each, 1)) for each in awakeables]
            assert [await handle.result() for handle in handles[1:]] == [2, 2], "the others are served"
            while "handed back" not in caplog.text:
                await asyncio.sleep(0)
            assert old.refused == [handles[0].id]
            async with worker_on(store, asks):
                assert await asyncio.wait_for(handles[0].result(), 30) == 2
            await asyncio.gather(*resolving)
        assert caplog.text.count("handed back") == 1


async def test_worker_that_declined_is_not_asked_again_while_another_can(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    old = OldRelease(store)
    async with client_from(lambda: store) as client, worker_on(old, asks_often, cache=0):
        async with worker_on(store, asks_often, cache=0):
            handle = await client.start(asks_often, 6)
            old.unreadable = {handle.id}
            for number in range(6):
                while len(opened := (await handle.describe()).awakeables) <= number:
                    await asyncio.sleep(0)
                await client.resolve(opened[number].id, number)
            assert await asyncio.wait_for(handle.result(), 30) == 15
        assert len(old.refused) <= 1


@pytest.mark.parametrize("error", [NewerJournal, StoreDamaged])
async def test_invocation_whose_journal_was_repaired_goes_on_with_the_worker_that_declined_it(
    error: type[StoreError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custody, "DECLINED_SECONDS", 0.05)
    store = MemoryStore()
    async with client_from(lambda: store) as client:
        async with worker_on(store, asks):
            handle = await client.start(asks)
            awakeable = await suspended(client, handle)
        old = OldRelease(store, error)
        old.unreadable = {handle.id}
        async with worker_on(old, asks):
            resolving = asyncio.ensure_future(client.resolve(awakeable, 1))
            while not old.refused:
                await asyncio.sleep(0)
            old.unreadable = set()  # repaired
            assert await asyncio.wait_for(handle.result(), 30) == 2
            await resolving


async def test_worker_is_offered_what_it_declined_after_times_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custody, "DECLINED_SECONDS", 0.02)
    monkeypatch.setattr(custody, "DECLINED_LONGEST_SECONDS", 0.16)
    store = MemoryStore()
    times: list[float] = []

    class Noting(OldRelease):
        async def journal(self, id: str, /) -> Journal:
            times.append(asyncio.get_running_loop().time())
            return await super().journal(id)

    async with client_from(lambda: store) as client:
        async with worker_on(store, asks):
            handle = await client.start(asks)
            awakeable = await suspended(client, handle)
        old = Noting(store)
        old.unreadable = {handle.id}
        async with worker_on(old, asks):
            resolving = asyncio.ensure_future(client.resolve(awakeable, 1))
            async with asyncio.timeout(30):
                while len(times) < 7:
                    await asyncio.sleep(0.01)
            gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
            assert all(gap >= least for gap, least in zip(gaps, (0.02, 0.04, 0.08, 0.16, 0.16), strict=False)), gaps
        resolving.cancel()


@pytest.mark.parametrize("leaves", ["worker", "client"])
async def test_nothing_is_offered_again_once_the_worker_has_ended(leaves: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custody, "DECLINED_SECONDS", 0.02)
    store = MemoryStore()
    async with client_from(lambda: store) as client:
        async with worker_on(store, asks):
            handle = await client.start(asks)
            awakeable = await suspended(client, handle)
        old = OldRelease(store)
        old.unreadable = {handle.id}
        async with worker_on(old, asks):
            resolving = asyncio.ensure_future(client.resolve(awakeable, 1))
            while not old.refused:
                await asyncio.sleep(0)
        refused = len(old.refused)
        if leaves == "worker":
            await asyncio.sleep(0.1)  # none joins: what it declined waits
            assert len(old.refused) == refused
            async with worker_on(store, asks):
                assert await asyncio.wait_for(handle.result(), 30) == 2
                await resolving
        else:
            resolving.cancel()
    timers: Any = vars(asyncio.get_running_loop())["_scheduled"]
    assert not [each for each in timers if "_offer_declined" in repr(each) and not each.cancelled()]


@workflow
async def asks_often(ctx: Context, times: int) -> int:
    return sum([await ctx.awakeable(int) for _ in range(times)])


async def test_claim_of_a_worker_that_died_passes_over_one_that_cannot_read_it() -> None:
    store = MemoryStore()
    async with client_from(lambda: store) as client:
        new = worker_on(store, sleeps, max_concurrent=3)
        await new.__aenter__()
        handles = [await client.start(sleeps) for _ in range(3)]
        while (await client.stats()).by_status.get("running", 0) < 3:
            await asyncio.sleep(0.001)
        old = OldRelease(store)
        old.unreadable = {handles[0].id, handles[1].id}
        async with worker_on(old, sleeps, max_concurrent=1):
            await new.crash()
            gate.set()
            assert await asyncio.wait_for(handles[2].result(), 30) == "slept"
            async with worker_on(store, sleeps, max_concurrent=1):
                assert [await asyncio.wait_for(each.result(), 30) for each in handles] == ["slept"] * 3


gate = asyncio.Event()


@step
async def waits_for_gate() -> str:
    await gate.wait()
    return "slept"


@workflow
async def sleeps() -> str:
    return await waits_for_gate()
