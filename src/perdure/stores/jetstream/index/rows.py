"""Single rows, and changes of rows; lists and counts are the `projection`'s.

A row is what the headers of the last frame say, or the start while there is none. Changes come by the server's own
republishing of what it stores.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from msgspec.structs import replace

from perdure.core.journal import Start, Status
from perdure.stores.jetstream.journal.journals import Tail
from perdure.stores.jetstream.layout.layout import EVENTS, Facts, Layout, facts_of, lines_of
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.notices import Notices
from perdure.stores.port import Row

FindStart = Callable[[str, Tail], Coroutine[Any, Any, tuple[Start, bool] | None]]


def row_of(facts: Facts, status: Status | None = None) -> Row:
    """Return the row that facts make."""
    return Row(facts.id, facts.handler, status or facts.status, facts.key, facts.created_at, facts.at, facts.due)


class Rows:
    """Reads the row of one invocation, and tells the changes of all of them."""

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
