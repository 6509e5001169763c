"""The routes of schedules: what each takes, and what it answers with."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct
from starlette.responses import Response

from perdure.core.interface import MISSING
from perdure.core.json_values import to_json
from perdure.core.schedule import CATCH_UP_SECONDS, Overlap, Plan, Timing
from perdure.core.values import encode_any
from perdure.errors import unknown_schedule
from perdure.http.api import (
    LARGE_BODY_BYTES,
    InvokeQuery,
    Limit,
    Seconds,
    accepted_at,
    handler_named,
    id_for,
    pointed,
    submission_for,
)
from perdure.http.exchange import Exchange, json_response
from perdure.http.routes import NoQuery, Route
from perdure.http.views import UNTYPED, Accepted, AllAccepted
from perdure.operations.port import Submission
from perdure.operations.schedules import (
    NEXT_LIMIT,
    Backfill,
    Change,
    PauseSchedule,
    ResumeSchedule,
    ScheduleInfo,
    Trigger,
)
from perdure.operations.ticks import whole_seconds


# --- views ------------------------------------------------------------------------------------------------------------
class ScheduleView(Struct, frozen=True):
    """A schedule. Times are RFC 3339, durations are in seconds.

    `running` are the invocations of it that have not ended, and `served` tells whether a worker serves the handler,
    null where that cannot be known: lists have neither. `next_at` is null while it is paused.
    """

    name: str
    handler: str
    input: Any
    cron: str | None
    every: int | None
    timezone: str
    overlap: Overlap
    catch_up: float
    jitter: float
    key: str | None
    timeout: float | None
    tags: dict[str, str]
    created_at: datetime
    changed_at: datetime
    paused_at: datetime | None
    note: str
    next_at: datetime | None
    runs: tuple[str, ...]
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    started: int
    skipped: int
    missed: int
    refused: int
    served: bool | None


class SchedulePage(Struct, frozen=True):
    """Some schedules, by name, and the cursor of the page after them: null on the last one."""

    schedules: list[ScheduleView]
    next: str | None


class SchedulePutView(Struct, frozen=True):
    """A schedule that was put. `changed` is false if it was the same already."""

    name: str
    changed: bool


class ScheduleDeleted(Struct, frozen=True):
    """A schedule that was removed. What it has started goes on."""

    name: str


class ScheduleTimes(Struct, frozen=True):
    """The next times of a schedule, as if it were not paused."""

    name: str
    times: list[datetime]


async def view_of(exchange: Exchange, info: ScheduleInfo) -> ScheduleView:
    interface = await exchange.service.interfaces.of_invocation(info.handler, info.interface)
    input = to_json(UNTYPED if interface is None else interface.input, encode_any(dict(info.input)))
    told = {name: getattr(info, name) for name in ScheduleView.__struct_fields__ if name not in ("input", "tags")}
    return ScheduleView(input=input, tags=dict(info.tags), **told)


# --- looking ----------------------------------------------------------------------------------------------------------
class SchedulesQuery(Struct):
    """How many, and where to go on."""

    limit: Limit = 100
    cursor: str | None = None


async def list_schedules(exchange: Exchange, query: SchedulesQuery) -> Response:
    found = await exchange.operations.schedules(limit=query.limit, after=query.cursor)
    views = [await view_of(exchange, each) for each in found]
    return json_response(SchedulePage(views, found[-1].name if len(found) == query.limit else None))


async def show_schedule(exchange: Exchange, _: NoQuery) -> Response:
    return await _shown(exchange)


async def _shown(exchange: Exchange) -> Response:
    info = await exchange.operations.describe_schedule(exchange.parameters["name"])
    return json_response(await view_of(exchange, info))


class TimesQuery(Struct):
    """How many times."""

    count: Annotated[int, Meta(ge=1, le=NEXT_LIMIT)] = 10


async def times(exchange: Exchange, query: TimesQuery) -> Response:
    name = exchange.parameters["name"]
    found = await exchange.operations.schedule_times(name, query.count)
    return json_response(ScheduleTimes(name, [datetime.fromtimestamp(each, UTC) for each in found]))


# --- changing ---------------------------------------------------------------------------------------------------------
class ScheduleBody(Struct, forbid_unknown_fields=True):
    """What is started, when and how: the handler with its input, as `invoke` takes it, and `cron` or `every`.

    `cron` has five fields, or six with seconds in front, and counts on the clock of `timezone`. Durations are in
    seconds.
    """

    handler: str
    input: Any = UNSET
    cron: str | None = None
    every: Seconds | None = None
    timezone: str = "UTC"
    overlap: Overlap = "skip"
    catch_up: Seconds = CATCH_UP_SECONDS
    jitter: Seconds = 0.0
    key: str | None = None
    timeout: Seconds | None = None
    tags: dict[str, str] = {}


async def put_schedule(exchange: Exchange, _: NoQuery) -> Response:
    name, body = exchange.parameters["name"], exchange.struct(ScheduleBody)
    handler = await handler_named(exchange, body.handler)

    def converted() -> Submission:
        with pointed("/input"):
            options = InvokeQuery(key=body.key, timeout=body.timeout)
            return submission_for(exchange, handler, options, MISSING if body.input is UNSET else body.input, body.tags)

    is_large = len(exchange.body) > LARGE_BODY_BYTES  # then the others go on meanwhile
    asked = await asyncio.to_thread(converted) if is_large else converted()
    plan = Plan(
        Timing(body.cron, None if body.every is None else whole_seconds(body.every), body.timezone),
        asked.handler,
        asked.input,
        asked.digest,
        asked.key,
        asked.timeout,
        asked.tags,
        asked.interface,
        body.overlap,
        body.catch_up,
        body.jitter,
    )
    changed = await exchange.operations.put_schedule(name, plan)
    return json_response(SchedulePutView(name, changed))


async def delete_schedule(exchange: Exchange, _: NoQuery) -> Response:
    name = exchange.parameters["name"]
    if not await exchange.operations.delete_schedule(name):
        raise unknown_schedule(name)
    return json_response(ScheduleDeleted(name))


class PauseBody(Struct, forbid_unknown_fields=True):
    """Why it is paused."""

    note: str = ""


async def pause(exchange: Exchange, _: NoQuery) -> Response:
    await _tell(exchange, PauseSchedule(exchange.struct(PauseBody).note))
    return await _shown(exchange)


async def resume(exchange: Exchange, _: NoQuery) -> Response:
    await _tell(exchange, ResumeSchedule())
    return await _shown(exchange)


async def trigger(exchange: Exchange, _: NoQuery) -> Response:
    name, once = exchange.parameters["name"], exchange.header("idempotency-key")
    id = None if once is None else f"{name}@{id_for(exchange, f'schedule {name}', once)}"
    (started,) = await _tell(exchange, Trigger(id))
    return json_response(accepted_at(exchange, started), 202)


class BackfillBody(Struct, forbid_unknown_fields=True):
    """From when to when, both included, in the past."""

    start: datetime
    end: datetime


async def backfill(exchange: Exchange, _: NoQuery) -> Response:
    body = exchange.struct(BackfillBody)
    ids = await _tell(exchange, Backfill(body.start, body.end))
    return json_response(AllAccepted([accepted_at(exchange, id) for id in ids]), 202)


async def _tell(exchange: Exchange, change: Change) -> list[str]:
    return await exchange.operations.change_schedule(exchange.parameters["name"], change)


SCHEDULE = "/api/schedules/{name}"

ROUTES: tuple[Route, ...] = (
    Route("GET", "/api/schedules", "read", list_schedules, "List schedules.", SchedulesQuery, gives=SchedulePage),
    Route("GET", SCHEDULE, "read", show_schedule, "Show a schedule.", gives=ScheduleView, also=(404,)),
    Route(
        *("PUT", SCHEDULE, "operate", put_schedule),
        "Make a schedule, or change it from now on. The same again changes nothing.",
        body=ScheduleBody,
        gives=SchedulePutView,
        also=(404, 422),
    ),
    Route("DELETE", SCHEDULE, "operate", delete_schedule, "Remove a schedule.", gives=ScheduleDeleted, also=(404,)),
    Route(
        *("POST", f"{SCHEDULE}/pause", "operate", pause, "Pause it, with a note."),
        body=PauseBody,
        gives=ScheduleView,
        also=(404, 422),
    ),
    Route("POST", f"{SCHEDULE}/resume", "operate", resume, "Resume it, from now.", gives=ScheduleView, also=(404,)),
    Route(
        *("POST", f"{SCHEDULE}/trigger", "operate", trigger, "Start a run now, by its overlap rule."),
        gives=Accepted,
        status=202,
        headers=("Idempotency-Key",),
        also=(404, 409),
    ),
    Route(
        *("POST", f"{SCHEDULE}/backfill", "operate", backfill, "Run the ticks of a time in the past."),
        body=BackfillBody,
        gives=AllAccepted,
        status=202,
        also=(404, 422),
    ),
    Route(
        *("GET", f"{SCHEDULE}/next", "read", times, "Its next times."),
        query=TimesQuery,
        gives=ScheduleTimes,
        also=(404,),
    ),
)
"""All routes of schedules."""
