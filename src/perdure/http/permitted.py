"""The operations as one caller may use them: within its limits, and without values if it may not see them.

Whatever a caller may not reach is unknown to it, by the same words as what there is not. Every operation is here; a
route that goes past them must say why.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime

from msgspec.structs import replace

from perdure.authoring.workflow import Delay
from perdure.core.lifecycle import refusing_status
from perdure.core.retry import Duration
from perdure.core.schedule import Plan
from perdure.errors import (
    AccessDenied,
    IdConflict,
    UnknownInvocation,
    UnknownSchedule,
    unknown,
    unknown_job,
    unknown_schedule,
)
from perdure.operations.access import Access, Token
from perdure.operations.audit import Link
from perdure.operations.bulk import BulkPage, BulkPreview, BulkProgress, BulkRefusal, BulkRequest, BulkVerb
from perdure.operations.capabilities import Capability, Purpose
from perdure.operations.describe import AwakeableInfo, Invocation, JournalStep
from perdure.operations.documents import OWN_PREFIX, Document, DocumentKey, Fence, Scan, Write
from perdure.operations.following import StreamPart
from perdure.operations.listing import AwakeableFilters, AwakeablePage, Filters, Page
from perdure.operations.port import ANSWER_WAIT_SECONDS, Minute, Operations, Outcome, Stats, Submission, nothing
from perdure.operations.rekey import RekeyProgress, SealedPart
from perdure.operations.schedules import Change, ScheduleInfo, Trigger

PAGES_READ = 20
"""Pages that are read for one page of a caller who may see some invocations only; a page may be short then."""
NEW_ID_SECONDS = 86_400.0
"""How far the time in a new id of a limited caller may be from now. In a derived one it is anything."""
_HASH = re.compile(r"[0-9a-f]{32}")
_TICK = re.compile(r".+@\d{4}-\d\d-\d\dT.*")


class Permitted(Operations):
    """The operations, for a caller. It neither opens nor closes them. `until` is when the caller's token expires."""

    def __init__(self, operations: Operations, access: Access, until: datetime | None = None) -> None:
        self._operations = operations
        self._access = access
        self._until = until
        self._vouched: set[str] = set()

    def vouch(self, id: str) -> None:
        """Take a chosen id for one that nobody else can have chosen: it derives from the caller's name."""
        self._vouched.add(id)

    # --- what is permitted --------------------------------------------------------------------------------------------
    def _reaches(self, invocation: Invocation) -> bool:
        return self._access.reaches(invocation.handler, invocation.key)

    async def _check(self, id: str) -> None:
        """Raise `UnknownInvocation` for one that the caller may not reach."""
        if self._access.is_limited and not self._reaches(await self._operations.look(id)):
            raise unknown(id)

    def _check_reach(self, verb: str, handler: str, key: str | None) -> None:
        """Raise `AccessDenied` for a workflow and key that the caller may not start."""
        if not self._access.reaches(handler, key):
            of_key = "" if key is None else f" with key {key!r}"
            raise AccessDenied(f"{self._access.name!r} may not {verb} workflow {handler!r}{of_key}")

    async def _check_start(self, submission: Submission) -> None:
        self._check_reach("start", submission.handler, submission.key)
        if self._access.handlers is not None and submission.when_busy in ("interrupt", "rollback"):
            rule = f"when_busy={submission.when_busy!r}, which may cancel invocations of others"
            raise AccessDenied(f"{self._access.name!r} is limited to some workflows, and may not start with {rule}")
        await self._check_new(submission.id)

    async def _check_new(self, id: str) -> None:
        """Raise `IdConflict` for an id that exists, if the caller must not learn whether its input is the same.

        `AccessDenied` for an id that a limited caller must not take, since another invocation may be about to have it.
        """
        if id in self._vouched or (self._access.payloads and not self._access.is_limited):
            return
        if self._access.is_limited and _is_derived(id):
            raise AccessDenied(
                f"{self._access.name!r} is limited, and may not choose the id {id!r}: others derive such"
            )
        try:
            found = await self._operations.look(id)
        except UnknownInvocation:
            return
        if not self._access.payloads or not self._reaches(found):
            text = f"id {id!r} exists already; whether with the same input, is not told to who may not see payloads"
            raise IdConflict(text, invocation_id=id)

    def check_unlimited(self, what: str) -> None:
        """Raise `AccessDenied` for a limited caller who asks for something of all."""
        if self._access.is_limited:
            raise AccessDenied(f"{self._access.name!r} is limited to some workflows or keys, and {what} is of all")

    def _check_payloads(self) -> None:
        if not self._access.payloads:
            raise AccessDenied(f"{self._access.name!r} may not see payloads")

    def _shown(self, invocation: Invocation) -> Invocation:
        return invocation if self._access.payloads else without_payloads(invocation)

    # --- life ---------------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        await self._operations.open()

    async def aclose(self) -> None:
        """Do nothing: it is not this caller's to close."""

    # --- running ------------------------------------------------------------------------------------------------------
    async def run(self, submission: Submission, accepted: Callable[[], object] = nothing, /) -> Outcome:
        await self._check_start(submission)
        return await self._operations.run(submission, accepted)

    async def start(self, submission: Submission, /) -> None:
        await self._check_start(submission)
        await self._operations.start(submission)

    async def start_all(self, submissions: Sequence[Submission], /) -> None:
        for each in submissions:
            await self._check_start(each)
        await self._operations.start_all(submissions)

    async def result(self, id: str, /, *, timeout: float | None = None) -> Outcome:
        """Wait for the outcome. A route shows its value only to who may see payloads."""
        await self._check(id)
        return await self._operations.result(id, timeout=timeout)

    async def restart(
        self, id: str, call: Submission | None, /, *, new_id: str | None, handlers: Collection[str] = ()
    ) -> str:
        await self._check(id)
        if call is not None:
            key = call.key if call.key is not None else (await self._operations.look(id)).key
            await self._check_start(replace(call, id=new_id or call.id, key=key))
        elif new_id is not None:
            await self._check_new(new_id)
        return await self._operations.restart(id, call, new_id=new_id, handlers=handlers)

    # --- talking ------------------------------------------------------------------------------------------------------
    async def pause(self, id: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self._check(id)
        await self._operations.pause(id, timeout=timeout)

    async def resume(self, id: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self._check(id)
        await self._operations.resume(id, timeout=timeout)

    async def cancel(self, id: str, /, *, force: bool = False, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self._check(id)
        await self._operations.cancel(id, force=force, timeout=timeout)

    async def retry(self, id: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self._check(id)
        await self._operations.retry(id, timeout=timeout)

    async def resolve(self, awakeable_id: str, value: bytes, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self.awakeable(awakeable_id)
        await self._operations.resolve(awakeable_id, value, timeout=timeout)

    async def reject(self, awakeable_id: str, reason: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self.awakeable(awakeable_id)
        await self._operations.reject(awakeable_id, reason, timeout=timeout)

    async def awakeable(self, awakeable_id: str, /) -> tuple[str, int]:
        found = await self._operations.awakeable(awakeable_id)
        await self._check(found[0])
        return found

    # --- looking ------------------------------------------------------------------------------------------------------
    async def look(self, id: str, /) -> Invocation:
        await self._check(id)
        return self._shown(await self._operations.look(id))

    async def describe(self, id: str, /) -> Invocation:
        await self._check(id)
        return self._shown(await self._operations.describe(id))

    async def page(
        self, filters: Filters, /, *, limit: int, cursor: str | None = None, within: float | None = None
    ) -> Page:
        if (handler := filters.get("handler")) is not None and not self._access.reaches_handler(handler):
            return Page(())
        found: list[Invocation] = []
        for _ in range(PAGES_READ if self._access.is_limited else 1):
            page = await self._operations.page(filters, limit=limit - len(found), cursor=cursor, within=within)
            found += [self._shown(each) for each in page.invocations if self._reaches(each)]
            cursor = page.next
            if cursor is None or len(found) >= limit:
                break
        return Page(tuple(found), cursor)

    async def awakeables(
        self, filters: AwakeableFilters, /, *, limit: int, cursor: str | None = None, within: float | None = None
    ) -> AwakeablePage:
        if filters.get("assignee") is not None:
            self._check_payloads()
        found: list[AwakeableInfo] = []
        for _ in range(PAGES_READ if self._access.is_limited else 1):
            page = await self._operations.awakeables(filters, limit=limit - len(found), cursor=cursor, within=within)
            reached = [each for each in page.awakeables if await self._reaches_awakeable(each)]
            found += reached if self._access.payloads else map(_untold, reached)
            cursor = page.next
            if cursor is None or len(found) >= limit:
                break
        return AwakeablePage(tuple(found), cursor)

    async def _reaches_awakeable(self, awakeable: AwakeableInfo) -> bool:
        if self._access.key_prefixes is None:
            return self._access.reaches(awakeable.handler, None)
        try:
            return self._reaches(await self._operations.look(awakeable.invocation_id))
        except UnknownInvocation:  # purged meanwhile
            return False

    async def watch(self, id: str, /) -> AsyncGenerator[Invocation, None]:
        await self._check(id)
        async with aclosing(self._operations.watch(id)) as changes:
            async for each in changes:
                yield self._shown(each)

    async def stream(
        self, id: str, name: str, start: int, /, *, follow: bool = True
    ) -> AsyncGenerator[StreamPart, None]:
        self._check_payloads()
        await self._check(id)
        async with aclosing(self._operations.stream(id, name, start, follow=follow)) as parts:
            async for part in parts:
                yield part

    async def watch_all(self, filters: Filters, /, *, gone: bool = False) -> AsyncGenerator[Invocation, None]:
        async with aclosing(self._operations.watch_all(filters, gone=gone)) as changes:
            async for each in changes:
                if each.gone and not each.id:  # changes were missed
                    yield each
                elif self._reaches(each):  # of one that is gone, nothing tells whose it was
                    yield self._shown(each)

    async def stats(self) -> Stats:
        self.check_unlimited("a count")
        return await self._operations.stats()

    async def minutes(self, *, since: datetime, handler: str | None = None) -> list[Minute]:
        if self._access.key_prefixes is not None:
            self.check_unlimited("a count")
        found = await self._operations.minutes(since=since, handler=handler)
        return [each for each in found if self._access.reaches_handler(each.handler)]

    async def state(self, key: str, /) -> Mapping[str, bytes]:
        self._check_payloads()
        prefixes = self._access.key_prefixes
        if not key.startswith(prefixes if prefixes is not None else ""):
            raise AccessDenied(f"{self._access.name!r} may not see key {key!r}")
        if prefixes is None or self._access.handlers is not None:
            self.check_unlimited("the state of a key")
        return await self._operations.state(key)

    async def serves(self, handler: str, /) -> bool | None:
        if not self._access.reaches_handler(handler):
            return None
        return await self._operations.serves(handler)

    # --- bulk jobs ----------------------------------------------------------------------------------------------------
    async def preview_bulk(self, request: BulkRequest, /, *, by: Access | None = None) -> BulkPreview:
        """Count what the caller may reach. The job that begins does the same, and is the caller's."""
        return await self._operations.preview_bulk(request, by=self._access)

    async def begin_bulk(self, verb: BulkVerb, token: str, /, *, by: Access | None = None) -> BulkProgress:
        return self._shown_job(await self._operations.begin_bulk(verb, token, by=self._access))

    async def bulk_job(self, id: str, /) -> BulkProgress:
        found = await self._operations.bulk_job(id)
        if not self._reaches_job(found):
            raise unknown_job(id)
        return self._shown_job(found)

    async def bulk_jobs(self, *, limit: int, cursor: str | None = None) -> BulkPage:
        page = await self._operations.bulk_jobs(limit=limit, cursor=cursor)
        return BulkPage(tuple(self._shown_job(each) for each in page.jobs if self._reaches_job(each)), page.next)

    async def stop_bulk(self, id: str, /) -> BulkProgress:
        await self.bulk_job(id)
        return self._shown_job(await self._operations.stop_bulk(id))

    def _reaches_job(self, job: BulkProgress) -> bool:
        """Report whether the caller may see a job: its own, if it may not see all invocations."""
        return not self._access.is_limited or job.by == self._access.name

    def _shown_job(self, job: BulkProgress) -> BulkProgress:
        return job if self._access.payloads else replace(job, refusals=tuple(map(without_reason, job.refusals)))

    # --- documents ----------------------------------------------------------------------------------------------------
    async def read_documents(self, collection: str, keys: Sequence[DocumentKey], /) -> list[Document | None]:
        self._check_payloads()
        self._check_documents(collection)
        return await self._operations.read_documents(collection, keys)

    async def write_documents(
        self, collection: str, writes: Sequence[Write], fence: Fence | None = None, /
    ) -> list[int]:
        self._check_documents(collection)
        return await self._operations.write_documents(collection, writes, fence)

    async def scan_documents(self, collection: str, which: Scan, /) -> list[Document]:
        self._check_payloads()
        self._check_documents(collection)
        return await self._operations.scan_documents(collection, which)

    async def delete_documents(self, collection: str, prefix: str, /) -> int:
        self._check_documents(collection)
        return await self._operations.delete_documents(collection, prefix)

    def _check_documents(self, collection: str) -> None:
        self.check_unlimited("a document")
        if collection.startswith(OWN_PREFIX):  # tokens, sessions, the audit
            raise AccessDenied(f"collection {collection!r} is Perdure's own, and not served")

    # --- schedules ----------------------------------------------------------------------------------------------------
    async def put_schedule(self, name: str, plan: Plan, /) -> bool:
        self._check_reach("schedule", plan.handler, plan.key)
        try:
            found = await self._operations.describe_schedule(name)
        except UnknownSchedule:
            return await self._operations.put_schedule(name, plan)
        if not self._access.payloads or not self._access.reaches(found.handler, found.key):
            text = f"schedule {name!r} exists, and {self._access.name!r} may not see what it starts with what input"
            raise AccessDenied(text)
        return await self._operations.put_schedule(name, plan)

    async def change_schedule(self, name: str, change: Change, /) -> list[str]:
        await self._check_schedule(name)
        if isinstance(change, Trigger) and change.id is not None:
            await self._check_new(change.id)
        return await self._operations.change_schedule(name, change)

    async def delete_schedule(self, name: str, /) -> bool:
        try:
            await self._check_schedule(name)
        except UnknownSchedule:
            return False
        return await self._operations.delete_schedule(name)

    async def describe_schedule(self, name: str, /) -> ScheduleInfo:
        await self._check_schedule(name)
        return self._shown_schedule(await self._operations.describe_schedule(name))

    async def schedules(self, *, limit: int, after: str | None = None) -> list[ScheduleInfo]:
        found: list[ScheduleInfo] = []
        while len(found) < limit:
            page = await self._operations.schedules(limit=limit, after=after)
            found += [self._shown_schedule(each) for each in page if self._access.reaches(each.handler, each.key)]
            if len(page) < limit:
                break
            after = page[-1].name
        return found[:limit]

    async def schedule_times(self, name: str, count: int, /) -> list[float]:
        await self._check_schedule(name)
        return await self._operations.schedule_times(name, count)

    async def _check_schedule(self, name: str) -> None:
        """Raise `UnknownSchedule` for one that the caller may not reach."""
        if self._access.is_limited:
            found = await self._operations.describe_schedule(name)
            if not self._access.reaches(found.handler, found.key):
                raise unknown_schedule(name)

    def _shown_schedule(self, info: ScheduleInfo) -> ScheduleInfo:
        return info if self._access.payloads else replace(info, input={}, note="")

    # --- access -------------------------------------------------------------------------------------------------------
    async def add_token(self, access: Access, /, *, expires: datetime | None = None) -> str:
        """Make a token that permits no more than the caller's own access."""
        self.check_unlimited("a token")
        if access.payloads:
            self._check_payloads()
        if self._until is not None:
            expires = self._until if expires is None else min(expires, self._until)
        return await self._operations.add_token(access, expires=expires)

    async def revoke_token(self, id: str, /) -> None:
        self.check_unlimited("a token")
        await self._operations.revoke_token(id)

    async def tokens(self) -> list[Token]:
        self.check_unlimited("a token")
        return [replace(each, hash="") for each in await self._operations.tokens()]

    async def audit(self, after: int = 0, /) -> list[Link]:
        self.check_unlimited("the audit")
        return await self._operations.audit(after)

    # --- links --------------------------------------------------------------------------------------------------------
    async def make_capability(self, purpose: Purpose, awakeable_id: str, expires: Delay, /) -> Capability:
        """Make a capability. Its page shows what people are told, and what was answered: those are values."""
        self._check_payloads()
        await self.awakeable(awakeable_id)
        return await self._operations.make_capability(purpose, awakeable_id, expires)

    async def check_capability(self, purpose: Purpose, text: str, /) -> Capability:
        return await self._operations.check_capability(purpose, text)

    # --- keys of a sealed store ---------------------------------------------------------------------------------------
    async def count_sealed(self, after: str = "", /) -> SealedPart:
        self.check_unlimited("a count")
        return await self._operations.count_sealed(after)

    async def begin_rekey(self) -> RekeyProgress:
        self.check_unlimited("rekey")
        return await self._operations.begin_rekey()

    async def rekey(self) -> RekeyProgress | None:
        self.check_unlimited("rekey")
        return await self._operations.rekey()

    # --- keeping ------------------------------------------------------------------------------------------------------
    async def export(self, id: str, /, *, plain: bool = False) -> bytes:
        self._check_payloads()
        await self._check(id)
        return await self._operations.export(id, plain=plain)

    async def purge(self, id: str, /) -> None:
        await self._check(id)
        await self._operations.purge(id)

    async def backup(self, target: str, /) -> None:
        raise AccessDenied("a backup is made where the store is, and not over HTTP")


def _is_derived(id: str) -> bool:
    """Report whether an id may be that of a child, an event, a key of idempotency or a tick, which are not chosen."""
    if _TICK.fullmatch(id):
        return True
    if not _HASH.fullmatch(id):
        return False
    made_at = int(id[:12], 16) / 1000  # where it is a new one, which begins with its time
    return abs(made_at - time.time()) > NEW_ID_SECONDS


def without_payloads(invocation: Invocation) -> Invocation:
    """Return an invocation without what its author's code made: of errors, the class is left."""
    return replace(
        invocation,
        input={},
        result=None,
        state={},
        error=class_of(invocation.error),
        traceback=None,
        paused_because=None,
        waiting_for="resume" if invocation.status == "paused" else invocation.waiting_for,
        journal=tuple(map(_without_payload, invocation.journal)),
        current_step=None if invocation.current_step is None else _without_payload(invocation.current_step),
        awakeables=tuple(map(_untold, invocation.awakeables)),
    )


def _without_payload(step: JournalStep) -> JournalStep:
    return replace(step, result=None, error=class_of(step.error))


def class_of(error: str | None) -> str | None:
    """Return the class in the text of an error."""
    return None if error is None else error.partition(": ")[0]


def without_reason(refusal: BulkRefusal) -> BulkRefusal:
    """Return a refusal without what may hold values: a reason that is not the status."""
    return refusal if refusing_status(refusal.reason) is not None else replace(refusal, reason="")


def _untold(awakeable: AwakeableInfo) -> AwakeableInfo:
    """Return an awakeable without what people are told of it, which is made of the input as a rule.

    Its schema may have defaults, which are values.
    """
    return replace(awakeable, title=None, description=None, assignees=(), schema=None)
