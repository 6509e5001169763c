"""Bulk jobs over HTTP: previews, tokens, jobs, hostile input, and the client of a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from perdure import connect
from perdure.errors import AccessDenied, InvalidOption, UnknownJob
from perdure.http.api import ROUTES
from perdure.http.exact import CALLS, encode
from perdure.http.permitted import without_reason
from perdure.operations.bulk import BULK_VERBS, BulkRefusal
from tests.http.conftest import Site, site_on
from tests.http.programs import WORKFLOWS, add, failing
from tests.http.test_access import Guarded
from tests.http.test_routes import problem


async def fail(site: Site, count: int) -> list[str]:
    ids = [await site.invoke("failing", {}, tag="a:b") for _ in range(count)]
    for id in ids:
        await site.until(id, "failed")
    return ids


async def ended(site: Site | httpx.AsyncClient, url: str) -> dict[str, Any]:
    while (found := (await site.get(url)).json())["ended_at"] is None:
        await asyncio.sleep(0.01)
    return found


async def test_preview_then_job(site: Site) -> None:
    ids = await fail(site, 5)
    filters = {"status": "failed", "handler": "failing", "tags": {"a": "b"}, "created_before": "2100-01-01T00:00:00Z"}
    previewed = await site.post("/api/bulk/retry", {"filter": filters, "preview": True})
    assert previewed.status_code == 200, previewed.text
    preview = previewed.json()
    token = preview.pop("token")
    assert preview.pop("expires_at") > "2026"
    assert preview == {"verb": "retry", "filters": filters, "force": False, "count": 5, "is_exact": True}
    assert (await site.get("/api/bulk")).json() == {"jobs": [], "next": None}
    begun = await site.post("/api/bulk/retry", {"token": token})
    assert begun.status_code == 202
    again = await site.post("/api/bulk/retry", {"token": token})
    assert (again.status_code, again.json()) == (202, begun.json())
    job = await ended(site, begun.json()["status_url"])
    assert job["id"] == begun.json()["id"]
    assert (job["state"], job["by"], job["filters"]) == ("done", "local", filters)
    assert {name: job[name] for name in ("expected", "matched", "applied", "accepted", "refused", "errors")} == {
        "expected": 5,
        "matched": 5,
        "applied": 5,
        "accepted": 0,
        "refused": 0,
        "errors": 0,
    }
    for id in ids:
        assert (await site.until(id, "failed"))["retries"] == 1
    assert [each["id"] for each in (await site.get("/api/bulk")).json()["jobs"]] == [job["id"]]
    stopped = await site.post(f"/api/bulk/{job['id']}/stop")
    assert (stopped.status_code, stopped.json()["state"]) == (200, "done")


async def test_refusals_are_shown(memory_site: Site) -> None:
    (id,) = await fail(memory_site, 1)
    body = {"filter": {"handler": "failing"}, "preview": True, "force": True}
    token = (await memory_site.post("/api/bulk/cancel", body)).json()["token"]
    begun = await memory_site.post("/api/bulk/cancel", {"token": token})
    job = await ended(memory_site, begun.json()["status_url"])
    assert (job["force"], job["refused"]) == (True, 1)
    (refusal,) = job["refusals"]
    assert refusal["invocation_id"] == id
    assert refusal["reason"].startswith("it is failed, and only a ")


async def test_jobs_come_in_pages(memory_site: Site) -> None:
    ids: list[str] = []
    for _ in range(3):
        body = {"filter": {"status": "running"}, "preview": True}
        token = (await memory_site.post("/api/bulk/pause", body)).json()["token"]
        ids.insert(0, (await memory_site.post("/api/bulk/pause", {"token": token})).json()["id"])
        await asyncio.sleep(0.002)  # ids are ordered by milliseconds
    first = (await memory_site.get("/api/bulk?limit=2")).json()
    rest = (await memory_site.get("/api/bulk", params={"limit": 2, "cursor": first["next"]})).json()
    assert [each["id"] for each in (*first["jobs"], *rest["jobs"])] == ids
    assert rest["next"] is None


FAILED = {"status": "failed"}


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({}, 422, "value-refused"),
        ({"filter": FAILED}, 422, "value-refused"),
        ({"preview": True}, 422, "value-refused"),
        ({"filter": FAILED, "preview": "yes"}, 422, "value-refused"),
        ({"filter": {"status": "faild"}, "preview": True}, 422, "value-refused"),
        ({"filter": {"unknown": 1}, "preview": True}, 422, "value-refused"),
        ({"filter": {"tags": ["a"]}, "preview": True}, 422, "value-refused"),
        ({"filter": {"created_after": "soon"}, "preview": True}, 422, "value-refused"),
        ({"filter": {"created_after": "2026-01-01T00:00:00"}, "preview": True}, 400, "bad-option"),
        ({"filter": {"key": "a\0b"}, "preview": True}, 400, "bad-id"),
        ({"filter": {"tags": {"a:b": "c"}}, "preview": True}, 400, "bad-option"),
        ({"filter": {}, "preview": True}, 400, "bad-option"),
        ({"filter": {"tags": {}}, "preview": True}, 400, "bad-option"),
        ({"filter": FAILED, "preview": True, "force": True}, 400, "bad-option"),
        ({"token": "x"}, 400, "bad-option"),
        ({"token": ""}, 400, "bad-option"),
        ({"token": "é" * 100}, 400, "bad-option"),
        ({"token": "A" * 200_000}, 400, "bad-option"),
        ({"token": 7}, 422, "value-refused"),
        ({"token": "x", "filter": FAILED}, 422, "value-refused"),
        ({"token": "x", "preview": True}, 422, "value-refused"),
        ({"token": "x", "force": True}, 422, "value-refused"),
        ({"filter": FAILED, "preview": True, "by": "root"}, 422, "value-refused"),
        ([], 422, "value-refused"),
    ],
)
async def test_wrong_bodies_begin_nothing(memory_site: Site, body: Any, status: int, kind: str) -> None:
    for verb in ("retry", "purge"):
        assert problem(await memory_site.http.post(f"/api/bulk/{verb}", json=body)) == (status, kind)
    assert (await memory_site.get("/api/bulk")).json()["jobs"] == []


async def test_token_is_for_its_verb(memory_site: Site) -> None:
    token = (await memory_site.post("/api/bulk/retry", {"filter": FAILED, "preview": True})).json()["token"]
    for verb in {*BULK_VERBS} - {"retry"}:
        assert problem(await memory_site.post(f"/api/bulk/{verb}", {"token": token})) == (400, "bad-option")
    begun = await memory_site.post("/api/bulk/retry", {"token": token})
    assert (await memory_site.get(begun.json()["status_url"])).json()["by"] == "local"


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/api/bulk/nobody", 404, "unknown-job"),
        ("GET", "/api/bulk/retry", 404, "unknown-job"),
        ("GET", "/api/bulk/%00", 400, "bad-id"),
        ("GET", f"/api/bulk/{'x' * 300}", 400, "bad-id"),
        ("GET", "/api/bulk/%ff", 400, "bad-path"),
        ("POST", "/api/bulk/nobody/stop", 404, "unknown-job"),
        ("POST", "/api/bulk/%2e%2e/stop", 404, "unknown-job"),
        ("POST", "/api/bulk/explode", 405, "wrong-method"),
        ("GET", "/api/bulk?limit=0", 400, "bad-query"),
        ("GET", "/api/bulk?limit=101", 400, "bad-query"),
        ("GET", "/api/bulk?cursor=%00", 400, "bad-id"),
        ("GET", "/api/bulk?status=x", 400, "bad-query"),
    ],
)
async def test_wrong_paths_are_told(memory_site: Site, method: str, path: str, status: int, kind: str) -> None:
    response = await memory_site.http.request(method, path, json={} if method == "POST" else None)
    assert problem(response) == (status, kind)


async def test_bodies_that_are_no_json_are_told(memory_site: Site) -> None:
    for body, wanted in ((b"{", 400), (b"\xff", 400), (b"[" * 5_000, 400), (b'{"filter":' * 80, 400)):
        assert (await memory_site.send("/api/bulk/retry", body)).status_code == wanted
    response = await memory_site.send("/api/bulk/retry", b"{}", content_type="text/plain")
    assert problem(response) == (415, "wrong-content-type")


def test_purge_takes_another_role() -> None:
    roles = {each.path: each.role for each in ROUTES if each.path.startswith("/api/bulk/") and each.method == "POST"}
    assert roles.pop("/api/bulk/purge") == "admin"
    assert {*roles.values()} == {"operate"}
    assert {f"/api/bulk/{verb}" for verb in BULK_VERBS} - {*roles} == {"/api/bulk/purge"}
    assert CALLS["begin_bulk_purge"].role == "admin"
    assert CALLS["begin_bulk"].role == "operate"


# --- who may ----------------------------------------------------------------------------------------------------------
@pytest.fixture
async def guarded() -> AsyncGenerator[Guarded]:
    async with AsyncExitStack() as parts:
        yield Guarded(await site_on(parts, "memory:", *WORKFLOWS), parts)


async def test_each_may_what_its_token_permits(guarded: Guarded) -> None:
    site = guarded.site
    admin = await guarded.as_("root", role="admin", payloads=True)
    ada = await guarded.as_("ada", role="operate", handlers=("failing",))
    bob = await guarded.as_("bob", role="operate")
    reader = await guarded.as_("eve", role="read")
    nobody = await guarded.by(None)
    for handle in (await site.client.start(failing), await site.client.start(failing), await site.client.start(add, 1)):
        async for _ in handle.watch():
            pass
    body = {"filter": {"created_before": "2100-01-01T00:00:00Z"}, "preview": True}
    assert problem(await nobody.post("/api/bulk/retry", json=body)) == (401, "unauthorized")
    assert problem(await reader.post("/api/bulk/retry", json=body)) == (403, "not-permitted")
    assert problem(await bob.post("/api/bulk/purge", json=body)) == (403, "not-permitted")
    seen_by_ada = (await ada.post("/api/bulk/retry", json=body)).json()
    seen_by_bob = (await bob.post("/api/bulk/retry", json=body)).json()
    assert (seen_by_ada["count"], seen_by_bob["count"]) == (2, 3)
    token = {"token": seen_by_ada["token"]}
    for other in (bob, admin):
        assert problem(await other.post("/api/bulk/retry", json=token)) == (400, "bad-option")
    assert problem(await reader.post("/api/bulk/retry", json=token)) == (403, "not-permitted")
    begun = (await ada.post("/api/bulk/retry", json=token)).json()
    job = await ended(ada, begun["status_url"])
    assert (job["by"], job["matched"], job["applied"]) == ("ada", 2, 2)
    begun_by_bob = (await bob.post("/api/bulk/retry", json={"token": seen_by_bob["token"]})).json()
    job = await ended(bob, begun_by_bob["status_url"])
    assert "it is completed, and only a failed invocation can be retried" in [
        each["reason"] for each in job["refusals"]
    ]
    for client, seen in ((ada, {"ada"}), (bob, {"ada", "bob"}), (admin, {"ada", "bob"}), (reader, {"ada", "bob"})):
        assert {each["by"] for each in (await client.get("/api/bulk")).json()["jobs"]} == seen
    assert problem(await ada.get(begun_by_bob["status_url"])) == (404, "unknown-job")
    assert problem(await ada.post(f"{begun_by_bob['status_url']}/stop", json={})) == (404, "unknown-job")
    assert problem(await reader.post(f"{begun['status_url']}/stop", json={})) == (403, "not-permitted")
    entries = [entry for link in await site.client.operations.audit() for entry in link.piece.entries]
    assert ("ada", "post_bulk_retry", begun["id"]) in [(each.principal, each.action, each.target) for each in entries]


async def test_client_with_a_token_purges_only_as_admin(guarded: Guarded) -> None:
    operator = await guarded.client("ada", role="operate")
    with pytest.raises(AccessDenied, match="needs 'admin'"):
        await operator.bulk("purge", status="failed")
    await (await operator.bulk("retry", status="failed")).result(timeout=60)
    admin = await guarded.client("root", role="admin")
    assert (await (await admin.bulk("purge", status="failed")).result(timeout=60)).by == "root"


def test_reasons_that_may_hold_values_are_hidden() -> None:
    status, other = "it is completed, and only a failed invocation can be retried", "the body does step('4711') now"
    shown = [without_reason(BulkRefusal("x", reason)).reason for reason in (status, other)]
    assert shown == [status, ""]


# --- the client of a server -------------------------------------------------------------------------------------------
async def test_client_of_a_server(site: Site) -> None:
    ids = await fail(site, 4)
    async with connect(str(site.server.address)) as remote:
        preview = await remote.bulk_preview("retry", status="failed", tags={"a": "b"})
        assert (preview.count, preview.is_exact) == (4, True)
        job = await remote.bulk(preview)
        assert (await remote.bulk(preview)).id == job.id
        found = await job.result(timeout=60)
        assert (found.state, found.applied) == ("done", 4)
        assert found.filters == {"status": "failed", "tags": {"a": "b"}}
        for id in ids:
            await site.until(id, "failed")
        purged = await remote.bulk("purge", status="failed")
        assert (await purged.result(timeout=60)).applied == 4
        assert [each.id async for each in remote.bulk_jobs()] == [purged.id, job.id]
        assert (await purged.stop()).state == "done"
        with pytest.raises(UnknownJob) as unknown:
            await remote.bulk_job("nobody")
        assert unknown.value.job_id == "nobody"
        with pytest.raises(InvalidOption, match="given no such preview"):
            await remote.operations.begin_bulk("retry", "x")
        with pytest.raises(InvalidOption, match="give a filter"):
            await remote.bulk("purge")


async def test_routes_of_clients_refuse_what_is_wrong(memory_site: Site) -> None:
    token = (await memory_site.post("/api/bulk/purge", {"filter": FAILED, "preview": True})).json()["token"]
    wrong: list[tuple[str, list[Any]]] = [
        ("begin_bulk", ["purge", token]),  # another operation, with another role
        ("begin_bulk", ["retry", token]),
        ("begin_bulk", ["retry", token, "root"]),
        ("begin_bulk_purge", ["x"]),
        ("preview_bulk", [{"verb": "explode", "filters": FAILED}]),
        ("preview_bulk", [{"verb": "retry", "filters": {}}]),
        ("preview_bulk", [{"verb": "retry", "filters": {"status": "x"}}]),
        ("preview_bulk", [{"verb": "retry", "filters": {**FAILED, "new": "x"}}]),  # to ignore it would be to do more
        ("preview_bulk", [{"verb": "retry", "filters": {"handler": 7}}]),
        ("preview_bulk", [{"verb": "retry", "filters": FAILED, "new": 1}]),
        ("preview_bulk", [{"verb": "retry", "filters": FAILED, "force": True}]),
        ("bulk_jobs", [0, None]),
        ("bulk_jobs", [101, None]),
        ("bulk_jobs", [1, "\0"]),
        ("bulk_job", ["\0"]),
        ("bulk_job", [""]),
        ("stop_bulk", ["nobody"]),
    ]
    for name, arguments in wrong:
        response = await memory_site.send(f"/api/client/{name}", encode(arguments), content_type="application/msgpack")
        assert response.status_code in (400, 404, 422), (name, arguments, response.text)
    assert (await memory_site.get("/api/bulk")).json()["jobs"] == []
