"""The sweep: when it purges, how much at a time, and that what is left to do for the last frame is done first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from perdure import Context, connect, step, workflow
from perdure.connect import client_from
from perdure.errors import InvalidOption, StoreError, UnknownInvocation
from perdure.runtime.retention import PURGE_LIMIT, SWEEP_PERIOD_SECONDS
from perdure.runtime.worker import Worker
from perdure.stores.clock import VirtualClock
from perdure.stores.memory import Crashed, MemoryStore
from perdure.stores.port import Delivery, Filter, Store
from perdure.stores.sqlite import SqliteStore

A_DAY = 86_400.0
ran: list[str] = []


@step
async def note(text: str) -> str:
    ran.append(text)
    return text


@workflow
async def noting(text: str) -> str:
    return await note(text)


@workflow
async def asking(text: str) -> str:
    return await noting(text)


@workflow
async def waiting(ctx: Context) -> str:
    return await ctx.awakeable(str)


SERVED = [noting, asking, waiting]


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


class SpiedStore(MemoryStore):
    """Counts what purges removed, and may refuse one."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self.pieces: list[int] = []
        self.fails = False

    async def purge(self, before: float, /, *, limit: int, id: str | None = None) -> int:
        if self.fails:
            raise StoreError("the disk is tired")
        self.pieces.append(await super().purge(before, limit=limit, id=id))
        return self.pieces[-1]


def quiet(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
    """Say nothing of a process that crashed: it was made to."""


async def until(there: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not there():
            await asyncio.sleep(0)


async def rows(store: Store) -> list[str]:
    return [row.id for row in await store.search(Filter(limit=10_000))]


def worker_of(store: Store, retention: float | None) -> Worker:
    async def opened() -> Store:
        return store

    return Worker(opened, SERVED, retention=retention)


async def swept(store: SpiedStore, clock: VirtualClock, by: float) -> None:
    """Move time on, and wait for the end of the sweep that begins then."""
    count = len(store.pieces)
    clock.move_to(clock.now() + by)
    await until(lambda: len(store.pieces) > count and store.pieces[-1] == 0)


async def test_sweep_purges_what_is_due_and_no_more_in_pieces_of_bounded_size() -> None:
    clock = VirtualClock()
    store = SpiedStore(clock)
    async with client_from(lambda: store) as client, worker_of(store, A_DAY):
        await until(lambda: store.pieces)
        waits = await client.start(waiting)
        for n in range(2 * PURGE_LIMIT + 1):
            await client.run(noting, f"{n}")
        clock.move_to(clock.now() + SWEEP_PERIOD_SECONDS)
        later = await client.start(noting.using(id="later"), "later")
        await later.result()
        assert len(await rows(store)) == 2 * PURGE_LIMIT + 3
        store.pieces.clear()
        await swept(store, clock, A_DAY - SWEEP_PERIOD_SECONDS)
        assert store.pieces == [PURGE_LIMIT, PURGE_LIMIT, 1, 0]
        assert sorted(await rows(store)) == sorted([waits.id, "later"])
        await swept(store, clock, SWEEP_PERIOD_SECONDS)
        assert await rows(store) == [waits.id]
    assert clock.next_due() is None, "the sweep left its timer behind"


async def test_sweep_begins_when_its_worker_does_and_one_for_ever_never() -> None:
    clock = VirtualClock()
    store = SpiedStore(clock)
    async with client_from(lambda: store) as client:
        async with worker_of(store, None):
            await client.run(noting, "old")
            clock.move_to(clock.now() + 1_000 * A_DAY)
            await asyncio.sleep(0)
        assert store.pieces == []
        async with worker_of(store, A_DAY):
            await until(lambda: store.pieces == [1, 0])
    assert ran == ["old"]


async def test_sweep_that_fails_is_reported_and_the_next_comes(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    store = SpiedStore(clock)
    store.fails = True
    async with client_from(lambda: store) as client, worker_of(store, A_DAY):
        await client.run(noting, "x")
        assert "the disk is tired" in caplog.text
        store.fails = False
        await swept(store, clock, 2 * A_DAY)
        assert await rows(store) == []


async def test_sweep_ends_with_its_worker_and_with_its_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    before = asyncio.all_tasks()
    store = SqliteStore(str(tmp_path / "db"))
    await store.open()
    async with worker_of(store, 0.1):
        await asyncio.sleep(0.25)
        await store.aclose()
        await asyncio.sleep(0.15)
    assert asyncio.all_tasks() == before
    assert caplog.text == ""


async def test_retention_that_is_due_while_the_last_effects_are_to_be_done_lets_them_be_done_first() -> None:
    clock = VirtualClock()
    store = MemoryStore(clock)
    crashed = asyncio.Event()

    def crash_before_the_parent_is_told(kind: str, id: str) -> None:
        if kind == "message" and id == "parent":
            crashed.set()
            raise Crashed

    asyncio.get_running_loop().set_exception_handler(quiet)
    store.hook = crash_before_the_parent_is_told
    client = client_from(lambda: store)
    worker = await worker_of(store, 1.0).__aenter__()
    await client.start(asking.using(id="parent"), "child")
    await asyncio.wait_for(crashed.wait(), 5)
    await worker.crash()
    store.hook = None
    clock.move_to(clock.now() + A_DAY)
    store.restart()
    assert ran == ["child"]
    watch = store.watch("parent")
    async with worker_of(store, 1.0):
        await asyncio.wait_for(watch, 5)
        assert ran == ["child"]
        clock.move_to(clock.now() + A_DAY)
        async with asyncio.timeout(5):
            while await rows(store):
                await asyncio.sleep(0)
    await client.aclose()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_start_that_is_delivered_once_more_after_its_purge_runs_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore() if kind == "memory" else SqliteStore(str(tmp_path / "db"))
    subscribe, deliver = store.subscribe, list[Callable[[Delivery], None]]()

    def spy(handlers: Any, to: Callable[[Delivery], None], **options: Any) -> Any:
        deliver.append(to)
        return subscribe(handlers, to, **options)

    monkeypatch.setattr(store, "subscribe", spy)
    async with client_from(lambda: store) as client, worker_of(store, None) as worker:
        handle = await client.start(noting, "once")
        await handle.result()
        start = await store.start(handle.id)
        assert start is not None
        await handle.purge()
        for attempt, fresh in ((2, False), (2, True), (7, False)):
            deliver[0](Delivery(start.id, start.handler, start, attempt, fresh, token=1))
            await asyncio.sleep(0.02)
            assert worker.quiet
        assert ran == ["once"]
        with pytest.raises(UnknownInvocation):
            await handle.result()


@pytest.mark.parametrize("retention", [0, -1, float("nan"), float("inf"), timedelta(0), True, "7d"])
async def test_retention_out_of_range_is_refused(retention: Any) -> None:
    with pytest.raises(InvalidOption, match="retention"):
        connect("memory:", retention=retention)


async def test_retention_of_connect_is_that_of_its_workers() -> None:
    client = connect("memory:", retention=timedelta(milliseconds=100))
    async with client, client.worker(noting):
        handle = await client.start(noting, "x")
        await handle.result()
        async with asyncio.timeout(5):
            while (await client.stats()).total:
                await asyncio.sleep(0.01)
        with pytest.raises(UnknownInvocation, match="retention"):
            await handle.describe()
