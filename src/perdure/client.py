"""The client: start workflows, wait for them, look at them, talk to them. It sees the Store protocol and no store."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import ModuleType
from typing import Any, Generic, ParamSpec, Self, TypeVar, Unpack, assert_never, cast, overload
from weakref import WeakSet

from msgspec import Struct
from msgspec.structs import replace

from perdure.authoring.group import Group, Wait, WaitForever, run_group
from perdure.authoring.workflow import Call, Workflow
from perdure.blocking import Blocking, blocking
from perdure.core.exported import export
from perdure.core.failures import rebuild
from perdure.core.ids import check_name, new_id, parse_awakeable_id
from perdure.core.journal import (
    Cancel,
    Cancelled,
    Completed,
    Failed,
    Message,
    Outcome,
    Pause,
    Reject,
    Request,
    Resolve,
    Resume,
    RetryInvocation,
    Start,
    Status,
)
from perdure.core.lifecycle import SETTLED, refusing_status
from perdure.core.retry import Duration, seconds
from perdure.core.turn import StubMaker
from perdure.core.types import decoder
from perdure.core.values import encode
from perdure.errors import (
    IllegalTransition,
    InvalidOption,
    InvocationCancelled,
    MessageRefused,
    NotAWorkflow,
    WaitTimeout,
    too_large,
)
from perdure.operations.describe import Invocation, from_journal, from_row
from perdure.operations.listing import PAGE_LIMIT, Filters, Page, check_limit, cursor_of, filter_of, place_of
from perdure.runtime.worker import CACHE_LIMIT, Channels, Translators, Worker
from perdure.stores.port import Filter, Row, Store, no_partitions, unknown

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

ANSWER_WAIT_SECONDS = 30.0
"""How long `pause`, `resume`, `cancel`, `retry`, `resolve` and `reject` wait to hear that they were applied.

The message is durable before they wait."""

LIST_BATCH = 200
"""Invocations that `list` reads at a time."""


class Stats(Struct, frozen=True, omit_defaults=True):
    """How many invocations there are.

    `is_current` is false while a store that is far away cannot be asked: these are the last known numbers then, and at
    least `behind` changes are missing.
    """

    total: int
    by_status: Mapping[Status, int]
    by_handler: Mapping[str, int]
    is_current: bool = True
    behind: int = 0


class Handle(Generic[R_co]):
    """One invocation, from wherever: wait for it, look at it, talk to it."""

    def __init__(self, client: Client, id: str, workflow: Workflow[..., R_co] | None = None) -> None:
        self.id = id
        self._client = client
        self._workflow = workflow

    def __repr__(self) -> str:
        return f"Handle({self.id!r})"

    async def result(self, *, timeout: Duration | None = None) -> R_co:
        """Wait for the result, and return it or raise what the body raised.

        `timeout` (seconds or a timedelta) bounds only the waiting: `WaitTimeout`. A cancelled invocation raises
        `InvocationCancelled`, an unknown id `UnknownInvocation`.
        """
        limit = None if timeout is None else seconds("timeout", timeout)
        store = await self._client.opened()
        watch = store.watch(self.id)
        try:
            outcome = await store.outcome(self.id)
            if outcome is None:
                if await store.row(self.id) is None:
                    raise unknown(self.id)
                try:
                    outcome = await asyncio.wait_for(watch, limit)
                except TimeoutError:
                    text = f"invocation {self.id!r} has not ended within {limit} s; it goes on"
                    raise WaitTimeout(text, invocation_id=self.id, timeout=limit or 0.0) from None
        finally:
            watch.cancel()
        return value_of(self.id, outcome, self._workflow, self._client.translators)

    async def describe(self) -> Invocation:
        """Return its status, journal, state, awakeables, times, and what it waits for."""
        store = await self._client.opened()
        row = await store.row(self.id)
        start = await store.start(self.id)
        if row is None or start is None:
            raise unknown(self.id)
        journal, mail = await store.journal(self.id), await store.mail(self.id)
        holder = None if row.key is None else (await store.key(row.key)).holder
        served = store.serves(row.handler)
        return from_journal(row, start, journal.frames, mail, store.secret, served=served, key_holder=holder)

    async def export(self) -> bytes:
        """Return its history, to be kept in a file and replayed by `perdure.testing.replay` when the code changes.

        JSON text with the input and all that is journaled, whatever its status; the format is versioned. It holds what
        was recorded, and the ids of awakeables: keep it like the data of production that it is.
        """
        store = await self._client.opened()
        start = await store.start(self.id)
        if start is None:
            raise unknown(self.id)
        return export((await store.journal(self.id)).frames, start, store.secret)

    async def watch(self) -> AsyncGenerator[Invocation, None]:
        """Iterate over its statuses as they change: the present one first, and the one in which it is settled last.

        Each is what the index knows, as in `client.list`. Pushed, not polled; who comes late for the next one gets the
        newest. `contextlib.aclosing` ends it at once when the loop is left early.
        """
        store = await self._client.opened()
        events = store.events(Filter(id=self.id))
        try:
            row = await store.row(self.id)
            if row is None:
                raise unknown(self.id)
            yield from_row(row)
            while row.status not in SETTLED:
                before, changes = row, await events.next()
                row = changes[-1] if changes else await store.row(self.id)
                if row is None:
                    raise unknown(self.id)
                if row.status != before.status:
                    yield from_row(row)
        finally:
            events.close()

    async def pause(self, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """Start and deliver nothing new until `resume`; running steps end and are journaled.

        Here and in the other verbs, the message is durable at once, and `timeout` bounds only the waiting until a
        worker has applied it: `WaitTimeout`. `MessageRefused` says why it was not applied.
        """
        await self._client.send(self.id, Pause(), timeout=timeout)

    async def resume(self, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """End a pause."""
        await self._client.send(self.id, Resume(), timeout=timeout)

    async def cancel(self, *, force: bool = False, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """Cancel, letting cleanup code run; `force` skips cleanup. Returns when the cancellation is recorded.

        As of an asyncio task, CancelledError is raised where the body waits, once: a body that catches it and goes on
        has taken it, and a second plain cancel changes nothing, so that cleanup is not cut short. Force ends it always.
        Children are cancelled likewise; what was sent is not.
        """
        await self._client.send(self.id, Cancel(bool(force)), timeout=timeout)

    async def retry(self, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """Run a failed invocation again from the step that made it fail, under the same id.

        Results from before are kept, and what was undone since stays undone. The failed step gets a new idempotency
        key and its attempts begin anew; a failed child is started anew; siblings that the failure cancelled run again.
        A body that raised by itself is run again as a whole over the results it has: retry it once it is repaired.
        Anything but a failed invocation refuses: `MessageRefused`.
        """
        await self._client.send(self.id, RetryInvocation(), timeout=timeout)

    async def purge(self) -> None:
        """Remove a settled invocation for ever, without waiting for the end of its retention.

        Its journal and messages go; its id is unknown then, and may be used anew. `IllegalTransition` while it has not
        ended, or while something for it is still in hand: try that again. On JetStream what a workflow sent last stays
        while the workflow waits for no time, or is there after its end.
        """
        store = await self._client.opened()
        row = await store.row(self.id)
        if row is None:
            raise unknown(self.id)
        if not await store.purge(store.clock.now(), limit=1, id=self.id):
            why = "cancel it first"
            if row.status in SETTLED:
                why = "something for it is still in hand, or who sent it may send it again: try later"
            text = f"cannot purge invocation {self.id!r}: it is {row.status}; {why}"
            raise IllegalTransition(text, invocation_id=self.id, status=row.status)

    @overload
    async def restart(self, /, *, id: str | None = None) -> Handle[R_co]: ...
    @overload
    async def restart(self, call: Call[R], /, *, id: str | None = None) -> Handle[R]: ...
    async def restart(self, call: Call[Any] | None = None, /, *, id: str | None = None) -> Handle[Any]:
        """Run it from its beginning as a new invocation, under another id, perhaps with other input; return that.

        For an invocation at rest, however it ended; this one stays as it is, and nothing of its journal is reused.
        `call` gives other arguments or options, as in `await handle.restart(charge.bind(card, 400), id="o-7-again")`;
        without it the input is the same, and so are key and time limit unless the call sets its own. `id` makes it
        idempotent. Raises `IllegalTransition` while the invocation is not at rest, `InvalidOption` for a call of
        another workflow or the same id.
        """
        store = await self._client.opened()
        row, old = await store.row(self.id), await store.start(self.id)
        if row is None or old is None:
            raise unknown(self.id)
        if row.status not in SETTLED:
            reason = f"it is {row.status}, and only an invocation at rest can be restarted: cancel it, or wait for it"
            text = f"cannot restart invocation {self.id!r}: {reason}"
            raise IllegalTransition(text, invocation_id=self.id, reason=reason, status=row.status)
        start = await self._client.start_again(old, call, id)
        return Handle(self._client, start.id, self._workflow if call is None else call.workflow)


class Client(AbstractAsyncContextManager["Client"]):
    """A connection to one store. Opens on first use or on `async with`; close it with `aclose` or by leaving that."""

    def __init__(
        self,
        make_store: Callable[[], Store],
        make_channels: Callable[[Mapping[str, str]], Channels],
        translators: Translators = tuple,
        stubs: StubMaker | None = None,
        retention: float | None = None,
        shards: int | None = 1,
    ) -> None:
        self._shards = shards
        self.translators = translators
        self._retention = retention
        self._workers: WeakSet[Worker] = WeakSet()
        self._stubs = stubs
        self._make_store = make_store
        self._make_channels = make_channels
        self._store: Store | None = None
        self._sent = 0
        self._opening: asyncio.Task[Store] | None = None

    async def __aenter__(self) -> Self:
        await self.opened()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the store. Workers of this client must have stopped."""
        store, self._store, self._opening = self._store, None, None
        if store is not None:
            await store.aclose()

    async def opened(self) -> Store:
        """Return the open store, opening it if need be."""
        store = self._store
        if store is None:
            opening = self._opening
            if opening is None:
                opening = self._opening = asyncio.ensure_future(self._open())
            try:
                self._store = store = await asyncio.shield(opening)
            finally:
                if opening.done():
                    self._opening = None
        return store

    async def _open(self) -> Store:
        store = self._make_store()
        await store.open()
        self._name = secrets.token_hex(10)  # now rather than earlier: a forked child opens a store of its own
        return store

    # --- running ------------------------------------------------------------------------------------------------------
    async def run(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Start a workflow, wait for it, and return its result or raise what it raised.

        To stop waiting (a timeout, a cancellation) does not stop the invocation. Wrong arguments are refused before
        anything is recorded: `InputRefused`.
        """
        store = self._store or await self.opened()
        start = self._start(store, workflow, args, kwargs)
        watch = store.watch(start.id)
        try:
            new = await store.submit((start,))
            outcome = None if new[0] else await store.outcome(start.id)
            if outcome is None:
                outcome = await watch
        finally:
            if not watch.done():
                watch.cancel()
        return value_of(start.id, outcome, workflow, self.translators)

    async def start(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Start a workflow and return its handle, once the start is durable. Idempotent by `using(id=...)`."""
        store = self._store or await self.opened()
        start = self._start(store, workflow, args, kwargs)
        await store.submit((start,))
        return Handle(self, start.id, workflow)

    def _start(
        self, store: Store, workflow: Workflow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Start:
        if not isinstance(workflow, Workflow):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise NotAWorkflow(f"{workflow!r} is not a workflow: decorate the function with @workflow")
        for worker in self._workers:
            if (served := worker.serves(workflow)) is not None:
                workflow.check_beside(served)
        at = store.clock.now()
        id, seed = _new_identity(at)
        start = workflow.start_of(args, kwargs, id=id, at=at, seed=seed)
        if len(start.input) > store.payload_limit:
            raise too_large(f"the input of workflow {workflow.name!r}", len(start.input), store.payload_limit)
        return start

    async def start_again(self, old: Start, call: Call[Any] | None, id: str | None) -> Start:
        """Start what `Handle.restart` asks for."""
        store = await self.opened()
        if call is None:
            at = store.clock.now()
            new, seed = _new_identity(at)
            start = replace(old, id=new, at=at, due=at, seed=seed, parent=None, chosen=False, held=())
        else:
            start = self._start(store, call.workflow, call.args, call.kwargs)
            if old.handler not in (call.workflow.name, *call.workflow.aliases):
                both = f"invocation {old.id!r} is of workflow {old.handler!r}, not {call.workflow.name!r}"
                raise InvalidOption(f"{both}: to run another workflow, use client.start")
            timeout = old.timeout if start.timeout is None else start.timeout
            start = replace(start, key=start.key or old.key, timeout=timeout)
        if id is not None:
            start = replace(start, id=check_name("an invocation's id", id), chosen=True)
        if start.id == old.id:
            raise InvalidOption(f"restart(id={start.id!r}): that is its own id; give another, or use retry()")
        await store.submit((start,))
        return start

    async def run_all(
        self, calls: Iterable[Call[R]], /, *, wait: Wait | None = None, concurrency: int | None = None
    ) -> Group[R]:
        """Run several workflows, at most `concurrency` at a time, and return their outcomes in the order given."""
        return await run_group(self, calls, wait=wait or WaitForever(), concurrency=concurrency)

    @overload
    def handle(self, id: str, /) -> Handle[Any]: ...
    @overload
    def handle(self, id: str, workflow: Workflow[..., R], /) -> Handle[R]: ...
    def handle(self, id: str, workflow: Any = None, /) -> Handle[Any]:
        """Return the handle of an invocation by its id; with its workflow, results are decoded by its types."""
        return Handle(self, check_name("an invocation's id", id), workflow)

    # --- looking ------------------------------------------------------------------------------------------------------
    def list(
        self, *, limit: int | None = None, cursor: str | None = None, **filters: Unpack[Filters]
    ) -> AsyncGenerator[Invocation, None]:
        """Iterate over invocations, newest first; only what the index knows is filled in.

        They are read page by page, all of them unless there is a `limit`, beginning after the `next` of a `page` if
        that is given as `cursor`. What is started meanwhile neither repeats nor hides another. A wrong filter is an
        `InvalidOption` or `BadId` at once.
        """
        before = None if cursor is None else place_of(cursor)
        return self._listed(replace(filter_of(**filters), before=before), None if limit is None else check_limit(limit))

    async def _listed(self, filter: Filter, left: int | None) -> AsyncGenerator[Invocation, None]:
        store = await self.opened()
        while left is None or left > 0:
            size = LIST_BATCH if left is None else min(LIST_BATCH, left)
            rows = await store.search(replace(filter, limit=size))
            for row in rows:
                yield from_row(row)
            if len(rows) < size:
                return
            filter = replace(filter, before=(rows[-1].created_at, rows[-1].id))
            left = None if left is None else left - len(rows)

    async def page(self, *, limit: int = 100, cursor: str | None = None, **filters: Unpack[Filters]) -> Page:
        """Return at most `limit` (up to 1,000) invocations, newest first, and the cursor of the page after them."""
        before = None if cursor is None else place_of(cursor)
        size = check_limit(limit, PAGE_LIMIT)
        filter = replace(filter_of(**filters), before=before, limit=size + 1)
        rows = await (await self.opened()).search(filter)
        return Page(tuple(map(from_row, rows[:size])), cursor_of(rows[size - 1]) if len(rows) > size else None)

    def watch(
        self,
        *,
        status: Status | None = None,
        handler: str | None = None,
        key: str | None = None,
        id_prefix: str | None = None,
    ) -> AsyncGenerator[Invocation, None]:
        """Iterate, without end, over invocations as they change, from the first `anext` on: pushed, not polled.

        One comes whenever its status or wait has changed to what the filters let through; a new one counts as changed.
        For a slow reader the newest of each invocation is kept. If far too many change, the index is read instead, and
        some may come twice. The end of the store ends it: `StoreClosed`.
        """
        return self._changing(filter_of(status=status, handler=handler, key=key, id_prefix=id_prefix))

    async def _changing(self, filter: Filter) -> AsyncGenerator[Invocation, None]:
        store = await self.opened()
        events = store.events(filter)
        since = store.clock.now()
        try:
            while True:
                rows = await events.next()
                if rows is None:
                    async for row in self._changed_since(store, filter, since):
                        since = max(since, row.updated_at)
                        yield from_row(row)
                    continue
                for row in rows:
                    since = max(since, row.updated_at)
                    yield from_row(row)
        finally:
            events.close()

    async def _changed_since(self, store: Store, filter: Filter, since: float) -> AsyncIterator[Row]:
        """Read the whole index for what has changed: the way out for a watcher that was not told."""
        filter = replace(filter, limit=PAGE_LIMIT)
        while rows := await store.search(filter):
            for row in rows:
                if row.updated_at >= since:
                    yield row
            filter = replace(filter, before=(rows[-1].created_at, rows[-1].id))

    async def stats(self) -> Stats:
        """Count invocations by status and by handler."""
        counts = await (await self.opened()).counts()
        total = sum(counts.by_status.values())
        return Stats(total, counts.by_status, counts.by_handler, counts.is_current, counts.behind)

    async def state(self, key: str, /) -> dict[str, Any]:
        """Return the state that the invocations of a key share, in builtin types, as the last to end left it."""
        held = await (await self.opened()).key(check_name("a key", key))
        return {name: decoder(Any)(value) for name, value in held.state.items()}

    # --- talking ------------------------------------------------------------------------------------------------------
    async def resolve(
        self, awakeable_id: str, value: object = None, /, *, timeout: Duration = ANSWER_WAIT_SECONDS
    ) -> None:
        """Give an awakeable its value; refused when it has one, or when the value has the wrong shape."""
        store = self._store or await self.opened()
        invocation_id, generation, n = parse_awakeable_id(awakeable_id, store.secret)
        data = encode(value, "the value of the awakeable")
        if len(data) > store.payload_limit:
            raise too_large("the value of the awakeable", len(data), store.payload_limit)
        await self.send(invocation_id, Resolve(n, data, generation), timeout=timeout)

    async def reject(self, awakeable_id: str, reason: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """Fail an awakeable: who awaits it gets `AwakeableRejected` with the reason."""
        if not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidOption(f"reject(..., {reason!r}): the reason must be a str")
        encode(reason, "the reason")  # what cannot be recorded is refused here
        store = await self.opened()
        invocation_id, generation, n = parse_awakeable_id(awakeable_id, store.secret)
        await self.send(invocation_id, Reject(n, reason, generation), timeout=timeout)

    async def send(self, id: str, request: Request, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """Post a message durably and wait until it is applied.

        `MessageRefused` says why it was not; it is an `IllegalTransition` if the status does not allow it.
        """
        limit = seconds("timeout", timeout)
        store = self._store or await self.opened()
        self._sent += 1
        message = Message(f"{self._name}-{self._sent}", id, store.clock.now(), request)
        await store.post(message)
        try:
            async with asyncio.timeout(limit):
                answer = await store.answer(message.id)
        except TimeoutError:
            text = f"invocation {id!r}: the message is accepted, and not yet applied after {limit:g} s"
            raise WaitTimeout(text, invocation_id=id, timeout=limit) from None
        if (reason := answer.refused) is not None:
            text = f"invocation {id!r} refused the message: {reason}"
            if (status := refusing_status(reason)) is not None:
                raise IllegalTransition(text, invocation_id=id, reason=reason, status=status)
            raise MessageRefused(text, invocation_id=id, reason=reason)

    # --- serving ------------------------------------------------------------------------------------------------------
    def worker(
        self,
        *workflows: Workflow[..., Any] | ModuleType,
        max_concurrent: int = 100,
        services: Mapping[str, str] | None = None,
        partitions: Iterable[int] | None = None,
        lease: float = 15,
        cache: int = CACHE_LIMIT,
    ) -> Worker:
        """Make a worker that serves these workflows, or those of a module. Enter it, or `await` its `serve()`.

        At most `max_concurrent` invocations have steps in progress at a time. `services` maps gRPC services to
        addresses. `cache` suspended invocations are kept live. `lease` (seconds) and `partitions` are for stores
        shared by several processes; the embedded stores have one partition and need no lease.
        """
        if partitions is not None:
            partitions = {*partitions}
            if not partitions or (self._shards is not None and not partitions <= {*range(self._shards)}):
                raise no_partitions(partitions, self._shards)
        if seconds("lease", lease) < 1:
            raise InvalidOption(f"worker(lease={lease}): give at least 1 second")
        found = [each for given in workflows for each in workflows_of(given)]
        if not found:
            raise InvalidOption("a worker needs at least one workflow, or a module that has some")
        channels = self._make_channels(services) if services else None
        worker = Worker(
            self.opened,
            found,
            max_concurrent=max_concurrent,
            channels=channels,
            cache=cache,
            translators=self.translators,
            stubs=self._stubs,
            retention=self._retention,
            partitions=partitions,
            lease=lease,
            beside=self._workers,
        )
        self._workers.add(worker)
        return worker

    def blocking(self, *workers: Worker) -> AbstractContextManager[Blocking]:
        """Open this client, and run these workers, on a loop of their own in a thread, for callers without one."""
        return blocking(self, workers)


def _new_identity(at: float) -> tuple[str, int]:
    """Return an id and a seed for a start."""
    random = os.urandom(18)
    return new_id(at, random[:10]), int.from_bytes(random[10:], "big") >> 1


def workflows_of(given: Workflow[..., Any] | ModuleType) -> list[Workflow[..., Any]]:
    """Return a workflow as it is, and of a module those that it defines or imports, without references."""
    if isinstance(given, Workflow):
        return [given]
    if isinstance(given, ModuleType):  # pyright: ignore[reportUnnecessaryIsInstance]
        found = cast("list[Workflow[..., Any]]", [each for each in vars(given).values() if isinstance(each, Workflow)])
        return [*{id(each): each for each in found if not each.is_reference}.values()]
    raise NotAWorkflow(f"{given!r} is neither a workflow nor a module: decorate the function with @workflow")


def value_of(id: str, outcome: Outcome, workflow: Workflow[..., Any] | None, translators: Translators) -> Any:
    """Return the value of an outcome, or raise its failure."""
    match outcome:
        case Completed(value=value):
            return workflow.decode_result(value) if workflow is not None else decoder(Any)(value)
        case Failed(failure=failure):
            raise rebuild(failure, translators=translators())
        case Cancelled():
            raise InvocationCancelled(f"invocation {id!r} was cancelled", invocation_id=id)
        case _:
            assert_never(outcome)
