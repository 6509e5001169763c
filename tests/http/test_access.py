"""Who may do what: tokens, roles, payloads, limits, sessions and the audit, over TCP; attacks, each a test."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from starlette.requests import Request

from perdure import Client, KeyBusy, Schedule, connect, http, workflow
from perdure.authoring.context import Context
from perdure.cli import commands
from perdure.errors import (
    AccessDenied,
    IdConflict,
    InvalidOption,
    StoreDamaged,
    StoreUnavailable,
    UnknownInvocation,
    UnknownSchedule,
)
from perdure.http import gate as gates
from perdure.http.exact import encode
from perdure.http.gate import Failures, Sources, Tokens
from perdure.http.permitted import Permitted
from perdure.http.problems import Problem
from perdure.http.routes import Body, Route
from perdure.operations import audit
from perdure.operations.access import Access, Role, Token, new_token, parts_of
from perdure.operations.documents import Put, Scan
from perdure.operations.port import Operations
from tests.http.conftest import Site, site_on
from tests.http.processes import ENVIRONMENT, PROGRAMS
from tests.http.programs import WORKFLOWS, Expense, add, echo, expense
from tests.http.test_routes import problem

SECRET = "hunter2-planted"


@workflow
async def with_secrets(ctx: Context, word: str = SECRET) -> str:
    ctx.set("word", word)
    await ctx.awakeable(str, title=f"About {word}", description=f"more of {word}")
    return word


@workflow
async def fails_with(word: str) -> None:
    raise ValueError(word)


SERVED = (*WORKFLOWS, with_secrets, fails_with)


class Guarded:
    """A site on a store with tokens. `as_` gives a client of HTTP for one."""

    def __init__(self, site: Site, parts: AsyncExitStack) -> None:
        self.site = site
        self.parts = parts

    async def token(self, name: str, **access: Any) -> str:
        return await self.site.client.operations.add_token(Access(name, **access))

    async def as_(self, name: str, **access: Any) -> httpx.AsyncClient:
        return await self.by(await self.token(name, **access))

    async def by(self, token: str | None, **headers: str) -> httpx.AsyncClient:
        found = {"Authorization": f"Bearer {token}", **headers} if token else headers
        made = httpx.AsyncClient(base_url=str(self.site.server.address), headers=found, timeout=60)
        return await self.parts.enter_async_context(made)

    async def client(self, name: str, **access: Any) -> Client:
        token = await self.token(name, **access)
        return await self.parts.enter_async_context(connect(str(self.site.server.address), token=token, timeout=10))


@pytest.fixture
async def guarded() -> AsyncGenerator[Guarded]:
    async with AsyncExitStack() as parts:
        yield Guarded(await site_on(parts, "memory:", *SERVED), parts)


# --- tokens -----------------------------------------------------------------------------------------------------------
async def test_once_there_is_a_token_every_route_needs_one(guarded: Guarded) -> None:
    nobody = await guarded.by(None)
    assert (await nobody.get("/api/workflows")).status_code == 200  # a program of this machine
    reader = await guarded.as_("reader")
    assert (await reader.get("/api/workflows")).status_code == 200
    for path in ("/api/workflows", "/health", "/health/ready", "/openapi.json", "/api/events", "/api/me"):
        response = await nobody.get(path)
        assert problem(response) == (401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert (await nobody.get("/health/live")).status_code == 200
    assert (await reader.get("/api/me")).json() == {
        "name": "reader",
        "means": "token",
        "role": "read",
        "payloads": False,
        "handlers": None,
        "key_prefixes": None,
    }


@pytest.mark.parametrize("change", ["", "x", "case", "id", "no_prefix", "basic"])
async def test_wrong_token_is_refused_and_says_no_more(guarded: Guarded, change: str) -> None:
    token = await guarded.token("reader")
    prefix, id, secret = token.split("_", 2)
    wrong = {
        "": "Bearer",
        "x": f"Bearer {token}x",
        "case": f"Bearer {prefix}_{id}_{secret.swapcase()}",
        "id": f"Bearer {prefix}_ffffffff_{secret}",
        "no_prefix": f"Bearer {secret}",
        "basic": f"Basic {token}",
    }[change]
    response = await (await guarded.by(None)).get("/api/me", headers={"Authorization": wrong})
    assert problem(response) == (401, "unauthorized")
    assert secret not in response.text


async def test_token_is_kept_as_a_hash_only(guarded: Guarded) -> None:
    token = await guarded.token("reader")
    parts = parts_of(token)
    assert parts is not None
    operations = guarded.site.client.operations
    for collection in ("perdure.tokens", "perdure.token-uses"):
        for each in await operations.scan_documents(collection, Scan()):
            assert parts[1].encode() not in each.value


async def test_token_that_was_revoked_or_has_expired_is_refused(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(gates, "STALE_SECONDS", 0.0)
    operations = guarded.site.client.operations
    old = await operations.add_token(Access("old"), expires=datetime.now(UTC) - timedelta(seconds=1))
    assert problem(await (await guarded.by(old)).get("/api/me")) == (401, "unauthorized")
    reader, token = await guarded.as_("reader"), await guarded.token("other")
    assert (await reader.get("/api/me")).status_code == 200
    for each in await operations.tokens():
        await operations.revoke_token(each.id)
        await operations.revoke_token(each.id)
    assert problem(await reader.get("/api/me")) == (401, "unauthorized")
    assert problem(await (await guarded.by(token)).get("/api/me")) == (401, "unauthorized")
    assert problem(await (await guarded.by(None)).get("/api/me")) == (401, "unauthorized")  # not open again
    with pytest.raises(InvalidOption, match="there is no token 'ffff'"):
        await operations.revoke_token("ffff")


async def test_revocation_ends_what_is_open(guarded: Guarded) -> None:
    reader, other = await guarded.as_("reader"), await guarded.as_("other", role="operate", payloads=True)
    started = (await other.post("/api/workflows/sleeping/invoke", json=60)).json()
    waiting = asyncio.create_task(reader.get(f"{started['result_url']}?wait=60"))
    lines: list[str] = []

    async def follow() -> None:
        async with reader.stream("GET", "/api/events") as response:
            lines.extend([line async for line in response.aiter_lines()])

    following = asyncio.create_task(follow())
    operations = guarded.site.client.operations
    (found,) = [each for each in await operations.tokens() if each.access.name == "reader"]
    async with asyncio.timeout(20):
        await operations.revoke_token(found.id)
        assert (await waiting).status_code in (401, 202)
        await following
    assert lines[-3:] == ["event: closing", "data: {}", ""]
    assert (await other.get("/api/me")).status_code == 200


async def test_failed_logins_are_limited_by_source_and_never_by_token(guarded: Guarded) -> None:
    good = await guarded.as_("reader")
    assert (await good.get("/api/me")).status_code == 200
    forger = await guarded.by("perd_ffffffff_" + "x" * 43)
    answers = [await forger.get("/api/me", headers={"X-Forwarded-For": f"10.0.0.{n}"}) for n in range(12)]
    assert [each.status_code for each in answers] == [401] * gates.FAILURES_LIMIT + [429, 429]
    assert int(answers[-1].headers["retry-after"]) <= gates.FAILURES_SECONDS
    assert (await good.get("/api/me")).status_code == 200  # from the same source, but with a good one


def test_failures_of_one_source_do_not_concern_another() -> None:
    failures = Failures()
    for _ in range(gates.FAILURES_LIMIT):
        failures.check("2001:db8::1")
        failures.count("2001:db8::1")
    for same in ("2001:db8::1", "2001:db8::ffff:1"):
        with pytest.raises(Problem):
            failures.check(same)
    for other in ("2001:db8:0:1::1", "10.0.0.1", "unix"):
        failures.check(other)
    for n in range(gates.SOURCES_LIMIT):
        failures.count(str(n))
    failures.check("2001:db8::1")  # forgotten: there is an end to what is remembered


class Away(Permitted):
    """Operations of a store that can be away."""

    def __init__(self, inner: Operations) -> None:
        super().__init__(inner, Access("all", "admin", payloads=True))
        self.inner = inner
        self.away = False
        self.reads = 0

    async def tokens(self) -> list[Token]:
        self.reads += 1
        if self.away:
            raise StoreUnavailable("the store is away")
        return await self.inner.tokens()


async def test_tokens_hold_for_a_while_when_the_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connect("memory:") as client:
        text = await client.operations.add_token(Access("reader"))
        operations = Away(client.operations)
        tokens = Tokens(operations, None)
        operations.away = True
        with pytest.raises(Problem, match="the tokens cannot be read"):
            await tokens.token(text)
        operations.away = False
        assert await tokens.token(text)
        operations.away = True
        monkeypatch.setattr(gates, "STALE_SECONDS", -1.0)
        before = operations.reads
        assert await tokens.token(text)
        assert operations.reads > before
        monkeypatch.setattr(gates, "GRACE_SECONDS", -1.0)
        with pytest.raises(Problem) as caught:
            await tokens.token(text)
        assert caught.value.status == 503
        await tokens.aclose()


# --- roles ------------------------------------------------------------------------------------------------------------
def every_route() -> list[Route]:
    return [each for each in http.app(connect("memory:")).routes if each.role != "anybody"]


async def ask(client: httpx.AsyncClient, route: Route) -> tuple[int, str]:
    """Send a request that is right in form; return its status, and what is wrong if it is refused."""
    path = re.sub(r"\{\w+\}", "nothing", route.path)
    if route.method == "GET":
        if route.media == "text/event-stream":
            response = await client.head(path)
            return response.status_code, "not-permitted" if response.status_code == 403 else ""
        response = await client.get(path)
    elif route.body is Body.EXACT:
        content = encode(["nothing"])
        response = await client.post(path, content=content, headers={"content-type": "application/msgpack"})
    else:
        response = await client.request(route.method, path, json={})
    is_problem = response.headers.get("content-type") == "application/problem+json"
    return response.status_code, response.json()["type"].rpartition(":")[2] if is_problem else ""


ORDER: tuple[Role, ...] = ("read", "operate", "admin")


@pytest.mark.parametrize("payloads", [False, True])
@pytest.mark.parametrize("role", ORDER)
async def test_each_role_may_use_its_routes_and_no_others(guarded: Guarded, role: Role, payloads: bool) -> None:
    client = await guarded.as_("one", role=role, payloads=payloads)
    wrong: list[tuple[str, str, int]] = []
    for route in every_route():
        assert route.role != "anybody"
        may = ORDER.index(role) >= ORDER.index(route.role) and (payloads or not route.shows_payloads)
        if route.name.startswith("post_client_watch"):  # streams: their role is what is tested
            continue
        status, kind = await ask(client, route)
        if (kind == "not-permitted") == may or status == 401 or (status == 403 and may):
            wrong.append((route.name, kind, status))
    assert wrong == []


async def test_nobody_may_use_any_of_these(guarded: Guarded) -> None:
    await guarded.token("one")
    client = await guarded.by(None)
    assert {(await ask(client, route))[0] for route in every_route()} == {401}


def test_routes_that_show_values_say_so() -> None:
    shown = {route.path for route in every_route() if route.shows_payloads}
    names = ("result", "state", "export", "read_documents", "scan_documents")
    assert shown >= {f"/api/client/{name}" for name in names}
    assert shown >= {"/api/workflows/{id}/export", "/api/keys/{key}"}


def test_every_operation_has_its_permission() -> None:
    asked = {name for name in vars(Operations) if not name.startswith("_")}
    assert asked <= {*vars(Permitted)}


# --- payloads ---------------------------------------------------------------------------------------------------------
async def test_values_are_not_shown_to_who_may_not_see_them(guarded: Guarded) -> None:
    own = guarded.site.client
    waiting = await own.start(with_secrets.using(id="waiting", key="k"), SECRET)
    failed = await own.start(fails_with.using(id="failed"), SECRET)
    done = await own.start(with_secrets.using(id="done"), SECRET)
    while not (found := (await done.describe()).awakeables):
        await asyncio.sleep(0.01)
    await own.resolve(found[0].id, SECRET)
    await done.result()
    while (await failed.describe()).status != "failed" or not (await waiting.describe()).awakeables:
        await asyncio.sleep(0.01)
    await own.documents("notes").put("a", SECRET)
    reader, seer = await guarded.as_("reader"), await guarded.as_("seer", payloads=True)
    paths = ["/api/workflows", "/api/awakeables", "/api/handlers", "/api/handlers/with_secrets", "/api/workflows/stats"]
    for id in ("waiting", "failed", "done"):
        paths += [f"/api/workflows/{id}{more}" for more in ("", "/journal", "/result", "/result?wait=0.1")]
    seen = ""
    for path in paths:
        hidden, open_ = await reader.get(path), await seer.get(path)
        assert hidden.status_code == open_.status_code < 300, path
        assert SECRET not in hidden.text, path
        seen += open_.text
    assert seen.count(SECRET) > 10
    shown = (await reader.get("/api/workflows/failed")).json()
    assert (shown["status"], shown["error"], shown["traceback"]) == ("failed", "ValueError", None)
    assert (await reader.get("/api/workflows/failed/result")).json()["error"] == {"type": "ValueError", "message": ""}
    assert (await reader.get("/api/workflows/done/result")).json()["status"] == "completed"
    client = await guarded.client("client")
    described = await client.handle("failed").describe()
    assert (described.error, described.input, described.traceback) == ("ValueError", {}, None)
    assert [each.title async for each in client.awakeables()] == [None]
    for refused in (
        client.handle("done").result(),
        client.state("k"),
        client.documents("notes").get("a"),
        anext(client.documents("notes").range()),
        client.handle("done").export(),
    ):
        with pytest.raises(AccessDenied, match="may not see payloads"):
            await refused
    changes = client.operations.watch("failed")
    assert SECRET not in repr([each async for each in changes])


async def test_nothing_tells_whether_inputs_are_equal(guarded: Guarded) -> None:
    await guarded.site.client.start(add.using(id="one"), 3)
    operator = await guarded.as_("operator", role="operate")
    seer = await guarded.as_("seer", role="operate", payloads=True)
    answers = [await operator.post("/api/workflows/add/invoke?id=one", json=n) for n in (3, 4)]
    assert {problem(each) for each in answers} == {(409, "id-conflict")}
    assert answers[0].json()["detail"] == answers[1].json()["detail"]
    assert (await seer.post("/api/workflows/add/invoke?id=one", json=3)).status_code == 202
    assert problem(await seer.post("/api/workflows/add/invoke?id=one", json=4)) == (409, "id-conflict")
    client = await guarded.client("client", role="operate")
    for number in (3, 4):
        with pytest.raises(IdConflict, match="not told"):
            await client.start(add.using(id="one"), number)
        with pytest.raises(IdConflict, match="not told"):
            await client.operations.restart("one", None, new_id="one")
    same = [
        await operator.post("/api/workflows/add/invoke", json=3, headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert [each.status_code for each in same] == [202, 202]  # its own key: it knows what it sent
    assert same[0].json() == same[1].json()


async def test_idempotency_keys_of_two_callers_are_two(guarded: Guarded) -> None:
    headers = {"Idempotency-Key": "k"}
    ids = {
        (await (await guarded.as_(name, role="operate")).post("/api/workflows/add/invoke", json=3, headers=headers))
        .json()["invocation_id"]
        for name in ("ada", "bob")
    }  # fmt: skip
    assert len(ids) == 2


# --- limits -----------------------------------------------------------------------------------------------------------
async def test_limited_token_reaches_its_own_and_nothing_else_is_known_to_it(guarded: Guarded) -> None:
    own = guarded.site.client
    for id, key in (("a1", "acme/1"), ("a2", "acme/2"), ("b1", "other/1"), ("b2", None)):
        await own.run(add.using(id=id) if key is None else add.using(id=id, key=key), 1)
    await own.run(echo.using(id="e1", key="acme/1"), 1)
    await own.start(with_secrets.using(id="s1", key="acme/9"))
    access = {"role": "admin", "payloads": True, "handlers": ("add",), "key_prefixes": ("acme/",)}
    one = await guarded.as_("acme", **access)
    listed = (await one.get("/api/workflows")).json()
    assert [each["invocation_id"] for each in listed["workflows"]] == ["a2", "a1"]
    pages: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await one.get("/api/workflows", params={"limit": 1, **cursor})).json()
        pages += [each["invocation_id"] for each in page["workflows"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert pages == ["a2", "a1"]
    unknown = (await one.get("/api/workflows/never")).json()["detail"]
    for id in ("b1", "b2", "e1", "s1"):
        for path in ("", "/journal", "/result", "/export", "/events"):
            response = await one.get(f"/api/workflows/{id}{path}")
            assert problem(response) == (404, "unknown-invocation")
            assert response.json()["detail"] == unknown.replace("'never'", f"'{id}'")
        for verb in ("pause", "resume", "cancel", "retry", "restart", "purge"):
            assert problem(await one.post(f"/api/workflows/{id}/{verb}", json={})) == (404, "unknown-invocation")
    for path in ("", "/journal", "/result", "/export"):
        assert (await one.get(f"/api/workflows/a1{path}")).status_code == 200
    assert [each["name"] for each in (await one.get("/api/handlers")).json()["handlers"]] == ["add"]
    assert problem(await one.get("/api/handlers/echo")) == (404, "unknown-handler")
    assert problem(await one.post("/api/workflows/echo/invoke?key=acme/1", json=1)) == (404, "unknown-handler")
    assert problem(await one.post("/api/workflows/add/invoke?key=other/1", json=1)) == (403, "not-permitted")
    assert problem(await one.post("/api/workflows/add/invoke", json=1)) == (403, "not-permitted")
    assert (await one.post("/api/workflows/add/invoke?key=acme/7&wait=30", json=1)).json()["result"] == 2
    batch = {"starts": [{"handler": "add", "input": 1, "key": "acme/8"}, {"handler": "add", "input": 1}]}
    assert problem(await one.post("/api/workflows:batch", json=batch)) == (403, "not-permitted")
    assert (await one.get("/api/awakeables")).json()["awakeables"] == []
    (waiting,) = [each async for each in own.awakeables()]
    answer = await one.post(f"/api/awakeables/{waiting.id}/resolve", json={"result": "x"})
    assert problem(answer) == (404, "unknown-invocation")
    for key in ("acme%2F1", "other%2F1"):  # a key's state is of all workflows
        assert problem(await one.get(f"/api/keys/{key}")) == (403, "not-permitted")
    for path in ("/api/workflows/stats", "/api/tokens", "/api/audit"):
        assert problem(await one.get(path)) == (403, "not-permitted")
    assert problem(await one.post("/api/tokens", json={"name": "more"})) == (403, "not-permitted")
    client = await guarded.client("acme too", **access)
    assert [each.id async for each in client.list(status="completed")][-2:] == ["a2", "a1"]
    for refused in (client.documents("notes").put("a", 1), client.documents("notes").get("a"), client.stats()):
        with pytest.raises(AccessDenied, match="limited"):
            await refused
    with pytest.raises(UnknownInvocation):
        await client.handle("b1").describe()
    with pytest.raises(AccessDenied, match="may not start"):
        await client.start(echo, 1)


async def test_schedules_are_reached_and_shown_as_their_invocations_are(guarded: Guarded) -> None:
    own = guarded.site.client
    mine = Schedule(echo.using(key="acme/1").bind(SECRET), every=86_400)
    await own.schedule("a").put(mine)
    await own.schedule("a").pause(SECRET)
    await own.schedule("b").put(Schedule(echo.using(key="other/1").bind(1), every=86_400))
    one = await guarded.client("acme", role="operate", payloads=True, key_prefixes=("acme/",))
    assert [each.name async for each in one.schedules()] == ["a"]
    assert not await one.schedule("a").put(mine)
    b = one.schedule("b")
    for call in (b.describe(), b.next(), b.pause(), b.resume(), b.trigger()):
        with pytest.raises(UnknownSchedule):
            await call
    assert not await b.delete()
    for wrong in (mine, Schedule(echo.bind(1), every=60)):
        with pytest.raises(AccessDenied):
            await b.put(wrong)
    blind = await guarded.client("blind", role="operate")
    told = await blind.schedule("a").describe()
    assert (told.input, told.note, told.key) == ({}, "", "acme/1")
    with pytest.raises(AccessDenied):
        await blind.schedule("a").put(mine)  # whether it is equal is not told
    assert await blind.schedule("c").put(Schedule(add.bind(1), every=60))
    reader = await guarded.client("reader")
    with pytest.raises(AccessDenied):
        await reader.schedule("a").pause()
    shown = await (await guarded.as_("other-blind")).get("/api/schedules/a")
    assert SECRET not in shown.text
    assert (await own.schedule("b").describe()).paused_at is None


async def test_caller_of_some_workflows_may_not_cancel_others_by_a_key_that_they_share(guarded: Guarded) -> None:
    await guarded.site.client.start(expense.using(id="other", key="k"), Expense(amount=Decimal(1)))
    own = await guarded.client("own", role="operate", payloads=True, handlers=("add",))
    for rule in ("interrupt", "rollback"):
        with pytest.raises(AccessDenied, match="limited to some workflows"):
            await own.start(add.using(key="k", when_busy=rule), 1)
    with pytest.raises(KeyBusy):
        await own.run(add.using(key="k", when_busy="reject"), 1)


async def test_limited_reader_hears_of_its_own_only(guarded: Guarded) -> None:
    one = await guarded.as_("acme", handlers=("echo",))
    events: list[dict[str, Any]] = []
    begun = asyncio.Event()

    async def follow() -> None:
        async with one.stream("GET", "/api/events") as response:
            async for line in response.aiter_lines():
                begun.set()
                if line.startswith("data: "):
                    events.append(json.loads(line[6:]))
                    if events[-1]["status"] == "completed":
                        return

    following = asyncio.create_task(follow())
    await begun.wait()
    await guarded.site.client.run(add, 1)
    await guarded.site.client.run(echo.using(id="mine"), 1)
    await following
    assert {each["invocation_id"] for each in events} == {"mine"}
    client = await guarded.client("watcher", handlers=("echo",))
    changes = client.watch()
    first = asyncio.ensure_future(anext(changes))
    await guarded.site.client.run(add, 1)
    while not first.done():
        await guarded.site.client.run(echo, 1)
    assert (await first).handler == "echo"
    await changes.aclose()


async def test_own_collections_are_served_to_nobody(guarded: Guarded) -> None:
    client = await guarded.client("admin", role="admin", payloads=True)
    operations = client.operations
    for collection in ("perdure.tokens", "perdure.sessions", "perdure.audit", "perdure.handlers"):
        for refused in (
            operations.read_documents(collection, [("x",)]),
            operations.scan_documents(collection, Scan()),
            operations.write_documents(collection, [Put(("x",), b"1")]),
            operations.delete_documents(collection, ""),
        ):
            with pytest.raises(AccessDenied, match="own"):
                await refused


async def test_token_cannot_make_one_that_permits_more(guarded: Guarded) -> None:
    admin = await guarded.as_("admin", role="admin")
    made = await admin.post("/api/tokens", json={"name": "reader", "handlers": ["add"]})
    assert made.status_code == 201
    assert (await (await guarded.by(made.json()["token"])).get("/api/me")).json()["handlers"] == ["add"]
    more = await admin.post("/api/tokens", json={"name": "seer", "payloads": True})
    assert problem(more) == (403, "not-permitted")
    bodies: list[Any] = [
        {},
        {"name": ""},
        {"name": "x", "role": "god"},
        {"name": "x", "handlers": []},
        {"name": "x", "y": 1},
    ]
    for wrong in bodies:
        assert (await admin.post("/api/tokens", json=wrong)).status_code in (400, 422), wrong
    naive = await admin.post("/api/tokens", json={"name": "x", "expires": "2030-01-01T00:00:00"})
    assert problem(naive) == (422, "value-refused")
    listed = (await admin.get("/api/tokens")).json()["tokens"]
    assert {each["name"] for each in listed} == {"admin", "reader"}
    assert "hash" not in listed[0]
    id = next(each["id"] for each in listed if each["name"] == "reader")
    assert (await admin.post(f"/api/tokens/{id}/revoke", json={})).status_code == 204
    assert problem(await admin.post("/api/tokens/nothing/revoke", json={})) == (400, "bad-option")


# --- sessions ---------------------------------------------------------------------------------------------------------
async def test_session_stands_for_its_token(guarded: Guarded) -> None:
    token = await guarded.token("ada", role="operate")
    browser = await guarded.by(None)
    begun = await browser.post("/api/session", json={"token": token})
    assert begun.status_code == 200
    cookie = begun.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert token not in begun.text + cookie
    secret = {"Perdure-Session": begun.json()["secret"]}
    assert (await browser.get("/api/me", headers=secret)).json()["means"] == "session"
    site = str(guarded.site.server.address)
    write = {**secret, "Sec-Fetch-Site": "same-origin", "Origin": site}
    assert (await browser.post("/api/workflows/add/invoke", json=3, headers=write)).status_code == 202
    attacks: list[dict[str, str]] = [
        {},  # the cookie alone, as another port of this machine would send it
        {"Perdure-Session": "x"},
        {**write, "Sec-Fetch-Site": "cross-site"},
        {**write, "Sec-Fetch-Site": "same-site"},
        {**write, "Origin": "http://127.0.0.1:1"},
        {**write, "Origin": "null"},
    ]
    for attack in attacks:
        for response in (
            await browser.get("/api/events", headers=attack),
            await browser.get("/api/me", headers=attack),
            await browser.post("/api/workflows/add/invoke", json=3, headers=attack),
        ):
            assert response.status_code in (401, 403), attack
    assert (
        await browser.delete("/api/session", headers={**write, "content-type": "application/json"})
    ).status_code == 204
    browser.cookies.set("perdure", cookie.split("=", 1)[1].split(";")[0])
    assert (await browser.get("/api/me", headers=secret)).status_code == 401


async def test_session_ends_with_its_token(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(gates, "STALE_SECONDS", 0.0)
    operations = guarded.site.client.operations
    token = await guarded.token("ada")
    browser = await guarded.by(None)
    secret = {"Perdure-Session": (await browser.post("/api/session", json={"token": token})).json()["secret"]}
    assert (await browser.get("/api/me", headers=secret)).status_code == 200
    (kept,) = await operations.tokens()
    await operations.revoke_token(kept.id)
    assert problem(await browser.get("/api/me", headers=secret)) == (401, "unauthorized")
    assert problem(await browser.post("/api/session", json={"token": token})) == (401, "unauthorized")
    assert problem(await browser.post("/api/session", json={"token": "x"})) == (401, "unauthorized")
    assert problem(await browser.post("/api/session", json={})) == (422, "value-refused")


async def test_session_needs_tokens(memory_site: Site) -> None:
    assert problem(await memory_site.post("/api/session", {"token": "x"})) == (409, "no-sessions")
    assert (await memory_site.get("/api/me")).json()["means"] == "local"


async def test_cookie_is_for_https_where_the_public_url_is() -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS, public_url="https://perdure.example")
        guarded = Guarded(site, parts)
        token = await guarded.token("ada", role="operate")
        browser = await guarded.by(None, Host="perdure.example")
        begun = await browser.post("/api/session", json={"token": token})
        cookie = begun.headers["set-cookie"]
        assert cookie.startswith("__Host-perdure=")
        assert "Secure" in cookie
        headers = {
            "Cookie": cookie.split(";")[0],
            "Perdure-Session": begun.json()["secret"],
            "Origin": "https://perdure.example",
        }
        assert (await browser.post("/api/workflows/add/invoke", json=3, headers=headers)).status_code == 202


# --- what the application is given ------------------------------------------------------------------------------------
async def test_site_with_its_own_login() -> None:
    async def login(scope: MutableMapping[str, Any]) -> Access | None:
        headers = dict(scope["headers"])
        name = headers.get(b"x-user", b"").decode()
        if name == "broken":
            raise ZeroDivisionError
        return Access(name, "operate", payloads=name == "ada") if name else None

    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS, authenticate=login)
        assert problem(await site.get("/api/me")) == (401, "unauthorized")
        assert (await site.get("/api/me", headers={"X-User": "ada"})).json()["means"] == "login"
        assert problem(await site.get("/api/me", headers={"X-User": "broken"})) == (500, "unexpected")
        assert problem(await site.get("/api/tokens", headers={"X-User": "ada"})) == (403, "not-permitted")
        ended = await site.post("/api/workflows/add/invoke?wait=30", 3, headers={"X-User": "bob"})
        assert (ended.status_code, ended.json()["result"]) == (200, None)
        ended = await site.post("/api/workflows/add/invoke?wait=30", 3, headers={"X-User": "ada"})
        assert ended.json()["result"] == 4
        assert problem(await site.post("/api/session", {"token": "x"})) == (409, "no-sessions")


async def test_application_with_tokens_of_its_own() -> None:
    kept, text = http.new_token(Access("ci", "operate", payloads=True))
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS, tokens=[kept])
        assert problem(await site.get("/api/me")) == (401, "unauthorized")
        client = await parts.enter_async_context(connect(str(site.server.address), token=text))
        assert await client.run(add, 3) == 4
        stranger = connect(str(site.server.address), token="perd_1_x")
        with pytest.raises(AccessDenied, match="unknown, expired or revoked"):
            await stranger.stats()
        await stranger.aclose()
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS, tokens=[])
        assert problem(await site.get("/api/me")) == (401, "unauthorized")  # no tokens: nobody


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tokens": ["perd_1_x"]}, r"app\(tokens=\[str\]\)"),
        ({"tokens": [], "open": True}, "give one of them"),
        ({"allowed_hosts": "example.org"}, "give a list"),
        ({"public_url": "perdure.example"}, "give a scheme and a host"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "host bits"),
        ({"trusted_proxies": "10.0.0.0/8"}, "give a list"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidOption, match=text):
        http.app(connect("memory:"), **options)


# --- where from -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "source"),
    [
        ((), "10.0.0.9", ["1.2.3.4"], "10.0.0.9"),
        (("10.0.0.0/8",), "10.0.0.9", ["1.2.3.4"], "1.2.3.4"),
        (("10.0.0.0/8",), "10.0.0.9", ["6.6.6.6, 1.2.3.4, 10.0.0.8"], "1.2.3.4"),
        (("10.0.0.0/8",), "10.0.0.9", ["6.6.6.6", "1.2.3.4"], "1.2.3.4"),
        (("10.0.0.0/8",), "10.0.0.9", [], "10.0.0.9"),
        (("10.0.0.0/8",), "9.9.9.9", ["1.2.3.4"], "9.9.9.9"),
        (("unix",), None, ["1.2.3.4"], "1.2.3.4"),
        ((), None, ["1.2.3.4"], "unix"),
        (("10.0.0.0/8",), "10.0.0.9", ["not an address"], "not an address"),
    ],
)
def test_source_is_told_by_trusted_proxies_only(
    trusted: tuple[str, ...], peer: str | None, forwarded: list[str], source: str
) -> None:
    headers = [(b"x-forwarded-for", each.encode()) for each in forwarded]
    scope: dict[str, Any] = {"type": "http", "headers": headers, "client": None if peer is None else (peer, 1)}
    assert Sources(trusted).source_of(Request(scope)) == source


# --- the audit --------------------------------------------------------------------------------------------------------
async def entries_of(client: Client) -> list[audit.Entry]:
    return [each async for link in audit.read_all(client.operations) for each in link.piece.entries]


async def test_what_was_done_is_in_the_audit(guarded: Guarded) -> None:
    ada = await guarded.as_("ada", role="admin", payloads=True)
    await ada.post("/api/workflows/add/invoke?id=one&wait=30", json=3)
    await ada.get("/api/workflows/one")
    await ada.get("/api/workflows/one/export")
    await ada.post("/api/workflows/one/purge", json={})
    await ada.post("/api/workflows/one/pause", json={})
    await ada.post("/api/session", json={"token": await guarded.token("bob")})
    client = await guarded.client("client", role="operate")
    await client.start(add.using(id="two"), 3)
    found = await entries_of(guarded.site.client)
    assert [(each.principal, each.action, each.target, each.status) for each in found] == [
        ("ada", "post_workflows_handler_invoke", "add/one", 200),
        ("ada", "get_workflows_id_export", "one", 200),
        ("ada", "post_workflows_id_purge", "one", 200),
        ("ada", "post_workflows_id_pause", "one", 404),
        ("nobody", "post_session", "bob", 200),
        ("client", "post_client_start", "add/two", 200),
    ]
    assert {each.source for each in found} == {"127.0.0.1"}
    shown = (await ada.get("/api/audit")).json()
    assert sum(len(each["entries"]) for each in shown["pieces"]) == 6
    assert (await ada.get(f"/api/audit?after={shown['next']}")).json() == {"pieces": [], "next": None}
    stranger = await guarded.by(None)
    for _ in range(gates.FAILURES_LIMIT + 3):  # nobody can fill it from outside
        await stranger.post("/api/session", json={"token": "perd_1_x"})
        await stranger.post("/api/workflows/add/invoke", json=3)
    assert len(await entries_of(guarded.site.client)) == 6


async def test_nothing_is_in_the_audit_where_nobody_has_a_name(memory_site: Site) -> None:
    await memory_site.invoke("add", 3)
    assert await entries_of(memory_site.client) == []


async def test_audit_that_was_changed_is_found_out() -> None:
    async with connect("memory:") as client:
        operations = client.operations
        entry = audit.Entry(datetime.now(UTC), "ada", "purge", "one", 200, "127.0.0.1")
        for _ in range(5):
            await audit.append(operations, [entry] * 3)
        await asyncio.gather(*(audit.append(operations, [entry]) for _ in range(5)))
        assert len(await entries_of(client)) == 20
        documents = await operations.scan_documents(audit.AUDIT, Scan())
        third = documents[2]
        changed = third.value.replace(b"ada", b"bob")
        await operations.write_documents(audit.AUDIT, [Put(third.key, changed)])
        with pytest.raises(StoreDamaged, match="piece 4 does not follow piece 3"):
            await entries_of(client)
        await operations.delete_documents(audit.AUDIT, "log\0" + third.key[1])
        with pytest.raises(StoreDamaged, match="piece 4 does not follow piece 2"):
            await entries_of(client)
        await operations.write_documents(audit.AUDIT, [Put(third.key, b"garbage")])
        with pytest.raises(StoreDamaged, match="cannot be read"):
            await entries_of(client)
        await operations.write_documents(audit.AUDIT, [Put(third.key, third.value)])
        assert await audit.remove_before(operations, datetime.now(UTC) + timedelta(seconds=1)) == 9
        assert len(await entries_of(client)) == 1
        await audit.append(operations, [entry] * (audit.ENTRIES_LIMIT + 1))
        assert len(await entries_of(client)) == audit.ENTRIES_LIMIT + 2


# --- the command line -------------------------------------------------------------------------------------------------
def test_tokens_are_made_listed_and_revoked(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/app.db"
    runner = CliRunner()

    def run(*arguments: str) -> str:
        result = runner.invoke(commands, [*arguments, *([] if arguments[1] == "make" else ["--url", url])])
        assert result.exit_code == 0, result.output
        return result.output

    made = run("token", "add", "ci", "--role", "operate", "--payloads", "--handler", "add", "--days", "7").strip()
    parts = parts_of(made)
    assert parts is not None
    (shown,) = [json.loads(line) for line in run("token", "list", "--json").splitlines()]
    assert (shown["id"], shown["name"], shown["role"], shown["limits"]) == (parts[0], "ci", "operate + payloads", "add")
    assert shown["status"] == "valid"
    assert run("token", "revoke", parts[0]) == f"Revoked {parts[0]}.\n"
    assert "revoked" in run("token", "list")
    assert commands.main(["token", "list", "--url", f"sqlite:{tmp_path}/none.db"], standalone_mode=False) == 1
    assert not (tmp_path / "none.db").exists()
    assert parts_of(run("token", "make").strip()) is not None
    assert commands.main(["token", "add", "", "--url", url], standalone_mode=False) == 2
    assert "The audit is empty." in run("audit", "--verify")


def test_server_for_other_machines_is_guarded_by_the_token_of_its_administrator(tmp_path: Path) -> None:
    text = new_token(Access("admin"))[1]
    (tmp_path / "token").write_text(f"{text}\n")
    command = [sys.executable, "-m", "perdure", "worker", PROGRAMS, "--url", "sqlite:store.db", "--http", "0.0.0.0:0"]
    environment = {**ENVIRONMENT, "PERDURE_ADMIN_TOKEN_FILE": "token"}
    refused = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "this store has no tokens" in refused.stderr
    for wrong in ("nothing", "programs.py"):
        (tmp_path / "programs.py").write_text("not a token")
        given = {**environment, "PERDURE_ADMIN_TOKEN_FILE": wrong}
        refused = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 2
        assert f"PERDURE_ADMIN_TOKEN_FILE={wrong}" in refused.stderr
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://0\.0\.0\.0:(\d+)", server.stdout.readline())
        assert found is not None
        base = f"http://127.0.0.1:{found[1]}"
        good = {"Authorization": f"Bearer {text}"}
        assert httpx.get(f"{base}/api/me").status_code == 401
        assert httpx.get(f"{base}/api/me", headers=good).json()["role"] == "admin"
        assert httpx.get(f"{base}/api/me", headers={**good, "Host": "evil.example"}).status_code == 421
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate()


def test_only_texts_of_their_form_are_tokens() -> None:
    token, text = new_token(Access("ada"))
    assert parts_of(f" {text}\n") is not None
    assert token.is_proved_by(text.split("_", 2)[2])
    for wrong in ("", "perd", "perd_", "perd__x", "perd_1_", "Perd_1_x", "perd_a b_x", "perd_é_x", "\udcff"):
        assert parts_of(wrong) is None
    with pytest.raises(InvalidOption, match="time zone"):
        new_token(Access("ada"), expires=datetime(2030, 1, 1))  # noqa: DTZ001
