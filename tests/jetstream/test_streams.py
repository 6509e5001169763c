"""Streams on real servers: zombies, servers that restart, connections that break, what is left after a purge."""

from __future__ import annotations

import asyncio
import signal
from contextlib import aclosing
from pathlib import Path

import pytest

from examples.services.nats_server import Options, Server, server
from perdure import Client, connect
from perdure.connect import client_from
from perdure.errors import LimitExceeded
from perdure.stores.jetstream import JetStreamStore
from tests.jetstream.conftest import Join
from tests.jetstream.proxy import Proxy
from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab
from tests.scenarios.notes import close_notes, open_notes
from tests.scenarios.test_streams import check_words, items_of
from tests.test_streams import limited, much, values


async def test_worker_that_stood_still_writes_nothing_once_another_has_ended_the_invocation(
    make_lab: MakeLab, join: Join
) -> None:
    client = await make_lab(workers=0)
    client.close_gate("lingers z")
    zombie = await join(client, workers=1)
    id = await client.start(bodies.waits_in_a_step, "z")
    await client.noted("wrote z", 5)
    zombie.signal(signal.SIGSTOP)
    client.open_gate("lingers z")
    await join(client, workers=1)
    assert await client.result(id) == "z"  # the other one has written nothing
    before = await items_of(client, id, "words")
    assert {item[1] for item in before} == {"waiting"}
    zombie.signal(signal.SIGCONT)
    await client.noted("lingered z")
    assert await items_of(client, id, "words") == before


async def test_outcome_is_not_seen_before_the_stream_is_whole(make_lab: MakeLab, join: Join) -> None:
    client = await make_lab(workers=0)
    client.close_gate("effects of bye")
    worker = await join(client, workers=1)
    id = await client.start(bodies.says_goodbye, "b", id="bye")
    reading = asyncio.create_task(items_of(client, id, "plans"))
    await client.noted("at effects of bye")  # its journal has ended, and what it wrote last is not in the stream
    await asyncio.sleep(1.5)  # readers look once a second
    assert not reading.done()
    await worker.kill()
    client.open_gate("effects of bye")
    await join(client, workers=1)  # it does the effects again
    assert await reading == [(0, "goodbye", None, 1)]
    assert await client.result(id) == "b"


async def test_readers_and_writers_outlast_a_restart_of_the_server(own_nats: Server) -> None:
    async with connect(own_nats.url) as client, client.worker(much):
        handle = await client.start(much, "task", 300)
        async with aclosing(handle.stream("tokens")) as items:
            read = [(await anext(items)).offset for _ in range(20)]
            await asyncio.to_thread(own_nats.kill)
            await asyncio.to_thread(own_nats.start)
            read += [item.offset async for item in items]
        assert read == [*range(300)]
        assert await handle.result() == 300


async def test_connections_that_break_while_items_are_written_and_read_leave_no_gap(
    way: Proxy, namespace: str, tmp_path: Path
) -> None:
    def store() -> JetStreamStore:
        return JetStreamStore([way.url], namespace=namespace, shards=2)

    open_notes(tmp_path)
    async with client_from(store) as client, client.worker(bodies.speaks):
        handle = await client.start(bodies.speaks, "a", 3, 40, 0.01)
        reading = asyncio.create_task(values(handle, "words", str))
        for _ in range(4):
            await asyncio.sleep(0.3)
            await way.cut()
            await way.mend()
        assert await handle.result() == 3
        whole = [(item.offset, item.value, item.step, item.attempt) async for item in handle.stream("words", str)]
        check_words(whole, "a", 3, 40)
        assert await reading == [item[1] for item in whole]
    close_notes()


async def test_purge_leaves_nothing_of_a_stream(client: Client, nats: Server, namespace: str) -> None:
    async with client.worker(limited):
        handle = await client.start(limited, "step", [10, 70_000, 900_000])
        await handle.result()
        store = JetStreamStore([nats.url], namespace=namespace, shards=2)
        await store.open()
        subject = store.layout.blobs(handle.id)
        stream = store.layout.stream_of(subject)
        assert await store.wire.count(stream, subject) >= 2
        await handle.purge()
        assert await store.wire.count(stream, subject) == 0
        await store.aclose()


async def test_item_beyond_the_limit_of_the_server_fails_its_step(tmp_path_factory: pytest.TempPathFactory) -> None:
    with server(tmp_path_factory.mktemp("small"), options=Options(max_payload=256 * 1024)) as node:
        async with connect(node.url) as client, client.worker(limited):
            assert await client.run(limited, "step", [200_000]) == 1
            with pytest.raises(LimitExceeded, match="this server takes 245,760: raise its max_payload"):
                await client.run(limited, "step", [250_000])
