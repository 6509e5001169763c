"""Holes that an outsider found, each as it was used."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from starlette.requests import Request

from perdure.calls import submission_of
from perdure.core.ids import derived_id
from perdure.errors import AccessDenied, IdConflict, InvalidOption
from perdure.http import gate as gates
from perdure.http import service as services
from perdure.http.gate import Failures, Problem, Sources
from perdure.operations import audit
from perdure.operations.access import Access
from tests.http.conftest import site_on
from tests.http.programs import WORKFLOWS, add, echo, expense
from tests.http.test_access import Guarded, entries_of
from tests.http.test_routes import problem


@pytest.fixture
async def guarded() -> AsyncGenerator[Guarded]:
    async with AsyncExitStack() as parts:
        yield Guarded(await site_on(parts, "memory:", *WORKFLOWS), parts)


# --- limited callers --------------------------------------------------------------------------------------------------
async def test_restart_starts_nothing_that_is_out_of_reach(guarded: Guarded) -> None:
    own = guarded.site.client
    await own.run(add.using(id="mine", key="a:1"), 1)
    client = await guarded.client("limited", role="operate", payloads=True, handlers=("add",), key_prefixes=("a:",))
    other = submission_of(echo, (1,), {})
    for call in (other, msgspec.structs.replace(submission_of(add, (2,), {}), key="b:1")):
        with pytest.raises(AccessDenied, match="may not start"):
            await client.operations.restart("mine", call, new_id=None, handlers=("add", "echo"))
    assert (await own.stats()).total == 1
    assert await client.operations.restart("mine", submission_of(add, (2,), {}), new_id=None, handlers=("add",))


async def test_id_of_another_key_gives_no_result(guarded: Guarded) -> None:
    await guarded.site.client.run(add.using(id="victim", key="b:1"), 1)
    one = await guarded.as_("limited", role="operate", payloads=True, key_prefixes=("a:",))
    answers = [await one.post("/api/workflows/add/invoke?id=victim&key=a:1&wait=5", json=n) for n in (1, 2)]
    assert {problem(each) for each in answers} == {(409, "id-conflict")}


@pytest.mark.parametrize("id", [derived_id("parent", 0, 0), "nightly@2026-12-01T08:55:35Z"])
async def test_limited_caller_takes_no_id_that_another_derives(guarded: Guarded, id: str) -> None:
    one = await guarded.as_("limited", role="operate", payloads=True, handlers=("add",))
    assert problem(await one.post(f"/api/workflows/add/invoke?id={id}", json=1)) == (403, "not-permitted")
    assert (await one.post("/api/workflows/add/invoke?id=mine", json=1)).status_code == 202
    client = await guarded.client("remote", role="operate", payloads=True, handlers=("add",))
    assert await client.run(add, 1) == 2  # its new ids begin with the time


async def test_limited_caller_learns_nothing_of_other_workflows(guarded: Guarded) -> None:
    await guarded.site.client.run(add, 1)
    one = await guarded.as_("limited", handlers=("echo",))
    assert (await one.get("/api/workflows?handler=add&limit=1")).json() == {"workflows": [], "next": None}
    client = await guarded.client("remote", handlers=("echo",))
    assert [await client.operations.serves(name) for name in ("add", "nothing", "echo")] == [None, None, True]


# --- equal inputs -----------------------------------------------------------------------------------------------------
async def test_restarts_do_not_tell_equal_inputs_apart(guarded: Guarded) -> None:
    await guarded.site.client.run(add.using(id="victim"), 1)
    one = await guarded.as_("operator", role="operate")
    key = {"Idempotency-Key": "k"}
    assert (await one.post("/api/workflows/victim/restart", json={}, headers=key)).status_code == 202
    assert (await one.post("/api/workflows/victim/restart", json={"input": 1}, headers=key)).status_code == 202
    client = await guarded.client("remote", role="operate")
    for number in (1, 2):
        sent = msgspec.structs.replace(submission_of(add, (number,), {}), id="victim", is_chosen=False)
        with pytest.raises(IdConflict, match="not told"):
            await client.operations.start(sent)
        with pytest.raises(IdConflict, match="not told"):
            await client.operations.restart("victim", sent, new_id=None, handlers=("add",))


async def test_assignees_are_values_too(guarded: Guarded) -> None:
    await guarded.site.client.start(expense.using(id="e"), {"amount": "1"})  # pyright: ignore[reportArgumentType]
    reader = await guarded.as_("reader")
    while not (found := (await reader.get("/api/awakeables")).json()["awakeables"]):
        await asyncio.sleep(0.01)
    assert found[0].keys().isdisjoint({"assignees", "title"})
    assert problem(await reader.get("/api/awakeables?assignee=finance")) == (403, "not-permitted")


# --- tokens -----------------------------------------------------------------------------------------------------------
async def test_two_valid_tokens_have_two_names(guarded: Guarded) -> None:
    operations = guarded.site.client.operations
    await guarded.token("ci")
    with pytest.raises(InvalidOption, match="there is a token 'ci' already"):
        await guarded.token("ci")
    await operations.revoke_token((await operations.tokens())[0].id)
    await guarded.token("ci")


async def test_token_outlives_that_of_its_maker_never(guarded: Guarded) -> None:
    operations = guarded.site.client.operations
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    admin = await guarded.by(await operations.add_token(Access("admin", "admin"), expires=tomorrow))
    for name, asked in (("none", {}), ("later", {"expires": "2999-01-01T00:00:00Z"})):
        assert (await admin.post("/api/tokens", json={"name": name, **asked})).status_code == 201
    assert {each.expires for each in await operations.tokens()} == {tomorrow}


async def test_stolen_cookie_ends_no_session(guarded: Guarded) -> None:
    browser = await guarded.by(None)
    begun = await browser.post("/api/session", json={"token": await guarded.token("ada")})
    secret = {"Perdure-Session": begun.json()["secret"]}
    cookie = {"Cookie": begun.headers["set-cookie"].split(";")[0]}
    thief = await guarded.as_("thief")
    json_type = {"content-type": "application/json"}
    assert (await thief.delete("/api/session", headers={**cookie, **json_type})).status_code == 204
    assert (await browser.get("/api/me", headers=secret)).status_code == 200


async def test_login_that_hangs_keeps_nobody_elses_stream_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "RIGHTS_SECONDS", 0.05)
    gone: set[str] = set()

    async def login(scope: MutableMapping[str, Any]) -> Access | None:
        name = dict(scope["headers"]).get(b"x-user", b"").decode()
        if "hangs" in gone and name == "mallory":
            await asyncio.get_running_loop().create_future()
        return None if name in gone else Access(name)

    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS, authenticate=login)
        begun: set[str] = set()

        async def follow(name: str) -> None:
            async with site.http.stream("GET", "/api/events", headers={"X-User": name}) as response:
                async for _ in response.aiter_lines():
                    begun.add(name)

        following = [asyncio.create_task(follow(name)) for name in ("mallory", "alice")]
        while begun != {"mallory", "alice"}:
            await asyncio.sleep(0.01)
        gone |= {"hangs", "alice"}
        async with asyncio.timeout(20):
            await asyncio.wait(following)


# --- where from -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("peer", "forwarded", "source"),
    [
        ("::ffff:10.0.0.9", None, "10.0.0.9"),
        ("::ffff:127.0.0.1", "10.0.0.7:4711", "10.0.0.7"),
        ("127.0.0.1", "[2001:db8::1]:80", "2001:db8::1"),
        ("127.0.0.1", "2001:DB8:0::1", "2001:db8::1"),
    ],
)
def test_address_is_one_however_it_is_written(peer: str, forwarded: str | None, source: str) -> None:
    headers = [] if forwarded is None else [(b"x-forwarded-for", forwarded.encode())]
    request = Request({"type": "http", "headers": headers, "client": (peer, 1)})
    assert Sources(["127.0.0.0/8"]).source_of(request) == source


def test_failures_over_ipv4_are_no_failures_of_all() -> None:
    failures = Failures()
    sources = Sources()
    for _ in range(gates.FAILURES_LIMIT):
        failures.count(sources.source_of(Request({"type": "http", "headers": [], "client": ("::ffff:127.0.0.9", 1)})))
    failures.check(sources.source_of(Request({"type": "http", "headers": [], "client": ("::ffff:127.0.0.1", 1)})))
    with pytest.raises(Problem):
        failures.check("127.0.0.9")


async def raw(guarded: Guarded, *pieces: bytes) -> bytes:
    """Send bytes as they are, and return what comes until the connection is closed."""
    address = guarded.site.server.address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.01)
    writer.write_eof()
    found = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return found


CHUNKED = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_trailers_are_refused(guarded: Guarded) -> None:
    token = await guarded.token("reader", role="operate")
    request = CHUNKED % b"/api/workflows/add/invoke" + b"1\r\n3\r\n0\r\n"
    answer = await raw(guarded, request, b"Authorization: Bearer %b\r\n\r\n" % token.encode())
    assert b" 202 " not in answer
    assert b"400 Bad Request" in answer or b" 401 " in answer
    assert (await guarded.site.client.stats()).total == 0


async def test_chunked_body_without_trailers_is_taken(guarded: Guarded) -> None:
    answer = await raw(guarded, CHUNKED % b"/api/workflows/add/invoke" + b"1\r\n3\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 202 ")


# --- the rest ---------------------------------------------------------------------------------------------------------
async def test_time_that_is_no_number_is_refused(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    client = await guarded.client("operator", role="operate")
    for wrong in (math.nan, -1.0):
        body = msgspec.msgpack.encode(["x", wrong])
        headers = {"content-type": "application/msgpack", "Authorization": f"Bearer {await guarded.token(str(wrong))}"}
        async with httpx.AsyncClient(base_url=str(guarded.site.server.address), headers=headers) as sender:
            assert (await sender.post("/api/client/pause", content=body)).status_code in (400, 403)
    with pytest.raises(InvalidOption):
        await client.operations.pause("x", timeout=math.nan)
    assert "unexpected" not in caplog.text


async def test_what_is_refused_and_what_a_link_decides_is_in_the_audit(guarded: Guarded) -> None:
    own = guarded.site.client
    await own.start(expense.using(id="e"), {"amount": "1"})  # pyright: ignore[reportArgumentType]
    reader = await guarded.as_("reader")
    await reader.post("/api/workflows/e/purge", json={})
    while not (found := [each async for each in own.awakeables()]):
        await asyncio.sleep(0.01)
    link = await own.approval_link(found[0].id)
    stranger = await guarded.by(None)
    assert (await stranger.post(link, data={"verb": "approve"})).status_code == 303
    shown = [(each.principal, each.action, each.target, each.status) for each in await entries_of(own)]
    assert shown == [
        ("reader", "post_workflows_id_purge", "", 403),
        ("nobody", "post_approve_capability", found[0].id, 303),
    ]


async def test_reading_the_audit_adds_nothing_to_it(guarded: Guarded) -> None:
    client = await guarded.client("admin", role="admin", payloads=True)
    await client.start(add.using(id="one"), 1)
    for _ in range(2):
        assert len([each async for each in audit.read_all(client.operations)]) == 1
        await client.operations.tokens()
