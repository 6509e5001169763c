"""Purges invocations: marks the journal as closing, checks that nothing is queued for it, then removes everything.

The last message of a purged journal is a tombstone, kept for as long as a late copy of its start may arrive. A post to
a closing invocation waits until it is either open again or gone (`Accepting.post`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace

from perdure.core.history import History
from perdure.core.journal import Claimed
from perdure.core.lifecycle import SETTLED
from perdure.errors import StoreClosed, StoreError, StoreUnavailable
from perdure.stores.jetstream.journal.done import is_done, starts_in
from perdure.stores.jetstream.journal.journals import Journals, Tail
from perdure.stores.jetstream.journal.packs import PACK_FRAMES
from perdure.stores.jetstream.layout.facts import ROLLUP, Facts, lines_of
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.queue.deliveries import Deliveries
from perdure.stores.jetstream.wire.protocol import WrongSequence
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Clock

GONE_LEASES = 10
"""For how many leases the tombstone of a purged invocation is kept."""
IN_FLIGHT_SECONDS = 0.02
"""How long the server may take to apply an acknowledgement."""
TOGETHER = 20
"""Invocations that are purged concurrently."""


class Purge:
    def __init__(self, wire: Wire, layout: Layout, journals: Journals, deliveries: Deliveries, clock: Clock) -> None:
        self._wire = wire
        self._layout = layout
        self._journals = journals
        self._deliveries = deliveries
        self._clock = clock

    async def remove(self, ids: Sequence[str], limit: int) -> int:
        """Remove settled invocations, in this order, at most `limit`; return how many."""
        removed, at = 0, 0
        while removed < limit and at < len(ids):
            some = ids[at : at + min(TOGETHER, limit - removed)]
            at += len(some)
            removed += sum(await asyncio.gather(*map(self._remove_alone, some)))
        return removed

    async def _remove_alone(self, id: str) -> bool:
        """Remove one invocation. A failure stops no other."""
        try:
            return await self._remove(id)
        except (StoreClosed, StoreUnavailable):
            raise
        except StoreError as error:
            self._wire.limited_log(("purge", id), "invocation %s is not purged: %s", id, error)
        except Exception as error:  # noqa: BLE001  it stays, and the purge of others goes on
            self._wire.limited_log(("purge", id), "invocation %s is not purged: %s", id, error, exc_info=error)
        return False

    async def _remove(self, id: str) -> bool:
        tail = await self._journals.tail(id)
        if tail.facts.status not in SETTLED or not tail.has_frames or self._deliveries.holdings.has(id):
            return False
        if await self._is_needed(id) or await self._may_be_started_again(id, tail):
            return False
        closing = await self._close(id, tail)
        if closing is None:
            return False
        if await self._is_needed(id):
            await self._wire.delete(self._layout.stream("J", self._layout.partition(id)), closing)
            return False
        return await self._finish(id, tail, closing)

    async def _is_needed(self, id: str) -> bool:
        """Report whether a message, start or lease is queued for an invocation.

        If the owner died before it performed the effects of the last frame, the lease makes another worker do so.
        """
        layout = self._layout
        stream = layout.stream("Q", layout.partition(id))
        for subject in (layout.messages(id), layout.all_passed_on(id), layout.any_start(id), layout.leases(id)):
            if await self._wire.last(stream, subject) is not None:
                await asyncio.sleep(IN_FLIGHT_SECONDS)
                if await self._wire.last(stream, subject) is not None:
                    return True
        return False

    async def _may_be_started_again(self, id: str, tail: Tail) -> bool:
        """Report whether the last frame of its parent or sender starts it, and that frame's effects may be redone."""
        parent = tail.facts.parent
        if parent is None:
            return False
        frame = await self._journals.last_frame(parent)
        if frame is not None and any(isinstance(each, Claimed) for each in frame.entries):
            frame = History.of((await self._journals.read(parent))[0]).last  # a claim redoes the frame before it
        if id not in starts_in(frame):
            return False
        return not await is_done(self._wire, self._layout, parent, await self._journals.tail(parent))

    async def _close(self, id: str, tail: Tail) -> int | None:
        if tail.facts.kind == "closing":
            return tail.sequence
        facts = replace(tail.facts, kind="closing", quiet=True, revision=0)
        try:
            return await self._wire.store(
                self._layout.journal(id), b"", expected=tail.sequence, headers=lines_of(facts)
            )
        except WrongSequence:
            return None

    async def _finish(self, id: str, tail: Tail, closing: int) -> bool:
        ttl = max(1, int(GONE_LEASES * self._deliveries.leases.lease))
        headers = b"%sNats-TTL: %ds\r\n" % (ROLLUP, ttl)
        facts = Facts(id, tail.facts.handler, kind="gone", at=self._clock.now(), quiet=True)
        try:
            await self._wire.store(self._layout.journal(id), b"", expected=closing, headers=headers + lines_of(facts))
        except WrongSequence:
            return False
        self._journals.forget(id)
        await self._wire.purge(self._layout.stream("Q", self._layout.partition(id)), self._layout.schedules(id))
        # A process may have died between writing a segment and the frame that names it: then `has_blobs` is not set.
        stream, blobs = self._layout.stream("B", self._layout.partition(id)), self._layout.blobs(id)
        may_have_some = tail.facts.has_blobs or tail.facts.number >= PACK_FRAMES
        if may_have_some or await self._wire.last(stream, self._layout.items(id, None)) is not None:
            await self._wire.purge(stream, blobs)
        return True
