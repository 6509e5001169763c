"""Retry of failed invocations, end to end: scenarios 29, 45 and 53, on memory and on SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from perdure import Client, Context, Failed, Handle, Retry, WaitDuration, Workflow, connect, step, step_info, workflow
from perdure.connect import client_from
from perdure.core.journal import Message, RetryInvocation
from perdure.errors import AwakeableRejected, IllegalTransition, InvocationTimedOut, MessageRefused, StoreClosed
from perdure.operations.local import store_behind
from perdure.runtime.worker import Worker
from perdure.stores.memory import Crashed, MemoryStore
from perdure.testing import Environment

ONCE = Retry(max_attempts=1)

ran: list[str] = []
keys: list[str] = []
broken: set[str] = set()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    for each in (ran, keys, broken):
        each.clear()
    yield
    for each in (ran, keys, broken):
        each.clear()


def take_ran() -> list[str]:
    taken = [*ran]
    ran.clear()
    return taken


@step(retry=ONCE)
async def act(name: str) -> str:
    ran.append(name)
    keys.append(step_info().idempotency_key)
    if name in broken:
        raise ValueError(name)
    return name


@step(retry=ONCE)
async def wait(name: str) -> str:
    """Wait until it is cancelled, while something is broken."""
    ran.append(name)
    if broken:
        await asyncio.Event().wait()
    return name


@step(retry=Retry(max_attempts=3, initial=0.001))
async def stubborn(name: str) -> int:
    ran.append(name)
    if name in broken:
        raise ValueError(name)
    return step_info().attempt


@workflow
async def four_steps() -> list[str]:
    return [await act(name) for name in ("one", "two", "three", "four")]


@workflow
async def thrice() -> int:
    return await stubborn("thrice")


@workflow
async def grouped() -> list[str]:
    first = await act("first")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait("waits")), group.create_task(act("three")), group.create_task(act("quick"))]
    return [first, *(task.result() for task in tasks)]


@workflow
async def parent() -> list[str]:
    return [await act("before"), *await four_steps()]


@workflow
async def chooser() -> list[str]:
    return await four_steps.using(id="chosen")()


@workflow
async def told() -> str:
    try:
        await four_steps()
    except ValueError:
        return "told " + await act("after")
    return "never told"


@workflow
async def buggy() -> str:
    one = await act("one")
    if "code" in broken:
        raise KeyError(one)
    return one + await act("two")


@workflow
async def repaired_by_a_pause() -> str:
    one = await act("one")
    if "code" in broken:
        raise KeyError(one)
    await asyncio.sleep(600)
    return one


@workflow
async def cleans_up() -> str:
    """Need ten minutes to end."""
    try:
        await asyncio.sleep(1_000_000)
    finally:
        await asyncio.sleep(600)
    return "never"


@workflow
async def three() -> str:
    return await act("three")


@workflow
async def hurried_group(ctx: Context) -> list[str]:
    """Raise the failure of a member, while another has not ended after it was cancelled."""
    group = await ctx.run_all([three.bind(), cleans_up.bind()], wait=WaitDuration(60), settle=1)
    failures = [each.error for each in group.results if isinstance(each, Failed)]
    if failures:
        raise failures[0]
    return [each.status for each in group.results]


@workflow
async def asks(ctx: Context) -> str:
    answer = ctx.awakeable(str)
    ctx.set("asked", True)
    return await answer


@workflow
async def hurries() -> str:
    async with asyncio.timeout(60):
        return await act("three")


@workflow
async def undoes(ctx: Context) -> str:
    ctx.set("state", "begun")
    try:
        await act("three")
    except ValueError:
        ctx.set("state", "undone")
        ctx.send(four_steps.using(delay=3600))
        await act("undo")
        raise
    return "done"


WORKFLOWS: tuple[Workflow[..., Any], ...] = (
    *(four_steps, thrice, grouped, parent, chooser, told, buggy, asks, hurries, undoes),
    *(repaired_by_a_pause, cleans_up, three, hurried_group),
)

Open = Callable[[], Any]


@pytest.fixture(params=["memory", "memory, kept alive", "sqlite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    @asynccontextmanager
    async def memory() -> AsyncGenerator[Client]:
        async with Environment(*WORKFLOWS, replay=request.param == "memory") as env:
            yield env.client
            env.store.check_liveness()

    @asynccontextmanager
    async def sqlite() -> AsyncGenerator[Client]:
        async with connect(f"sqlite:{tmp_path / 'retry.db'}") as client, client.worker(*WORKFLOWS):
            yield client

    return sqlite if request.param == "sqlite" else memory


async def failed(client: Client, workflow: Workflow[..., Any]) -> Handle[Any]:
    """Start it, and see it fail."""
    handle = await client.start(workflow)
    with pytest.raises((ValueError, KeyError, ExceptionGroup)):
        await handle.result(timeout=60)
    return handle


async def refusal(handle: Handle[Any]) -> str:
    with pytest.raises(MessageRefused) as refused:
        await handle.retry()
    if isinstance(refused.value, IllegalTransition):
        assert refused.value.status == (await handle.describe()).status
    return refused.value.reason


async def test_retry_runs_the_failed_step_and_what_follows_and_nothing_before(opened: Open):
    broken.add("three")
    async with opened() as client:
        handle = await failed(client, four_steps)
        assert take_ran() == ["one", "two", "three"]
        assert (await handle.describe()).status == "failed"
        broken.clear()
        await handle.retry()
        assert await handle.result(timeout=60) == ["one", "two", "three", "four"]
        assert take_ran() == ["three", "four"]
        assert len({*keys}) == len(keys)
        seen = await handle.describe()
        assert (seen.status, seen.error, seen.result) == ("completed", None, ["one", "two", "three", "four"])
        assert [(each.number, each.status, each.error) for each in seen.journal] == [
            (n, "completed", None) for n in range(4)
        ]
        assert (await client.stats()).by_status == {"completed": 1}


async def test_retry_twice_gives_a_new_key_each_time(opened: Open):
    broken.add("three")
    async with opened() as client:
        handle = await failed(client, four_steps)
        await handle.retry()
        with pytest.raises(ValueError, match="three"):
            await handle.result(timeout=60)
        broken.clear()
        await handle.retry()
        assert await handle.result(timeout=60) == ["one", "two", "three", "four"]
        assert take_ran() == ["one", "two", "three", "three", "three", "four"]
        assert len({*keys}) == len(keys)


async def test_attempts_begin_anew(opened: Open):
    broken.add("thrice")
    async with opened() as client:
        handle = await failed(client, thrice)
        assert len(take_ran()) == 3
        broken.clear()
        await handle.retry()
        assert await handle.result(timeout=60) == 1


async def test_siblings_that_a_failed_group_cancelled_run_again(opened: Open):
    broken.add("three")
    async with opened() as client:
        handle = await failed(client, grouped)
        assert sorted(take_ran()) == ["first", "quick", "three", "waits"]
        broken.clear()
        await handle.retry()
        assert await handle.result(timeout=60) == ["first", "waits", "three", "quick"]
        again = take_ran()
        assert "first" not in again
        assert {"three", "waits"} <= {*again}


async def test_a_failed_child_is_started_anew(opened: Open):
    broken.add("three")
    async with opened() as client:
        handle = await failed(client, parent)
        take_ran()
        broken.clear()
        await handle.retry()
        assert await handle.result(timeout=60) == ["before", "one", "two", "three", "four"]
        assert take_ran() == ["one", "two", "three", "four"]
        assert (await client.stats()).by_status == {"completed": 2, "failed": 1}


async def test_a_parent_that_was_told_is_not_told_again(opened: Open):
    broken.add("three")
    async with opened() as client:
        handle = await client.start(told)
        assert await handle.result(timeout=60) == "told after"
        (child,) = [each async for each in client.list(handler="four_steps")]
        broken.clear()
        await client.handle(child.id).retry()
        assert await client.handle(child.id).result(timeout=60) == ["one", "two", "three", "four"]
        assert await handle.result(timeout=60) == "told after"
        assert (await client.stats()).by_status == {"completed": 2}


async def test_a_child_under_a_chosen_id_is_not_started_anew(opened: Open):
    broken.add("three")
    async with opened() as client:
        handle = await failed(client, chooser)
        assert "'chosen'" in await refusal(handle)
        assert (await handle.describe()).status == "failed"


async def test_repaired_code_goes_on_over_the_results_it_has(opened: Open):
    broken.add("code")
    async with opened() as client:
        handle = await failed(client, buggy)
        await handle.retry()
        with pytest.raises(KeyError):
            await handle.result(timeout=60)
        broken.clear()
        await handle.retry()
        assert await handle.result(timeout=60) == "onetwo"
        assert take_ran() == ["one", "two"]


async def test_a_rejected_awakeable_is_open_again(opened: Open):
    async with opened() as client:
        handle = await client.start(asks)
        while not (awakeables := (await handle.describe()).awakeables):
            await asyncio.sleep(0.01)
        await client.reject(awakeables[0].id, "not now")
        with pytest.raises(AwakeableRejected):
            await handle.result(timeout=60)
        await handle.retry()
        seen = await handle.describe()
        assert (seen.status, seen.awakeables, seen.state) == ("suspended", awakeables, {"asked": True})
        assert seen.current_step is not None
        await client.resolve(awakeables[0].id, "now")
        assert await handle.result(timeout=60) == "now"


async def test_a_failure_path_is_superseded_and_taken_again(opened: Open):
    broken.add("three")
    async with opened() as client:
        handle = await failed(client, undoes)
        assert (await handle.describe()).state == {"state": "undone"}
        await handle.retry()
        with pytest.raises(ValueError, match="three"):
            await handle.result(timeout=60)
        assert take_ran() == ["three", "undo"] * 2
        broken.clear()
        await handle.retry()
        assert await handle.result(timeout=60) == "done"
        seen = await handle.describe()
        assert seen.state == {"state": "begun"}
        assert [each.step_type for each in seen.journal] == ["act"]
        assert (await client.stats()).by_handler == {"undoes": 1, "four_steps": 2}


async def test_only_a_failed_invocation_is_retried(opened: Open):
    async with opened() as client:
        done = await client.start(four_steps)
        await done.result(timeout=60)
        assert await refusal(done) == "it is completed, and only a failed invocation can be retried"
        waiting = await client.start(asks)
        while not (await waiting.describe()).awakeables:
            await asyncio.sleep(0.01)
        assert await refusal(waiting) == "it is suspended, and only a failed invocation can be retried"
        await waiting.cancel()
        assert await refusal(waiting) == "it is cancelled, and only a failed invocation can be retried"


async def test_two_retries_at_once_are_one(opened: Open):
    broken.add("three")
    async with opened() as client:
        handle = await failed(client, four_steps)
        broken.clear()
        take_ran()
        outcomes = await asyncio.gather(handle.retry(), handle.retry(), return_exceptions=True)
        assert [type(each) for each in outcomes if each is not None] == [IllegalTransition]
        assert await handle.result(timeout=60) == ["one", "two", "three", "four"]
        assert take_ran() == ["three", "four"]


async def test_a_retry_that_is_delivered_again_is_answered_from_the_journal(opened: Open):
    broken.add("three")
    async with opened() as client:
        handle = await failed(client, four_steps)
        store = await store_behind(client.operations)
        message = Message("again", handle.id, store.clock.now(), RetryInvocation())
        await store.post(message)
        assert (await store.answer("again")).refused is None
        with pytest.raises(ValueError, match="three"):
            await handle.result(timeout=60)
        await store.post(message)
        assert (await store.answer("again")).refused is None
        assert take_ran() == ["one", "two", "three", "three"]


async def test_time_at_rest_does_not_count():
    broken.add("three")
    limited = four_steps.using(timeout=30)
    async with Environment(*WORKFLOWS) as env:
        handle, other = await failed(env.client, hurries), await failed(env.client, limited)
        await env.advance(timedelta(days=1))
        broken.clear()
        for each in (handle, other):
            await each.retry()
            await each.result()
        env.store.check_liveness()


@pytest.mark.parametrize("replay", [True, False])
async def test_wait_that_repaired_code_adds_takes_its_time(replay: bool):
    async with Environment(*WORKFLOWS, replay=replay) as env:
        broken.add("code")
        handle = await failed(env.client, repaired_by_a_pause)
        await env.advance(3600)
        broken.clear()
        await handle.retry()
        began = env.clock.now()
        assert await handle.result() == "one"
        assert env.clock.now() - began == pytest.approx(600, abs=1)


@pytest.mark.parametrize("replay", [True, False])
async def test_member_of_a_group_that_ended_while_its_parent_had_failed_runs_again(replay: bool):
    async with Environment(*WORKFLOWS, replay=replay) as env:
        broken.add("three")
        handle = await failed(env.client, hurried_group)
        await env.advance(3600)  # the other member ends: nothing waits for its outcome any more
        broken.clear()
        await handle.retry()
        async with asyncio.timeout(30):
            assert await handle.result() == ["cancelled", "cancelled"], "the time of the group had passed"
        env.store.check_liveness()


async def test_an_invocation_that_ran_out_of_time_is_given_its_time_again():
    async with Environment(*WORKFLOWS) as env:
        handle = await env.client.start(asks.using(timeout=30))
        with pytest.raises(InvocationTimedOut):
            await handle.result()
        await handle.retry()
        env.store.check_liveness()
        await env.advance(20)
        await env.client.resolve(await env.awakeable(handle), "late")
        assert await handle.result() == "late"
        again = await env.client.start(asks.using(timeout=30))
        for _ in range(2):
            with pytest.raises(InvocationTimedOut):
                await again.result()
            await again.retry()


async def test_retry_by_another_process(tmp_path: Path):
    broken.add("three")
    url = f"sqlite:{tmp_path / 'restart.db'}"
    async with connect(url) as client, client.worker(*WORKFLOWS):
        handles = [await failed(client, each) for each in (four_steps, grouped, parent)]
    broken.clear()
    take_ran()
    async with connect(url) as client:
        # Accepted while nobody serves the workflows, and applied when somebody does.
        retries = [asyncio.create_task(client.handle(each.id).retry()) for each in handles]
        await asyncio.sleep(0.05)
        async with client.worker(*WORKFLOWS):
            await asyncio.gather(*retries)
            results = [await client.handle(each.id).result(timeout=60) for each in handles]
    assert results[0] == ["one", "two", "three", "four"]
    assert results[1] == ["first", "waits", "three", "quick"]
    assert results[2] == ["before", "one", "two", "three", "four"]
    assert not {"first", "before"} & {*take_ran()}
    async with connect(url) as client, client.worker(*WORKFLOWS):
        assert [await client.handle(each.id).result(timeout=60) for each in handles] == results


@pytest.mark.parametrize("always_replay", [True, False])
@pytest.mark.parametrize("body", [four_steps, grouped, parent], ids=lambda each: each.name)
async def test_a_crash_between_any_two_writes_of_a_retry_changes_nothing(body: Workflow[..., Any], always_replay: bool):
    asyncio.get_running_loop().set_exception_handler(report_all_but_crashes)
    crashed, point = True, 0
    while crashed:
        point += 1
        broken.add("three")
        take_ran()
        crashed = await retry_with_crash_at(point, body, always_replay=always_replay)
    assert point > 5


def report_all_but_crashes(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), (Crashed, StoreClosed)):
        loop.default_exception_handler(context)


async def retry_with_crash_at(point: int, body: Workflow[..., Any], *, always_replay: bool) -> bool:
    """Retry a failed invocation in a process that ends before its write `point`, and again in another; see it end.

    Return whether there was such a write.
    """
    store = MemoryStore()
    client = client_from(lambda: store)
    worker = Worker(lambda: store_behind(client.operations), WORKFLOWS, always_replay=always_replay)
    writes = 0
    crashed = asyncio.Event()

    def count(_kind: str, _id: str) -> None:
        nonlocal writes
        store.check_liveness()
        writes += 1
        if writes == point:
            crashed.set()
            raise Crashed

    await worker.__aenter__()
    handle = await failed(client, body)
    first = [each for each in take_ran() if each in ("first", "before")]
    broken.clear()
    store.hook = count
    ending = asyncio.ensure_future(retried_result(handle))
    await asyncio.wait([ending, asyncio.ensure_future(crashed.wait())], return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
    await worker.crash()
    if crashed.is_set():
        store.restart()
        client = client_from(lambda: store)
        worker = Worker(lambda: store_behind(client.operations), WORKFLOWS, always_replay=always_replay)
        await worker.__aenter__()
        with suppress(MessageRefused):  # the first one was applied
            await client.handle(handle.id).retry()
        await client.handle(handle.id).result(timeout=60)
        await asyncio.sleep(0.01)
        await worker.crash()
    assert not {*first} & {*take_ran()}
    store.check_liveness()
    return crashed.is_set()


async def retried_result(handle: Handle[Any]) -> None:
    await handle.retry()
    await handle.result(timeout=60)
    await asyncio.sleep(0.01)
