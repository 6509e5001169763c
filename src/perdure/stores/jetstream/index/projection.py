"""The index: a table that catches up with the streams at each query.

All columns of the index are in the headers of frames. So a consumer reads the headers of each journal stream from where
the table ends, and starts that have not begun are read from the queue. Nothing is read between queries, and a query
includes everything that was written before it.

A purged invocation leaves a tombstone that the server keeps for some minutes only. A table that was not queried for
longer is compared with the subjects that exist.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.errors import StoreClosed, StoreError, StoreUnavailable
from perdure.stores.awakeables import Awakeable, AwakeableFilter
from perdure.stores.jetstream.index.table import Position, Table, Told, Unread
from perdure.stores.jetstream.layout.facts import facts_of
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.wire.protocol import status_of
from perdure.stores.jetstream.wire.reads import BATCH_LIMIT
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Clock, Counts, Filter, Minute, Row

PULL_BATCH = 2_000
"""Headers that one pull requests; they are written to the table together."""
PULL_SECONDS = 0.1
"""How long an empty consumer may wait for messages: it may lag behind its stream."""
ANSWER_SECONDS = 5.0
"""How long the server may take to answer a pull."""
PATIENCE_SECONDS = 5.0
"""How long reading may make no progress before the table is used as it is."""
BEHIND_SECONDS = 0.005
"""How soon a consumer that lags behind its stream is pulled again."""
STOP_SECONDS = 1.0
"""How long stopping waits for an answer that is being read."""
COMPARE_SECONDS = 60.0
"""After this time without a query, tombstones may have expired unread: it is less than ten of the shortest leases."""
CONSUMER_SECONDS = 300
"""How long the server keeps a consumer that is not pulled."""

STATUS_HEARTBEAT = 100
STATUS_NO_MORE = (404, 408)

READ_TOGETHER = 50
"""Journals that are read concurrently for their awakeables."""

T = TypeVar("T")

ReadAwakeables = Callable[[str, "Sequence[tuple[int, int]] | None"], Awaitable["list[Awakeable]"]]
"""Reads the awakeables of an invocation from its journal, of which these are open, by generation and command."""

log = logging.getLogger("perdure.jetstream")


class Lag(Struct, frozen=True):
    """How many messages of journals the last answer lacked at least; none if it is complete."""

    messages: int = 0
    complete: bool = True


class _Partition(Struct):
    number: int
    journals: str
    queue: str
    read_to: int = 0  # the last sequence of the journals that is in the table
    queue_read_to: int = 0
    wanted: int = 0  # the last sequence of the journals
    consumer: str | None = None
    delivered: int = 0  # messages that came from this consumer


class Projection:
    """Lists and counts invocations. `path` is the file of the table; None: a temporary file."""

    def __init__(
        self, wire: Wire, layout: Layout, clock: Clock, read: ReadAwakeables, path: Path | None = None
    ) -> None:
        self._wire = wire
        self._read_awakeables = read
        self._layout = layout
        self._clock = clock
        self._path = path
        self._table: Table | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="perdure-index")
        self._lock = asyncio.Lock()
        self._asked = 0
        self._answered = 0
        self._closed = False
        self._compared_at = -1  # the number of reconnects at the last check that the table is not ahead of the streams
        self._partitions: list[_Partition] = []
        self.lag = Lag()

    async def stop(self) -> None:
        """Take no more questions, and delete the consumers, before the connection is closed."""
        self._closed = True
        with contextlib.suppress(TimeoutError):  # without an answer of the server, reading never ends
            async with asyncio.timeout(STOP_SECONDS), self._lock:
                pass
        for partition in self._partitions:
            self._drop_consumer(partition)

    async def aclose(self) -> None:
        """Delete the consumers and close the table."""
        if not self._closed:
            await self.stop()
        async with self._lock:
            table, self._table = self._table, None
            if table is not None:
                await self._in_thread(table.close)
            self._thread.shutdown(wait=False)

    def _check(self) -> None:
        if self._closed:
            raise StoreClosed("jetstream: the store is closed")

    # --- answers ------------------------------------------------------------------------------------------------------
    async def search(self, filter: Filter) -> list[Row]:
        """List the invocations that match a filter, newest first."""
        return await self._ask(lambda table: table.search(filter))

    async def counts(self) -> Counts:
        """Count invocations by status and by handler."""
        counts = await self._ask(Table.counts)
        return replace(counts, is_current=self.lag.complete, behind=self.lag.messages)

    async def minutes(self, since: float, handler: str | None, within: float | None) -> list[Minute]:
        """Count what ended since a time, by minute, handler and status."""
        return await self._ask(lambda table: table.minutes(since, handler, within))

    async def awakeables(self, filter: AwakeableFilter) -> list[Awakeable]:
        """List the awakeables that match a filter, oldest first.

        The headers of frames tell which are open. What people are told of them is in the journals, each of which is
        read once after it opened some.
        """
        after, only_open = "", filter.is_open is True
        while True:
            unread = await self._ask(lambda table, after=after: table.unread(READ_TOGETHER, after, only_open=only_open))
            if not unread:
                break
            found = await asyncio.gather(*map(self._awakeables_of, unread))
            await self._ask(lambda table, found=found: table.note_awakeables(found))
            after = unread[-1].id
        return await self._ask(lambda table: table.awakeables(filter))

    async def _awakeables_of(self, unread: Unread) -> tuple[Unread, list[Awakeable]]:
        try:
            return unread, await self._read_awakeables(unread.id, unread.open)
        except StoreUnavailable:
            raise
        except StoreError as error:
            log.warning("the awakeables of invocation %s are not listed: %s", unread.id, error)
            return unread, []

    async def settled(self, before: float, limit: int) -> list[str]:
        """Return the ids of invocations that settled before a time, oldest first."""
        return await self._ask(lambda table: table.settled(before, limit))

    async def unsettled(self, partition: int, before: float, limit: int, after: str) -> list[str]:
        """Return the ids of unsettled invocations of a partition that have not changed since `before`, in order."""
        return await self._ask(lambda table: table.unsettled(partition, before, limit, after))

    async def waited_for(self, limit: int, after: str) -> list[str]:
        """Return the keys for which invocations wait, in order."""
        return await self._ask(lambda table: table.waited_for(limit, after))

    async def rebuild(self) -> None:
        """Forget the table, and read everything again."""
        async with self._lock:
            self._check()
            if self._table is not None:
                await self._in_thread(self._table.clear)
        await self.refresh()

    async def _ask(self, read: Callable[[Table], T]) -> T:
        await self.refresh()
        table, now = self._table, self._clock.now()
        assert table is not None

        def promote_and_read() -> T:
            table.promote(now)
            return read(table)

        return await self._in_thread(promote_and_read)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # --- catching up --------------------------------------------------------------------------------------------------
    async def refresh(self) -> None:
        """Catch up with the streams. Callers that arrive while this is in progress share the next run.

        Without a server the table stays as it is, and `lag` tells by how much; `StoreUnavailable` if there is no table.
        """
        self._asked += 1
        mine = self._asked
        async with self._lock:
            self._check()
            if self._answered < mine:
                covered = self._asked
                await self._catch_up()
                self._answered = covered

    async def _catch_up(self) -> None:
        try:
            table = self._table or await self._open()
            positions = await self._in_thread(table.positions)
            if await self._is_ahead(positions):
                log.warning(
                    "the streams end before the index does, as after restoring an older copy: rebuilding the index"
                )
                await self._in_thread(table.clear)
                positions = {}
            following = (self._follow(each, table, positions.get(each.number, Position())) for each in self._partitions)
            for error in await asyncio.gather(*following, return_exceptions=True):  # all of them have ended then
                if error is not None:
                    raise error
            self.lag = Lag()
        except StoreUnavailable as error:
            if self._table is None:
                raise
            behind = sum(max(0, partition.wanted - partition.read_to) for partition in self._partitions)
            self.lag = Lag(behind, complete=False)
            log.warning("the index lacks at least %d messages: %s", behind, error)

    async def _open(self) -> Table:
        layout = self._layout
        partitions = [
            _Partition(each, layout.stream("J", each), layout.stream("Q", each)) for each in range(layout.partitions)
        ]
        answer = await self._wire.api(f"STREAM.INFO.{partitions[0].journals}")
        _raise_error(answer, partitions[0].journals)
        identity = f"{layout.namespace} {layout.partitions} {answer['created']}"
        self._partitions = partitions
        table = self._table = await self._in_thread(lambda: Table(self._path, identity))
        return table

    async def _is_ahead(self, positions: dict[int, Position]) -> bool:
        """Report whether the table is ahead of the streams: a server may have lost writes, or be an older copy."""
        if self._compared_at == self._wire.reconnects:  # a server loses writes only when it restarts
            return False
        for partition in self._partitions:
            position = positions.get(partition.number, Position())
            if position.journal and await self._last_sequence(partition.journals) < position.journal:
                return True
        self._compared_at = self._wire.reconnects
        return False

    async def _follow(self, partition: _Partition, table: Table, position: Position) -> None:
        if position.journal != partition.read_to:  # another process advanced it, or it was cleared
            self._drop_consumer(partition)
        partition.read_to, partition.queue_read_to = position.journal, position.queue
        began = self._clock.now()
        # The queue first: a start that leaves it meanwhile is in its journal, which is read next.
        last = await self._last_sequence(partition.queue)
        if last > partition.queue_read_to:
            await self._read_queue(partition, table)
            partition.queue_read_to = last
        partition.wanted = await self._last_sequence(partition.journals)
        await self._read_journals(partition, table)
        if position.looked_at and began > position.looked_at + COMPARE_SECONDS:
            await self._compare(partition, table, began)
        reached = Position(partition.read_to, partition.queue_read_to, began)
        await self._in_thread(lambda: table.note(partition.number, reached))

    async def _last_sequence(self, stream: str) -> int:
        answer = await self._wire.api(f"STREAM.INFO.{stream}")
        _raise_error(answer, stream)
        return int(answer["state"]["last_seq"])

    async def _read_queue(self, partition: _Partition, table: Table) -> None:
        namespace, number = self._layout.namespace, partition.number
        for subject in (f"{namespace}.q.{number}.start.>", f"{namespace}.t.{number}.*.start"):
            sequence = partition.queue_read_to + 1
            while found := await self._wire.batch(partition.queue, subject, sequence, BATCH_LIMIT):
                facts = [facts_of(each.headers) for each in found]
                queued = [(self._layout.partition(each.id), each) for each in facts]
                now = self._clock.now()
                await self._in_thread(lambda queued=queued, now=now: table.add_queued(queued, now))
                sequence = found[-1].sequence + 1

    async def _read_journals(self, partition: _Partition, table: Table) -> None:
        """Read headers up to `partition.wanted`."""
        progress = time.monotonic()
        while partition.read_to < partition.wanted:
            self._check()
            if partition.consumer is None:
                await self._make_consumer(partition)
            if found := await self._pull(partition):
                now = self._clock.now()
                await self._in_thread(lambda found=found, now=now: table.add_told(partition.number, found, now))
                partition.read_to = found[-1].sequence
                progress = time.monotonic()
            elif await self._has_all(partition):
                partition.read_to = partition.wanted
            elif time.monotonic() > progress + PATIENCE_SECONDS:
                raise StoreUnavailable(f"jetstream: {partition.journals} delivers nothing")
            else:
                await asyncio.sleep(BEHIND_SECONDS)

    async def _has_all(self, partition: _Partition) -> bool:
        """Report whether everything up to `partition.wanted` was read, or removed meanwhile."""
        last = await self._wire.last(partition.journals, f"{self._layout.namespace}.j.{partition.number}.>")
        return last is None or last.sequence <= partition.read_to

    # --- consumers ----------------------------------------------------------------------------------------------------
    async def _make_consumer(self, partition: _Partition) -> None:
        name = f"index-{secrets.token_hex(8)}"
        config = {
            "name": name,
            "description": "perdure: index",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": partition.read_to + 1,
            "ack_policy": "none",
            "replay_policy": "instant",
            "headers_only": True,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": CONSUMER_SECONDS * 10**9,
        }
        body = {"stream_name": partition.journals, "config": config}
        _raise_error(await self._wire.api(f"CONSUMER.CREATE.{partition.journals}.{name}", body), partition.journals)
        partition.consumer, partition.delivered = name, 0

    def _drop_consumer(self, partition: _Partition) -> None:
        name, partition.consumer = partition.consumer, None
        if name is not None:
            self._wire.publish(f"$JS.API.CONSUMER.DELETE.{partition.journals}.{name}")

    async def _pull(self, partition: _Partition) -> list[Told]:
        """Return the next headers, in order and without gaps; empty if there are none now, or the consumer is lost."""
        found: list[Told] = []
        ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def end(*, well: bool) -> None:
            if not ended.done():
                ended.set_result(well)

        def arrived(_subject: str, reply: str, _data: bytes, headers: bytes) -> None:
            if ended.done():
                return
            if status := status_of(headers):
                if status != STATUS_HEARTBEAT:
                    end(well=status in STATUS_NO_MORE)
                return
            sequence, number = _sequences_of(reply)
            if number != partition.delivered + 1:  # a gap
                end(well=False)
                return
            partition.delivered = number
            found.append(Told(sequence, facts_of(headers)))
            if len(found) == PULL_BATCH:
                end(well=True)

        inbox = self._wire.new_inbox()
        sid = self._wire.subscribe(inbox, arrived)
        body = msgspec.json.encode({"batch": PULL_BATCH, "no_wait": True, "expires": int(PULL_SECONDS * 1e9)})
        self._wire.publish(f"$JS.API.CONSUMER.MSG.NEXT.{partition.journals}.{partition.consumer}", body, inbox)
        try:
            well = await asyncio.wait_for(ended, ANSWER_SECONDS)
        except TimeoutError:
            well = False
        finally:
            self._wire.unsubscribe(sid)
            self._wire.forget(sid)
        if not well:
            self._drop_consumer(partition)
        return found

    # --- unnoticed purges ---------------------------------------------------------------------------------------------
    async def _compare(self, partition: _Partition, table: Table, began: float) -> None:
        """Remove the rows of invocations that no stream holds."""
        namespace, number = self._layout.namespace, partition.number
        there: set[str] = set()
        for stream, subjects, position in (
            (partition.queue, f"{namespace}.q.{number}.start.>", 5),
            (partition.queue, f"{namespace}.t.{number}.>", 3),
            (partition.journals, f"{namespace}.j.{number}.>", 3),
        ):
            async for subject in self.subjects(stream, subjects):
                there.add(subject.split(".")[position])
        read_to = partition.read_to
        removed = await self._in_thread(lambda: table.keep(number, there, read_to, began - COMPARE_SECONDS))
        if removed:
            log.info("removed %d purged invocations from the index", removed)

    async def subjects(self, stream: str, filter: str) -> AsyncGenerator[str, None]:
        """Iterate over the subjects that match and have messages, many at a time."""
        offset = 0
        while True:
            answer = await self._wire.api(f"STREAM.INFO.{stream}", {"subjects_filter": filter, "offset": offset})
            _raise_error(answer, stream)
            found: dict[str, int] = answer["state"].get("subjects") or {}
            for subject in found:
                yield subject
            offset += len(found)
            if not found or offset >= int(answer.get("total", 0)):
                return


def _sequences_of(reply: str) -> tuple[int, int]:
    """Return the stream sequence and the consumer sequence of a delivery, from its reply subject."""
    parts = reply.split(".")
    at = 5 if len(parts) < 11 else 7  # a domain and an account may precede them
    return int(parts[at]), int(parts[at + 1])


def _raise_error(answer: dict[str, Any], stream: str) -> None:
    if (error := answer.get("error")) is not None:
        kind = StoreUnavailable if error.get("code") == 503 else StoreError
        raise kind(f"jetstream: {stream}: {error.get('description')} ({error.get('err_code')})")
