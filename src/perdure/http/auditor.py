"""Writes the audit: what was asked while a piece was being written is the next one."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta

from perdure.background import Tasks, log_error
from perdure.errors import PerdureError
from perdure.operations.audit import RETENTION_DAYS, Entry, append, remove_before
from perdure.operations.port import Operations

CARE_SECONDS = 3600.0
"""How often it is looked whether pieces of the audit are too old."""
PATIENCE_SECONDS = 5.0
"""How long an answer waits until it is in the audit. What it tells has been done before."""

log = logging.getLogger("perdure.http")


class Auditor:
    """Makes entries durable, in the order in which they come."""

    def __init__(self, operations: Operations, retention_days: float = RETENTION_DAYS) -> None:
        self._operations = operations
        self._retention = timedelta(days=retention_days)
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._cared_at = -CARE_SECONDS
        self._tasks = Tasks(log)

    async def record(self, entry: Entry) -> None:
        """Return when an entry is durable, or cannot be for now, which is logged. It is written later then."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, written))
        if self._writing is None or self._writing.done():
            self._writing = self._tasks.spawn(self._write(), name="writing the audit")
        await asyncio.wait([written], timeout=PATIENCE_SECONDS)

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await append(self._operations, [entry for entry, _ in batch])
            except Exception as error:  # noqa: BLE001  what was asked has been done, and is told all the same
                for entry, _ in batch:
                    log.error("not in the audit: %s", entry)
                if isinstance(error, PerdureError):
                    log.error("the audit cannot be written: %s", error)
                else:
                    log_error(log, "the audit cannot be written", error=error)
            for _, written in batch:
                if not written.done():
                    written.set_result(None)
        if time.monotonic() > self._cared_at + CARE_SECONDS:
            self._cared_at = time.monotonic()
            removed = await remove_before(self._operations, datetime.now(UTC) - self._retention)
            if removed:
                log.info("the audit: removed %d pieces that are too old", removed)

    async def aclose(self) -> None:
        """Write what waits, and end."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=PATIENCE_SECONDS)
        await self._tasks.cancel()
