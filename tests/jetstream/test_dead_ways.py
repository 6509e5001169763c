"""A server that does not answer ends no client and no worker: they come back, and what is closed ends soon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from examples.services.nats_server import Options, Server
from perdure import Client, step, workflow
from perdure.connect import client_from
from perdure.runtime.worker import Worker
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.ownership.holdings import Holdings
from perdure.stores.jetstream.wire import link
from perdure.stores.jetstream.wire.connection import Connection
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Filter
from tests.jetstream.proxy import Proxy
from tests.jetstream.test_wire import wired

LIMIT_SECONDS = 30.0
PIECE = b"x" * 1_000_000
PIECES = 30
"""More than the buffers of the system take between a client, a proxy and a server."""
HINTS = 1_100
"""More than nats-py's queue of flushes takes."""


def connection_of(wire: Wire) -> Connection:
    return vars(wire)["_connection"]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("hints", [0, HINTS])
async def test_connection_that_takes_nothing_any_more_is_replaced(
    way: Proxy, namespace: str, hints: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_SECONDS", 0.5)
    async with wired(way.url, namespace) as wire:
        way.strand()
        puts = [asyncio.ensure_future(wire.store(f"{namespace}.{n}", PIECE, expected=0)) for n in range(PIECES)]
        for _ in range(hints):
            await asyncio.sleep(0)
            wire.publish(f"{namespace}.hint")
        sequences = await asyncio.wait_for(asyncio.gather(*puts), LIMIT_SECONDS)
        assert len({*sequences}) == PIECES
        assert wire.reconnects >= 1


async def test_attempt_to_reconnect_that_fails_in_an_unforeseen_way_is_not_the_last_one(
    own_nats: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with wired(own_nats.url) as wire:
        connection = connection_of(wire)
        command: Callable[[], bytes] = getattr(connection, "_connect_command")  # noqa: B009  it is nats-py's own
        failed: list[bool] = []

        def half_written() -> bytes:
            if len(failed) < 2:
                failed.append(True)
                raise RuntimeError("the file of credentials is half written")
            return command()

        monkeypatch.setattr(connection, "_connect_command", half_written)
        await asyncio.to_thread(own_nats.kill)
        await asyncio.to_thread(own_nats.start)
        await asyncio.wait_for(wire.store("S.a", b"x"), LIMIT_SECONDS)
        assert len(failed) == 2
    assert "the file of credentials is half written" in caplog.text
    assert "Traceback" in caplog.text


async def test_answer_to_a_flush_that_was_given_up_does_not_deafen_the_connection(nats: Server) -> None:
    async with wired(nats.url, "PONG") as wire:
        connection = connection_of(wire)
        flushing = asyncio.ensure_future(connection.flush())
        await asyncio.sleep(0)
        flushing.cancel()
        await asyncio.wait([flushing])
        assert await asyncio.wait_for(wire.store("PONG.a", b"x"), 5) == 1
        await connection.flush()
        assert await asyncio.wait_for(wire.store("PONG.b", b"x"), 5) == 2
        assert wire.reconnects == 0


async def test_read_whose_messages_keep_coming_is_not_given_up(
    way: Proxy, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with wired(way.url, namespace) as wire:
        for n in range(8):
            await wire.store(f"{namespace}.{n}", PIECE[:100_000])
        monkeypatch.setattr(link, "REQUEST_TIMEOUT_SECONDS", 0.5)
        monkeypatch.setattr(link, "SWEEP_SECONDS", 0.05)
        await asyncio.sleep(link.SWEEP_SECONDS)
        way.seconds_a_chunk = 0.15  # in all more than a second
        found = await asyncio.wait_for(wire.batch(namespace, f"{namespace}.>"), 10)
        assert len(found) == 8


async def test_wire_to_a_server_that_takes_nothing_is_closed(way: Proxy, namespace: str) -> None:
    wire = Wire([way.url])
    wire.stream_of = lambda _: namespace
    await wire.open()
    way.strand()
    puts = [asyncio.ensure_future(wire.store(f"{namespace}.{n}", PIECE, expected=0)) for n in range(PIECES)]
    await asyncio.sleep(0)
    await asyncio.wait_for(wire.close(), LIMIT_SECONDS)
    ends = await asyncio.gather(*puts, return_exceptions=True)
    assert {type(each).__name__ for each in ends} == {"StoreClosed"}


# --- a server without JetStream ---------------------------------------------------------------------------------------
go: list[asyncio.Event] = []
began: list[str] = []


@step
async def waits(name: str) -> str:
    began.append(name)
    await go[-1].wait()
    return name


@workflow
async def holds(name: str) -> str:
    return await waits(name)


async def without_jetstream(node: Server, store: JetStreamStore) -> None:
    """Restart a server without JetStream, and wait until the store has reconnected."""
    before = store.wire.reconnects
    node.options = Options(jetstream=False)
    await asyncio.to_thread(node.restart)
    await until(lambda: store.wire.reconnects > before)


async def running(client: Client, store: JetStreamStore, *names: str) -> Worker:
    """Start a worker with invocations that are in a step and claimed."""
    began.clear()
    go.append(asyncio.Event())
    worker = client.worker(holds)
    await worker.__aenter__()
    for name in names:
        await client.start(holds, name)
    await until(lambda: len(began) == len(names))
    holdings: Holdings = vars(store)["_deliveries"].holdings
    await until(lambda: [hold.claimed for _, hold in holdings.holds()] == [True] * len(names))
    return worker


async def test_worker_stops_and_its_client_closes_though_the_server_stores_nothing(
    own_nats: Server, caplog: pytest.LogCaptureFixture
) -> None:
    store = JetStreamStore([own_nats.url], shards=1)
    client = client_from(lambda: store)
    worker = await running(client, store, "a", "b")
    await without_jetstream(own_nats, store)
    await asyncio.wait_for(worker.stop(grace=0.0), LIMIT_SECONDS)
    assert "could not be released, it is redelivered instead" in caplog.text
    await asyncio.wait_for(client.aclose(), LIMIT_SECONDS)


async def test_store_with_claims_closes_though_the_server_stores_nothing(own_nats: Server) -> None:
    store = JetStreamStore([own_nats.url], shards=1)
    client = client_from(lambda: store)
    worker = await running(client, store, "a")
    await without_jetstream(own_nats, store)
    await asyncio.wait_for(client.aclose(), LIMIT_SECONDS)
    await worker.crash()


async def test_store_closes_while_a_list_is_read_that_never_ends(
    own_nats: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JetStreamStore([own_nats.url], shards=1)
    client = client_from(lambda: store)
    await client.start(holds, "a")
    projection: Any = vars(store)["_projection"]
    await store.search(Filter())
    await without_jetstream(own_nats, store)

    async def last_sequence(_: str) -> int:  # as if the server had lost its JetStream after it had said that
        return 1_000

    async def is_ahead(_: object) -> bool:
        return False

    monkeypatch.setattr(projection, "_last_sequence", last_sequence)
    monkeypatch.setattr(projection, "_is_ahead", is_ahead)
    listing = asyncio.ensure_future(store.search(Filter()))
    await asyncio.sleep(0.5)
    assert not listing.done()
    await asyncio.wait_for(client.aclose(), LIMIT_SECONDS)
    await asyncio.wait([listing], timeout=LIMIT_SECONDS)
    assert type(listing.exception()).__name__ == "StoreClosed"
