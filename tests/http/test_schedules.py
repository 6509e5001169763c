"""The routes of schedules, with right, wrong, missing and hostile input, over TCP against the real engine."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import jsonschema
import pytest

from perdure import Client, Schedule, connect
from perdure.core.schedule import Plan, Timing
from perdure.errors import BadId, InvalidOption, LimitExceeded, ScheduleBusy, UnknownSchedule
from perdure.http.exact import encode
from perdure.operations.schedules import Trigger
from tests.http.conftest import Site
from tests.http.programs import Expense, add, expense, greet, sleeping
from tests.http.test_routes import problem

NIGHTLY = {"handler": "add", "input": 3, "cron": "0 3 * * *", "timezone": "Europe/Berlin"}


async def put(site: Site, name: str, body: Any, **headers: str) -> httpx.Response:
    return await site.http.put(f"/api/schedules/{name}", json=body, headers=headers)


async def delete(site: Site, name: str) -> httpx.Response:
    return await site.http.request("DELETE", f"/api/schedules/{name}", headers={"content-type": "application/json"})


# --- right ------------------------------------------------------------------------------------------------------------
async def test_schedule_is_put_shown_listed_and_removed(site: Site) -> None:
    assert (await put(site, "nightly", NIGHTLY)).json() == {"name": "nightly", "changed": True}
    assert (await put(site, "nightly", NIGHTLY)).json() == {"name": "nightly", "changed": False}
    shown = (await site.get("/api/schedules/nightly")).json()
    assert (shown["handler"], shown["input"], shown["cron"], shown["served"]) == (
        "add",
        {"number": 3},
        "0 3 * * *",
        True,
    )
    assert (shown["overlap"], shown["catch_up"], shown["paused_at"], shown["running"]) == ("skip", 600, None, [])
    await put(site, "a%2Fb", {"handler": "greet", "every": 3600, "overlap": "queue", "jitter": 5, "tags": {"a": "b"}})
    listed = (await site.get("/api/schedules")).json()
    assert ([each["name"] for each in listed["schedules"]], listed["next"]) == (["a/b", "nightly"], None)
    first = (await site.get("/api/schedules?limit=1")).json()
    assert first["next"] == "a/b"
    second = (await site.get("/api/schedules", params={"cursor": first["next"]})).json()
    assert [each["name"] for each in second["schedules"]] == ["nightly"]
    assert (await delete(site, "a%2Fb")).json() == {"name": "a/b"}
    assert problem(await delete(site, "a%2Fb")) == (404, "unknown-schedule")
    assert problem(await site.get("/api/schedules/a%2Fb")) == (404, "unknown-schedule")


async def test_schedule_is_one_through_both_doors(site: Site) -> None:
    handle = site.client.schedule("nightly", add)
    assert await handle.put(Schedule(add.bind(3), cron="0 3 * * *", timezone="Europe/Berlin"))
    assert not (await put(site, "nightly", NIGHTLY)).json()["changed"]
    body = {"handler": "expense", "input": {"amount": "12.50"}, "every": 60, "key": "k", "timeout": 5, "jitter": 2}
    assert (await put(site, "nightly", body)).json()["changed"]
    call = expense.using(key="k", timeout=5).bind(Expense(Decimal("12.50")))
    assert not await site.client.schedule("nightly").put(Schedule(call, every=60, jitter=2))
    assert (await site.get("/api/schedules/nightly")).json()["input"]["request"]["amount"] == "12.50"


async def test_schedule_is_paused_resumed_and_tells_its_next_times(site: Site) -> None:
    await put(site, "nightly", NIGHTLY)
    paused = (await site.post("/api/schedules/nightly/pause", {"note": "the disk is full"})).json()
    assert (paused["note"], paused["next_at"]) == ("the disk is full", None)
    assert paused["paused_at"] is not None
    times = (await site.get("/api/schedules/nightly/next?count=3")).json()["times"]
    assert len(times) == 3
    assert all(datetime.fromisoformat(each) > datetime.now(UTC) for each in times)
    assert len((await site.get("/api/schedules/nightly/next")).json()["times"]) == 10
    resumed = (await site.post("/api/schedules/nightly/resume")).json()
    assert (resumed["paused_at"], resumed["next_at"]) == (None, times[0])


async def test_run_is_triggered_and_found_where_the_answer_says(site: Site) -> None:
    await put(site, "nightly", NIGHTLY)
    response = await site.post("/api/schedules/nightly/trigger")
    assert response.status_code == 202
    ended = (await site.get(response.json()["result_url"], params={"wait": 30})).json()
    assert (ended["status"], ended["result"]) == ("completed", 4)
    sent = {"Idempotency-Key": "k"}
    ids = {(await site.post("/api/schedules/nightly/trigger", headers=sent)).json()["invocation_id"] for _ in range(3)}
    assert len(ids) == 1
    assert (await site.get("/api/schedules/nightly")).json()["started"] == 2


async def test_trigger_that_is_skipped_names_what_runs(site: Site) -> None:
    await put(site, "long", {"handler": "sleeping", "input": 60, "every": 86_400})
    first = (await site.post("/api/schedules/long/trigger")).json()["invocation_id"]
    response = await site.post("/api/schedules/long/trigger")
    assert problem(response) == (409, "schedule-busy")
    assert first in response.json()["detail"]


async def test_ticks_of_the_past_are_run(site: Site) -> None:
    await put(site, "hourly", {"handler": "add", "input": 1, "every": 3600})
    body = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T03:00:00+01:00"}
    response = await site.post("/api/schedules/hourly/backfill", body)
    assert response.status_code == 202
    ids = [each["invocation_id"] for each in response.json()["workflows"]]
    assert ids == [f"hourly@2026-01-01T0{hour}:00:00Z" for hour in range(3)]
    for id in ids:
        await site.until(id, "completed")
        assert (await site.get(f"/api/workflows/{id}")).status_code == 200  # its id stands in a path as it is


async def test_answers_fit_the_document(memory_site: Site) -> None:
    document = (await memory_site.get("/openapi.json")).json()
    await put(memory_site, "nightly", {**NIGHTLY, "key": "k", "tags": {"a": "b"}})
    await memory_site.post("/api/schedules/nightly/pause", {"note": "x"})
    for path in ("", "/{name}", "/{name}/next"):
        response = await memory_site.get(f"/api/schedules{path}".format(name="nightly"))
        content = document["paths"][f"/api/schedules{path}"]["get"]["responses"]["200"]["content"]["application/json"]
        jsonschema.validate(response.json(), {**content["schema"], "components": document["components"]})
    assert {"put", "delete", "get"} == {*document["paths"]["/api/schedules/{name}"]}


# --- wrong ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "status", "kind", "pointer"),
    [
        ({**NIGHTLY, "handler": "nobody"}, 404, "unknown-handler", None),
        ({**NIGHTLY, "handler": ""}, 400, "bad-id", None),
        ({"input": 3, "cron": "* * * * *"}, 422, "value-refused", ""),
        ({**NIGHTLY, "input": "x"}, 422, "value-refused", "/input"),
        ({**NIGHTLY, "handler": "greet", "input": {"nam": 1}}, 422, "value-refused", "/input/nam"),
        ({"handler": "add", "cron": "* * * * *"}, 422, "value-refused", "/input"),
        ({**NIGHTLY, "often": True}, 422, "value-refused", ""),
        ({**NIGHTLY, "cron": 5}, 422, "value-refused", "/cron"),
        ({**NIGHTLY, "overlap": "never"}, 422, "value-refused", "/overlap"),
        ({**NIGHTLY, "catch_up": -1}, 422, "value-refused", "/catch_up"),
        ({**NIGHTLY, "catch_up": 1}, 400, "bad-option", None),
        ({**NIGHTLY, "jitter": 1e300}, 400, "bad-option", None),
        ({**NIGHTLY, "timeout": 0}, 400, "bad-option", None),
        ({**NIGHTLY, "key": ""}, 400, "bad-id", None),
        ({**NIGHTLY, "tags": {"a:b": "c"}}, 400, "bad-option", None),
        ({**NIGHTLY, "cron": "soon"}, 400, "bad-option", None),
        ({**NIGHTLY, "cron": "0 0 30 2 *"}, 400, "bad-option", None),
        ({**NIGHTLY, "cron": "1," * 100_000 + "1 * * * *"}, 400, "bad-option", None),
        ({**NIGHTLY, "timezone": "../../etc/passwd"}, 400, "bad-option", None),
        ({**NIGHTLY, "timezone": "\0"}, 400, "bad-option", None),
        ({**NIGHTLY, "every": 60}, 400, "bad-option", None),
        ({"handler": "add", "input": 3}, 400, "bad-option", None),
        ({"handler": "add", "input": 3, "every": 0.5}, 400, "bad-option", None),
        ({"handler": "add", "input": 3, "every": 0}, 400, "bad-option", None),
        ({"handler": "echo", "input": "x" * 70_000, "every": 60}, 413, "too-large", None),
        ([], 422, "value-refused", ""),
        ({}, 422, "value-refused", ""),
    ],
)
async def test_wrong_schedule_is_refused_and_nothing_is_kept(
    memory_site: Site, body: Any, status: int, kind: str, pointer: str | None
) -> None:
    response = await put(memory_site, "nightly", body)
    assert problem(response) == (status, kind), response.text
    assert [each["pointer"] for each in response.json().get("errors", ())] == ([] if pointer is None else [pointer])
    assert (await memory_site.get("/api/schedules")).json()["schedules"] == []


@pytest.mark.parametrize("name", ["%00", "%2E%2E", "%2E", "a" * 161, "%ff", "%0A", "%ed%a0%80"])
async def test_name_that_cannot_be_kept_is_refused_everywhere(memory_site: Site, name: str) -> None:
    raw = httpx.URL(str(memory_site.server.address)).copy_with(raw_path=f"/api/schedules/{name}".encode())
    headers = {"content-type": "application/json"}
    for method, body in (("PUT", json.dumps(NIGHTLY)), ("GET", None), ("DELETE", None)):
        response = await memory_site.http.request(method, raw, content=body, headers=headers)
        assert response.status_code in (400, 404), (method, name, response.text)
        assert problem(response)[1] in ("bad-id", "bad-path", "no-such-route")


async def test_what_there_is_not_is_told_on_every_route(memory_site: Site) -> None:
    answers = [
        await memory_site.get("/api/schedules/none"),
        await memory_site.get("/api/schedules/none/next"),
        await delete(memory_site, "none"),
        *[await memory_site.post(f"/api/schedules/none/{verb}") for verb in ("pause", "resume", "trigger")],
        await memory_site.post(
            "/api/schedules/none/backfill", {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}
        ),
    ]
    assert {problem(each) for each in answers} == {(404, "unknown-schedule")}


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("pause", {"note": 5}, 422, "value-refused"),
        ("pause", {"not": ""}, 422, "value-refused"),
        ("pause", {"note": "x" * 2_000}, 429, "limit-exceeded"),
        ("resume", {"now": True}, 400, "unexpected-body"),
        ("trigger", {"now": True}, 400, "unexpected-body"),
        ("backfill", {}, 422, "value-refused"),
        ("backfill", {"start": "soon", "end": "2026-01-01T00:00:00Z"}, 422, "value-refused"),
        ("backfill", {"start": "2026-01-01T00:00:00", "end": "2026-01-01T00:00:00Z"}, 400, "bad-option"),
        ("backfill", {"start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"}, 400, "bad-option"),
        ("backfill", {"start": "0001-01-01T00:00:00+14:00", "end": "2026-01-01T00:00:00Z"}, 400, "bad-option"),
        ("backfill", {"start": "2026-01-01T00:00:00Z", "end": "9999-12-31T23:59:59-14:00"}, 400, "bad-option"),
        ("backfill", {"start": "1970-01-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}, 429, "limit-exceeded"),
        ("start", {}, 404, "no-such-route"),
    ],
)
async def test_wrong_request_changes_nothing(memory_site: Site, path: str, body: Any, status: int, kind: str) -> None:
    await put(memory_site, "hourly", {"handler": "add", "input": 1, "every": 3600})
    before = (await memory_site.get("/api/schedules/hourly")).json()
    assert problem(await memory_site.post(f"/api/schedules/hourly/{path}", body)) == (status, kind)
    assert (await memory_site.get("/api/schedules/hourly")).json() == before


@pytest.mark.parametrize("query", ["count=0", "count=101", "count=many", "count=null", "to=1"])
async def test_wrong_number_of_times_is_refused(memory_site: Site, query: str) -> None:
    await put(memory_site, "nightly", NIGHTLY)
    assert problem(await memory_site.get(f"/api/schedules/nightly/next?{query}")) == (400, "bad-query")


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "cursor=", "cursor=%00", "status=paused"])
async def test_wrong_page_is_refused(memory_site: Site, query: str) -> None:
    assert problem(await memory_site.get(f"/api/schedules?{query}"))[0] == 400


async def test_request_that_changes_something_needs_a_type_that_no_form_has(memory_site: Site) -> None:
    for method, path in (("PUT", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/trigger")):
        response = await memory_site.http.request(method, f"/api/schedules/nightly{path}", content=b"{}")
        assert problem(response) == (415, "wrong-content-type")
    response = await put(memory_site, "nightly", NIGHTLY, origin="https://evil.example")
    assert problem(response) == (403, "cross-site")
    assert problem(await memory_site.http.patch("/api/schedules/nightly", json={})) == (405, "wrong-method")


# --- the client of a server -------------------------------------------------------------------------------------------
async def test_client_of_a_server_has_all_of_it(site: Site) -> None:
    async with connect(str(site.server.address)) as remote:
        nightly = remote.schedule("nightly", greet)
        schedule = Schedule(greet.bind("ada", times=2), cron="0 3 * * *", timezone="Europe/Berlin", overlap="queue")
        assert await nightly.put(schedule)
        assert not await nightly.put(schedule)
        assert await (await nightly.trigger()).result() == ["ada", "ada"]
        start = datetime(2026, 1, 1, tzinfo=UTC)
        runs = await nightly.backfill(start, datetime(2026, 1, 3, tzinfo=UTC))
        assert [each.id for each in runs] == ["nightly@2026-01-01T02:00:00Z", "nightly@2026-01-02T02:00:00Z"]
        while (await nightly.describe()).started < 3:
            await asyncio.sleep(0.01)
        assert [await each.result() for each in runs] == [["ada", "ada"]] * 2
        await nightly.pause("why not")
        told = await nightly.describe()
        assert told == await site.client.schedule("nightly").describe()
        assert (told.note, told.input, told.started) == ("why not", {"name": "ada", "times": 2}, 3)
        await nightly.resume()
        assert await nightly.next(2) == await site.client.schedule("nightly").next(2)
        assert [each.name async for each in remote.schedules()] == ["nightly"]
        await check_errors(remote)
        assert await nightly.delete()
        assert not await nightly.delete()


async def check_errors(remote: Client) -> None:
    with pytest.raises(UnknownSchedule) as unknown:
        await remote.schedule("none").describe()
    assert unknown.value.name == "none"
    with pytest.raises(LimitExceeded):
        await remote.schedule("nightly").pause("x" * 2_000)
    with pytest.raises(InvalidOption):
        await remote.schedule("nightly").next(0)
    long = remote.schedule("long", sleeping)
    await long.put(Schedule(sleeping.bind(60), every=86_400))
    first = await long.trigger()
    with pytest.raises(ScheduleBusy) as busy:
        await long.trigger()
    assert (busy.value.name, busy.value.invocation_id) == ("long", first.id)
    await first.cancel()
    await long.delete()
    with pytest.raises(BadId):
        await remote.operations.change_schedule("nightly", Trigger("stats"))


async def test_hostile_plan_of_a_client_is_refused(memory_site: Site) -> None:
    good = Plan(Timing(every=60), "add", b"\x81\xa6number\x03", b"d")
    wrong: list[Any] = [
        Plan(Timing(), "add", b"", b""),
        Plan(Timing(every=0), "add", b"", b""),
        Plan(Timing(every=60), "", b"", b""),
        Plan(Timing(every=60), "add", b"x" * 70_000, b""),
        Plan(Timing(every=60), "add", b"", b"", key="\0"),
        Plan(Timing(every=60), "add", b"", b"", timeout=-1.0),
        Plan(Timing(every=60), "add", b"", b"", tags=(("b", "1"), ("a", "1"))),
        Plan(Timing(every=60), "add", b"", b"", catch_up=float("nan")),
        Plan(Timing(every=60), "add", b"", b"", jitter=float("inf")),
        Plan(Timing(every=60), "add", b"", b"", overlap="never"),  # type: ignore[arg-type]
        {"timing": {"every": 60}},
        [],
    ]
    for plan in wrong:
        sent = encode(["n", plan])
        response = await memory_site.send("/api/client/put_schedule", sent, content_type="application/msgpack")
        assert response.status_code in (400, 413, 422), (plan, response.status_code)
    for change in ({"type": "stop"}, {"type": "backfill"}, {"type": "pause", "note": 5}, None):
        sent = encode(["n", change])
        response = await memory_site.send("/api/client/change_schedule", sent, content_type="application/msgpack")
        assert response.status_code == 422, change
    assert (await memory_site.get("/api/schedules")).json()["schedules"] == []
    sent = encode(["n", good])
    assert (
        await memory_site.send("/api/client/put_schedule", sent, content_type="application/msgpack")
    ).status_code == 200
    bytes_that_do_not_decode = encode(["odd", Plan(Timing(every=60), "add", b"\xc1", b"d")])
    await memory_site.send("/api/client/put_schedule", bytes_that_do_not_decode, content_type="application/msgpack")
    assert len((await memory_site.get("/api/schedules")).json()["schedules"]) == 2
