"""Waiting, events, stopping, and processes that are killed."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from perdure.errors import StoreUnavailable
from perdure.http import feed as feeds
from perdure.stores import notices
from tests.http.conftest import Site, site_on
from tests.http.processes import PROGRAMS, Process
from tests.http.programs import WORKFLOWS
from tests.http.test_routes import problem


# --- waiting ----------------------------------------------------------------------------------------------------------
async def test_one_wait_too_many_is_told_to_come_again() -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS, max_waiting=2)
        waits = [asyncio.create_task(site.post("/api/workflows/sleeping/invoke?wait=60", 60)) for _ in range(2)]
        while (await site.get("/api/workflows/stats")).json()["total"] < 2:
            await asyncio.sleep(0.01)
        refused = await site.post("/api/workflows/add/invoke?wait=60", 3)
        assert problem(refused) == (429, "busy")
        assert refused.headers["retry-after"] == "1"
        assert (await site.get("/api/workflows/stats")).json()["total"] == 2
        assert (await site.post("/api/workflows/add/invoke", 3)).status_code == 202
        for each in waits:
            each.cancel()
        await asyncio.wait(waits)
        while (await site.post("/api/workflows/add/invoke?wait=60", 3)).status_code == 429:
            await asyncio.sleep(0.01)  # clients that went away hold no places


async def test_server_that_stops_answers_those_that_wait() -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS)
        started = await site.invoke("sleeping", 60)
        waits = [
            asyncio.create_task(site.post("/api/workflows/sleeping/invoke?wait=60", 60)),
            asyncio.create_task(site.get(f"/api/workflows/{started}/result?wait=60")),
        ]
        lines: list[str] = []
        following = asyncio.create_task(follow(site, "/api/events", lines))
        while len(lines) < 1 or (await site.get("/api/workflows/stats")).json()["total"] < 2:
            await asyncio.sleep(0.01)
        await asyncio.wait_for(site.server.stop(), 10)
        assert [(await each).status_code for each in waits] == [202, 202]
        await following
        assert "event: closing" in lines


async def follow(site: Site, path: str, lines: list[str], **headers: str) -> None:
    async with site.http.stream("GET", path, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            lines.append(line)  # noqa: PERF401  others look at it meanwhile


# --- events -----------------------------------------------------------------------------------------------------------
async def events_of(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """Yield events, without comments."""
    event: dict[str, Any] = {}
    async for line in lines:
        name, _, value = line.partition(": ")
        if not line and "data" in event:
            yield event
            event = {}
        elif name in ("id", "event"):
            event[name] = value
        elif name == "data":
            event[name] = json.loads(value)


async def test_changes_are_pushed_in_order_and_continued_by_event_id(site: Site) -> None:
    async with site.http.stream("GET", "/api/events") as response:
        lines = response.aiter_lines()
        assert await anext(lines) == ": welcome"
        events = events_of(lines)
        id = await site.invoke("add", 3)
        found = [await anext(events)]
        while found[-1]["data"]["status"] != "completed":
            found.append(await anext(events))
    assert {each["data"]["invocation_id"] for each in found} == {id}
    assert {*found[0]["data"]} == {"invocation_id", "handler", "status", "updated_at"}
    numbers = [int(each["id"].rpartition("-")[2]) for each in found]
    assert numbers == [*range(1, len(found) + 1)]
    async with site.http.stream("GET", "/api/events", headers={"Last-Event-ID": found[0]["id"]}) as response:
        events = events_of(response.aiter_lines())
        assert [await anext(events) for _ in found[1:]] == found[1:]


@pytest.mark.parametrize("last", ["other-1", "x", "", "-1", "é"])
async def test_event_id_of_another_server_gives_a_reset(memory_site: Site, last: str) -> None:
    headers = [(b"Last-Event-ID", last.encode())]
    async with memory_site.http.stream("GET", "/api/events", headers=headers) as response:
        assert (await anext(events_of(response.aiter_lines())))["event"] == "reset"


async def test_reader_that_was_away_too_long_gets_a_reset(memory_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "KEPT_EVENTS", 3)
    async with memory_site.http.stream("GET", "/api/events") as response:
        events = events_of(response.aiter_lines())
        await memory_site.invoke("add", 3)
        first = await anext(events)
    for _ in range(5):
        await memory_site.until(await memory_site.invoke("add", 3), "completed")
    await asyncio.sleep(0.05)
    async with memory_site.http.stream("GET", "/api/events", headers={"Last-Event-ID": first["id"]}) as response:
        assert (await anext(events_of(response.aiter_lines())))["event"] == "reset"


async def test_purge_is_told_after_what_came_before_it(site: Site) -> None:
    async with site.http.stream("GET", "/api/events") as response:
        events = events_of(response.aiter_lines())
        id = await site.invoke("add", 3)
        while (found := await anext(events))["data"]["status"] != "completed":
            pass
        while (await site.post(f"/api/workflows/{id}/purge")).status_code == 409:
            await asyncio.sleep(0.01)
        found = await anext(events)
        assert (found["event"], found["data"]) == ("gone", {"invocation_id": id})


async def test_changes_that_the_store_missed_give_a_reset(memory_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with memory_site.http.stream("GET", "/api/events") as response:
        events = events_of(response.aiter_lines())
        await memory_site.invoke("add", 3)
        await anext(events)
        monkeypatch.setattr(notices, "CHANGES_LIMIT", 0)
        await memory_site.invoke("add", 3)
        while (await anext(events))["event"] != "reset":
            pass
        monkeypatch.undo()
        id = await memory_site.invoke("add", 3)
        while (found := await anext(events))["event"] != "changed" or found["data"]["invocation_id"] != id:
            pass


async def test_feed_goes_on_after_the_store_could_not_be_read(
    memory_site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feeds, "AGAIN_SECONDS", 0.05)
    watch, errors = memory_site.client.operations.watch_all, [StoreUnavailable("away"), ZeroDivisionError()]

    def failing(filters: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return watch(filters, **options)

    monkeypatch.setattr(memory_site.client.operations, "watch_all", failing)
    async with memory_site.http.stream("GET", "/api/events") as response:
        events = events_of(response.aiter_lines())
        assert [(await anext(events))["event"] for _ in range(2)] == ["reset", "reset"]
        await asyncio.sleep(0.1)
        await memory_site.invoke("add", 3)
        assert (await anext(events))["event"] == "changed"
    assert "away" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_silent_stream_gets_comments(memory_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.http.service.IDLE_SECONDS", 0.05)
    async with memory_site.http.stream("GET", "/api/events") as response:
        lines = response.aiter_lines()
        assert await anext(lines) == ": welcome"
        assert (await anext(lines)).startswith("id: ")
        assert [await anext(lines) for _ in range(2)] == ["", ": nothing new"]
    head = await memory_site.http.head("/api/events")
    assert (head.status_code, head.content) == (200, b"")


async def test_invocation_is_followed_until_it_ends(memory_site: Site) -> None:
    id = await memory_site.invoke("expense", {"amount": "3"})
    (awakeable,) = (await memory_site.until(id, "suspended"))["awakeables"]
    async with memory_site.http.stream("GET", f"/api/workflows/{id}/events") as response:
        events = events_of(response.aiter_lines())
        assert (await anext(events))["data"]["status"] == "suspended"
        await memory_site.post(f"/api/awakeables/{awakeable}/resolve", {"result": {"approved": True}})
        assert [each["data"]["status"] async for each in events][-1] == "completed"


async def test_streams_are_bounded(memory_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.http.service.STREAMS_LIMIT", 1)
    async with memory_site.http.stream("GET", "/api/events") as response:
        assert await anext(response.aiter_lines()) == ": welcome"
        assert problem(await memory_site.get("/api/events")) == (429, "busy")
    while (await memory_site.http.head("/api/events")).status_code != 200:
        await asyncio.sleep(0.01)


# --- what nobody foresaw ----------------------------------------------------------------------------------------------
async def test_unexpected_exception_fails_one_request_and_is_logged(
    memory_site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def stats() -> Any:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(memory_site.client.operations, "stats", stats)
    response = await memory_site.get("/api/workflows/stats")
    assert problem(response) == (500, "unexpected")
    assert "secret" not in response.text
    assert "ZeroDivisionError: secret" in caplog.text
    assert (await memory_site.get("/api/workflows")).status_code == 200


async def test_web_socket_is_refused(memory_site: Site) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await memory_site.service({"type": "websocket"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_lifespan_of_a_server_that_has_one(memory_site: Site) -> None:
    sent: list[Any] = []
    came = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> Any:
        return came.pop(0)

    await memory_site.service({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert memory_site.service.is_closing


# --- the document -----------------------------------------------------------------------------------------------------
async def test_document_describes_every_route(memory_site: Site) -> None:
    document = (await memory_site.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    described = {(method.upper(), path) for path, each in document["paths"].items() for method in each}
    assert described == {(route.method, route.path) for route in memory_site.service.routes}
    names = [each["operationId"] for path in document["paths"].values() for each in path.values()]
    assert len({*names}) == len(names)
    invoke = document["paths"]["/api/workflows/{handler}/invoke"]["post"]
    assert {"200", "202", "404", "409", "422", "429"} <= {*invoke["responses"]}
    assert {"Idempotency-Key", "Prefer", "wait", "key"} <= {each["name"] for each in invoke["parameters"]}
    assert "202" in document["paths"]["/api/workflows/{id}/pause"]["post"]["responses"]
    assert {route.role for route in memory_site.service.routes} == {"anybody", "read", "operate", "admin"}


async def test_answers_fit_the_document(memory_site: Site) -> None:
    document = (await memory_site.get("/openapi.json")).json()
    done = await memory_site.invoke("failing", {})
    await memory_site.until(done, "failed")
    waits = await memory_site.invoke("expense", {"amount": "3"}, key="k", tag="a:b")
    await memory_site.until(waits, "suspended")
    for path, wanted in (
        ("/health", "/health"),
        ("/api/workflows", "/api/workflows"),
        ("/api/workflows/stats", "/api/workflows/stats"),
        (f"/api/workflows/{done}", "/api/workflows/{id}"),
        (f"/api/workflows/{waits}", "/api/workflows/{id}"),
        (f"/api/workflows/{done}/journal", "/api/workflows/{id}/journal"),
        (f"/api/workflows/{done}/result", "/api/workflows/{id}/result"),
        ("/api/awakeables", "/api/awakeables"),
        ("/api/handlers", "/api/handlers"),
        ("/api/handlers/add", "/api/handlers/{handler}"),
        ("/api/keys/k", "/api/keys/{key}"),
    ):
        response = await memory_site.get(path)
        content = document["paths"][wanted]["get"]["responses"]["200"]["content"]["application/json"]
        jsonschema.validate(response.json(), {**content["schema"], "components": document["components"]})
    problem_schema = {"$ref": "#/components/schemas/ProblemDocument", "components": document["components"]}
    jsonschema.validate((await memory_site.get("/nothing")).json(), problem_schema)


# --- processes --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
async def test_kill_in_the_middle_of_many_starts_loses_none_and_makes_none_twice(tmp_path: Path) -> None:
    """1,000 starts with idempotency keys, each sent until it is answered; the server is killed twice meanwhile."""
    server = Process(tmp_path, "worker", PROGRAMS)
    state = {"base": server.base}
    done: dict[int, set[str]] = {n: set() for n in range(1_000)}
    asked = asyncio.Semaphore(40)

    async def start(http: httpx.AsyncClient, n: int) -> None:
        async with asked:
            while True:
                try:
                    url = f"{state['base']}/api/workflows/add/invoke?tag=n:{n}"
                    response = await http.post(url, json=n, headers={"Idempotency-Key": f"k{n}"})
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                assert response.status_code in (202, 503), response.text
                if response.status_code == 202:
                    done[n].add(response.json()["invocation_id"])
                    return

    async with httpx.AsyncClient(timeout=30) as http:
        starts = [asyncio.create_task(start(http, n)) for n in done]
        for wanted in (200, 600):
            while sum(map(bool, done.values())) < wanted:
                await asyncio.sleep(0.005)
            await asyncio.to_thread(server.stop, signal.SIGKILL)
            server = await asyncio.to_thread(Process, tmp_path, "worker", PROGRAMS)
            state["base"] = server.base
        await asyncio.gather(*starts)
        again = [asyncio.create_task(start(http, n)) for n in range(0, 1_000, 7)]  # answers that were lost
        await asyncio.gather(*again)
        assert all(len(ids) == 1 for ids in done.values())
        while (stats := (await http.get(f"{server.base}/api/workflows/stats")).json())["by_status"] != {
            "completed": 1_000
        }:
            assert stats["total"] == 1_000
            await asyncio.sleep(0.05)
    said = server.stop(signal.SIGTERM)
    assert "stopped" in said
    assert server.process.returncode == 0


@pytest.mark.slow
def test_server_without_a_worker_takes_starts_for_a_worker_that_comes_later(tmp_path: Path) -> None:
    worker = Process(tmp_path, "worker", PROGRAMS)
    while not (httpx.get(f"{worker.base}/api/handlers").json()["handlers"]):
        pass
    worker.stop(signal.SIGTERM)
    server = Process(tmp_path, "serve")
    id = httpx.post(f"{server.base}/api/workflows/add/invoke", json=3).json()["invocation_id"]
    assert httpx.get(f"{server.base}/api/workflows/{id}").json()["status"] == "pending"
    assert server.stop(signal.SIGTERM)
    worker = Process(tmp_path, "worker", PROGRAMS)
    assert httpx.get(f"{worker.base}/api/workflows/{id}/result?wait=30").json()["result"] == 4
    worker.stop(signal.SIGTERM)
