"""A machine's clock is set, so the store's time and the server's part: waits take as long as they were asked to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from examples.services.nats_server import Server
from perdure import Client, Context, workflow
from perdure.connect import client_from
from perdure.stores.clock import SystemClock
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream import store as store_module
from perdure.stores.jetstream.care import overdue
from tests.jetstream.liveness import check_liveness

APART_SECONDS = 25.0
"""How far the clock is set: less than a store that is opened refuses, and more than any wait here."""
PATIENCE_SECONDS = 15.0
WAIT_SECONDS = 1.5
"""Longer than a worker times itself."""


@workflow
async def waits() -> float:
    await asyncio.sleep(WAIT_SECONDS)
    return WAIT_SECONDS


@workflow
async def sends(ctx: Context) -> None:
    ctx.send(waits.using(id=f"{ctx.invocation_id}-sent", delay=WAIT_SECONDS))


@workflow
async def limited() -> str:
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.Event().wait()
    except TimeoutError:
        return "in time"
    return "never"


@workflow
async def keyed(ctx: Context) -> str:
    return ctx.key or ""


@asynccontextmanager
async def site(
    nats: Server, namespace: str, monkeypatch: pytest.MonkeyPatch, apart: float
) -> AsyncGenerator[Client, None]:
    """Open a client whose store is `apart` seconds ahead of the machine and of the server."""
    set_by = [apart]

    def clock() -> SystemClock:
        made = SystemClock(lambda: time.time() + set_by[0])
        set_by[0] = 0.0  # the machine's clock is set now
        return made

    monkeypatch.setattr(store_module, "SystemClock", clock)
    made: list[JetStreamStore] = []

    def opened() -> JetStreamStore:
        made.append(JetStreamStore([nats.url], namespace=namespace, shards=2))
        return made[-1]

    async with client_from(opened) as client, client.worker(waits, sends, limited, keyed):
        yield client
        await check_liveness(made[0])


@pytest.mark.parametrize("apart", [APART_SECONDS, -APART_SECONDS])
async def test_waits_last_as_long_as_asked_after_the_machines_clock_was_set(
    nats: Server, namespace: str, monkeypatch: pytest.MonkeyPatch, apart: float
) -> None:
    async with site(nats, namespace, monkeypatch, apart) as client, asyncio.timeout(PATIENCE_SECONDS):
        began = time.monotonic()
        await client.run(sends.using(id="s"))
        later = await client.start(keyed.using(key="k", delay=WAIT_SECONDS))
        assert await client.run(waits) == WAIT_SECONDS
        assert time.monotonic() - began >= WAIT_SECONDS
        assert await client.run(limited) == "in time"
        assert await later.result() == "k"
        assert await client.handle("s-sent").result() == WAIT_SECONDS


async def test_schedules_are_not_overdue_because_the_machines_clock_was_set_back(
    nats: Server, namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(overdue, "OVERDUE_SECONDS", 5.0)
    monkeypatch.setattr(store_module, "LOOK_SECONDS", 0.1)
    async with site(nats, namespace, monkeypatch, APART_SECONDS) as client, asyncio.timeout(PATIENCE_SECONDS):
        for _ in range(2):
            await client.run(waits)
    assert "were set again" not in caplog.text
    assert "the clock of this machine is" not in caplog.text
