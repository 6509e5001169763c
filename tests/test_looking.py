"""Looking at invocations: lists and pages, watching by push, descriptions; on both embedded stores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from perdure import Client, Context, Invocation, Retry, WaitTimeout, connect, step, workflow
from perdure.connect import client_from
from perdure.errors import BadId, InvalidOption, StoreClosed, Unencodable, UnknownInvocation
from perdure.operations.describe import from_journal
from perdure.operations.listing import PAGE_LIMIT
from perdure.operations.local import store_behind
from perdure.stores import notices
from perdure.stores.memory import MemoryStore
from perdure.testing import Environment


class Down(Exception):
    pass


@step(retry=Retry(max_attempts=3, initial=600, maximum=600, jitter=0))
async def charge(cents: int) -> int:
    raise Down(f"no answer about {cents}")


@step
async def note(text: str) -> str:
    return text


@workflow
async def hello(name: str) -> str:
    return f"Hello, {name}!"


@workflow
async def approval(ctx: Context) -> str:
    ctx.set("cart", ["a"])
    await note("asked")
    return await ctx.awakeable(str)


@workflow
async def waits(ctx: Context) -> None:
    sent = ctx.send(hello, "sent")
    async with asyncio.TaskGroup() as group:
        group.create_task(charge(5))
        group.create_task(hello.using(id="child", delay=900)(sent))
        group.create_task(asyncio.sleep(3600))


@workflow
async def busy() -> None:
    async with asyncio.TaskGroup() as group:
        for n in range(8):
            group.create_task(asyncio.sleep(3600 + n))


@workflow
async def sleeps_twice() -> str:
    await asyncio.sleep(60)
    await note("between")
    await asyncio.sleep(60)
    return "rested"


SERVED = (hello, approval, waits, busy, sleeps_twice)


@pytest.fixture(params=["memory", "sqlite"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    async with connect("memory:" if request.param == "memory" else f"sqlite:{tmp_path / 'store.db'}") as client:
        yield client


async def ids_of(invocations: AsyncIterator[Invocation]) -> list[str]:
    return [each.id async for each in invocations]


async def started(client: Client, *ids: str) -> None:
    for id in ids:
        await client.start(hello.using(id=id), "x")


# --- lists ------------------------------------------------------------------------------------------------------------
async def test_list_streams_all_pages_newest_first(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.client.LIST_BATCH", 3)
    ids = [f"i{n}" for n in range(10)]
    await started(client, *ids)
    assert await ids_of(client.list()) == ids[::-1]
    for limit in (1, 3, 4, 10, 11):
        assert await ids_of(client.list(limit=limit)) == ids[::-1][:limit]


async def test_pages_go_on_where_the_last_one_ended_while_new_ones_arrive(client: Client) -> None:
    ids = [f"i{n}" for n in range(7)]
    await started(client, *ids)
    seen: list[str] = []
    cursor = None
    while True:
        page = await client.page(limit=3, cursor=cursor)
        seen += [each.id for each in page.invocations]
        await started(client, f"new{len(seen)}")
        if (cursor := page.next) is None:
            break
        assert await ids_of(client.list(cursor=cursor)) == [*reversed(ids)][len(seen) :]
    assert seen == ids[::-1]


async def test_last_page_has_no_next_even_when_it_is_full(client: Client) -> None:
    await started(client, "a", "b")
    assert (await client.page(limit=2)).next is None
    assert (await client.page(limit=1)).next is not None
    assert (await client.page(status="failed")).invocations == ()


async def test_filters_choose_and_go_together(client: Client) -> None:
    before = datetime.now(UTC)
    await started(client, "job-1", "job-2")
    between = datetime.now(UTC)
    await client.start(approval.using(id="job-3", delay=900))
    assert await ids_of(client.list(handler="approval")) == ["job-3"]
    assert await ids_of(client.list(status="pending")) == ["job-2", "job-1"]
    assert await ids_of(client.list(id_prefix="job-", status="scheduled", handler="approval")) == ["job-3"]
    assert await ids_of(client.list(created_after=between)) == ["job-3"]
    assert await ids_of(client.list(created_after=before, created_before=between)) == ["job-2", "job-1"]
    assert await ids_of(client.list(created_before=before)) == []
    assert await ids_of(client.list(handler="hello", key="k")) == []


async def test_cursor_of_other_filters_is_refused(tmp_path: Path) -> None:
    after = datetime.now(UTC) - timedelta(hours=1)
    filters: list[dict[str, Any]] = [
        {},
        {"status": "scheduled"},
        {"handler": "hello"},
        {"key": "k"},
        {"id_prefix": "p"},
        {"tags": {"a": "b"}},
        {"created_after": after},
        {"created_before": after + timedelta(hours=2)},
    ]
    async with connect(f"sqlite:{tmp_path}/store.db") as client:
        for n in range(2):
            await client.start(hello.using(id=f"p{n}", key="k", delay=900, tags={"a": "b"}), "x")
        cursors = [(await client.page(limit=1, **each)).next for each in filters]
        assert None not in cursors
        for n, cursor in enumerate(cursors):
            for m, each in enumerate(filters):
                if n == m:
                    assert len((await client.page(cursor=cursor, **each)).invocations) == 1
                    continue
                with pytest.raises(InvalidOption, match="other filters"):
                    await client.page(cursor=cursor, **each)
                with pytest.raises(InvalidOption, match="other filters"):
                    client.list(cursor=cursor, **each)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"status": "faild"}, InvalidOption),
        ({"status": ["failed"]}, InvalidOption),
        ({"handler": ""}, BadId),
        ({"handler": 7}, BadId),
        ({"key": "a\nb"}, BadId),
        ({"id_prefix": ""}, BadId),
        ({"created_after": datetime(2030, 1, 1)}, InvalidOption),  # noqa: DTZ001  that is the point
        ({"created_before": 1.0}, InvalidOption),
        ({"limit": 0}, InvalidOption),
        ({"limit": -1}, InvalidOption),
        ({"limit": 1.5}, InvalidOption),
        ({"limit": True}, InvalidOption),
        ({"cursor": "not one"}, InvalidOption),
        ({"cursor": "ä"}, InvalidOption),
        ({"cursor": ""}, InvalidOption),
        ({"cursor": 5}, InvalidOption),
    ],
    ids=str,
)
async def test_wrong_filters_are_refused_at_the_call_and_named(wrong: dict[str, Any], error: type[Exception]) -> None:
    client = connect("memory:")
    with pytest.raises(error, match=next(iter(wrong))):
        client.list(**wrong)
    with pytest.raises(error, match=next(iter(wrong))):
        await client.page(**wrong)


async def test_page_above_its_limit_is_refused() -> None:
    with pytest.raises(InvalidOption, match="1,000"):
        await connect("memory:").page(limit=PAGE_LIMIT + 1)


async def test_stats_count_by_status_and_by_handler(client: Client) -> None:
    await started(client, "a", "b")
    await client.start(approval.using(delay=900))
    stats = await client.stats()
    assert stats.total == 3
    assert stats.by_status == {"pending": 2, "scheduled": 1}
    assert stats.by_handler == {"hello": 2, "approval": 1}


# --- watching ---------------------------------------------------------------------------------------------------------
async def test_handle_is_watched_from_its_present_status_to_its_end(client: Client) -> None:
    handle = await client.start(approval.using(id="a"))
    seen: list[str] = []
    worker = client.worker(*SERVED)
    async with asyncio.timeout(60):
        async for state in handle.watch():
            seen.append(state.status)
            if seen == ["pending"]:
                await worker.__aenter__()
            if state.status == "suspended" and "paused" not in seen:
                await handle.pause()
            if state.status == "paused":
                await handle.resume()
            if state.status == "suspended" and "paused" in seen:
                await client.resolve((await handle.describe()).awakeables[0].id, "yes")
    assert seen[0] == "pending"
    assert seen[-1] == "completed"
    without_running = [status for status in seen if status != "running"]
    assert without_running == ["pending", "suspended", "paused", "suspended", "completed"]
    assert [state.status async for state in handle.watch()] == ["completed"]
    await worker.stop()


async def test_unknown_invocation_cannot_be_watched(client: Client) -> None:
    with pytest.raises(UnknownInvocation, match="nobody"):
        await anext(client.handle("nobody").watch())


async def test_many_watch_one_and_none_sees_time_go_back(client: Client) -> None:
    order = ["pending", "running", "suspended", "paused", "cancelled"]

    async def follow(id: str) -> list[str]:
        return [state.status async for state in client.handle(id).watch()]

    async with client.worker(*SERVED), asyncio.timeout(60):
        following: list[asyncio.Task[list[str]]] = []
        for n in range(30):
            await client.start(approval.using(id=f"a{n}"))
            for _ in range(5):
                following.append(asyncio.create_task(follow(f"a{n}")))
                await asyncio.sleep(0)
        for n in range(30):
            await client.handle(f"a{n}").pause()
            await client.handle(f"a{n}").cancel(force=True)
        for seen in await asyncio.gather(*following):
            assert seen[-1] == "cancelled"
            places = [order.index(status) for status in seen if status != "running"]
            assert places == sorted(set(places)), seen


async def test_watch_tells_of_all_that_pass_the_filter(client: Client) -> None:
    async with asyncio.timeout(60), client.worker(*SERVED), aclosing(client.watch(status="completed")) as watching:
        first = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        for name in ("a", "b", "c"):
            await client.run(hello.using(id=name), name)
        await client.start(approval)
        seen = {(await first).id}
        while seen < {"a", "b", "c"}:  # one may be told twice
            seen.add((await anext(watching)).id)
        assert seen == {"a", "b", "c"}


async def test_watcher_that_falls_too_far_behind_reads_the_index(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "CHANGES_LIMIT", 5)
    monkeypatch.setattr("perdure.stores.sqlite.store.CHANGES_LIMIT", 5)
    await started(client, "old")
    async with asyncio.timeout(60), aclosing(client.watch(handler="hello")) as watching:
        first = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0.01)
        await asyncio.gather(*(started(client, f"i{n}") for n in range(50)))
        seen = {(await first).id}
        while len(seen) < 50:
            seen.add((await anext(watching)).id)
        assert "old" not in seen


async def test_watcher_whose_clock_is_ahead_misses_nothing_that_it_reads_from_the_index() -> None:
    """A change bears the time of who made it: on a shared store, of another process."""

    class SharedMemory(MemoryStore):
        def now(self) -> float:
            return time.time() + 20.0

    store = SharedMemory()
    store.clocks_apart = 60.0
    async with client_from(lambda: store) as client, asyncio.timeout(60), aclosing(client.watch()) as watching:
        await client.stats()
        clock, store.clock = store.clock, cast("Any", store)
        first = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        store.clock = clock
        await started(client, "missed")
        cast("Any", store)._notices.missed()  # noqa: SLF001  as after a new connection
        assert (await first).id == "missed"


async def test_watch_ends_with_the_store(client: Client) -> None:
    await started(client, "a")
    one, many = client.handle("a").watch(), client.watch()
    assert (await anext(one)).status == "pending"
    waiting = [asyncio.ensure_future(anext(each)) for each in (one, many)]
    await asyncio.sleep(0.01)
    await client.aclose()
    for each in waiting:
        with pytest.raises(StoreClosed):
            await asyncio.wait_for(each, 60)


async def test_feed_is_dropped_when_its_reader_leaves(client: Client) -> None:
    handle = await client.start(hello.using(id="a"), "x")
    store = cast("Any", await store_behind(client.operations))
    async with aclosing(handle.watch()) as watching:
        await anext(watching)
        assert store._notices.watched  # noqa: SLF001  what is kept for readers cannot be seen from outside
    assert not store._notices.watched  # noqa: SLF001


async def test_time_jumps_for_who_watches_one_invocation() -> None:
    async with Environment(*SERVED) as env, asyncio.timeout(60):
        handle = await env.client.start(sleeps_twice)
        seen = [state.status async for state in handle.watch()]
        assert seen[-1] == "completed"
        assert await handle.result() == "rested"


# --- descriptions -----------------------------------------------------------------------------------------------------
async def test_description_says_all_that_an_operator_asks() -> None:
    async with Environment(*SERVED) as env:
        began = datetime.fromtimestamp(env.clock.now(), UTC)
        handle = await env.client.start(waits.using(id="w", timeout=7200))
        await env.settle()
        info = await handle.describe()
        assert (info.status, info.retries, info.parent_id, info.mail) == ("suspended", 0, None, ())
        assert (info.started_at, info.ended_at, info.deadline) == (began, None, began + timedelta(hours=2))
        sent, failing, child, sleeping = info.journal
        assert (sent.step_type, sent.status) == ("SEND:hello", "completed")
        assert (await env.client.handle(sent.invocation_id or "").describe()).input == {"name": "sent"}
        assert (failing.step_type, failing.status, failing.attempts) == ("charge", "pending", 1)
        assert failing.error == f"{Down.__module__}.Down: no answer about 5"
        assert failing.due == began + timedelta(seconds=600)
        assert (child.step_type, child.invocation_id) == ("CHILD:hello", "child")
        assert (await env.client.handle("child").describe()).parent_id == "w"
        assert sleeping.due == began + timedelta(hours=1)
        assert info.current_step == failing
        assert info.waiting_for == (
            f"charge again at {(began + timedelta(minutes=10)).isoformat(timespec='seconds')}, CHILD:hello, "
            f"SLEEP until {(began + timedelta(hours=1)).isoformat(timespec='seconds')}"
        )
        await env.advance(600)
        assert (await handle.describe()).journal[1].attempts == 2


async def test_description_of_one_that_is_cancelled_or_waits_for_much() -> None:
    async with Environment(*SERVED) as env:
        handle = await env.client.start(busy.using(id="b"))
        await env.settle()
        assert ((await handle.describe()).waiting_for or "").endswith("3 more")
        await handle.cancel()
        info = await handle.describe()
        assert info.status == "cancelled"
        assert info.cancel_requested_at is not None
        assert info.ended_at is not None
        assert (info.waiting_for, info.current_step) == (None, None)


async def test_failed_one_shows_its_traceback() -> None:
    async with Environment(*SERVED) as env:
        handle = await env.client.start(waits)
        with pytest.raises(BaseExceptionGroup):
            await handle.result()
        info = await handle.describe()
        assert "Down" in (info.traceback or "")
        assert info.ended_at is not None
        assert "ExceptionGroup" in (info.error or "")


async def test_values_that_do_not_decode_do_not_keep_the_rest_from_being_shown(client: Client) -> None:
    handle = await client.start(hello.using(id="a"), "x")
    store = await store_behind(client.operations)
    described = await store.start("a")
    assert described is not None
    row = await store.row("a")
    assert row is not None
    info = from_journal(row, replace(described, input=b"\xc1"), (), (), b"", served=None)
    assert info.input == {"": "<1 bytes that do not decode>"}
    assert info.waiting_for == "a worker that serves workflow 'hello', or a free slot of it"
    assert (await handle.describe()).input == {"name": "x"}


# --- messages that nobody applies yet ---------------------------------------------------------------------------------
async def test_message_that_nobody_applies_is_accepted_and_shown(client: Client) -> None:
    handle = await client.start(approval.using(id="a"))
    with pytest.raises(WaitTimeout, match="accepted, and not yet applied after 0 s"):
        await handle.pause(timeout=0)
    with pytest.raises(WaitTimeout):
        await handle.resume(timeout=timedelta(seconds=0.01))
    assert (await handle.describe()).mail == ("pause", "resume")
    async with client.worker(*SERVED), asyncio.timeout(60):
        async for state in handle.watch():
            if state.status == "suspended" and not (await handle.describe()).mail:
                break


async def test_messages_that_no_journal_can_hold_are_refused_before_they_are_sent(client: Client) -> None:
    handle = await client.start(approval.using(id="a"))
    async with client.worker(*SERVED), asyncio.timeout(60):
        while not (opened := (await handle.describe()).awakeables):
            await asyncio.sleep(0.01)
        with pytest.raises(InvalidOption, match="reason"):
            await client.reject(opened[0].id, cast("str", 5))
        with pytest.raises(Unencodable, match="reason"):
            await client.reject(opened[0].id, "\ud800")
        with pytest.raises(InvalidOption, match="timeout"):
            await handle.cancel(timeout=-1)
        await client.resolve(opened[0].id, "yes")
        assert await handle.result() == "yes"
