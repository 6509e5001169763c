"""The client: starts, awaits, inspects and controls invocations. It uses the operations and knows no store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from os import PathLike, fspath
from types import ModuleType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar, Unpack, cast, overload

from perdure.authoring.group import Group, Wait
from perdure.authoring.workflow import Call, Delay, Workflow, checked_delay
from perdure.blocking import Blocking
from perdure.bulk import BulkJob
from perdure.calls import refuse_in_body, submission_of, value_of
from perdure.core.ids import check_name
from perdure.core.lifecycle import SETTLED
from perdure.core.retry import Duration, seconds
from perdure.core.turn import current_turn
from perdure.core.types import decoder
from perdure.core.values import encode
from perdure.counters import Counters
from perdure.documents import Documents
from perdure.errors import InvalidOption, NotAWorkflow, UnknownInvocation
from perdure.handle import Handle
from perdure.operations.bulk import JOBS_PAGE_LIMIT, BulkPreview, BulkProgress, BulkVerb, bulk_request
from perdure.operations.capabilities import LINK_SECONDS, Purpose, check_public_url
from perdure.operations.describe import AwakeableInfo, Invocation
from perdure.operations.documents import check_collection
from perdure.operations.listing import (
    PAGE_LIMIT,
    AwakeableFilters,
    Filters,
    Page,
    Status,
    check_awakeable_filters,
    check_cursor,
    check_filters,
    check_limit,
)
from perdure.operations.port import ANSWER_WAIT_SECONDS, Operations, Stats, Submission
from perdure.operations.schedules import SCHEDULES_PAGE, ScheduleInfo
from perdure.profile import Profile, profile_of
from perdure.run_all import SETTLE_SECONDS, run_group
from perdure.runtime.worker import CACHE_LIMIT, Translators, Worker
from perdure.schedules import ScheduleHandle

if TYPE_CHECKING:
    from typing_extensions import TypeForm

    from perdure.authoring.flows.flow import Flow

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

LIST_BATCH = 200
"""Invocations or awakeables that `list` and `awakeables` read per page."""


class MakeWorker(Protocol):
    """Creates the workers of a client: they need the store, which the client does not know."""

    def __call__(
        self,
        workflows: list[Workflow[..., Any]],
        /,
        *,
        max_concurrent: int,
        services: Mapping[str, str] | None,
        partitions: set[int] | None,
        lease: float,
        cache: int,
    ) -> Worker: ...


class Client(AbstractAsyncContextManager["Client"]):
    """A connection to one store. It opens on first use or on `async with`, and closes with `aclose` or the latter."""

    def __init__(
        self,
        operations: Operations,
        make_worker: MakeWorker,
        translators: Translators = tuple,
        counters: Counters | None = None,
    ) -> None:
        self.operations = operations
        self.counters = counters  # None: what it does is done elsewhere
        self.translators = translators
        self._make_worker = make_worker
        self._running: list[Worker] = []  # its workers that run; they maintain this list

    async def __aenter__(self) -> Self:
        refuse_in_body("connect(...)")
        await self.operations.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the store; later calls raise `StoreClosed`. The workers of this client must have stopped."""
        await self.operations.aclose()

    # --- running ------------------------------------------------------------------------------------------------------
    async def run(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Start a workflow, wait for it, and return its result or raise its exception.

        If the waiting ends early (a timeout, a cancellation), the invocation continues. `InputRefused` for wrong
        arguments, before anything is recorded.
        """
        if current_turn() is not None:
            refuse_in_body("client.run()", f"call the child, `await {_name_of(workflow)}(...)`")
        submission = self._submission_of(workflow, args, kwargs)
        outcome = await self.operations.run(submission)
        return value_of(submission.id, outcome, workflow, self.translators)

    async def start(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Start a workflow and return its handle, once the start is durable. Idempotent by `using(id=...)`."""
        if current_turn() is not None:
            name = _name_of(workflow)
            refuse_in_body("client.start()", f"use `ctx.send({name}, ...)`, or await the child `{name}(...)`")
        submission = self._submission_of(workflow, args, kwargs)
        await self.operations.start(submission)
        return Handle(self.operations, submission.id, workflow, self.translators)

    def _submission_of(self, workflow: Workflow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Submission:
        """Return the submission; `NameTaken` if a worker of this client would run other code under that name."""
        submission = submission_of(workflow, args, kwargs)
        for worker in self._running:
            if (served := worker.serves(workflow)) is not None and served is not workflow:
                workflow.check_beside(served)
        return submission

    async def run_all(
        self,
        calls: Iterable[Call[R]],
        /,
        *,
        wait: Wait | None = None,
        concurrency: int | None = None,
        settle: Duration = SETTLE_SECONDS,
    ) -> Group[R]:
        """Run several workflows, at most `concurrency` at a time, and return their outcomes in the order given.

        When `wait` is over, the remaining members are cancelled, and awaited for at most `settle` seconds; those that
        have not ended then are `Unsettled`, and end later. All calls are checked before any is started. If the caller
        is cancelled, so are the members.
        """
        refuse_in_body("client.run_all()", "use `ctx.run_all(...)`")
        return await run_group(
            self.operations, calls, wait=wait, concurrency=concurrency, settle=settle, translators=self.translators
        )

    @overload
    def handle(self, id: str, /) -> Handle[Any]: ...
    @overload
    def handle(self, id: str, workflow: Workflow[..., R], /) -> Handle[R]: ...
    def handle(self, id: str, workflow: Any = None, /) -> Handle[Any]:
        """Return the handle of an invocation by its id. Given the workflow, results are decoded by its types."""
        return Handle(self.operations, check_name("an invocation's id", id), workflow, self.translators)

    # --- inspecting ---------------------------------------------------------------------------------------------------
    def list(
        self, *, limit: int | None = None, cursor: str | None = None, **filters: Unpack[Filters]
    ) -> AsyncGenerator[Invocation, None]:
        """Iterate over invocations, newest first, with the fields that the index has.

        They are read page by page, up to `limit`, starting after `cursor` (the `next` of a `page`). Invocations that
        are started meanwhile cause no duplicates or gaps. A wrong filter raises `InvalidOption` or `BadId` at once.
        """
        refuse_in_body("client.list()")
        check_filters(filters)
        check_cursor(cursor, filters)
        return self._listed(filters, cursor, None if limit is None else check_limit(limit))

    async def _listed(self, filters: Filters, cursor: str | None, left: int | None) -> AsyncGenerator[Invocation, None]:
        while left is None or left > 0:
            size = LIST_BATCH if left is None else min(LIST_BATCH, left)
            page = await self.operations.page(filters, limit=size, cursor=cursor)
            for each in page.invocations:
                yield each
            if (cursor := page.next) is None:
                return
            left = None if left is None else left - size

    async def page(self, *, limit: int = 100, cursor: str | None = None, **filters: Unpack[Filters]) -> Page:
        """Return at most `limit` (up to 1,000) invocations, newest first, and the cursor of the page after them."""
        refuse_in_body("client.page()")
        check_filters(filters)
        check_cursor(cursor, filters)
        return await self.operations.page(filters, limit=check_limit(limit, PAGE_LIMIT), cursor=cursor)

    async def profile(self, flow: Flow[..., Any] | str, /, *, last: int = 1_000) -> Profile:
        """Measure the last runs of a flow that have ended, at most so many. The flow may be given by name.

        It reads their journals, and needs nothing but these.
        """
        refuse_in_body("client.profile()")
        name = flow if isinstance(flow, str) else flow.name
        found: list[Invocation] = []
        for status in SETTLED:
            found += [each async for each in self.list(limit=last, handler=name, status=status)]
        found.sort(key=lambda each: (each.created_at is not None, each.created_at), reverse=True)
        described: list[Invocation] = []
        for each in found[:last]:
            with suppress(UnknownInvocation):  # it was purged meanwhile
                described.append(await self.operations.describe(each.id))
        return profile_of(described)

    def watch(
        self,
        *,
        status: Status | None = None,
        handler: str | None = None,
        key: str | None = None,
        id_prefix: str | None = None,
    ) -> AsyncGenerator[Invocation, None]:
        """Iterate, without end, over invocations as they change, from the first `anext` on. Pushed, not polled.

        An invocation is yielded whenever its status or wait has changed and it matches the filters; a new one counts
        as changed. A slow reader gets only the latest state of each. If too many change, the index is read instead,
        and some may be yielded twice. Ends with `StoreClosed` when the store closes.
        """
        refuse_in_body("client.watch()")
        filters = Filters(status=status, handler=handler, key=key, id_prefix=id_prefix)
        check_filters(filters)
        return self.operations.watch_all(filters)

    async def stats(self) -> Stats:
        """Count invocations by status and by handler."""
        refuse_in_body("client.stats()")
        return await self.operations.stats()

    async def state(self, key: str, /) -> dict[str, Any]:
        """Return the state that the invocations of a key share, in builtin types, as of the last that ended."""
        refuse_in_body("client.state()")
        held = await self.operations.state(check_name("a key", key))
        return {name: decoder(Any)(value) for name, value in held.items()}

    # --- documents ----------------------------------------------------------------------------------------------------
    @overload
    def documents(self, collection: str, /) -> Documents[Any]: ...
    @overload
    def documents(self, collection: str, type: TypeForm[T], /) -> Documents[T]: ...
    def documents(self, collection: str, type: Any = Any, /) -> Documents[Any]:
        """Return a collection of documents of one type (builtin types if none is given)."""
        return Documents(self.operations, check_collection(collection), type)

    # --- awakeables ---------------------------------------------------------------------------------------------------
    def awakeables(
        self, *, open: bool | None = True, handler: str | None = None, assignee: str | None = None
    ) -> AsyncGenerator[AwakeableInfo, None]:
        """Iterate over awakeables, oldest first: those that take an answer, unless `open` is False, or None for all.

        An awakeable is open until it is resolved or rejected, it expires, or its invocation ends.
        `handler` is the name of the workflow, `assignee` one of those named to `ctx.awakeable`. They are read page by
        page. A wrong filter raises `InvalidOption` or `BadId` at once.
        """
        refuse_in_body("client.awakeables()")
        filters = AwakeableFilters(open=open, handler=handler, assignee=assignee)
        check_awakeable_filters(filters)
        return self._awakeables(filters)

    async def _awakeables(self, filters: AwakeableFilters) -> AsyncGenerator[AwakeableInfo, None]:
        cursor: str | None = None
        while True:
            page = await self.operations.awakeables(filters, limit=LIST_BATCH, cursor=cursor)
            for each in page.awakeables:
                yield each
            if (cursor := page.next) is None:
                return

    async def resolve(
        self, awakeable_id: str, value: object = None, /, *, timeout: Duration = ANSWER_WAIT_SECONDS
    ) -> None:
        """Resolve an awakeable with a value; refused if it has one, or if the value has the wrong shape."""
        refuse_in_body("client.resolve()")
        data = encode(value, "the value of the awakeable")
        await self.operations.resolve(awakeable_id, data, timeout=timeout)

    async def reject(self, awakeable_id: str, reason: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """Reject an awakeable: awaiting it raises `AwakeableRejected` with the reason."""
        refuse_in_body("client.reject()")
        if not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidOption(f"reject(..., {reason!r}): the reason must be a str")
        encode(reason, "the reason")  # refuse here what cannot be recorded
        await self.operations.reject(awakeable_id, reason, timeout=timeout)

    # --- bulk jobs ----------------------------------------------------------------------------------------------------
    async def bulk_preview(self, verb: BulkVerb, /, *, force: bool = False, **filters: Unpack[Filters]) -> BulkPreview:
        """Count the invocations to which `bulk` would apply a verb, up to 10,000, and change nothing.

        Begin just that with `bulk(preview)`, within 15 minutes.
        """
        refuse_in_body("client.bulk_preview()")
        return await self.operations.preview_bulk(bulk_request(verb, filters, force=force))

    @overload
    async def bulk(self, preview: BulkPreview, /) -> BulkJob: ...
    @overload
    async def bulk(self, verb: BulkVerb, /, *, force: bool = False, **filters: Unpack[Filters]) -> BulkJob: ...
    async def bulk(
        self, what: BulkPreview | BulkVerb, /, *, force: bool = False, **filters: Unpack[Filters]
    ) -> BulkJob:
        """Begin a job that applies a verb to all invocations that match, and return it once it is durable.

        The verbs are pause, resume, cancel (perhaps with `force`), retry, restart and purge; the filters those of
        `list`, at least one. Workers carry it out. It applies to the invocations that match now, or when the preview
        was made: not to those that are created later, nor, but for pause and cancel, to those that have changed since.
        """
        refuse_in_body("client.bulk()")
        if not isinstance(what, BulkPreview):
            preview = await self.bulk_preview(what, force=force, **filters)
        elif force or filters:
            raise InvalidOption("bulk(preview, …): the preview has the filters; give it alone")
        else:
            preview = what
        if preview.token is None:
            raise InvalidOption("bulk(preview): that is what another job began with; take a new bulk_preview")
        return BulkJob(self.operations, await self.operations.begin_bulk(preview.verb, preview.token))

    async def bulk_job(self, id: str, /) -> BulkJob:
        """Return a bulk job by its id; `UnknownJob` if there is none, or if it ended 1,000 jobs ago."""
        refuse_in_body("client.bulk_job()")
        return BulkJob(self.operations, await self.operations.bulk_job(check_name("the id of a bulk job", id)))

    def bulk_jobs(self) -> AsyncGenerator[BulkProgress, None]:
        """Iterate over the bulk jobs and how far they are, newest first."""
        refuse_in_body("client.bulk_jobs()")
        return self._bulk_jobs()

    async def _bulk_jobs(self) -> AsyncGenerator[BulkProgress, None]:
        cursor: str | None = None
        while True:
            page = await self.operations.bulk_jobs(limit=JOBS_PAGE_LIMIT, cursor=cursor)
            for each in page.jobs:
                yield each
            if (cursor := page.next) is None:
                return

    async def approval_link(
        self, awakeable_id: str, /, *, expires: Delay = LINK_SECONDS, public_url: str | None = None
    ) -> str:
        """Return a link to a page on which anyone who has the link can answer an awakeable, once.

        It is the URL of a server, which is `public_url`, or else its path only. It expires with the awakeable, or after
        `expires` (seconds, a timedelta or an aware datetime; default 30 days). Make it in the step that sends it, and
        do not return it from there: results are recorded.
        """
        refuse_in_body("client.approval_link()", "make it in the step that sends it")
        return await self._link("approve", awakeable_id, expires, public_url)

    async def callback_link(
        self, awakeable_id: str, /, *, expires: Delay = LINK_SECONDS, public_url: str | None = None
    ) -> str:
        """Return a URL to which another system posts JSON, the value of an awakeable. As `approval_link`."""
        refuse_in_body("client.callback_link()", "make it in the step that sends it")
        return await self._link("hook", awakeable_id, expires, public_url)

    async def _link(self, purpose: Purpose, awakeable_id: str, expires: Delay, public_url: str | None) -> str:
        base = "" if public_url is None else check_public_url(public_url)
        made = await self.operations.make_capability(purpose, awakeable_id, checked_delay(expires, "expires"))
        return base + made.path

    # --- schedules ----------------------------------------------------------------------------------------------------
    @overload
    def schedule(self, name: str, /) -> ScheduleHandle[Any]: ...
    @overload
    def schedule(self, name: str, workflow: Workflow[..., R], /) -> ScheduleHandle[R]: ...
    def schedule(self, name: str, workflow: Any = None, /) -> ScheduleHandle[Any]:
        """Return the handle of a schedule by its name. Given the workflow, results are decoded by its types.

        `await client.schedule("nightly").put(Schedule(report.bind("all"), cron="0 3 * * *"))` makes or changes it.
        """
        return ScheduleHandle(self.operations, name, workflow, self.translators)

    async def schedules(self) -> AsyncGenerator[ScheduleInfo, None]:
        """Iterate over the schedules, by name. They are read page by page."""
        refuse_in_body("client.schedules()")
        after: str | None = None
        while True:
            page = await self.operations.schedules(limit=SCHEDULES_PAGE, after=after)
            for each in page:
                yield each
            if len(page) < SCHEDULES_PAGE:
                return
            after = page[-1].name

    # --- backup -------------------------------------------------------------------------------------------------------
    async def backup(self, target: str | PathLike[str], /) -> None:
        """Copy the store to a new file while it is served; `StoreError` for stores that are backed up in other ways."""
        refuse_in_body("client.backup()")
        await self.operations.backup(fspath(target))

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
        """Return a worker for these workflows, or those of a module. Enter it, or `await` its `serve()`.

        At most `max_concurrent` invocations have steps in progress at a time. `services` maps gRPC services to
        addresses. Up to `cache` suspended invocations stay in memory. `lease` (seconds) and `partitions` are for
        stores shared by several processes; embedded stores have one partition and need no lease.
        """
        refuse_in_body("client.worker()")
        if seconds("lease", lease) < 1:
            raise InvalidOption(f"worker(lease={lease}): give at least 1 second")
        found = [each for given in workflows for each in workflows_of(given)]
        if not found:
            raise InvalidOption("a worker needs at least one workflow, or a module with workflows")
        worker = self._make_worker(
            found,
            max_concurrent=max_concurrent,
            services=services,
            partitions=None if partitions is None else {*partitions},
            lease=lease,
            cache=cache,
        )
        worker.beside = self._running
        return worker

    def blocking(self, *workers: Worker) -> Blocking:
        """Run this client and these workers on an event loop in a thread, for sync callers.

        Use it in a `with`, or keep it for the life of the process: it opens on its first call and closes at exit.
        """
        return Blocking(self, workers)


def _name_of(workflow: object) -> str:
    return str(getattr(workflow, "name", workflow))


def workflows_of(given: Workflow[..., Any] | ModuleType) -> list[Workflow[..., Any]]:
    """Return the workflow, or those that a module defines or imports, without references."""
    if isinstance(given, Workflow):
        return [given]
    if isinstance(given, ModuleType):  # pyright: ignore[reportUnnecessaryIsInstance]
        found = cast("list[Workflow[..., Any]]", [each for each in vars(given).values() if isinstance(each, Workflow)])
        return [*{id(each): each for each in found if not each.is_reference}.values()]
    raise NotAWorkflow(f"{given!r} is neither a workflow nor a module: decorate the function with @workflow")
