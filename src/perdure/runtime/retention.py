"""Purges settled invocations after their retention: periodic sweeps, in small pieces.

The store decides what may go (see `Store.purge`); this module decides when, and how much at a time.
"""

from __future__ import annotations

import asyncio
import logging

from perdure.background import end
from perdure.errors import StoreClosed, StoreError
from perdure.runtime.scheduled import started_since
from perdure.stores.port import Store

RETENTION_SECONDS = 7 * 86_400.0
"""How long a settled invocation is kept, unless `connect` is told otherwise."""

SWEEP_PERIOD_SECONDS = 60.0
"""How long after a sweep the next begins; a retention shorter than this is its own period."""

SWEEP_PERIOD_LEAST_SECONDS = 0.1

PURGE_LIMIT = 200
"""Invocations that are removed in one piece. A commit waits for one piece at most."""

SWEEP_SHARE = 0.5
"""The largest share of the time in which a sweep keeps the store busy."""

log = logging.getLogger("perdure.retention")


class Sweep:
    """Sweeps a store until it is stopped, beginning at once."""

    def __init__(self, store: Store, retention: float) -> None:
        self._store = store
        self._retention = retention
        self._period = min(SWEEP_PERIOD_SECONDS, max(retention, SWEEP_PERIOD_LEAST_SECONDS))
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Stop between two pieces."""
        await end([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._sweep()
            except StoreClosed:
                return
            except StoreError as error:
                log.error("a sweep failed, the next is due in %g s: %s", self._period, error)
            except Exception:
                log.exception("a sweep failed, the next is due in %g s", self._period)
            passed = loop.create_future()
            timer = self._store.clock.call_at(
                self._store.clock.now() + self._period, lambda passed=passed: passed.done() or passed.set_result(None)
            )
            try:
                await passed
            finally:
                timer.cancel()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        before, removed = self._store.clock.now() - self._retention, 0
        before = min(before, await started_since(self._store))
        while True:
            began = loop.time()
            piece = await self._store.purge(before, limit=PURGE_LIMIT)
            if not piece:
                break
            removed += piece
            await asyncio.sleep((loop.time() - began) * (1 / SWEEP_SHARE - 1))
        if removed:
            log.info("invocations purged: %d, settled more than %g s ago", removed, self._retention)
