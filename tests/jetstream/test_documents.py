"""Documents on real servers: processes are killed, connections break, servers restart, streams are of before."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from examples.services.nats_server import Cluster, Server
from perdure import Check, Client, Delete, Put, RevisionConflict, connect
from perdure.connect import client_from
from perdure.errors import StoreError, StoreUnavailable
from perdure.stores.documents import Document, Fence, Scan
from perdure.stores.documents import Put as Write
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.wire import link
from tests.jetstream.proxy import Proxy

TRANSFERS = 12


async def begin(url: str, name: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.writes_documents", url, name, stdout=PIPE, stderr=PIPE
    )


async def acknowledged(process: Process, count: int) -> int:
    """Wait for so many transfers, kill the process, and return the number of the last that it was told of."""
    assert process.stdout is not None
    assert process.stderr is not None
    last = -1
    async with asyncio.timeout(120):
        while last < count:
            line = await process.stdout.readline()
            assert line, (await process.stderr.read()).decode()
            last = int(line)
        process.kill()
        for line in (await process.stdout.read()).split():
            last = int(line)
        await process.wait()
    return last


async def check_transfers(url: str, told: dict[str, int]) -> None:
    """Check that all acknowledged transfers are there, and no half ones."""
    async with connect(url) as client:
        accounts = client.documents("accounts", int)
        one, two = await accounts.get_many(["bank/one", "bank/two"])
        assert one is not None
        assert two is not None
        logged = [each async for each in accounts.range("bank/log/")]
        assert one.value + two.value == 1_000_000
        assert two.value == len(logged)
        assert sorted(each.value for each in logged) == [*range(1_000_000, 1_000_000 - len(logged), -1)][::-1]
        for name, last in told.items():
            keys = [each.key for each in logged if each.parts[2] == name]
            assert keys[: last + 1] == [f"bank/log/{name}/{n:08}" for n in range(last + 1)]


@pytest.mark.parametrize("store", ["sqlite", "nats"])
async def test_acknowledged_writes_outlive_kills_and_none_is_half_made(
    store: str, own_nats: Server, tmp_path: Path
) -> None:
    url = f"sqlite:{tmp_path}/app.db" if store == "sqlite" else own_nats.url
    async with connect(url) as client:
        accounts = client.documents("accounts", int)
        await accounts.put_all([Put("bank/one", 1_000_000), Put("bank/two", 0)])
    told: dict[str, int] = {}
    for turn in range(3):
        names = [f"w{turn}"] if store == "sqlite" else [f"w{turn}", f"x{turn}"]  # one process serves a file
        processes = [await begin(url, name) for name in names]
        lasts = await asyncio.gather(*(acknowledged(each, TRANSFERS) for each in processes))
        told.update(zip(names, lasts, strict=True))
        await check_transfers(url, told)


def client_on(url: str, namespace: str) -> Client:
    return client_from(lambda: JetStreamStore([url], namespace=namespace))


@asynccontextmanager
async def store_on(url: str, namespace: str) -> AsyncGenerator[JetStreamStore]:
    store = JetStreamStore([url], namespace=namespace)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


async def test_stream_of_an_earlier_release_is_changed_at_the_first_batch(nats: Server, namespace: str) -> None:
    async with store_on(nats.url, namespace) as store:
        for partition in range(store.layout.partitions):
            name = store.layout.stream("K", partition)
            info = await store.wire.api(f"STREAM.INFO.{name}")
            assert info["config"]["allow_atomic"]
            config = {**info["config"], "allow_atomic": False}
            assert "error" not in await store.wire.api(f"STREAM.UPDATE.{name}", config)
    async with store_on(nats.url, namespace) as store:
        await store.documents.write("notes", [Write(("a",), b"one")])
        await store.documents.write("notes", [Write(("a", "1"), b"two"), Write(("a", "2"), b"three")])
        assert [each.value for each in await store.documents.scan("notes", Scan())] == [b"one", b"two", b"three"]


async def test_deletions_and_replaced_pieces_leave_nothing_behind(nats: Server, namespace: str) -> None:
    async with store_on(nats.url, namespace) as store:
        documents, wire, layout = store.documents, store.wire, store.layout
        large = bytes(3_000_000)
        await documents.write("notes", [Write(("a", "1"), large), Write(("a", "2"), large)])
        for value in (large, b"small", large):
            await documents.write("notes", [Write(("a", "1"), value)])
        await documents.write("notes", [Write(("a", "3"), b"x")])
        partition = layout.partition_of_part("notes", "a")
        pieces = layout.document_blob(partition, "*", "*")
        await _until(lambda: wire.count(layout.stream("B", partition), pieces), 12)
        async with client_on(nats.url, namespace) as client:
            assert await client.documents("notes").delete_range("") == 3
        await _until(lambda: wire.count(layout.stream("B", partition), pieces), 0)
        subjects = layout.documents(partition, "notes", [])
        await _until(lambda: wire.count(layout.stream("K", partition), subjects), 0)


async def test_pieces_of_a_write_that_is_refused_or_given_up_are_removed(
    nats: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store_on(nats.url, namespace) as store:
        documents, wire, layout = store.documents, store.wire, store.layout
        partition = layout.partition_of_part("notes", "a")
        subject = layout.document_blob(partition, "*", "*")

        async def pieces() -> int:
            return await wire.count(layout.stream("B", partition), subject)

        large = bytes(3_000_000)
        await documents.write("notes", [Write(("a", "1"), b"x")])
        for _ in range(2):
            with pytest.raises(RevisionConflict):
                await documents.write("notes", [Write(("a", "2"), large), Write(("a", "1"), b"y", if_revision=0)])
        await _until(pieces, 0)

        put: Callable[..., Awaitable[int]] = getattr(documents, "_put")  # noqa: B009
        other = iter([layout.document("notes", ("a", "2"))])

        async def put_after_another(*arguments: object) -> int:
            for subject in other:
                await wire.store(subject, b"\x93\xc4\x01z\xa0\xc2")
            return await put(*arguments)

        monkeypatch.setattr(documents, "_put", put_after_another)
        await documents.write("notes", [Write(("a", "2"), large)])
        await _until(pieces, 6)

        begun = asyncio.Event()

        async def put_that_takes_long(*arguments: object) -> int:
            begun.set()
            await asyncio.sleep(0.05)
            return await put(*arguments)

        monkeypatch.setattr(documents, "_put", put_that_takes_long)
        writing = asyncio.ensure_future(documents.write("notes", [Write(("a", "2"), b"small")]))
        await begun.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await _until(pieces, 0)

        monkeypatch.undo()
        store_message = wire.store

        async def store_in_vain(subject: str, payload: bytes, **options: Any) -> int:
            await store_message(subject, payload, **options)
            raise StoreError("no room")

        monkeypatch.setattr(wire, "store", store_in_vain)
        with pytest.raises(StoreError, match="no room"):
            await documents.write("notes", [Write(("a", "3"), large)])
        monkeypatch.undo()
        await _until(pieces, 0)


async def _until(count: Callable[[], Awaitable[int]], wanted: int) -> None:
    async with asyncio.timeout(60):
        while await count() != wanted:
            await asyncio.sleep(0.02)


async def test_deletion_whose_process_died_before_it_was_complete_is_none_for_readers_and_writers(
    nats: Server, namespace: str
) -> None:
    async with store_on(nats.url, namespace) as store:
        documents = store.documents
        (first,) = await documents.write("notes", [Write(("a",), b"x")])
        await store.wire.store(store.layout.document("notes", ("a",)), b"\x93\xc4\x00\xa0\xc3")
        assert await documents.read("notes", [("a",)]) == [None]
        assert await documents.scan("notes", Scan()) == []
        (second,) = await documents.write("notes", [Write(("a",), b"y", if_revision=0)])
        assert second > first
        assert [each.value for each in await documents.scan("notes", Scan())] == [b"y"]


@pytest.mark.parametrize("writes", [1, 3])
async def test_write_whose_answer_is_lost_is_made_once(way: Proxy, namespace: str, writes: int) -> None:
    async with store_on(way.url, namespace) as store:
        documents = store.documents
        await documents.write("counts", [Write(("a", str(n)), b"0") for n in range(writes)])
        found: list[Document | None] = []
        for turn in range(5):
            found = await documents.read("counts", [("a", str(n)) for n in range(writes)])
            changes = [
                Write(each.key, b"%d" % (int(each.value) + 1), if_revision=each.revision)
                for each in found
                if each is not None
            ]
            way.stall_answers()
            writing = asyncio.create_task(documents.write("counts", changes))
            await asyncio.sleep(0.05 * turn)
            await way.cut()
            way.flow()
            await way.mend()
            async with asyncio.timeout(60):
                revisions = await writing
            found = await documents.read("counts", [("a", str(n)) for n in range(writes)])
            assert [each and each.revision for each in found] == revisions
        assert [each and each.value for each in found] == [b"5"] * writes


@pytest.mark.parametrize("writes", [1, 3])
async def test_write_that_is_repeated_does_not_undo_what_was_written_in_between(
    nats: Server, way: Proxy, namespace: str, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    async with store_on(way.url, namespace) as store, store_on(nats.url, namespace) as other:
        documents, keys = store.documents, [("a", str(n)) for n in range(writes)]
        put: Callable[..., Awaitable[int]] = getattr(documents, "_put")  # noqa: B009

        def put_without_an_answer(*arguments: object) -> Awaitable[int]:
            way.stall_answers()
            return put(*arguments)

        monkeypatch.setattr(documents, "_put", put_without_an_answer)
        writing = asyncio.create_task(documents.write("notes", [Write(key, b"first") for key in keys]))
        found: list[Document | None] = [None]
        async with asyncio.timeout(60):
            while found[0] is None:
                await asyncio.sleep(0.01)
                found = await other.documents.read("notes", keys)
        assert not writing.done()
        monkeypatch.undo()
        second = [Write(each.key, b"second", if_revision=each.revision) for each in found if each is not None]
        await other.documents.write("notes", second)
        await way.cut()
        way.flow()
        await way.mend()
        async with asyncio.timeout(60):
            (error,) = await asyncio.gather(writing, return_exceptions=True)
        found = await other.documents.read("notes", keys)
        assert [each and each.value for each in found] == [b"second"] * writes
        assert isinstance(error, StoreUnavailable)
        assert "whether this write was made is unknown" in str(error)


async def test_large_batch_on_a_slow_line_is_stored_and_waits_in_no_buffer(
    way: Proxy, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with store_on(way.url, namespace) as store:
        await store.documents.write("notes", [Write(("a", "x"), b""), Write(("a", "y"), b"")])
        monkeypatch.setattr(link, "REQUEST_TIMEOUT_SECONDS", 0.5)  # the batch takes several times as long
        monkeypatch.setattr(link, "SWEEP_SECONDS", 0.1)
        way.seconds_a_chunk = 0.01
        writes = [Write(("a", f"{n:02}"), bytes([n]) * 900_000) for n in range(20)]
        async with asyncio.timeout(60):
            writing = asyncio.ensure_future(store.documents.write("notes", writes))
            most = 0
            while not writing.done():
                await asyncio.wait([writing], timeout=0.01)
                most = max(most, store.wire.unsent)
            revisions = await writing
        assert most < 4_000_000
        way.seconds_a_chunk = 0.0
        found = await store.documents.read("notes", [each.key for each in writes])
        assert [each and (each.value, each.revision) for each in found] == [
            (each.value, revision) for each, revision in zip(writes, revisions, strict=True)
        ]
        assert revisions == [*range(revisions[0], revisions[0] + 20)]


async def test_two_clients_share_documents_at_once(nats: Server, namespace: str) -> None:
    async with client_on(nats.url, namespace) as one, client_on(nats.url, namespace) as two:
        mine, other = one.documents("notes", str), two.documents("notes", str)
        revision = await mine.put("a/1", "x", if_revision=0)
        found = await other.get("a/1")
        assert found is not None
        assert (found.value, found.revision) == ("x", revision)
        second, _ = await other.put_all([Put("a/1", "y", if_revision=revision), Put("a/2", "z")])
        with pytest.raises(RevisionConflict):
            await mine.put_all([Put("a/3", "late"), Check("a/1", if_revision=revision)])
        assert [each.value async for each in mine.range("a/")] == ["y", "z"]
        assert await mine.put_all([Delete("a/1"), Delete("a/9")]) == [second, 0]


async def test_documents_on_three_nodes_are_read_as_written_through_the_loss_of_each_node(
    nodes: Cluster, namespace: str
) -> None:
    store = JetStreamStore([node.url for node in nodes.nodes], namespace=namespace, replicas=3)
    await store.open()
    try:
        documents = store.documents
        fence = Fence("k", (1, 1))
        for turn, node in enumerate(nodes.nodes):
            node.kill()
            for n in range(20):
                value = b"%d.%d" % (turn, n)
                writes = [Write(("a", "1"), value), Write(("a", str(10 + n)), value)]
                async with asyncio.timeout(120):
                    revisions = await documents.write("notes", writes, fence=fence)
                    found = await documents.read("notes", [("a", "1"), ("a", str(10 + n))])
                assert [each and (each.value, each.revision) for each in found] == [(value, each) for each in revisions]
            node.start()
        assert len(await documents.scan("notes", Scan())) == 21
    finally:
        await store.aclose()


async def test_stopped_server_is_waited_for_and_reported(own_nats: Server) -> None:
    async with connect(own_nats.url, timeout=1.0) as client:
        notes = client.documents("notes", str)
        await notes.put("a", "x")
        own_nats.kill()
        with pytest.raises(StoreUnavailable, match="has not accepted documents of 'notes' within 1 s"):
            await notes.put("a", "y")
        own_nats.start()
        async with asyncio.timeout(60):
            found = await notes.get("a")
        assert found is not None
