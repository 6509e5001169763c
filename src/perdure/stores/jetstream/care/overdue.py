"""Sets schedules again that the server failed to fire.

A server whose disk is full when a schedule is due cannot store the scheduled message, and does not retry until it is
restarted: the invocation would never be woken. So a store with workers reads the schedules, a page at a time, and sets
those again that are long overdue. The guard makes sure that the schedule still exists.
"""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime

from perdure.errors import StoreError, StoreFull
from perdure.stores.clock import SystemClock
from perdure.stores.jetstream.layout.facts import FACTS
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.wire.checks import CLOCK_LIMIT_SECONDS
from perdure.stores.jetstream.wire.protocol import Stored, WrongSequence
from perdure.stores.jetstream.wire.reads import BATCH_LIMIT
from perdure.stores.jetstream.wire.wire import Wire

OVERDUE_SECONDS = CLOCK_LIMIT_SECONDS
"""How late a schedule must be: more than clocks may differ."""
LOOK_SECONDS = 10.0
"""How often a page of each partition's schedules is read."""

_KEPT = (b"Nats-Schedule: ", b"Nats-Schedule-Target: ", FACTS)

log = logging.getLogger("perdure.jetstream")


class Overdue:
    """Finds overdue schedules, and sets them again."""

    def __init__(self, wire: Wire, layout: Layout, clock: SystemClock) -> None:
        self._wire = wire
        self._layout = layout
        self._clock = clock
        self._looking = False
        self._next: dict[int, int] = {}  # by partition, the sequence from which the next page is read

    async def look(self) -> None:
        """Read one page of each partition, and set its overdue schedules again."""
        if self._looking or not self._wire.is_up:
            return
        self._looking = True
        try:
            for partition in range(self._layout.partitions):
                await self._look_at(partition)
        finally:
            self._looking = False

    async def _look_at(self, partition: int) -> None:
        stream = self._layout.stream("Q", partition)
        found = await self._wire.batch(stream, self._layout.all_schedules(partition), self._next.get(partition, 1))
        self._next[partition] = found[-1].sequence + 1 if len(found) == BATCH_LIMIT else 1
        late = self._clock.machine_now() - OVERDUE_SECONDS
        missed = [each for each in found if _due(each) < late]
        again = 0
        for each in missed:
            with contextlib.suppress(WrongSequence):  # it has fired meanwhile, or was replaced
                try:
                    await self._set_again(each)
                except StoreFull:
                    return
                except StoreError as error:
                    log.warning("the overdue schedule %s cannot be set again: %s", each.subject, error)
                    continue
                again += 1
        if again:
            log.warning(
                "%s: %d overdue schedules were set again: the server may have been full when they were due",
                stream,
                again,
            )

    async def _set_again(self, stored: Stored) -> None:
        headers = b"".join(b"%s%s\r\n" % (name, value) for name in _KEPT if (value := stored.header(name)) is not None)
        await self._wire.store(stored.subject, stored.data, expected=stored.sequence, headers=headers)


def _due(stored: Stored) -> float:
    at = stored.header(_KEPT[0])
    try:
        return float("inf") if at is None else datetime.fromisoformat(at.removeprefix(b"@at ").decode()).timestamp()
    except ValueError:
        return float("inf")  # no schedule of this store
