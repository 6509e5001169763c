"""Lists say what an invocation waits for, since when, and in which attempt; no journal is read for that."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from perdure import Client, Context, Invocation, Retry, Workflow, connect, step, workflow
from perdure.operations.local import store_behind
from perdure.stores.memory import MemoryStore
from perdure.testing import Environment
from tests.http.processes import ENVIRONMENT

EVENTS: dict[str, asyncio.Event] = {}


class Down(Exception):
    pass


@step(retry=Retry(max_attempts=9, initial=0.01, maximum=600, factor=60_000, jitter=0))
async def charge(cents: int) -> int:
    raise Down(f"no answer about {cents}")


@step
async def hold(name: str) -> str:
    await EVENTS[name].wait()
    return name


@workflow
async def never(ctx: Context) -> str:
    return await ctx.awakeable(str)


@workflow
async def two(ctx: Context) -> str:
    first, second = ctx.awakeable(str), ctx.awakeable(str)
    return await first + await second


@workflow
async def sleeps() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(7200))
        group.create_task(asyncio.sleep(3600))


@workflow
async def has_child() -> str:
    return await never.using(id="the-child")()


@workflow
async def retries() -> int:
    return await charge(5)


@workflow
async def retries_beside(name: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(charge(5))
        group.create_task(hold(name))


@workflow
async def stuck() -> None:
    await asyncio.get_running_loop().create_future()


ALL = (never, two, sleeps, has_child, retries, retries_beside, stuck)


@pytest.fixture(params=["memory", "sqlite"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    async with connect("memory:" if request.param == "memory" else f"sqlite:{tmp_path / 'store.db'}") as client:
        yield client


async def row_of(client: Client, id: str) -> Invocation:
    """Return what a list says of an invocation."""
    return next(each for each in (await client.page(id_prefix=id)).invocations if each.id == id)


async def until(client: Client, id: str, *, attempt: int = 0, status: str = "suspended") -> Invocation:
    """Wait until a list says that an invocation has this status and attempt."""
    while ((row := await row_of(client, id)).status, row.attempt) != (status, attempt):
        await asyncio.sleep(0.005)
    return row


def close(one: datetime | None, other: datetime | None) -> bool:
    """Report whether two times are a moment apart: a replay knows the time of a frame, and not of each command."""
    assert one is not None
    assert other is not None
    return abs(one - other) < timedelta(seconds=1)


async def started(client: Client, flow: Workflow[[], object]) -> str:
    return (await client.start(flow.using(id=flow.name))).id


# --- what it waits for ------------------------------------------------------------------------------------------------
async def test_each_kind_of_wait_is_listed_as_described(client: Client) -> None:
    before = datetime.now(UTC)
    async with client.worker(*ALL):
        for flow, expected in (
            (never, "AWAKEABLE"),
            (two, "AWAKEABLE, 1 more"),
            (has_child, "CHILD:never"),
            (stuck, "something that nothing can bring: its body waits at test_waits.py"),
            (sleeps, "SLEEP until"),
        ):
            row = await until(client, await started(client, flow))
            assert row.waiting_for is not None
            assert row.waiting_for.startswith(expected)
            assert row.waiting_since is not None
            assert before - timedelta(milliseconds=1) <= row.waiting_since <= datetime.now(UTC)
            described = await client.handle(row.id).describe()
            assert described.waiting_for is not None
            assert described.waiting_for.startswith(expected.removesuffix(", 1 more"))
            assert (described.waiting_since, described.waiting_until) == (row.waiting_since, row.waiting_until)
        assert row.waiting_until is not None
        assert timedelta(seconds=3590) < row.waiting_until - before < timedelta(seconds=3700)  # the next of the two
        assert row.waiting_for == f"SLEEP until {row.waiting_until.isoformat(timespec='seconds')}, 1 more"


async def test_what_has_not_begun_waits_for_its_time_its_key_or_a_worker(client: Client) -> None:
    await client.start(never.using(id="a", delay=900))
    await client.start(never.using(id="b", key="k"))
    await client.start(never.using(id="c"))
    rows = {each.id: each for each in (await client.page()).invocations}
    assert rows["a"].waiting_for is not None
    assert rows["a"].waiting_for.startswith("its time, ")
    assert rows["a"].waiting_until == rows["a"].due
    assert rows["b"].waiting_for == "key 'k', or a worker"
    assert rows["c"].waiting_for == "a worker"
    assert all(each.waiting_since is not None for each in rows.values())


async def test_step_that_is_tried_again_is_listed_with_its_attempt_and_when_it_is_due(client: Client) -> None:
    async with client.worker(*ALL):
        row = await until(client, await started(client, retries), attempt=3)
        assert row.waiting_until is not None
        assert row.waiting_until > datetime.now(UTC) + timedelta(seconds=300)
        assert row.waiting_for == f"charge again at {row.waiting_until.isoformat(timespec='seconds')}"


async def test_back_off_is_listed_while_another_step_runs(client: Client) -> None:
    EVENTS["it"] = asyncio.Event()
    async with client.worker(*ALL):
        id = (await client.start(retries_beside.using(id="beside"), "it")).id
        row = await until(client, id, attempt=3, status="running")
        assert row.waiting_for is not None
        assert row.waiting_for.startswith("charge again at ")
        assert row.waiting_for.endswith(", 1 more")
        EVENTS["it"].set()
        row = await until(client, id, attempt=3)
        assert row.waiting_for is not None
        assert not row.waiting_for.endswith("more")


# --- how it changes ---------------------------------------------------------------------------------------------------
async def test_wait_follows_answers_pauses_and_the_end_and_keeps_its_beginning(client: Client) -> None:
    async with client.worker(*ALL):
        first = await until(client, await started(client, two))
        handle = client.handle("two")
        await handle.pause()
        row = await row_of(client, "two")
        assert (row.status, row.waiting_for) == ("paused", "resume")
        await handle.resume()
        row = await until(client, "two")
        assert (row.waiting_for, row.waiting_since) == (first.waiting_for, first.waiting_since)
        ids = [each.id for each in (await handle.describe()).awakeables]
        await client.resolve(ids[0], "a")
        while (row := await row_of(client, "two")).waiting_for != "AWAKEABLE" or row.status != "suspended":
            await asyncio.sleep(0.005)
        assert row.waiting_since == first.waiting_since  # both were asked at once
        await client.resolve(ids[1], "b")
        assert await handle.result() == "ab"
        row = await row_of(client, "two")
        assert (row.waiting_for, row.waiting_since, row.waiting_until, row.attempt) == (None, None, None, 0)


async def test_another_worker_tells_the_same(client: Client) -> None:
    async with client.worker(*ALL):
        await until(client, await started(client, two))
        await until(client, await started(client, retries), attempt=3)
    before = {each.id: each for each in (await client.page()).invocations}
    async with client.worker(*ALL):
        for id in ("two", "retries"):  # each is replayed, and rests again
            await client.handle(id).pause()
            await client.handle(id).resume()
            row = await until(client, id, attempt=before[id].attempt)
            assert (row.waiting_for, row.waiting_until) == (before[id].waiting_for, before[id].waiting_until)
            assert close(row.waiting_since, before[id].waiting_since)


async def test_worker_that_stops_leaves_what_ran_for_another_one(client: Client) -> None:
    EVENTS["stops"] = asyncio.Event()
    async with client.worker(*ALL) as worker:
        id = (await client.start(retries_beside.using(id="stops"), "stops")).id
        await until(client, id, attempt=3, status="running")
        await worker.stop(grace=0)
    row = await row_of(client, id)
    assert (row.status, row.waiting_for) == ("suspended", "a worker")


async def test_each_crash_and_replay_tells_the_same() -> None:
    async with Environment(*ALL) as env:
        handle = await env.client.start(sleeps)
        await env.advance(timedelta(seconds=1))
        row = await row_of(env.client, handle.id)
        await env.crash()
        assert await row_of(env.client, handle.id) == row
        await env.advance(timedelta(seconds=3599.5))
        later = await row_of(env.client, handle.id)
        assert later.waiting_until is not None
        assert row.waiting_until is not None
        assert later.waiting_until - row.waiting_until == timedelta(seconds=3600)
        assert close(later.waiting_since, row.waiting_since)
        assert env.crashes == 1


async def test_plain_invocation_writes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row changes when it begins and when it ends, whatever steps it has."""
    writes: list[str] = []

    def note(kind: str, _id: str) -> None:
        writes.append(kind)

    async with connect("memory:") as client:
        store = await store_behind(client.operations)
        assert isinstance(store, MemoryStore)
        async with client.worker(many):
            monkeypatch.setattr(store, "hook", note)
            await client.run(many, 5)
    assert writes.count("frame") > 2
    assert writes.count("index") == 2


@step
async def add(number: int) -> int:
    return number + 1


@workflow
async def many(count: int) -> int:
    total = 0
    for _ in range(count):
        total = await add(total)
    return total


# --- kill -9 ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
async def test_waits_are_listed_after_kill_9(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'store.db'}"
    async with connect(url) as client:
        await started(client, two)
        await started(client, retries)
    command = (sys.executable, "-m", "perdure", "worker", __file__, "--url", url)
    process = await asyncio.create_subprocess_exec(*command, env=ENVIRONMENT, stdout=DEVNULL, stderr=DEVNULL)
    try:
        view = connect(url, read_only=True)
        async with view:
            before = [await until(view, "two"), await until(view, "retries", attempt=3)]
    finally:
        process.kill()
        await process.wait()
    async with connect(url) as client:
        assert [await row_of(client, each.id) for each in before] == before
        async with client.worker(*ALL):
            await client.handle("two").pause()
            await client.handle("two").resume()
            row = await until(client, "two")
            assert row.waiting_for == before[0].waiting_for
            assert close(row.waiting_since, before[0].waiting_since)
