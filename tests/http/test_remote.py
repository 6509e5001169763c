"""`connect("http://…")`: a full client, with exact values, over a real connection."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure import InvocationCancelled, KeyBusy, connect, http, workflow
from perdure.calls import submission_of
from perdure.client import Client
from perdure.errors import (
    AwakeableRejected,
    BadId,
    BadUrl,
    IdConflict,
    IllegalTransition,
    InvalidOption,
    PayloadTooLarge,
    QueryTooSlow,
    RevisionConflict,
    StoreClosed,
    StoreError,
    StoreUnavailable,
    UnknownInvocation,
    WaitTimeout,
)
from perdure.http.exact import CALLS, SentError, SentSubmission, decode, encode
from perdure.http.server import Server, address_of
from perdure.operations.port import Operations
from perdure.stores.sql import bounds
from perdure.testing.replay import replay
from tests.http.conftest import Site, site_on
from tests.http.processes import ENVIRONMENT, PROGRAMS, Process
from tests.http.programs import WORKFLOWS, Approval, Expense, add, echo, expense, failing, sleeping
from tests.http.test_routes import problem


@pytest.fixture
async def remote(site: Site) -> AsyncGenerator[Client]:
    async with connect(str(site.server.address)) as client:
        yield client


async def until(client: Client, id: str, status: str) -> None:
    while (await client.handle(id).describe()).status != status:
        await asyncio.sleep(0.01)


async def test_runs_starts_and_waits(remote: Client) -> None:
    assert await remote.run(add, 3) == 4
    handle = await remote.start(sleeping.using(id="s", timeout=500), 60)
    with pytest.raises(WaitTimeout) as caught:
        await handle.result(timeout=0.05)
    assert caught.value.invocation_id == "s"
    assert (await remote.start(sleeping.using(id="s", timeout=500), 60)).id == "s"
    with pytest.raises(IdConflict) as conflict:
        await remote.start(sleeping.using(id="s"), 61)
    assert conflict.value.invocation_id == "s"
    await handle.cancel()
    with pytest.raises(InvocationCancelled):
        await handle.result()


@pytest.mark.parametrize(
    "value",
    [
        *(None, 1.0, 2**63, float("inf"), b"\x00\xff", "ü", [], {"$perdure": 1}, {1: b"x"}),
        datetime(2026, 11, 30, 12, tzinfo=UTC),
    ],
)
async def test_values_are_exact(remote: Client, value: Any) -> None:
    found = await remote.run(echo, value)
    assert found == value
    assert type(found) is type(value)


async def test_failure_has_its_class(remote: Client) -> None:
    with pytest.raises(ValueError, match="no luck"):
        await remote.run(failing)


async def test_delays_keys_and_tags(remote: Client) -> None:
    later = timedelta(hours=1)
    handle = await remote.start(add.using(key="k", delay=later, tags={"a": "b"}), 1)
    await remote.start(add.using(delay=datetime.now(UTC) + later), 2)
    await remote.start(add.using(delay=3_600), 3)
    found = await handle.describe()
    assert (found.status, found.key, found.tags) == ("scheduled", "k", {"a": "b"})
    assert [each.id async for each in remote.list(tags={"a": "b"}, status="scheduled")] == [handle.id]
    assert len([each async for each in remote.list(limit=2)]) == 2
    page = await remote.page(limit=2)
    assert len((await remote.page(cursor=page.next)).invocations) == 1
    assert (await remote.stats()).by_status == {"scheduled": 3}


async def test_start_that_is_not_to_wait_for_its_key(remote: Client) -> None:
    holder = await remote.start(sleeping.using(key="k"), 60)
    with pytest.raises(KeyBusy) as refused:
        await remote.run(add.using(key="k", when_busy="reject"), 1)
    assert (refused.value.key, refused.value.holder) == ("k", holder.id)
    assert await remote.run(add.using(key="k", when_busy="rollback"), 1) == 2
    with pytest.raises(InvocationCancelled):
        await holder.result()


async def test_awakeables_are_listed_resolved_and_rejected(remote: Client) -> None:
    first = await remote.start(expense, Expense(Decimal("1.5"), at=datetime(2026, 1, 1, tzinfo=UTC)))
    second = await remote.start(expense.using(key="k"), Expense(Decimal(2)))
    for each in (first, second):
        await until(remote, each.id, "suspended")
    found = {each.invocation_id: each.id async for each in remote.awakeables(assignee="finance")}
    await remote.resolve(found[first.id], Approval(True))
    assert await first.result() == "approved"
    await remote.reject(found[second.id], "too much")
    with pytest.raises(AwakeableRejected) as rejected:
        await second.result()
    assert rejected.value.reason == "too much"
    with pytest.raises(BadId):
        await remote.resolve("x", 1)
    assert await remote.state("k") == {"amount": "2"}
    assert not [each async for each in remote.awakeables()]
    assert len([each async for each in remote.awakeables(open=None)]) == 2


async def test_operations_on_an_invocation(remote: Client) -> None:
    handle = await remote.start(sleeping, 60)
    await until(remote, handle.id, "suspended")
    await handle.pause()
    with pytest.raises(IllegalTransition) as illegal:
        await handle.pause()
    assert illegal.value.status == "paused"
    await handle.resume()
    await handle.cancel(force=True)
    again = await handle.restart(sleeping.bind(0))
    assert await again.result() == "slept"
    replay(sleeping, await again.export())
    await again.purge()
    with pytest.raises(UnknownInvocation) as unknown:
        await again.describe()
    assert unknown.value.invocation_id == again.id
    failed = await remote.start(failing)
    await until(remote, failed.id, "failed")
    await failed.retry()


async def test_documents(remote: Client) -> None:
    notes = remote.documents("notes", Expense)
    revision = await notes.put("a/1", Expense(Decimal(1)))
    with pytest.raises(RevisionConflict):
        await notes.put("a/1", Expense(Decimal(2)), if_revision=revision + 7)
    await notes.put("a/2", Expense(Decimal(3)), if_revision=0)
    assert [each.value.amount async for each in notes.range("a/", reverse=True)] == [3, 1]
    found = await notes.get("a/1")
    assert found is not None
    assert (found.key, found.value, found.revision) == ("a/1", Expense(Decimal(1)), revision)
    assert await notes.get("b/1") is None
    await notes.delete("a/1")
    assert await notes.delete_range("a/") == 1


async def test_watches(remote: Client) -> None:
    changes = remote.watch(handler="add")
    first = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.1)
    handle = await remote.start(add, 1)
    assert (await first).id == handle.id
    await changes.aclose()
    waiting = await remote.start(sleeping, 0.2)
    assert [each.status async for each in waiting.watch()][-1] == "completed"


async def test_groups(remote: Client) -> None:
    group = await remote.run_all([add.bind(n) for n in range(5)])
    assert group.values() == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_sync_door(tmp_path: Path) -> None:
    server = Process(tmp_path, "worker", PROGRAMS)
    client = connect(server.base)
    with client.blocking() as wait:
        assert wait(client.run(add, 1)) == 2
    server.stop(signal.SIGTERM)


async def test_other_urls(tmp_path: Path) -> None:
    async with AsyncExitStack() as parts:
        await site_on(parts, "memory:", *WORKFLOWS, address=f"unix:{tmp_path}/s.sock")
        async with connect(f"http+unix:{tmp_path}/s.sock") as client:
            assert await client.run(add, 1) == 2
    for url in ("http:", "https://", "http:///"):
        with pytest.raises(BadUrl):
            connect(url)


async def test_client_of_a_server_has_no_worker_and_makes_no_backup(remote: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="connect to the store itself"):
        remote.worker(add)
    with pytest.raises(StoreError, match="where the store is"):
        await remote.backup(tmp_path / "copy.db")
    await remote.aclose()
    with pytest.raises(StoreClosed):
        await remote.stats()


async def test_client_goes_on_when_the_server_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS)
        client = await parts.enter_async_context(connect(str(site.server.address)))
        port = site.server.address.port
        waiting = asyncio.create_task(client.run(sleeping, 1.5))
        changes = client.watch()
        first = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0.2)
        await site.server.stop()
        starting = asyncio.create_task(client.run(add, 1))
        await asyncio.sleep(0.7)
        await parts.enter_async_context(Server(http.app(site.client), address_of(str(port))))
        assert await starting == 2
        assert await waiting == "slept"
        assert (await first).handler in ("sleeping", "add")
        await changes.aclose()
    assert "cannot be reached" in caplog.text


async def test_server_that_is_away_is_waited_for_no_longer_than_said() -> None:
    async with connect("memory:") as client, Server(http.app(client), address_of("0")) as server:
        address = str(server.address)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        async with connect(address, timeout=0.2):
            pass
    async with AsyncExitStack() as parts:
        server = await parts.enter_async_context(Server(http.app(connect("memory:")), address_of("0")))
        client = await parts.enter_async_context(connect(str(server.address), timeout=0.2))
        await server.stop()
        with pytest.raises(StoreUnavailable, match=r"cannot be reached.*, for 0\.2 s"):
            await client.stats()


async def test_what_is_not_our_server_is_told_so() -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    async with connect("memory:") as client, Server(http.app(client), address_of("0")) as server:
        vars(server)["_server"].config.loaded_app = other
        with pytest.raises(StoreError, match="not the HTTP API of Perdure"):
            async with connect(str(server.address)):
                pass


async def test_wrong_arguments_are_refused(memory_site: Site) -> None:
    for body in (b"", b"\xc1", encode([1, 2, 3]), encode({"a": 1})):
        response = await memory_site.send("/api/client/look", body, content_type="application/msgpack")
        assert problem(response) == (422, "value-refused")
    response = await memory_site.send("/api/client/look", encode(["x"]))
    assert problem(response) == (415, "wrong-content-type")


async def test_many_starts_are_accepted_together(remote: Client) -> None:
    starts = [submission_of(add.using(id=f"s{n}"), (n,), {}) for n in range(20)]
    await remote.operations.start_all(starts)
    assert await remote.handle("s19", add).result() == 20
    with pytest.raises(IdConflict):
        await remote.operations.start_all([submission_of(add.using(id="s3"), (9,), {})])


@pytest.mark.slow
def test_command_line_works_over_a_server(tmp_path: Path) -> None:
    server = Process(tmp_path, "worker", PROGRAMS)
    url = ("--url", server.base)

    def perdure(*arguments: str) -> str:
        command = [sys.executable, "-m", "perdure", *arguments]
        ran = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert perdure("run", f"{PROGRAMS}:add", "3", "--no-worker", *url) == "4\n"
    with connect(server.base).blocking() as wait:
        client = connect(server.base)
        handle = wait(client.start(expense.using(id="e"), Expense(Decimal(1))))
        wait(client.aclose())
    while not (awakeable := perdure("awakeables", "--quiet", *url).strip()):
        pass
    assert perdure("list", "--quiet", "--status", "suspended", *url) == "e\n"
    assert "AWAKEABLE" in perdure("journal", "e", *url)
    perdure("pause", "e", *url)
    perdure("resume", "e", *url)
    perdure("resolve", awakeable, '{"approved": true}', *url)
    while "completed" not in perdure("show", handle.id, *url):
        pass
    assert "2 in all" in perdure("stats", *url)
    server.stop(signal.SIGTERM)


async def test_large_values_pass_and_too_large_ones_are_refused(memory_site: Site) -> None:
    async with connect(str(memory_site.server.address)) as remote:
        value = b"x" * 20_000_000
        assert await remote.run(echo, value) == value
        with pytest.raises(PayloadTooLarge):
            await remote.start(echo, b"x" * 70_000_000)
        with pytest.raises(PayloadTooLarge):
            await remote.start(echo, b"x" * 90_000_000)


async def test_message_waits_as_long_as_it_is_told(remote: Client) -> None:
    handle = await remote.start(unserved)
    with pytest.raises(WaitTimeout):
        await handle.pause(timeout=0.05)


async def test_watch_tells_what_changed_while_the_server_was_away() -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS)
        client = await parts.enter_async_context(connect(str(site.server.address)))
        changes = client.watch()
        first = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0.2)
        await site.server.stop()
        await site.client.run(add.using(id="between"), 1)
        await asyncio.sleep(0.1)
        port = site.server.address.port
        await parts.enter_async_context(Server(http.app(site.client), address_of(str(port))))
        assert (await first).id == "between"
        await changes.aclose()


@pytest.mark.parametrize("url", ["http://h:99999", "http://h:1/x?y", "http://h:x", "http://h/#a"])
def test_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(BadUrl):
        connect(url)


@pytest.mark.parametrize("option", ["user", "tls_ca", "replicas", "index", "payload_limit"])
def test_option_of_a_store_is_refused_for_a_server(option: str) -> None:
    options: dict[str, Any] = {option: 3}
    with pytest.raises(InvalidOption, match=rf"connect\({option}=…\) is for a store"):
        connect("http://127.0.0.1:8080", **options)


async def test_what_no_store_can_hold_is_refused_by_the_routes_of_clients(memory_site: Site) -> None:
    def start(**changes: Any) -> Any:
        sent = SentSubmission.of(submission_of(add.using(id="x"), (1,), {}))
        return ("start", [msgspec.structs.replace(sent, **changes)])

    wrong: list[Any] = [
        *(start(id=id) for id in ("", "..", "stats", "a\0b", "x" * 500)),
        *(
            start(handler=""),
            start(key=""),
            start(timeout=-5.0),
            start(tags=(("", ""),)),
            start(tags=(("a", "b"),) * 2),
            start(when_busy="wait"),
            start(when_busy="reject"),
        ),
        *(("page", [{}, limit, None]) for limit in (-1, 0, 2**62)),
        ("awakeables", [{}, -1, None]),
        ("write_documents", ["c", [["Nope", ["a"], b"", None]], None]),
    ]
    for name, arguments in wrong:
        response = await memory_site.send(f"/api/client/{name}", encode(arguments), content_type="application/msgpack")
        assert response.status_code in (400, 422), (name, arguments, response.status_code)
    assert (await memory_site.get("/api/workflows/stats")).json()["total"] == 0


def test_every_operation_of_the_port_has_a_route() -> None:
    ours = {name for name in vars(Operations) if not name.startswith("_")}
    elsewhere = {"open", "aclose", "run", "backup", "result", "watch", "watch_all", "stream"}
    assert ours - elsewhere == {*CALLS} - {"begin_bulk_purge"}  # the same as begin_bulk, for another role


def test_errors_keep_class_text_and_attributes() -> None:
    error = IllegalTransition("t", invocation_id="i", reason="r", status="paused")
    restored = decode(encode(SentError.of(error)), SentError).restored()
    assert type(restored) is IllegalTransition
    assert (str(restored), restored.invocation_id, restored.status) == ("t", "i", "paused")
    for name in ("Conflicting", "annotations", "TurnClosed"):
        assert type(SentError(name, "t", {}).restored()).__name__ == "PerdureError"


@workflow
async def unserved() -> None: ...


async def test_start_of_a_workflow_that_nobody_serves_waits_for_a_worker(remote: Client) -> None:
    handle = await remote.start(unserved)
    assert (await handle.describe()).status == "pending"


@pytest.mark.parametrize("path", ["/api/workflows", "/api/awakeables"])
async def test_list_that_takes_too_long_is_stopped_over_http_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, f"sqlite:{tmp_path}/store.db", *WORKFLOWS)
        remote = await parts.enter_async_context(connect(str(site.server.address)))
        ids = [(await site.client.start(expense, Expense(Decimal(n), "Ada"))).id for n in range(3)]
        for id in ids:
            await until(site.client, id, "suspended")
        with monkeypatch.context() as patched:
            patched.setattr(bounds, "CHECK_STEPS", 1)
            patched.setattr("perdure.http.api.QUERY_SECONDS", 0.0)
            patched.setattr("perdure.http.exact.QUERY_SECONDS", 0.0)
            response = await site.get(path)
            assert problem(response) == (503, "query-too-slow")
            assert response.headers["retry-after"] == "1"
            assert "narrow the filter" in response.json()["detail"]
            with pytest.raises(QueryTooSlow) as stopped:
                await remote.operations.page({}, limit=1) if path.endswith("workflows") else await anext(
                    remote.awakeables()
                )
            assert stopped.value.seconds == 0.0
            assert len([each async for each in site.client.list()]) == len(ids)
            assert (await remote.handle(ids[0]).describe()).status == "suspended"  # other reads go on
            assert await remote.run(add, 1) == 2
        assert len([each async for each in remote.list(handler="expense")]) == len(ids)
