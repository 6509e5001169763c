"""Implements the Store protocol by delegating to the parts. The package's docstring has the overview."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from perdure.background import end
from perdure.core.history import History
from perdure.core.journal import (
    Answer,
    Message,
    Outcome,
    Start,
)
from perdure.core.lifecycle import SETTLED
from perdure.counters import StoreCounters
from perdure.errors import StoreClosed, StoreUnfit
from perdure.stores.awakeables import Awakeable, AwakeableFilter, made_by
from perdure.stores.clock import SystemClock
from perdure.stores.finite import check_message, check_starts
from perdure.stores.jetstream.accepting import Accepting
from perdure.stores.jetstream.background import Background
from perdure.stores.jetstream.cancelling import Cancelling
from perdure.stores.jetstream.care.janitor import PERIOD_SECONDS, Janitor
from perdure.stores.jetstream.care.overdue import LOOK_SECONDS, Overdue
from perdure.stores.jetstream.care.purge import Purge
from perdure.stores.jetstream.commits import Commits
from perdure.stores.jetstream.documents.documents import JetStreamDocuments
from perdure.stores.jetstream.index.projection import Projection
from perdure.stores.jetstream.index.rows import Rows
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.done import is_done, starts_in
from perdure.stores.jetstream.journal.journals import Journals
from perdure.stores.jetstream.keys.keys import Keys
from perdure.stores.jetstream.layout.streams import prepare, read_secret
from perdure.stores.jetstream.layout.subjects import SHARDS, Layout
from perdure.stores.jetstream.ownership.holdings import Member
from perdure.stores.jetstream.queue.deliveries import Deliveries
from perdure.stores.jetstream.queue.finding import Finder
from perdure.stores.jetstream.rewriting import Rewriter
from perdure.stores.jetstream.streams import JetStreamStreams
from perdure.stores.jetstream.watching import Watching
from perdure.stores.jetstream.wire.access import shown
from perdure.stores.jetstream.wire.checks import CLOCK_LIMIT_SECONDS, check_clock
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.jetstream.writing import Writing
from perdure.stores.notices import Feed, Notices
from perdure.stores.port import (
    KEY_QUEUE_LIMIT,
    LEASE_SECONDS,
    PAYLOAD_LIMIT_BYTES,
    Committed,
    Counts,
    Delivery,
    Filter,
    Journal,
    Key,
    Minute,
    Row,
    Transition,
    no_partitions,
)
from perdure.stores.rewriting import Part, Rewriting

PURGE_SPARE = 1_000
"""Candidates that a purge reads beyond its limit, since some of them cannot be removed yet."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""The minor version of Python that the claims of this process name."""
CLOCK_SECONDS = 60.0
"""How often the clock of a process with workers is compared with the server's."""

log = logging.getLogger("perdure.jetstream")

CLOSING_SECONDS = 5.0
"""How long closing waits for writes in progress."""


class JetStreamStore:
    """A store on a NATS server or cluster, shared by any number of processes."""

    makes_streams = True

    def __init__(
        self,
        servers: Sequence[str],
        *,
        options: dict[str, Any] | None = None,
        namespace: str = "perdure",
        shards: int | None = None,
        replicas: int | None = None,
        index: str | os.PathLike[str] | None = None,
        payload_limit: int = PAYLOAD_LIMIT_BYTES,
        key_queue_limit: int = KEY_QUEUE_LIMIT,
        python: str = PYTHON,
        janitor_seconds: float = PERIOD_SECONDS,
    ) -> None:
        self.clock = SystemClock()
        self.clocks_apart = 2 * CLOCK_LIMIT_SECONDS
        self.secret = b""
        self.counters = StoreCounters()
        self.payload_limit = payload_limit
        self.key_queue_limit = key_queue_limit
        self.name = secrets.token_hex(6)
        self.layout = layout = Layout(namespace, shards or SHARDS)
        self.wire = wire = Wire(servers, options, connected=self._reconnected, counters=self.counters)
        wire.stream_of = layout.stream_of
        self._replicas = replicas
        self._shards = shards
        self._open = False
        self._ended = False
        self._opening: asyncio.Task[Any] | None = None
        self._blobs = blobs = Blobs(wire, layout)
        self._journals = journals = Journals(wire, layout, blobs, self.name)
        self._keys = keys = Keys(wire, layout, blobs, journals)
        self._tasks = tasks = Background(wire.limited_log)
        self._writing = Writing()
        self._notices = Notices()
        self.documents = JetStreamDocuments(wire, layout, self._writing, tasks, self._check, self._check_writable)
        self.streams = streams = JetStreamStreams(
            wire, layout, journals, self._writing, self.name, self._check, self._check_writable
        )
        self._finder = Finder(wire, layout, journals, keys, blobs)
        self._rows = Rows(wire, layout, self._finder)
        self._watching = Watching(wire, layout, self._notices, journals, keys, blobs, tasks, streams)
        path = None if index is None else Path(index).expanduser()
        self._projection = Projection(wire, layout, self.clock, self.read_awakeables, path)
        self._deliveries = Deliveries(
            wire,
            layout,
            journals,
            keys,
            blobs,
            self._finder,
            self._watching,
            tasks,
            self.name,
            self.clock,
            python,
        )
        leases = self._deliveries.leases
        self._accepting = Accepting(
            wire,
            layout,
            blobs,
            journals,
            keys,
            leases,
            self._finder,
            self._watching,
            self._writing,
            self.clock,
            key_queue_limit,
        )
        self.commits = Commits(
            wire,
            layout,
            blobs,
            journals,
            keys,
            leases,
            self._accepting,
            self._watching,
            streams,
            self._writing,
            tasks,
            self.name,
            self.clock,
        )
        self._cancelling = Cancelling(
            wire, layout, blobs, journals, keys, self._finder, self.commits, self.name, self.clock, self.counters
        )
        self._deliveries.post = self._accepting.post
        self._accepting.cancel_unbegun = self._cancel_unbegun
        self._purge = Purge(wire, layout, journals, self._deliveries, self.clock)
        self._overdue = Overdue(wire, layout, self.clock)
        self.janitor = Janitor(
            wire, layout, journals, keys, leases, self._projection, self.clock, self._accepting.queue, janitor_seconds
        )
        self._has_janitor = False
        self._rewriter = Rewriter(
            *(wire, layout, journals.apart(), keys, blobs, self._watching, self.documents, self._check_writable)
        )

    # --- open and close -----------------------------------------------------------------------------------------------
    async def open(self) -> None:
        if self._ended:
            raise self._closed()
        self._opening = asyncio.current_task()
        try:
            await self._connect()
        finally:
            self._opening = None
        self._deliveries.begin()
        self._open = True
        self._watching.begin()

    async def _connect(self) -> None:
        """Connect, and check or create the streams. A failure or cancellation leaves nothing open."""
        await self.wire.open()
        try:
            replicas = await prepare(
                self.wire,
                self.layout,
                self._replicas,
                self.clock,
                adopt=self._shards is None,
                make=self.makes_streams,
            )
            self._journals.copies = replicas
            self.secret = await read_secret(self.wire, self.layout, keep=self.makes_streams)
        except BaseException:
            await self.wire.close()
            raise

    async def aclose(self) -> None:
        self._ended = True
        if self._opening is not None:
            await end([self._opening])
        if not self._open:
            return
        self._open = False
        self._watching.close()
        if self.wire.is_up:
            await self._writing.finished(CLOSING_SECONDS)
        try:
            await self._deliveries.close()
            await self._projection.stop()
        finally:
            await self.wire.close()
            self._notices.fail(self._closed())
            self.streams.followers.tell_all()
        await self._projection.aclose()  # what still reads has ended with the connection

    def _closed(self) -> StoreClosed:
        return StoreClosed("jetstream: the store is closed")

    def _check(self) -> None:
        if not self._open:
            raise self._closed()

    def _check_writable(self) -> None:
        """Raise if this store is only read."""

    def _reconnected(self) -> None:
        self._deliveries.reconnected()
        self._watching.missed()
        self.streams.followers.tell_all()

    # --- accepting ----------------------------------------------------------------------------------------------------
    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        self._check()
        check_starts(starts)
        return self._accepting.submit(starts)

    def post(self, message: Message, /) -> asyncio.Future[None]:
        self._check()
        check_message(message)
        return self._accepting.post(message)

    def _cancel_unbegun(self, message: Message) -> None:
        if not self._deliveries.holdings.has(message.to):
            self._tasks.spawn(self._cancelling.settle(message))

    # --- deliveries ---------------------------------------------------------------------------------------------------
    def subscribe(
        self,
        handlers: Collection[str],
        deliver: Callable[[Delivery], None],
        *,
        partitions: Collection[int] | None = None,
        lost: Callable[[str], None] | None = None,
        lease: float = LEASE_SECONDS,
    ) -> Member:
        self._check()
        if partitions is not None and not {*partitions} <= {*range(self.layout.partitions)}:
            raise no_partitions(partitions, self.layout.partitions)
        self._deliveries.every("overdue", LOOK_SECONDS, lambda: self._tasks.spawn(self._overdue.look()))
        self._deliveries.every("clock", CLOCK_SECONDS, lambda: self._tasks.spawn(self._check_clock()))
        member = self._deliveries.join(handlers, deliver, partitions, lost, lease)
        if not self._has_janitor:
            self._has_janitor = True
            self._tasks.spawn(self.janitor.run())
        return member

    async def _check_clock(self) -> None:
        """Log if this machine's clock no longer agrees with the server's."""
        if not self.wire.is_up:
            return
        before = self.clock.machine_now()
        answer = await self.wire.api(f"STREAM.INFO.{self.layout.stream('J', 0)}")
        try:
            check_clock(str(answer.get("ts", "")), before, self.clock.machine_now(), shown(self.wire.servers[0]))
        except StoreUnfit as error:
            self.wire.limited_log("clock", "%s", error)

    async def ready(self) -> None:
        """Wait until the consumers of all handlers served here exist: the first worker of a handler creates them."""
        await self._deliveries.ready()

    def serves(self, handler: str, /) -> bool | None:
        return self._deliveries.holdings.serves(handler)

    def served(self) -> set[str]:
        return self._deliveries.holdings.served()

    # --- commits ------------------------------------------------------------------------------------------------------
    def commit(self, transition: Transition, told: Committed, /) -> None:
        if self._open:
            self.commits.commit(transition, told)
        else:
            asyncio.get_running_loop().call_soon(told, 0, self._closed())

    # --- watching -----------------------------------------------------------------------------------------------------
    async def answer(self, message_id: str, /) -> Answer:
        self._check()
        return await self._watching.answer(message_id)

    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        self._check()
        return self._watching.watch(id)

    def events(self, filter: Filter, /) -> Feed:
        self._check()
        return self._watching.events(filter)

    async def outcome(self, id: str, /) -> Outcome | None:
        self._check()
        return await self._watching.outcome(id)

    # --- reading ------------------------------------------------------------------------------------------------------
    async def journal(self, id: str, /) -> Journal:
        self._check()
        frames, tail = await self._journals.read(id)
        done = bool(frames and starts_in(frames[-1])) and await is_done(self.wire, self.layout, id, tail)
        return Journal(tuple(frames), tail.revision, done)

    async def revision(self, id: str, /) -> int:
        self._check()
        return (await self._journals.tail(id)).revision

    async def start(self, id: str, /) -> Start | None:
        self._check()
        for _ in range(2):  # it may begin between the two reads
            tail = await self._journals.tail(id)
            if tail.has_frames:
                return await self._journals.start(id)
            if tail.facts.kind == "gone":
                return None
            if (found := await self._finder.start(id, tail)) is not None:
                return found[0]
        return None

    async def key(self, name: str, /) -> Key:
        self._check()
        return await self._keys.read(name)

    async def mail(self, id: str, /) -> list[Message]:
        self._check()
        mail = await self._finder.mail(id)
        if mail:
            known = History.of((await self._journals.read(id))[0]).messages
            mail = [message for message in mail if message.id not in known]
        # One that was refused once its invocation had settled is not in the journal, and is acknowledged after that.
        return await self._watching.unanswered(mail)

    async def row(self, id: str, /) -> Row | None:
        self._check()
        for _ in range(2):  # it may begin between the two reads
            tail = await self._journals.tail(id)
            if (row := await self._rows.row(id, tail)) is not None:
                return row
        return None

    async def search(self, filter: Filter, /) -> list[Row]:
        self._check()
        return await self._projection.search(filter)

    async def awakeables(self, filter: AwakeableFilter, /) -> list[Awakeable]:
        self._check()
        return await self._projection.awakeables(filter)

    async def read_awakeables(self, id: str, open: Sequence[tuple[int, int]] | None) -> list[Awakeable]:
        """Read the awakeables of an invocation from its journal, of which these are open."""
        frames, _ = await self._journals.apart().read(id)  # a separate cache: the workers' tails must not be replaced
        history = History.of(frames)
        return [] if history.start is None else made_by(history.start, history, open)

    async def counts(self) -> Counts:
        self._check()
        return await self._projection.counts()

    async def minutes(
        self, since: float, /, *, handler: str | None = None, within: float | None = None
    ) -> list[Minute]:
        self._check()
        return await self._projection.minutes(since, handler, within)

    async def purge(self, before: float, /, *, limit: int, id: str | None = None) -> int:
        self._check()
        if id is None:
            ids = await self._projection.settled(before, limit + PURGE_SPARE)
        else:
            row = await self.row(id)
            ids = [] if row is None or row.status not in SETTLED or row.updated_at > before else [id]
        return await self._writing.work(self._purge.remove(ids, limit))

    async def rewrite(self, rewriting: Rewriting, after: str = "", /) -> Part:
        self._check()
        return await self._writing.work(self._rewriter.part(rewriting, after))
