# pyright: reportUnknownMemberType=false
"""The streams of a store are made once and together, whoever makes them and whenever it is killed; limits are told."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from examples.services.nats_server import Options, Server, server
from perdure import connect, workflow
from perdure.connect import make_streams
from perdure.errors import StoreUnfit

ROOT = Path(__file__).parents[2]
STREAMS = 8
"""Of a store with two partitions."""

DIES = """
import asyncio, os, signal, sys
from perdure.connect import make_streams
from perdure.stores.jetstream.wire.wire import Wire

api, made = Wire.api, 0

async def dies(self, what, body=None):
    global made
    if what.startswith("STREAM.CREATE"):
        if made == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        made += 1
    return await api(self, what, body)

Wire.api = dies
asyncio.run(make_streams(sys.argv[1], shards=2, synced=True))
"""


@workflow
async def hello(name: str) -> str:
    return f"Hello, {name}!"


@pytest.fixture
def node() -> Iterator[Server]:
    with server() as running:
        yield running


async def killed_after(made: int, url: str) -> None:
    """Make streams in a process that is killed after so many."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", DIES, url, str(made), cwd=ROOT, env=os.environ)
    assert await process.wait() == -signal.SIGKILL


async def streams_of(url: str) -> dict[str, Any]:
    async with await nats.connect(url) as raw:
        return {each.config.name or "": each.config for each in await raw.jetstream(timeout=60).streams_info()}


@pytest.mark.slow
@pytest.mark.parametrize("made", range(1, STREAMS))
async def test_creation_that_was_killed_is_finished_by_the_next(made: int, node: Server) -> None:
    await killed_after(made, node.url)
    assert len(await streams_of(node.url)) == made
    looking = connect(node.url, read_only=True)
    with pytest.raises(StoreUnfit, match="there is no store yet"):
        await looking.stats()
    await looking.aclose()
    async with connect(node.url) as client, client.worker(hello):
        assert await client.run(hello, "A") == "Hello, A!"
    found = await streams_of(node.url)
    assert len(found) == STREAMS
    assert {each.metadata["perdure-synced"] for each in found.values()} == {"always"}
    assert await make_streams(node.url, replicas=1) == (2, False)


@pytest.mark.slow
async def test_many_that_make_a_store_at_one_instant_make_one(node: Server) -> None:
    results = await asyncio.gather(*(make_streams(node.url, shards=2) for _ in range(5)))
    assert {shards for shards, _ in results} == {2}
    assert len(await streams_of(node.url)) == STREAMS


@pytest.mark.slow
async def test_makers_that_want_different_numbers_make_one_store_and_the_others_are_refused(node: Server) -> None:
    wanted = (1, 2, 3, 2)
    results = await asyncio.gather(*(make_streams(node.url, shards=n) for n in wanted), return_exceptions=True)
    made = {each[0] for each in results if isinstance(each, tuple)}
    assert len(made) == 1
    assert all(isinstance(each, tuple | StoreUnfit) for each in results)
    assert len(await streams_of(node.url)) == 4 * made.pop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_streams": 5}, "5 streams, of which 0 are in use, and 8 more are needed"),
        ({"max_consumers": 3}, "3 consumers, of which 0 are in use, and 8 more are needed"),
        ({"max_file": 1 << 20}, "1,048,576 bytes on disk, of which 0 are in use, and 8,388,608 more are needed"),
    ],
)
async def test_account_with_too_low_limits_is_refused_before_anything_is_made(
    limits: dict[str, int], said: str
) -> None:
    account = {"jetstream": {"max_file": -1, **limits}, "users": [{"user": "bob", "password": "x"}]}
    options = Options(more={"accounts": {"A": account}})
    with server(options=options) as node:
        url = node.url.replace("//", "//bob:x@")
        client = connect(url, shards=2)
        with pytest.raises(StoreUnfit) as raised:
            await client.stats()
        await client.aclose()
        assert said in str(raised.value)
        assert "a store of 2 partitions needs 8 streams, 4 consumers and 4 more for each handler" in str(raised.value)
        assert await streams_of(url) == {}


@pytest.mark.slow
async def test_creation_that_a_limit_stopped_half_way_is_finished_when_there_is_room(node: Server) -> None:
    async with await nats.connect(node.url) as raw:
        await raw.jetstream(timeout=60).add_stream(name="PERDURE_Q_1", subjects=["other.>"])
    client = connect(node.url, shards=2)
    with pytest.raises(StoreUnfit):
        await client.stats()
    await client.aclose()
    async with await nats.connect(node.url) as raw:
        await raw.jetstream(timeout=60).delete_stream("PERDURE_Q_1")
    async with connect(node.url, shards=2) as client, client.worker(hello):
        assert await client.run(hello, "A") == "Hello, A!"


@pytest.mark.slow
async def test_stream_that_held_something_is_never_made_anew(node: Server) -> None:
    async with connect(node.url, shards=2) as client, client.worker(hello):
        assert await client.run(hello, "A") == "Hello, A!"
    for name in ("PERDURE_J_0", "PERDURE_J_1", "PERDURE_Q_0", "PERDURE_K_1", "PERDURE_B_1"):
        async with await nats.connect(node.url) as raw:
            await raw.jetstream(timeout=60).delete_stream(name)
        client = connect(node.url)
        with pytest.raises(StoreUnfit, match=f"streams are missing: .*{name}"):
            await client.stats()
        await client.aclose()
