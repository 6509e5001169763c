"""Reads single rows; `projection` has lists and counts.

A row comes from the headers of the last frame, or from the start while there is none.
"""

from __future__ import annotations

from perdure.core.journal import Status
from perdure.stores.jetstream.journal.journals import Tail
from perdure.stores.jetstream.layout.facts import Facts
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.queue.finding import Finder
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Row


def row_of(facts: Facts, status: Status | None = None) -> Row:
    """Return the row of facts."""
    times = (facts.created_at, facts.at, facts.due)
    return Row(facts.id, facts.handler, status or facts.status, facts.key, *times, facts.tags, facts.wait)


class Rows:
    """Reads the row of one invocation."""

    def __init__(self, wire: Wire, layout: Layout, finder: Finder) -> None:
        self._wire = wire
        self._layout = layout
        self._finder = finder

    # --- rows ---------------------------------------------------------------------------------------------------------
    async def row(self, id: str, tail: Tail) -> Row | None:
        if tail.has_frames:
            return row_of(tail.facts)
        if tail.facts.kind == "gone":
            return None
        found = await self._finder.start(id, tail)
        if found is None:
            return None
        start, is_waiting = found
        is_scheduled = is_waiting and await self._is_scheduled(id, start.key)
        status: Status = "scheduled" if is_scheduled else "pending"
        if tail.facts.kind == "reserved":
            return row_of(tail.facts, status)
        return Row(id, start.handler, status, start.key, start.at, start.at, start.due, start.tags)

    async def _is_scheduled(self, id: str, key: str | None) -> bool:
        subject = self._layout.delayed(id, key)
        return await self._wire.last(self._layout.stream_of(subject), subject) is not None
