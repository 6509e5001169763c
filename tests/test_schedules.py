"""Schedules on the engine: on a clock that jumps, and on real stores with several workers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perdure import Client, Context, Schedule, ScheduleInfo, Worker, connect, step, workflow
from perdure.connect import worker_of
from perdure.core.schedule import Overlap, Record, Run, decode_record, encode_record
from perdure.errors import (
    BadId,
    InvalidOption,
    IoInWorkflow,
    LimitExceeded,
    PayloadTooLarge,
    ScheduleBusy,
    StoreError,
    StoreFull,
    UnknownInvocation,
    UnknownSchedule,
)
from perdure.operations import scheduling
from perdure.operations.local import Local, store_behind
from perdure.operations.schedules import Trigger
from perdure.runtime.scheduled import SCHEDULES
from perdure.stores.documents import Put
from perdure.testing import Environment

WEEK = timedelta(days=7)
ran: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def forget() -> None:
    ran.clear()


@step
async def note(id: str) -> None:
    ran[id] += 1


@workflow
async def report(ctx: Context, what: str = "all") -> str:
    await note(ctx.invocation_id)
    return f"{what} of {ctx.invocation_id}"


@workflow
async def long(ctx: Context, seconds: float) -> str:
    try:
        await asyncio.sleep(seconds)
        return ctx.invocation_id
    except asyncio.CancelledError:
        await note(f"end of {ctx.invocation_id}")
        raise


@workflow
async def approved(ctx: Context) -> str:
    return await ctx.awakeable(str)


@pytest.fixture
async def env() -> AsyncGenerator[Environment]:
    async with Environment(report, long, approved) as environment:
        yield environment


def ticks(name: str, first: str, *more: str) -> list[str]:
    return [f"{name}@{each}Z" for each in (first, *more)]


async def started(client: Client, prefix: str = "") -> list[str]:
    """The ids of what was started, the oldest first."""
    return [each.id async for each in client.list(id_prefix=prefix or None)][::-1]


def timing_of(env: Environment) -> datetime:
    return datetime.fromtimestamp(env.clock.now(), UTC)


async def restarted_after(env: Environment, downtime: timedelta) -> None:
    """Let no worker run for a while, and then one until nothing more happens."""
    await env.worker.stop(grace=0)
    env.clock.move_to(env.clock.now() + downtime.total_seconds())
    async with env.client.worker(report, long, approved):
        await env.settle()
        await env.settle()


# --- ticks ------------------------------------------------------------------------------------------------------------
async def test_each_tick_starts_one_run_at_its_time(env: Environment) -> None:
    nightly = env.client.schedule("nightly", report)  # it is 2023-11-14T22:13:20Z
    assert await nightly.put(Schedule(report.bind("sales"), cron="0 3 * * *", timezone="Europe/Berlin"))
    assert await nightly.next(2) == [datetime(2023, 11, day, 2, tzinfo=UTC) for day in (15, 16)]
    await env.advance(timedelta(days=2, hours=5))
    ids = ticks("nightly", "2023-11-15T02:00:00", "2023-11-16T02:00:00", "2023-11-17T02:00:00")
    assert await started(env.client) == ids
    assert await env.client.handle(ids[0], report).result() == f"sales of {ids[0]}"
    found = await env.client.handle(ids[2]).describe()
    assert found.created_at == datetime(2023, 11, 17, 2, tzinfo=UTC)
    told = await nightly.describe()
    assert (told.started, told.skipped, told.missed, told.refused) == (3, 0, 0, 0)
    assert (told.runs, told.running, told.waiting, told.served) == (tuple(ids), (), (), True)
    assert told.next_at == datetime(2023, 11, 18, 2, tzinfo=UTC)
    assert ran == Counter(ids)


async def test_failed_run_does_not_end_its_schedule(env: Environment) -> None:
    def fail(id: str) -> None:
        raise ValueError("no luck")

    env.fake(note, fail)
    await env.client.schedule("often").put(Schedule(report.bind(), every=timedelta(hours=1)))
    await env.advance(timedelta(hours=3))
    assert (await env.client.stats()).by_status == {"failed": 3}


async def test_run_that_its_handler_cannot_begin_waits_and_the_schedule_goes_on(env: Environment) -> None:
    wrong: Any = workflow.ref("report")
    await env.client.schedule("often").put(Schedule(wrong.bind(5, 6, 7), every=3600, overlap="allow"))
    await env.advance(timedelta(hours=2))
    assert (await env.client.stats()).by_status == {"paused": 2}


async def test_options_of_the_call_hold_for_each_run(env: Environment) -> None:
    call = report.using(key="k", timeout=60, tags={"tenant": "acme"}).bind("x")
    await env.client.schedule("often").put(Schedule(call, every=3600))
    await env.advance(timedelta(hours=1))
    (id,) = await started(env.client)
    found = await env.client.handle(id).describe()
    assert (found.key, dict(found.tags), found.input) == ("k", {"tenant": "acme"}, {"what": "x"})
    assert found.deadline == datetime(2023, 11, 14, 23, 1, tzinfo=UTC)


async def test_jitter_delays_a_run_and_not_its_schedule(env: Environment) -> None:
    often = env.client.schedule("often")
    await often.put(Schedule(report.bind(), every=3600, jitter=timedelta(minutes=10)))
    await env.advance(timedelta(hours=12))
    dues: list[float] = []
    for id in await started(env.client):
        due = (await env.client.handle(id).describe()).due
        assert due is not None
        dues.append(due.timestamp() % 3600)
    assert len({*dues}) == 12
    assert all(0 <= each < 600 for each in dues)
    assert ran.total() in (11, 12)


async def test_run_that_no_worker_serves_is_started_and_that_is_told(env: Environment) -> None:
    elsewhere: Any = workflow.ref("elsewhere")
    handle = env.client.schedule("often")
    await handle.put(Schedule(elsewhere.bind(), every=3600))
    await env.advance(timedelta(hours=1))
    told = await handle.describe()
    assert (told.started, told.served, len(told.running)) == (1, False, 1)
    (id,) = told.running
    assert (await env.client.handle(id).describe()).waiting_for == "a worker that serves workflow 'elsewhere'"


# --- overlap ----------------------------------------------------------------------------------------------------------
async def hourly(env: Environment, overlap: Overlap, seconds: float = 9_000) -> None:
    """A run takes two and a half hours, and there is a tick each hour, at 23:00 first."""
    await env.client.schedule("often").put(Schedule(long.bind(seconds), every=3600, overlap=overlap))


async def test_tick_is_skipped_while_a_run_goes_on(env: Environment, caplog: pytest.LogCaptureFixture) -> None:
    await hourly(env, "skip")
    await env.advance(timedelta(hours=4))
    assert await started(env.client) == ticks("often", "2023-11-14T23:00:00", "2023-11-15T02:00:00")
    assert (await env.client.schedule("often").describe()).skipped == 2
    told = [each.getMessage() for each in caplog.records if each.name == "perdure.schedules"]
    assert told == ["schedule 'often': often@2023-11-15T00:00:00Z is skipped: an earlier run has not ended"]


async def test_tick_waits_its_turn(env: Environment) -> None:
    await hourly(env, "queue")
    await env.advance(timedelta(hours=4))
    ids = ticks("often", *(f"2023-11-{each}:00:00" for each in ("14T23", "15T00", "15T01", "15T02")))
    assert await started(env.client) == ids[:2]
    told = await env.client.schedule("often").describe()
    assert (told.running, told.waiting) == ((ids[1],), tuple(ids[2:]))
    await env.client.handle(ids[1]).cancel()
    await env.settle()
    assert await started(env.client) == ids[:3]  # at once, and not at the next look
    assert (await env.client.schedule("often").describe()).skipped == 0


async def test_run_is_cancelled_with_cleanup_before_the_next_starts(env: Environment) -> None:
    await hourly(env, "cancel")
    await env.advance(timedelta(hours=3))
    ids = ticks("often", *(f"2023-11-{each}:00:00" for each in ("14T23", "15T00", "15T01")))
    assert await started(env.client) == ids
    assert ran == {f"end of {id}": 1 for id in ids[:2]}
    statuses = {each.id: each.status async for each in env.client.list()}
    assert statuses == {ids[0]: "cancelled", ids[1]: "cancelled", ids[2]: "suspended"}


async def test_runs_may_go_on_beside_each_other(env: Environment) -> None:
    await hourly(env, "allow")
    await env.advance(timedelta(hours=3))
    assert (await env.client.stats()).by_status == {"suspended": 3}


@pytest.mark.parametrize("how", ["paused", "suspended", "scheduled"])
async def test_run_that_waits_counts_as_one_that_goes_on(env: Environment, how: str) -> None:
    jitter = 7200 if how == "scheduled" else 0
    await env.client.schedule("often").put(Schedule(approved.bind(), every=3600, jitter=jitter))
    await env.advance(timedelta(hours=1))
    (id,) = await started(env.client)
    if how == "paused":
        await env.client.handle(id).pause()
    assert (await env.client.handle(id).describe()).status == how
    await env.advance(timedelta(minutes=60 if how != "scheduled" else 0))
    assert await started(env.client) == [id]
    if how != "scheduled":
        assert (await env.client.schedule("often").describe()).skipped == 1
        await env.client.handle(id).cancel(force=True)
        await env.advance(timedelta(hours=1))
        assert len(await started(env.client)) == 2


async def test_retried_run_of_before_counts_too(env: Environment) -> None:
    def fail(id: str) -> None:
        ran[id] += 1
        raise ValueError("no luck")

    env.fake(note, fail)
    await env.client.schedule("often").put(Schedule(report.bind(), every=86_400))
    await env.advance(timedelta(days=1))
    (id,) = await started(env.client)
    gate = asyncio.Event()

    async def wait(id: str) -> None:
        await gate.wait()

    env.fake(note, wait)
    await env.client.handle(id).retry()
    await env.advance(timedelta(days=1))
    assert await started(env.client) == [id]
    gate.set()
    await env.advance(timedelta(days=1))
    assert len(await started(env.client)) == 2


# --- downtime ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("overlap", "runs", "skipped"), [("skip", 1, 11), ("queue", 12, 0), ("cancel", 2, 10), ("allow", 12, 0)]
)
async def test_after_a_week_without_workers_ticks_within_the_window_run_and_the_others_are_missed(
    env: Environment, overlap: Overlap, runs: int, skipped: int, caplog: pytest.LogCaptureFixture
) -> None:
    twelve_hours = timedelta(hours=12)
    handle = env.client.schedule("often")
    await handle.put(Schedule(report.bind(), every=3600, overlap=overlap, catch_up=twelve_hours))
    await env.settle()
    now = timing_of(env)
    await restarted_after(env, WEEK)
    told = await handle.describe()
    assert (told.started, told.skipped, told.missed, told.waiting) == (runs, skipped, 7 * 24 - 12, ())
    due = [
        f"often@{(now.replace(minute=0, second=0) + WEEK - timedelta(hours=n)):%Y-%m-%dT%H:%M:%SZ}" for n in range(12)
    ]
    expected = {"skip": due[-1:], "cancel": due[:1]}.get(overlap, due[::-1])  # the oldest was cancelled at once
    assert [*ran] == expected  # the oldest first, each once
    assert {*ran.values()} == {1}
    assert f"schedule 'often': ticks were missed, {7 * 24 - 12} of them" in caplog.text


@pytest.mark.parametrize(("late", "runs"), [(9, 1), (11, 0)])
async def test_by_default_a_tick_may_be_ten_minutes_late(env: Environment, late: int, runs: int) -> None:
    await env.client.schedule("nightly").put(Schedule(report.bind(), cron="0 0 * * *"))
    await env.settle()
    midnight = datetime(2023, 11, 15, tzinfo=UTC)
    await restarted_after(env, midnight + timedelta(minutes=late) - timing_of(env))
    told = await env.client.schedule("nightly").describe()
    assert (told.started, told.missed) == (runs, 1 - runs)


async def test_a_long_downtime_of_a_frequent_schedule_is_decided_piece_by_piece(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.operations.ticks.DECIDED_LIMIT", 7)
    monkeypatch.setattr("perdure.operations.ticks.MISSED_LIMIT", 20)
    handle = env.client.schedule("often")
    await handle.put(Schedule(report.bind(), every=60, overlap="allow", catch_up=timedelta(hours=1)))
    await env.settle()
    await restarted_after(env, WEEK)
    told = await handle.describe()
    assert (told.started, told.missed) == (60, 20)


async def test_schedule_with_very_much_to_catch_up_with_does_not_hold_up_the_others(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.operations.ticks.DECIDED_LIMIT", 3)
    for name in ("a", "b"):
        await env.client.schedule(name).put(Schedule(report.bind(), every=3600, overlap="allow", catch_up=WEEK))
    await env.settle()
    order: list[str] = []
    start = env.client.operations.start

    async def noted(submission: Any) -> None:
        order.append(submission.id[0])
        await start(submission)

    monkeypatch.setattr(env.client.operations, "start", noted)
    await restarted_after(env, timedelta(hours=9))
    assert order == [*"aaabbbaaabbbaaabbb"]


async def test_clock_that_jumps_ahead_is_as_a_time_without_workers(env: Environment) -> None:
    handle = env.client.schedule("often")
    await handle.put(Schedule(report.bind(), every=3600, overlap="allow", catch_up=timedelta(hours=2)))
    await env.settle()
    env.clock.move_to(env.clock.now() + timedelta(days=3).total_seconds())
    await env.settle()
    told = await handle.describe()
    assert (told.started, told.missed) == (2, 70)
    await env.advance(timedelta(hours=1))
    assert (await handle.describe()).started == 3


async def test_clock_that_was_set_back_makes_no_tick_come_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Environment(report) as env:
        handle = env.client.schedule("often")
        await handle.put(Schedule(report.bind(), every=3600, overlap="allow"))
        await env.advance(timedelta(hours=3))
        (document,) = await env.client.operations.scan_documents(SCHEDULES, scheduling.Scan())
    record = decode_record(document.value)
    async with Environment(report) as env:  # as of three hours before
        await env.client.operations.write_documents(SCHEDULES, [Put(("often",), encode_record(record))])
        await env.advance(timedelta(hours=3))
        assert await started(env.client) == []
        assert (await env.client.schedule("often").next())[0].timestamp() == record.cursor + 3600 - record.cursor % 3600
        await env.advance(timedelta(hours=1))
        assert len(await started(env.client)) == 1
    assert "goes on at 2023-11-15T01:" in caplog.text


# --- putting ----------------------------------------------------------------------------------------------------------
async def test_equal_schedule_changes_nothing(env: Environment) -> None:
    handle = env.client.schedule("often")

    def schedule(what: str = "a", **options: Any) -> Schedule[str]:
        return Schedule(report.bind(what=what), every=3600, **options)

    assert await handle.put(schedule())
    before = await handle.describe()
    for equal in (schedule(), Schedule(report.bind("a"), every=timedelta(hours=1), catch_up=timedelta(minutes=10))):
        assert not await handle.put(equal)
    assert await handle.describe() == before
    assert await handle.put(schedule("b"))
    assert await handle.put(schedule("b", overlap="queue"))
    assert not await handle.put(schedule("b", overlap="queue"))
    assert (await handle.describe()).created_at == before.created_at


async def test_changed_schedule_goes_on_from_now_and_no_tick_comes_twice(env: Environment) -> None:
    handle = env.client.schedule("often")
    await handle.put(Schedule(report.bind("a"), every=3600))
    await env.advance(timedelta(hours=1))  # 23:13:20
    await handle.put(Schedule(report.bind("b"), every=3600))
    await env.advance(timedelta(hours=1))
    await handle.put(Schedule(report.bind("c"), cron="*/30 * * * *"))  # 00:00 has been
    await env.advance(timedelta(hours=1))
    ids = ticks("often", *(f"2023-11-{each}:00" for each in ("14T23:00", "15T00:00", "15T00:30", "15T01:00")))
    assert await started(env.client) == ids
    assert [await env.client.handle(id, report).result() for id in ids] == [
        f"{what} of {id}" for what, id in zip("abcc", ids, strict=True)
    ]


async def test_tick_that_no_worker_got_to_is_not_lost_by_a_change_or_a_pause(env: Environment) -> None:
    handle = env.client.schedule("often")
    await handle.put(Schedule(report.bind(), every=60, catch_up=3600))
    await env.settle()
    await env.worker.stop(grace=0)
    env.clock.move_to(env.clock.now() + 120)
    await handle.put(Schedule(report.bind(), every=600, catch_up=3600))
    await handle.pause()
    await handle.resume()
    env.clock.move_to(env.clock.now() + 1)
    async with env.client.worker(report):
        await env.settle()
    assert await started(env.client) == ticks("often", "2023-11-14T22:14:00", "2023-11-14T22:15:00")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "give one of the two"),
        ({"cron": "soon"}, "five fields"),
        ({"every": 0.5}, "whole seconds"),
        ({"every": 60, "timezone": "Europe/Berlin"}, "UTC"),
        ({"every": 60, "overlap": "never"}, "it is one of skip, queue, cancel, allow"),
        ({"every": 60, "catch_up": 5}, "at least 10 seconds"),
        ({"every": 60, "jitter": -1}, "at least 0"),
    ],
)
def test_wrong_schedule_is_refused_when_it_is_made(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidOption, match=why):
        Schedule(report.bind(), **options)


def test_call_that_has_an_id_or_is_none_is_refused() -> None:
    for call in (report.using(id="a").bind(), report.using(delay=5).bind(), report, "report"):
        with pytest.raises(InvalidOption, match=r"id and delay|arguments"):
            Schedule(call, every=60)  # type: ignore[arg-type]


async def test_what_cannot_be_kept_is_refused_when_it_is_put(env: Environment) -> None:
    with pytest.raises(PayloadTooLarge):
        await env.client.schedule("n").put(Schedule(report.bind("x" * 100_000), every=60))
    with pytest.raises(TypeError):
        await env.client.schedule("n").put(Schedule(report.bind(5), every=60))  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="give a Schedule"):
        await env.client.schedule("n").put(report.bind("x"))  # type: ignore[arg-type]
    with pytest.raises(BadId):
        env.client.schedule("..")
    assert [each async for each in env.client.schedules()] == []


@workflow
async def schedules_itself(ctx: Context) -> None:
    client: Any = connect("memory:")
    await client.schedule("n").pause()


async def test_schedules_are_no_business_of_bodies() -> None:
    async with Environment(schedules_itself) as env:
        with pytest.raises(IoInWorkflow):
            await env.client.run(schedules_itself)


# --- pause, trigger, backfill, delete ---------------------------------------------------------------------------------
async def test_paused_schedule_starts_nothing_and_goes_on_from_its_resumption(env: Environment) -> None:
    handle = env.client.schedule("often")
    await handle.put(Schedule(report.bind(), every=3600))
    await handle.pause("the disk is full")
    told = await handle.describe()
    assert (told.paused_at, told.note, told.next_at) == (timing_of(env), "the disk is full", None)
    await env.advance(timedelta(hours=5))
    assert await started(env.client) == []
    await handle.pause("still")  # since the first pause
    assert (await handle.describe()).paused_at == told.paused_at
    await handle.resume()
    await handle.resume()
    await env.advance(timedelta(hours=1))
    assert await started(env.client) == ticks("often", "2023-11-15T04:00:00")
    told = await handle.describe()
    assert (told.paused_at, told.note, told.missed) == (None, "", 0)


async def test_note_has_limits(env: Environment) -> None:
    handle = env.client.schedule("often")
    await handle.put(Schedule(report.bind(), every=3600))
    with pytest.raises(LimitExceeded):
        await handle.pause("x" * 1_001)
    for note in ("\ud800", 5):
        with pytest.raises(InvalidOption):
            await handle.pause(note)  # type: ignore[arg-type]


async def test_trigger_starts_a_run_now_also_while_paused(env: Environment) -> None:
    handle = env.client.schedule("often", report)
    await handle.put(Schedule(report.bind("x"), every=3600))
    await handle.pause()
    run = await handle.trigger()
    assert await run.result() == f"x of {run.id}"
    assert run.id.startswith("often@2023-11-14T22:13:20Z-")
    assert (await handle.trigger()).id != run.id


async def test_trigger_with_an_id_is_one_run(env: Environment) -> None:
    await env.client.schedule("often").put(Schedule(report.bind("x"), every=3600))
    for _ in range(3):
        assert await env.client.operations.change_schedule("often", Trigger("once")) == ["once"]
    await env.settle()
    assert ran == {"once": 1}


@pytest.mark.parametrize("overlap", ["queue", "cancel"])
async def test_trigger_of_a_paused_schedule_waits_for_nothing_but_its_turn(env: Environment, overlap: Overlap) -> None:
    handle = env.client.schedule("often", long)
    await handle.put(Schedule(long.bind(60), every=3600, overlap=overlap))
    await handle.pause()
    await handle.trigger()
    second = await handle.trigger()
    await env.advance(150)
    assert await second.result() == second.id
    await env.advance(timedelta(hours=2))
    assert (await handle.describe()).started == 2


async def test_many_ticks_that_no_worker_got_to_are_all_kept_or_counted(
    env: Environment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("perdure.operations.ticks.DECIDED_LIMIT", 7)
    handle = env.client.schedule("often")
    await handle.put(Schedule(report.bind(), every=60, catch_up=1800))
    await env.settle()
    await env.worker.stop(grace=0)
    env.clock.move_to(env.clock.now() + 3600)
    await handle.put(Schedule(report.bind(), every=86_400, catch_up=1800))
    told = await handle.describe()
    assert (len(told.waiting), told.missed) == (30, 30)
    assert "ticks were missed, 30 of them" in caplog.text


@pytest.mark.parametrize("overlap", ["skip", "queue", "cancel", "allow"])
async def test_trigger_goes_by_the_overlap_rule(env: Environment, overlap: Overlap) -> None:
    handle = env.client.schedule("often", long)
    await handle.put(Schedule(long.bind(60), every=86_400, overlap=overlap))
    first = await handle.trigger()
    await env.settle()
    if overlap == "skip":
        with pytest.raises(ScheduleBusy) as caught:
            await handle.trigger()
        assert (caught.value.name, caught.value.invocation_id) == ("often", first.id)
        return
    second = await handle.trigger()
    await env.settle()
    assert ((await first.describe()).status == "cancelled") == (overlap == "cancel")
    if overlap == "queue":
        assert (await handle.describe()).waiting == (second.id,)
        with pytest.raises(UnknownInvocation):
            await second.describe()
        await env.advance(60)
    await env.advance(60)
    assert await second.result() == second.id


async def test_backfill_runs_what_did_not_run_one_after_another(env: Environment) -> None:
    handle = env.client.schedule("often", report)
    await handle.put(Schedule(report.bind(), every=3600))
    await env.advance(timedelta(hours=1))
    (first,) = await started(env.client)
    runs = await handle.backfill(datetime(2023, 11, 14, 20, tzinfo=UTC), datetime(2023, 11, 14, 23, tzinfo=UTC))
    await env.settle()
    assert [each.id for each in runs] == ticks("often", *(f"2023-11-14T{hour}:00:00" for hour in (20, 21, 22, 23)))
    assert [*ran] == [first, *(each.id for each in runs[:3])]
    assert {*ran.values()} == {1}
    assert (await handle.describe()).waiting == ()


async def test_backfill_is_neither_cancelled_by_itself_nor_skipped(env: Environment) -> None:
    handle = env.client.schedule("often", long)
    await handle.put(Schedule(long.bind(60), every=86_400, overlap="cancel"))
    end = datetime(2023, 11, 14, tzinfo=UTC)
    runs = await handle.backfill(end - timedelta(days=2), end)
    await env.advance(timedelta(minutes=5))
    assert [await each.result() for each in runs] == [each.id for each in runs]
    assert (await handle.backfill(end, end))[0].id == runs[-1].id


@pytest.mark.parametrize(
    ("start", "end", "error"),
    [
        (datetime(2023, 11, 2, tzinfo=UTC), datetime(2023, 11, 1, tzinfo=UTC), InvalidOption),
        (datetime(2023, 11, 1, tzinfo=UTC), datetime(2023, 11, 20, tzinfo=UTC), InvalidOption),
        (datetime(1900, 1, 1, tzinfo=UTC), datetime(2023, 11, 1, tzinfo=UTC), InvalidOption),
        (datetime(2023, 11, 1), datetime(2023, 11, 2, tzinfo=UTC), InvalidOption),  # noqa: DTZ001
        (1, 2, InvalidOption),
        (datetime(2023, 11, 1, tzinfo=UTC), datetime(2023, 11, 2, tzinfo=UTC), LimitExceeded),
    ],
)
async def test_wrong_backfill_is_refused(env: Environment, start: Any, end: Any, error: type[Exception]) -> None:
    handle = env.client.schedule("often")
    await handle.put(Schedule(report.bind(), every=60))
    with pytest.raises(error):
        await handle.backfill(start, end)
    assert (await handle.describe()).waiting == ()


async def test_deleted_schedule_ticks_no_more_and_what_runs_goes_on(env: Environment) -> None:
    handle = env.client.schedule("often", long)
    await handle.put(Schedule(long.bind(60), every=3600))
    run = await handle.trigger()
    await env.settle()
    assert await handle.delete()
    assert not await handle.delete()
    await env.advance(timedelta(hours=2))
    assert await run.result() == run.id
    assert await started(env.client) == [run.id]
    for call in (handle.describe(), handle.pause(), handle.resume(), handle.trigger(), handle.next()):
        with pytest.raises(UnknownSchedule) as caught:
            await call
        assert caught.value.name == "often"


async def test_schedules_are_listed_by_name_page_by_page(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.client.SCHEDULES_PAGE", 2)
    names = ["a", "a/b", "b", "ü", "ö"]
    for name in names:
        await env.client.schedule(name).put(Schedule(report.bind(), every=60))
    await env.client.operations.write_documents(SCHEDULES, [Put(("aa",), b'{"of": "a newer release"}')])
    assert [each.name async for each in env.client.schedules()] == sorted(names)


# --- what goes wrong --------------------------------------------------------------------------------------------------
async def test_one_bad_schedule_does_not_stop_the_others(
    env: Environment, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "m", "n", "z"):
        await env.client.schedule(name).put(Schedule(report.bind(), every=3600))
    (document,) = await env.client.operations.read_documents(SCHEDULES, [("m",)])
    assert document is not None
    record = decode_record(document.value)
    elsewhere = replace(record.plan, timing=replace(record.plan.timing, every=None, cron="0 * * * *", timezone="M/X"))
    await env.client.operations.write_documents(
        SCHEDULES, [Put(("m",), encode_record(replace(record, plan=elsewhere)))]
    )
    await env.client.operations.write_documents(SCHEDULES, [Put(("n",), b"\x00")])
    operations = env.client.operations
    assert isinstance(operations, Local)
    advance = operations.scheduling.advance

    async def advance_or_break(name: str, kept: Any = None) -> Any:
        if name == "a":
            raise ZeroDivisionError("nobody foresaw it")
        return await advance(name, kept)

    monkeypatch.setattr(operations.scheduling, "advance", advance_or_break)
    await env.advance(timedelta(hours=1))
    assert await started(env.client) == ticks("z", "2023-11-14T23:00:00")
    assert "schedule 'a': unexpected exception" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert "schedule 'm' is not carried out by this worker: timezone='M/X'" in caplog.text
    assert "schedule 'n' was written by a newer release" in caplog.text
    assert [each.name async for each in env.client.schedules()] == ["a", "z"]
    assert await env.client.schedule("m").put(Schedule(report.bind(), every=3600))  # which repairs it
    with pytest.raises(StoreError, match="newer release"):
        await env.client.schedule("n").put(Schedule(report.bind(), every=3600))
    assert await env.client.schedule("n").delete()
    await env.advance(timedelta(hours=1))
    assert len(await started(env.client, "m@")) == 1


async def test_run_that_cannot_be_started_is_counted_and_the_schedule_goes_on(
    env: Environment, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = env.client.schedule("often")
    await handle.put(Schedule(report.bind(), every=3600))
    refusing = {"LimitExceeded": LimitExceeded("too many wait"), "StoreFull": StoreFull("no space left")}
    start = env.client.operations.start

    async def refuse(submission: Any) -> None:
        if refusing:
            raise refusing.pop(next(iter(refusing)))
        await start(submission)

    monkeypatch.setattr(env.client.operations, "start", refuse)
    monkeypatch.setattr(scheduling, "LOOK_SECONDS", 0.01)
    await env.advance(timedelta(hours=1))
    told = await handle.describe()
    assert (told.started, told.refused) == (0, 1)
    assert "often@2023-11-14T23:00:00Z cannot be started: too many wait" in caplog.text
    await env.advance(timedelta(hours=1))  # the store is full: the run stays to be started, and is tried again
    while not await started(env.client):
        await asyncio.sleep(0.005)
    assert await started(env.client) == ticks("often", "2023-11-15T00:00:00")


async def test_invocation_that_somebody_gave_the_id_of_a_tick_counts_as_its_run(
    env: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    await env.client.start(report.using(id="often@2023-11-14T23:00:00Z"), "of somebody")
    await env.client.schedule("often").put(Schedule(report.bind(), every=3600))
    await env.advance(timedelta(hours=2))
    assert len(await started(env.client)) == 2
    assert "exists with another workflow or input" in caplog.text


async def test_decision_that_is_old_is_read_again_before_it_starts_anything(env: Environment) -> None:
    """A process stands still between reading a schedule and starting its run, and the run is started elsewhere."""
    handle = env.client.schedule("often")
    await handle.put(Schedule(report.bind(), every=86_400))
    await env.settle()
    await env.worker.stop(grace=0)
    operations, store = env.client.operations, await store_behind(env.client.operations)
    assert isinstance(operations, Local)
    (document,) = await operations.read_documents(SCHEDULES, [("often",)])
    assert document is not None
    run = Run("often@2023-11-14T00:00:00Z", 1_699_920_000)
    decided = replace(decode_record(document.value), starting=(run,), starting_since=store.clock.now())
    (revision,) = await operations.write_documents(SCHEDULES, [Put(("often",), encode_record(decided))])
    stale = scheduling.Kept("often", decided, revision, store.clock.now())
    await operations.scheduling.advance("often")  # as another process would
    assert await started(env.client) == [run.id]
    async with env.client.worker(report):
        await env.client.handle(run.id).result()
    await env.client.handle(run.id).purge()
    env.clock.move_to(env.clock.now() + scheduling.FRESH_SECONDS + 1)
    await operations.scheduling.advance("often", stale)
    assert await started(env.client) == []


async def test_many_runs_are_started_however_long_that_takes(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = env.client.schedule("often")
    await handle.put(Schedule(report.bind(), every=60, overlap="allow", catch_up=3600))
    await env.settle()
    start = env.client.operations.start

    async def slow(submission: Any) -> None:
        env.clock.move_to(env.clock.now() + scheduling.FRESH_SECONDS / 2)
        await start(submission)

    monkeypatch.setattr(env.client.operations, "start", slow)
    await restarted_after(env, timedelta(minutes=20))
    assert (await handle.describe()).started >= 20
    assert {*ran.values()} == {1}


# --- on stores of their own -------------------------------------------------------------------------------------------
@pytest.fixture(params=["memory:", "sqlite:{}/app.db"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.param.format(tmp_path)


async def enough(client: Client, name: str, count: int) -> ScheduleInfo:
    """Wait until a schedule has started so many runs."""
    async with asyncio.timeout(60):
        while (told := await client.schedule(name).describe()).started < count:
            await asyncio.sleep(0.02)
    return told


async def test_two_workers_on_one_store_run_each_tick_once(url: str) -> None:
    async with AsyncExitStack() as parts:
        client = await parts.enter_async_context(connect(url))
        for _ in range(2):
            await parts.enter_async_context(client.worker(report))
        for n in range(5):
            await client.schedule(f"s{n}").put(Schedule(report.bind(), every=1, overlap="allow"))
        for n in range(5):
            await enough(client, f"s{n}", 2)
        for n in range(5):
            await client.schedule(f"s{n}").pause()
        for n in range(5):
            ids = await started(client, f"s{n}@")
            for id in ids:
                await client.handle(id).result()
            seconds = [int(datetime.fromisoformat(id.partition("@")[2]).timestamp()) for id in ids]
            assert seconds == [*range(seconds[0], seconds[-1] + 1)]
    assert {*ran.values()} == {1}


async def test_sweep_leaves_alone_what_a_schedule_still_takes_for_unstarted(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run was started and has ended, its process died before that was written down, and a sweep comes first."""
    monkeypatch.setattr("perdure.runtime.retention.SWEEP_PERIOD_LEAST_SECONDS", 0.01)
    async with connect(url, retention=0.01) as client:
        store = await store_behind(client.operations)
        await client.schedule("often").put(Schedule(report.bind(), every=86_400))
        since = store.clock.now()
        run = Run("often@1970-01-02T00:00:00Z", 86_400)
        (document,) = await client.operations.read_documents(SCHEDULES, [("often",)])
        assert document is not None
        record: Record = replace(decode_record(document.value), starting=(run,), starting_since=since)
        await client.operations.write_documents(SCHEDULES, [Put(("often",), encode_record(record))])
        swept = asyncio.Semaphore(0)
        purge = store.purge

        async def counted(before: float, /, *, limit: int, id: str | None = None) -> int:
            try:
                return await purge(before, limit=limit, id=id)
            finally:
                swept.release()

        monkeypatch.setattr(store, "purge", counted)
        async with without_duties(client):
            await client.run(report.using(id=run.id))
            await client.run(report.using(id="other"))
            for _ in range(10):
                await swept.acquire()
            assert {*await started(client)} == {run.id, "other"}
        async with client.worker(report):
            told = await enough(client, "often", 1)
            assert told.runs == (run.id,)
            async with asyncio.timeout(60):
                while await started(client):
                    await asyncio.sleep(0.01)
    assert ran == {run.id: 1, "other": 1}


def without_duties(client: Client) -> Worker:
    assert isinstance(client.operations, Local)
    return worker_of(client.operations.opened, [report], retention=0.01)


async def test_change_by_another_process_is_heard_of_within_a_second_or_so(tmp_path: Path) -> None:
    async with connect(f"sqlite:{tmp_path}/app.db") as client, client.worker(report):
        store = await store_behind(client.operations)
        await client.schedule("a").put(Schedule(report.bind(), every=86_400))
        (document,) = await client.operations.read_documents(SCHEDULES, [("a",)])
        assert document is not None
        waiting = replace(decode_record(document.value), waiting=(Run("now", 0, "backfill"),))
        await store.documents.write(SCHEDULES, [Put(("b",), encode_record(waiting))])
        began = asyncio.get_running_loop().time()
        while not await started(client):
            await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - began < 10  # a second, on a machine that is not busy


def test_schedules_log_under_a_name_of_their_own() -> None:
    assert logging.getLogger("perdure.schedules") is scheduling.log
