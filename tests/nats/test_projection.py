"""The index on JetStream, against a real server: it lists what headers say, resumes, is built anew, knows its lag."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from examples.services.nats_server import Server, server
from perdure.core.journal import Status
from perdure.errors import StoreUnavailable
from perdure.stores.awakeables import Awakeable
from perdure.stores.clock import SystemClock
from perdure.stores.jetstream.index import projection as module
from perdure.stores.jetstream.index.projection import Projection
from perdure.stores.jetstream.index.table import Table, Told
from perdure.stores.jetstream.layout.facts import Facts, lines_of
from perdure.stores.jetstream.layout.settings import stream_settings
from perdure.stores.jetstream.layout.streams import prepare
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Filter, Row, matches

pytestmark = pytest.mark.slow

NOW = 1_760_000_000.0
LATER = 4_000_000_000.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("nats")) as found:
        yield found


class Streams:
    """Messages as the store writes them, and projections of them."""

    def __init__(self, node: Server, layout: Layout, wire: Wire) -> None:
        self.node = node
        self.layout = layout
        self.wire = wire

    async def tell(self, facts: Facts) -> None:
        await self.wire.store(self.layout.journal(facts.id), b"frame", headers=lines_of(facts))

    async def frame(self, id: str, status: Status, *, at: float = NOW) -> None:
        await self.tell(Facts(id, "pay", status, created_at=NOW, due=NOW, at=at))

    async def reserve(self, id: str, key: str | None = None) -> None:
        await self.tell(Facts(id, "pay", "pending", key, created_at=NOW, due=NOW, at=NOW, kind="reserved"))

    async def gone(self, id: str) -> None:
        lines = b"Nats-Rollup: sub\r\nNats-TTL: 1s\r\n"
        facts = Facts(id, "pay", kind="gone", at=NOW, quiet=True)
        await self.wire.store(self.layout.journal(id), b"", headers=lines + lines_of(facts))

    async def queue(self, id: str) -> None:
        said = Facts(id, "pay", "pending", created_at=NOW, due=NOW, at=NOW, kind="start")
        await self.wire.store(self.layout.start("pay", id), b"input", expected=0, headers=lines_of(said))

    async def schedule(self, id: str, due: float) -> None:
        said = Facts(id, "pay", "scheduled", created_at=NOW, due=due, at=NOW, kind="start")
        await self.wire.store(self.layout.schedule(id, "start"), b"input", headers=lines_of(said))

    async def unqueue(self, id: str) -> None:
        await self.wire.purge(self.layout.stream("Q", self.layout.partition(id)), self.layout.any_start(id))

    @contextlib.asynccontextmanager
    async def index(self, path: Path | None = None) -> AsyncGenerator[Projection]:
        async def read(id: str, open: Sequence[tuple[int, int]] | None) -> list[Awakeable]:
            raise AssertionError(f"the journal of {id} is read, where {open} are open")

        made = Projection(self.wire, self.layout, SystemClock(), read, path)
        try:
            yield made
        finally:
            await made.aclose()


@pytest.fixture
async def streams(node: Server, request: pytest.FixtureRequest) -> AsyncIterator[Streams]:
    namespace = f"t{abs(hash(request.node.name)):x}"
    layout = Layout(namespace, 2)
    wire = Wire([node.url])
    wire.stream_of = layout.stream_of
    await wire.open()
    await prepare(wire, layout, 1, SystemClock())
    try:
        yield Streams(node, layout, wire)
    finally:
        if node.running:
            for stream in stream_settings(layout, 1):
                await wire.api(f"STREAM.DELETE.{stream['name']}")
        await wire.close()


async def statuses(index: Projection) -> dict[str, str]:
    return {row.id: row.status for row in await index.search(Filter(limit=1_000))}


# --- what it lists ----------------------------------------------------------------------------------------------------


async def test_answers_are_those_of_the_filters_of_every_store(streams: Streams) -> None:
    chance = random.Random(7)
    rows: list[Row] = []
    for n in range(120):
        id = f"{chance.choice(['job', 'cart'])}-{n:03d}"
        status: Status = chance.choice(["running", "suspended", "paused", "completed", "failed", "cancelled"])
        key = chance.choice([None, "user 1", "user.2"])
        created = NOW + chance.randrange(10)
        rows.append(Row(id, chance.choice(["pay", "ship it"]), status, key, created, created + 1, created))
        facts = Facts(id, rows[-1].handler, "running", key, created_at=created, due=created, at=created)
        await streams.tell(facts)
        await streams.tell(replace(facts, status=status, at=created + 1))
        await streams.tell(replace(facts, at=created + 9, quiet=True))
    async with streams.index() as index:
        for filter in (
            Filter(),
            Filter(limit=7),
            Filter(status="failed"),
            Filter(status="completed", handler="ship it"),
            Filter(key="user.2", limit=3),
            Filter(id_prefix="job-0"),
            Filter(id=rows[3].id),
            Filter(created_after=NOW + 3, created_before=NOW + 6),
            Filter(before=(NOW + 5, "job-050"), limit=10),
            Filter(status="pending"),
        ):
            expected = sorted((row for row in rows if matches(row, filter)), key=lambda row: (row.created_at, row.id))
            assert await index.search(filter) == expected[::-1][: filter.limit], filter
        counts = await index.counts()
        assert sum(counts.by_status.values()) == sum(counts.by_handler.values()) == 120
        assert counts.by_status["completed"] == len([row for row in rows if row.status == "completed"])
        assert counts.by_handler["ship it"] == len([row for row in rows if row.handler == "ship it"])
        due = await index.settled(NOW + 5, 1_000)
        assert due == [*dict.fromkeys(due)]
        settled = ("completed", "failed", "cancelled")
        assert sorted(due) == sorted(row.id for row in rows if row.status in settled and row.updated_at <= NOW + 5)


async def test_what_only_waits_is_listed_and_gives_way_to_its_journal(streams: Streams) -> None:
    await streams.queue("queued")
    await streams.schedule("tomorrow", LATER)
    await streams.schedule("overdue", NOW)
    await streams.reserve("chosen", key="k")
    await streams.frame("begun", "running")
    await streams.queue("begun")  # its start is not acknowledged yet
    async with streams.index() as index:
        expected = {"queued": "pending", "tomorrow": "scheduled", "overdue": "pending", "chosen": "pending"}
        assert await statuses(index) == {**expected, "begun": "running"}
        await streams.frame("queued", "suspended")
        await streams.frame("tomorrow", "cancelled")
        await streams.unqueue("queued")
        expected |= {"queued": "suspended", "tomorrow": "cancelled", "begun": "running"}
        assert await statuses(index) == expected


async def test_scheduled_start_becomes_pending_when_it_is_due(streams: Streams) -> None:
    due = SystemClock().now() + 0.3
    await streams.schedule("soon", due)
    async with streams.index() as index:
        assert await statuses(index) == {"soon": "scheduled"}
        await asyncio.sleep(0.4)
        (row,) = await index.search(Filter(status="pending"))
        assert (row.id, row.updated_at) == ("soon", due)


async def test_ids_of_any_kind_are_listed_as_they_are(streams: Streams) -> None:
    ids = ["a.b>c *", "ünïcode", "x" * 200, "日" * 200]
    for id in ids:
        await streams.queue(id)
    await streams.frame(ids[3], "completed")
    async with streams.index() as index:
        assert await statuses(index) == {**dict.fromkeys(ids, "pending"), ids[3]: "completed"}


# --- following --------------------------------------------------------------------------------------------------------


async def test_who_asks_sees_all_that_was_written_before(streams: Streams) -> None:
    async with streams.index() as index:
        for n in range(40):
            await streams.frame(f"job-{n}", "running")
            assert len(await index.search(Filter(limit=1_000))) == n + 1
        many = [index.counts() for _ in range(50)]
        await streams.frame("job-0", "completed")
        late = index.counts()
        await asyncio.gather(*many)
        assert (await late).by_status == {"running": 39, "completed": 1}


async def test_older_frame_never_replaces_a_newer_one_of_two_processes_on_one_file(
    streams: Streams, tmp_path: Path
) -> None:
    async with streams.index(tmp_path / "index.db") as one, streams.index(tmp_path / "index.db") as other:
        for n in range(30):
            await streams.frame("job", "running" if n % 2 else "suspended", at=NOW + n)
            found = await asyncio.gather(one.search(Filter()), other.search(Filter()))
            for rows in found:
                assert [row.updated_at for row in rows] == [NOW + n]


async def test_kept_table_is_resumed_and_not_read_again(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache" / "index.db"
    for n in range(20):
        await streams.frame(f"job-{n}", "completed")
    await streams.queue("waits")
    async with streams.index(path) as index:
        assert len(await statuses(index)) == 21
    await streams.frame("job-3", "failed")
    await streams.frame("new", "running")
    read: list[int] = []
    add_told = Table.add_told

    def counted(self: Table, shard: int, found: Sequence[Told], now: float) -> None:
        read.append(len(found))
        add_told(self, shard, found, now)

    monkeypatch.setattr(Table, "add_told", counted)
    async with streams.index(path) as index:
        found = await statuses(index)
    assert (len(found), found["job-3"], found["new"], found["waits"]) == (22, "failed", "running", "pending")
    assert sum(read) == 2


@pytest.mark.parametrize("damage", ["garbage", "another store"])
async def test_file_that_is_no_table_of_this_store_is_made_anew(
    streams: Streams, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "index.db"
    await streams.frame("job", "completed")
    if damage == "garbage":
        path.write_bytes(b"no database at all, and long enough to be looked at" * 100)
    else:
        async with streams.index(path) as index:
            await index.counts()
        for stream in stream_settings(streams.layout, 1):
            await streams.wire.api(f"STREAM.DELETE.{stream['name']}")
        await prepare(streams.wire, streams.layout, 1, SystemClock())
        await streams.frame("other", "running")
    async with streams.index(path) as index:
        assert await statuses(index) == ({"job": "completed"} if damage == "garbage" else {"other": "running"})
    assert ("is damaged: rebuilding it" in caplog.text) is (damage == "garbage")


async def test_table_that_cannot_be_kept_is_in_memory(
    streams: Streams, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    await streams.frame("job", "completed")
    async with streams.index(tmp_path / "file" / "index.db") as index:
        assert await statuses(index) == {"job": "completed"}
    assert "using a temporary file" in caplog.text


async def test_table_can_be_built_anew(streams: Streams, tmp_path: Path) -> None:
    for n in range(30):
        await streams.frame(f"job-{n}", "completed")
    await streams.queue("waits")
    async with streams.index(tmp_path / "index.db") as index:
        before = await index.search(Filter())
        await index.rebuild()
        assert await index.search(Filter()) == before
        assert len(before) == 31


async def test_more_frames_than_one_pull_takes_are_all_read(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PULL_BATCH", 16)
    for n in range(100):
        await streams.frame(f"job-{n}", "running")
    async with streams.index() as index:
        assert (await index.counts()).by_status == {"running": 100}


async def test_consumer_that_the_server_forgot_is_made_again(streams: Streams) -> None:
    await streams.frame("job", "running")
    async with streams.index() as index:
        await index.counts()
        for shard in range(2):
            stream = streams.layout.stream("J", shard)
            for name in (await streams.wire.api(f"CONSUMER.NAMES.{stream}"))["consumers"] or ():
                await streams.wire.api(f"CONSUMER.DELETE.{stream}.{name}")
        await streams.frame("job", "completed")
        assert await statuses(index) == {"job": "completed"}


# --- purged -----------------------------------------------------------------------------------------------------------


async def test_purged_invocation_is_gone_and_its_late_start_does_not_bring_it_back(streams: Streams) -> None:
    await streams.frame("job", "completed")
    await streams.frame("stays", "completed")
    async with streams.index() as index:
        assert len(await statuses(index)) == 2
        await streams.gone("job")
        assert await statuses(index) == {"stays": "completed"}
        await streams.queue("job")
        assert await statuses(index) == {"stays": "completed"}


async def test_id_used_anew_after_its_purge_is_listed_again(streams: Streams) -> None:
    await streams.frame("job", "completed")
    async with streams.index() as index:
        await index.counts()
        await streams.gone("job")
        await streams.reserve("job")
        assert await statuses(index) == {"job": "pending"}
        await streams.frame("job", "running")
        assert await statuses(index) == {"job": "running"}


async def test_what_was_purged_while_nobody_looked_is_found_out(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMPARE_SECONDS", 1.0)
    path = tmp_path / "index.db"
    for n in range(10):
        await streams.frame(f"job-{n}", "completed")
    await streams.queue("waits")
    await streams.schedule("tomorrow", LATER)
    async with streams.index(path) as index:
        assert len(await statuses(index)) == 12
    for n in range(4):
        await streams.gone(f"job-{n}")
    await asyncio.sleep(2.5)  # the last word of the purged is forgotten after a second
    async with streams.index(path) as index:
        left = {f"job-{n}" for n in range(4, 10)}
        assert set(await statuses(index)) == {"waits", "tomorrow", *left}


async def test_last_messages_that_were_removed_are_not_waited_for(streams: Streams) -> None:
    await streams.frame("job", "completed")
    async with streams.index() as index:
        await index.counts()
        stream = streams.layout.stream("J", streams.layout.partition("job"))
        sequence = await streams.wire.store(streams.layout.journal("job"), b"", headers=lines_of(Facts("job")))
        await streams.wire.delete(stream, sequence)
        assert await asyncio.wait_for(statuses(index), 2) == {"job": "completed"}
        assert index.lag.complete


# --- without a server -------------------------------------------------------------------------------------------------


async def test_without_a_server_it_answers_what_it_knows_and_says_so(tmp_path: Path) -> None:
    with server(tmp_path / "server") as node:
        layout = Layout("outage", 1)
        wire = Wire([node.url])
        wire.stream_of = layout.stream_of
        await wire.open()
        await prepare(wire, layout, 1, SystemClock())
        streams = Streams(node, layout, wire)
        await streams.frame("job", "running")
        async with streams.index() as known, streams.index() as unopened:
            await known.counts()
            assert known.lag.complete
            node.kill()
            await asyncio.sleep(0.1)
            assert await statuses(known) == {"job": "running"}
            assert not known.lag.complete
            assert not (await known.counts()).is_current
            with pytest.raises(StoreUnavailable):
                await unopened.counts()
            node.start()
            for _ in range(100):
                if wire.is_up:
                    break
                await asyncio.sleep(0.1)
            await streams.frame("job", "completed")
            assert await statuses(known) == {"job": "completed"}
            assert (await known.counts()).is_current
        await wire.close()
