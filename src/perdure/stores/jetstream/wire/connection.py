"""nats-py's client, delivering messages with raw headers. The only module that uses private attributes of nats-py.

nats-py does the handshake, authentication, TLS and reconnects. The extra `nats` pins its version, and
tests/jetstream/test_wire.py fails if an attribute that is used here changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, cast

from nats.aio.client import Client as NatsClient
from nats.errors import Error as NatsError

from perdure.background import RateLimitedLog
from perdure.stores.jetstream.wire.checks import denied_of
from perdure.stores.jetstream.wire.protocol import Arrived

CLOSE_TIMEOUT_SECONDS = 1.0
CANCEL_AGAIN_SECONDS = 0.1
"""How long a cancelled attempt to connect may take to end before it is cancelled again."""

log = logging.getLogger("perdure.jetstream")


class Connection(NatsClient):
    """nats-py's client, delivering messages with raw headers."""

    def __init__(self, arrived: dict[int, Arrived]) -> None:
        super().__init__()
        self.handlers = arrived
        self._kicked = False
        self._limited_log = RateLimitedLog(log)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        handler = self.handlers.get(sid)
        if handler is not None:
            try:
                handler(subject.decode(), reply.decode() if reply else "", data, headers or b"")
            except Exception:
                log.exception("a message on %s could not be handled", subject.decode())

    async def _connect_to_server(self, s: Any) -> None:
        self._abandon()  # what a failed attempt has left: nothing else closes it
        await super()._connect_to_server(s)

    async def _attempt_reconnect(self) -> None:
        """Reconnect, whatever goes wrong: what nats-py does not foresee would end its attempts for ever."""
        while True:
            self._abandon()
            try:
                await super()._attempt_reconnect()
            except Exception as error:  # noqa: BLE001  such as a file of credentials that is just being written
                what = "an attempt to reconnect to the NATS server failed unexpectedly, retrying: %s"
                self._limited_log(("reconnect", type(error)), what, error, exc_info=error)
                self._status = NatsClient.RECONNECTING
                await asyncio.sleep(self.options["reconnect_time_wait"])
            else:
                return

    def _abandon(self) -> None:
        """Drop a connection, with what is not sent yet.

        nats-py waits until it is sent, for ever if the other end takes nothing any more.
        """
        for name in ("_reading_task", "_ping_interval_task", "_flusher_task"):
            task: asyncio.Task[Any] | None = getattr(self, name)
            if task is not None:
                task.cancel()
        self._abort()
        self._transport = None

    def _abort(self) -> None:
        writer: asyncio.StreamWriter | None = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def _process_pong(self) -> None:
        pings: list[asyncio.Future[bool]] = getattr(self, "_pongs")  # noqa: B009  nats-py does not say of what
        if pings and pings[0].done():  # its flush was given up: nats-py would end the loop that reads
            del pings[0]
            self._pings_outstanding = 0
        else:
            await super()._process_pong()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Process the server's INFO. If TLS was requested, refuse a server without it before any secret is sent."""
        if initial_connection and self.options.get("tls") is not None:
            if not (info.get("tls_required") or info.get("tls_available")):
                raise NatsError("the server offers no TLS")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    async def _process_err(self, err_msg: str) -> None:
        """Process the server's -ERR. Unless it is about one subject, the server disconnects: then reconnect."""
        if denied_of(err_msg) is not None or self.is_connecting:
            await super()._process_err(err_msg)
            return
        error = NatsError(f"nats: {err_msg.strip(chr(39))}")
        await self._error_cb(error)
        await self._process_op_err(error)

    async def connect_within(self, seconds: float, settings: dict[str, Any]) -> None:
        """Connect, or raise `TimeoutError`. A cancellation ends it soon, in any state."""
        connecting = asyncio.ensure_future(self._connect(settings))
        try:
            await asyncio.wait([connecting], timeout=seconds)
            if not connecting.done():
                raise TimeoutError
        finally:
            while not connecting.done():  # nats-py swallows some cancellations, and goes on
                connecting.cancel()
                await asyncio.wait([connecting], timeout=CANCEL_AGAIN_SECONDS)
        connecting.result()

    async def _connect(self, settings: dict[str, Any]) -> None:
        try:
            await self.connect(**settings)
        except Exception:
            here = asyncio.current_task()
            if here is not None and here.cancelling():  # nats-py turned the cancellation into an error
                raise asyncio.CancelledError from None
            raise

    @property
    def version(self) -> str:
        return str(self._server_info.get("version", ""))

    @property
    def is_clustered(self) -> bool:
        return bool(self._server_info.get("cluster"))

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if cast("object", self._flush_queue) is None:
            return  # it never began to connect
        # The server may take nothing any more; after a failed TLS handshake, the transport never closes.
        abort = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_SECONDS / 2, self._abort)
        try:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                    await super()._close(status, do_cbs)
        finally:
            abort.cancel()
            self._abort()

    def send(self, command: bytes) -> None:
        """Send in this iteration of the loop, together with everything else sent in it."""
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._kicked:
            self._kicked = True
            asyncio.get_running_loop().call_soon(self._kick)

    def _kick(self) -> None:
        self._kicked = False
        queue = cast("asyncio.Queue[Any] | None", self._flush_queue)
        if queue is not None and queue.empty():  # else a flush is to come, and sends this too
            queue.put_nowait(asyncio.get_running_loop().create_future())

    @property
    def unsent(self) -> int:
        """How many bytes wait to be sent, here and in the transport."""
        writer: asyncio.StreamWriter | None = getattr(self._transport, "_io_writer", None)
        return self._pending_data_size + (0 if writer is None else writer.transport.get_write_buffer_size())

    def drop_unsent(self) -> None:
        """Drop the send buffer."""
        self._pending = []
        self._pending_data_size = 0
