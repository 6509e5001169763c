"""The routes of bulk jobs. Each verb has a route of its own, since roles differ."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Annotated, cast
from urllib.parse import quote

from msgspec import Meta, Struct
from msgspec.structs import asdict
from starlette.responses import Response

from perdure.http.exchange import Exchange, json_response
from perdure.http.problems import Problem
from perdure.http.routes import NoQuery, Route
from perdure.operations.bulk import (
    BULK_VERBS,
    JOBS_PAGE_LIMIT,
    BulkPage,
    BulkPreview,
    BulkProgress,
    BulkVerb,
    bulk_request,
    role_for,
)
from perdure.operations.listing import Filters, Status


class BulkFilter(Struct, forbid_unknown_fields=True):
    """Filters of invocations, at least one: all that are given must match."""

    status: Status | None = None
    handler: str | None = None
    key: str | None = None
    id_prefix: str | None = None
    tags: dict[str, str] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


class BulkBody(Struct, forbid_unknown_fields=True):
    """Either `filter` with `preview: true`, or the `token` of a preview. `force` ends at once what is cancelled."""

    filter: BulkFilter | None = None
    preview: bool = False
    force: bool = False
    token: str | None = None


class BulkBegun(Struct, frozen=True):
    """A bulk job that is durable, and where to look at it."""

    id: str
    status_url: str


async def bulk(verb: BulkVerb, exchange: Exchange, _: NoQuery) -> Response:
    body, operations = exchange.struct(BulkBody), exchange.operations
    if body.token is not None:
        if body != BulkBody(token=body.token):
            raise _wrong_body("a token comes alone: it says what was previewed")
        job = await operations.begin_bulk(verb, body.token)
        exchange.target = job.id
        return json_response(BulkBegun(job.id, f"{exchange.root}/api/bulk/{quote(job.id, safe='')}"), 202)
    if body.filter is None or not body.preview:
        raise _wrong_body('send {"filter": {…}, "preview": true} to see what matches, then its {"token": "…"} to begin')
    request = bulk_request(verb, cast("Filters", asdict(body.filter)), force=body.force)
    return json_response(await operations.preview_bulk(request))


def _wrong_body(why: str) -> Problem:
    return Problem(422, "value-refused", f"the body: {why}", wrong=[("", why)])


class BulkQuery(Struct):
    """How many jobs, and the cursor of the page."""

    limit: Annotated[int, Meta(ge=1, le=JOBS_PAGE_LIMIT)] = JOBS_PAGE_LIMIT
    cursor: str | None = None


async def list_jobs(exchange: Exchange, query: BulkQuery) -> Response:
    return json_response(await exchange.operations.bulk_jobs(limit=query.limit, cursor=query.cursor))


async def show_job(exchange: Exchange, _: NoQuery) -> Response:
    return json_response(await exchange.operations.bulk_job(exchange.parameters["id"]))


async def stop_job(exchange: Exchange, _: NoQuery) -> Response:
    return json_response(await exchange.operations.stop_bulk(exchange.parameters["id"]))


def _route(verb: BulkVerb) -> Route:
    return Route(
        *("POST", f"/api/bulk/{verb}", role_for(verb), partial(bulk, verb)),
        f"{verb.capitalize()} all invocations that pass filters. First preview it, then begin the job with the token.",
        body=BulkBody,
        gives=BulkPreview,
        gives_too=((202, BulkBegun),),
        also=(422,),
    )


JOB = "/api/bulk/{id}"
BULK_ROUTES: tuple[Route, ...] = (
    *map(_route, BULK_VERBS),
    Route("GET", "/api/bulk", "read", list_jobs, "List bulk jobs.", BulkQuery, gives=BulkPage),
    Route("GET", JOB, "read", show_job, "Show how far a bulk job is.", gives=BulkProgress, also=(404,)),
    Route("POST", f"{JOB}/stop", "operate", stop_job, "Stop a bulk job.", gives=BulkProgress, also=(404,)),
)
