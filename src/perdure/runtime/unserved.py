"""Warns of a start that no worker here serves.

Such a start is legal: a worker may be deployed later. Most often, though, the worker was forgotten, or it serves
another workflow, and without a warning the caller waits in silence.
"""

from __future__ import annotations

import asyncio
import logging

from perdure.core.journal import Start
from perdure.errors import StoreError
from perdure.stores.port import Store

UNSERVED_SECONDS = 2.0
"""How long a start may wait for a worker before the log says so."""

REPEAT_SECONDS = 60.0
"""How long the log then stays quiet about the same workflow."""

log = logging.getLogger("perdure.client")


class Unserved:
    """Checks, a little after a start is due, whether a worker serves its workflow."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._quiet_until: dict[str, float] = {}  # by handler
        self._looks: dict[str, asyncio.TimerHandle] = {}  # by handler, the earliest
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, start: Start) -> None:
        """Note that a start was accepted, which no worker here serves."""
        handler = start.handler
        loop = asyncio.get_running_loop()
        now = self._store.clock.now()
        when = loop.time() + (0.0 if start.is_due(now) else start.due - now) + UNSERVED_SECONDS
        look = self._looks.get(handler)
        if when < self._quiet_until.get(handler, 0.0) or (look is not None and look.when() <= when):
            return
        if look is not None:
            look.cancel()
        self._looks[handler] = loop.call_at(when, self._look, start)

    def close(self) -> None:
        """Stop checking."""
        for look in self._looks.values():
            look.cancel()
        self._looks.clear()
        for task in self._tasks:
            task.cancel()

    def _look(self, start: Start) -> None:
        del self._looks[start.handler]
        if not self._store.serves(start.handler):
            task = asyncio.ensure_future(self._say(start))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _say(self, start: Start) -> None:
        try:
            row = await self._store.row(start.id)
        except StoreError as error:
            log.debug("cannot see whether invocation %s has begun: %s", start.id, error)
            return
        except Exception:
            log.exception("cannot see whether invocation %s has begun", start.id)
            return
        if row is None or row.status != "pending":
            return
        self._quiet_until[start.handler] = asyncio.get_running_loop().time() + REPEAT_SECONDS
        log.warning(
            "invocation %s waits for a worker: none here serves workflow %r (served here: %s). Run "
            "client.worker(...) with it, or `perdure worker`, unless one runs elsewhere",
            start.id,
            start.handler,
            ", ".join(sorted(self._store.served())) or "nothing",
        )
