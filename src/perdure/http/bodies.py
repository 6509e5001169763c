"""Receives the bodies of requests, within bounds: of size, of time, and of all that are in hand at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.requests import Request

from perdure.http.guard import READS
from perdure.http.problems import Problem
from perdure.http.routes import ANY, JSON, MEDIA_TYPES, Body, Route

BODY_LIMIT_BYTES = 4 * 1024 * 1024
"""The largest body of a request, unless the application is told otherwise."""
EXACT_LIMIT_BYTES = 80 * 1024 * 1024
"""The largest request of another Perdure client that brings values: more than the largest that a store takes."""
BODY_SECONDS = 10.0
"""How long a request may take to arrive."""
HELD_LIMIT_BYTES = 512 * 1024 * 1024
"""How much the bodies of requests in hand may be together: those that arrive, wait for something or are answered."""
UNKNOWN_LIMIT_BYTES = 64 * 1024 * 1024
"""The same of requests that anybody may send, such as webhooks: nothing is known of them before they have arrived."""


class Bodies:
    """The bodies in hand of one server."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._receiving: set[asyncio.Timeout] = set()
        self._held: Counter[bool] = Counter()  # bytes, by whether anybody may send them
        self._is_closing = False

    def close(self) -> None:
        """Wait no longer for what has not arrived."""
        self._is_closing = True
        for patience in self._receiving:
            patience.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def received(self, request: Request, route: Route) -> AsyncGenerator[bytes]:
        """Give the body of a request while the block lasts, or raise a `Problem` if the route takes no such one."""
        _check_type(request, route)
        if request.method in READS:
            yield b""
            return
        limit = self._limit
        if route.body is Body.EXACT and route.role != "read":
            limit = max(limit, EXACT_LIMIT_BYTES)
        unknown = route.role == "anybody"
        room = UNKNOWN_LIMIT_BYTES if unknown else max(HELD_LIMIT_BYTES, 2 * limit)
        pieces: list[bytes] = []
        size = kept = 0
        patience = asyncio.timeout(BODY_SECONDS)
        try:
            self._receiving.add(patience)
            async with patience:
                async for piece in request.stream():
                    size += len(piece)
                    # The rest is read too, and dropped: many clients see no answer before they have sent all.
                    if size <= limit and kept + len(piece) == size and self._held[unknown] + len(piece) <= room:
                        pieces.append(piece)
                        kept += len(piece)
                        self._held[unknown] += len(piece)
            self._receiving.discard(patience)
            if size > limit:
                text = f"the body is larger than {limit:,} bytes, which is the limit"
                raise Problem(413, "too-large", text, headers={"Connection": "close"})
            if kept < size:
                raise too_many(f"{self._held[unknown]:,} bytes of other requests are in hand already")
            body = b"".join(pieces)
            pieces.clear()
            if route.body is Body.NONE and b"".join(body.split()) not in (b"", b"{}"):
                raise Problem(400, "unexpected-body", "this route takes no body")
            yield body
        except TimeoutError:
            if not patience.expired():
                raise
            if self._is_closing:
                raise stopping() from None
            text = f"the body did not arrive within {BODY_SECONDS:g} s"
            raise Problem(408, "slow-body", text, headers={"Connection": "close"}) from None
        finally:
            self._receiving.discard(patience)
            self._held[unknown] -= kept


def stopping() -> Problem:
    """Return the problem of a request that comes while the server stops."""
    return Problem(503, "stopping", "this server stops: send it again a little later", headers={"Retry-After": "1"})


def too_many(why: str) -> Problem:
    """Return the problem of a request that is one too many."""
    return Problem(429, "busy", f"{why}: send it again a little later", headers={"Retry-After": "1"})


def _check_type(request: Request, route: Route) -> None:
    headers = request.headers
    if "content-encoding" in headers:
        raise Problem(415, "encoded-body", "the body is compressed: send it as it is, without Content-Encoding")
    if request.method in READS:
        return
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    wanted = MEDIA_TYPES.get(route.body, JSON) if isinstance(route.body, Body) else JSON
    if wanted not in (ANY, kind) and not (wanted == JSON and kind.endswith("+json")):
        got = f"not {kind}" if kind else "and this request has none"
        raise Problem(
            415, "wrong-content-type", f"the Content-Type of a request that changes something is {wanted}, {got}"
        )
