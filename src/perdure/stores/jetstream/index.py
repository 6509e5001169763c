"""The index by looking at everything: what the projection of a later step replaces.

A row is what the headers of the last frame say, or the start while there is none. Changes come by the server's own
republishing of what it stores.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from msgspec.structs import replace

from perdure.core.journal import Start, Status
from perdure.core.lifecycle import SETTLED
from perdure.stores.jetstream.journals import Tail
from perdure.stores.jetstream.layout import EVENTS, Facts, Layout, facts_of, lines_of
from perdure.stores.jetstream.wire import BATCH_LIMIT, Stored, Wire
from perdure.stores.notices import Notices
from perdure.stores.store import Counts, Filter, Row, matches

FindStart = Callable[[str, Tail], Coroutine[Any, Any, tuple[Start, bool] | None]]


def row_of(facts: Facts, status: Status | None = None) -> Row:
    """Return the row that facts make."""
    return Row(facts.id, facts.handler, status or facts.status, facts.key, facts.created_at, facts.at, facts.due)


class Scan:
    """Lists invocations by reading the headers of all journals and of all that is queued."""

    def __init__(self, wire: Wire, layout: Layout, notices: Notices) -> None:
        self._wire = wire
        self._layout = layout
        self._notices = notices
        self._listening = False

    # --- rows ---------------------------------------------------------------------------------------------------------
    async def row(self, id: str, tail: Tail, find_start: FindStart) -> Row | None:
        if tail.has_frames:
            return row_of(tail.facts)
        if tail.facts.kind == "gone":
            return None
        found = await find_start(id, tail)
        if found is None:
            return None
        start, put_off = found
        is_scheduled = put_off and await self._is_scheduled(id, start.key)
        status: Status = "scheduled" if is_scheduled else "pending"
        if tail.facts.kind == "reserved":
            return row_of(tail.facts, status)
        return Row(id, start.handler, status, start.key, start.at, start.at, start.due)

    async def _is_scheduled(self, id: str, key: str | None) -> bool:
        subject = self._layout.delayed(id, key)
        return await self._wire.last(self._layout.stream_of(subject), subject) is not None

    async def _rows(self) -> dict[str, Row]:
        found: dict[str, Row] = {}
        for shard in range(self._layout.shards):
            queue, namespace = self._layout.stream("Q", shard), self._layout.namespace
            async for each in self._all(queue, f"{namespace}.q.{shard}.start.>"):
                self._add(found, facts_of(each.headers), "pending")
            async for each in self._all(queue, f"{namespace}.t.{shard}.*.start"):
                self._add(found, facts_of(each.headers), "scheduled")
        for shard in range(self._layout.shards):
            async for each in self._all(self._layout.stream("J", shard), f"{self._layout.namespace}.j.{shard}.>"):
                facts = facts_of(each.headers)
                if facts.kind in ("frame", "closing"):
                    found[facts.id] = row_of(facts)
                elif facts.kind == "gone":
                    found.pop(facts.id, None)
                elif facts.kind == "reserved":
                    now = found.get(facts.id)
                    found[facts.id] = row_of(facts, "pending" if now is None else now.status)
        return found

    def _add(self, found: dict[str, Row], facts: Facts, status: Status) -> None:
        found[facts.id] = row_of(facts, status)

    async def _all(self, stream: str, subject: str) -> AsyncIterator[Stored]:
        sequence = 1
        while stored := await self._wire.batch(stream, subject, sequence, BATCH_LIMIT):
            for each in stored:
                yield each
            sequence = stored[-1].sequence + 1

    async def search(self, filter: Filter) -> list[Row]:
        rows = [row for row in (await self._rows()).values() if matches(row, filter)]
        return heapq.nlargest(filter.limit, rows, key=lambda row: (row.created_at, row.id))

    async def counts(self) -> Counts:
        counts = Counts()
        for row in (await self._rows()).values():
            counts.by_status[row.status] = counts.by_status.get(row.status, 0) + 1
            counts.by_handler[row.handler] = counts.by_handler.get(row.handler, 0) + 1
        return counts

    async def settled(self, before: float) -> AsyncIterator[Row]:
        """Iterate over what has settled by a time."""
        for row in (await self._rows()).values():
            if row.status in SETTLED and row.updated_at <= before:
                yield row

    # --- changes ------------------------------------------------------------------------------------------------------
    def listen(self) -> None:
        """Tell the changes from now on."""
        if not self._listening:
            self._listening = True
            for kind in ("j", "q", "t"):
                self._wire.subscribe(f"{self._layout.namespace}.{EVENTS}.{kind}.>", self._changed)

    def _changed(self, _subject: str, _reply: str, _data: bytes, headers: bytes) -> None:
        facts = facts_of(headers)
        if facts.id and not facts.quiet and facts.kind in ("frame", "start", "reserved") and self._notices.watched:
            self._notices.changed(row_of(facts), self._notices.feeds_made)

    def announce(self, facts: Facts, status: Status) -> None:
        """Tell of a change that the server does not tell of itself."""
        subject = self._layout.told(self._layout.schedule(facts.id, "start"))
        self._wire.publish_with(subject, lines_of(replace(facts, status=status)))

    def missed(self) -> None:
        """Have readers read: changes may have been missed while there was no connection."""
        self._notices.missed()
