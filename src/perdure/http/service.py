"""The ASGI application: finds the route of a request, checks it, and answers it or says what is wrong."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from time import perf_counter
from typing import Any, TypeVar
from urllib.parse import quote

from msgspec import Struct
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from perdure.background import end, log_error
from perdure.counters import Counters
from perdure.errors import PerdureError
from perdure.http.auditor import Auditor
from perdure.http.bodies import BODY_LIMIT_BYTES, Bodies, stopping, too_many
from perdure.http.exchange import Exchange
from perdure.http.feed import Feed
from perdure.http.gate import NOBODY, Admitted, Gate
from perdure.http.hooks import Hooks
from perdure.http.metrics import Metrics
from perdure.http.problems import Problem, answer, problem_of, unexpected
from perdure.http.routes import AnyQuery, Route, Router, query_items, query_of
from perdure.http.traffic import Traffic
from perdure.http.verifiers import Verifier
from perdure.operations.audit import Entry
from perdure.operations.interfaces import Interfaces
from perdure.operations.port import Operations
from perdure.tracing import HEADER, checked, here

T = TypeVar("T")

WAITING_LIMIT = 1_000
"""Requests that may wait for a result at a time, unless the application is told otherwise."""
STREAMS_LIMIT = 1_000
"""Streams of events that may be open at a time."""

TARGET_LIMIT = 500
"""Characters of what a request was about, in the audit."""
SHARES = 2
"""One caller with a name may have a part of the waits and streams open: so many could have theirs at a time."""
RIGHTS_SECONDS = 2.0
"""How often it is looked whether the callers of waits and streams still may; a revocation reaches them within 5 s."""
UNWATCHED_SECONDS = 0.05
"""How long a request waits before it is watched whether its client goes away, which has its price."""
IDLE_SECONDS = 15.0
"""How often a stream without events says so: proxies close what is silent, and clients notice a server that is gone."""

log = logging.getLogger("perdure.http")


class Framing(Struct, frozen=True):
    """A kind of stream: its media type, and what is sent when nothing happens, and when the server stops."""

    media: str
    idle: bytes
    last: bytes


SERVER_SENT_EVENTS = Framing("text/event-stream", b": nothing new\n\n", b"event: closing\ndata: {}\n\n")


class Service:
    """The application. It neither opens nor closes what it serves. `aclose` ends its waits and streams."""

    def __init__(
        self,
        operations: Operations,
        routes: Sequence[Route],
        gate: Gate,
        *,
        public_url: str = "",
        waiting_limit: int = WAITING_LIMIT,
        body_limit: int = BODY_LIMIT_BYTES,
        hooks: Mapping[str, Verifier],
        counters: Counters | None = None,
        access_log: bool = False,
    ) -> None:
        self.operations = operations
        self.interfaces = Interfaces(operations)
        self.hooks = Hooks(operations, hooks)
        self.routes = tuple(routes)
        self._traffic = Traffic(is_logged=access_log)
        self._metrics = Metrics(operations, counters, self._traffic)
        self._closing = asyncio.Event()
        self.gate = gate
        self.public_url = public_url
        self._auditor = Auditor(operations)
        self._router = Router(routes)
        self._waiting_limit = waiting_limit
        self._bodies = Bodies(body_limit)
        self._waits: set[asyncio.Task[Any]] = set()
        self._streams = 0
        self._open: set[_Open] = set()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._watching: asyncio.Task[None] | None = None
        self._feed: Feed | None = None

    async def aclose(self) -> None:
        """Answer the requests that wait as if their time were over, and end all streams."""
        self._closing.set()
        self._bodies.close()
        await end([*self._waits, *([] if self._watching is None else [self._watching])])
        await self._auditor.aclose()
        await self.gate.aclose()
        await self._metrics.aclose()
        if self._feed is not None:
            await self._feed.aclose()

    @property
    def is_closing(self) -> bool:
        return self._closing.is_set()

    def is_https(self, request: Request) -> bool:
        """Report whether callers come by https: as the public URL says, or else as the request came."""
        return (self.public_url or str(request.url)).startswith("https:")

    @property
    def feed(self) -> Feed:
        if self._feed is None:
            self._feed = Feed(self.operations)
        return self._feed

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that is asked for, and its media type."""
        return await self._metrics.text(accept, waits=len(self._waits), streams=self._streams)

    # --- ASGI ---------------------------------------------------------------------------------------------------------
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(self, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            request = Request(scope, receive)
            before = here.set(checked(request.headers.get(HEADER)))
            try:
                response = await self._answered(request, _path(scope))
            finally:
                here.reset(before)
            await response(scope, receive, send)

    async def _answered(self, request: Request, raw_path: bytes) -> Response:
        began = perf_counter()
        exchange: Exchange | None = None
        route: Route | None = None
        try:
            try:
                route, parameters = self._router.match(request.method, raw_path)
            except Problem:
                await self.gate.check(request)
                raise
            admitted = await self._admitted(request, route)
            ignores_query = route.query is AnyQuery
            query = AnyQuery() if ignores_query else query_of(route, query_items(request.scope["query_string"]))
            async with self._bodies.received(request, route) as body:
                exchange = Exchange(request, admitted, parameters, body, self)
                if route.is_signed:
                    exchange.target = ""  # its path may be a capability
                response = await route.endpoint(exchange, query)
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody reads it
        except Exception as error:  # noqa: BLE001  one request fails, the others do not notice
            response = answer(self._problem(error, request, route))
        if route is not None and exchange is not None:
            await self._audit(route, exchange, response)
        response.headers["X-Content-Type-Options"] = "nosniff"
        name = exchange.access.name if exchange is not None and self.gate.is_named else None
        self._traffic.ended(request.method, route, response.status_code, perf_counter() - began, principal=name)
        return response

    def _problem(self, error: Exception, request: Request, route: Route | None) -> Problem:
        problem = problem_of(error)
        if problem is None:
            path = "a path that no route has" if route is None else route.path  # no id, no capability
            log_error(log, "%s %s: unexpected exception", request.method, path, error=error)
            problem = unexpected()
        return problem

    async def _admitted(self, request: Request, route: Route) -> Admitted:
        """Return who makes a request, or raise a `Problem` if it may not use this route."""
        if route.is_signed:
            return Admitted(NOBODY, self.gate.source_of(request), _never)
        if route.role == "anybody":
            return Admitted(NOBODY, await self.gate.check(request), _never)
        admitted = await self.gate.admit(request)
        access, why = admitted.access, ""
        if not access.may(route.role):
            why = f"{access.name!r} has the role {access.role!r}, and this needs {route.role!r}"
        elif route.shows_payloads and not access.payloads:
            why = f"{access.name!r} may not see payloads, and this shows some"
        if why:
            await self._record(admitted, route, "", HTTPStatus.FORBIDDEN)
            raise Problem(403, "not-permitted", why)
        return admitted

    async def _audit(self, route: Route, exchange: Exchange, response: Response) -> None:
        """Record what was done, if that is to be. What nobody could do is not: anybody could fill the audit."""
        is_refused = route.role == "anybody" and response.status_code >= HTTPStatus.BAD_REQUEST
        if route.is_audited and not is_refused:
            await self._record(exchange.admitted, route, exchange.target[:TARGET_LIMIT], response.status_code)

    async def _record(self, admitted: Admitted, route: Route, target: str, status: int) -> None:
        """Record who did what, where callers have names."""
        if self.gate.is_named:
            done = (admitted.access.name, route.name, target, int(status), admitted.source)
            await self._auditor.record(Entry(datetime.now(UTC), *done))

    # --- waiting ------------------------------------------------------------------------------------------------------
    async def wait(self, waiting: Coroutine[Any, Any, T], seconds: float, exchange: Exchange) -> T | None:
        """Return what is waited for; None once the time is over, the client is gone, or the server stops."""
        try:
            if self.is_closing:
                raise stopping()
            if len(self._waits) >= self._waiting_limit:
                raise too_many(f"{len(self._waits):,} requests wait for a result already")
            self._check_share(exchange.admitted, "wait", self._waiting_limit)
        except Problem:
            waiting.close()
            raise
        with self._while_permitted(exchange.admitted, "wait") as revoked:
            task = asyncio.ensure_future(waiting)
            self._waits.add(task)
            watching: list[asyncio.Task[Any]] = [task]
            try:
                await asyncio.wait(watching, timeout=min(seconds, UNWATCHED_SECONDS))
                if not task.done() and seconds > UNWATCHED_SECONDS:
                    watching.append(asyncio.ensure_future(_gone(exchange.request.receive)))
                    left = seconds - UNWATCHED_SECONDS
                    await asyncio.wait([*watching, revoked], timeout=left, return_when=asyncio.FIRST_COMPLETED)
                    if revoked.done() and not task.done():
                        raise Problem(401, "unauthorized", "this token was revoked, or has expired")
                return task.result() if task.done() and not task.cancelled() else None
            finally:
                self._waits.discard(task)
                if still := [each for each in watching if not each.done()]:
                    await end(still)

    async def stream(self, exchange: Exchange, events: AsyncGenerator[bytes, None], framing: Framing) -> Response:
        """Return a response that sends events as they come, until they end or the server stops."""
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        if exchange.request.method == "HEAD":
            await events.aclose()
            return Response(b"", 200, headers, framing.media)
        try:
            if self.is_closing:
                raise stopping()
            if self._streams >= STREAMS_LIMIT:
                raise too_many(f"{self._streams:,} streams are open already")
            self._check_share(exchange.admitted, "stream", STREAMS_LIMIT)
        except Problem:
            await events.aclose()
            raise
        return StreamingResponse(self._sent(exchange.admitted, events, framing), 200, headers, framing.media)

    async def _sent(
        self, admitted: Admitted, events: AsyncGenerator[bytes, None], framing: Framing
    ) -> AsyncGenerator[bytes, None]:
        self._streams += 1
        closing = asyncio.ensure_future(self._closing.wait())
        coming = asyncio.ensure_future(_next(events))
        try:
            with self._while_permitted(admitted, "stream") as revoked:
                ends: tuple[asyncio.Future[Any], ...] = (closing, revoked)
                while not any(each.done() for each in ends):
                    await asyncio.wait([coming, *ends], timeout=IDLE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                    if not coming.done():
                        yield framing.last if any(each.done() for each in ends) else framing.idle
                    elif (event := await _told(coming)) is not None:
                        yield event
                        coming = asyncio.ensure_future(_next(events))
                    else:
                        return
        finally:
            self._streams -= 1
            await end([each for each in (coming, closing) if not each.done()])
            await events.aclose()

    # --- rights -------------------------------------------------------------------------------------------------------
    def _check_share(self, admitted: Admitted, kind: str, limit: int) -> None:
        """Raise a `Problem` if one caller with a name has its share open already: a part of what there may be."""
        share = max(1, limit // SHARES)
        if admitted.means != "local" and self._counts[admitted.access.name, kind] >= share:
            raise too_many(f"{admitted.access.name!r} has {share:,} requests of this kind open already")

    @contextmanager
    def _while_permitted(self, admitted: Admitted, kind: str) -> Generator[asyncio.Future[None]]:
        """Give a future that is done once the caller may no more."""
        revoked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        mine = _Open(admitted.access.name, kind, admitted.still, revoked)
        self._open.add(mine)
        self._counts[mine.name, kind] += 1
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._watch_rights())
        try:
            yield revoked
        finally:
            self._open.discard(mine)
            self._counts[mine.name, kind] -= 1
            if not self._counts[mine.name, kind]:
                del self._counts[mine.name, kind]

    async def _watch_rights(self) -> None:
        """End what is open once its caller may no more."""
        while self._open:
            await asyncio.sleep(RIGHTS_SECONDS)
            await asyncio.gather(*map(_look_whether_it_may, [*self._open]))


class _Open(Struct, frozen=True, eq=False):
    """A wait or stream, and how it is told that its caller may no more."""

    name: str
    kind: str
    still: Callable[[], Awaitable[bool]]
    revoked: asyncio.Future[None]


async def _look_whether_it_may(one: _Open) -> None:
    try:
        async with asyncio.timeout(RIGHTS_SECONDS):
            may = await one.still()
    except (Problem, TimeoutError):  # the tokens cannot be read, or a site's login hangs
        may = False
    except Exception as error:  # noqa: BLE001  of a site's own login
        log_error(log, "whether %r may go on cannot be told: it may not", one.name, error=error)
        may = False
    if not may and not one.revoked.done():
        log.info("%r may no more: its open %s ends", one.name, one.kind)
        one.revoked.set_result(None)


async def _never() -> bool:
    return False


async def _told(coming: asyncio.Future[bytes | None]) -> bytes | None:
    """Return an event; None at the end, also if that is an error: the client comes again, and is told then."""
    try:
        return await coming
    except PerdureError as error:
        log.info("a stream ends: %s", error)
    except Exception as error:  # noqa: BLE001  one stream ends, the others go on
        log_error(log, "a stream ends: unexpected exception", error=error)
    return None


async def _next(events: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(events, None)


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
