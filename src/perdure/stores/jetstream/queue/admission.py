"""The check of a start before a worker gets it: the leader of its journal confirms that there is no journal yet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from perdure.background import Tasks
from perdure.core.journal import Message, Start
from perdure.stores.custody import sent_at
from perdure.stores.jetstream.journal.journals import Journals, Tail
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.ownership.holdings import Holdings, Member
from perdure.stores.jetstream.ownership.leases import DUE, Leases
from perdure.stores.jetstream.queue.finding import Finder
from perdure.stores.jetstream.queue.routing import FAILED_SECONDS, Routing
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Clock, Delivery, Wake

WAITED_SECONDS = 0.25
"""A start that has waited for longer is delivered with its messages, even if another process holds those."""


class Admission:
    """Admits starts."""

    def __init__(
        self,
        wire: Wire,
        layout: Layout,
        journals: Journals,
        leases: Leases,
        holdings: Holdings,
        finder: Finder,
        routing: Routing,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._wire = wire
        self._layout = layout
        self._journals = journals
        self._leases = leases
        self._holdings = holdings
        self._finder = finder
        self._routing = routing
        self._tasks = tasks
        self._clock = clock
        self._is_running = False
        self.is_open = True

    def admit_soon(self) -> None:
        if not self._is_running and self.is_open:
            self._is_running = True
            self._tasks.spawn(self._admit_all())

    async def _admit_all(self) -> None:
        """Read the journals of the starts that were taken, many at a time, and hand the new ones over."""
        try:
            while self._holdings.taken and self.is_open:
                batch = [*self._holdings.taken]
                if waited := [delivery for _, delivery in batch if self._has_waited(delivery)]:
                    await self._park_mail(waited)
                # Last, and without an await after it: a first step may begin on the strength of this read.
                tails = await self._journals.tails([*dict.fromkeys(delivery.id for _, delivery in batch)])
                for _ in batch:
                    member, delivery = self._holdings.taken.popleft()
                    try:
                        self._admit(member, delivery, tails[delivery.id])
                    except Exception as error:  # noqa: BLE001  only this start is deferred
                        self._holdings.not_taken(member)
                        self._routing.defer(delivery, error)
        finally:
            self._is_running = False
            if self._holdings.taken and self.is_open:  # it failed
                asyncio.get_running_loop().call_later(FAILED_SECONDS, self.admit_soon)

    def _has_waited(self, delivery: Delivery) -> bool:
        """Report whether a start may have messages already, as one that was turned away has."""
        start = delivery.item
        assert isinstance(start, Start)
        if start.when_busy != "enqueue":
            return True
        return delivery.attempt > 1 or start.due > start.at or start.at + WAITED_SECONDS < self._clock.now()

    async def _park_mail(self, starts: Sequence[Delivery]) -> None:
        """Park the messages for starts, to be delivered with them: a process that holds them may be dead."""
        partition_of = self._layout.partition
        partitions = sorted({partition_of(start.id) for start in starts})
        have_some = dict(zip(partitions, await asyncio.gather(*map(self._has_mail, partitions)), strict=True))
        await asyncio.gather(*(self._park_mail_of(start) for start in starts if have_some[partition_of(start.id)]))

    async def _has_mail(self, partition: int) -> bool:
        """Report whether there are messages for any invocation of a partition."""
        stream = self._layout.stream("Q", partition)
        for subject in self._layout.all_messages(partition):
            if await self._wire.first(stream, subject) is not None:
                return True
        return False

    async def _park_mail_of(self, delivery: Delivery) -> None:
        mail = await self._finder.mail(delivery.id)
        if not mail:
            return
        parked = self._holdings.unpark(delivery.id)
        here = {each.item.id for each in parked if isinstance(each.item, Message)}
        parked += [Delivery(delivery.id, delivery.handler, each) for each in mail if each.id not in here]
        for each in sorted(parked, key=sent_at):
            self._holdings.offer(each, begun=False)

    def _admit(self, member: Member, delivery: Delivery, tail: Tail) -> None:
        if tail.has_frames or tail.problem:
            # It has begun: the acknowledgement was lost, or this is a second copy. Treat it as a wake.
            self._holdings.not_taken(member)
            wake = Delivery(delivery.id, delivery.handler, Wake(), max(2, delivery.attempt), token=delivery.token)
            self._routing.route_soon(wake, DUE)
        elif tail.facts.kind == "gone":
            self._holdings.not_taken(member)
            self._leases.acknowledge(delivery.token)
        elif asyncio.get_running_loop().time() - delivery.token.at > self._leases.lease:
            # This process stalled. Another may have the start by now, and have begun since the journal was read.
            self._holdings.not_taken(member)
        else:
            delivery.fresh = True
            if tail.sequence:
                self._journals.note(delivery.id, tail)
            self._holdings.hand_taken(member, delivery)
