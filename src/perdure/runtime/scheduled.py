"""Where schedules are kept, and what a sweep must leave alone because of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from perdure.core.schedule import Record, decode_record
from perdure.stores.documents import Document, whole
from perdure.stores.port import Store

SCHEDULES = "perdure.schedules"
"""The collection of `core.schedule.Record` by name, as JSON."""


def scan_schedules(store: Store) -> AsyncGenerator[Document, None]:
    """Read all schedules, as documents."""
    return whole(store.documents.scan, SCHEDULES)


def read_record(data: bytes) -> Record | None:
    """Decode a schedule; None if this release cannot read it."""
    try:
        return decode_record(data)
    except msgspec.MsgspecError:
        return None


async def started_since(store: Store) -> float:
    """Return since when runs may have been started that their schedules still take for unstarted; else infinity.

    One of them may have ended already. Were it purged before its schedule is told, it would be started again.
    """
    earliest = float("inf")
    async for each in scan_schedules(store):
        record = read_record(each.value)
        if record is not None and record.starting:
            earliest = min(earliest, record.starting_since)
    return earliest - store.clocks_apart
