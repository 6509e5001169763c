"""A connection to a server or cluster that reconnects without limit: subscriptions, hints, requests, the API.

It does its own sending and receiving: some of nats-py's futures never end after a failure, it sends buffered messages
whose caller was cancelled, and it parses headers as email.

A hint is dropped while there is no connection, and nothing is buffered to be sent later. A request is lost with the
connection: its caller retries.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct
from nats.errors import Error as NatsError

from perdure.background import RateLimitedLog
from perdure.errors import StoreClosed, StoreError, StoreUnavailable, StoreUnfit
from perdure.stores.jetstream.wire.access import shown
from perdure.stores.jetstream.wire.checks import check_payload, denied_of, not_allowed, not_connected
from perdure.stores.jetstream.wire.connection import Connection
from perdure.stores.jetstream.wire.protocol import ELECTING, HEADER_LINE, UNAVAILABLE, Arrived, encode, status_of

REQUEST_TIMEOUT_SECONDS = 3.0
"""How long a server may take to answer before a put is repeated, and a read fails."""
SWEEP_SECONDS = 1.0
"""How often requests are checked for timeouts."""
RETRY_SECONDS = 0.1
"""The back-off when a server cannot answer, as in an election."""
API_ATTEMPTS = 3
"""How often an API request may go unanswered before JetStream is reported as unavailable."""
ELECTION_SECONDS = 15.0
"""How long there may be no leader before an API request fails: elections take up to 9 s."""
CONNECT_TIMEOUT_SECONDS = 5
RECONNECT_WAIT_SECONDS = 0.25
PING_SECONDS = 5
PAYLOAD_ROOM_BYTES = 16 * 1024
"""The part of the server's payload limit that is left for headers and subject."""

log = logging.getLogger("perdure.jetstream")


Answer = tuple[bytes, bytes]
"""Payload and headers of an answer."""


class Request(Struct, eq=False):
    subject: str
    answered: Callable[[bytes, bytes], bool]  # payload and headers; True if no more is expected
    lost: Callable[[], None]
    failed: Callable[[StoreError], None]  # there will be no answer, and a retry would fail alike
    at: float


class Link:
    """A connection that reconnects by itself."""

    def __init__(
        self,
        servers: Sequence[str],
        options: dict[str, Any] | None = None,
        *,
        connected: Callable[[], None] = lambda: None,
    ) -> None:
        self.servers = [*servers]
        self._options = options or {}
        self._connected = connected
        self.stream_of: Callable[[str], str]  # returns the stream of a subject; set by the store
        self._handlers: dict[int, Arrived] = {}
        self._subjects: dict[int, bytes] = {}  # by subscription: the subject, and perhaps a queue group
        self._connection = Connection(self._handlers)
        self._sid = 1_000_000  # above those of nats-py itself
        self._inbox = f"_INBOX.{secrets.token_hex(8)}"
        self._number = 0
        self._requests: dict[str, Request] = {}
        self._up = False
        self._closed = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._deaf: StoreError | None = None  # why no answer can be received
        self._problems: list[str] | None = []  # errors before the first connection; None once connected
        self.limited_log = RateLimitedLog(log)
        self.reconnects = 0

    # --- open and close -----------------------------------------------------------------------------------------------
    async def open(self) -> None:
        """Connect, or raise `StoreUnavailable`."""
        self._loop = asyncio.get_running_loop()

        async def failed(error: Exception) -> None:
            self._went_wrong(str(error) or type(error).__name__)

        async def down() -> None:
            self._went_down()

        async def up() -> None:
            try:
                self._came_up()
            except Exception:
                log.exception("what should follow a reconnect failed")

        settings: dict[str, Any] = {
            "servers": self.servers,
            "error_cb": failed,
            "disconnected_cb": down,
            "reconnected_cb": up,
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "reconnect_time_wait": RECONNECT_WAIT_SECONDS,
            "max_reconnect_attempts": 1,
            "ping_interval": PING_SECONDS,
            "max_outstanding_pings": 2,
            "pending_size": 0,
            **self._options,
        }
        connection = self._connection
        try:
            await connection.connect_within(4 * CONNECT_TIMEOUT_SECONDS, settings)
        except (OSError, NatsError, TimeoutError) as error:
            await connection.close()
            where = ", ".join(map(shown, self.servers))
            raise not_connected(where, self._problems or [str(error) or type(error).__name__]) from error
        except BaseException:  # the opening was cancelled
            await connection.close()
            raise
        self._problems = None
        try:
            check_payload(connection.max_payload, shown(self.servers[0]))
        except StoreUnfit:
            await connection.close()
            raise
        connection.options["max_reconnect_attempts"] = -1
        self._up = True
        self.subscribe(f"{self._inbox}.*", self._answered)
        self._sweep()

    async def close(self) -> None:
        """Wait for puts in flight, then disconnect."""
        if self._closed:
            return
        await self._finish()
        await self.flush()
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._up = False
        self._handlers.clear()
        try:
            await self._connection.close()
        finally:
            self._end()
            requests, self._requests = self._requests, {}
            for request in requests.values():
                request.lost()

    async def flush(self) -> None:
        """Wait until the server has read everything that was sent."""
        if self._up:
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):  # nats-py's own covers only a part
                    await self._connection.flush(timeout=math.ceil(REQUEST_TIMEOUT_SECONDS))
            except (NatsError, OSError, TimeoutError) as error:
                log.warning("the server has not read the last messages: %s", error)

    @property
    def is_up(self) -> bool:
        return self._up

    @property
    def unsent(self) -> int:
        """How many bytes wait to be sent."""
        return self._connection.unsent

    @property
    def payload_limit(self) -> int:
        """The largest payload of a message, in bytes."""
        return self._connection.max_payload - PAYLOAD_ROOM_BYTES

    @property
    def is_clustered(self) -> bool:
        """Report whether the server is part of a cluster, whose other servers may answer for it."""
        return self._connection.is_clustered

    @property
    def server_version(self) -> str:
        return self._connection.version

    def _went_wrong(self, what: str) -> None:
        """Handle an error that nats-py reports."""
        if self._problems is not None:
            self._problems.append(what)
        elif (denied := denied_of(what)) is not None:
            self._denied(*denied)
        elif not self._closed:
            self.limited_log(what, "the NATS server: %s", what)

    def _denied(self, verb: str, subject: str) -> None:
        """Fail the requests that get no answer, because this client may not publish or subscribe to a subject."""
        where = shown(self.servers[0])
        found = [(name, each) for name, each in self._requests.items() if each.subject.lower() == subject]
        if verb == "subscription":
            found = []
            if subject.startswith(self._inbox.lower()):
                subject = "_INBOX.>"
                found = [*self._requests.items()]
                self._deaf = not_allowed(verb, subject, where)
        elif found:
            subject = found[0][1].subject
        error = not_allowed(verb, subject, where)
        self.limited_log(" ".join([verb, *subject.split(".")[:3]]), "%s", error)
        for name, request in found:
            if self._requests.pop(name, None) is not None:
                request.failed(error)

    def _went_down(self) -> None:
        if not self._up or self._closed:
            return
        self._up = False
        self._connection.drop_unsent()
        log.warning("the connection to the NATS server is lost: reconnecting, without limit")
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request.lost()

    def _came_up(self) -> None:
        if self._closed:
            return
        self._up = True
        self._deaf = None
        self.reconnects += 1
        for sid, subject in self._subjects.items():
            self._connection.send(b"SUB %s %d\r\n" % (subject, sid))
        log.warning("reconnected to the NATS server")
        self._resume()
        self._connected()

    # --- for subclasses -----------------------------------------------------------------------------------------------
    async def _finish(self) -> None:
        """Wait for what is in flight, before the connection is closed."""

    def _end(self) -> None:
        """Fail what will never be answered: the connection is closed."""

    def _resume(self) -> None:
        """Send again what was not answered, after a reconnect."""

    # --- subjects -----------------------------------------------------------------------------------------------------
    def subscribe(self, subject: str, arrived: Arrived, *, group: str = "") -> int:
        """Subscribe to a subject, across reconnects. One member of a queue group receives each message."""
        self._sid += 1
        self._handlers[self._sid] = arrived
        encoded = self._subjects[self._sid] = f"{subject} {group}".rstrip().encode()
        if self._up:
            self._connection.send(b"SUB %s %d\r\n" % (encoded, self._sid))
        return self._sid

    def unsubscribe(self, sid: int) -> None:
        """Unsubscribe. Messages in flight still arrive, until `forget`."""
        if self._subjects.pop(sid, None) is not None and self._up:
            self._connection.send(b"UNSUB %d\r\n" % sid)

    def forget(self, sid: int) -> None:
        self._handlers.pop(sid, None)

    def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        """Send a hint, which is dropped while there is no connection."""
        if self._up:
            self._connection.send(b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), reply.encode(), len(payload), payload))

    def publish_with(self, subject: str, headers: bytes) -> None:
        """Send a hint that consists of header lines."""
        if self._up:
            self._send(subject, "", b"%s%s\r\n" % (HEADER_LINE, headers), b"")

    def _send(self, subject: str, reply: str, lines: bytes, payload: bytes) -> None:
        """Send a message with header lines, the empty one at the end among them."""
        self._connection.send(
            b"HPUB %s %s %d %d\r\n%s%s\r\n"
            % (subject.encode(), reply.encode(), len(lines), len(lines) + len(payload), lines, payload)
        )

    # --- requests -----------------------------------------------------------------------------------------------------
    def _name(self) -> str:
        self._number += 1
        return f"{self._inbox}.{self._number}"

    def _answered(self, subject: str, _reply: str, data: bytes, headers: bytes) -> None:
        request = self._requests.get(subject)
        if request is None:
            return
        if request.answered(data, headers):
            self._requests.pop(subject, None)
        elif self._requests.pop(subject, None) is not None:  # more is to come: its time begins anew
            request.at = self._loop.time()
            self._requests[subject] = request

    def _request(
        self,
        subject: str,
        payload: bytes,
        answered: Callable[[bytes, bytes], bool],
        lost: Callable[[], None],
        failed: Callable[[StoreError], None],
    ) -> None:
        if self._deaf is not None:
            failed(self._deaf)
            return
        if not self._up:
            lost()
            return
        name = self._name()
        self._requests[name] = Request(subject, answered, lost, failed, self._loop.time())
        self.publish(subject, payload, name)

    async def request(self, subject: str, payload: bytes = b"") -> Answer | None:
        """Return payload and headers of the answer; None if the connection broke or the answer timed out."""
        request, future = self._awaited(subject)
        self._request(subject, payload, request.answered, request.lost, request.failed)
        return await future

    def _awaited(self, subject: str) -> tuple[Request, asyncio.Future[Answer | None]]:
        """Make a request, and the future of its answer: None if the connection breaks or the answer times out."""
        future: asyncio.Future[Answer | None] = self._loop.create_future()

        def answered(data: bytes, headers: bytes) -> bool:
            if not future.done():
                future.set_result((data, headers))
            return True

        def lost() -> None:
            if not future.done():
                future.set_result(None)

        return Request(subject, answered, lost, partial(fail, future), self._loop.time()), future

    async def api(self, what: str, body: object = None) -> dict[str, Any]:
        """Call the JetStream API, with retries. The answer may hold an `error`."""
        payload = b"" if body is None else encode(body)
        unanswered, patience = 0, self.now() + ELECTION_SECONDS
        while unanswered < API_ATTEMPTS:
            answer = await self.request(f"$JS.API.{what}", payload)
            if answer is None or status_of(answer[1]) == UNAVAILABLE:
                unanswered += 1
            else:
                found: dict[str, Any] = msgspec.json.decode(answer[0])
                if found.get("error", {}).get("err_code") not in ELECTING:
                    return found
                if self.now() > patience:
                    text = "the cluster has no leader: more than half of its nodes must be up"
                    raise StoreUnavailable(f"jetstream: {what} is not possible now: {text}")
            self.check_open()
            await asyncio.sleep(RETRY_SECONDS)
        where = shown(self.servers[0])
        raise StoreUnavailable(
            f"{where}: JetStream does not answer ({what}): enable it in the server's configuration, `jetstream {{}}`; "
            "in a cluster, more than half of the nodes must be up"
        )

    def check_open(self) -> None:
        """Raise `StoreClosed` after `close`."""
        if self._closed:
            raise StoreClosed("jetstream: the store is closed")

    def _sweep(self) -> None:
        """Time out requests. They are in the order in which something was last heard of them, or they were sent."""
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        late = self._loop.time() - REQUEST_TIMEOUT_SECONDS
        for name, request in [*self._requests.items()]:
            if request.at > late:
                break
            del self._requests[name]
            request.lost()

    def now(self) -> float:
        """Return the loop's time."""
        return self._loop.time()

    def new_inbox(self) -> str:
        """Return a unique subject for answers to this connection."""
        self._number += 1
        return f"_INBOX.{self._inbox[7:]}p.{self._number}"


def fail(future: asyncio.Future[Any], error: StoreError) -> None:
    if not future.done():
        future.set_exception(error)
