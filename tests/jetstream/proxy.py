"""A way to a server that can break: bytes pass, or stop while the connection stays, or it is cut and refused."""

from __future__ import annotations

import asyncio
import contextlib

from examples.services.nats_server import HOST, free_ports

CHUNK_BYTES = 64 * 1024


class Proxy:
    """Between one client and one server, in the loop of the test."""

    def __init__(self, target: int) -> None:
        self._target = target
        (self.port,) = free_ports(1)
        self._server: asyncio.Server | None = None
        self._flows = asyncio.Event()  # towards the server
        self._answers = asyncio.Event()  # from the server
        self.flow()
        self.seconds_a_chunk = 0.0
        """How long it takes until a chunk is passed on: a slow line."""
        self._passing: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"nats://{HOST}:{self.port}"

    async def mend(self) -> None:
        """Take connections, as at the beginning or after a cut."""
        self._server = await asyncio.start_server(self._connected, HOST, self.port)

    async def cut(self) -> None:
        """Close what there is, and refuse what comes."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in [*self._passing]:
            task.cancel()
        for writer in [*self._open]:
            writer.transport.abort()
        if self._passing:
            await asyncio.wait(self._passing)
        if server is not None:
            await server.wait_closed()

    def stall(self) -> None:
        """Let nothing pass, either way; nobody is told."""
        self._flows.clear()
        self._answers.clear()

    def stall_answers(self) -> None:
        """Let nothing pass from the server; what is sent arrives there."""
        self._answers.clear()

    def strand(self) -> None:
        """Let nothing pass on the connections that there are, for ever; those that are made from now on are good."""
        self.stall()
        self._flows, self._answers = asyncio.Event(), asyncio.Event()
        self.flow()

    def flow(self) -> None:
        self._flows.set()
        self._answers.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)  # at once: who cuts waits until every one of them is closed
        there, back = await asyncio.open_connection(HOST, self._target)
        if writer.is_closing():
            back.close()
            return
        self._open.add(back)
        for source, sink, flows in ((reader, back, self._flows), (there, writer, self._answers)):
            task = asyncio.create_task(self._pass(source, sink, flows))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, flows: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                await flows.wait()
                await asyncio.sleep(self.seconds_a_chunk)
                sink.write(data)
                await sink.drain()
        sink.close()
        self._open.discard(sink)
