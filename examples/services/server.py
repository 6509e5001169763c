"""What the services here share: options, one line when ready, a clean end.

Knows gRPC and its own process, nothing of Perdure.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import grpc.aio

HOST = "127.0.0.1"
GRACE_S = 5.0
"""How long calls in progress may take once the service is asked to stop."""
MAX_CALLS = 10_000
"""Calls in progress at once; one more is refused with RESOURCE_EXHAUSTED."""

Register = Callable[[grpc.aio.Server, float], None]
"""Adds a service that answers after a delay, in seconds, to a server."""


def main(name: str, register: Register, *, port: int) -> int:
    """Serve until SIGTERM or SIGINT, as the command line says; `port` is the default one.

    Returns the exit code: 1, after one line on stderr, when the port cannot be had.
    """
    parser = argparse.ArgumentParser(description=f"Runs {name} on {HOST}.")
    parser.add_argument("--port", type=int, default=port, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="answer every call this much later")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="stop as well when the process that started it is gone"
    )
    options = parser.parse_args()
    if not 0 <= options.port <= 65535:
        parser.error(f"argument --port: {options.port} is not between 0 and 65535")
    if not options.delay >= 0:
        parser.error(f"argument --delay: {options.delay} is not a number of seconds from 0 up")
    return asyncio.run(
        _serve(name, register, port=options.port, delay=options.delay, until_stdin_closes=options.until_stdin_closes)
    )


async def _serve(name: str, register: Register, *, port: int, delay: float, until_stdin_closes: bool) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_stdin_closes:
        threading.Thread(target=_wait_for_end_of_stdin, args=(loop, stop), daemon=True).start()

    # By default gRPC shares a port among processes: a second service would start, and take every other call.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)], maximum_concurrent_rpcs=MAX_CALLS)
    register(server, delay)
    try:
        _try_to_bind(port)
        port = server.add_insecure_port(f"{HOST}:{port}")
    except (OSError, RuntimeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        print(
            f"{name} cannot listen on {HOST}:{port}: {reason.lower()}."
            " Choose another port with --port; --port 0 picks a free one.",
            file=sys.stderr,
        )
        return 1
    await server.start()
    print(f"{name} listening on {HOST}:{port}", flush=True)
    await stop.wait()
    await server.stop(GRACE_S)
    return 0


def _wait_for_end_of_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 4096):
        pass
    with contextlib.suppress(RuntimeError):  # the loop has ended already
        loop.call_soon_threadsafe(stop.set)


def _try_to_bind(port: int) -> None:
    """Raise the system's own error if `port` cannot be had; gRPC's names no reason, and adds lines of its log."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
