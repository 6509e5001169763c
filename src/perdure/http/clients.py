"""The routes that other Perdure clients use: see `exact`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from functools import partial
from typing import Any, TypeVar, cast, get_args

import msgspec
from starlette.responses import Response

from perdure.core.retry import seconds
from perdure.errors import PerdureError, StoreUnavailable, WaitTimeout
from perdure.http.exact import (
    CALLS,
    FRAME_HEADER_BYTES,
    MEDIA_TYPE,
    PREFIX,
    Operation,
    SentError,
    SentOutcome,
    SentSubmission,
    decode,
    encode,
)
from perdure.http.exchange import Exchange
from perdure.http.problems import Problem, problem_of
from perdure.http.routes import Body, NoQuery, Route
from perdure.http.service import Framing
from perdure.operations.access import Access
from perdure.operations.capabilities import Purpose
from perdure.operations.listing import Filters

WAIT_LIMIT_SECONDS = 30.0
"""The longest that one request of a client waits for a result; the client asks again."""

T = TypeVar("T")


async def call(operation: Operation, exchange: Exchange, _: NoQuery) -> Response:
    """Carry out an operation."""
    arguments = _arguments(exchange, operation.takes)
    exchange.target = "" if operation.has_secrets else _target_of(arguments)
    try:
        if operation.waits:
            limit = seconds("timeout", arguments[-1])
            given = await _waited(exchange, operation.call(exchange.operations, *arguments), limit)
        else:
            given = await operation.call(exchange.operations, *arguments)
    except PerdureError as error:
        return _refused(error)
    return Response(encode(given), 200, {"Cache-Control": "no-store"}, MEDIA_TYPE)


async def _waited(exchange: Exchange, calling: Awaitable[Any], limit: float) -> Any:
    """Carry out an operation that waits until it is applied, unless the client goes away or the server stops."""

    async def called() -> tuple[Any]:
        return (await calling,)

    given = await exchange.service.wait(called(), limit + 1.0, exchange)
    if given is None:
        raise StoreUnavailable("this server stops: the message may be accepted, and is applied later then")
    return given[0]


async def result(exchange: Exchange, _: NoQuery) -> Response:
    """Wait for an outcome, at most for a while. 202: it has not ended."""
    id, limit = _arguments(exchange, tuple[str, float])
    limit = min(max(0.0, limit), WAIT_LIMIT_SECONDS)
    operations = exchange.operations
    try:
        outcome = await exchange.service.wait(operations.result(id, timeout=limit), limit + 1.0, exchange)
    except WaitTimeout:
        outcome = None
    except PerdureError as error:
        return _refused(error)
    if outcome is None:
        return Response(b"", 202, {"Cache-Control": "no-store"}, MEDIA_TYPE)
    return Response(encode(SentOutcome.of(outcome)), 200, {"Cache-Control": "no-store"}, MEDIA_TYPE)


async def watch(exchange: Exchange, _: NoQuery) -> Response:
    """Stream the statuses of an invocation."""
    (id,) = _arguments(exchange, tuple[str])
    return await _stream(exchange, exchange.operations.watch(id))


async def watch_all(exchange: Exchange, _: NoQuery) -> Response:
    """Stream the changes of invocations that pass filters."""
    filters, gone = _arguments(exchange, tuple[Filters, bool])
    return await _stream(exchange, exchange.operations.watch_all(filters, gone=gone))


async def stream(exchange: Exchange, _: NoQuery) -> Response:
    """Stream the items of a stream."""
    id, name, start, follow = _arguments(exchange, tuple[str, str, int, bool])
    return await _stream(exchange, exchange.operations.stream(id, name, start, follow=follow))


async def _stream(exchange: Exchange, given: AsyncGenerator[Any, None]) -> Response:
    return await exchange.service.stream(exchange, _frames(given), Framing(MEDIA_TYPE, _frame(b""), b""))


async def _frames(given: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
    """Yield what is given as frames, each after its length. What ends it is the last: an error, or nothing."""
    try:
        try:
            async for each in given:
                yield _frame(encode((each, None)))
        except PerdureError as error:
            yield _frame(encode((None, SentError.of(error))))
        else:
            yield _frame(encode((None, None)))
    finally:
        await given.aclose()


def _frame(data: bytes) -> bytes:
    return len(data).to_bytes(FRAME_HEADER_BYTES, "big") + data


def _target_of(arguments: tuple[Any, ...]) -> str:
    """Return what an operation is about: the id or name that comes first, or that of a start."""
    first = arguments[0] if arguments else ""
    if isinstance(first, list) and first and isinstance(first[0], SentSubmission):
        return f"{len(cast('list[Any]', first))} from {first[0].id}"
    if isinstance(first, SentSubmission):
        return f"{first.handler}/{first.id}"
    if first in get_args(Purpose):
        return str(arguments[1])
    if isinstance(first, Access):
        return first.name
    return first if isinstance(first, str) else ""


def _arguments(exchange: Exchange, type: type[T]) -> T:
    try:
        return decode(exchange.body, type)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Problem(422, "value-refused", f"the arguments do not fit the operation: {error}") from None


def _refused(error: PerdureError) -> Response:
    problem = problem_of(error)
    status = 500 if problem is None else problem.status
    return Response(encode(SentError.of(error)), status, {"Cache-Control": "no-store"}, MEDIA_TYPE)


def routes() -> tuple[Route, ...]:
    """Return the routes, one for each operation."""
    found = [
        Route(
            *("POST", f"{PREFIX}{name}", operation.role, partial(call, operation)),
            f"The operation {name} of a Perdure client.",
            body=Body.EXACT,
            media=MEDIA_TYPE,
            shows_payloads=operation.shows_payloads,
            audited=True if name == "export" else None if operation.changes else False,
        )
        for name, operation in CALLS.items()
    ]
    for name, endpoint in (("result", result), ("watch", watch), ("watch_all", watch_all), ("stream", stream)):
        summary = f"The operation {name} of a Perdure client."
        found.append(
            Route(
                *("POST", f"{PREFIX}{name}", "read", endpoint, summary),
                body=Body.EXACT,
                media=MEDIA_TYPE,
                shows_payloads=name in ("result", "stream"),
            )
        )
    return tuple(found)
