"""Finds what is queued for an invocation: its start, before it begins, and its messages."""

from __future__ import annotations

from perdure.core.journal import Message, Start, decode_message, decode_start
from perdure.errors import NewerJournal, StoreDamaged
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.journals import Journals, Tail
from perdure.stores.jetstream.keys.keys import Keys
from perdure.stores.jetstream.layout.facts import facts_of
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.wire.wire import Wire


class Finder:
    """Finds queued starts and messages."""

    def __init__(self, wire: Wire, layout: Layout, journals: Journals, keys: Keys, blobs: Blobs) -> None:
        self._wire = wire
        self._layout = layout
        self._journals = journals
        self._keys = keys
        self._blobs = blobs

    async def start(self, id: str, tail: Tail) -> tuple[Start, bool] | None:
        """Return the start of an invocation that has not begun, and whether it still waits for its time or key."""
        if tail.facts.kind == "reserved":
            start = await self._journals.start(id)
            if start is None:
                return None
            subject = self._layout.delayed(id, start.key)
            if await self._wire.last(self._layout.stream_of(subject), subject) is not None:
                return start, True
            return start, start.key is not None and await self._keys.is_waiting(start.key, id)
        for subject in (self._layout.delayed(id, None), self._layout.any_start(id), self._layout.any_start(id)):
            stored = await self._wire.last(self._layout.stream("Q", self._layout.partition(id)), subject)
            if stored is not None:
                data = await self._blobs.load(id, facts_of(stored.headers), stored.data)
                return decode_start(data), subject.endswith(".start")
        return None

    async def mail(self, id: str) -> list[Message]:
        """Read the unacknowledged messages for an invocation, oldest first."""
        stream = self._layout.stream("Q", self._layout.partition(id))
        # One after the other: a message that is passed on meanwhile is put there first, and then taken from here.
        here = await self._wire.all(stream, self._layout.messages(id))
        passed_on = await self._wire.all(stream, self._layout.all_passed_on(id))
        found: dict[str, Message] = {}
        for each in (*here, *passed_on):
            facts = facts_of(each.headers)
            if facts.kind == "message":
                try:
                    message = decode_message(await self._blobs.load(id, facts, each.data))
                except (NewerJournal, StoreDamaged) as error:
                    self._wire.limited_log(
                        ("mail", each.subject), "skipping the message on %s: %s", each.subject, error
                    )
                    continue
                found[message.id] = message
        return sorted(found.values(), key=lambda each: each.at)
