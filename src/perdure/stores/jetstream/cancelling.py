"""Cancels an invocation that has not begun, without a worker: withdraws its start, then writes its only frame.

An invocation begins through a message: its queued start, a schedule, or a position in the queue of its key. If that
message was never delivered, it is removed, so that no worker can begin the invocation; then a frame settles it as
cancelled. If it may have been delivered, the cancel message waits for the worker that has the start.

The cancel message and a reservation of the id are stored before anything is removed. If the process dies in between,
the id is left without a queued start: the janitor queues it again, and the cancel message then ends it.
"""

from __future__ import annotations

import asyncio
import contextlib

from perdure.core.journal import Message, Start, encode_start
from perdure.core.unbegun import ended_unbegun
from perdure.counters import StoreCounters
from perdure.errors import Conflict
from perdure.stores.jetstream.commits import Commits
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.journals import Journals
from perdure.stores.jetstream.keys.keys import Keys
from perdure.stores.jetstream.layout.facts import facts_of_start, lines_of
from perdure.stores.jetstream.layout.settings import consumer_of_starts
from perdure.stores.jetstream.layout.subjects import Layout, token
from perdure.stores.jetstream.queue.finding import Finder
from perdure.stores.jetstream.wire.protocol import WrongSequence
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Clock, Transition


class Cancelling:
    """Settles invocations that have not begun."""

    def __init__(
        self,
        wire: Wire,
        layout: Layout,
        blobs: Blobs,
        journals: Journals,
        keys: Keys,
        finder: Finder,
        commits: Commits,
        name: str,
        clock: Clock,
        counters: StoreCounters,
    ) -> None:
        self._wire = wire
        self._layout = layout
        self._blobs = blobs
        self._journals = journals
        self._keys = keys
        self._finder = finder
        self._commits = commits
        self._name = name
        self._clock = clock
        self._counters = counters

    async def settle(self, message: Message) -> None:
        """Settle the invocation that a queued message cancels, unless its body may have begun."""
        id = message.to
        tail = await self._journals.tail(id)
        if tail.has_frames or tail.problem or tail.facts.kind == "gone":
            return
        found = await self._finder.start(id, tail)
        if found is None:
            return
        start = found[0]
        if not tail.sequence:
            await self._reserve(start)
        if not await self._withdraw(start):
            return
        frame, effects, status = ended_unbegun(start, message, self._name, self._clock.now())
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def told(revision: int, error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(revision)
            else:
                future.set_exception(error)

        self._commits.commit(Transition(id, 0, frame, effects, status, False, ()), told)
        with contextlib.suppress(Conflict):
            await future
            self._counters.ended.add((status, start.handler))
        for subject in (
            self._layout.message(id, message.id),
            self._layout.passed_on_to_any(id, token(message.id)),
        ):
            await self._wire.remove(self._layout.stream("Q", self._layout.partition(id)), subject)

    async def _reserve(self, start: Start) -> None:
        """Store the start on the subject of its journal while it is in no queue."""
        facts = facts_of_start(start, "pending", self._clock.now())
        facts, data = await self._blobs.save(start.id, facts, encode_start(start))
        with contextlib.suppress(WrongSequence):
            await self._wire.store(self._layout.journal(start.id), data, expected=0, headers=lines_of(facts))

    async def _withdraw(self, start: Start) -> bool:
        """Remove the message that would begin an invocation; return false if it may have been delivered."""
        scheduled = self._layout.delayed(start.id, start.key)
        withdrawn = await self._wire.purge(self._layout.stream_of(scheduled), scheduled) > 0
        if start.key is not None:
            moves = start.when_busy == "enqueue" or not await self._keys.is_waiting(start.key, start.id)
            due = self._layout.nudge(start.key, token(start.id))
            if moves and await self._wire.last(self._layout.stream_of(due), due) is not None:
                return False  # a worker may be moving it into the queue of its key
            if await self._keys.is_waiting(start.key, start.id):
                if not await self._keys.withdraw(start.key, start.id):
                    return False
                withdrawn = True
        return await self._withdraw_queued(start, withdrawn)

    async def _withdraw_queued(self, start: Start, withdrawn: bool) -> bool:
        stream = self._layout.stream("Q", self._layout.partition(start.id))
        stored = await self._wire.last(stream, self._layout.start(start.handler, start.id))
        if stored is None:
            return withdrawn
        if await self._delivered_to(stream, start.handler) >= stored.sequence:
            return False
        await self._wire.delete(stream, stored.sequence)
        if await self._delivered_to(stream, start.handler) < stored.sequence:
            return True
        with contextlib.suppress(WrongSequence):  # the consumer passed it in between: it may have been delivered
            headers = lines_of(facts_of_start(start, "pending", self._clock.now(), kind="start"))
            await self._wire.store(stored.subject, stored.data, expected=0, headers=headers)
        return False

    async def _delivered_to(self, stream: str, handler: str) -> int:
        """Return the sequence up to which the consumer of a handler has delivered starts; 0 if there is none."""
        name, _ = consumer_of_starts(self._layout, handler, 0)
        answer = await self._wire.api(f"CONSUMER.INFO.{stream}.{name}")
        return int(answer.get("delivered", {}).get("stream_seq", 0))
