"""The narrow interface to a NATS server: guarded puts with a known outcome, reads, pulls, acknowledgements.

The outcome of a put is reported once: its sequence, or the error. If the connection breaks before the answer, the put
is repeated after the reconnect; its guard and its name (in the header `Perdure-Put`) tell whether the first one was
stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from msgspec import Struct

from perdure.background import Tasks
from perdure.counters import StoreCounters
from perdure.errors import StoreClosed, StoreError
from perdure.stores.jetstream.wire.checks import no_room
from perdure.stores.jetstream.wire.link import REQUEST_TIMEOUT_SECONDS, RETRY_SECONDS, Answer, Request
from perdure.stores.jetstream.wire.protocol import (
    FULL,
    HEADER_LINE,
    NOT_NOW,
    TOO_MANY,
    UNAVAILABLE,
    WRONG_SEQUENCE,
    PerhapsStored,
    WrongSequence,
    decode_ack,
    status_of,
)
from perdure.stores.jetstream.wire.reads import PATIENCE_SECONDS, Reads

PUT_NAME = b"Perdure-Put: "

UNSENT_BYTES = 1024 * 1024
"""How much of a batch may wait to be sent before the rest of it waits: so the answer to its end comes in time."""
UNSENT_POLL_SECONDS = 0.002
"""How often a batch that waits looks whether it may go on."""

log = logging.getLogger("perdure.jetstream")

PutTold = Callable[[int, StoreError | None], None]
"""Called once with the sequence of a put, or with its error (`WrongSequence` if its guard did not hold)."""


class Guarded(Struct, frozen=True):
    """A message to put. `expected` is the last sequence of the subject that it `guards`, or else of its own."""

    subject: str
    payload: bytes
    expected: int
    guards: str = ""

    @property
    def lines(self) -> bytes:
        """The header lines of the guard."""
        other = b"Nats-Expected-Last-Subject-Sequence-Subject: %s\r\n" % self.guards.encode() if self.guards else b""
        return _guard(self.expected) + other


def _guard(expected: int | None) -> bytes:
    return b"" if expected is None else b"Nats-Expected-Last-Subject-Sequence: %d\r\n" % expected


class _Put(Struct, eq=False):
    name: bytes
    subject: str
    headers: bytes
    payload: bytes
    expected: int | None
    told: PutTold
    at: float
    sent: int = 0


class Wire(Reads):
    """A link that reads streams and writes to them."""

    def __init__(
        self,
        servers: Sequence[str],
        options: dict[str, Any] | None = None,
        *,
        connected: Callable[[], None] = lambda: None,
        counters: StoreCounters | None = None,
    ) -> None:
        super().__init__(servers, options, connected=connected)
        self._counters = counters or StoreCounters()
        self._puts: dict[_Put, None] = {}  # not reported yet
        self._parked: list[_Put] = []  # to be sent after the reconnect
        self._none_left: asyncio.Future[None] | None = None
        self._tasks = Tasks(log)
        self._absent: dict[str, float] = {}  # streams that do not answer, and the time of the last check

    async def _finish(self) -> None:
        if self._puts and self._up:
            self._none_left = self._loop.create_future()
            await asyncio.wait([self._none_left], timeout=2 * REQUEST_TIMEOUT_SECONDS)

    def _end(self) -> None:
        for put in [*self._puts]:
            self._tell(put, 0, StoreClosed("jetstream: the store is closed"))

    def _resume(self) -> None:
        parked, self._parked = self._parked, []
        for put in parked:
            self._send_put(put)

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
        """Store a message. `expected` is the sequence of the last message on its subject, 0 for none, None for any.

        `headers` are lines that end with CR LF.
        """
        if self._closed:
            self._loop.call_soon(told, 0, StoreClosed("jetstream: the store is closed"))
            return
        name = self.new_name()
        lines = b"%s%s%s\r\n%s%s\r\n" % (HEADER_LINE, PUT_NAME, name, _guard(expected), headers)
        put = _Put(name, subject, lines, payload, expected, told, self._loop.time())
        self._puts[put] = None
        self._send_put(put)

    def new_name(self) -> bytes:
        """Return a unique name for a put of this connection."""
        self._number += 1
        return b"%s.%d" % (self._inbox[7:].encode(), self._number)

    async def send_batch(self, name: bytes, batch: bytes, messages: Sequence[Guarded]) -> Answer | None:
        """Send the messages of an atomic batch, and return the server's answer to it; None if it was lost.

        `name` is that of the put, `batch` the id of this attempt.
        """
        if self._deaf is not None:
            raise self._deaf
        request, future = self._awaited(messages[-1].subject)
        connection = self.reconnects
        for number, message in enumerate(messages, 1):
            while self._up and self.unsent > UNSENT_BYTES:  # noqa: ASYNC110  nothing tells when it is sent
                await asyncio.sleep(UNSENT_POLL_SECONDS)
            if not self._up or self.reconnects != connection:  # the server drops what it has of the batch
                return None
            reply, commit = "", b""
            if number == len(messages):
                reply, commit = self._name(), b"Nats-Batch-Commit: 1\r\n"
                request.at = self._loop.time()
                self._requests[reply] = request
            lines = b"%s%s%s\r\nNats-Batch-Id: %s\r\nNats-Batch-Sequence: %d\r\n%s%s\r\n" % (
                *(HEADER_LINE, PUT_NAME, name, batch, number),
                *(commit, message.lines),
            )
            self._send(message.subject, reply, lines, message.payload)
        return await future

    async def store(self, subject: str, payload: bytes, *, expected: int | None = None, headers: bytes = b"") -> int:
        """Put, wait for the outcome, and return the sequence or raise."""
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
            text = f"jetstream: {put.subject}: {size:,} bytes are more than the server's max_payload of"
            self._tell(put, 0, StoreError(f"{text} {self._connection.max_payload:,}"))
            return
        if self._deaf is not None:
            self._tell(put, 0, self._deaf)
            return
        put.sent += 1
        reply = self._name()
        self._requests[reply] = Request(
            put.subject,
            partial(self._put_answered, put),
            partial(self._put_lost, put),
            partial(self._tell, put, 0),
            self._loop.time(),
        )
        self._send(put.subject, reply, lines, payload)

    def _put_lost(self, put: _Put) -> None:
        if put in self._puts:
            self._parked.append(put) if not self._up else self._loop.call_later(RETRY_SECONDS, self._send_put, put)

    def _put_answered(self, put: _Put, data: bytes, headers: bytes) -> bool:
        if headers and status_of(headers) == 503:
            # No responders: an election, or no such stream. It was not stored.
            self._loop.call_later(RETRY_SECONDS, self._send_put, put)
            if self._loop.time() - put.at > PATIENCE_SECONDS:
                self._ask_about(self.stream_of(put.subject))
            return True
        ack = decode_ack(data)
        error = ack.error
        if error is None:
            self._tell(put, ack.seq, None)
        elif error.err_code in FULL:
            self._tell(put, 0, no_room(put.subject, error.description))
        elif error.err_code in NOT_NOW or error.code in (TOO_MANY, UNAVAILABLE):
            self._loop.call_later(RETRY_SECONDS / 10, self._send_put, put)
        elif error.err_code == WRONG_SEQUENCE:
            if put.sent > 1:
                self._tasks.spawn(self._look_for(put))
            else:
                self._tell(put, 0, WrongSequence(f"jetstream: {put.subject}: {error.description}"))
        else:
            self._tell(put, 0, StoreError(f"jetstream: {put.subject}: {error.description} ({error.err_code})"))
        return True

    def _ask_about(self, stream: str) -> None:
        """Check why a stream does not respond. If it does not exist, its puts fail."""
        now = self._loop.time()
        if now < self._absent.get(stream, 0.0) + PATIENCE_SECONDS:
            return
        self._absent[stream] = now
        self._tasks.spawn(self._end_puts_of(stream))

    async def _end_puts_of(self, stream: str) -> None:
        if (error := await self._why_silent(stream)) is not None:
            for put in [each for each in self._puts if self.stream_of(each.subject) == stream]:
                self._tell(put, 0, error)

    async def _look_for(self, put: _Put) -> None:
        """Find out whether a put that was refused the second time had been stored the first time.

        Read from the leader: a replica that lags may not have the message yet.
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
                log.warning("checking a put to %s failed, retrying: %s", put.subject, error)
                self._put_lost(put)
            return
        except Exception as error:
            self._tell(put, 0, StoreError(f"jetstream: {put.subject}: it is unknown whether it was stored: {error!r}"))
            raise
        self._tell(put, 0, PerhapsStored(f"jetstream: {put.subject}: another message was stored first"))

    def _tell(self, put: _Put, sequence: int, error: StoreError | None) -> None:
        if self._puts.pop(put, put) is put:
            return
        if error is None:
            self._counters.written_bytes += len(put.payload)
        put.told(sequence, error)
        if self._none_left is not None and not self._puts and not self._none_left.done():
            self._none_left.set_result(None)
