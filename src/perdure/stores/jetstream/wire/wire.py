"""The narrow interface to a NATS server: guarded puts with a known outcome, reads, pulls, acknowledgements.

It takes the connection of nats-py (handshake, authentication, TLS, reconnects) and does its own sending and receiving:
nats-py's futures never end on some failures, it sends what its caller has given up, and its messages cost a parse of
their headers as electronic mail. So it uses parts of the client that are internal there; the extra `nats` pins the
version, and tests/jetstream/test_wire.py fails when they change.

* A put is told once, with its sequence, or with why it was refused. When the connection breaks before the answer, it is
  put again after the reconnect; its guard and its name (in the header `Perdure-Put`) say whether it had arrived.
* Everything else is a hint, or is asked again by its caller: while disconnected it is dropped, and nothing that was
  buffered is sent later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, cast

import msgspec
from msgspec import Struct
from nats.aio.client import Client as NatsClient
from nats.errors import Error as NatsError

from perdure.errors import StoreClosed, StoreError, StoreUnavailable, StoreUnfit
from perdure.stores.jetstream.wire.checks import (
    check_payload,
    denied_of,
    no_room,
    not_allowed,
    not_connected,
    stream_gone,
)
from perdure.stores.jetstream.wire.complaints import Complaints

REQUEST_TIMEOUT_SECONDS = 3.0
"""How long a server may take to answer, before a put is repeated and a read fails."""
SWEEP_SECONDS = 1.0
"""How often requests are looked through for those that took too long."""
RETRY_SECONDS = 0.1
"""How long after a server could not take a put, as in an election, it is tried again."""
PATIENCE_SECONDS = 3.0
"""How long a stream may take nothing, and answer nothing, before it is asked whether it is there at all."""
API_ATTEMPTS = 3
"""How often the JetStream API is asked before it is said to be unavailable."""
ELECTION_SECONDS = 15.0
"""How long there may be no leader for what the API is asked, before that fails: elections take up to 9 s."""
CONNECT_TIMEOUT_SECONDS = 5
RECONNECT_WAIT_SECONDS = 0.25
CLOSE_TIMEOUT_SECONDS = 1.0
PING_SECONDS = 5
PAYLOAD_ROOM_BYTES = 16 * 1024
"""What headers and subject may take of the server's payload limit."""
BATCH_LIMIT = 1_000
"""Messages that one batched read returns at most: the server refuses more than 1,024 subjects."""
BATCH_BYTES = 8 * 1024 * 1024
"""Bytes that one batched read returns, about: the server drops a client that reads too slowly."""

WRONG_SEQUENCE = 10071
ANOTHER_IN_FLIGHT = 10164
ELECTING = frozenset({10006, 10008, 10009})
"""Errors of the API while the servers have no leader for what is asked."""
NOT_NOW = ELECTING | {ANOTHER_IN_FLIGHT}
TOO_MANY, UNAVAILABLE = 429, 503
"""Codes of errors that go away: it was not stored, and is to be put again."""
NO_MESSAGE = 10037
NO_STREAM = 10059
NOT_DELETED = frozenset({NO_MESSAGE, 10057, 10043})
"""There was nothing to delete: no such message, or none at that sequence any more."""
FULL = frozenset({10077, 10023, 10047})

HEADER_LINE = b"NATS/1.0\r\n"
PUT_NAME = b"Perdure-Put: "

log = logging.getLogger("perdure.jetstream")


class WrongSequence(StoreError):
    """The guard of a put did not hold: somebody else has written to its subject."""


class Stored(Struct, frozen=True):
    """A message as a stream holds it."""

    subject: str
    sequence: int
    data: bytes
    headers: bytes = b""

    def header(self, name: bytes) -> bytes | None:
        """Return the value of a header; `name` ends with a colon and a space."""
        return header(self.headers, name)


class _ApiError(Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(Struct):
    seq: int = 0
    error: _ApiError | None = None


class _StoredJson(Struct):
    subject: str
    seq: int
    data: bytes = b""
    hdrs: bytes = b""


class _LastJson(Struct):
    message: _StoredJson | None = None
    error: _ApiError | None = None


_decode_ack = msgspec.json.Decoder(_Ack).decode
_decode_last = msgspec.json.Decoder(_LastJson).decode
_encode = msgspec.json.Encoder().encode


def header(headers: bytes, name: bytes) -> bytes | None:
    """Return the value of a header in a raw block of them; `name` ends with a colon and a space."""
    at = headers.find(b"\r\n" + name)
    if at < 0:
        return None
    at += 2 + len(name)
    return headers[at : headers.find(b"\r\n", at)]


def status_of(headers: bytes | None) -> int:
    """Return the status that the server put into a block of headers, 0 if none."""
    if not headers or headers[8:9] != b" ":
        return 0
    return int(headers[9:12])


Arrived = Callable[[str, str, bytes, bytes], None]
"""Called with subject, reply subject, payload and raw headers of a message."""
PutTold = Callable[[int, StoreError | None], None]
"""Told once of a put: its sequence, or why it was refused (`WrongSequence` if its guard did not hold)."""


class _Request(Struct, eq=False):
    subject: str
    answered: Callable[[bytes, bytes], bool]  # payload and headers; True if no more is expected
    lost: Callable[[], None]
    failed: Callable[[StoreError], None]  # there will be no answer, and asking again is of no use
    at: float


class _Put(Struct, eq=False):
    name: bytes
    subject: str
    headers: bytes
    payload: bytes
    expected: int | None
    told: PutTold
    at: float
    sent: int = 0


class _Connection(NatsClient):
    """nats-py's connection, with what arrives handed on unparsed."""

    def __init__(self, arrived: dict[int, Arrived]) -> None:
        super().__init__()
        self.handlers = arrived
        self._kicked = False

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        handler = self.handlers.get(sid)
        if handler is not None:
            try:
                handler(subject.decode(), reply.decode() if reply else "", data, headers or b"")
            except Exception:
                log.exception("a message on %s could not be handled", subject.decode())

    async def _connect_to_server(self, s: Any) -> None:
        if self._transport is not None:  # of an attempt that failed: nothing else closes it
            self._transport.close()
        await super()._connect_to_server(s)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Take what the server says of itself; without TLS, if it was asked for, nothing secret is sent to it."""
        if initial_connection and self.options.get("tls") is not None:
            if not (info.get("tls_required") or info.get("tls_available")):
                raise NatsError("the server offers no TLS")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    async def _process_err(self, err_msg: str) -> None:
        """Take what the server says is wrong. Unless it is one subject, the server disconnects: not for ever."""
        if denied_of(err_msg) is not None or self.is_connecting:
            await super()._process_err(err_msg)
            return
        error = NatsError(f"nats: {err_msg.strip(chr(39))}")
        await self._error_cb(error)
        await self._process_op_err(error)

    @property
    def version(self) -> str:
        return str(self._server_info.get("version", ""))

    @property
    def is_clustered(self) -> bool:
        return bool(self._server_info.get("cluster"))

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        with contextlib.suppress(TimeoutError):  # after a TLS handshake that failed, the transport never ends
            await asyncio.wait_for(super()._close(status, do_cbs), CLOSE_TIMEOUT_SECONDS)

    def send(self, command: bytes) -> None:
        """Send in this round of the loop, together with all else that is sent in it."""
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._kicked:
            self._kicked = True
            asyncio.get_running_loop().call_soon(self._kick)

    def _kick(self) -> None:
        self._kicked = False
        queue = cast("asyncio.Queue[Any] | None", self._flush_queue)
        if queue is not None and not queue.full():
            queue.put_nowait(asyncio.get_running_loop().create_future())

    def drop_unsent(self) -> None:
        """Forget what waits to be sent."""
        self._pending = []
        self._pending_data_size = 0


class Wire:
    """One connection to a server or cluster, kept up for ever once it was made."""

    def __init__(
        self,
        servers: Sequence[str],
        options: dict[str, Any] | None = None,
        *,
        connected: Callable[[], None] = lambda: None,
        disconnected: Callable[[], None] = lambda: None,
    ) -> None:
        self.servers = [*servers]
        self._options = options or {}
        self._connected = connected
        self._disconnected = disconnected
        self.stream_of: Callable[[str], str]  # names the stream that takes a subject; set by the store
        self._handlers: dict[int, Arrived] = {}
        self._subjects: dict[int, bytes] = {}  # what is listened to, by subscription: a subject, and perhaps a group
        self._connection = _Connection(self._handlers)
        self._sid = 1_000_000  # above those of nats-py itself
        self._inbox = f"_INBOX.{secrets.token_hex(8)}"
        self._number = 0
        self._requests: dict[str, _Request] = {}
        self._puts: dict[_Put, None] = {}  # not told yet
        self._parked: list[_Put] = []  # to be put when there is a connection
        self._up = False
        self._closed = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._none_left: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._deaf: StoreError | None = None  # why no answer can be heard
        self._problems: list[str] | None = []  # what went wrong on the way to the first connection
        self.complaints = Complaints(log)
        self._absent: dict[str, float] = {}  # streams that answer nothing, and when they were asked about
        self.reconnects = 0

    # --- life ---------------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        """Connect, or raise `StoreUnavailable`."""
        self._loop = asyncio.get_running_loop()

        async def failed(error: Exception) -> None:
            self._went_wrong(str(error) or type(error).__name__)

        async def down() -> None:
            self._went_down()

        async def up() -> None:
            self._came_up()

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
            await asyncio.wait_for(connection.connect(**settings), 4 * CONNECT_TIMEOUT_SECONDS)
        except (OSError, NatsError, TimeoutError) as error:
            await connection.close()
            where = ", ".join(map(without_credentials, self.servers))
            raise not_connected(where, self._problems or [str(error) or type(error).__name__]) from error
        self._problems = None
        try:
            check_payload(connection.max_payload, without_credentials(self.servers[0]))
        except StoreUnfit:
            await connection.close()
            raise
        connection.options["max_reconnect_attempts"] = -1
        self._up = True
        self.subscribe(f"{self._inbox}.*", self._answered)
        self._sweep()

    async def close(self) -> None:
        """Wait for the puts that were made, then disconnect."""
        if self._closed:
            return
        if self._puts and self._up:
            self._none_left = self._loop.create_future()
            await asyncio.wait([self._none_left], timeout=2 * REQUEST_TIMEOUT_SECONDS)
        await self.flush()
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._up = False
        self._handlers.clear()
        await self._connection.close()
        error = StoreClosed("jetstream: the store is closed")
        for put in [*self._puts]:
            self._tell(put, 0, error)
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request.lost()

    async def flush(self) -> None:
        """Wait until the server has read all that was sent."""
        if self._up:
            try:
                await self._connection.flush(timeout=int(REQUEST_TIMEOUT_SECONDS))
            except (NatsError, OSError, TimeoutError) as error:
                log.warning("the server has not read the last messages: %s", error)

    @property
    def is_up(self) -> bool:
        return self._up

    @property
    def payload_limit(self) -> int:
        """The most bytes of one message."""
        return self._connection.max_payload - PAYLOAD_ROOM_BYTES

    @property
    def is_clustered(self) -> bool:
        """Tell whether the server is one of several, so that others may answer for it."""
        return self._connection.is_clustered

    @property
    def server_version(self) -> str:
        return self._connection.version

    def _went_wrong(self, what: str) -> None:
        """Take what the client says is wrong."""
        if self._problems is not None:
            self._problems.append(what)
        elif (denied := denied_of(what)) is not None:
            self._denied(*denied)
        elif not self._closed:
            self.complaints.say(what, "the NATS server: %s", what)

    def _denied(self, verb: str, subject: str) -> None:
        """End what waits for an answer that will not come, as this client may not ask or hear it."""
        where = without_credentials(self.servers[0])
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
        self.complaints.say(" ".join([verb, *subject.split(".")[:3]]), "%s", error)
        for name, request in found:
            if self._requests.pop(name, None) is not None:
                request.failed(error)

    def _went_down(self) -> None:
        if not self._up or self._closed:
            return
        self._up = False
        self._connection.drop_unsent()
        log.warning("the connection to the NATS server is lost: trying to reconnect, for as long as it takes")
        self._disconnected()
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
        log.warning("connected to the NATS server again")
        parked, self._parked = self._parked, []
        for put in parked:
            self._send_put(put)
        self._connected()

    # --- subjects -----------------------------------------------------------------------------------------------------
    def subscribe(self, subject: str, arrived: Arrived, *, group: str = "") -> int:
        """Receive what is published on a subject, over reconnects too; one of those in a group receives it."""
        self._sid += 1
        self._handlers[self._sid] = arrived
        listened = self._subjects[self._sid] = f"{subject} {group}".rstrip().encode()
        if self._up:
            self._connection.send(b"SUB %s %d\r\n" % (listened, self._sid))
        return self._sid

    def unsubscribe(self, sid: int) -> None:
        """Ask for no more; what is on its way still arrives, until `forget`."""
        if self._subjects.pop(sid, None) is not None and self._up:
            self._connection.send(b"UNSUB %d\r\n" % sid)

    def forget(self, sid: int) -> None:
        self._handlers.pop(sid, None)

    def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        """Send a hint: dropped while there is no connection."""
        if self._up:
            self._connection.send(b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), reply.encode(), len(payload), payload))

    def publish_with(self, subject: str, headers: bytes) -> None:
        """Send header lines alone, as a hint."""
        if self._up:
            lines = b"%s%s\r\n" % (HEADER_LINE, headers)
            self._connection.send(b"HPUB %s %d %d\r\n%s\r\n" % (subject.encode(), len(lines), len(lines), lines))

    # --- requests -----------------------------------------------------------------------------------------------------
    def _name(self) -> str:
        self._number += 1
        return f"{self._inbox}.{self._number}"

    def _answered(self, subject: str, _reply: str, data: bytes, headers: bytes) -> None:
        request = self._requests.get(subject)
        if request is not None and request.answered(data, headers):
            self._requests.pop(subject, None)

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
        self._requests[name] = _Request(subject, answered, lost, failed, self._loop.time())
        self.publish(subject, payload, name)

    async def request(self, subject: str, payload: bytes = b"") -> tuple[bytes, bytes] | None:
        """Ask and return payload and headers of the answer; None when the connection broke or it took too long."""
        future: asyncio.Future[tuple[bytes, bytes] | None] = self._loop.create_future()

        def answered(data: bytes, headers: bytes) -> bool:
            if not future.done():
                future.set_result((data, headers))
            return True

        def lost() -> None:
            if not future.done():
                future.set_result(None)

        self._request(subject, payload, answered, lost, partial(_fail, future))
        return await future

    async def api(self, what: str, body: object = None) -> dict[str, Any]:
        """Call the JetStream API, again if need be; what it answers may hold an `error`."""
        payload = b"" if body is None else _encode(body)
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
                    text = "the servers agree on no leader: more than half of the cluster must be up"
                    raise StoreUnavailable(f"jetstream: {what} is not possible now: {text}")
            self._check()
            await asyncio.sleep(RETRY_SECONDS)
        where = without_credentials(self.servers[0])
        raise StoreUnavailable(
            f"{where}: JetStream does not answer ({what}): enable it in the server's configuration, `jetstream {{}}`; "
            "of a cluster, more than half of the nodes must be up"
        )

    def _check(self) -> None:
        if self._closed:
            raise StoreClosed("jetstream: the store is closed")

    def _sweep(self) -> None:
        """Give up requests that took too long. They are in the order in which they were made."""
        late = self._loop.time() - REQUEST_TIMEOUT_SECONDS
        for name, request in [*self._requests.items()]:
            if request.at > late:
                break
            del self._requests[name]
            request.lost()
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    # --- puts ---------------------------------------------------------------------------------------------------------
    def put(
        self,
        subject: str,
        payload: bytes,
        told: PutTold,
        *,
        expected: int | None = None,
        headers: bytes = b"",
    ) -> None:
        """Store a message. `expected` is the sequence of the last one on its subject, 0 for none, None for whatever.

        `headers` are lines that end with CR LF.
        """
        if self._closed:
            self._loop.call_soon(told, 0, StoreClosed("jetstream: the store is closed"))
            return
        self._number += 1
        name = b"%s.%d" % (self._inbox[7:].encode(), self._number)
        guard = b"" if expected is None else b"Nats-Expected-Last-Subject-Sequence: %d\r\n" % expected
        lines = b"%s%s%s\r\n%s%s\r\n" % (HEADER_LINE, PUT_NAME, name, guard, headers)
        put = _Put(name, subject, lines, payload, expected, told, self._loop.time())
        self._puts[put] = None
        self._send_put(put)

    async def store(self, subject: str, payload: bytes, *, expected: int | None = None, headers: bytes = b"") -> int:
        """Put, and return the sequence or raise."""
        future: asyncio.Future[int] = self._loop.create_future()

        def told(sequence: int, error: StoreError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(sequence)
            else:
                future.set_exception(error)

        self.put(subject, payload, told, expected=expected, headers=headers)
        return await future

    def _send_put(self, put: _Put) -> None:
        if self._closed:
            return
        if not self._up:
            self._parked.append(put)
            return
        lines, payload = put.headers, put.payload
        if (size := len(lines) + len(payload)) > self._connection.max_payload:  # the server would disconnect
            text = f"jetstream: {put.subject}: {size:,} bytes, where the server's max_payload is"
            self._tell(put, 0, StoreError(f"{text} {self._connection.max_payload:,}"))
            return
        if self._deaf is not None:
            self._tell(put, 0, self._deaf)
            return
        put.sent += 1
        reply = self._name()
        self._requests[reply] = _Request(
            put.subject,
            partial(self._put_answered, put),
            partial(self._put_lost, put),
            partial(self._tell, put, 0),
            self._loop.time(),
        )
        self._connection.send(
            b"HPUB %s %s %d %d\r\n%s%s\r\n"
            % (put.subject.encode(), reply.encode(), len(lines), len(lines) + len(payload), lines, payload)
        )

    def _put_lost(self, put: _Put) -> None:
        if put in self._puts:
            self._parked.append(put) if not self._up else self._loop.call_later(RETRY_SECONDS, self._send_put, put)

    def _put_answered(self, put: _Put, data: bytes, headers: bytes) -> bool:
        if headers and status_of(headers) == 503:
            # Nobody takes it now: an election, or no such stream. It was not stored.
            self._loop.call_later(RETRY_SECONDS, self._send_put, put)
            if self._loop.time() - put.at > PATIENCE_SECONDS:
                self._ask_about(self.stream_of(put.subject))
            return True
        ack = _decode_ack(data)
        error = ack.error
        if error is None:
            self._tell(put, ack.seq, None)
        elif error.err_code in FULL:
            self._tell(put, 0, no_room(put.subject, error.description))
        elif error.err_code in NOT_NOW or error.code in (TOO_MANY, UNAVAILABLE):
            self._loop.call_later(RETRY_SECONDS / 10, self._send_put, put)
        elif error.err_code == WRONG_SEQUENCE:
            if put.sent > 1:
                task = asyncio.ensure_future(self._look_for(put))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._tell(put, 0, WrongSequence(f"jetstream: {put.subject}: {error.description}"))
        else:
            self._tell(put, 0, StoreError(f"jetstream: {put.subject}: {error.description} ({error.err_code})"))
        return True

    def _ask_about(self, stream: str) -> None:
        """See why a stream takes nothing. If it is gone, what was to be put there is told so."""
        now = self._loop.time()
        if now < self._absent.get(stream, 0.0) + PATIENCE_SECONDS:
            return
        self._absent[stream] = now
        task = asyncio.ensure_future(self._end_puts_of(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_puts_of(self, stream: str) -> None:
        if (error := await self._why_silent(stream)) is not None:
            for put in [each for each in self._puts if self.stream_of(each.subject) == stream]:
                self._tell(put, 0, error)

    async def _why_silent(self, stream: str) -> StoreError | None:
        """Return an error if a stream is not there; say in the log if nobody knows."""
        try:
            answer = await self.request(f"$JS.API.STREAM.INFO.{stream}")
        except StoreError as refused:
            return refused
        if answer is not None and status_of(answer[1]) != UNAVAILABLE:
            error: dict[str, Any] = msgspec.json.decode(answer[0]).get("error") or {}
            if error.get("err_code") == NO_STREAM:
                return stream_gone(stream)
        if self._up:
            where = without_credentials(self.servers[0])
            self.complaints.say(
                "silent",
                "the NATS server at %s is connected, and its JetStream does not answer: is it enabled, and are enough "
                "nodes of the cluster up? Trying again, for as long as it takes",
                where,
            )
        return None

    async def _look_for(self, put: _Put) -> None:
        """Tell whether a put that was sent twice, and was refused the second time, had arrived the first time.

        The leader is asked: a replica that is behind may not have what it has just refused for.
        """
        stream = self.stream_of(put.subject)
        sequence = put.expected or 0
        try:
            while (found := await self.first(stream, put.subject, sequence + 1)) is not None:
                if found.header(PUT_NAME) == put.name:
                    self._tell(put, found.sequence, None)
                    return
                sequence = found.sequence
        except StoreError as error:
            if put in self._puts:
                log.warning("looking for %s again: %s", put.subject, error)
                self._put_lost(put)
            return
        self._tell(put, 0, WrongSequence(f"jetstream: {put.subject}: another message is there"))

    def _tell(self, put: _Put, sequence: int, error: StoreError | None) -> None:
        if self._puts.pop(put, put) is put:
            return
        put.told(sequence, error)
        if self._none_left is not None and not self._puts and not self._none_left.done():
            self._none_left.set_result(None)

    # --- reads --------------------------------------------------------------------------------------------------------
    async def _direct(self, stream: str, body: object) -> tuple[list[Stored], int]:
        """Ask for several messages; return them, and how many more there are."""
        found: list[Stored] = []
        future: asyncio.Future[int] = self._loop.create_future()

        def answered(data: bytes, headers: bytes) -> bool:
            if future.done():
                return True
            status = status_of(headers)
            if status in (0, 100):
                subject, sequence = header(headers, b"Nats-Subject: "), header(headers, b"Nats-Sequence: ")
                assert subject is not None
                assert sequence is not None
                found.append(Stored(subject.decode(), int(sequence), data, headers))
                return False
            if status == 204:
                future.set_result(int(header(headers, b"Nats-Num-Pending: ") or 0))
            elif status == 404:
                future.set_result(0)
            else:
                said = headers.split(b"\r\n", 1)[0][9:].decode()
                future.set_exception(StoreUnavailable(f"jetstream: {stream} cannot be read: {said}"))
            return True

        def lost() -> None:
            if not future.done():
                future.set_exception(
                    StoreUnavailable(f"jetstream: {stream} cannot be read: no connection, or no answer")
                )

        self._request(f"$JS.API.DIRECT.GET.{stream}", _encode(body), answered, lost, partial(_fail, future))
        return found, await future

    async def _read(self, stream: str, once: Callable[[], Awaitable[Any]]) -> Any:
        """Read, again until there is an answer, or until it is known that there is no such stream."""
        begun = self._loop.time()
        while True:
            try:
                return await once()
            except StoreUnavailable as error:
                last = error
                self._check()
                await asyncio.sleep(RETRY_SECONDS)
                self._check()
            if self._up and self._loop.time() - begun > PATIENCE_SECONDS:
                begun = self._loop.time()
                if (error := await self._why_silent(stream)) is not None:
                    raise error
                self.complaints.say(f"read {stream}", "%s; trying again", last)

    async def _page(self, stream: str, subject: str, sequence: int, limit: int) -> tuple[list[Stored], int]:
        """Return the first messages from a sequence on whose subject matches, and how many more there are at least.

        Any replica of the stream answers. One that is behind shows what there was, without gaps: so the leader is asked
        whether there is more than it knows. Nothing is missing then, and some may be gone already.
        """
        body = {"seq": sequence, "next_by_subj": subject, "batch": limit, "max_bytes": BATCH_BYTES}
        found, more = await self._read(stream, lambda: self._direct(stream, body))
        if not more and self.is_clustered:
            behind = found[-1].sequence + 1 if found else sequence
            if (next := await self.first(stream, subject, behind)) is not None:
                return [*found, next], 1
        return found, more

    async def all(self, stream: str, subject: str) -> list[Stored]:
        """Return all messages whose subject matches, in order; perhaps some too that have just been removed."""
        found: list[Stored] = []
        more = 1
        while more:
            some, more = await self._page(stream, subject, found[-1].sequence + 1 if found else 1, BATCH_LIMIT)
            found += some
            more = more if some else 0
        return found

    async def batch(self, stream: str, subject: str, sequence: int = 1, limit: int = BATCH_LIMIT) -> list[Stored]:
        """Return the first messages from a sequence on whose subject matches, in order; none only if there are none."""
        return (await self._page(stream, subject, sequence, limit))[0]

    async def count(self, stream: str, subject: str) -> int:
        """Return how many messages there are whose subject matches, as any replica knows it."""
        body = {"seq": 1, "next_by_subj": subject, "batch": 1}
        found, more = await self._read(stream, lambda: self._direct(stream, body))
        return len(found) + more

    async def last_of(self, stream: str, subjects: Sequence[str]) -> dict[str, Stored]:
        """Return the last message of each of these literal subjects that has one, as any replica knows it."""
        found: dict[str, Stored] = {}
        for begin in range(0, len(subjects), BATCH_LIMIT):
            body = {"multi_last": [*subjects[begin : begin + BATCH_LIMIT]], "batch": BATCH_LIMIT}
            messages, _ = await self._read(stream, lambda body=body: self._direct(stream, body))
            found.update({each.subject: each for each in messages})
        return found

    async def last(self, stream: str, subject: str) -> Stored | None:
        """Return the last message whose subject matches, as the stream's leader knows it."""
        return await self._of_leader(stream, {"last_by_subj": subject})

    async def first(self, stream: str, subject: str, sequence: int = 1) -> Stored | None:
        """Return the first message from a sequence on whose subject matches, as the stream's leader knows it.

        It is no batch of one: with a batch the server counts all that match, however many they are.
        """
        return await self._of_leader(stream, {"seq": sequence, "next_by_subj": subject})

    async def _of_leader(self, stream: str, which: object) -> Stored | None:
        async def once() -> Stored | None:
            answer = await self.request(f"$JS.API.STREAM.MSG.GET.{stream}", _encode(which))
            if answer is None or status_of(answer[1]) == 503:
                raise StoreUnavailable(f"jetstream: {stream} cannot be read: no connection, or no answer")
            last = _decode_last(answer[0])
            if last.error is not None:
                if last.error.err_code == NO_MESSAGE:
                    return None
                if last.error.code == 503:
                    raise StoreUnavailable(f"jetstream: {stream}: {last.error.description}")
                _raise_error(msgspec.json.decode(answer[0]), stream)
            found = last.message
            assert found is not None
            return Stored(found.subject, found.seq, found.data, found.hdrs)

        return await self._read(stream, once)

    async def purge(self, stream: str, subject: str) -> int:
        """Remove all messages whose subject matches, and return how many."""
        answer = await self.api(f"STREAM.PURGE.{stream}", {"filter": subject})
        _raise_error(answer, stream)
        return int(answer.get("purged", 0))

    async def delete(self, stream: str, sequence: int) -> None:
        """Remove one message; it may be gone already."""
        answer = await self.api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
        if answer.get("error", {}).get("err_code", NO_MESSAGE) not in NOT_DELETED:
            _raise_error(answer, stream)

    # --- deliveries ---------------------------------------------------------------------------------------------------
    def pull(self, stream: str, consumer: str, inbox: str, *, batch: int, expires: float, heartbeat: float) -> None:
        """Ask a consumer for up to `batch` messages on `inbox`."""
        body = {"batch": batch, "expires": int(expires * 1e9), "idle_heartbeat": int(heartbeat * 1e9)}
        self.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", _encode(body), inbox)

    def acknowledge(self, reply: str) -> None:
        self.publish(reply, b"+ACK")

    def renew(self, reply: str) -> None:
        """Say that a delivery is still being worked on."""
        self.publish(reply, b"+WPI")

    def hand_back(self, reply: str) -> None:
        self.publish(reply, b"-NAK")

    def now(self) -> float:
        """Return the loop's time."""
        return self._loop.time()

    def new_inbox(self) -> str:
        """Return a subject that nobody else listens to."""
        self._number += 1
        return f"_INBOX.{self._inbox[7:]}p.{self._number}"


def _fail(future: asyncio.Future[Any], error: StoreError) -> None:
    if not future.done():
        future.set_exception(error)


def _raise_error(answer: dict[str, Any], stream: str) -> None:
    error: dict[str, Any] | None = answer.get("error")
    if error is not None:
        if error.get("err_code") == NO_STREAM:
            raise stream_gone(stream)
        raise StoreError(f"jetstream: {stream}: {error.get('description')} ({error.get('err_code')})")


def without_credentials(url: str) -> str:
    """Return a URL as it may be shown."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
