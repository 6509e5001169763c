"""The HTTP API: what it adds to a start that waits, many at once, and pages of a long list.

    python -m benchmarks.http [--rounds N] [--only latency equal many pages]

The server, its worker and the store (SQLite, `synchronous=FULL`) share one process, as under `perdure worker
--http-port`. What sends the requests is a process of its own, with nothing but a socket.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from perdure import connect, http, step, workflow
from perdure.client import Client
from perdure.http.server import Server, address_of

REQUESTS = 300
"""Requests of one round, one after the other."""
EQUAL = 15
"""Equal requests at once: as in seed 004."""
MANY = 1_000
LISTED = 100_000
PAGE_READS = 20


@step
async def add_one(number: int) -> int:
    return number + 1


@step
async def think(seconds: float) -> None:
    await asyncio.sleep(seconds)


@workflow
async def one_step(number: int) -> int:
    return await add_one(number)


@workflow
async def agent(seconds: float) -> str:
    for _ in range(3):
        await think(seconds)
    return "done"


# --- the process that sends -------------------------------------------------------------------------------------------
class Connection:
    """One connection that is kept, and a request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def send(self, method: str, path: str, body: str = "") -> tuple[int, bytes]:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        return int(lines[0].split()[1]), await self._reader.readexactly(length)


async def sends(port: int, what: str, count: int) -> dict[str, Any]:
    """Send requests, and return what came of them."""
    begun = time.perf_counter()
    if what == "one by one":
        connection, times = await Connection(port).open(), list[float]()
        for n in range(count):
            at = time.perf_counter()
            status, _ = await connection.send("POST", "/api/workflows/one_step/invoke?wait=30", str(n))
            assert status == 200
            times.append(time.perf_counter() - at)
        return {"median": statistics.median(times)}
    path, body = "/api/workflows/one_step/invoke?wait=60", "1"
    if what == "equal":
        path, body = "/api/workflows/agent/invoke?wait=60", "0.3"
    statuses: dict[int, int] = {}

    async def request() -> None:
        while True:
            status, _ = await (await Connection(port).open()).send("POST", path, body)
            statuses[status] = statuses.get(status, 0) + 1
            if status != 429:
                return
            await asyncio.sleep(1)  # what Retry-After says

    await asyncio.gather(*(request() for _ in range(count)))
    return {"seconds": time.perf_counter() - begun, "statuses": statuses}


async def sent(port: int, what: str, count: int) -> dict[str, Any]:
    """Let another process send, and return what it says."""
    command = [sys.executable, "-m", "benchmarks.http", "--sender", str(port), what, str(count)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(out)


# --- what is measured -------------------------------------------------------------------------------------------------
async def latency(client: Client, port: int, rounds: int) -> None:
    added: list[float] = []
    for _ in range(rounds):
        times: list[float] = []
        for n in range(REQUESTS):
            at = time.perf_counter()
            await client.run(one_step, n)
            times.append(time.perf_counter() - at)
        inside = statistics.median(times)
        outside = (await sent(port, "one by one", REQUESTS))["median"]
        added.append(outside - inside)
        print(f"one step, p50: in process {inside * 1e3:.2f} ms, over TCP {outside * 1e3:.2f} ms")
    print(f"added, median of {rounds} rounds: {statistics.median(added) * 1e3:.2f} ms (bar: 1 ms)")


async def equal(_client: Client, port: int, rounds: int) -> None:
    over: list[float] = []
    for _ in range(rounds):
        alone = (await sent(port, "equal", 1))["seconds"]
        together = (await sent(port, "equal", EQUAL))["seconds"]
        over.append(together / alone - 1)
        print(f"three steps of 0.3 s: alone {alone:.3f} s, {EQUAL} at once {together:.3f} s")
    print(f"over one alone, median of {rounds} rounds: {statistics.median(over):.1%} (bar: 10 %; seed 004: 54.6 %)")


async def many(client: Client, port: int, rounds: int) -> None:
    for _ in range(rounds):
        print(f"{MANY:,} at once: {await sent(port, 'many', MANY)}")
    async with Server(http.app(client, max_waiting=100), address_of("0")) as narrow:
        print(f"{MANY:,} at once, room for 100: {await sent(narrow.address.port, 'many', MANY)}")


async def pages(client: Client, port: int, _rounds: int) -> None:
    held = asyncio.Semaphore(2_000)

    async def start(n: int) -> None:
        async with held:
            await client.start(one_step.using(key=f"k{n % 1000}", tags={"tenant": f"t{n % 100}"}), n)

    begun = time.perf_counter()
    await asyncio.gather(*(start(n) for n in range(LISTED)))
    while (await client.stats()).by_status.get("completed", 0) < LISTED:  # noqa: ASYNC110
        await asyncio.sleep(1)
    print(f"{LISTED:,} invocations after {time.perf_counter() - begun:.0f} s")
    connection = await Connection(port).open()
    slowest = 0.0
    for filter in (
        *("", "limit=1000", "status=completed", "status=failed", "handler=one_step", "handler=nobody", "key=k7"),
        *("tag=tenant:t7", "tag=tenant:nobody", "id_prefix=01", "id_prefix=zz", "created_after=2100-01-01T00:00:00Z"),
        *("created_before=2000-01-01T00:00:00Z", "status=completed&handler=one_step&tag=tenant:t7&key=k7"),
        *("status=failed&tag=tenant:t7", "status=completed&key=nobody"),
    ):
        times: list[float] = []
        for _ in range(PAGE_READS):
            at = time.perf_counter()
            status, _body = await connection.send("GET", f"/api/workflows?{filter}")
            assert status == 200
            times.append(time.perf_counter() - at)
        slowest = max(slowest, statistics.median(times))
        print(f"  {statistics.median(times) * 1e3:7.2f} ms  ?{filter}")
    print(f"the slowest page: {slowest * 1e3:.1f} ms (bar: 100 ms)")


MEASURED: dict[str, Callable[[Client, int, int], Awaitable[None]]] = {
    "latency": latency,
    "equal": equal,
    "many": many,
    "pages": pages,
}


async def main(only: list[str], rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in only:
            async with AsyncExitStack() as parts:
                client = await parts.enter_async_context(connect(f"sqlite:{Path(folder) / name}.db"))
                await parts.enter_async_context(client.worker(one_step, agent, max_concurrent=500))
                server = await parts.enter_async_context(Server(http.app(client), address_of("0")))
                await client.run(one_step, 1)
                await asyncio.sleep(0.5)  # the worker publishes what it serves
                await MEASURED[name](client, server.address.port, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*MEASURED], default=[*MEASURED])
    parser.add_argument("--sender", nargs=3, metavar=("PORT", "WHAT", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sender:
        port, what, count = options.sender
        print(json.dumps(uvloop.run(sends(int(port), what, int(count)))))
    else:
        uvloop.run(main(options.only, options.rounds))
