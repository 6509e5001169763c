"""The time of a body begins when the body begins: whatever it waited for, on a worker, on replay and after a retry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from perdure import Client, Context, Handle, Retry, connect, step, workflow
from perdure.connect import client_from
from perdure.core.journal import Waited
from perdure.operations.local import store_behind
from perdure.stores.clock import VirtualClock
from perdure.stores.memory import MemoryStore
from perdure.testing import Environment, replay

HOUR = 3600.0
PATIENCE_SECONDS = 20.0
ONCE = Retry(max_attempts=1)


@step
async def quick() -> str:
    return "done"


@step(retry=ONCE)
async def fragile() -> str:
    return "done"


@workflow
async def sleeps(seconds: float) -> list[float]:
    """Return when it began and when it went on, by its own clock."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.sleep(seconds)
    return [began, loop.time()]


@workflow
async def hurries() -> str:
    async with asyncio.timeout(10):
        return await quick()


@workflow
async def calls() -> list[list[float]]:
    return list(await asyncio.gather(sleeps(5), sleeps.using(key="k")(5)))


@workflow
async def holds(ctx: Context) -> str:
    return await ctx.awakeable(str)


@workflow
async def works() -> str:
    return await quick()


@workflow
async def says_when(ctx: Context) -> float:
    when = ctx.now().timestamp()
    await quick()
    return when


async def waits_of(client: Client, handle: Handle[object]) -> list[Waited]:
    store = await store_behind(client.operations)
    frames = (await store.journal(handle.id)).frames
    return [entry for frame in frames for entry in frame.entries if isinstance(entry, Waited)]


@pytest.fixture(params=[True, False], ids=["replayed", "kept"])
def is_replayed(request: pytest.FixtureRequest) -> bool:
    return request.param


# --- what it waited for -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("delay", [0.0, 60.0])
async def test_body_that_waited_for_its_key_begins_when_it_has_it(is_replayed: bool, delay: float) -> None:
    async with Environment(sleeps, holds, hurries, replay=is_replayed) as env:
        holder = await env.client.start(holds.using(key="k"))
        answer = await env.awakeable(holder)
        slept = await env.client.start(sleeps.using(key="k", delay=delay), 5)
        hurried = await env.client.start(hurries.using(key="k", delay=delay))
        await env.advance(HOUR)
        begins = env.clock.now()
        await env.client.resolve(answer, "go")
        assert await slept.result() == [begins, begins + 5]
        assert await hurried.result() == "done"
        for handle, of in ((slept, sleeps), (hurried, hurries)):
            replay(of, await handle.export())


async def test_child_that_waits_for_its_key_has_a_time_of_its_own(is_replayed: bool) -> None:
    async with Environment(calls, sleeps, holds, replay=is_replayed) as env:
        answer = await env.awakeable(await env.client.start(holds.using(key="k")))
        handle = await env.client.start(calls)
        began = env.clock.now()
        await env.advance(HOUR)
        await env.client.resolve(answer, "go")
        assert await handle.result() == [[began, began + 5], [began + HOUR, began + HOUR + 5]]
        replay(calls, await handle.export())


async def test_body_that_waited_for_a_slot_begins_when_it_has_it(is_replayed: bool) -> None:
    goes_on = asyncio.Event()
    async with Environment(works, sleeps, hurries, max_concurrent=1, replay=is_replayed) as env:

        async def waits() -> str:
            await goes_on.wait()
            return "done"

        env.fake(quick, waits)
        first = await env.client.start(works)
        await env.settle()  # starts of two workflows have no order
        slept = await env.client.start(sleeps, 5)
        await env.advance(HOUR)
        assert (await slept.describe()).status == "pending"
        begins = env.clock.now()
        goes_on.set()
        assert await first.result() == "done"
        assert await slept.result() == [begins, begins + 5]
        replay(sleeps, await slept.export())


async def test_body_begins_when_its_worker_comes_an_hour_later() -> None:
    clock = VirtualClock()
    store = MemoryStore(clock)
    async with client_from(lambda: store) as client:
        late, hurried = await client.start(sleeps, 0), await client.start(hurries)
        clock.move_to(clock.now() + HOUR)
        async with client.worker(sleeps, hurries):
            assert await late.result(timeout=PATIENCE_SECONDS) == [clock.now(), clock.now()]
            assert await hurried.result(timeout=PATIENCE_SECONDS) == "done"
        assert await waits_of(client, hurried) == [Waited(clock.now(), 0)]


@workflow
async def answered(ctx: Context) -> str:
    await ctx.awakeable(str)
    async with asyncio.timeout(10):
        return await quick()


async def test_what_came_during_a_pause_is_taken_up_at_its_end(is_replayed: bool) -> None:
    async with Environment(answered, replay=is_replayed) as env:
        handle = await env.client.start(answered)
        awakeable = await env.awakeable(handle)
        await handle.pause()
        await env.client.resolve(awakeable, "yes")
        await env.advance(HOUR)
        await handle.resume()
        assert await handle.result() == "done"
        assert [entry.issued for entry in await waits_of(env.client, handle)] == [None]
        replay(answered, await handle.export())


# --- what is recorded -------------------------------------------------------------------------------------------------
async def test_body_that_asks_for_steps_only_has_no_record_of_its_time_and_begins_its_steps_at_once() -> None:
    clock = VirtualClock()
    store = MemoryStore(clock)
    async with client_from(lambda: store) as client:
        handle = await client.start(works)
        clock.move_to(clock.now() + HOUR)
        async with client.worker(works):
            await handle.result(timeout=PATIENCE_SECONDS)
        assert await waits_of(client, handle) == []
        assert len((await store.journal(handle.id)).frames) == 1, "the steps ran before the first frame"


async def test_body_that_looks_at_the_time_before_a_step_has_it_recorded_before_the_step_begins() -> None:
    clock = VirtualClock()
    store = MemoryStore(clock)
    async with client_from(lambda: store) as client:
        handle = await client.start(says_when)
        clock.move_to(clock.now() + HOUR)
        async with client.worker(says_when):
            assert await handle.result(timeout=PATIENCE_SECONDS) == clock.now()
        first, *more = (await store.journal(handle.id)).frames
        assert Waited(clock.now(), 0) in first.entries
        assert more, "a rerun would have asked for a step with another argument"


async def test_worker_that_dies_before_the_first_frame_leaves_no_time_behind() -> None:
    async with Environment(sleeps, holds) as env:
        answer = await env.awakeable(await env.client.start(holds.using(key="k")))
        handle = await env.client.start(sleeps.using(key="k"), 5)
        await env.advance(HOUR)
        env.crash_before_commit(2)  # that of the holder comes first
        await env.client.resolve(answer, "go")
        await env.settle()
        assert env.crashes == 1
        began, ended = await handle.result()
        assert ended == began + 5
        replay(sleeps, await handle.export())


# --- retries ----------------------------------------------------------------------------------------------------------
class Code:
    """The version of the code that runs."""

    good = False


@workflow
async def repaired() -> str:
    """Raise by itself; the code that is good sets a time limit there."""
    await quick()
    if not Code.good:
        raise RuntimeError("a bug")
    async with asyncio.timeout(10):
        await asyncio.sleep(5)
        return await quick()


@workflow
async def goes_on() -> str:
    """Fail in a step; what comes after it has a time limit."""
    await fragile()
    async with asyncio.timeout(10):
        return await quick()


@workflow
async def within_limit() -> str:
    """Fail in a step that has a time limit."""
    async with asyncio.timeout(10):
        return await fragile()


@pytest.mark.parametrize("which", [repaired, goes_on, within_limit], ids=lambda each: each.name)
async def test_time_limit_of_what_a_retry_runs_begins_with_the_retry(is_replayed: bool, which: object) -> None:
    flow = repaired if which is repaired else goes_on if which is goes_on else within_limit
    Code.good = False

    def sells() -> str:
        if not Code.good:
            raise RuntimeError("sold out")
        return "done"

    async with Environment(flow, replay=is_replayed) as env:
        env.fake(fragile, sells)
        handle = await env.client.start(flow)
        with pytest.raises(RuntimeError):
            await handle.result()
        await env.advance(timedelta(days=3))
        Code.good = True
        at = env.clock.now()
        await handle.retry()
        assert await handle.result() == "done"
        assert env.clock.now() - at == (5 if flow is repaired else 0)
        assert len(await waits_of(env.client, handle)) == 1
        replay(flow, await handle.export())


# --- a file that is served later, by another clock --------------------------------------------------------------------
@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the machine's clock, as far as Python code can see."""
    real, by = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + by[0])
    return lambda seconds: by.__setitem__(0, seconds)


@pytest.mark.parametrize("apart", [HOUR, -HOUR])
async def test_file_served_by_a_clock_apart_runs_its_starts_at_once_and_by_that_clock(
    apart: float, machine: Callable[[float], None], tmp_path: Path
) -> None:
    url = f"sqlite:{tmp_path / 'db'}"
    async with connect(url) as client:
        ids = [(await client.start(sleeps.using(key=key), 0.05)).id for key in (None, "k")]
        ids.append((await client.start(hurries)).id)
    machine(apart)
    async with connect(url) as client:
        opened = time.time()
        async with client.worker(sleeps, hurries):
            for id in ids[:2]:
                began, ended = await client.handle(id, sleeps).result(timeout=PATIENCE_SECONDS)
                assert -1 < began - opened < PATIENCE_SECONDS
                assert ended >= began + 0.05
            assert await client.handle(ids[2], hurries).result(timeout=PATIENCE_SECONDS) == "done"
        for id in ids[:2]:
            replay(sleeps, await client.handle(id).export())
