"""The operations over a store that this process opens.

It decides nothing about an invocation: it encodes requests as starts and messages, and reads journals and the index.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import warnings
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from random import Random, SystemRandom
from typing import Any, Protocol, TypeVar, assert_never, cast, runtime_checkable

from msgspec.structs import replace

from perdure.authoring.workflow import Delay, due_at
from perdure.background import end
from perdure.core import journal
from perdure.core.exported import export
from perdure.core.ids import check_new_id, new_id, parse_awakeable_id
from perdure.core.journal import (
    Cancel,
    Message,
    Pause,
    Reject,
    Request,
    Resolve,
    Resume,
    RetryInvocation,
    Start,
)
from perdure.core.lifecycle import SETTLED, refusing_status
from perdure.core.retry import Duration, seconds
from perdure.core.schedule import Plan
from perdure.counters import Counters
from perdure.errors import (
    IllegalTransition,
    InvalidOption,
    MessageRefused,
    StoreClosed,
    StoreError,
    StoreUnavailable,
    WaitTimeout,
    too_large,
    unknown,
)
from perdure.operations.access import Access, Token, add_token, revoke_token, tokens
from perdure.operations.audit import Link, read
from perdure.operations.bulk import BulkPage, BulkPreview, BulkProgress, BulkRequest, BulkVerb
from perdure.operations.capabilities import Capabilities, Capability, Purpose
from perdure.operations.describe import Invocation, from_index, from_journal, from_row
from perdure.operations.following import StreamPart, parts_of
from perdure.operations.jobs import Jobs
from perdure.operations.listing import (
    MINUTES_KEPT_SECONDS,
    QUERY_SECONDS,
    AwakeableFilters,
    AwakeablePage,
    Filters,
    Page,
    awakeable_filter_of,
    cursor_of,
    cursor_of_awakeable,
    filter_of,
    pages_of,
    place_of,
    position_of,
)
from perdure.operations.port import (
    ANSWER_WAIT_SECONDS,
    Minute,
    Operations,
    Outcome,
    Stats,
    Submission,
    Value,
    WasCancelled,
    nothing,
)
from perdure.operations.rekey import RekeyProgress, SealedPart
from perdure.operations.rekeying import Rekeying
from perdure.operations.schedules import Change, ScheduleInfo
from perdure.operations.scheduling import Schedules
from perdure.runtime.unserved import Unserved
from perdure.stores.documents import DELETE_BATCH, Delete, Document, DocumentKey, Fence, Put, Scan, Write
from perdure.stores.port import Filter, Row, SealsValues, Store, gone_row, shown
from perdure.tracing import TracerInUse, current, no_tracer

T = TypeVar("T")


@runtime_checkable
class HasBackup(Protocol):
    """A store that can copy itself."""

    async def backup(self, target: str, /) -> None: ...


class Local(Operations):
    """The operations of the store that `make_store` makes. It is opened on first use, and never after `aclose`.

    `name` is the store's name in texts. `timeout` bounds how long a start or message waits to be accepted, in seconds;
    None leaves that to the store. `instead_of_backup` names the remedy if the store cannot copy itself.
    `holds_resources`: an open store has files, threads or connections, and a warning is given if it is never closed.
    `chance` draws the ids and seeds; the system's generator unless a simulation brings its own. `counters` get those of
    the store once it is open. `seal` returns the open store as it is used: one that encrypts values, if it is sealed.
    `tracer` tells what emits the spans of starts.
    """

    def __init__(
        self,
        make_store: Callable[[], Store],
        *,
        name: str = "the store",
        timeout: float | None = None,
        instead_of_backup: str = "copy what it is made of",
        holds_resources: bool = False,
        chance: Random | None = None,
        counters: Counters | None = None,
        seal: Callable[[Store], Awaitable[Store]] | None = None,
        tracer: TracerInUse = no_tracer,
    ) -> None:
        self._make_store = make_store
        self._name = name
        self._timeout = timeout
        self._instead_of_backup = instead_of_backup
        self._holds_resources = holds_resources
        self._chance = chance or SystemRandom()
        self._counters = counters
        self.jobs = Jobs(self.opened, self._chance)
        self.rekeying = Rekeying(self.opened)
        self._seal = seal
        self._tracer = tracer
        self._store: Store | None = None
        self._closed = False
        self._opening: asyncio.Task[Store] | None = None
        self._sent = 0
        self._capabilities = Capabilities()
        self._unserved: Unserved | None = None
        self._warning: weakref.finalize[Any, Any] | None = None
        self.scheduling = Schedules(self, self._chance.randbytes)

    # --- life ---------------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        await self.opened()

    async def aclose(self) -> None:
        self._closed = True
        if self._warning is not None:
            self._warning.detach()
        store, self._store = self._store, None
        opening, self._opening = self._opening, None
        if self._unserved is not None:
            self._unserved.close()
        await self.rekeying.aclose()
        if opening is not None:
            await end([opening])
            if store is None and not opening.cancelled() and opening.exception() is None:
                store = opening.result()
        if store is not None:
            await store.aclose()

    async def opened(self) -> Store:
        """Return the open store, opening it if need be."""
        store = self._store
        if store is not None:
            return store
        self._check_open()
        opening = self._opening
        if opening is None:
            opening = self._opening = asyncio.ensure_future(self._open())
        try:
            async with asyncio.timeout(self._timeout):
                store = await asyncio.shield(opening)
        except TimeoutError:
            if opening.done():
                raise
            opening.cancel()
            raise self._not_opened() from None
        except asyncio.CancelledError:
            here = asyncio.current_task()
            if not opening.cancelled() or (here is not None and here.cancelling()):
                raise
            self._check_open()
            raise self._not_opened() from None  # another caller timed out
        finally:
            if self._opening is opening and (opening.done() or opening.cancelling()):
                self._opening = None
        self._check_open()
        self._store = store
        return store

    def _not_opened(self) -> StoreUnavailable:
        text = f"{self._name} could not be opened within {self._timeout:g} s: see that it runs and can be reached"
        return StoreUnavailable(text)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed(f"this client of {self._name} is closed: connect again")

    async def _open(self) -> Store:
        store = self._make_store()
        try:
            await store.open()
        except Exception:
            here = asyncio.current_task()
            if here is not None and here.cancelling():  # a library may take a cancellation for a failure of its own
                raise asyncio.CancelledError from None
            raise
        if self._seal is not None:
            try:
                store = await self._seal(store)
            except BaseException:
                await store.aclose()
                raise
        self._writer = self._chance.randbytes(10).hex()  # at the first use: a forked child opens its own store
        if self._holds_resources:
            self._warning = weakref.finalize(self, _warn_of_unclosed, self._name, os.getpid())
        self._unserved = Unserved(store)
        if self._counters is not None:
            self._counters.store = store.counters
        return store

    async def _accepted(self, accepting: Awaitable[T], what: str, again: str) -> T:
        """Wait until the store accepts, at most `timeout`."""
        if self._timeout is None:
            return await accepting
        try:
            async with asyncio.timeout(self._timeout):
                return await accepting
        except TimeoutError:
            text = f"{self._name} has not accepted {what} within {self._timeout:g} s: it does not answer. {again}"
            raise StoreUnavailable(text) from None

    # --- running ------------------------------------------------------------------------------------------------------
    async def run(self, submission: Submission, accepted: Callable[[], object] = nothing, /) -> Outcome:
        store = self._store or await self.opened()
        start = self._start_of(store, submission)
        watch = store.watch(start.id)
        try:
            is_new = await self._submit(store, start)
            accepted()
            outcome = None if is_new else await store.outcome(start.id)
            if outcome is None:
                outcome = await watch
        finally:
            if not watch.done():
                watch.cancel()
        return _outcome_of(outcome)

    async def start(self, submission: Submission, /) -> None:
        store = self._store or await self.opened()
        await self._submit(store, self._start_of(store, submission))

    async def start_all(self, submissions: Sequence[Submission], /) -> None:
        store = self._store or await self.opened()
        await self._submit_all(store, [self._start_of(store, each) for each in submissions])

    async def _submit(self, store: Store, start: Start) -> bool:
        (is_new,) = await self._submit_all(store, (start,))
        return is_new

    async def _submit_all(self, store: Store, starts: Sequence[Start]) -> list[bool]:
        tracer = self._tracer()
        if not (trace := current(tracer)) and tracer is None:
            return await self._submit_as_they_are(store, starts)
        if tracer is None:
            return await self._submit_as_they_are(store, [replace(each, trace=trace) for each in starts])
        creations = [tracer.creation(each, trace) for each in starts]
        starts = [replace(each, trace=creation.trace) for each, creation in zip(starts, creations, strict=True)]
        try:
            are_new = await self._submit_as_they_are(store, starts)
        except BaseException as error:
            for creation in creations:
                creation.end(error)
            raise
        for creation, is_new in zip(creations, are_new, strict=True):
            if is_new:
                creation.end()
        return are_new

    async def _submit_as_they_are(self, store: Store, starts: Sequence[Start]) -> list[bool]:
        if self._timeout is None:
            are_new = await store.submit(starts)
        else:
            first = starts[0].id
            what = f"the start of invocation {first!r}" + (f" and {len(starts) - 1} more" if len(starts) > 1 else "")
            again = f"It may be accepted all the same: start it again with using(id={first!r}), which runs it once"
            are_new = await self._accepted(store.submit(starts), what, again)
        if self._unserved is not None:
            for start in starts:
                if not store.serves(start.handler):
                    self._unserved.note(start)
        return are_new

    def _start_of(self, store: Store, asked: Submission) -> Start:
        if len(asked.input) > store.payload_limit:
            raise too_large(f"the input of workflow {asked.handler!r}", len(asked.input), store.payload_limit)
        if asked.when_busy != "enqueue" and asked.key is None:
            raise InvalidOption(f"workflow {asked.handler!r}: when_busy={asked.when_busy!r} needs a key")
        at = store.clock.now()
        due = at if asked.delay is None else due_at(asked.delay, at)
        return Start(
            asked.id,
            asked.handler,
            asked.input,
            at,
            due,
            self._new_seed(),
            asked.key,
            asked.timeout,
            None,
            asked.is_chosen,
            (),
            asked.digest,
            tags=asked.tags,
            interface=asked.interface,
            flow=asked.flow,
            when_busy=asked.when_busy,
        )

    def _new_seed(self) -> int:
        return self._chance.getrandbits(63)

    async def result(self, id: str, /, *, timeout: float | None = None) -> Outcome:
        store = await self.opened()
        watch = store.watch(id)
        try:
            outcome = await store.outcome(id)
            if outcome is None:
                if await store.row(id) is None:
                    raise unknown(id)
                try:
                    outcome = await asyncio.wait_for(watch, timeout)
                except TimeoutError:
                    text = f"invocation {id!r} has not ended within {timeout} s; it goes on"
                    raise WaitTimeout(text, invocation_id=id, timeout=timeout or 0.0) from None
        finally:
            watch.cancel()
        return _outcome_of(outcome)

    async def restart(
        self, id: str, call: Submission | None, /, *, new_id: str | None, handlers: Collection[str] = ()
    ) -> str:
        store = await self.opened()
        row, old = await store.row(id), await store.start(id)
        if row is None or old is None:
            raise unknown(id)
        if row.status not in SETTLED:
            reason = f"it is {row.status}, and only an invocation at rest can be restarted: cancel it, or wait for it"
            text = f"cannot restart invocation {id!r}: {reason}"
            raise IllegalTransition(text, invocation_id=id, reason=reason, status=row.status)
        start = self._start_again(store, old, call, handlers)
        if new_id is not None:
            start = replace(start, id=check_new_id(new_id), chosen=True)
        if start.id == id:
            raise InvalidOption(f"restart(id={id!r}): that is its own id; give another, or use retry()")
        await self._submit(store, start)
        return start.id

    def _start_again(self, store: Store, old: Start, call: Submission | None, handlers: Collection[str]) -> Start:
        if call is None:
            at = store.clock.now()
            id = new_id(at, self._chance.randbytes(10))
            made = replace(old, id=id, at=at, due=at, seed=self._new_seed())
            return replace(made, parent=None, chosen=False, held=(), trace="", when_busy="enqueue")
        if old.handler not in handlers:
            both = f"invocation {old.id!r} is of workflow {old.handler!r}, not {call.handler!r}"
            raise InvalidOption(f"{both}: to run another workflow, use client.start")
        start = self._start_of(store, call)
        timeout = old.timeout if start.timeout is None else start.timeout
        return replace(start, key=start.key or old.key, timeout=timeout, tags=start.tags or old.tags)

    # --- talking ------------------------------------------------------------------------------------------------------
    async def pause(self, id: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self.tell(id, Pause(), timeout)

    async def resume(self, id: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self.tell(id, Resume(), timeout)

    async def cancel(self, id: str, /, *, force: bool = False, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self.tell(id, Cancel(bool(force)), timeout)

    async def retry(self, id: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self.tell(id, RetryInvocation(), timeout)

    async def resolve(self, awakeable_id: str, value: bytes, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        store = self._store or await self.opened()
        id, generation, n = parse_awakeable_id(awakeable_id, store.secret)
        if len(value) > store.payload_limit:
            raise too_large("the value of the awakeable", len(value), store.payload_limit)
        await self.tell(id, Resolve(n, value, generation), timeout)

    async def reject(self, awakeable_id: str, reason: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        store = self._store or await self.opened()
        id, generation, n = parse_awakeable_id(awakeable_id, store.secret)
        await self.tell(id, Reject(n, reason, generation), timeout)

    async def awakeable(self, awakeable_id: str, /) -> tuple[str, int]:
        id, _, n = parse_awakeable_id(awakeable_id, (await self.opened()).secret)
        return id, n

    async def make_capability(self, purpose: Purpose, awakeable_id: str, expires: Delay, /) -> Capability:
        store = await self.opened()
        parse_awakeable_id(awakeable_id, store.secret)
        now = store.clock.now()
        expires_at = due_at(expires, now, "expires")
        if expires_at < now + 1:
            raise InvalidOption(f"expires={expires!r}: the link would be of no use: give a later time")
        return await self._capabilities.make(self, purpose, awakeable_id, expires_at)

    async def check_capability(self, purpose: Purpose, text: str, /) -> Capability:
        store = await self.opened()
        return await self._capabilities.check(self, purpose, text, store.clock.now())

    async def _post(self, store: Store, id: str, request: Request, message_id: str | None) -> Message:
        if message_id is None:
            self._sent += 1
            message_id = f"{self._writer}-{self._sent}"
        message = Message(message_id, id, store.clock.now(), request, current(self._tracer()))
        again = "It may be accepted all the same: look at the invocation, then send it again"
        await self._accepted(store.post(message), f"a message for invocation {id!r}", again)
        return message

    async def tell(self, id: str, request: Request, timeout: Duration, *, message_id: str | None = None) -> None:
        """Post a message, and wait until it is applied. A second one of the same id changes nothing."""
        limit = seconds("timeout", timeout)
        store = self._store or await self.opened()
        message = await self._post(store, id, request, message_id)
        try:
            async with asyncio.timeout(limit):
                answer = await store.answer(message.id)
        except TimeoutError:
            text = f"invocation {id!r}: the message is accepted, and not yet applied after {limit:g} s"
            if isinstance(request, RetryInvocation):
                text += ". If it has a key, it waits for that first: describe() says what it waits for"
            raise WaitTimeout(text, invocation_id=id, timeout=limit) from None
        if (reason := answer.refused) is not None:
            text = f"invocation {id!r} refused the message: {reason}"
            if (status := refusing_status(reason)) is not None:
                raise IllegalTransition(text, invocation_id=id, reason=reason, status=status)
            raise MessageRefused(text, invocation_id=id, reason=reason)

    # --- looking ------------------------------------------------------------------------------------------------------
    async def look(self, id: str, /) -> Invocation:
        row = await (await self.opened()).row(id)
        if row is None:
            raise unknown(id)
        return from_row(row)

    async def describe(self, id: str, /) -> Invocation:
        store = shown(await self.opened())
        row = await store.row(id)
        start = await store.start(id)
        if row is None or start is None:
            raise unknown(id)
        recorded, mail = await store.journal(id), await store.mail(id)
        holder = None if row.key is None else (await store.key(row.key)).holder
        served = store.serves(row.handler)
        found = from_journal(row, start, recorded.frames, mail, store.secret, served=served, key_holder=holder)
        return replace(found, streams=dict(await store.streams.counts(id)))

    async def page(
        self, filters: Filters, /, *, limit: int, cursor: str | None = None, within: float | None = None
    ) -> Page:
        filter = filter_of(**filters)
        before = None if cursor is None else position_of(cursor, filter)
        rows = await (await self.opened()).search(replace(filter, before=before, limit=limit + 1, within=within))
        next = cursor_of(rows[limit - 1], filter) if len(rows) > limit else None
        return Page(tuple(map(from_row, rows[:limit])), next)

    async def awakeables(
        self, filters: AwakeableFilters, /, *, limit: int, cursor: str | None = None, within: float | None = None
    ) -> AwakeablePage:
        store = shown(await self.opened())
        now = store.clock.now()
        filter = awakeable_filter_of(now, **filters)
        after = None if cursor is None else place_of(cursor, filter)
        found = await store.awakeables(replace(filter, after=after, limit=limit + 1, within=within))
        told = tuple(from_index(each, store.secret, now) for each in found[:limit])
        return AwakeablePage(told, cursor_of_awakeable(found[limit - 1], filter) if len(found) > limit else None)

    async def watch(self, id: str, /) -> AsyncGenerator[Invocation, None]:
        store = await self.opened()
        events = store.events(Filter(id=id))
        try:
            row = await store.row(id)
            if row is None:
                raise unknown(id)
            yield from_row(row)
            while row.status not in SETTLED:
                before, changes = row, await events.next()
                row = changes[-1] if changes else await store.row(id)
                if row is None:
                    raise unknown(id)
                if row.status != before.status:
                    yield from_row(row)
        finally:
            events.close()

    async def stream(
        self, id: str, name: str, start: int, /, *, follow: bool = True
    ) -> AsyncGenerator[StreamPart, None]:
        store = await self.opened()
        async with aclosing(parts_of(store, id, name, start, follow=follow)) as parts:
            async for part in parts:
                yield part

    async def watch_all(self, filters: Filters, /, *, gone: bool = False) -> AsyncGenerator[Invocation, None]:
        filter = replace(filter_of(**filters), gone=gone)
        store = await self.opened()
        events = store.events(filter)
        since, apart = store.clock.now(), store.clocks_apart
        try:
            while True:
                rows = await events.next()
                if rows is None and gone:  # what was purged meanwhile cannot be found out
                    yield from_row(gone_row(""))
                    continue
                if rows is None:  # those who wrote what was missed may have clocks behind ours
                    async for row in _changed_since(store, filter, since - apart):
                        since = max(since, row.updated_at)
                        yield from_row(row)
                    continue
                for row in rows:
                    since = max(since, row.updated_at)
                    yield from_row(row)
        finally:
            events.close()

    async def stats(self) -> Stats:
        store = await self.opened()
        counts, now = await store.counts(), store.clock.now()
        total = sum(counts.by_status.values())
        pending = {handler: max(0.0, now - since) for handler, since in counts.due_since.items()}
        return Stats(total, counts.by_status, counts.by_handler, counts.is_current, counts.behind, pending)

    async def minutes(self, *, since: datetime, handler: str | None = None) -> list[Minute]:
        asked = filter_of(created_after=since, handler=handler)  # checked as in a filter
        store = await self.opened()
        first = max(asked.created_after or 0.0, store.clock.now() - MINUTES_KEPT_SECONDS)
        found = await store.minutes(first, handler=handler, within=QUERY_SECONDS)
        times = ((datetime.fromtimestamp(each.at, UTC), each) for each in found)
        return [Minute(at, each.handler, each.status, each.count, each.seconds, each.longest) for at, each in times]

    async def state(self, key: str, /) -> Mapping[str, bytes]:
        return (await shown(await self.opened()).key(key)).state

    async def serves(self, handler: str, /) -> bool | None:
        return (await self.opened()).serves(handler)

    # --- bulk jobs ----------------------------------------------------------------------------------------------------
    async def preview_bulk(self, request: BulkRequest, /, *, by: Access | None = None) -> BulkPreview:
        return await self.jobs.preview(request, by)

    async def begin_bulk(self, verb: BulkVerb, token: str, /, *, by: Access | None = None) -> BulkProgress:
        again = "It may have begun all the same: the same token does not begin it twice"
        return await self._accepted(self.jobs.begin(verb, token, by), "a bulk job", again)

    async def bulk_job(self, id: str, /) -> BulkProgress:
        return await self.jobs.look(id)

    async def bulk_jobs(self, *, limit: int, cursor: str | None = None) -> BulkPage:
        return await self.jobs.page(limit, cursor)

    async def stop_bulk(self, id: str, /) -> BulkProgress:
        again = "It may be accepted all the same: look at the job"
        return await self._accepted(self.jobs.stop(id), f"that bulk job {id!r} is to stop", again)

    # --- keys of a sealed store ---------------------------------------------------------------------------------------
    async def count_sealed(self, after: str = "", /) -> SealedPart:
        return await self.rekeying.count(after)

    async def begin_rekey(self) -> RekeyProgress:
        again = "It may have begun all the same: begin it again, which changes nothing"
        return await self._accepted(self.rekeying.begin(), "a rekey job", again)

    async def rekey(self) -> RekeyProgress | None:
        return await self.rekeying.look()

    # --- documents ----------------------------------------------------------------------------------------------------
    async def read_documents(self, collection: str, keys: Sequence[DocumentKey], /) -> list[Document | None]:
        store = await self.opened()
        return await store.documents.read(collection, keys)

    async def write_documents(
        self, collection: str, writes: Sequence[Write], fence: Fence | None = None, /
    ) -> list[int]:
        store = await self.opened()
        for write in writes:
            if isinstance(write, Put) and len(write.value) > store.payload_limit:
                raise too_large(f"document {'/'.join(write.key)!r}", len(write.value), store.payload_limit)
        writing = store.documents.write(collection, writes, fence)
        return await self._accepted(writing, f"documents of {collection!r}", "They may be written all the same")

    async def scan_documents(self, collection: str, which: Scan, /) -> list[Document]:
        store = await self.opened()
        return await store.documents.scan(collection, which)

    async def delete_documents(self, collection: str, prefix: str, /) -> int:
        store = await self.opened()
        removed, after = 0, None
        while found := await store.documents.scan(collection, Scan(prefix, after, limit=DELETE_BATCH, values=False)):
            after = found[-1].key
            for _, group in itertools.groupby(found, lambda each: each.key[0]):
                revisions = await store.documents.write(collection, [Delete(each.key) for each in group])
                removed += sum(revision > 0 for revision in revisions)
        return removed

    # --- schedules ----------------------------------------------------------------------------------------------------
    async def put_schedule(self, name: str, plan: Plan, /) -> bool:
        return await self.scheduling.put(name, plan)

    async def change_schedule(self, name: str, change: Change, /) -> list[str]:
        return await self.scheduling.change(name, change)

    async def delete_schedule(self, name: str, /) -> bool:
        return await self.scheduling.delete(name)

    async def describe_schedule(self, name: str, /) -> ScheduleInfo:
        return await self.scheduling.describe(name)

    async def schedules(self, *, limit: int, after: str | None = None) -> list[ScheduleInfo]:
        return await self.scheduling.page(limit, after)

    async def schedule_times(self, name: str, count: int, /) -> list[float]:
        return await self.scheduling.times(name, count)

    # --- access -------------------------------------------------------------------------------------------------------
    async def add_token(self, access: Access, /, *, expires: datetime | None = None) -> str:
        return await add_token(self, access, expires, await self._now())

    async def revoke_token(self, id: str, /) -> None:
        await revoke_token(self, id, await self._now())

    async def tokens(self) -> list[Token]:
        return await tokens(self)

    async def audit(self, after: int = 0, /) -> list[Link]:
        return await read(self, after)

    async def _now(self) -> datetime:
        return datetime.fromtimestamp((await self.opened()).clock.now(), UTC)

    # --- keeping ------------------------------------------------------------------------------------------------------
    async def export(self, id: str, /, *, plain: bool = False) -> bytes:
        store = await self.opened()
        kept, sealed_in = store, b""
        if isinstance(store, SealsValues) and not plain:
            kept, sealed_in = store.inner, store.store_id
        start = await kept.start(id)
        if start is None:
            raise unknown(id)
        return export((await kept.journal(id)).frames, start, store.secret, sealed_in)

    async def purge(self, id: str, /) -> None:
        store = await self.opened()
        row = await store.row(id)
        if row is None:
            raise unknown(id)
        if not await store.purge(store.clock.now(), limit=1, id=id):
            why = "cancel it first"
            if row.status in SETTLED:
                why = "something for it is still in hand, or its sender may send it again: try later"
            text = f"cannot purge invocation {id!r}: it is {row.status}; {why}"
            raise IllegalTransition(text, invocation_id=id, status=row.status)

    async def backup(self, target: str, /) -> None:
        store = await self.opened()
        if isinstance(store, SealsValues):
            store = store.inner
        if not isinstance(store, HasBackup):
            raise StoreError(f"{self._name} makes no backup of itself: {self._instead_of_backup}")
        await store.backup(target)


def _warn_of_unclosed(name: str, pid: int) -> None:
    """Warn, as asyncio does, if the operations are dropped or the process ends while the store is open."""
    if pid == os.getpid():
        text = f"unclosed client of {name}: leave its `async with`, or await client.aclose()"
        warnings.warn(text, ResourceWarning, stacklevel=2)


async def store_behind(operations: Operations) -> Store:
    """Return the open store behind local operations: for workers, and for tests that look behind the client."""
    return await cast("Local", operations).opened()


async def _changed_since(store: Store, filter: Filter, since: float) -> AsyncIterator[Row]:
    """Read the whole index for changes: the fallback of a watcher that missed some."""
    async for rows in pages_of(store, filter):
        for row in rows:
            if row.updated_at >= since:
                yield row


def _outcome_of(outcome: journal.Outcome) -> Outcome:
    match outcome:
        case journal.Completed(value=value):
            return Value(value)
        case journal.Failed(failure=failure):
            return failure
        case journal.Cancelled():
            return WasCancelled()
        case _:
            assert_never(outcome)
