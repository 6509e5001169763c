"""The background tasks of a store. Failures are logged; store errors, which may persist, are rate-limited."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from perdure.background import RateLimitedLog, Tasks
from perdure.errors import StoreClosed, StoreError

log = logging.getLogger("perdure.jetstream")


class Background(Tasks):
    """Tasks that no caller awaits."""

    def __init__(self, limited_log: RateLimitedLog) -> None:
        super().__init__(log)
        self._limited_log = limited_log

    def _ended(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StoreError):
            self._tasks.discard(task)
            if not isinstance(error, StoreClosed):
                self._limited_log(type(error).__name__, "%s", error)
        else:
            super()._ended(task)
