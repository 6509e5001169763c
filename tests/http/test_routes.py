"""Each route, with right and wrong input, over TCP against the real engine."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from perdure import workflow
from perdure.http import api
from perdure.testing.replay import replay
from tests.http.conftest import Site, site_on
from tests.http.programs import WORKFLOWS, Expense, add, expense, nested


def problem(response: Any) -> tuple[int, str]:
    """Return the status and the type of a problem, after checks that hold for each of them."""
    found = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert found["status"] == response.status_code
    assert found["title"]
    assert found["detail"]
    return response.status_code, found["type"].removeprefix("urn:perdure:problem:")


# --- health -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_health(memory_site: Site, path: str) -> None:
    assert (await memory_site.get(path)).json()["status"] in ("live", "ready")
    assert (await memory_site.http.head(path)).status_code == 200
    await memory_site.client.aclose()
    assert (await memory_site.get(path)).status_code == (200 if path == "/health/live" else 503)


# --- starting ---------------------------------------------------------------------------------------------------------
async def test_start_is_answered_once_it_is_durable(site: Site) -> None:
    response = await site.post("/api/workflows/add/invoke", 3)
    assert response.status_code == 202
    found = response.json()
    ended = (await site.get(found["result_url"], params={"wait": 30})).json()
    assert ended == {"invocation_id": found["invocation_id"], "status": "completed", "result": 4, "error": None}
    shown = (await site.get(found["status_url"])).json()
    assert shown["input"] == {"number": 3}
    assert shown["result"] == 4


async def test_start_of_a_handler_that_is_not_known_yet_waits_for_it_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:")
        path = "/api/workflows/add/invoke?wait=30"
        assert problem(await site.post(path, 3)) == (404, "unknown-handler")
        assert problem(await site.post(f"{path}&unknown=yes", 3)) == (400, "bad-query")
        waiting = asyncio.create_task(site.post(f"{path}&unknown=accept", 3))
        await parts.enter_async_context(site.client.worker(add))
        assert (await waiting).json()["result"] == 4
        monkeypatch.setattr(api, "UNKNOWN_SECONDS", 0.1)
        assert problem(await site.post("/api/workflows/other/invoke?unknown=accept", 3)) == (404, "unknown-handler")


@pytest.mark.parametrize(("query", "headers"), [({"wait": 30}, {}), ({}, {"Prefer": "respond-async, wait=30"})])
async def test_start_waits_for_the_result_if_asked(
    memory_site: Site, query: dict[str, Any], headers: dict[str, str]
) -> None:
    response = await memory_site.post("/api/workflows/add/invoke", 3, params=query, headers=headers)
    assert (response.status_code, response.json()["result"]) == (200, 4)


async def test_start_that_does_not_end_in_time_is_accepted(memory_site: Site) -> None:
    response = await memory_site.post("/api/workflows/sleeping/invoke", 60, params={"wait": 0.05})
    assert response.status_code == 202
    assert (await memory_site.get(response.json()["status_url"])).json()["status"] == "suspended"
    again = await memory_site.get(response.json()["result_url"], params={"wait": 0.05})
    assert again.status_code == 202


@pytest.mark.parametrize(
    ("handler", "body", "result"),
    [
        ("greet", {}, ["you"]),
        ("greet", {"name": "ada", "times": 2}, ["ada", "ada"]),
        ("echo", None, None),
        ("echo", [1, {"a": None}, "ü"], [1, {"a": None}, "ü"]),
        ("echo", {"$perdure": {"float": "inf"}}, {"$perdure": {"float": "inf"}}),
        ("returns_bytes", 2, base64.b64encode(b"xx").decode()),
    ],
)
async def test_values_are_written_by_their_schema(memory_site: Site, handler: str, body: Any, result: Any) -> None:
    response = await memory_site.send(f"/api/workflows/{handler}/invoke?wait=30", json.dumps(body))
    assert (response.status_code, response.json()["result"]) == (200, result)


async def test_failure_is_told_with_its_class_and_text(memory_site: Site) -> None:
    response = await memory_site.post("/api/workflows/failing/invoke?wait=30")
    assert response.status_code == 200
    ended = response.json()
    assert ended["status"] == "failed"
    assert (ended["error"]["type"], ended["error"]["message"]) == ("ValueError", "no luck")
    assert "no luck" in ended["error"]["traceback"]


async def test_options_of_a_start(site: Site) -> None:
    id = await site.invoke("expense", {"amount": "12.50"}, id="e/1", key="k", tag="a:b", timeout=100, delay=0)
    assert id == "e/1"
    found = (await site.get("/api/workflows/e%2F1")).json()
    assert (found["key"], found["tags"], found["input"]) == (
        "k",
        {"a": "b"},
        {"request": {"amount": "12.50", "note": "", "at": None}},
    )
    assert found["deadline"] is not None
    later = await site.invoke("add", 1, delay=600)
    assert (await site.get(f"/api/workflows/{later}")).json()["status"] == "scheduled"


async def test_start_that_is_not_to_wait_for_its_key_is_a_problem_for_who_waits(site: Site) -> None:
    await site.invoke("expense", {"amount": "1"}, id="first", key="k")
    busy = await site.post("/api/workflows/add/invoke?key=k&when_busy=reject&wait=30", 1)
    assert problem(busy) == (409, "key-busy")
    assert "'first'" in busy.json()["detail"]
    late = await site.invoke("add", 1, key="k", when_busy="reject")
    ended = (await site.get(f"/api/workflows/{late}/result?wait=30")).json()
    assert (ended["status"], ended["error"]["type"]) == ("failed", "perdure.errors.KeyBusy")
    done = await site.post("/api/workflows/add/invoke?key=k&when_busy=interrupt&wait=30", 1)
    assert done.json()["status"] == "completed"
    assert (await site.get("/api/workflows/first")).json()["status"] == "cancelled"
    once = {"idempotency-key": "once"}
    await site.post("/api/workflows/add/invoke?key=k", 1, headers=once)
    other = await site.post("/api/workflows/add/invoke?key=k&when_busy=interrupt", 1, headers=once)
    assert problem(other) == (422, "idempotency-key-reused")


async def test_start_with_an_id_is_one_start_through_both_doors(site: Site) -> None:
    handle = await site.client.start(add.using(id="one"), 3)
    assert await site.invoke("add", 3, id="one") == handle.id
    other = await site.post("/api/workflows/add/invoke?id=one", 4)
    assert problem(other) == (409, "id-conflict")


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "pointer"),
    [
        ("/api/workflows/nobody/invoke", 3, 404, "unknown-handler", None),
        ("/api/workflows/add/invoke", "x", 422, "value-refused", ""),
        ("/api/workflows/add/invoke", 1.5, 422, "value-refused", ""),
        ("/api/workflows/greet/invoke", {"nam": "x"}, 422, "value-refused", "/nam"),
        ("/api/workflows/expense/invoke", {"amount": 12.5}, 422, "value-refused", "/amount"),
        ("/api/workflows/expense/invoke", {"amount": "1", "at": "soon"}, 422, "value-refused", "/at"),
        ("/api/workflows/add/invoke?wait=-1", 3, 400, "bad-query", "wait"),
        ("/api/workflows/add/invoke?wait=soon", 3, 400, "bad-query", "wait"),
        ("/api/workflows/add/invoke?wait=nan", 3, 400, "bad-query", "wait"),
        ("/api/workflows/add/invoke?timeout=0", 3, 400, "bad-option", None),
        ("/api/workflows/add/invoke?delay=1e300", 3, 400, "bad-option", None),
        ("/api/workflows/add/invoke?tag=a", 3, 400, "bad-query", "tag"),
        ("/api/workflows/add/invoke?tag=a:1&tag=a:2", 3, 400, "bad-query", "tag"),
        ("/api/workflows/add/invoke?key=", 3, 400, "bad-id", None),
        ("/api/workflows/add/invoke?key=k&when_busy=wait", 3, 400, "bad-query", "when_busy"),
        ("/api/workflows/add/invoke?when_busy=reject", 3, 400, "bad-option", None),
        ("/api/workflows/add/invoke?id=..", 3, 400, "bad-id", None),
        ("/api/workflows/add/invoke?id=stats", 3, 400, "bad-id", None),
        ("/api/workflows/add/invoke?id=%00", 3, 400, "bad-id", None),
        (f"/api/workflows/add/invoke?id={'a' * 201}", 3, 400, "bad-id", None),
        ("/api/workflows/add/invoke?nothing=1", 3, 400, "bad-query", "nothing"),
        ("/api/workflows/add/invoke?id=a&id=b", 3, 400, "bad-query", "id"),
        ("/api/workflows/%ff/invoke", 3, 400, "bad-path", None),
    ],
)
async def test_wrong_start_changes_nothing_and_says_what_is_wrong(
    memory_site: Site, path: str, body: Any, status: int, kind: str, pointer: str | None
) -> None:
    response = await memory_site.post(path, body)
    assert problem(response) == (status, kind)
    assert [each["pointer"] for each in response.json().get("errors", ())] == ([] if pointer is None else [pointer])
    assert (await memory_site.get("/api/workflows/stats")).json()["total"] == 0


async def test_idempotency_key_makes_one_start_of_many(site: Site) -> None:
    async def send(key: str, body: int, path: str = "add/invoke") -> Any:
        return await site.post(f"/api/workflows/{path}", body, headers={"Idempotency-Key": key})

    answers = await asyncio.gather(*(send("k1", 3) for _ in range(20)))
    assert {each.status_code for each in answers} == {202}
    (id,) = {each.json()["invocation_id"] for each in answers}
    assert (await site.get("/api/workflows/stats")).json()["total"] == 1
    assert problem(await send("k1", 4)) == (422, "idempotency-key-reused")
    for other in ("key=k", "tag=a:b", "timeout=9", "delay=9"):
        assert problem(await send("k1", 3, f"add/invoke?{other}")) == (422, "idempotency-key-reused")
    assert (await send("k2", 3)).json()["invocation_id"] != id
    assert (await send("k1", 3, "sleeping/invoke")).json()["invocation_id"] != id
    await site.until(id, "completed")
    again = await send("k1", 3, "add/invoke?wait=30")
    assert again.json() == {"invocation_id": id, "status": "completed", "result": 4, "error": None}
    assert problem(await send("k1", 3, "add/invoke?id=x")) == (400, "bad-query")
    assert problem(await send("x" * 256, 3)) == (400, "bad-idempotency-key")
    assert problem(await send("", 3)) == (400, "bad-idempotency-key")


async def test_idempotency_key_of_a_restart_makes_one_invocation(site: Site) -> None:
    done = await site.invoke("add", 1)
    await site.until(done, "completed")

    async def send(body: Any, key: str = "k") -> Any:
        return await site.post(f"/api/workflows/{done}/restart", body, headers={"Idempotency-Key": key})

    ids = {(await send({})).json()["invocation_id"] for _ in range(3)}
    assert len(ids) == 1
    assert problem(await send({"input": 7})) == (422, "idempotency-key-reused")
    assert problem(await send({"id": "x"})) == (400, "bad-body")
    again = await site.post("/api/workflows/add/invoke", 1, headers={"Idempotency-Key": "k"})
    assert again.json()["invocation_id"] not in ids
    misfit = await send({"input": "x"}, "other")
    assert [each["pointer"] for each in misfit.json()["errors"]] == ["/input"]


async def test_idempotency_key_and_id_hold_when_a_workflow_is_renamed() -> None:
    @workflow
    async def before(number: int) -> int:
        return number

    @workflow(aliases=["before"])
    async def renamed(number: int) -> int:
        return number

    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:")
        ids: list[set[str]] = []
        for served in (before, renamed):
            async with site.client.worker(served):
                while (await site.get("/api/handlers/before")).json().get("name") != served.name:
                    await asyncio.sleep(0.05)
                once = await site.post("/api/workflows/before/invoke?wait=30", 1, headers={"Idempotency-Key": "k"})
                chosen = await site.post("/api/workflows/before/invoke?wait=30&id=i", 1)
                ids.append({once.json()["invocation_id"], chosen.json()["invocation_id"]})
        assert ids[0] == ids[1]
        assert (await site.get("/api/workflows/stats")).json()["total"] == 2


async def test_wait_may_be_asked_for_by_a_header_on_a_result_too(memory_site: Site) -> None:
    id = await memory_site.invoke("sleeping", 0.3)
    ended = await memory_site.get(f"/api/workflows/{id}/result", headers={"Prefer": "wait=30"})
    assert (ended.status_code, ended.json()["result"]) == (200, "slept")


async def test_deep_result_is_shown_as_far_as_it_goes(memory_site: Site) -> None:
    deep = await memory_site.client.run(nested, 600)
    assert isinstance(deep, list)
    response = await memory_site.post("/api/workflows/nested/invoke?wait=30", 600)
    assert response.status_code == 200
    assert "nested more than 200 levels deep" in response.text
    assert (await memory_site.get(response.json()["invocation_id"] and "/api/workflows")).status_code == 200


async def test_result_is_shown_by_the_types_that_its_start_named(memory_site: Site) -> None:
    id = await memory_site.invoke("returns_bytes", 2)
    shown = await memory_site.until(id, "completed")
    assert shown["result"] == (await memory_site.get(f"/api/workflows/{id}/result")).json()["result"] == "eHg="


async def test_validators_of_the_author_are_run_by_the_worker(memory_site: Site) -> None:
    """The server does not know them. What they refuse pauses the invocation; what they change, they change."""
    ok = await memory_site.post("/api/workflows/checked/invoke?wait=30", {"amount": 2})
    assert ok.json()["result"] == 20
    id = await memory_site.invoke("checked", {"amount": -1})
    paused = await memory_site.until(id, "paused")
    assert "positive" in paused["paused_because"]


async def test_batch_is_accepted_together_or_not_at_all(site: Site) -> None:
    starts = [{"handler": "add", "input": n, "id": f"b{n}", "tags": {"n": str(n)}, "key": "k"} for n in range(50)]
    starts.append({"handler": "greet"})
    response = await site.post("/api/workflows:batch", {"starts": starts})
    assert response.status_code == 202
    found = response.json()["workflows"]
    assert [each["invocation_id"] for each in found[:-1]] == [f"b{n}" for n in range(50)]
    assert (await site.get(found[49]["result_url"] + "?wait=30")).json()["result"] == 50
    assert (await site.get(found[50]["result_url"] + "?wait=30")).json()["result"] == ["you"]
    assert (await site.post("/api/workflows:batch", {"starts": starts[:50]})).status_code == 202
    new = {"handler": "add", "input": 1, "id": "new"}
    for wrong, status, pointers in (
        ([new, {"handler": "add", "input": 9, "id": "b1"}], 409, []),
        ([new, new], 422, ["/starts"]),
        ([new, {"handler": "add", "input": "x"}], 422, ["/starts/1/input"]),
        ([new, {"handler": "expense", "input": {"amount": "1", "note": 3}}], 422, ["/starts/1/input/note"]),
        ([new, {"handler": "nobody"}, {"handler": "add", "input": 1, "key": ""}], 422, ["/starts/1", "/starts/2"]),
        ([], 422, ["/starts"]),
        ([new] * 1_001, 422, ["/starts"]),
        ([{**new, "when": 1}], 422, ["/starts/0"]),
    ):
        refused = await site.post("/api/workflows:batch", {"starts": wrong})
        assert refused.status_code == status, refused.text
        assert [each["pointer"] for each in refused.json().get("errors", ())] == pointers
    assert (await site.get("/api/workflows/stats")).json()["total"] == 51


# --- looking ----------------------------------------------------------------------------------------------------------
async def test_list_by_pages_and_filters(site: Site) -> None:
    ids = [await site.invoke("add", n, tag=f"half:{n % 2}") for n in range(7)]
    for id in ids:
        await site.until(id, "completed")
    found: list[str] = []
    query: dict[str, Any] = {"limit": 3, "status": "completed", "handler": "add"}
    while True:
        page = (await site.get("/api/workflows", params=query)).json()
        found += [each["invocation_id"] for each in page["workflows"]]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
        other = await site.get("/api/workflows", params={**query, "status": "failed"})
        assert problem(other) == (400, "bad-option")
    assert sorted(found) == sorted(ids)
    odd = (await site.get("/api/workflows", params={"tag": "half:1"})).json()["workflows"]
    assert len(odd) == 3
    assert odd[0]["tags"] == {"half": "1"}
    for empty in ({"status": "failed"}, {"key": "k"}, {"id_prefix": "zz"}, {"created_after": "2100-01-01T00:00:00Z"}):
        assert (await site.get("/api/workflows", params=empty)).json() == {"workflows": [], "next": None}
    stats = (await site.get("/api/workflows/stats")).json()
    assert stats == {"total": 7, "by_status": {"completed": 7}, "by_handler": {"add": 7}}


async def test_what_ended_is_counted_by_minutes(site: Site) -> None:
    ids = [await site.invoke("add", n) for n in range(3)]
    ids.append(await site.invoke("failing", {}))
    for id in ids:
        await site.until(id, "failed" if id == ids[-1] else "completed")
    found = (await site.get("/api/stats/minutes")).json()["minutes"]
    counts: Counter[tuple[str, str]] = Counter()
    for each in found:
        assert each.keys() == {"at", "handler", "status", "count", "seconds", "longest"}
        assert each["at"].endswith(":00Z")
        assert 0 < each["longest"] <= each["seconds"]
        counts[each["handler"], each["status"]] += each["count"]
    assert counts == {("add", "completed"): 3, ("failing", "failed"): 1}
    only = (await site.get("/api/stats/minutes", params={"handler": "failing", "since": "2026-01-01T00:00:00Z"})).json()
    assert only["minutes"] == [each for each in found if each["handler"] == "failing"]
    assert (await site.get("/api/stats/minutes?since=2100-01-01T00:00:00Z")).json() == {"minutes": []}
    assert problem(await site.get("/api/stats/minutes?since=2026-01-01T00:00:00")) == (400, "bad-option")
    assert problem(await site.get("/api/stats/minutes?handler=")) == (400, "bad-id")


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("status=done", "bad-query"),
        ("limit=0", "bad-query"),
        ("limit=1001", "bad-query"),
        ("limit=x", "bad-query"),
        ("created_after=yesterday", "bad-query"),
        ("created_after=2026-01-01T00:00:00", "bad-option"),
        ("cursor=x", "bad-option"),
        ("handler=", "bad-id"),
        ("tag=x", "bad-query"),
        ("x=1", "bad-query"),
    ],
)
async def test_wrong_filters_are_refused(memory_site: Site, query: str, kind: str) -> None:
    assert problem(await memory_site.get(f"/api/workflows?{query}")) == (400, kind)


async def test_shown_invocation_has_what_the_seed_wants(site: Site) -> None:
    id = await site.invoke("expense", {"amount": "3"}, key="k")
    await site.until(id, "suspended")
    found = (await site.get(f"/api/workflows/{id}")).json()
    (awakeable,) = found["awakeables"]
    assert found["invocation_id"] == id
    assert found["handler"] == "expense"
    assert found["total_steps"] == 1
    assert found["current_step"] == 0
    assert found["current_step_type"] == f"AWAKEABLE:{awakeable}"
    assert found["journal"][0]["step_number"] == 0
    assert found["journal"][0]["step_type"] == f"AWAKEABLE:{awakeable}"
    assert found["workflow_state"] == {"amount": "3"}
    assert found["awakeables"][awakeable]["resolved"] is False
    assert isinstance(found["awakeables"][awakeable]["created_at"], float)
    assert found["waiting_for"].startswith("AWAKEABLE:")


async def test_journal_by_ranges(memory_site: Site) -> None:
    id = await memory_site.invoke("many", 250)
    shown = await memory_site.until(id, "completed")
    assert (shown["total_steps"], len(shown["journal"])) == (250, 200)
    first = (await memory_site.get(f"/api/workflows/{id}/journal?limit=100")).json()
    assert ([each["step_number"] for each in first["journal"]], first["next"]) == ([*range(100)], 100)
    last = (await memory_site.get(f"/api/workflows/{id}/journal?from=249")).json()
    assert (last["journal"][0]["step_number"], last["journal"][0]["result"], last["next"]) == (249, 250, None)


async def test_exported_history_replays(memory_site: Site) -> None:
    id = await memory_site.invoke("add", 3)
    await memory_site.until(id, "completed")
    response = await memory_site.get(f"/api/workflows/{id}/export")
    assert response.headers["content-type"] == "application/octet-stream"
    replay(add, response.content)


@pytest.mark.parametrize("rest", ["", "/journal", "/result", "/events", "/export"])
async def test_unknown_invocation_is_not_found(memory_site: Site, rest: str) -> None:
    for id in ("nobody", "%F0%9F%98%80", "a%2Fb", "%2e%2e", "x" * 3_000):
        assert problem(await memory_site.get(f"/api/workflows/{id}{rest}")) == (404, "unknown-invocation")


async def test_state_of_a_key(memory_site: Site) -> None:
    assert (await memory_site.get("/api/keys/user%2F1")).json() == {"key": "user/1", "state": {}}
    id = await memory_site.invoke("expense", {"amount": "3"}, key="user/1")
    await memory_site.until(id, "suspended")
    await memory_site.post(f"/api/workflows/{id}/cancel")
    await memory_site.until(id, "cancelled")
    assert (await memory_site.get("/api/keys/user%2F1")).json()["state"] == {"amount": "3"}


async def test_handlers_are_described(memory_site: Site) -> None:
    found = {each["name"]: each for each in (await memory_site.get("/api/handlers")).json()["handlers"]}
    assert found["add"]["description"] == "Add one to a number."
    assert (found["add"]["input"], found["add"]["result"]) == ({"type": "integer"}, {"type": "integer"})
    assert found["greet"]["input"]["properties"]["times"] == {"type": "integer", "default": 1}
    assert found["expense"]["input"]["$ref"] == "#/$defs/Expense"
    assert (await memory_site.get("/api/handlers/add")).json() == found["add"]
    assert problem(await memory_site.get("/api/handlers/nobody")) == (404, "unknown-handler")


# --- operating --------------------------------------------------------------------------------------------------------
async def test_pause_resume_cancel(site: Site) -> None:
    id = await site.invoke("sleeping", 60)
    await site.until(id, "suspended")
    paused = await site.post(f"/api/workflows/{id}/pause")
    assert (paused.status_code, paused.json()) == (200, {"invocation_id": id, "status": "paused"})
    assert problem(await site.post(f"/api/workflows/{id}/pause")) == (409, "wrong-status")
    assert (await site.post(f"/api/workflows/{id}/resume")).status_code == 200
    assert (await site.post(f"/api/workflows/{id}/cancel", {"force": True})).json()["status"] == "cancelled"
    ended = (await site.get(f"/api/workflows/{id}/result")).json()
    assert (ended["status"], ended["result"]) == ("cancelled", None)


async def test_retry_restart_purge(site: Site) -> None:
    id = await site.invoke("failing", {})
    await site.until(id, "failed")
    assert (await site.post(f"/api/workflows/{id}/retry")).status_code == 200
    await site.until(id, "failed")
    again = await site.post(f"/api/workflows/{id}/restart", {"id": "anew"})
    assert (again.status_code, again.json()["invocation_id"]) == (202, "anew")
    done = await site.invoke("add", 3)
    await site.until(done, "completed")
    other = (await site.post(f"/api/workflows/{done}/restart", {"input": 8})).json()["invocation_id"]
    assert (await site.get(f"/api/workflows/{other}/result?wait=30")).json()["result"] == 9
    assert problem(await site.post(f"/api/workflows/{done}/restart", {"input": "x"})) == (422, "value-refused")
    assert problem(await site.post(f"/api/workflows/{done}/restart", {"id": ".."})) == (400, "bad-id")
    assert problem(await site.post(f"/api/workflows/{done}/restart", {"idd": "a"})) == (422, "value-refused")
    assert (await site.post(f"/api/workflows/{done}/purge")).status_code == 200
    assert problem(await site.get(f"/api/workflows/{done}")) == (404, "unknown-invocation")


async def test_operations_on_what_is_unknown_or_takes_no_body(memory_site: Site) -> None:
    for verb in ("pause", "resume", "cancel", "retry", "restart", "purge"):
        assert problem(await memory_site.post(f"/api/workflows/nobody/{verb}")) == (404, "unknown-invocation")
    id = await memory_site.invoke("sleeping", 60)
    assert problem(await memory_site.post(f"/api/workflows/{id}/pause", {"force": True})) == (400, "unexpected-body")
    assert problem(await memory_site.post(f"/api/workflows/{id}/purge")) == (409, "wrong-status")


# --- awakeables -------------------------------------------------------------------------------------------------------
RESULTS = (
    {"approved": True, "comments": "OK!"},
    '{"approved": true, "comments": "OK!"}',
)


@pytest.mark.parametrize("result", RESULTS)
async def test_awakeable_is_listed_and_resolved_with_json_or_with_json_in_a_string(site: Site, result: Any) -> None:
    id = await site.invoke("expense", {"amount": "3"})
    await site.until(id, "suspended")
    (found,) = (await site.get("/api/awakeables?open=true&assignee=finance")).json()["awakeables"]
    assert (found["invocation_id"], found["title"], found["open"]) == (id, "Expense", True)
    path = f"/api/awakeables/{found['id']}"
    assert problem(await site.post(f"{path}/resolve", {"result": {"approved": "maybe"}})) == (422, "value-refused")
    assert problem(await site.post(f"{path}/resolve", {"result": "{broken"})) == (422, "value-refused")
    assert problem(await site.post(f"{path}/resolve", {"value": 1})) == (422, "value-refused")
    assert problem(await site.post(f"{path}/reject")) == (422, "value-refused")
    assert (await site.post(f"{path}/resolve", {"result": result})).status_code == 200
    assert (await site.get(f"/api/workflows/{id}/result?wait=30")).json()["result"] == "approved"
    assert problem(await site.post(f"{path}/resolve", {"result": {"approved": False}})) == (409, "refused")
    assert (await site.get("/api/awakeables?open=true")).json() == {"awakeables": [], "next": None}
    (closed,) = (await site.get("/api/awakeables")).json()["awakeables"]
    assert closed["open"] is False


async def test_answer_that_is_given_while_no_worker_runs_is_applied_later(tmp_path: Path) -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, f"sqlite:{tmp_path}/s.db")
        async with site.client.worker(*WORKFLOWS):
            handle = await site.client.start(expense, Expense(Decimal(3)))
            (awakeable,) = (await site.until(handle.id, "suspended"))["awakeables"]
        with mock.patch("perdure.http.api.APPLY_SECONDS", 0.1):
            accepted = await site.post(f"/api/awakeables/{awakeable}/resolve", {"result": '{"approved": true}'})
        assert accepted.status_code == 202
        async with site.client.worker(*WORKFLOWS):
            assert await handle.result() == "approved"


async def test_hostile_answers_are_refused(memory_site: Site) -> None:
    id = await memory_site.invoke("expense", {"amount": "3"})
    (awakeable,) = (await memory_site.until(id, "suspended"))["awakeables"]
    path = f"/api/awakeables/{awakeable}"
    assert problem(await memory_site.send(f"{path}/reject", "")) == (422, "value-refused")
    assert problem(await memory_site.post(f"{path}/resolve", {"result": "[" * 100_000})) == (422, "value-refused")
    misfit = await memory_site.post(f"{path}/resolve", {"result": {"$perdure": {"map": 1}}})
    assert [each["pointer"] for each in misfit.json()["errors"]] == ["/result"]


async def test_awakeable_that_was_answered_while_paused_is_not_open(memory_site: Site) -> None:
    id = await memory_site.invoke("two_awakeables", {})
    first, second = (await memory_site.until(id, "suspended"))["awakeables"]
    await memory_site.post(f"/api/workflows/{id}/pause")
    assert (await memory_site.post(f"/api/awakeables/{first}/resolve", {"result": 1})).status_code == 200
    (left,) = (await memory_site.get("/api/awakeables?open=true")).json()["awakeables"]
    assert left["id"] == second


async def test_awakeable_is_rejected(site: Site) -> None:
    id = await site.invoke("expense", {"amount": "3"})
    (awakeable,) = (await site.until(id, "suspended"))["awakeables"]
    assert (await site.post(f"/api/awakeables/{awakeable}/reject", {"error": "too much"})).status_code == 200
    ended = (await site.get(f"/api/workflows/{id}/result?wait=30")).json()
    assert (ended["status"], ended["error"]["type"]) == ("failed", "perdure.errors.AwakeableRejected")
    assert "too much" in ended["error"]["message"]


async def test_forged_awakeable_is_refused(memory_site: Site) -> None:
    id = await memory_site.invoke("expense", {"amount": "3"})
    (awakeable,) = (await memory_site.until(id, "suspended"))["awakeables"]
    for forged in (awakeable[:-1] + ("0" if awakeable[-1] != "0" else "1"), "x", f"{id}~0~0~", "%00"):
        assert problem(await memory_site.post(f"/api/awakeables/{forged}/resolve", {"result": 1})) == (400, "bad-id")
