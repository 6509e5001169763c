"""When thousands of timers are due at once, journals are read some at a time: what else comes is not kept waiting."""

from __future__ import annotations

import asyncio

import pytest

from perdure import Context, workflow
from perdure.connect import client_from
from perdure.errors import StoreUnavailable
from perdure.runtime.worker import READS_LIMIT
from perdure.stores.clock import VirtualClock
from perdure.stores.memory import MemoryStore
from perdure.stores.port import Journal

COUNT = 5 * READS_LIMIT


class Slow(MemoryStore):
    """Takes some rounds of the loop to read a journal, and counts how many are read at a time."""

    now_read = 0
    most = 0

    async def journal(self, id: str, /) -> Journal:
        self.now_read += 1
        self.most = max(self.most, self.now_read)
        for _ in range(3):
            await asyncio.sleep(0)
        self.now_read -= 1
        return await super().journal(id)


@workflow
async def waits(ctx: Context) -> str:
    await asyncio.sleep(60)
    return ctx.invocation_id


async def test_journals_of_all_that_wake_at_once_are_read_some_at_a_time() -> None:
    clock = VirtualClock()
    store = Slow(clock)
    client = client_from(lambda: store)
    async with client, client.worker(waits, cache=0, max_concurrent=COUNT) as worker:
        handles = [await client.start(waits) for _ in range(COUNT)]
        while (await client.stats()).by_status.get("suspended", 0) < COUNT or not worker.quiet:
            await asyncio.sleep(0)
        store.most = 0
        clock.move_to(clock.now() + 120)
        results = await asyncio.gather(*(handle.result() for handle in handles))
        assert results == [handle.id for handle in handles]
        assert store.most == READS_LIMIT


class Unsteady(MemoryStore):
    """Fails to read journals for some time."""

    failures = 0

    async def journal(self, id: str, /) -> Journal:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("memory: not now")
        return await super().journal(id)


async def test_journal_that_cannot_be_read_for_some_time_is_read_later(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    store = Unsteady(clock)
    client = client_from(lambda: store)
    async with client, client.worker(waits, cache=0) as worker:
        handle = await client.start(waits)
        while (await client.stats()).by_status.get("suspended", 0) < 1 or not worker.quiet:
            await asyncio.sleep(0)
        store.failures = 3
        for _ in range(5):
            clock.move_to(clock.now() + 60)
            for _ in range(100):
                await asyncio.sleep(0)
        assert await asyncio.wait_for(handle.result(), 5) == handle.id
        assert caplog.text.count("cannot be read, trying again: memory: not now") == 3
