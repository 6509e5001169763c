"""Bulk jobs: what matches at a preview, and what becomes of it; on both embedded stores."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perdure import BulkJob, BulkPreview, Client, Context, Invocation, Retry, WaitTimeout, connect, step, workflow
from perdure.errors import (
    BadId,
    InvalidOption,
    IoInWorkflow,
    LimitExceeded,
    NewerJournal,
    StoreDamaged,
    StoreError,
    StoreUnavailable,
    UnknownJob,
)
from perdure.operations import carrying, jobs
from perdure.operations.access import Access
from perdure.operations.bulk import BULK_VERBS, BulkVerb, bulk_request
from perdure.operations.carrying import Carrier, Rights
from perdure.operations.listing import Filters
from perdure.operations.local import Local
from perdure.runtime.worker import Worker
from perdure.stores.documents import Put

is_up = False
runs: list[int] = []


@pytest.fixture(autouse=True)
def down() -> None:
    global is_up
    is_up = False
    runs.clear()


@step(retry=Retry(max_attempts=1))
async def export(number: int) -> int:
    if not is_up:
        raise ConnectionError("the warehouse is down")
    runs.append(number)
    return number


@workflow
async def report(number: int) -> int:
    return await export(number)


@workflow
async def waits(ctx: Context) -> str:
    return await ctx.awakeable(str)


@workflow
async def unserved() -> None: ...


@pytest.fixture(params=["memory:", "sqlite:{}/store.db"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Client]:
    async with connect(request.param.format(tmp_path)) as client:
        yield client


@pytest.fixture
async def in_memory() -> AsyncGenerator[Client]:
    async with connect("memory:") as client:
        yield client


def local(client: Client) -> Local:
    assert isinstance(client.operations, Local)
    return client.operations


def worker_with(client: Client, rights: Rights) -> Worker:
    operations = local(client)
    return Worker(operations.opened, [report, waits], duties=[Carrier(operations, rights).run])


async def start_failing(client: Client, count: int, prefix: str = "r") -> list[str]:
    """Run reports that fail, and return their ids."""
    group = await client.run_all(report.using(id=f"{prefix}{n}").bind(n) for n in range(count))
    assert group.failed == count
    return [f"{prefix}{n}" for n in range(count)]


async def start_waiting(client: Client, count: int) -> list[str]:
    ids = [(await client.start(waits.using(id=f"w{n}"))).id for n in range(count)]
    for id in ids:
        await until(client, id, "suspended")
    return ids


async def until(client: Client, id: str, status: str) -> Invocation:
    while (found := await client.handle(id).describe()).status != status:
        await asyncio.sleep(0.005)
    return found


def repair() -> None:
    global is_up
    is_up = True


# --- what a job does --------------------------------------------------------------------------------------------------
async def test_one_job_retries_all_that_failed_each_once(client: Client) -> None:
    async with client.worker(report):
        ids = await start_failing(client, 450)
        repair()
        preview = await client.bulk_preview("retry", status="failed", handler="report")
        assert (preview.verb, preview.count, preview.is_exact) == ("retry", 450, True)
        assert preview.filters == {"status": "failed", "handler": "report"}
        job = await client.bulk(preview)
        assert job.preview.count == 450
        found = await job.result(timeout=60)
        assert (found.state, found.matched, found.applied, found.refused) == ("done", 450, 450, 0)
        assert found.ended_at is not None
        for number, id in enumerate(ids):
            assert await client.handle(id, report).result() == number
            assert (await client.handle(id).describe()).retries == 1
    assert sorted(runs) == [*range(450)]


VERBS: dict[BulkVerb, tuple[str, str]] = {
    "pause": ("suspended", "paused"),
    "resume": ("paused", "suspended"),
    "cancel": ("suspended", "cancelled"),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_verbs_of_what_has_not_ended(client: Client, verb: BulkVerb) -> None:
    before, after = VERBS[verb]
    async with client.worker(waits):
        ids = await start_waiting(client, 3)
        if before == "paused":
            for id in ids:
                await client.handle(id).pause()
        found = await (await client.bulk(verb, handler="waits")).result(timeout=60)
        assert (found.applied, found.refused) == (3, 0)
        for id in ids:
            await until(client, id, after)


async def test_paused_ones_are_cancelled_by_force(client: Client) -> None:
    async with client.worker(waits):
        for id in await start_waiting(client, 2):
            await client.handle(id).pause()
        job = await client.bulk("cancel", force=True, status="paused")
        assert (await job.result(timeout=60)).applied == 2
        assert (await client.stats()).by_status == {"cancelled": 2}


async def test_restart_begins_new_ones_and_not_those_again(client: Client) -> None:
    async with client.worker(report):
        await start_failing(client, 3)
        repair()
        found = await (await client.bulk("restart", handler="report")).result(timeout=60)
        assert (found.matched, found.applied) == (3, 3)
        while (await client.stats()).by_status != {"failed": 3, "completed": 3}:
            await asyncio.sleep(0.005)
    assert sorted(runs) == [0, 1, 2]


async def test_purge_removes_what_has_ended_and_counts_the_rest(client: Client) -> None:
    async with client.worker(report, waits):
        await start_failing(client, 3)
        await start_waiting(client, 1)
        job = await client.bulk("purge", created_before=datetime.now(UTC) + timedelta(days=1))
        found = await job.result(timeout=60)
        assert (found.matched, found.applied, found.refused) == (4, 3, 1)
        (refusal,) = found.refusals
        assert refusal.invocation_id == "w0"
        assert "it is suspended; cancel it first" in refusal.reason
        assert (await client.stats()).total == 1


async def test_refusals_are_counted_with_their_reasons_and_stop_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "REFUSALS_LIMIT", 2)
    async with client.worker(report, waits):
        await start_failing(client, 2)
        await start_waiting(client, 4)
        await client.handle("w0").pause()
        await client.handle("w1").cancel()
        with contextlib.suppress(Exception):
            await client.handle("w1").result()
        found = await (await client.bulk("pause", id_prefix="w")).result(timeout=60)
        assert (found.matched, found.applied, found.refused, found.errors) == (4, 2, 2, 0)
        reasons = {each.invocation_id: each.reason for each in found.refusals}
        assert reasons["w0"].startswith("it is paused, and only a ")
        assert reasons["w1"].startswith("it is cancelled, and only a ")
        found = await (await client.bulk("resume", handler="report")).result(timeout=60)
        assert (found.matched, found.refused, len(found.refusals)) == (2, 2, 2)


async def test_what_no_worker_serves_is_accepted(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "APPLY_SECONDS", 0.05)
    async with client.worker(report):
        for _ in range(3):
            await client.start(unserved)
        found = await (await client.bulk("pause", handler="unserved")).result(timeout=60)
        assert (found.matched, found.applied, found.accepted) == (3, 0, 3)


async def test_tags_keys_and_times_filter(client: Client) -> None:
    async with client.worker(waits):
        await client.start(waits.using(id="a", key="k", tags={"tenant": "acme", "from": "web"}))
        await client.start(waits.using(id="b", tags={"tenant": "acme"}))
        await until(client, "b", "suspended")
        later = datetime.now(UTC)
        await client.start(waits.using(id="c"))
        filters: list[tuple[dict[str, Any], int]] = [
            ({"tags": {"tenant": "acme"}}, 2),
            ({"tags": {"tenant": "acme", "from": "web"}, "key": "k"}, 1),
            ({"created_after": later}, 1),
            ({"created_before": later, "handler": "waits"}, 2),
            ({"key": "other"}, 0),
        ]
        for given, count in filters:
            assert (await client.bulk_preview("pause", **given)).count == count
        job = await client.bulk("pause", created_before=later, tags={"tenant": "acme"})
        assert (await job.result(timeout=60)).applied == 2
        assert (await client.bulk_job(job.id)).preview.filters == job.preview.filters
        assert (await client.handle("c").describe()).status == "suspended"


# --- previews and tokens ----------------------------------------------------------------------------------------------
async def test_preview_changes_nothing_and_counts_up_to_a_limit(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client.worker(report):
        await start_failing(client, 6)
        for limit, shown in ((5, (5, False)), (6, (6, True))):
            monkeypatch.setattr(jobs, "COUNT_LIMIT", limit)
            preview = await client.bulk_preview("purge", handler="report")
            assert (preview.count, preview.is_exact) == shown
        assert (await client.stats()).total == 6
        assert [each async for each in client.bulk_jobs()] == []
        assert (await (await client.bulk(preview)).result(timeout=60)).applied == 6


async def test_what_came_or_changed_after_the_preview_is_left_alone(client: Client) -> None:
    async with client.worker(report):
        await start_failing(client, 3)
        preview = await client.bulk_preview("retry", handler="report")
        await start_failing(client, 2, "later")
        handle = client.handle("r1", report)
        await handle.retry()
        with pytest.raises(ConnectionError):
            await handle.result()
        repair()
        found = await (await client.bulk(preview)).result(timeout=60)
        assert (found.matched, found.applied) == (2, 2)
        assert await client.handle("r0", report).result() == 0
        for id, retries in (("r1", 1), ("later0", 0), ("later1", 0)):
            described = await client.handle(id).describe()
            assert (described.status, described.retries) == ("failed", retries)


async def test_what_runs_may_change_between_preview_and_pause(client: Client) -> None:
    async with client.worker(waits):
        await start_waiting(client, 2)
        preview = await client.bulk_preview("pause", handler="waits")
        await client.handle("w0").pause()
        await client.handle("w0").resume()
        assert (await (await client.bulk(preview)).result(timeout=60)).applied == 2


async def test_token_used_twice_is_one_job(client: Client) -> None:
    async with client.worker(report):
        await start_failing(client, 5)
        preview = await client.bulk_preview("retry", status="failed")
        begun = await asyncio.gather(*(client.bulk(preview) for _ in range(5)))
        (id,) = {each.id for each in begun}
        await begun[0].result(timeout=60)
        assert (await client.bulk(preview)).id == id
        assert [each.id async for each in client.bulk_jobs()] == [id]
        for n in range(5):
            described = await until(client, f"r{n}", "failed")
            assert described.retries == 1


def changed(token: str, at: int) -> str:
    other = "A" if token[at] != "A" else "B"
    return token[:at] + other + token[at + 1 :]


async def test_token_that_was_not_given_is_refused(tmp_path: Path) -> None:
    async with connect(f"sqlite:{tmp_path}/other.db") as other:
        stranger = (await other.bulk_preview("purge", status="failed")).token
    async with connect(f"sqlite:{tmp_path}/store.db") as client:
        await _refuses_forged_tokens(client, stranger)


async def _refuses_forged_tokens(client: Client, stranger: str | None) -> None:
    token = (await client.bulk_preview("purge", status="failed")).token
    assert token is not None
    wrong: list[Any] = ["", "x", "ü", "=" * 9, None, 7, stranger, token[:-4], token + "AAAA", "A" * 100_000]
    wrong += [changed(token, at) for at in range(0, len(token) - 1, 7)]
    wrong.append(base64.urlsafe_b64encode(b"\0" * 16).decode())
    for each in wrong:
        with pytest.raises(InvalidOption, match="given no such preview"):
            await client.operations.begin_bulk("purge", each)
    assert [each async for each in client.bulk_jobs()] == []


async def test_token_of_another_verb_or_of_somebody_else_or_too_late_is_refused(
    in_memory: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = in_memory.operations
    request, ada = bulk_request("retry", {"status": "failed"}), Access("ada", "operate")
    token = (await operations.preview_bulk(request, by=ada)).token
    assert token is not None
    with pytest.raises(InvalidOption, match="of a preview of retry, not of purge"):
        await operations.begin_bulk("purge", token, by=ada)
    for other in (
        None,
        Access("eve", "operate"),
        Access("ada", "admin"),
        Access("ada", "operate", handlers=("report",)),
    ):
        with pytest.raises(InvalidOption, match="by somebody else"):
            await operations.begin_bulk("retry", token, by=other)
    monkeypatch.setattr(jobs, "PREVIEW_SECONDS", -60)
    with pytest.raises(InvalidOption, match="minutes old"):
        await operations.begin_bulk("retry", token, by=ada)
    monkeypatch.undo()
    assert (await operations.begin_bulk("retry", token, by=ada)).by == "ada"
    monkeypatch.setattr(jobs, "PREVIEW_SECONDS", -60)  # what has begun is not begun anew, and an answer may be lost
    assert (await operations.begin_bulk("retry", token, by=ada)).state == "running"


@pytest.mark.parametrize(
    ("verb", "filters", "error", "text"),
    [
        ("explode", {"status": "failed"}, InvalidOption, "it is one of pause, resume"),
        ("retry", {}, InvalidOption, "give a filter"),
        ("retry", {"tags": {}}, InvalidOption, "give a filter"),
        ("retry", {"status": None}, InvalidOption, "give a filter"),
        ("retry", {"status": "faild"}, InvalidOption, "status='faild'"),
        ("retry", {"handler": ""}, BadId, "handler to look for"),
        ("retry", {"created_after": datetime(2026, 1, 1)}, InvalidOption, "time zone"),  # noqa: DTZ001
        ("retry", {"status": "failed", "force": True}, InvalidOption, "only a cancellation can be forced"),
    ],
)
async def test_wrong_requests_are_refused(
    in_memory: Client, verb: Any, filters: dict[str, Any], error: type[Exception], text: str
) -> None:
    for call in (in_memory.bulk, in_memory.bulk_preview):
        with pytest.raises(error, match=text):
            await call(verb, **filters)


async def test_wrong_uses_are_refused(in_memory: Client) -> None:
    preview = await in_memory.bulk_preview("retry", status="failed")
    either: Any = in_memory.bulk
    with pytest.raises(InvalidOption, match="give it alone"):
        await either(preview, status="failed")
    job = await in_memory.bulk(preview)
    with pytest.raises(InvalidOption, match="take a new bulk_preview"):
        await in_memory.bulk(job.preview)
    for id in ("nobody", preview.token):
        with pytest.raises(UnknownJob if id == "nobody" else BadId):
            await in_memory.bulk_job(id or "")
    with pytest.raises(UnknownJob) as unknown:
        await in_memory.operations.stop_bulk("nobody")
    assert unknown.value.job_id == "nobody"
    with pytest.raises(WaitTimeout, match="has not ended within 0 s"):
        await job.result(timeout=0)


async def test_a_body_begins_no_jobs(in_memory: Client) -> None:
    @workflow
    async def begins(which: int) -> None:
        calls: list[Callable[[], Any]] = [
            lambda: in_memory.bulk_preview("retry", status="failed"),
            lambda: in_memory.bulk("retry", status="failed"),
            lambda: in_memory.bulk_job("x"),
            lambda: anext(in_memory.bulk_jobs()),
        ]
        await calls[which]()

    async with in_memory.worker(begins):
        for which in range(4):
            with pytest.raises(IoInWorkflow, match=r"client\.bulk"):
                await in_memory.run(begins, which)


# --- jobs and workers -------------------------------------------------------------------------------------------------
class Gate:
    """Rights that let a page pass when they are told to. They hold against a prefix of ids."""

    def __init__(self, refused: str = "-") -> None:
        self.pages = 0
        self.came = asyncio.Semaphore(0)
        self.open = asyncio.Semaphore(0)
        self.refused = refused

    async def rights(self, by: Access | None, verb: BulkVerb) -> Callable[[Invocation], bool]:
        assert (by, verb) == (None, "pause")
        self.pages += 1
        self.came.release()
        await self.open.acquire()
        return lambda invocation: not invocation.id.startswith(self.refused)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "PAGE_SIZE", 2)
    monkeypatch.setattr(carrying, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(carrying, "AGAIN_SECONDS", 0.0)


async def test_job_that_is_to_stop_ends_with_what_it_has_in_hand(client: Client, small_pages: None) -> None:
    gate = Gate()
    async with worker_with(client, gate.rights):
        await start_waiting(client, 7)
        job = await client.bulk("pause", handler="waits")
        await gate.came.acquire()
        gate.open.release()
        await gate.came.acquire()
        assert (await job.progress()).matched == 2
        assert (await job.stop()).state == "stopping"
        assert (await job.stop()).state == "stopping"
        gate.open.release()
        found = await job.result(timeout=60)
        assert (found.state, found.matched, found.applied) == ("stopped", 4, 4)
        assert (await client.stats()).by_status == {"suspended": 3, "paused": 4}
        assert (await job.stop()).state == "stopped"
    assert gate.pages == 2


async def test_job_that_no_worker_has_begun_stops_at_once(client: Client) -> None:
    job = await client.bulk("retry", status="failed")
    assert (await job.stop()).state == "stopped"
    assert (await job.result(timeout=0)).matched == 0


async def test_rights_are_asked_for_each_page(client: Client, small_pages: None) -> None:
    gate = Gate(refused="w3")
    async with worker_with(client, gate.rights):
        await start_waiting(client, 5)
        for _ in range(3):
            gate.open.release()
        found = await (await client.bulk("pause", handler="waits")).result(timeout=60)
        assert (found.matched, found.applied, found.refused) == (5, 4, 1)
        assert found.refusals[0].invocation_id == "w3"
        assert "may not pause it any more" in found.refusals[0].reason
    assert gate.pages == 3


async def begin_by(client: Client, access: Access, verb: BulkVerb, filters: Filters) -> BulkJob:
    preview = await client.operations.preview_bulk(bulk_request(verb, filters), by=access)
    assert preview.token is not None
    return BulkJob(client.operations, await client.operations.begin_bulk(verb, preview.token, by=access))


async def test_job_of_a_token_that_was_revoked_is_refused(client: Client) -> None:
    ada, bob = Access("ada", "operate"), Access("bob", "operate")
    for each in (ada, bob):
        await client.operations.add_token(each)
    (token,) = [each for each in await client.operations.tokens() if each.access == ada]
    async with client.worker(waits):
        await start_waiting(client, 3)
    by_ada = await begin_by(client, ada, "pause", {"handler": "waits"})
    by_bob = await begin_by(client, bob, "pause", {"id_prefix": "w1"})
    await client.operations.revoke_token(token.id)
    async with client.worker(waits):
        found = await by_ada.result(timeout=60)
        assert (found.by, found.matched, found.refused) == ("ada", 3, 3)
        assert found.refusals[0].reason == "'ada' may not pause it any more"
        assert (await by_bob.result(timeout=60)).applied == 1
        assert (await client.stats()).by_status == {"suspended": 2, "paused": 1}


async def test_rights_are_those_of_the_token_now_or_else_those_of_the_beginning(client: Client) -> None:
    operations = local(client)
    async with client.worker(report):
        await start_failing(client, 1)
    invocation = await operations.look("r0")
    rights = carrying.rights_of(operations)
    site = Access("somebody of a site", "operate", handlers=("report",))
    expected: list[tuple[Access | None, BulkVerb, bool]] = [
        (None, "purge", True),
        (site, "retry", True),
        (site, "purge", False),
        (replace(site, handlers=("other",)), "retry", False),
        (replace(site, key_prefixes=("k",)), "retry", False),
        (Access("reader"), "retry", False),
    ]
    for by, verb, may in expected:
        assert (await rights(by, verb))(invocation) is may
    await operations.add_token(replace(site, handlers=("other",)))
    assert not (await rights(site, "retry"))(invocation)


async def test_what_somebody_may_not_see_is_neither_counted_nor_touched(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = Access("ada", "operate", handlers=("report",), key_prefixes=("mine",))
    async with client.worker(report, waits):
        await start_failing(client, 2)
        await client.start(report.using(id="mine", key="mine-1"), 1)
        await until(client, "mine", "failed")
        filters = Filters(created_before=datetime.now(UTC))
        preview = await client.operations.preview_bulk(bulk_request("retry", filters), by=limited)
        assert preview.count == 1
        found = await (await begin_by(client, limited, "retry", filters)).result(timeout=60)
        assert (found.matched, found.applied, found.refusals) == (1, 1, ())
        monkeypatch.setattr(jobs, "READ_LIMIT", 2)
        preview = await client.operations.preview_bulk(bulk_request("retry", filters), by=limited)
        assert (preview.count, preview.is_exact) == (1, False)


async def test_another_worker_goes_on_with_what_one_had_in_hand(client: Client, small_pages: None) -> None:
    first, second = Gate(), Gate()
    for _ in range(9):
        second.open.release()
    async with client.worker(waits):  # it carries out no jobs: the gates' workers do
        await start_waiting(client, 5)
    async with worker_with(client, first.rights):
        job = await client.bulk("pause", handler="waits")
        await first.came.acquire()
        first.open.release()
        await first.came.acquire()
    assert (await job.progress()).matched == 2
    async with worker_with(client, second.rights):
        found = await job.result(timeout=60)
    assert (found.state, found.matched, found.applied, found.refused) == ("done", 5, 5, 0)
    assert second.pages == 2


@pytest.mark.parametrize("verb", BULK_VERBS)
async def test_page_that_is_done_again_does_nothing_twice_and_counts_the_same(
    client: Client, small_pages: None, monkeypatch: pytest.MonkeyPatch, verb: BulkVerb
) -> None:
    """The write that counts a page fails after its verbs were applied, as if the worker had died there."""
    failures = [StoreUnavailable("away"), StoreUnavailable("away")]
    save = local(client).jobs.save

    async def failing(job: jobs.Job, revision: int) -> int:
        if job.matched and failures:
            raise failures.pop()
        return await save(job, revision)

    monkeypatch.setattr(local(client).jobs, "save", failing)
    async with client.worker(report, waits):
        if verb in ("pause", "resume", "cancel"):
            for id in await start_waiting(client, 5):
                if verb == "resume":
                    await client.handle(id).pause()
        else:
            await start_failing(client, 5)
        before = (await client.stats()).total
        found = await (await client.bulk(verb, created_before=datetime.now(UTC))).result(timeout=60)
        assert (found.state, found.matched, found.applied, found.refused) == ("done", 5, 5, 0)
        assert not failures
        if verb == "retry":
            assert {(await until(client, f"r{n}", "failed")).retries for n in range(5)} == {1}
        total = (await client.stats()).total
        assert total == {"purge": 0, "restart": 2 * before}.get(verb, before)


async def test_unforeseen_exception_of_one_is_counted_and_logged_and_the_others_go_on(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tell = local(client).tell

    async def failing(id: str, *arguments: Any, **options: Any) -> None:
        if id == "w1":
            raise ZeroDivisionError("nobody foresaw it")
        if id == "w2":
            raise NewerJournal("a newer release wrote it")
        await tell(id, *arguments, **options)

    async with client.worker(waits):
        await start_waiting(client, 4)
        monkeypatch.setattr(local(client), "tell", failing)
        found = await (await client.bulk("pause", handler="waits")).result(timeout=60)
        assert (found.matched, found.applied, found.errors) == (4, 2, 2)
        reasons = {each.invocation_id: each.reason for each in found.refusals}
        assert reasons == {
            "w1": "an unexpected ZeroDivisionError: the worker's log has it",
            "w2": "a newer release wrote it",
        }
    assert "nobody foresaw it" in caplog.text


async def test_job_that_fails_unforeseen_rests_and_goes_on_and_others_do_meanwhile(
    client: Client, small_pages: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [ZeroDivisionError("nobody foresaw it")]

    async def rights(_: Access | None, verb: BulkVerb) -> Callable[[Invocation], bool]:
        if verb == "pause" and failures:
            raise failures.pop()
        return lambda _: True

    async with worker_with(client, rights):
        await start_waiting(client, 3)
        await start_failing(client, 3)
        both = [await client.bulk("pause", handler="waits"), await client.bulk("purge", handler="report")]
        assert [(await each.result(timeout=60)).applied for each in both] == [3, 3]
    assert "unexpected exception, it goes on" in caplog.text


async def test_two_workers_of_a_client_do_a_job_once(client: Client, small_pages: None) -> None:
    async with client.worker(report), client.worker(report):
        await start_failing(client, 9)
        found = await (await client.bulk("retry", handler="report")).result(timeout=60)
        assert (found.matched, found.applied) == (9, 9)
        assert {(await until(client, f"r{n}", "failed")).retries for n in range(9)} == {1}


NEWER: dict[str, Callable[[dict[str, Any]], object]] = {
    "other": lambda job: job.clear(),
    "field": lambda job: job.update(new=1),
    "verb": lambda job: job["ticket"]["request"].update(verb="explode"),
    "option": lambda job: job["ticket"]["request"].update(new=True),
    "filter": lambda job: job["ticket"]["request"]["filters"].update(new="x"),
    "value": lambda job: job["ticket"]["request"]["filters"].update(status="new"),
}


@pytest.mark.parametrize("change", NEWER)
async def test_job_of_a_newer_release_is_left_alone_and_others_go_on(
    client: Client, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    new = await client.bulk("purge", handler="report")
    documents = (await local(client).opened()).documents
    (found,) = await documents.read(jobs.JOBS, [(jobs.PART, jobs.ACTIVE, new.id)])
    assert found is not None
    job = json.loads(found.value)
    NEWER[change](job)
    await documents.write(jobs.JOBS, [Put(found.key, json.dumps(job).encode())])
    async with client.worker(report):
        await start_failing(client, 2)
        other = await client.bulk("retry", handler="report")
        assert (await other.result(timeout=60)).applied == 2
        assert [each.id async for each in client.bulk_jobs()] == [other.id]
        with pytest.raises(UnknownJob):
            await client.bulk_job(new.id)
        assert (await client.stats()).total == 2
    assert f"bulk job {new.id} cannot be read" in caplog.text


async def test_damaged_job_is_logged_and_others_go_on(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, small_pages: None
) -> None:
    find, damaged = local(client).jobs.find, await client.bulk("purge", handler="report")
    away: list[StoreError] = [StoreUnavailable("away")]

    async def failing(id: str) -> jobs.Kept | None:
        if id == damaged.id:
            raise away.pop() if away else StoreDamaged("bytes are missing")
        return await find(id)

    monkeypatch.setattr(local(client).jobs, "find", failing)
    async with client.worker(report):
        await start_failing(client, 2)
        assert (await (await client.bulk("retry", handler="report")).result(timeout=60)).applied == 2
    assert f"bulk job {damaged.id} cannot be read: bytes are missing" in caplog.text
    assert "bulk jobs cannot be read: away; looking again" in caplog.text


async def test_jobs_are_listed_by_pages_and_old_ones_are_removed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "KEPT_LIMIT", 4)
    monkeypatch.setattr(jobs, "ACTIVE_LIMIT", 2)
    ids: list[str] = []
    for _ in range(7):
        job = await client.bulk("retry", status="failed")
        await job.stop()
        ids.insert(0, job.id)
        await asyncio.sleep(0.002)  # ids are ordered by milliseconds
    for _ in range(2):
        ids.insert(0, (await client.bulk("pause", status="running")).id)
        await asyncio.sleep(0.002)
    with pytest.raises(LimitExceeded, match="2 bulk jobs have not ended"):
        await client.bulk("pause", status="running")
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await client.operations.bulk_jobs(limit=2, cursor=cursor)
        found += [each.id for each in page.jobs]
        if (cursor := page.next) is None:
            break
    assert found == [each.id async for each in client.bulk_jobs()] == ids[: len(found)]
    assert len(found) <= 2 + 4 + 1
    with pytest.raises(BadId):
        await client.operations.bulk_jobs(limit=2, cursor="a\0b")


async def test_invocation_whose_id_was_started_anew_is_left_alone(client: Client, small_pages: None) -> None:
    gate = Gate()
    async with worker_with(client, gate.rights):
        await start_waiting(client, 1)
        job = await client.bulk("pause", handler="waits")
        await gate.came.acquire()
        await client.handle("w0").cancel()
        await until(client, "w0", "cancelled")
        await client.handle("w0").purge()
        await start_waiting(client, 1)
        gate.open.release()
        found = await job.result(timeout=60)
        assert (found.refused, found.refusals[0].reason) == (1, "its id was started anew since")
        assert (await client.handle("w0").describe()).status == "suspended"


async def test_logs_how_a_job_ends(in_memory: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "perdure.bulk"):
        async with in_memory.worker(report):
            await start_failing(in_memory, 1)
            job = await in_memory.bulk("purge", handler="report")
            await job.result(timeout=60)
    assert f"bulk job {job.id} (purge) is done: 1 applied, 0 accepted, 0 refused, 0 errors" in caplog.text
    assert repr(job) == f"BulkJob('{job.id}')"


def test_previews_and_jobs_are_of_public_types() -> None:
    assert BulkJob.progress.__doc__
    assert replace(BulkPreview("retry", {}, False, 1, True), count=2).count == 2
