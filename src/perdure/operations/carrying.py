"""Carries out bulk jobs: a duty of every worker, over the operations of its store.

A job is read from the index page by page. The ids of a page are written to the job before anything is done with them,
and counted by the write that brings the next page. So a worker that takes over a job whose worker died knows what may
have been done, and does it again under the same ids: of the message, or of the new invocation. The store drops those
that it has, and answers as it did before. What a job asks for happens once, and is counted once.

A job belongs to one worker for a while, and each page extends that. This saves work, and no promise depends on it:
every write of a job names the revision that it replaces.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from perdure.background import RateLimitedLog, Tasks, log_error
from perdure.core.journal import Cancel, Pause, Request, Resume, RetryInvocation
from perdure.core.lifecycle import SETTLED, refusal
from perdure.errors import (
    MessageRefused,
    NewerJournal,
    PerdureError,
    RevisionConflict,
    StoreClosed,
    StoreDamaged,
    StoreError,
    WaitTimeout,
    unknown,
)
from perdure.operations.access import Access
from perdure.operations.bulk import BulkRefusal, BulkVerb, role_for
from perdure.operations.describe import Invocation, from_row
from perdure.operations.jobs import Job, Kept
from perdure.operations.local import Local
from perdure.operations.port import Operations
from perdure.stores.port import Row, Store

LOOK_SECONDS = 1.0
"""How often a worker looks for jobs that others began."""
JOBS_AT_ONCE = 4
"""Jobs that one worker carries out at a time."""
PAGE_SIZE = 200
"""Invocations that a job has in hand at a time. A job that is to stop still ends with these."""
APPLY_SECONDS = 5.0
"""How long a job waits until the verb is applied to an invocation. It is durable before."""
HELD_SECONDS = 30.0
"""How long a job belongs to a worker that says nothing of it: longer than a page takes."""
AGAIN_SECONDS = 5.0
"""How long a worker rests before it goes on with a job that it could not go on with."""
REFUSALS_LIMIT = 50
"""Refusals of which a job keeps the reasons."""
REASON_LIMIT = 300
"""Characters of a reason that is kept."""

OF_ONE = (NewerJournal, StoreDamaged)
"""Errors of a store that concern one invocation. After others, the job goes on later."""

log = logging.getLogger("perdure.bulk")

Rights = Callable[[Access | None, BulkVerb], Awaitable[Callable[[Invocation], bool]]]
"""Tells to which invocations somebody may still apply a verb. Asked for each page of a job."""


def rights_of(operations: Operations) -> Rights:
    """Return the rights that the tokens of a store give now.

    A name that no token has, as that of a site's own login, has the rights with which it began its job. Whoever has the
    store may do everything.
    """

    async def rights(by: Access | None, verb: BulkVerb) -> Callable[[Invocation], bool]:
        if by is None:
            return lambda _: True
        named = [each for each in await operations.tokens() if each.access.name == by.name]
        now = datetime.now(UTC)
        held = [each.access for each in named if each.is_valid(now)] if named else [by]
        able = [each for each in held if each.may(role_for(verb))]
        return lambda invocation: any(each.reaches(invocation.handler, invocation.key) for each in able)

    return rights


class _Ended(Struct, frozen=True):
    """What became of the verb for one invocation."""

    how: Literal["applied", "accepted", "refused", "errors"]
    reason: str = ""


class Carrier:
    """Carries out the bulk jobs of a store, in any number of workers of one client. `run` is a duty of each."""

    def __init__(self, operations: Local, rights: Rights | None = None) -> None:
        self._operations = operations
        self._jobs = operations.jobs
        self._rights = rights_of(operations) if rights is None else rights
        self._owners: set[str] = set()  # the names under which it runs now
        self._log = RateLimitedLog(log)

    async def run(self) -> None:
        """Carry out jobs until it is cancelled."""
        store = await self._operations.opened()
        owner = secrets.token_hex(8)
        tasks, in_hand = Tasks(log), set[str]()
        self._owners.add(owner)
        try:
            while True:
                try:
                    async for found in self._free_jobs(store, owner, in_hand):
                        id = found.job.id
                        in_hand.add(id)
                        task = tasks.spawn(self._carry(store, found, owner), name=f"bulk job {id}")
                        task.add_done_callback(lambda _, id=id: in_hand.discard(id))
                except StoreClosed:
                    raise
                except StoreError as error:  # what is in hand goes on
                    self._log("look", "bulk jobs cannot be read: %s; looking again", error, level=logging.WARNING)
                await self._jobs.begun(LOOK_SECONDS)
        finally:
            self._owners.discard(owner)
            await tasks.cancel()

    async def _free_jobs(self, store: Store, owner: str, in_hand: Collection[str]) -> AsyncGenerator[Kept, None]:
        """Read the jobs that belong to nobody, as long as there is room for them."""
        for id in await self._jobs.active():
            if len(in_hand) >= JOBS_AT_ONCE:
                return
            try:
                found = None if id in in_hand else await self._jobs.find(id)
            except StoreDamaged as error:
                self._log(id, "bulk job %s cannot be read: %s", id, error)
                continue
            if found is not None and self._is_free(store, found.job, owner):
                yield found

    def _is_free(self, store: Store, job: Job, owner: str) -> bool:
        """Report whether a job has not ended, and belongs to nobody else."""
        if job.ended_at is not None:
            return False
        if job.owner in ("", owner):
            return True
        if store.clocks_apart == 0.0:  # one process has this store, so whoever is not in it is dead
            return job.owner not in self._owners
        return store.clock.now() > job.until

    async def _carry(self, store: Store, found: Kept, owner: str) -> None:
        """Carry out a job until it ends, or another worker has it."""
        id = found.job.id
        try:
            await _Work(self._operations, store, found, owner, self._rights).run()
        except RevisionConflict:
            log.info("bulk job %s: another worker goes on with it", id)
        except StoreClosed:
            pass
        except StoreError as error:
            log.warning("bulk job %s rests for %g s: %s", id, AGAIN_SECONDS, error)
            await asyncio.sleep(AGAIN_SECONDS)
        except Exception as error:  # noqa: BLE001  other jobs go on
            log_error(log, "bulk job %s: unexpected exception, it goes on in %g s", id, AGAIN_SECONDS, error=error)
            await asyncio.sleep(AGAIN_SECONDS)


class _Work:
    """One job in the hands of one worker."""

    def __init__(self, operations: Local, store: Store, found: Kept, owner: str, rights: Rights) -> None:
        self._operations = operations
        self._jobs = operations.jobs
        self._store = store
        self._job = found.job
        self._revision = found.revision
        self._owner = owner
        self._rights = rights

    async def run(self) -> None:
        """Go on with the job to its end. `RevisionConflict` if another worker has it."""
        is_again = bool(self._job.page)  # of these, a worker before may have done any
        await self._save()
        job = self._job
        text = "bulk job %s (%s) by %r: %d invocations expected, %d done"
        log.info(text, job.id, job.request.verb, job.by, job.ticket.count, job.matched)
        while True:
            if self._job.page and not self._job.is_to_stop:
                self._job = await self._carried_out(is_again=is_again)
            is_again = False
            if self._job.is_read or self._job.is_to_stop:
                break
            self._job = await self._next_page()
            await self._save()
        await self._end()

    async def _save(self) -> None:
        """Write the job, which is this worker's for a while again."""

        async def save() -> None:
            until = self._store.clock.now() + HELD_SECONDS
            self._job = replace(self._job, owner=self._owner, until=until)
            self._revision = await self._jobs.save(self._job, self._revision)

        await self._written(save)

    async def _end(self) -> None:
        async def end() -> None:
            self._job = await self._jobs.end(self._job, self._revision)

        await self._written(end)
        job, request = self._job, self._job.request
        counts = (job.applied, job.accepted, job.refused, job.errors)
        text = "bulk job %s (%s) is %s: %d applied, %d accepted, %d refused, %d errors"
        log.info(text, job.id, request.verb, job.state, *counts)

    async def _written(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write the job. That it is to stop may have been written meanwhile, and it is this worker's all the same."""
        while True:
            try:
                return await write()
            except RevisionConflict:
                found = await self._jobs.find(self._job.id)
                if found is None or found.job.owner != self._owner or found.job.is_to_stop == self._job.is_to_stop:
                    raise
                self._job = replace(self._job, is_to_stop=found.job.is_to_stop)
                self._revision = found.revision

    # --- pages --------------------------------------------------------------------------------------------------------
    async def _next_page(self) -> Job:
        """Return the job with the next invocations in hand, perhaps none."""
        rows = await self._store.search(replace(self._job.filter, limit=PAGE_SIZE))
        page = tuple(row.id for row in rows if self._was_seen(row))
        before = (rows[-1].created_at, rows[-1].id) if rows else self._job.before
        return replace(self._job, page=page, before=before, is_read=len(rows) < PAGE_SIZE)

    def _was_seen(self, row: Row) -> bool:
        """Report whether an invocation is as it was at the preview, as far as that matters, and who began may see it.

        What rests or is paused was seen so, and has changed since if somebody has changed it. What runs changes all the
        time: to pause or cancel it is meant whatever it does now.
        """
        job = self._job
        is_as_seen = job.request.verb in ("pause", "cancel") or row.updated_at <= job.ticket.watermark
        return is_as_seen and job.ticket.reaches(row.handler, row.key)

    async def _carried_out(self, *, is_again: bool) -> Job:
        """Return the job with what it had in hand done and counted."""
        job = self._job
        may = await self._rights(job.ticket.by, job.request.verb)
        ended = await asyncio.gather(*(self._ended(id, may, is_again=is_again) for id in job.page))
        counts = Counter[str]()
        refusals = [*job.refusals]
        for id, each in zip(job.page, ended, strict=True):
            if isinstance(each, StoreError):
                raise each
            counts[each.how] += 1
            if each.reason and len(refusals) < REFUSALS_LIMIT:
                refusals.append(BulkRefusal(id, each.reason[:REASON_LIMIT]))
        return replace(
            job,
            page=(),
            matched=job.matched + len(job.page),
            applied=job.applied + counts["applied"],
            accepted=job.accepted + counts["accepted"],
            refused=job.refused + counts["refused"],
            errors=job.errors + counts["errors"],
            refusals=tuple(refusals),
        )

    # --- invocations --------------------------------------------------------------------------------------------------
    async def _ended(self, id: str, may: Callable[[Invocation], bool], *, is_again: bool) -> _Ended | StoreError:
        """Apply the verb to an invocation, and return what became of it, or why the job cannot go on."""
        try:
            reason = await self._apply(id, may, is_again=is_again)
        except WaitTimeout:
            return _Ended("accepted")
        except MessageRefused as error:
            return _Ended("refused", error.reason or str(error))
        except StoreError as error:
            if not isinstance(error, OF_ONE):
                return error
            log.error("bulk job %s: invocation %s: %s", self._job.id, id, error)
            return _Ended("errors", str(error))
        except PerdureError as error:
            return _Ended("refused", str(error))
        except Exception as error:  # noqa: BLE001  the others go on
            log_error(log, "bulk job %s: invocation %s: unexpected exception", self._job.id, id, error=error)
            return _Ended("errors", f"an unexpected {type(error).__name__}: the worker's log has it")
        return _Ended("applied") if reason is None else _Ended("refused", reason)

    async def _apply(self, id: str, may: Callable[[Invocation], bool], *, is_again: bool) -> str | None:
        """Apply the verb to an invocation; return why not, or raise it."""
        operations, ticket, verb = self._operations, self._job.ticket, self._job.request.verb
        row = await self._store.row(id)
        if row is None:
            if verb == "purge":
                return None
            raise unknown(id)
        if row.created_at > ticket.watermark:
            return "its id was started anew since"
        if not may(from_row(row)):
            return f"{self._job.by!r} may not {verb} it any more"
        own = _own_id(self._store.secret, ticket.id, id)
        match verb:
            case "purge":
                await operations.purge(id)
            case "restart":
                if not (is_again and await self._store.row(own) is not None):
                    await operations.restart(id, None, new_id=own)
            case "pause" | "resume" | "cancel" | "retry":
                if row.status in SETTLED and not is_again and (reason := refusal(row.status, verb)) is not None:
                    return reason  # it would be asked for its journal to say the same
                request = _request_of(verb, force=self._job.request.force)
                await operations.tell(id, request, APPLY_SECONDS, message_id=own)
        return None


def _request_of(verb: Literal["pause", "resume", "cancel", "retry"], *, force: bool) -> Request:
    match verb:
        case "pause":
            return Pause()
        case "resume":
            return Resume()
        case "cancel":
            return Cancel(force)
        case "retry":
            return RetryInvocation()


def _own_id(secret: bytes, job: str, invocation: str) -> str:
    """Return the id of the message, or of the new invocation, by which a job does something to an invocation.

    The secret keeps others from taking it before.
    """
    source = f"{job}\n{invocation}".encode()
    return hashlib.blake2b(source, digest_size=16, key=secret[:64], person=b"perdure-bulk").hexdigest()
