"""Serves an application on this process's event loop, at an address of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import stat
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager
from typing import Self

import uvicorn
from msgspec import Struct
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from perdure.errors import InvalidOption, StoreUnavailable
from perdure.http.guard import PORT_LIMIT, is_loopback
from perdure.http.problems import Problem
from perdure.http.service import Service

KEEP_ALIVE_SECONDS = 75.0
"""How long a connection may be idle: longer than most proxies keep theirs."""
STOP_SECONDS = 5.0
"""How long requests may take to end when the server stops, once those that wait are answered."""
STARTED_SECONDS = 0.005
"""How often it is looked whether the server has started."""
HEAD_LIMIT_BYTES = 32 * 1024
"""The largest head of a request: its line and headers."""
HEAD_SECONDS = 10.0
"""How long the head of a request may take to arrive."""
BACKLOG = 2_048
"""Connections that may wait to be accepted."""

FILES = 65_536
"""Open files and connections that a server wants to be permitted."""

log = logging.getLogger("perdure.http")


class Address(Struct, frozen=True):
    """Where a server listens: a host and port, or the path of a socket file."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can reach it."""
        return bool(self.path) or self.host == "localhost" or is_loopback(self.host)


def address_of(text: str) -> Address:
    """Read `PORT`, `HOST:PORT`, `[HOST]:PORT` or `unix:PATH`; `InvalidOption` for anything else."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(path=os.path.abspath(text.removeprefix("unix:")))
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if port.isdecimal() and len(port) <= 5 and int(port) <= PORT_LIMIT and (":" not in host or "[" in text):
        return Address(host or "127.0.0.1", int(port))
    raise InvalidOption(f"{text!r} is no address: give PORT, HOST:PORT or unix:PATH, as in 8080 or unix:perdure.sock")


class Server(AbstractAsyncContextManager["Server"]):
    """Serves from `async with` on. `address` has the port that was chosen, if 0 was asked for."""

    def __init__(self, service: Service, address: Address) -> None:
        self.address = address
        self._service = service

    async def __aenter__(self) -> Self:
        if not self.address.is_local and not await self._needs_name():
            raise InvalidOption(
                f"{self.address} can be reached from other machines, and this store has no tokens: make one with "
                "`perdure token add`, or listen on 127.0.0.1 or a socket file (unix:PATH)"
            )
        _raise_files_limit()
        listener = _listener(self.address)
        self._file = _identity(self.address.path)
        if not self.address.path:
            self.address = Address(self.address.host, listener.getsockname()[1])
        config = uvicorn.Config(
            self._service,
            loop="none",
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.ERROR,  # anybody can send what is no HTTP
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=int(KEEP_ALIVE_SECONDS),
            timeout_graceful_shutdown=int(STOP_SECONDS),
        )
        self._server = _Uvicorn(config)
        self._listener = listener
        self._serving = asyncio.get_running_loop().create_task(self._server.serve([listener]))
        while not self._server.started and not self._serving.done():  # noqa: ASYNC110
            await asyncio.sleep(STARTED_SECONDS)  # uvicorn tells it by this flag only
        if self._serving.done():
            await self._serving
        log.info("listening on %s", self.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _needs_name(self) -> bool:
        try:
            return await self._service.gate.needs_name()
        except Problem as problem:
            raise StoreUnavailable(f"{self.address} is served to who has a token only: {problem.detail}") from problem

    async def stop(self) -> None:
        """Take no more requests, answer those that wait, and close all connections."""
        self._server.should_exit = True
        await self._service.aclose()
        await asyncio.wait([self._serving])
        self._listener.close()
        if self.address.path and _identity(self.address.path) == self._file:  # else it is that of a successor
            os.unlink(self.address.path)


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with bounds on the head of a request: how large it is, and how long it takes to arrive."""

    _in_head = True
    _head_bytes = 0
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_of_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT_BYTES:
                self._refuse(431, "Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)
        else:  # a trailer: behind a proxy's headers, it could pass for one of them
            self._refuse(400, "Bad Request")

    def on_headers_complete(self) -> None:
        self._end_of_head()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._end_of_head()
        self._in_head, self._head_bytes = True, 0
        self._patience = self.loop.call_later(HEAD_SECONDS, self._refuse, 408, "Request Timeout")

    def _end_of_head(self) -> None:
        self._in_head = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _refuse(self, status: int, phrase: str) -> None:
        self._end_of_head()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 %d %s\r\nConnection: close\r\n\r\n" % (status, phrase.encode()))
            self.transport.close()


class _Uvicorn(uvicorn.Server):
    """uvicorn, on a loop whose signals are another's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _raise_files_limit() -> None:
    """Let this process have as many connections as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            log.info("at most %d open files and connections: %s", soft, error)


def _listener(address: Address) -> socket.socket:
    """Return a listening socket, or raise `InvalidOption` that says why there is none."""
    family = socket.AF_UNIX if address.path else socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if address.path:
            _bind_to_file(listener, address.path)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        why = str(error)
        if error.errno == errno.EADDRINUSE:
            why = "another program listens there" + ("" if address.path else ": choose another port")
        raise InvalidOption(f"cannot listen on {address}: {why}") from error
    listener.setblocking(False)
    return listener


def _bind_to_file(listener: socket.socket, path: str) -> None:
    """Bind to a socket file that only its owner may use. One that a dead server left behind is replaced."""
    if _is_left_behind(path):
        os.unlink(path)
    before = os.umask(0o177)  # the file is made with mode 0600, and is never wider
    try:
        listener.bind(path)
    finally:
        os.umask(before)


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells a file from a later one of the same name."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_left_behind(path: str) -> bool:
    """Report whether a path is a socket file on which nobody listens."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
