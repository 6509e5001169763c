"""The operations over HTTP: `connect("http://…")` is a client of a server, the same as one of a store.

Requests wait while the server cannot be reached, as those of a store do, at most `timeout`. One that may have arrived
is sent again only if a second one changes nothing: a start, since its id is chosen here, and whatever only reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import httpx
import msgspec
from msgspec.structs import replace

from perdure.authoring.workflow import Delay
from perdure.background import RateLimitedLog
from perdure.core.lifecycle import SETTLED
from perdure.core.retry import Duration, seconds
from perdure.core.schedule import Plan
from perdure.errors import AccessDenied, BadUrl, PayloadTooLarge, StoreClosed, StoreError, StoreUnavailable, WaitTimeout
from perdure.http.bodies import EXACT_LIMIT_BYTES
from perdure.http.clients import WAIT_LIMIT_SECONDS
from perdure.http.exact import (
    CALLS,
    FRAME_HEADER_BYTES,
    MEDIA_TYPE,
    PREFIX,
    SentError,
    SentOutcome,
    SentSubmission,
    SentWrite,
    decode,
    encode,
    sent_filters,
)
from perdure.http.guard import PORT_LIMIT
from perdure.http.problems import MEDIA_TYPE as PROBLEM_MEDIA_TYPE
from perdure.http.problems import ProblemDocument
from perdure.http.service import IDLE_SECONDS
from perdure.operations.access import Access, Token
from perdure.operations.audit import Link
from perdure.operations.bulk import BulkPage, BulkPreview, BulkProgress, BulkRequest, BulkVerb
from perdure.operations.capabilities import Capability, Purpose
from perdure.operations.describe import Invocation
from perdure.operations.documents import Document, DocumentKey, Fence, Scan, Write
from perdure.operations.following import StreamPart
from perdure.operations.listing import PAGE_LIMIT, AwakeableFilters, AwakeablePage, Filters, Page, Status
from perdure.operations.port import ANSWER_WAIT_SECONDS, Minute, Operations, Outcome, Stats, Submission, nothing
from perdure.operations.rekey import RekeyProgress, SealedPart
from perdure.operations.schedules import Change, ScheduleInfo
from perdure.tracing import HEADER, TracerInUse, current, no_tracer

CONNECT_SECONDS = 5.0
"""How long a connection may take to be made."""
READ_SECONDS = 3 * IDLE_SECONDS
"""How long a server may be silent while it is waited for: it says something more often."""
RETRY_SECONDS = 0.5
"""The back-off before a request is sent again."""
CONNECTIONS_LIMIT = 1_000
"""Connections to one server: each request that waits for a result holds one."""
CLOCKS_APART_SECONDS = 5.0
"""How far the clocks of client and server may be apart, without a change being missed after a connection was lost."""
REPEATABLE = {name for name, each in CALLS.items() if each.role == "read" or not each.changes} | {
    "make_capability",
    "check_capability",
    "start",
    "start_all",
    "begin_bulk",
    "begin_bulk_purge",
    "stop_bulk",
    "begin_rekey",
    "result",
    "watch",
    "watch_all",
    "stream",
}
"""Operations of which a second request changes nothing."""

NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Errors of requests of which nothing was sent."""

T = TypeVar("T")

log = logging.getLogger("perdure.client")


class Remote(Operations):
    """The operations of a server. `name` is its URL, without secrets."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        token: str | None = None,
        timeout: float | None = None,
        tls: ssl.SSLContext | None = None,
        socket: str | None = None,
        tracer: TracerInUse = no_tracer,
    ) -> None:
        self._url = url.rstrip("/")
        self._name = name
        self._timeout = timeout
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._tls = tls
        self._socket = socket
        self._tracer = tracer
        self._http: httpx.AsyncClient | None = None
        self._closed = False
        self._log = RateLimitedLog(log)

    # --- life ---------------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        try:
            await self._call("serves", "")
        except BaseException:
            await self._close()
            raise

    async def aclose(self) -> None:
        self._closed = True
        await self._close()

    async def _close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    def _client(self) -> httpx.AsyncClient:
        self._check_open()
        if self._http is None:
            limits = httpx.Limits(max_connections=CONNECTIONS_LIMIT, max_keepalive_connections=CONNECTIONS_LIMIT)
            verify: ssl.SSLContext | bool = True if self._tls is None else self._tls
            transport = httpx.AsyncHTTPTransport(verify=verify, limits=limits, uds=self._socket, trust_env=False)
            self._http = httpx.AsyncClient(
                transport=transport,
                headers=self._headers,
                timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
                trust_env=False,
            )
        return self._http

    # --- requests -----------------------------------------------------------------------------------------------------
    async def _call(self, name: str, *arguments: object, waits: float = 0.0) -> Any:
        return decode((await self._send(name, arguments, waits)).content, CALLS[name].gives)

    async def _tell(self, name: str, *arguments: object, timeout: Duration) -> None:
        """Send a message to an invocation, and wait until it is applied."""
        limit = seconds("timeout", timeout)
        await self._call(name, *arguments, limit, waits=limit)

    async def _send(self, name: str, arguments: tuple[object, ...], waits: float = 0.0) -> httpx.Response:
        """Send a request until it is answered; raise what the answer says is wrong."""
        content, headers = encode(arguments), {"Content-Type": MEDIA_TYPE}
        if trace := current(self._tracer()):
            headers[HEADER] = trace
        deadline = None if self._timeout is None else asyncio.get_running_loop().time() + self._timeout
        while True:
            try:
                response = await self._client().post(
                    f"{self._url}{PREFIX}{name}",
                    content=content,
                    headers=headers,
                    timeout=httpx.Timeout(READ_SECONDS + waits, connect=CONNECT_SECONDS),
                )
            except httpx.TransportError as error:
                self._check_open()
                await self._again(name, error, deadline)
                continue
            except httpx.InvalidURL as error:
                raise StoreError(f"{self._name}: {error}") from error
            if _is_to_be_repeated(response):
                await self._again(name, _detail(response), deadline)
                continue
            if response.status_code == 413:
                raise PayloadTooLarge(f"{self._name}: {_detail(response)}", size=len(content), limit=EXACT_LIMIT_BYTES)
            _raise_refusal(response, self._name)
            return response

    async def _again(self, name: str, why: Exception | str, deadline: float | None) -> None:
        """Wait before a request is sent again, or raise `StoreUnavailable` if it must not be."""
        arrived = isinstance(why, Exception) and not isinstance(why, NOT_SENT)
        text = f"{self._name} cannot be reached: {_text(why)}"
        if arrived and name not in REPEATABLE:
            again = "The request may have been carried out all the same: look at the invocation, then send it again"
            raise StoreUnavailable(f"{text}. {again}")
        if deadline is not None and asyncio.get_running_loop().time() + RETRY_SECONDS > deadline:
            raise StoreUnavailable(f"{text}, for {self._timeout:g} s")
        self._log("away", "%s; retrying", text, level=logging.WARNING)
        await asyncio.sleep(RETRY_SECONDS)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed(f"this client of {self._name} is closed: connect again")

    # --- running ------------------------------------------------------------------------------------------------------
    async def run(self, submission: Submission, accepted: Callable[[], object] = nothing, /) -> Outcome:
        await self.start(submission)
        accepted()
        return await self.result(submission.id)

    async def start(self, submission: Submission, /) -> None:
        await self._call("start", _repeatable(submission))

    async def start_all(self, submissions: Sequence[Submission], /) -> None:
        await self._call("start_all", [_repeatable(each) for each in submissions])

    async def result(self, id: str, /, *, timeout: float | None = None) -> Outcome:
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while True:
            left = WAIT_LIMIT_SECONDS if end is None else min(WAIT_LIMIT_SECONDS, max(0.0, end - loop.time()))
            response = await self._send("result", (id, left), left)
            if response.status_code != 202:
                found: SentOutcome = decode(response.content, SentOutcome)
                return found.restored()
            if end is not None and loop.time() >= end:
                text = f"invocation {id!r} has not ended within {timeout} s; it goes on"
                raise WaitTimeout(text, invocation_id=id, timeout=timeout or 0.0)

    async def restart(
        self, id: str, call: Submission | None, /, *, new_id: str | None, handlers: Collection[str] = ()
    ) -> str:
        sent = None if call is None else SentSubmission.of(call)
        return await self._call("restart", id, sent, new_id, [*handlers])

    # --- talking ------------------------------------------------------------------------------------------------------
    async def pause(self, id: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self._tell("pause", id, timeout=timeout)

    async def resume(self, id: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self._tell("resume", id, timeout=timeout)

    async def cancel(self, id: str, /, *, force: bool = False, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self._tell("cancel", id, bool(force), timeout=timeout)

    async def retry(self, id: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self._tell("retry", id, timeout=timeout)

    async def resolve(self, awakeable_id: str, value: bytes, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self._tell("resolve", awakeable_id, value, timeout=timeout)

    async def reject(self, awakeable_id: str, reason: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        await self._tell("reject", awakeable_id, reason, timeout=timeout)

    async def awakeable(self, awakeable_id: str, /) -> tuple[str, int]:
        return await self._call("awakeable", awakeable_id)

    async def make_capability(self, purpose: Purpose, awakeable_id: str, expires: Delay, /) -> Capability:
        sent = expires if isinstance(expires, datetime) else seconds("expires", expires)
        return await self._call("make_capability", purpose, awakeable_id, sent)

    async def check_capability(self, purpose: Purpose, text: str, /) -> Capability:
        return await self._call("check_capability", purpose, text)

    # --- looking ------------------------------------------------------------------------------------------------------
    async def look(self, id: str, /) -> Invocation:
        return await self._call("look", id)

    async def describe(self, id: str, /) -> Invocation:
        return await self._call("describe", id)

    async def page(
        self, filters: Filters, /, *, limit: int, cursor: str | None = None, within: float | None = None
    ) -> Page:
        return await self._call("page", sent_filters(filters), limit, cursor)

    async def awakeables(
        self, filters: AwakeableFilters, /, *, limit: int, cursor: str | None = None, within: float | None = None
    ) -> AwakeablePage:
        return await self._call("awakeables", sent_filters(filters), limit, cursor)

    async def watch(self, id: str, /) -> AsyncGenerator[Invocation, None]:
        seen: Status | None = None
        while seen not in SETTLED:
            async with contextlib.aclosing(self._given("watch", (id,), Invocation)) as changes:
                async for each in changes:
                    if each.status != seen:  # when a connection was lost, the present status comes again
                        seen = each.status
                        yield each

    async def watch_all(self, filters: Filters, /, *, gone: bool = False) -> AsyncGenerator[Invocation, None]:
        since, is_first = time.time(), True
        while True:
            arguments = (sent_filters(filters), gone)
            async with contextlib.aclosing(self._given("watch_all", arguments, Invocation)) as changes:
                if not is_first:  # what changed while the server was away
                    async for each in self._changed_since(filters, since):
                        yield each
                is_first = False
                async for each in changes:
                    if each.updated_at is not None:
                        since = max(since, each.updated_at.timestamp())
                    yield each

    async def _changed_since(self, filters: Filters, since: float) -> AsyncGenerator[Invocation, None]:
        """Read the whole index for changes."""
        cursor: str | None = None
        while True:
            page = await self.page(filters, limit=PAGE_LIMIT, cursor=cursor)
            for each in page.invocations:
                if each.updated_at is not None and each.updated_at.timestamp() >= since - CLOCKS_APART_SECONDS:
                    yield each
            if (cursor := page.next) is None:
                return

    async def stream(
        self, id: str, name: str, start: int, /, *, follow: bool = True
    ) -> AsyncGenerator[StreamPart, None]:
        ended: list[bool] = []
        while not ended:
            given = self._given("stream", (id, name, start, follow), StreamPart, ended)
            async with contextlib.aclosing(given) as parts:
                async for part in parts:
                    start = part.end  # when a connection was lost, it goes on from there
                    yield part

    async def _given(
        self, name: str, arguments: tuple[object, ...], type: type[T], ended: list[bool] | None = None
    ) -> AsyncGenerator[T, None]:
        """Yield what one connection gives. It ends with the connection, or with its end, which is noted in `ended`."""
        deadline = None if self._timeout is None else asyncio.get_running_loop().time() + self._timeout
        try:
            async with self._client().stream(
                "POST", f"{self._url}{PREFIX}{name}", content=encode(arguments), headers={"Content-Type": MEDIA_TYPE}
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    if _is_to_be_repeated(response):
                        await self._again(name, _detail(response), deadline)
                        return
                    _raise_refusal(response, self._name)
                async for data in _frames(response.aiter_bytes()):
                    each, error = decode(data, tuple[type | None, SentError | None])
                    if error is not None:
                        raise error.restored()
                    if each is None:
                        if ended is not None:
                            ended.append(True)
                        return
                    yield each
        except httpx.TransportError as error:
            self._check_open()
            await self._again(name, error, deadline)

    async def stats(self) -> Stats:
        return await self._call("stats")

    async def minutes(self, *, since: datetime, handler: str | None = None) -> list[Minute]:
        return await self._call("minutes", since, handler)

    async def state(self, key: str, /) -> Mapping[str, bytes]:
        return await self._call("state", key)

    async def serves(self, handler: str, /) -> bool | None:
        return await self._call("serves", handler)

    # --- bulk jobs ----------------------------------------------------------------------------------------------------
    # The server knows who asks.
    async def preview_bulk(self, request: BulkRequest, /, *, by: Access | None = None) -> BulkPreview:
        return await self._call("preview_bulk", request)

    async def begin_bulk(self, verb: BulkVerb, token: str, /, *, by: Access | None = None) -> BulkProgress:
        if verb == "purge":
            return await self._call("begin_bulk_purge", token)
        return await self._call("begin_bulk", verb, token)

    async def bulk_job(self, id: str, /) -> BulkProgress:
        return await self._call("bulk_job", id)

    async def bulk_jobs(self, *, limit: int, cursor: str | None = None) -> BulkPage:
        return await self._call("bulk_jobs", limit, cursor)

    async def stop_bulk(self, id: str, /) -> BulkProgress:
        return await self._call("stop_bulk", id)

    # --- documents ----------------------------------------------------------------------------------------------------
    async def read_documents(self, collection: str, keys: Sequence[DocumentKey], /) -> list[Document | None]:
        return await self._call("read_documents", collection, [*keys])

    async def write_documents(
        self, collection: str, writes: Sequence[Write], fence: Fence | None = None, /
    ) -> list[int]:
        return await self._call("write_documents", collection, [SentWrite.of(each) for each in writes], fence)

    async def scan_documents(self, collection: str, which: Scan, /) -> list[Document]:
        return await self._call("scan_documents", collection, which)

    async def delete_documents(self, collection: str, prefix: str, /) -> int:
        return await self._call("delete_documents", collection, prefix)

    # --- schedules ----------------------------------------------------------------------------------------------------
    async def put_schedule(self, name: str, plan: Plan, /) -> bool:
        return await self._call("put_schedule", name, plan)

    async def change_schedule(self, name: str, change: Change, /) -> list[str]:
        return await self._call("change_schedule", name, change)

    async def delete_schedule(self, name: str, /) -> bool:
        return await self._call("delete_schedule", name)

    async def describe_schedule(self, name: str, /) -> ScheduleInfo:
        return await self._call("describe_schedule", name)

    async def schedules(self, *, limit: int, after: str | None = None) -> list[ScheduleInfo]:
        return await self._call("schedules", limit, after)

    async def schedule_times(self, name: str, count: int, /) -> list[float]:
        return await self._call("schedule_times", name, count)

    # --- access -------------------------------------------------------------------------------------------------------
    async def add_token(self, access: Access, /, *, expires: datetime | None = None) -> str:
        return await self._call("add_token", access, expires)

    async def revoke_token(self, id: str, /) -> None:
        await self._call("revoke_token", id)

    async def tokens(self) -> list[Token]:
        return await self._call("tokens")

    async def audit(self, after: int = 0, /) -> list[Link]:
        return await self._call("audit", after)

    # --- keys of a sealed store ---------------------------------------------------------------------------------------
    async def count_sealed(self, after: str = "", /) -> SealedPart:
        return await self._call("count_sealed", after)

    async def begin_rekey(self) -> RekeyProgress:
        return await self._call("begin_rekey")

    async def rekey(self) -> RekeyProgress | None:
        return await self._call("rekey")

    # --- keeping ------------------------------------------------------------------------------------------------------
    async def export(self, id: str, /, *, plain: bool = False) -> bytes:
        return await self._call("export", id, plain)

    async def purge(self, id: str, /) -> None:
        await self._call("purge", id)

    async def backup(self, target: str, /) -> None:
        raise StoreError(f"{self._name}: a backup is made where the store is: connect to its URL there")


def _repeatable(submission: Submission) -> SentSubmission:
    """Return a submission as it is sent. It may be sent again, so a store has to look whether its id exists."""
    return SentSubmission.of(replace(submission, is_chosen=True))


async def _frames(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the frames of a stream, without those that only say that it lives."""
    buffer = b""
    async for piece in pieces:
        buffer += piece
        while len(buffer) >= FRAME_HEADER_BYTES:
            end = FRAME_HEADER_BYTES + int.from_bytes(buffer[:FRAME_HEADER_BYTES], "big")
            if len(buffer) < end:
                break
            frame, buffer = buffer[FRAME_HEADER_BYTES:end], buffer[end:]
            if frame:
                yield frame


def _raise_refusal(response: httpx.Response, name: str) -> None:
    """Raise what an answer says is wrong."""
    if response.status_code < 400:
        return
    if response.headers.get("content-type") == MEDIA_TYPE:
        error: SentError = decode(response.content, SentError)
        raise error.restored()
    if response.status_code in (401, 403) and _is_problem(response):
        hint = ": set PERDURE_TOKEN, or connect(…, token=…)" if response.status_code == 401 else ""
        raise AccessDenied(f"{name}: {_detail(response)}{hint}")
    raise StoreError(f"{name} answers {response.status_code}: {_detail(response)}")


def _is_to_be_repeated(response: httpx.Response) -> bool:
    """Report whether a server is busy, or stops, and has done nothing."""
    return response.status_code in (429, 503) and _is_problem(response)


def _is_problem(response: httpx.Response) -> bool:
    return response.headers.get("content-type") == PROBLEM_MEDIA_TYPE


def _detail(response: httpx.Response) -> str:
    try:
        return msgspec.json.decode(response.content, type=ProblemDocument).detail
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return "this is not the HTTP API of Perdure, or a proxy in front of it answers"


def _text(why: Exception | str) -> str:
    return why if isinstance(why, str) else str(why) or type(why).__name__


def check_url(url: str, name: str) -> None:
    """Raise `BadUrl` for the URL of no server."""
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise BadUrl(f"{name!r}: {error}") from error
    is_port = found.port is None or 0 < found.port <= PORT_LIMIT
    if not found.host or not is_port or found.query or found.fragment:
        text = "name a host, a port, and the path of the API if it has one, as in http://127.0.0.1:8080; or use memory:"
        raise BadUrl(f"{name!r}: {text}, sqlite:PATH or nats://HOST:PORT")
