"""Bulk jobs as documents, in a collection that users cannot name. `carrying` carries them out.

The key of a job says whether it has ended, so that a worker that looks for work reads no others. Both keys have the
same first part: a job ends in one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from random import Random
from typing import cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.background import RateLimitedLog
from perdure.core.ids import check_name, new_id
from perdure.errors import InvalidOption, LimitExceeded, PerdureError, RevisionConflict, unknown_job
from perdure.operations.access import Access
from perdure.operations.bulk import (
    BulkPage,
    BulkPreview,
    BulkProgress,
    BulkRefusal,
    BulkRequest,
    BulkState,
    BulkVerb,
    Ticket,
    restored,
    ticket_of,
    token_of,
)
from perdure.operations.listing import Filters, filter_of, pages_of
from perdure.stores.documents import Check, Delete, Document, DocumentKey, Put, Scan, joined
from perdure.stores.port import Filter, Store

JOBS = "perdure.bulk"
"""The collection of `Job` by whether it has ended, and by id, as JSON."""
PART, ACTIVE, ENDED = "jobs", "active", "ended"

COUNT_LIMIT = 10_000
"""Up to how many invocations a preview counts."""
READ_LIMIT = 50_000
"""How many it looks at for that: whoever asks may not see all of them."""
PREVIEW_SECONDS = 900.0
"""How long after its preview a job may begin."""
ACTIVE_LIMIT = 100
"""Jobs of a store that have not ended."""
KEPT_LIMIT = 1_000
"""Jobs that are kept when they have ended; the oldest are removed first."""
REMOVED_LIMIT = 100
"""Old jobs that are removed when another one ends."""

log = logging.getLogger("perdure.bulk")


class Job(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A job, and where it stands. Times are in seconds since the Unix epoch.

    `page` are the invocations in hand: the verb may have been applied to any of them, and none is counted yet. `before`
    is the position of the last one that was read from the index, and `is_read` says that none follows. Until the time
    `until`, the job belongs to the worker that calls itself `owner`.
    """

    ticket: Ticket
    created_at: float
    before: tuple[float, str] | None = None
    is_read: bool = False
    page: tuple[str, ...] = ()
    matched: int = 0
    applied: int = 0
    accepted: int = 0
    refused: int = 0
    errors: int = 0
    refusals: tuple[BulkRefusal, ...] = ()
    owner: str = ""
    until: float = 0.0
    is_to_stop: bool = False
    ended_at: float | None = None

    @property
    def id(self) -> str:
        return self.ticket.id

    @property
    def request(self) -> BulkRequest:
        return self.ticket.request

    @property
    def by(self) -> str:
        """The name of who began it; empty for whoever has the store."""
        return "" if self.ticket.by is None else self.ticket.by.name

    @property
    def state(self) -> BulkState:
        if self.ended_at is None:
            return "stopping" if self.is_to_stop else "running"
        return "done" if self.is_read and not self.page else "stopped"

    @property
    def filter(self) -> Filter:
        """What the index is asked for next, whatever the number of rows. Nothing beyond the watermark."""
        found = filter_of(**cast("Filters", self.request.filters))
        end = math.nextafter(self.ticket.watermark, math.inf)
        end = end if found.created_before is None else min(end, found.created_before)
        return replace(found, created_before=end, before=self.before)

    @property
    def progress(self) -> BulkProgress:
        """What is shown of it."""
        ticket, request = self.ticket, self.request
        return BulkProgress(
            *(ticket.id, request.verb, cast("Filters", request.filters), request.force, self.by, self.state),
            *(ticket.count, ticket.is_exact, _time(self.created_at)),
            ended_at=None if self.ended_at is None else _time(self.ended_at),
            matched=self.matched,
            applied=self.applied,
            accepted=self.accepted,
            refused=self.refused,
            errors=self.errors,
            refusals=self.refusals,
        )


class Kept(Struct, frozen=True):
    """A job as it was read, and the revision of its document."""

    job: Job
    revision: int


class Jobs:
    """The bulk jobs of a store. `chance` draws their ids."""

    def __init__(self, opened: Callable[[], Awaitable[Store]], chance: Random) -> None:
        self._opened = opened
        self._chance = chance
        self._begun = asyncio.Event()
        self._log = RateLimitedLog(log)

    # --- what callers ask ---------------------------------------------------------------------------------------------
    async def preview(self, request: BulkRequest, by: Access | None) -> BulkPreview:
        """Count what matches now, and return it with a token that begins the job."""
        store = await self._opened()
        at = watermark = store.clock.now()
        count, read, is_exact = 0, 0, True
        filters = cast("Filters", request.filters)
        async for rows in pages_of(store, filter_of(**filters)):
            # Other processes have clocks of their own: what is counted is not later than the watermark.
            watermark = max(watermark, *(max(row.created_at, row.updated_at) for row in rows))
            count += sum(by is None or by.reaches(row.handler, row.key) for row in rows)
            read += len(rows)
            if count > COUNT_LIMIT or read > READ_LIMIT:
                count, is_exact = min(count, COUNT_LIMIT), False
                break
        ticket = Ticket(self._new_id(at), request, by, at, watermark, count, is_exact)
        told = (request.verb, filters, request.force, count, is_exact, _time(at + PREVIEW_SECONDS))
        return BulkPreview(*told, token_of(ticket, store.secret))

    def _new_id(self, at: float) -> str:
        return new_id(at, self._chance.randbytes(10))

    async def begin(self, verb: BulkVerb, token: str, by: Access | None) -> BulkProgress:
        """Begin the job of a token, once: a second time returns the same job."""
        store = await self._opened()
        ticket = ticket_of(token, store.secret)
        if ticket.request.verb != verb:
            raise InvalidOption(f"token: it is of a preview of {ticket.request.verb}, not of {verb}")
        if ticket.by != by:
            raise InvalidOption("token: it is of a preview by somebody else: take one of your own")
        if (known := await self.find(ticket.id)) is not None:
            return known.job.progress
        now = store.clock.now()
        if now > ticket.at + PREVIEW_SECONDS:
            text = f"token: its preview is more than {PREVIEW_SECONDS / 60:g} minutes old: take a new one"
            raise InvalidOption(text)
        if len(await self._keys(ACTIVE, ACTIVE_LIMIT)) >= ACTIVE_LIMIT:
            text = f"{ACTIVE_LIMIT} bulk jobs have not ended, which is the limit: wait for some of them, or stop them"
            raise LimitExceeded(text, size=ACTIVE_LIMIT, limit=ACTIVE_LIMIT)
        job = Job(ticket, now)
        try:
            await store.documents.write(
                JOBS, [Put(_key(ACTIVE, job.id), _encode(job), if_revision=0), Check(_key(ENDED, job.id), 0)]
            )
        except RevisionConflict:  # the same token came twice at a time
            return await self.look(job.id)
        self._begun.set()
        return job.progress

    async def look(self, id: str) -> BulkProgress:
        """Return how far a job is."""
        found = await self.find(id)
        if found is None:
            raise unknown_job(id)
        return found.job.progress

    async def page(self, limit: int, cursor: str | None) -> BulkPage:
        """Return some jobs, newest first."""
        store = await self._opened()
        last = None if cursor is None else check_name("a cursor", cursor)
        found: list[Document] = []
        for state in (ACTIVE, ENDED):
            after = None if last is None else _key(state, last)
            found += await store.documents.scan(JOBS, Scan(_prefix(state), after, reverse=True, limit=limit + 1))
        found.sort(key=lambda each: each.key[-1], reverse=True)
        shown = [job.progress for each in found[:limit] if (job := self._decoded(each)) is not None]
        return BulkPage(tuple(shown), found[limit - 1].key[-1] if len(found) > limit else None)

    async def stop(self, id: str) -> BulkProgress:
        """Let a job begin nothing new. It ends at once if no worker has begun it."""
        while True:
            found = await self.find(id)
            if found is None:
                raise unknown_job(id)
            job = replace(found.job, is_to_stop=True)
            if found.job.is_to_stop or job.ended_at is not None:
                return found.job.progress
            with contextlib.suppress(RevisionConflict):
                if not job.owner:
                    return (await self.end(job, found.revision)).progress
                await self.save(job, found.revision)
                return job.progress

    # --- what workers ask ---------------------------------------------------------------------------------------------
    async def active(self) -> list[str]:
        """Return the ids of the jobs that have not ended, oldest first."""
        return await self._keys(ACTIVE, ACTIVE_LIMIT)

    async def begun(self, seconds: float) -> None:
        """Wait until a job begins here, at most for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._begun.wait()
        self._begun.clear()

    async def find(self, id: str) -> Kept | None:
        """Read a job; None if there is none, or none that this release can read."""
        store = await self._opened()
        check_name("the id of a bulk job", id)
        for state in (ACTIVE, ENDED):  # in this order: it may end meanwhile
            (document,) = await store.documents.read(JOBS, [_key(state, id)])
            if document is not None and (job := self._decoded(document)) is not None:
                return Kept(job, document.revision)
        return None

    async def save(self, job: Job, revision: int) -> int:
        """Write a job that has not ended, and return its revision. `RevisionConflict` if another has written it."""
        store = await self._opened()
        (saved,) = await store.documents.write(JOBS, [Put(_key(ACTIVE, job.id), _encode(job), revision)])
        return saved

    async def end(self, job: Job, revision: int) -> Job:
        """Write a job that has ended. `RevisionConflict` if another has written it."""
        store = await self._opened()
        job = replace(job, owner="", until=0.0, ended_at=store.clock.now())
        writes = [Delete(_key(ACTIVE, job.id), revision), Put(_key(ENDED, job.id), _encode(job))]
        old = (await self._keys(ENDED, KEPT_LIMIT + REMOVED_LIMIT))[:-KEPT_LIMIT]
        await store.documents.write(JOBS, [*writes, *(Delete(_key(ENDED, each)) for each in old)])
        return job

    async def _keys(self, state: str, limit: int) -> list[str]:
        store = await self._opened()
        found = await store.documents.scan(JOBS, Scan(_prefix(state), limit=limit, values=False))
        return [each.key[-1] for each in found]

    def _decoded(self, document: Document) -> Job | None:
        try:
            job = _decode(document.value)
            return replace(job, ticket=replace(job.ticket, request=restored(job.request)))
        except (msgspec.MsgspecError, PerdureError) as error:
            text = "bulk job %s cannot be read, it may be of a newer release: %s"
            self._log(document.key, text, document.key[-1], error)
            return None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Job).decode


def _key(state: str, id: str) -> DocumentKey:
    return PART, state, id


def _prefix(state: str) -> str:
    return joined((PART, state, ""))


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
