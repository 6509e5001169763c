"""Streams over HTTP: as server-sent events, and for other Perdure clients; over kills of the server and reconnects."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from perdure import Client, StreamItem, connect
from perdure.errors import AccessDenied, BadId, UnknownInvocation
from tests.http.conftest import Site, site_on
from tests.http.processes import PROGRAMS, Process
from tests.http.programs import WORKFLOWS, counting
from tests.http.test_access import Guarded
from tests.http.test_access import guarded as guarded
from tests.http.test_routes import problem
from tests.http.test_serving import events_of


async def read(http: httpx.AsyncClient, path: str, **headers: str) -> list[dict[str, Any]]:
    """Read server-sent events to their end."""
    async with http.stream(
        "GET", path, headers={name.replace("_", "-"): each for name, each in headers.items()}
    ) as got:
        assert got.status_code == 200, await got.aread()
        assert got.headers["content-type"].startswith("text/event-stream")
        return [each async for each in events_of(got.aiter_lines())]


def item(n: int, attempt: int = 1) -> dict[str, Any]:
    told = {"offset": n, "step": 0, "attempt": attempt, "value": {"n": str(n)}}
    return {"id": str(n), "event": "item", "data": told}


async def test_items_are_events_with_their_numbers_as_ids(site: Site) -> None:
    id = await site.invoke("counting", {"count": 5})
    path, end = f"/api/workflows/{id}/streams/numbers", {"event": "end", "data": {"next": 5}}
    assert await read(site.http, path) == [*map(item, range(5)), end]
    assert await read(site.http, f"{path}?from=3") == [item(3), item(4), end]
    assert await read(site.http, f"{path}?from=1", Last_Event_ID="3") == [item(4), end]
    assert await read(site.http, f"{path}?from=9") == [{"event": "end", "data": {"next": 9}}]
    status = await read(site.http, f"/api/workflows/{id}/streams/status")
    assert status[0]["data"] == {"offset": 0, "step": None, "attempt": 1, "value": "counts"}
    assert (await site.get(f"/api/workflows/{id}")).json()["streams"] == {"numbers": 5, "status": 1}


async def test_what_is_wrong_with_a_request_is_told_before_the_stream_begins(memory_site: Site) -> None:
    site = memory_site
    id = await site.invoke("counting", {"count": 1})
    path = f"/api/workflows/{id}/streams"
    assert problem(await site.get(f"{path}/numbers?from=-1"))[0] == 400
    assert problem(await site.get(f"{path}/numbers?start=1")) == (400, "bad-query")
    for last in ("x", "-1", "9" * 19):
        found = await site.get(f"{path}/numbers", headers={"Last-Event-ID": last})
        assert problem(found) == (400, "bad-event-id")
    assert problem(await site.get("/api/workflows/nobody/streams/numbers")) == (404, "unknown-invocation")
    assert problem(await site.get(f"{path}/{'x' * 201}"))[0] == 400


async def test_streams_are_for_who_may_see_payloads(guarded: Guarded) -> None:
    handle = await guarded.site.client.start(counting.using(id="mine", key="acme/1"), 3)
    await handle.result()
    path = f"/api/workflows/{handle.id}/streams/numbers"
    blind = await guarded.as_("blind")
    assert problem(await blind.get(path)) == (403, "not-permitted")
    assert (await blind.get(f"/api/workflows/{handle.id}")).json()["streams"] == {"numbers": 3, "status": 1}
    with pytest.raises(AccessDenied):
        await anext((await guarded.client("blind-too")).handle(handle.id).stream("numbers"))
    other = await guarded.as_("other", payloads=True, key_prefixes=("other/",))
    assert problem(await other.get(path)) == (404, "unknown-invocation")
    far = await guarded.client("other-too", payloads=True, key_prefixes=("other/",))
    with pytest.raises(UnknownInvocation):
        await anext(far.handle(handle.id).stream("numbers"))
    seeing = await guarded.as_("seeing", payloads=True)
    assert len(await read(seeing, path)) == 4


async def test_stream_of_a_server_is_typed_and_begins_anywhere() -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS)
        remote = await parts.enter_async_context(connect(str(site.server.address)))
        handle = await remote.start(counting, 4, 0.01)
        items = [each async for each in handle.stream("numbers", dict[str, Decimal])]
        assert items == [StreamItem(n, {"n": Decimal(n)}, 0, 1) for n in range(4)]
        assert [each.offset async for each in handle.stream("numbers", start=2)] == [2, 3]
        assert [each.offset async for each in handle.stream("numbers", start=1, follow=False)] == [1, 2, 3]
        assert (await handle.describe()).streams == {"numbers": 4, "status": 1}
        with pytest.raises(UnknownInvocation):
            await anext(remote.handle("nobody").stream("numbers"))
        with pytest.raises(BadId):
            remote.handle("nobody").stream("")


async def follow(client: Client, id: str) -> list[StreamItem[Any]]:
    async with aclosing(client.handle(id).stream("numbers")) as items:
        return [each async for each in items]


@pytest.mark.slow
async def test_readers_go_on_where_they_were_when_their_server_is_killed(tmp_path: Path) -> None:
    process = Process(tmp_path, "worker", PROGRAMS)
    port = int(process.base.rpartition(":")[2])
    async with connect(process.base, timeout=60) as remote:
        handle = await remote.start(counting, 60, 0.02)
        reading = asyncio.create_task(follow(remote, handle.id))
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(process.stop, number)
            process = await asyncio.to_thread(Process, tmp_path, "worker", PROGRAMS, port=port)
        async with asyncio.timeout(60):
            items = await reading
        async with httpx.AsyncClient(base_url=process.base, timeout=60) as http:
            events = await read(http, f"/api/workflows/{handle.id}/streams/numbers")
    await asyncio.to_thread(process.stop, signal.SIGTERM)
    assert [each.offset for each in items] == [*range(len(items))]
    told = [(each["data"]["offset"], each["data"]["attempt"], each["data"]["value"]["n"]) for each in events[:-1]]
    assert told == [(each.offset, each.attempt, each.value["n"]) for each in items]
    of_last = [int(each.value["n"]) for each in items if each.attempt == items[-1].attempt]
    assert of_last == [*range(60)]
    assert {each.attempt for each in items} == {*range(1, items[-1].attempt + 1)}


async def test_server_that_stops_ends_its_streams(memory_site: Site) -> None:
    id = await memory_site.invoke("counting", {"count": 1_000_000, "seconds": 0.005})
    async with memory_site.http.stream("GET", f"/api/workflows/{id}/streams/numbers") as response:
        events = events_of(response.aiter_lines())
        first = await anext(events)
        stopping = asyncio.create_task(memory_site.server.stop())
        found = [each async for each in events]
        await asyncio.wait_for(stopping, 10)
    assert first == item(0)
    assert found[-1]["event"] == "closing"
