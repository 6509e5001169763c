"""The routes: what each takes, and what it answers with."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, cast
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import Response

from perdure.authoring.workflow import checked_delay
from perdure.background import end
from perdure.core.busy import WhenBusy
from perdure.core.failures import Failure
from perdure.core.ids import check_name, check_new_id, new_id
from perdure.core.interface import MISSING, classes_of, identity, input_from_json, input_schema
from perdure.core.json_schema import json_schema, without_defaults
from perdure.core.json_values import DEPTH_LIMIT, ERRORS_LIMIT, from_json, is_deeper
from perdure.core.lifecycle import MISFIT
from perdure.core.retry import seconds
from perdure.core.streams import check_stream
from perdure.core.tags import check_tags
from perdure.core.values import digest, type_name
from perdure.errors import IdConflict, KeyBusy, MessageRefused, PerdureError, ValueRefused, WaitTimeout
from perdure.http.admin import ADMIN_ROUTES
from perdure.http.bulk import BULK_ROUTES
from perdure.http.exchange import Exchange, json_response
from perdure.http.feed import changes, items
from perdure.http.openapi import document_of
from perdure.http.problems import Problem
from perdure.http.routes import IDEMPOTENCY_KEY_LIMIT, Body, NoQuery, Route
from perdure.http.service import SERVER_SENT_EVENTS
from perdure.http.views import (
    UNTYPED,
    Accepted,
    AllAccepted,
    Applied,
    AwakeablePageView,
    Ended,
    HandlerList,
    HandlerView,
    Health,
    JournalPage,
    KeyView,
    MinuteList,
    StatsView,
    WorkflowPage,
    WorkflowView,
    awakeable_row,
    ended_of,
    plain,
    row_of,
    step_of,
    workflow_of,
)
from perdure.operations.access import Access
from perdure.operations.interfaces import Handler
from perdure.operations.listing import PAGE_LIMIT, QUERY_SECONDS, AwakeableFilters, Filters, Status
from perdure.operations.port import Outcome, Submission

STEPS_SHOWN = 200
"""Steps that an invocation is shown with; its journal's own route has all."""
WAIT_LIMIT_SECONDS = 300.0
"""The longest that a request waits for a result."""
APPLY_SECONDS = 5.0
"""How long a request waits until it is applied to an invocation. It is durable before."""
UNKNOWN_SECONDS = 30.0
"""How long a start waits for a handler that no worker has served yet, if it is asked to."""
UNKNOWN_LOOK_SECONDS = 0.25
"""How often it is looked whether one has."""
MINUTES_SHOWN_SECONDS = 3_600
"""How far back minutes are counted if no time is given."""
BATCH_LIMIT = 1_000
"""Starts that are accepted together at most."""
OFFSET_DIGITS = 18
"""Digits of the number of an item."""
LARGE_BODY_BYTES = 64 * 1024
"""A body beyond this is converted in a thread, so that other requests and the worker go on."""

Limit = Annotated[int, Meta(ge=1, le=PAGE_LIMIT)]
Seconds = Annotated[float, Meta(ge=0)]


# --- health -----------------------------------------------------------------------------------------------------------
async def live(_: Exchange, __: NoQuery) -> Response:
    return json_response(Health("live"))


async def ready(exchange: Exchange, _: NoQuery) -> Response:
    await exchange.operations.open()
    return json_response(Health("ready"))


# --- looking ----------------------------------------------------------------------------------------------------------
class ListQuery(Struct):
    """Filters: all that are given must match. A `tag` is NAME:VALUE, and may be repeated."""

    status: Status | None = None
    handler: str | None = None
    key: str | None = None
    id_prefix: str | None = None
    tag: list[str] = []
    created_after: datetime | None = None
    created_before: datetime | None = None
    limit: Limit = 100
    cursor: str | None = None


async def list_workflows(exchange: Exchange, query: ListQuery) -> Response:
    filters = Filters(
        status=query.status,
        handler=query.handler,
        key=query.key,
        id_prefix=query.id_prefix,
        created_after=query.created_after,
        created_before=query.created_before,
        tags=_tags(query.tag) or None,
    )
    page = await exchange.operations.page(filters, limit=query.limit, cursor=query.cursor, within=QUERY_SECONDS)
    return json_response(WorkflowPage([row_of(each) for each in page.invocations], page.next))


def _tags(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not (name and colon and value) or name in found:
            why = "it is given twice" if name in found else "it is not NAME:VALUE, as in tenant:acme"
            raise Problem(400, "bad-query", f"tag {text[:60]!r}: {why}", wrong=[("tag", why)])
        found[name] = value
    return found


async def stats(exchange: Exchange, _: NoQuery) -> Response:
    found = await exchange.operations.stats()
    return json_response(StatsView(found.total, dict(found.by_status), dict(found.by_handler)))


class MinutesQuery(Struct):
    """Since when, by default an hour ago and at most a day; only of one handler."""

    since: datetime | None = None
    handler: str | None = None


async def minutes(exchange: Exchange, query: MinutesQuery) -> Response:
    since = query.since or datetime.now(UTC) - timedelta(seconds=MINUTES_SHOWN_SECONDS)
    found = await exchange.operations.minutes(since=since, handler=query.handler)
    return json_response(MinuteList(found))


async def show_workflow(exchange: Exchange, _: NoQuery) -> Response:
    service = exchange.service
    found = await exchange.operations.describe(exchange.parameters["id"])
    interface = await service.interfaces.of_invocation(found.handler, found.interface)
    return json_response(workflow_of(found, interface, STEPS_SHOWN))


class JournalQuery(Struct, rename={"first": "from"}):
    """The number of the first step, and how many."""

    first: Annotated[int, Meta(ge=0)] = 0
    limit: Limit = PAGE_LIMIT


async def show_journal(exchange: Exchange, query: JournalQuery) -> Response:
    found = await exchange.operations.describe(exchange.parameters["id"])
    steps = [each for each in found.journal if each.number >= query.first]
    next = steps[query.limit].number if len(steps) > query.limit else None
    return json_response(JournalPage([step_of(each) for each in steps[: query.limit]], next))


class WaitQuery(Struct):
    """How long to wait, in seconds."""

    wait: Seconds | None = None


async def result(exchange: Exchange, query: WaitQuery) -> Response:
    service, id = exchange.service, exchange.parameters["id"]
    limit = _wait_seconds(exchange, query.wait)
    waiting = _result(exchange, id, limit or 0.0)
    outcome = await (service.wait(waiting, limit + 1.0, exchange) if limit else waiting)
    if outcome is None:
        return json_response(accepted_at(exchange, id), 202)
    described = await exchange.operations.describe(id)
    interface = await service.interfaces.of_invocation(described.handler, described.interface)
    return json_response(ended_of(id, outcome, interface, shown=exchange.access.payloads))


async def _result(exchange: Exchange, id: str, limit: float) -> Outcome | None:
    try:
        return await exchange.operations.result(id, timeout=limit)
    except WaitTimeout:
        return None


class ExportQuery(Struct):
    """Whether values that the store seals are opened."""

    plain: bool = False


async def history(exchange: Exchange, query: ExportQuery) -> Response:
    data = await exchange.operations.export(exchange.parameters["id"], plain=query.plain)
    return Response(data, 200, {"Cache-Control": "no-store"}, "application/octet-stream")


async def show_key(exchange: Exchange, _: NoQuery) -> Response:
    key = check_name("a key", exchange.parameters["key"])
    held = await exchange.operations.state(key)
    return json_response(KeyView(key, {name: _untyped(value) for name, value in held.items()}))


def _untyped(data: bytes) -> Any:
    return plain(msgspec.msgpack.decode(data))


# --- handlers ---------------------------------------------------------------------------------------------------------
async def list_handlers(exchange: Exchange, _: NoQuery) -> Response:
    found = await exchange.service.interfaces.handlers()
    reached = [each for each in found if exchange.access.reaches_handler(each.name)]
    return json_response(HandlerList([_handler_view(each, exchange.access) for each in reached]))


async def show_handler(exchange: Exchange, _: NoQuery) -> Response:
    return json_response(_handler_view(await handler_named(exchange, exchange.parameters["handler"]), exchange.access))


def _handler_view(handler: Handler, access: Access) -> HandlerView:
    interface = handler.interface
    classes, _ = classes_of(interface, where="#/$defs/")
    input = input_schema(interface, where="#/$defs/")
    described = {**input, "$defs": classes} if classes else input
    result = json_schema(interface.result)
    if not access.payloads:
        described, result = without_defaults(described), without_defaults(result)
    return HandlerView(handler.name, interface.description, handler.hash, described, result)


async def handler_named(exchange: Exchange, name: str) -> Handler:
    """Return a handler that a worker has published, or raise a `Problem`."""
    found = await exchange.service.interfaces.handler(check_name("a handler's name", name))
    if found is None or not exchange.access.reaches_handler(found.name):
        text = (
            f"no worker has served a handler {name!r} here, or its parameters cannot be described, which its worker "
            "logged: /api/handlers lists those that there are"
        )
        raise Problem(404, "unknown-handler", text)
    return found


# --- running ----------------------------------------------------------------------------------------------------------
class InvokeQuery(Struct):
    """Options of the start. `delay` and `timeout` are in seconds, `tag` is NAME:VALUE and may be repeated.

    With `wait`, in seconds, the answer is the result if it comes in that time. `unknown=accept`: where no worker has
    served the handler yet, wait for one, at most 30 s. `when_busy` as in `using()`: a request with `wait` whose
    start is rejected is answered with the problem `key-busy`.
    """

    id: str | None = None
    key: str | None = None
    delay: Seconds | None = None
    timeout: Seconds | None = None
    tag: list[str] = []
    wait: Seconds | None = None
    unknown: Literal["accept"] | None = None
    when_busy: WhenBusy = "enqueue"


async def invoke(exchange: Exchange, query: InvokeQuery) -> Response:
    name = exchange.parameters["handler"]
    if query.unknown == "accept":
        await exchange.service.wait(_published(exchange, name), UNKNOWN_SECONDS, exchange)
    handler = await handler_named(exchange, name)
    tags, once = _tags(query.tag), exchange.header("idempotency-key")

    def converted() -> Submission:
        return submission_for(exchange, handler, query, exchange.json(), tags, once)

    is_large = len(exchange.body) > LARGE_BODY_BYTES  # then the others go on meanwhile
    submission = await asyncio.to_thread(converted) if is_large else converted()
    limit = _wait_seconds(exchange, query.wait)
    exchange.target = f"{handler.asked}/{submission.id}"
    try:
        if limit is None:
            await exchange.operations.start(submission)
            return json_response(accepted_at(exchange, submission.id), 202)
        outcome = await _run(exchange, submission, limit)
    except IdConflict as error:
        if once is None:
            raise
        raise _key_reused() from error
    if outcome is None:
        return json_response(accepted_at(exchange, submission.id), 202)
    if submission.when_busy == "reject" and isinstance(outcome, Failure) and outcome.type == type_name(KeyBusy):
        about = f"key {submission.key!r} is busy" if exchange.access.is_limited else outcome.message
        raise Problem(409, "key-busy", about)
    return json_response(ended_of(submission.id, outcome, handler.interface, shown=exchange.access.payloads))


async def _published(exchange: Exchange, name: str) -> None:
    """Wait until a worker has published a handler. What is out of the caller's reach is not waited for."""
    while exchange.access.reaches_handler(name) and await exchange.service.interfaces.handler(name) is None:  # noqa: ASYNC110  documents have no watch
        await asyncio.sleep(UNKNOWN_LOOK_SECONDS)


async def _run(exchange: Exchange, submission: Submission, limit: float) -> Outcome | None:
    """Start an invocation and wait for it; return None if it has not ended in time. It is durable then."""
    service, accepted = exchange.service, asyncio.Event()
    running = asyncio.ensure_future(exchange.operations.run(submission, accepted.set))
    accepting = asyncio.ensure_future(accepted.wait())
    try:
        outcome = await service.wait(_shielded(running), limit, exchange)
        if outcome is None:
            await asyncio.wait([running, accepting], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                outcome = running.result()
        return outcome
    finally:
        await end([each for each in (running, accepting) if not each.done()])


async def _shielded(running: asyncio.Future[Outcome]) -> Outcome:
    """Wait without ending what is waited for: a start must not be given up half way."""
    return await asyncio.shield(running)


class BatchStart(Struct, forbid_unknown_fields=True):
    """One start: the handler, its input, and the options of the start. `delay` and `timeout` are in seconds."""

    handler: str
    input: Any = UNSET
    id: str | None = None
    key: str | None = None
    delay: Seconds | None = None
    timeout: Seconds | None = None
    tags: dict[str, str] = {}
    when_busy: WhenBusy = "enqueue"


class Batch(Struct, forbid_unknown_fields=True):
    """Starts that are accepted together, or not at all."""

    starts: Annotated[list[BatchStart], Meta(min_length=1, max_length=BATCH_LIMIT)]


async def invoke_all(exchange: Exchange, _: NoQuery) -> Response:
    found: list[Submission] = []
    wrong: list[tuple[str, str]] = []
    for number, each in enumerate(exchange.struct(Batch).starts):
        options = InvokeQuery(each.id, each.key, each.delay, each.timeout, when_busy=each.when_busy)
        body = MISSING if each.input is UNSET else each.input
        try:
            handler = await handler_named(exchange, each.handler)
            found.append(submission_for(exchange, handler, options, body, each.tags))
        except ValueRefused as error:
            wrong += [(f"/starts/{number}/input{at}", why) for at, why in error.errors]
        except (Problem, PerdureError) as error:
            wrong.append((f"/starts/{number}", str(error)))
    counts = Counter(each.id for each in found)
    wrong += [("/starts", f"the id {id!r} is given twice") for id, count in counts.items() if count > 1]
    if wrong:
        text = f"{len(wrong)} things are wrong with the starts, and none was accepted: {wrong[0][0]}: {wrong[0][1]}"
        raise Problem(422, "value-refused", text, wrong=wrong[:ERRORS_LIMIT])
    exchange.target = f"{len(found)} from {found[0].id}"
    await exchange.operations.start_all(found)
    return json_response(AllAccepted([accepted_at(exchange, each.id) for each in found]), 202)


def submission_for(
    exchange: Exchange,
    handler: Handler,
    query: InvokeQuery,
    body: Any,
    tags: Mapping[str, str],
    once: str | None = None,
) -> Submission:
    """Return what to start; `once` is its idempotency key."""
    input = input_from_json(handler.interface, body)
    found = identity(handler.interface, input)
    checked = check_tags(tags)
    key = None if query.key is None else check_name("a key", query.key)
    delay = None if query.delay is None else cast("float", checked_delay(query.delay))
    timeout = None if query.timeout is None else seconds("timeout", query.timeout, positive=True)
    id, is_chosen = query.id, query.id is not None
    if once is not None:
        if id is not None:
            raise Problem(400, "bad-query", "give an id or an Idempotency-Key, not both")
        id, is_chosen = id_for(exchange, handler.asked, once), True
        options = (key, checked, timeout, delay)  # these must be the same too
        if query.when_busy != "enqueue":
            options += (query.when_busy,)
        found = digest(found + msgspec.msgpack.encode(options))
    elif id is not None:
        check_new_id(id)
    else:
        id = new_id(time.time(), os.urandom(10))
    return Submission(
        *(id, handler.asked, input, found, is_chosen, key, delay, timeout, checked),
        interface=bytes.fromhex(handler.hash),
        when_busy=query.when_busy,
    )


def id_for(exchange: Exchange, handler: str, once: str) -> str:
    """Return the id of the invocation that an idempotency key of this caller stands for."""
    text = once.strip()
    if not text or len(text) > IDEMPOTENCY_KEY_LIMIT or not (text.isascii() and text.isprintable()):
        why = f"an Idempotency-Key has 1 to {IDEMPOTENCY_KEY_LIMIT} printable ASCII characters"
        raise Problem(400, "bad-idempotency-key", why)
    name = "" if exchange.admitted.means == "local" else f"{exchange.access.name}\n"
    data = f"{name}{handler}\n{text}".encode()
    id = hashlib.blake2b(data, digest_size=16, person=b"perdure-once").hexdigest()
    exchange.operations.vouch(id)
    return id


def _key_reused() -> Problem:
    text = "this Idempotency-Key was used for another input, or other options: use a new one"
    return Problem(422, "idempotency-key-reused", text)


@contextmanager
def pointed(at: str) -> Generator[None]:
    """Let errors in a part of the body point to where that part is."""
    try:
        yield
    except ValueRefused as error:
        raise ValueRefused(str(error), errors=tuple((at + each, why) for each, why in error.errors)) from error


def accepted_at(exchange: Exchange, id: str) -> Accepted:
    """Return where a start that is durable is looked at."""
    at = f"{exchange.root}/api/workflows/{quote(id, safe='')}"
    return Accepted(id, at, f"{at}/result")


def _wait_seconds(exchange: Exchange, asked: float | None) -> float | None:
    """Return how long the caller wants to wait, by `?wait=` or `Prefer: wait=` (RFC 7240); None if it does not."""
    if asked is None and (prefer := exchange.header("prefer")) is not None:
        found = re.search(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})", prefer)
        asked = None if found is None else float(found[1])
    if asked is None:
        return None
    return min(seconds("wait", asked), WAIT_LIMIT_SECONDS)


# --- operating --------------------------------------------------------------------------------------------------------
class CancelBody(Struct, forbid_unknown_fields=True):
    """`force`: end it at once, without cleanup."""

    force: bool = False


class RestartBody(Struct, forbid_unknown_fields=True):
    """Other input than it had, and the id of the new invocation, if they are to be chosen."""

    input: Any = UNSET
    id: str | UnsetType = UNSET


Verb = Literal["pause", "resume", "cancel", "retry"]


async def pause(exchange: Exchange, _: NoQuery) -> Response:
    return await _apply(exchange, "pause")


async def resume(exchange: Exchange, _: NoQuery) -> Response:
    return await _apply(exchange, "resume")


async def retry(exchange: Exchange, _: NoQuery) -> Response:
    return await _apply(exchange, "retry")


async def cancel(exchange: Exchange, _: NoQuery) -> Response:
    return await _apply(exchange, "cancel", force=exchange.struct(CancelBody).force)


async def _apply(exchange: Exchange, verb: Verb, **options: Any) -> Response:
    id = exchange.parameters["id"]
    return await _applied(exchange, id, getattr(exchange.operations, verb)(id, timeout=APPLY_SECONDS, **options))


async def _applied(exchange: Exchange, id: str, telling: Awaitable[None]) -> Response:
    """Tell an invocation something. 202: it is durable, and applied when a worker gets to it."""
    status = 200 if await is_applied(telling) else 202
    return json_response(Applied(id, (await exchange.operations.look(id)).status), status)


async def is_applied(telling: Awaitable[None]) -> bool:
    """Tell an invocation something, and report whether it was applied in time. It is durable in any case."""
    try:
        await telling
    except WaitTimeout:
        return False
    return True


async def restart(exchange: Exchange, _: NoQuery) -> Response:
    operations, id = exchange.operations, exchange.parameters["id"]
    body = exchange.struct(RestartBody)
    call, handlers = None, tuple[str, ...]()
    if body.input is not UNSET:
        invocation = await operations.look(id)
        handler = await handler_named(exchange, invocation.handler)
        with pointed("/input"):
            call = submission_for(exchange, handler, InvokeQuery(), body.input, {})
        handlers = (invocation.handler, handler.name)
    chosen = None if isinstance(body.id, UnsetType) else check_new_id(body.id)
    if (once := exchange.header("idempotency-key")) is not None:
        if chosen is not None:
            raise Problem(400, "bad-body", "give an id or an Idempotency-Key, not both")
        is_told = exchange.access.payloads or call is None  # else it would tell whether the earlier input was equal
        chosen = id_for(exchange, f"restart {id}" if is_told else f"restart {id} with input", once)
    try:
        new = await operations.restart(id, call, new_id=chosen, handlers=handlers)
    except IdConflict as error:
        if once is None:
            raise
        raise _key_reused() from error
    return json_response(accepted_at(exchange, new), 202)


async def purge(exchange: Exchange, _: NoQuery) -> Response:
    id = exchange.parameters["id"]
    status = (await exchange.operations.look(id)).status
    await exchange.operations.purge(id)
    return json_response(Applied(id, status))


# --- awakeables -------------------------------------------------------------------------------------------------------
class AwakeableQuery(Struct):
    """Filters: all that are given must match. Without `open`, those that take an answer and those that do not."""

    open: bool | None = None
    handler: str | None = None
    assignee: str | None = None
    limit: Limit = 100
    cursor: str | None = None


async def list_awakeables(exchange: Exchange, query: AwakeableQuery) -> Response:
    filters = AwakeableFilters(open=query.open, handler=query.handler, assignee=query.assignee)
    page = await exchange.operations.awakeables(filters, limit=query.limit, cursor=query.cursor, within=QUERY_SECONDS)
    return json_response(AwakeablePageView([awakeable_row(each) for each in page.awakeables], page.next))


class ResolveBody(Struct, forbid_unknown_fields=True):
    """The value of the awakeable; null if there is none. A string may also hold the value as JSON."""

    result: Any = None


class RejectBody(Struct, forbid_unknown_fields=True):
    """Why it is rejected."""

    error: str


async def resolve(exchange: Exchange, _: NoQuery) -> Response:
    operations, awakeable = exchange.operations, exchange.parameters["id"]
    id, _n = await operations.awakeable(awakeable)
    value = exchange.struct(ResolveBody).result
    misfit = MessageRefused()
    for each in (*_decoded(value), value):
        with pointed("/result"):
            data = from_json(UNTYPED, each, what="the result")
        try:
            return await _applied(exchange, id, operations.resolve(awakeable, data, timeout=APPLY_SECONDS))
        except MessageRefused as error:
            if not error.reason.startswith(MISFIT):
                raise
            misfit = error
    raise Problem(422, "value-refused", str(misfit), wrong=[("/result", misfit.reason)])


def _decoded(value: Any) -> list[Any]:
    """Return what a string holds as JSON, if it does: the form in which other engines take results."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return []
    try:
        found = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return []
    return [] if is_deeper(found, DEPTH_LIMIT) else [found]


async def reject(exchange: Exchange, _: NoQuery) -> Response:
    operations, awakeable = exchange.operations, exchange.parameters["id"]
    id, _n = await operations.awakeable(awakeable)
    reason = exchange.struct(RejectBody).error
    return await _applied(exchange, id, operations.reject(awakeable, reason, timeout=APPLY_SECONDS))


# --- events -----------------------------------------------------------------------------------------------------------
async def events(exchange: Exchange, _: NoQuery) -> Response:
    await exchange.operations.open()  # a store that is closed is told before the stream begins
    feed = exchange.service.feed.read(exchange.header("last-event-id"), exchange.access)
    return await exchange.service.stream(exchange, feed, SERVER_SENT_EVENTS)


async def workflow_events(exchange: Exchange, _: NoQuery) -> Response:
    operations, id = exchange.operations, exchange.parameters["id"]
    await operations.look(id)
    return await exchange.service.stream(exchange, changes(operations, id), SERVER_SENT_EVENTS)


class StreamQuery(Struct, rename={"start": "from"}):
    """The number of the first item. After a `Last-Event-ID`, it is the one after that."""

    start: Annotated[int, Meta(ge=0)] = 0


async def stream_items(exchange: Exchange, query: StreamQuery) -> Response:
    operations, id, name = exchange.operations, exchange.parameters["id"], check_stream(exchange.parameters["name"])
    start = query.start
    if (last := exchange.header("last-event-id")) is not None:
        if not last.isdecimal() or len(last) > OFFSET_DIGITS:
            raise Problem(400, "bad-event-id", f"Last-Event-ID {last[:40]!r} is not the number of an item")
        start = int(last) + 1
    await operations.look(id)
    return await exchange.service.stream(exchange, items(operations, id, name, start), SERVER_SENT_EVENTS)


# --- metrics ---------------------------------------------------------------------------------------------------------
async def metrics(exchange: Exchange, _: NoQuery) -> Response:
    exchange.operations.check_unlimited("a metric")
    content, media = await exchange.service.metrics(exchange.header("accept") or "")
    return Response(content, 200, {"Cache-Control": "no-store"}, media)


# --- the document -----------------------------------------------------------------------------------------------------
async def openapi(exchange: Exchange, _: NoQuery) -> Response:
    return json_response(document_of(exchange.service.routes))


WORKFLOW = "/api/workflows/{id}"
AWAKEABLE = "/api/awakeables/{id}"
STREAM = "text/event-stream"
LATER = ((202, Applied),)

ROUTES: tuple[Route, ...] = (
    Route("GET", "/health/live", "anybody", live, "Whether this process answers.", gives=Health),
    Route("GET", "/health/ready", "read", ready, "Whether the store is open.", gives=Health),
    Route("GET", "/health", "read", ready, "The same.", gives=Health),
    Route("GET", "/api/workflows", "read", list_workflows, "List invocations.", ListQuery, gives=WorkflowPage),
    Route("GET", "/api/workflows/stats", "read", stats, "Count invocations.", gives=StatsView),
    Route(
        *("GET", "/api/stats/minutes", "read", minutes, "Count what ended, by minutes."),
        query=MinutesQuery,
        gives=MinuteList,
    ),
    Route("GET", WORKFLOW, "read", show_workflow, "Show an invocation.", gives=WorkflowView, also=(404,)),
    Route(
        *("GET", f"{WORKFLOW}/journal", "read", show_journal, "Show its steps."),
        query=JournalQuery,
        gives=JournalPage,
        also=(404,),
    ),
    Route(
        *("GET", f"{WORKFLOW}/result", "read", result, "Wait for its result. 202: it has not ended."),
        query=WaitQuery,
        gives=Ended,
        gives_too=((202, Accepted),),
        headers=("Prefer",),
        also=(404,),
    ),
    Route(
        *("GET", f"{WORKFLOW}/events", "read", workflow_events, "Follow its status until it ends."),
        media=STREAM,
        also=(404,),
    ),
    Route(
        *("GET", f"{WORKFLOW}/streams/{{name}}", "read", stream_items, "Follow one of its streams until it ends."),
        query=StreamQuery,
        media=STREAM,
        headers=("Last-Event-ID",),
        also=(404,),
        shows_payloads=True,
    ),
    Route(
        *("GET", f"{WORKFLOW}/export", "read", history, "Its history, for perdure.testing.replay."),
        query=ExportQuery,
        media="application/octet-stream",
        also=(404,),
        shows_payloads=True,
        audited=True,
    ),
    Route(
        *("POST", "/api/workflows/{handler}/invoke", "operate", invoke),
        "Start an invocation. The answer comes after it is durable; with `wait`, it is the result if that comes in "
        "time. The body is the value of the one parameter, or an object by name.",
        query=InvokeQuery,
        body=Body.INPUT,
        gives=Accepted,
        status=202,
        gives_too=((200, Ended),),
        headers=("Idempotency-Key", "Prefer"),
        also=(404, 409, 422),
    ),
    Route(
        *("POST", "/api/workflows:batch", "operate", invoke_all),
        f"Start up to {BATCH_LIMIT:,} invocations together, or none.",
        body=Batch,
        gives=AllAccepted,
        status=202,
        also=(404, 409, 422),
    ),
    Route("POST", f"{WORKFLOW}/pause", "operate", pause, "Pause it.", gives=Applied, gives_too=LATER, also=(404, 409)),
    Route(
        "POST", f"{WORKFLOW}/resume", "operate", resume, "Resume it.", gives=Applied, gives_too=LATER, also=(404, 409)
    ),
    Route(
        *("POST", f"{WORKFLOW}/cancel", "operate", cancel, "Cancel it; it cleans up, unless by force."),
        body=CancelBody,
        gives=Applied,
        gives_too=LATER,
        also=(404, 409, 422),
    ),
    Route(
        "POST",
        f"{WORKFLOW}/retry",
        "operate",
        retry,
        "Retry what failed.",
        gives=Applied,
        gives_too=LATER,
        also=(404, 409),
    ),
    Route(
        *("POST", f"{WORKFLOW}/restart", "operate", restart, "Start it anew under another id."),
        body=RestartBody,
        gives=Accepted,
        status=202,
        headers=("Idempotency-Key",),
        also=(404, 409, 422),
    ),
    Route("POST", f"{WORKFLOW}/purge", "admin", purge, "Remove it for ever.", gives=Applied, also=(404, 409)),
    Route(
        *("GET", "/api/awakeables", "read", list_awakeables, "List awakeables."),
        query=AwakeableQuery,
        gives=AwakeablePageView,
    ),
    Route(
        *("POST", f"{AWAKEABLE}/resolve", "operate", resolve, "Resolve an awakeable."),
        body=ResolveBody,
        gives=Applied,
        gives_too=LATER,
        also=(404, 409, 422),
    ),
    Route(
        *("POST", f"{AWAKEABLE}/reject", "operate", reject, "Reject an awakeable."),
        body=RejectBody,
        gives=Applied,
        gives_too=LATER,
        also=(404, 409, 422),
    ),
    *BULK_ROUTES,
    Route("GET", "/api/handlers", "read", list_handlers, "List handlers.", gives=HandlerList),
    Route("GET", "/api/handlers/{handler}", "read", show_handler, "Show a handler.", gives=HandlerView, also=(404,)),
    Route("GET", "/api/keys/{key}", "read", show_key, "Show the state of a key.", gives=KeyView, shows_payloads=True),
    Route(
        "GET",
        "/api/events",
        "read",
        events,
        "Follow all changes: ids and statuses.",
        media=STREAM,
        headers=("Last-Event-ID",),
    ),
    Route("GET", "/metrics", "read", metrics, "What Prometheus scrapes.", media="text/plain"),
    Route("GET", "/openapi.json", "read", openapi, "This document."),
    *ADMIN_ROUTES,
)
"""All routes. Where two fit a path, the first one counts."""
