"""The ASGI application: finds the route of a request, checks it, and answers it or says what is wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from perdure.background import end, log_error
from perdure.http.exchange import Exchange
from perdure.http.feed import Feed
from perdure.http.guard import READS, Guard
from perdure.http.problems import Problem, answer, problem_of, unexpected
from perdure.http.routes import Body, Route, Router, query_of
from perdure.operations.interfaces import Interfaces
from perdure.operations.port import Operations

T = TypeVar("T")

BODY_LIMIT_BYTES = 4 * 1024 * 1024
"""The largest body of a request, unless the application is told otherwise."""
READ_ON = 4
"""A body that is too large is read on, to so many times the limit: many clients see no answer before they sent all."""
BODY_SECONDS = 10.0
"""How long a request may take to arrive."""
WAITING_LIMIT = 1_000
"""Requests that may wait for a result at a time, unless the application is told otherwise."""
STREAMS_LIMIT = 1_000
"""Streams of events that may be open at a time."""

log = logging.getLogger("perdure.http")


class Service:
    """The application. It neither opens nor closes what it serves. `aclose` ends its waits and streams."""

    def __init__(
        self,
        operations: Operations,
        routes: Sequence[Route],
        guard: Guard | None,
        *,
        waiting_limit: int = WAITING_LIMIT,
        body_limit: int = BODY_LIMIT_BYTES,
    ) -> None:
        self.operations = operations
        self.interfaces = Interfaces(operations)
        self.routes = tuple(routes)
        self.is_closing = False
        self._guard = guard
        self._router = Router(routes)
        self._waiting_limit = waiting_limit
        self._body_limit = body_limit
        self._waits: set[asyncio.Task[Any]] = set()
        self._streams = 0
        self._feed: Feed | None = None

    async def aclose(self) -> None:
        """Answer the requests that wait as if their time were over, and end all streams."""
        self.is_closing = True
        await end([*self._waits])
        if self._feed is not None:
            await self._feed.aclose()

    @property
    def feed(self) -> Feed:
        if self._feed is None:
            self._feed = Feed(self.operations)
        return self._feed

    # --- ASGI ---------------------------------------------------------------------------------------------------------
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(self, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            request = Request(scope, receive)
            response = await self._answered(request, _path(scope))
            await response(scope, receive, send)

    async def _answered(self, request: Request, raw_path: bytes) -> Response:
        try:
            if self._guard is not None:
                self._guard.check(request)
            route, parameters = self._router.match(request.method, raw_path)
            query = query_of(route, request.query_params.multi_items())
            body = await self._body_of(request, route)
            return await route.endpoint(Exchange(request, parameters, body, self), query)
        except Exception as error:  # noqa: BLE001  one request fails, the others do not notice
            problem = problem_of(error)
            if problem is None:
                log_error(
                    log, "%s %s: unexpected exception", request.method, raw_path.decode("ascii", "replace"), error=error
                )
                problem = unexpected()
            return answer(problem)

    async def _body_of(self, request: Request, route: Route) -> bytes:
        headers = request.headers
        if "content-encoding" in headers:
            raise Problem(415, "encoded-body", "the body is compressed: send it as it is, without Content-Encoding")
        if request.method in READS:
            return b""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            got = f"not {kind}" if kind else "and this request has none"
            text = f"the Content-Type of a request that changes something is application/json, {got}"
            raise Problem(415, "wrong-content-type", text)
        pieces: list[bytes] = []
        size, limit = 0, self._body_limit
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for piece in request.stream():
                    size += len(piece)
                    if size > limit * READ_ON:
                        break
                    if size <= limit:
                        pieces.append(piece)
        except TimeoutError:
            text = f"the body did not arrive within {BODY_SECONDS:g} s"
            raise Problem(408, "slow-body", text, headers={"Connection": "close"}) from None
        if size > limit:
            text = f"the body is larger than {limit:,} bytes, which is the limit"
            raise Problem(413, "too-large", text, headers={"Connection": "close"})
        body = b"".join(pieces)
        if route.body is Body.NONE and body.strip() not in (b"", b"{}"):
            raise Problem(400, "unexpected-body", "this route takes no body")
        return body

    # --- waiting ------------------------------------------------------------------------------------------------------
    async def wait(self, waiting: Coroutine[Any, Any, T], seconds: float, exchange: Exchange) -> T | None:
        """Return what is waited for; None once the time is over, the client is gone, or the server stops."""
        if self.is_closing or len(self._waits) >= self._waiting_limit:
            waiting.close()
            raise busy(f"{len(self._waits):,} requests wait for a result already")
        task = asyncio.ensure_future(waiting)
        gone = asyncio.ensure_future(_gone(exchange.request.receive))
        self._waits.add(task)
        try:
            await asyncio.wait([task, gone], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() and not task.cancelled() else None
        finally:
            self._waits.discard(task)
            await end([each for each in (task, gone) if not each.done()])

    async def stream(self, exchange: Exchange, events: AsyncGenerator[bytes, None]) -> Response:
        """Return a response that sends events as they come."""
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        if exchange.request.method == "HEAD":
            await events.aclose()
            return Response(b"", 200, headers, "text/event-stream")
        if self.is_closing or self._streams >= STREAMS_LIMIT:
            await events.aclose()
            raise busy(f"{self._streams:,} streams are open already")
        return StreamingResponse(self._counted(events), 200, headers, "text/event-stream")

    async def _counted(self, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        self._streams += 1
        try:
            async for each in events:
                yield each
        finally:
            self._streams -= 1
            await events.aclose()


def busy(why: str) -> Problem:
    """Return the problem of a request that is one too many."""
    return Problem(429, "busy", f"{why}: send it again a little later", headers={"Retry-After": "1"})


async def _gone(receive: Receive) -> Message:
    """Wait until the client has closed the connection."""
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


def _path(scope: Scope) -> bytes:
    """Return the path as it was sent, below that where the application is mounted."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    root = quote(scope.get("root_path", "")).encode()
    return (raw.removeprefix(root) or b"/") if root else raw


async def _lifespan(service: Service, receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await service.aclose()
    await send({"type": "lifespan.shutdown.complete"})
