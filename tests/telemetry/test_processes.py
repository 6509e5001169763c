"""A trace over two workers, a gRPC call and waits, while processes are killed: as an exporter received it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import PIPE
from threading import Thread
from typing import Any

import grpc.aio
import httpx
import pytest

from examples.services.nats_server import Options, server
from examples.services.process import service
from perdure.stores.jetstream.layout.streams import make
from tests.grpc.shop_pb2 import AuditRequest
from tests.grpc.shop_pb2_grpc import ShopStub

ROOT = Path(__file__).parents[2]
PROGRAMS = str(Path(__file__).parent / "programs.py")
"""Not imported here: it sets providers, which a process has for good."""
OUTER = "00-11111111111111111111111111111111-2222222222222222-01"
"""The context of the request that starts everything."""
ANSWERING = "00-33333333333333333333333333333333-4444444444444444-01"
"""That of the request that answers the awakeable."""


class Got:
    """A span as it was received."""

    def __init__(self, sent: dict[str, Any]) -> None:
        self.name: str = sent["name"]
        self.kind = sent["kind"].removeprefix("SpanKind.")
        self.trace: str = sent["context"]["trace_id"].removeprefix("0x")
        self.id: str = sent["context"]["span_id"].removeprefix("0x")
        self.parent: str | None = None if sent["parent_id"] is None else sent["parent_id"].removeprefix("0x")
        self.links = [each["context"]["span_id"].removeprefix("0x") for each in sent["links"]]
        self.attributes: dict[str, Any] = sent["attributes"]
        self.begins, self.ends = sent["start_time"], sent["end_time"]
        self.process: int = sent["process"]

    @property
    def outcome(self) -> str:
        return self.attributes["perdure.outcome"]


@contextmanager
def collector() -> Generator[tuple[str, list[Got], list[str]]]:
    """Receive spans and metrics; yield the URL to send them to, and the lists that they are added to."""
    found: list[Got] = []
    metrics: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/metrics":
                metrics.append(body.decode())
            else:
                found.append(Got(json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    receiving = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = Thread(target=receiving.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{receiving.server_port}", found, metrics
    finally:
        receiving.shutdown()
        thread.join()
        receiving.server_close()


class Worker:
    """`perdure worker` in a process of its own, which can be killed."""

    def __init__(self, workflow: str, url: str, environment: dict[str, str], *options: str) -> None:
        self._command = (sys.executable, "-m", "perdure", "worker", f"{PROGRAMS}:{workflow}", "--url", url, *options)
        self._environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", **environment}
        self._process: asyncio.subprocess.Process | None = None
        self.pids: list[int] = []

    async def start(self) -> str:
        """Start it, and return its first line."""
        process = await asyncio.create_subprocess_exec(*self._command, env=self._environment, stdout=PIPE)
        self._process = process
        self.pids.append(process.pid)
        assert process.stdout is not None
        return (await process.stdout.readline()).decode()

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            await process.wait()


async def until_there(path: Path, lines: int) -> None:
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_trace_goes_on_over_workers_calls_and_waits_and_nothing_is_emitted_twice(tmp_path: Path) -> None:
    held, release = tmp_path / "held", tmp_path / "release"
    with collector() as (url, spans, metrics), server(options=Options(sync_interval="always")) as node:
        environment = {"COLLECTOR": url, "HELD": str(held), "RELEASE": str(release)}
        await make([node.url], {}, replicas=1, shards=None, synced=True)
        async with service("tests.grpc.shop_service") as shop:
            lease = ("--lease", "1")
            ships = Worker("ships", node.url, environment, *lease, "--service", f"Shop={shop}")
            picks = Worker("picks", node.url, environment, *lease, "--http-port", "0")
            try:
                base = re.findall(r"http://[\d.]+:\d+", await picks.start())[0]
                await ships.start()
                async with httpx.AsyncClient(base_url=base, timeout=60, trust_env=False) as http:
                    id = await begin(http)
                    awakeable = await waiting(http)
                    await ships.kill()  # it waits: nothing is in progress
                    await ships.start()
                    await answer(http, awakeable)
                    await until_there(held, 1)
                    await ships.kill()  # in the middle of an attempt
                    await ships.start()
                    await until_there(held, 2)
                    release.touch()
                    ended = (await http.get(f"/api/workflows/{id}/result?wait=60")).json()
                    assert ended["result"] == "yes", ended
                while [each.outcome for each in spans if each.name.startswith("turn")].count("completed") < 2:
                    await asyncio.sleep(0.02)
                ended_ships = '{"attributes": {"outcome": "completed", "handler": "ships"}'
                while not any(ended_ships in each for each in metrics):
                    await asyncio.sleep(0.02)
            finally:
                await ships.kill()
                await picks.kill()
            async with grpc.aio.insecure_channel(shop) as channel:
                (call,) = (await ShopStub(channel).Audit(AuditRequest(cart_id="o-1"))).calls
    check(spans, id, ships.pids, picks.pids[0], call.metadata["traceparent"])


async def begin(http: httpx.AsyncClient) -> str:
    while True:  # until the other worker has published its handler
        headers = {"traceparent": OUTER}
        response = await http.post("/api/workflows/ships/invoke?id=i-1", json="o-1", headers=headers)
        if response.status_code == 202:
            return response.json()["invocation_id"]
        assert response.status_code == 404, response.text
        await asyncio.sleep(0.05)


async def waiting(http: httpx.AsyncClient) -> str:
    while not (found := (await http.get("/api/awakeables?open=true")).json()["awakeables"]):
        await asyncio.sleep(0.02)
    return found[0]["id"]


async def answer(http: httpx.AsyncClient, awakeable: str) -> None:
    headers = {"traceparent": ANSWERING}
    answered = await http.post(f"/api/awakeables/{awakeable}/resolve", json={"result": "yes"}, headers=headers)
    assert answered.status_code in (200, 202), answered.text


def check(spans: list[Got], id: str, ships: list[int], picks: int, received: str) -> None:
    assert Counter((each.trace, each.id) for each in spans).most_common(1)[0][1] == 1
    assert len(ships) == 3

    def named(name: str) -> list[Got]:
        return sorted((each for each in spans if each.name == name), key=lambda each: each.begins)

    def only(name: str) -> Got:
        (found,) = named(name)
        return found

    _, outer, caller, _ = OUTER.split("-")
    start = only("start ships")
    assert (start.trace, start.parent, start.kind, start.process) == (outer, caller, "PRODUCER", picks)
    turns = named("turn ships")
    assert {each.attributes["perdure.invocation.id"] for each in turns} == {id}

    # the first trace: up to where it waits for an answer
    first = [each for each in turns if each.trace == outer]
    assert {(each.parent, each.process, *each.links) for each in first} == {(start.id, ships[0])}
    assert [each.outcome for each in first][-1] == "suspended"
    checkout = only("attempt Shop.Checkout")
    assert checkout.parent == first[0].id
    assert received == f"00-{outer}-{checkout.id}-01"
    child, picking, inside = only("turn picks"), only("attempt pick"), only("inside")
    assert child.parent in {each.id for each in first}
    assert (child.process, picking.process) == (picks, picks)
    assert (picking.parent, inside.parent) == (child.id, picking.id)
    assert {each.trace for each in (checkout, child, picking, inside)} == {outer}

    # the second: from the answer on, over two processes, of which one died in the attempt
    holding = only("attempt hold")
    second = [each for each in turns if each.trace == holding.trace]
    assert (second[0].parent, second[0].links) == (None, [start.id, ANSWERING.split("-")[2]])
    assert {each.parent for each in second[1:]} == {second[0].id}
    assert (second[0].process, holding.process) == (ships[1], ships[2])
    assert holding.parent == second[0].id
    assert holding.attributes["perdure.attempt"] == 1
    assert second[-1].outcome == "suspended"

    # the third: from the timer on
    (last,) = [each for each in turns if each.trace not in (outer, holding.trace)]
    assert (last.parent, last.links, last.outcome, last.process) == (None, [start.id], "completed", ships[2])
    assert len(first) + len(second) + 1 == len(turns)
    for each in spans:
        if each.name != "inside":
            assert {*each.attributes} <= {
                *("perdure.invocation.id", "perdure.handler", "perdure.outcome", "perdure.step", "perdure.attempt")
            }
