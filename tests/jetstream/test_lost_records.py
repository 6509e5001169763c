"""A server that finds a damaged block drops what follows it: what keys knew is restored from its copy, and said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from examples.services.nats_server import Server
from perdure import Client, Context, connect, workflow
from perdure.connect import client_from
from perdure.stores.jetstream import JetStreamStore
from tests.jetstream.liveness import check_liveness


@workflow
async def counts(ctx: Context) -> int:
    count = ctx.get("count", int, default=0) + 1
    ctx.set("count", count)
    return count


@workflow
async def counts_when_told(ctx: Context) -> int:
    count = ctx.get("count", int, default=0) + 1
    ctx.set("count", count)
    await ctx.awakeable(int)
    return count


@workflow
async def fills(ctx: Context, size: int) -> int:
    ctx.set("large", "x" * size)
    return len(ctx.get("large", str, default=""))


@asynccontextmanager
async def client_of(node: Server) -> AsyncGenerator[Client]:
    def store() -> JetStreamStore:
        return JetStreamStore([node.url], shards=1)

    async with client_from(store) as client:
        yield client


@asynccontextmanager
async def store_of(node: Server) -> AsyncGenerator[JetStreamStore]:
    store = JetStreamStore([node.url], shards=1)
    await store.open()
    yield store
    await store.aclose()


def block_of(node: Server, stream: str) -> Path:
    [block] = node.folder.rglob(f"{stream}/msgs/1.blk")
    return block


async def flip_a_byte(node: Server, stream: str, at: float) -> None:
    """Kill the server, damage a stream's file at a part of its length, and start the server again."""
    await asyncio.to_thread(node.kill)
    block = block_of(node, stream)
    data = bytearray(block.read_bytes())
    data[int(len(data) * at)] ^= 0xFF
    block.write_bytes(data)
    await asyncio.to_thread(node.start)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.97])
async def test_state_of_a_key_survives_a_flipped_byte_in_the_stream_of_keys(
    own_nats: Server, at: float, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(own_nats) as client, client.worker(counts):
        assert [await client.run(counts.using(key="k")) for _ in range(20)] == [*range(1, 21)]
        assert [await client.run(counts.using(key=f"other{n}")) for n in range(5)] == [1] * 5
    await flip_a_byte(own_nats, "PERDURE_K_0", at)
    async with client_of(own_nats) as client:
        assert await client.state("k") == {"count": 20}, "who only looks sees it too"
        async with client.worker(counts):
            assert await client.run(counts.using(key="k")) == 21
            assert [await client.run(counts.using(key=f"other{n}")) for n in range(5)] == [2] * 5
            assert await client.state("k") == {"count": 21}
    assert "the server lost its record" in caplog.text


async def test_key_that_is_held_when_its_record_is_lost_is_released_and_its_state_is_kept(own_nats: Server) -> None:
    async with client_of(own_nats) as client, client.worker(counts, counts_when_told):
        assert [await client.run(counts.using(key="k")) for _ in range(5)] == [1, 2, 3, 4, 5]
        holder = await client.start(counts_when_told.using(key="k"))
        behind = await client.start(counts.using(key="k"))
        while not (opened := (await holder.describe()).awakeables):
            await asyncio.sleep(0.01)
        await flip_a_byte(own_nats, "PERDURE_K_0", 0.1)
        await client.resolve(opened[0].id, 1)
        assert await holder.result(timeout=60) == 6
        assert await behind.result(timeout=60) == 7
        assert await client.state("k") == {"count": 7}
    async with store_of(own_nats) as store:
        await check_liveness(store)


async def test_all_records_lost_are_restored_large_ones_too(own_nats: Server) -> None:
    size = 3_000_000
    async with client_of(own_nats) as client, client.worker(counts, fills):
        assert await client.run(fills.using(key="large"), size) == size
        assert await client.run(counts.using(key="k")) == 1
    async with store_of(own_nats) as store:
        assert await store.wire.purge("PERDURE_K_0", "perdure.k.0.key.>") == 2
    async with client_of(own_nats) as client, client.worker(counts, fills):
        assert len((await client.state("large"))["large"]) == size
        assert await client.run(counts.using(key="k")) == 2


async def test_secret_that_is_lost_is_restored_so_that_ids_of_awakeables_stay_good(own_nats: Server) -> None:
    async with client_of(own_nats) as client, client.worker(counts_when_told):
        handle = await client.start(counts_when_told.using(key="k"))
        while not (opened := (await handle.describe()).awakeables):
            await asyncio.sleep(0.01)
    async with store_of(own_nats) as store:
        assert await store.wire.purge("PERDURE_K_0", store.layout.secret()) == 1
    async with client_of(own_nats) as client, client.worker(counts_when_told):
        await client.resolve(opened[0].id, 1)
        assert await client.handle(handle.id).result(timeout=30) == 1


async def test_store_of_an_earlier_release_has_no_copies_and_serves_as_ever(own_nats: Server) -> None:
    async with client_of(own_nats) as client, client.worker(counts):
        assert [await client.run(counts.using(key="k")) for _ in range(3)] == [1, 2, 3]
    async with store_of(own_nats) as store:
        assert await store.wire.purge("PERDURE_J_0", "perdure.j.0.=key.>") == 1
        assert await store.wire.purge("PERDURE_J_0", store.layout.secret_copy()) == 1
    async with connect(own_nats.url) as client, client.worker(counts):
        assert await client.run(counts.using(key="k")) == 4
        assert await client.state("k") == {"count": 4}
