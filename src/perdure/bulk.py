"""A bulk job from outside: what it does, how far it is, and how it ends."""

from __future__ import annotations

import asyncio
import math

from perdure.calls import refuse_in_body
from perdure.core.retry import Duration, seconds
from perdure.errors import WaitTimeout
from perdure.operations.bulk import BulkPreview, BulkProgress
from perdure.operations.port import Operations

FIRST_LOOK_SECONDS = 0.05
LOOK_SECONDS = 1.0
"""How often `result` looks whether a job has ended: first after the shorter time, which doubles up to the longer."""


class BulkJob:
    """A verb for all invocations that match a filter. Workers carry it out, whatever becomes of its client.

    `preview` is what matched when it was previewed.
    """

    def __init__(self, operations: Operations, job: BulkProgress) -> None:
        self.id = job.id
        self.preview = BulkPreview(job.verb, job.filters, job.force, job.expected, job.is_exact)
        self._operations = operations

    def __repr__(self) -> str:
        return f"BulkJob({self.id!r})"

    async def progress(self) -> BulkProgress:
        """Return how far it is."""
        refuse_in_body("job.progress()")
        return await self._operations.bulk_job(self.id)

    async def result(self, *, timeout: Duration | None = None) -> BulkProgress:
        """Wait until it has ended, and return what became of it.

        `timeout` (seconds or a timedelta) bounds only the waiting: `WaitTimeout`. Invocations that refuse the verb are
        counted, and raise nothing. While the store has no worker, nothing goes on.
        """
        refuse_in_body("job.result()")
        loop = asyncio.get_running_loop()
        limit = math.inf if timeout is None else seconds("timeout", timeout)
        end, wait = loop.time() + limit, FIRST_LOOK_SECONDS
        while True:
            found = await self._operations.bulk_job(self.id)
            if found.ended_at is not None:
                return found
            if (left := end - loop.time()) <= 0:
                raise WaitTimeout(f"bulk job {self.id!r} has not ended within {limit:g} s; it goes on", timeout=limit)
            await asyncio.sleep(min(wait, left))
            wait = min(2 * wait, LOOK_SECONDS)

    async def stop(self) -> BulkProgress:
        """Let it begin nothing new, and return how far it is. What a worker has in hand is done: a page at most."""
        refuse_in_body("job.stop()")
        return await self._operations.stop_bulk(self.id)
