"""Three nodes, three replicas: nodes are killed under load, the leaders of streams among them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from examples.services.nats_server import cluster
from perdure import step, workflow
from perdure.client import Client
from perdure.connect import channels_for, translators_in_use
from perdure.core.history import History
from perdure.errors import StoreError
from perdure.stores.jetstream import JetStreamStore


@step
async def add(x: int) -> int:
    return x + 1


@workflow
async def three_times(x: int) -> int:
    for _ in range(3):
        x = await add(x)
    return x


async def client_of(urls: list[str]) -> Client:
    """Connect, as soon as the cluster has a leader."""
    for _ in range(100):
        client = Client(lambda: JetStreamStore(urls, replicas=3, shards=1), channels_for, translators_in_use)
        try:
            await client.opened()
        except StoreError:
            await asyncio.sleep(0.2)
        else:
            return client
    raise AssertionError("the cluster does not come up")


@pytest.mark.slow
async def test_nodes_killed_one_after_the_other_lose_and_repeat_nothing(tmp_path: Path) -> None:
    with cluster(tmp_path) as running:
        client = await client_of([node.url for node in running.nodes])
        async with client, client.worker(three_times, max_concurrent=100, lease=3):
            handles = [await client.start(three_times, n) for n in range(200)]
            for node in running.nodes[:2]:
                await asyncio.to_thread(node.kill)
                handles += [await client.start(three_times, n) for n in range(50)]
                await asyncio.to_thread(node.start)
                await asyncio.sleep(2.0)
            results = await asyncio.wait_for(asyncio.gather(*(handle.result() for handle in handles)), 40)
            assert results == [n + 3 for n in (*range(200), *range(50), *range(50))]
            store = await client.opened()
            for handle in handles:
                frames = (await store.journal(handle.id)).frames
                assert [frame.outcome is not None for frame in frames].count(True) == 1
                assert History.of(frames).status == "completed"
