# pyright: reportUnknownMemberType=false
"""What an operator does to a cluster while workers work: more replicas, and an upgrade of one node after the other."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter

import nats
import pytest
from nats.js import JetStreamContext

from examples.services.nats_server import Cluster, Options, Server, cluster
from perdure import Client, Context, connect, step, workflow

pytestmark = pytest.mark.slow

LIMIT_SECONDS = 120
LAME_DUCK = {"lame_duck_duration": "30s", "lame_duck_grace_period": "1s"}
"""The shortest that the server takes: with few clients, it is over much earlier."""

ran: Counter[str] = Counter()


@step
async def note(name: str) -> str:
    ran[name] += 1
    await asyncio.sleep(0.02)
    return name


@workflow
async def three(ctx: Context) -> str:
    for n in range(2):
        await note(f"{ctx.invocation_id} {n}")
    return await note(f"{ctx.invocation_id} end")


async def work(client: Client, prefix: str, ended: asyncio.Event) -> int:
    """Run one after the other, some at a time, until it is enough; return how many ran to their end."""
    done = 0

    async def one_after_the_other(lane: int) -> None:
        nonlocal done
        n = 0
        while not ended.is_set():
            id = f"{prefix}-{lane}-{n}"
            assert await client.run(three.using(id=id)) == f"{id} end"
            done, n = done + 1, n + 1

    async with asyncio.timeout(LIMIT_SECONDS):
        await asyncio.gather(*(one_after_the_other(lane) for lane in range(10)))
    return done


async def replicate(url: str, replicas: int) -> None:
    """Do what `nats stream edit --replicas` does, for all streams, and wait until streams and consumers have them."""
    async with await nats.connect(url.removeprefix("nats://").split(",")) as raw:
        jetstream = raw.jetstream(timeout=20)
        configs = [info.config for info in await jetstream.streams_info()]
        for config in configs:
            config.num_replicas = replicas
            await jetstream.update_stream(config)
        async with asyncio.timeout(LIMIT_SECONDS):
            for config in configs:
                while not await has_replicas(jetstream, str(config.name), replicas):
                    await asyncio.sleep(0.5)


async def has_replicas(jetstream: JetStreamContext, stream: str, replicas: int) -> bool:
    """Whether a stream and all its consumers have their copies; while a queue is changed, its server is silent."""
    lasting = [each for each in await jetstream.consumers_info(stream) if each.config.durable_name]
    found = [await jetstream.stream_info(stream), *lasting]
    copies = [(each.cluster.replicas if each.cluster is not None else None) or [] for each in found]
    return all(len(each) == replicas - 1 and all(peer.current for peer in each) for each in copies)


async def progress() -> None:
    """Wait until steps run that were not asked for before."""
    before = ran.total()
    async with asyncio.timeout(60):
        while ran.total() < before + 60:
            await asyncio.sleep(0.1)


async def roll(nodes: Cluster, node: Server) -> None:
    """Upgrade a node: its clients are sent away first."""
    os.kill(node.pid, signal.SIGUSR2)  # what `nats-server --signal ldm` sends
    begun = time.monotonic()
    while node.running and time.monotonic() < begun + 30:
        await asyncio.sleep(0.1)
    assert not node.running
    node.kill()
    await asyncio.to_thread(nodes.start)  # until /healthz says ok


async def test_replicas_and_rolling_restarts_while_workers_work() -> None:
    ran.clear()
    with cluster(options=Options(more=LAME_DUCK)) as nodes:
        async with connect(nodes.url, shards=2) as client, client.worker(three, max_concurrent=20):
            ended = asyncio.Event()
            working = asyncio.ensure_future(work(client, "w", ended))
            await asyncio.sleep(1)
            await replicate(nodes.url, 3)
            nodes.nodes[0].kill()  # any node may go now
            await progress()
            await asyncio.to_thread(nodes.start)
            for node in nodes.nodes:
                await roll(nodes, node)
                await progress()
            ended.set()
            done = await working
            assert (await client.stats()).by_status == {"completed": done}
    assert len(ran) == 3 * done
    assert {name: count for name, count in ran.items() if count > 1} == {}
