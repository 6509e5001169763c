"""An application for many users, each with a session, and its load test: what it reports is JSON.

python -m examples.fastapi [--users 7] [--at-once 15] [--delay 0.3]

A user's queries go to one key, so they run in the order in which they came and share the session's memory. The load
test is a process of its own. In the middle of it the server is killed with SIGKILL and started anew: what was accepted
is answered all the same. `seed` has the figures of the application that this one replaces.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response

from examples import stage
from perdure import Client, Context, connect, step, workflow
from perdure.errors import UnknownInvocation, WaitTimeout

THOUGHTS = 3
"""Steps of one query: such as a plan, a search and an answer of a model."""
SEED = {
    "different_queries": {"queries": 7, "succeeded": 7, "speedup": 2.92},
    "equal_queries": {"at_once": 15, "succeeded": 15, "overhead_percent": 54.6},
    "sessions": {"keep_their_memory": False, "are_apart": True},
}
"""What the test of the application that this one replaces reported."""


# --- the application --------------------------------------------------------------------------------------------------
@step
async def think(query: str, seconds: float) -> str:
    await asyncio.sleep(seconds)  # a call of a model
    return query.upper()


@workflow
async def agent(ctx: Context, query: str, seconds: float) -> dict[str, Any]:
    history: list[str] = ctx.get("history", list[str], default=[])
    thought = query
    for _ in range(THOUGHTS):
        thought = await think(thought, seconds)
    ctx.set("history", [*history, query])
    return {"answer": thought, "earlier": history}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[dict[str, object]]:
    url = os.environ["PERDURE_URL"]
    async with connect(url) as client, client.worker(agent, max_concurrent=1_000):
        yield {"client": client}


app = FastAPI(lifespan=lifespan)


@app.post("/sessions/{user}/queries/{id}")
async def ask(request: Request, response: Response, user: str, id: str, query: str, seconds: float) -> dict[str, Any]:
    """Answer a query. One that is sent again under the same id is the same query."""
    client: Client = request.state.client
    call = agent.using(id=f"{user}-{id}", key=f"session/{user}")
    handle = await client.start(call, query, seconds)
    return await answer(handle.id, client, response)


@app.get("/sessions/{user}/queries/{id}")
async def look(request: Request, response: Response, user: str, id: str) -> dict[str, Any]:
    """Return the answer to a query that was asked before."""
    return await answer(f"{user}-{id}", request.state.client, response)


async def answer(id: str, client: Client, response: Response) -> dict[str, Any]:
    try:
        return await client.handle(id, agent).result(timeout=30)
    except WaitTimeout:
        response.status_code = 202
        return {"id": id}
    except UnknownInvocation:
        response.status_code = 404
        return {"id": id}


# --- the load test ----------------------------------------------------------------------------------------------------
class Site:
    """The application in a process of its own, at one address however often it is started anew."""

    def __init__(self, url: str, port: int) -> None:
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self._url = url
        self._port = port

    async def start(self) -> None:
        environment = {**os.environ, "PERDURE_URL": self._url}
        command = (sys.executable, "-m", "examples.fastapi", "--serve", str(self._port))
        self._process = await asyncio.create_subprocess_exec(*command, env=environment)
        while True:
            try:
                await self.http.get("/openapi.json")
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                return

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(number)
        await self._process.wait()

    async def ask(self, user: str, id: str, query: str, seconds: float) -> dict[str, Any]:
        """Ask until there is an answer, also while the application is away."""
        while True:
            try:
                parameters: dict[str, Any] = {"query": query, "seconds": seconds}
                response = await self.http.post(f"/sessions/{user}/queries/{id}", params=parameters)
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                if response.status_code == 200:
                    return response.json()


async def report(site: Site, users: int, at_once: int, delay: float) -> dict[str, Any]:
    """Measure what the seed measured, in seconds."""
    await site.ask("warm", "up", "hello", 0.0)
    began = time.perf_counter()
    for number in range(users):
        await site.ask(f"one-{number}", "a", f"query {number}", delay)
    sequential = time.perf_counter() - began
    began = time.perf_counter()
    answers = await asyncio.gather(
        *(site.ask(f"many-{number}", "a", f"query {number}", delay) for number in range(users))
    )
    concurrent = time.perf_counter() - began

    alone: list[float] = []
    together: list[float] = []
    equal: list[dict[str, Any]] = []
    for turn in range(3):
        began = time.perf_counter()
        await site.ask(f"alone-{turn}", "a", "the same", delay)
        alone.append(time.perf_counter() - began)
        began = time.perf_counter()
        equal = await asyncio.gather(
            *(site.ask(f"equal-{turn}-{number}", "a", "the same", delay) for number in range(at_once))
        )
        together.append(time.perf_counter() - began)
    overhead = 100 * (statistics.median(together) / statistics.median(alone) - 1)

    killed = [asyncio.ensure_future(site.ask(f"many-{number}", "b", "and then?", delay)) for number in range(users)]
    await asyncio.sleep(1.5 * delay)
    await site.stop(signal.SIGKILL)
    await site.start()
    later = await asyncio.gather(*killed)
    return {
        "different_queries": {
            "queries": users,
            "succeeded": sum(each["answer"] == f"QUERY {number}" for number, each in enumerate(answers)),
            "sequential_seconds": round_to(sequential),
            "concurrent_seconds": round_to(concurrent),
            "speedup": round_to(sequential / concurrent),
        },
        "equal_queries": {
            "at_once": at_once,
            "succeeded": sum(each["answer"] == "THE SAME" for each in equal),
            "alone_seconds": round_to(statistics.median(alone)),
            "together_seconds": round_to(statistics.median(together)),
            "overhead_percent": round_to(overhead),
        },
        "sessions": {
            "keep_their_memory": all(len(each["earlier"]) == 1 for each in later),
            "are_apart": all(each["earlier"] == [f"query {number}"] for number, each in enumerate(later)),
        },
        "killed_with_sigkill": {"queries": users, "answered": len(later)},
    }


def round_to(number: float) -> float:
    return round(number, 2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=7, help="users with different queries (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=15, help="equal queries at once (default: %(default)s)")
    parser.add_argument("--delay", type=float, default=0.3, help="seconds of a step (default: %(default)s)")
    parser.add_argument("--serve", type=int, metavar="PORT", help="serve the application, and test nothing")
    options = parser.parse_args()
    if options.serve is not None:
        config = uvicorn.Config(app, host="127.0.0.1", port=options.serve, log_level="warning")
        await uvicorn.Server(config).serve()
        return
    if options.users < 1 or options.at_once < 1 or not options.delay > 0:
        parser.error("--users and --at-once must be at least 1, and --delay more than 0")
    with stage.store() as url:
        site = Site(url, free_port())
        await site.start()
        try:
            measured = await report(site, options.users, options.at_once, options.delay)
        finally:
            await site.stop()
            await site.http.aclose()
    print(json.dumps({"seed": SEED, "perdure": measured}, indent=2))


if __name__ == "__main__":
    asyncio.run(main())
