"""Long journals are packed: they read as before, for who comes later too, and nothing of them is lost on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from examples.services.nats_server import Server
from perdure import Client, Context, step, workflow
from perdure.connect import client_from
from perdure.core.history import History
from perdure.core.journal import Accepted, Claimed, Fired, Frame, Start
from perdure.errors import Conflict, StoreDamaged
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.journal.blobs import PIECE_BYTES
from perdure.stores.jetstream.journal.packs import PACK_FRAMES
from perdure.stores.port import Filter, Transition, committed
from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab

LONG = 2 * PACK_FRAMES + 50
LARGE_BYTES = 2 * 1024 * 1024


@step
async def add(number: int) -> int:
    return number + 1


@workflow
async def long(ctx: Context, steps: int) -> int:
    number = 0
    for _ in range(steps):
        number = await add(number)
    return number + await ctx.awakeable(int)


@step
async def large(size: int) -> bytes:
    return b"x" * size


@workflow
async def large_ones(steps: int) -> int:
    return sum([len(await large(LARGE_BYTES if n % 100 == 50 else 10)) for n in range(steps)])


@pytest.fixture
async def store(nats: Server, namespace: str) -> AsyncIterator[JetStreamStore]:
    store = JetStreamStore([nats.url], namespace=namespace, shards=1)
    await store.open()
    yield store
    await store.aclose()


def client_of(store: JetStreamStore) -> Client:
    def another() -> JetStreamStore:
        return JetStreamStore(store.wire.servers, namespace=store.layout.namespace, shards=1)

    return client_from(another)


async def messages_of(store: JetStreamStore, id: str) -> int:
    return await store.wire.count(store.layout.stream("J", 0), store.layout.journal(id))


async def pieces_of(store: JetStreamStore, id: str) -> int:
    return await store.wire.count(store.layout.stream("B", 0), store.layout.blobs(id))


async def test_long_journal_is_few_messages_and_reads_whole(store: JetStreamStore) -> None:
    async with client_of(store) as client, client.worker(long) as worker:
        handle = await client.start(long.using(id="long"), LONG)
        awakeable = await open_awakeable(handle)
        assert await messages_of(store, "long") <= PACK_FRAMES
        assert await pieces_of(store, "long") == 2
        frames = (await store.journal("long")).frames
        assert len(frames) >= LONG
        assert History.of(frames).status == "suspended"
        assert (await store.start("long")) == History.of(frames).start
        # A process that knows nothing of it finds it in its index, replays it, and goes on.
        [row] = await store.search(Filter(id="long"))
        assert (row.status, row.handler) == ("suspended", "long")
        await worker.stop()
        async with client_of(store) as other, other.worker(long):
            await other.resolve(awakeable, 7)
            assert await other.handle("long", long).result() == LONG + 7
        assert await store.outcome("long") is not None
        await client.handle("long").purge()
    assert await pieces_of(store, "long") == 0


async def open_awakeable(handle: Any) -> str:
    async for info in handle.watch():
        if info.status == "suspended":
            break
    [awakeable] = (await handle.describe()).awakeables
    return awakeable.id


async def test_large_values_stay_where_they_are_when_their_frames_are_packed(store: JetStreamStore) -> None:
    async with client_of(store) as client, client.worker(large_ones):
        handle = await client.start(large_ones, LONG)
        count = len(range(50, LONG, 100))
        assert await handle.result() == count * LARGE_BYTES + (LONG - count) * 10
        pieces = -(-LARGE_BYTES // PIECE_BYTES) + 1
        assert await pieces_of(store, handle.id) <= count * pieces + 2, "they would be there twice"
        assert len((await store.journal(handle.id)).frames) >= LONG


async def test_killed_while_it_packs_each_step_runs_once(make_lab: MakeLab) -> None:
    lab = await make_lab()
    id = await lab.start(bodies.climbs, "up", LONG)
    for number in (PACK_FRAMES - 2, PACK_FRAMES + 1, 2 * PACK_FRAMES - 3):
        await lab.noted(f"ran up-{number}")
        await lab.restart()
    assert await lab.result(id) == LONG
    ran = [lab.count(f"ran up-{number}") for number in range(LONG)]
    assert set(ran) <= {1, 2}
    assert ran.count(2) <= 3, "only what was running when it was killed may run again"


async def test_damaged_segment_is_refused(store: JetStreamStore) -> None:
    async with client_of(store) as client, client.worker(long):
        handle = await client.start(long.using(id="long"), LONG)
        await open_awakeable(handle)
    stream = store.layout.stream("B", 0)
    [first, _] = await store.wire.all(stream, store.layout.blobs("long"))
    await store.wire.delete(stream, first.sequence)
    with pytest.raises(StoreDamaged, match=r"piece 0 of 1 .* 'long' is missing"):
        await store.journal("long")
    flipped = bytearray(first.data)
    flipped[len(flipped) // 2] ^= 1
    await store.wire.store(first.subject, bytes(flipped))
    with pytest.raises(StoreDamaged, match="checksum"):
        await store.journal("long")


def frame_of(store: JetStreamStore, number: int, *entries: Any) -> Frame:
    return Frame(store.name, float(number), [*entries] or [Fired(number, float(number))])


async def append(store: JetStreamStore, revision: int, frame: Frame) -> int:
    return await committed(store, Transition("two", revision, frame))


async def test_who_was_taken_over_replaces_nothing(store: JetStreamStore, nats: Server, namespace: str) -> None:
    start = Start("two", "h", b"", 1.0, 1.0, 7)
    revision = await append(store, 0, frame_of(store, 0, Accepted(start), Claimed(0.0, 1, store.name, "3.11", "0")))
    for number in range(1, PACK_FRAMES):
        revision = await append(store, revision, frame_of(store, number))
    other = JetStreamStore([nats.url], namespace=namespace, shards=1)
    await other.open()
    try:
        await other.journal("two")
        claim = Claimed(1.0, 2, other.name, "3.11", "0")
        taken = await append(other, revision, frame_of(other, PACK_FRAMES, claim))  # this one packs
        assert await messages_of(store, "two") == 1
        with pytest.raises(Conflict):
            await append(store, revision, frame_of(store, PACK_FRAMES))
        frames = (await store.journal("two")).frames
        assert len(frames) == PACK_FRAMES + 1
        assert frames[-1].writer == other.name
        assert await append(other, taken, frame_of(other, PACK_FRAMES + 1)) > taken
        assert await messages_of(store, "two") == 2
    finally:
        await other.aclose()


async def test_journal_of_which_a_frame_is_missing_is_not_packed(
    store: JetStreamStore, caplog: pytest.LogCaptureFixture
) -> None:
    start = Start("two", "h", b"", 1.0, 1.0, 7)
    revision = await append(store, 0, frame_of(store, 0, Accepted(start), Claimed(0.0, 1, store.name, "3.11", "0")))
    for number in range(1, PACK_FRAMES):
        revision = await append(store, revision, frame_of(store, number))
    stored = await store.wire.all(store.layout.stream("J", 0), store.layout.journal("two"))
    await store.wire.delete(store.layout.stream("J", 0), stored[100].sequence)
    await append(store, revision, frame_of(store, PACK_FRAMES))
    assert "is not packed:" in caplog.text
    assert await messages_of(store, "two") == PACK_FRAMES
    with pytest.raises(StoreDamaged, match="frame 102 where 101 was expected"):
        await store.journal("two")
