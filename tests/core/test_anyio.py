"""anyio in bodies, as agent frameworks use it: what it does on the loop works, and I/O is refused."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.abc import TaskStatus

from perdure.authoring.context import Context
from perdure.core import resting
from perdure.core.journal import Failed, SetTimer
from perdure.core.turn import Turn
from tests.core.driver import Body, Choose, Driver, first, last, play, step


@pytest.fixture(autouse=True)
def few_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting, "CALLBACKS_PER_DRAIN_LIMIT", 500)


def deadlines_first(turn: Turn) -> int:
    """Answer timers of the body first, and rests last."""

    def rank(n: int) -> tuple[int, int]:
        command = turn.pending[n].command
        return (1 if not isinstance(command, SetTimer) else 2 if command.rest else 0, n)

    return min(turn.pending, key=rank)


async def groups(ctx: Context) -> Any:
    seen: list[Any] = []

    async def branch(name: str) -> None:
        seen.append(await step(name))

    async with anyio.create_task_group() as group:
        for name in "abc":
            group.start_soon(branch, name)
    return sorted(seen)


async def groups_with_a_failure(ctx: Context) -> Any:
    ended: list[str] = []

    async def branch(name: str) -> None:
        try:
            await step(name)
        except anyio.get_cancelled_exc_class():
            ended.append(name)
            with anyio.CancelScope(shield=True):
                await step("undo", name)
            raise

    try:
        async with anyio.create_task_group() as group:
            for name in ("a", "bad", "c"):
                group.start_soon(branch, name)
    except* ValueError as refused:
        ended += [str(error) for error in refused.exceptions]
    return sorted(ended)


async def starts(ctx: Context) -> Any:
    async def service(name: str, *, task_status: TaskStatus[str]) -> None:
        task_status.started(await step(name))
        await step(f"{name} runs")

    async with anyio.create_task_group() as group:
        return [await group.start(service, "a"), await group.start(service, "b")]


async def moves_on(ctx: Context) -> Any:
    with anyio.move_on_after(0.2) as scope:
        await step("slow")
    return [scope.cancelled_caught, await step("then")]


async def does_not_move_on(ctx: Context) -> Any:
    with anyio.move_on_after(60) as scope:
        await step("a")
    return scope.cancelled_caught


async def moves_on_again_and_again(ctx: Context) -> Any:
    caught = 0
    for name in "abc":
        with anyio.move_on_after(0.2) as scope:
            await step(name)
        caught += scope.cancelled_caught
    return caught


async def moves_on_in_branches(ctx: Context) -> Any:
    seen: list[Any] = []

    async def branch(name: str, delay: float) -> None:
        with anyio.move_on_after(delay) as scope:
            await step(name)
        seen.append([name, scope.cancelled_caught])

    async with anyio.create_task_group() as group:
        group.start_soon(branch, "a", 0.1)
        group.start_soon(branch, "b", 60)
        group.start_soon(branch, "c", 0.2)
    return sorted(seen)


async def fails_after(ctx: Context) -> Any:
    try:
        with anyio.fail_after(0.2):
            await step("slow")
    except TimeoutError:
        return await step("late")


async def has_no_deadline(ctx: Context) -> Any:
    with anyio.move_on_after(math.inf), anyio.CancelScope(deadline=math.inf), anyio.fail_after(None):
        return await step("a")


async def shields(ctx: Context) -> Any:
    with anyio.move_on_after(0.2):
        try:
            await step("slow")
        finally:
            with anyio.CancelScope(shield=True):
                await step("undo")
    return await step("then")


async def cancels_a_scope(ctx: Context) -> Any:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 3600)
        group.start_soon(anyio.sleep_forever)
        group.start_soon(step, "slow")
        await step("a")
        group.cancel_scope.cancel()
    return "cancelled"


async def sleeps(ctx: Context) -> Any:
    began = anyio.current_time()
    await anyio.sleep(2)
    await anyio.sleep_until(began + 5)
    await anyio.lowlevel.checkpoint()
    return anyio.current_time() - began


async def signals(ctx: Context) -> Any:
    event, order = anyio.Event(), list[Any]()

    async def waits(name: str) -> None:
        await event.wait()
        order.append(await step(name))

    async with anyio.create_task_group() as group:
        group.start_soon(waits, "a")
        group.start_soon(waits, "b")
        await step("open")
        event.set()
    return sorted(order)


async def limits(ctx: Context) -> Any:
    lock, two, limiter = anyio.Lock(), anyio.Semaphore(2), anyio.CapacityLimiter(1)
    order: list[str] = []

    async def branch(name: str) -> None:
        async with two, limiter:
            await step(name)
        async with lock:
            order.append(name)

    async with anyio.create_task_group() as group:
        for name in "abcd":
            group.start_soon(branch, name)
    return order


async def notifies(ctx: Context) -> Any:
    condition, ready = anyio.Condition(), list[str]()

    async def waits() -> None:
        async with condition:
            while not ready:
                await condition.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(waits)
        ready.append(await step("a"))
        async with condition:
            condition.notify_all()
    return ready


async def streams(ctx: Context) -> Any:
    send, receive = anyio.create_memory_object_stream[Any](1)
    taken: list[Any] = []

    async def produce() -> None:
        async with send:
            for i in range(4):
                await send.send(await step("made", i))

    async with anyio.create_task_group() as group:
        group.start_soon(produce)
        async with receive:
            async for item in receive:
                taken.append(item)
                await step("taken", len(taken))
    return taken


async def mixes(ctx: Context) -> Any:
    async def branch() -> Any:
        with anyio.move_on_after(0.2):
            await step("slow")
        return await step("b")

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        task = group.create_task(branch())
    return task.result()


BODIES: tuple[Body, ...] = (
    *(groups, groups_with_a_failure, starts, moves_on, does_not_move_on, moves_on_again_and_again),
    *(moves_on_in_branches, fails_after, has_no_deadline, shields, cancels_a_scope, sleeps, signals, limits),
    *(notifies, streams, mixes),
)
ANSWERS = {"bad": ValueError("no")}


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
@pytest.mark.parametrize("choose", [first, last, deadlines_first], ids=lambda choose: choose.__name__)
def test_anyio_works_in_bodies_and_replays(body: Body, choose: Choose):
    play(body, lambda: choose, ANSWERS)
    play(body, lambda: choose, ANSWERS, batch=3)


@pytest.mark.parametrize(
    ("body", "choose", "value"),
    [
        (groups, last, ["a", "b", "c"]),
        (groups_with_a_failure, last, ["a", "no"]),
        (starts, first, ["a", "b"]),
        (moves_on, deadlines_first, [True, "then"]),
        (moves_on, first, [False, "then"]),
        (does_not_move_on, first, False),
        (moves_on_again_and_again, deadlines_first, 3),
        (fails_after, deadlines_first, "late"),
        (has_no_deadline, first, "a"),
        (shields, deadlines_first, "then"),
        (sleeps, first, 5.0),
        (signals, first, ["a", "b"]),
        (limits, first, ["a", "b", "c", "d"]),
        (streams, first, [["made", i] for i in range(4)]),
        (mixes, first, "b"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_anyio_means_what_it_means_elsewhere(body: Body, choose: Choose, value: Any):
    driver = Driver(body)
    driver.finish(choose, ANSWERS)
    assert driver.value == value


def failure_of(body: Body) -> str:
    driver = play(body)
    assert isinstance(driver.outcome, Failed)
    failure = driver.outcome.failure
    return f"{failure.type}: {failure.message}"


async def connects(ctx: Context) -> Any:
    await anyio.connect_tcp("127.0.0.1", 9)


async def connects_by_name(ctx: Context) -> Any:
    await anyio.connect_tcp("localhost", 9)


async def resolves(ctx: Context) -> Any:
    await anyio.getaddrinfo("localhost", 80)


async def listens(ctx: Context) -> Any:
    await anyio.create_tcp_listener(local_host="127.0.0.1")


async def runs_a_process(ctx: Context) -> Any:
    await anyio.run_process(["true"])


async def catches_signals(ctx: Context) -> Any:
    with anyio.open_signal_receiver(signal.SIGTERM):
        pass


async def fetches(ctx: Context) -> Any:
    httpx = pytest.importorskip("httpx")
    async with httpx.AsyncClient() as client:
        await client.get("http://127.0.0.1:9/")


called: list[str] = []


async def runs_in_a_thread(ctx: Context) -> Any:
    await anyio.to_thread.run_sync(called.append, "run_sync")


async def opens_a_file(ctx: Context) -> Any:
    def opener(path: str, flags: int) -> int:
        called.append(path)
        return os.open(path, flags)

    await anyio.open_file(os.devnull, "w", opener=opener)


async def looks_at_a_path(ctx: Context) -> Any:
    await anyio.Path(os.devnull).exists()


async def runs_in_a_thread_of_a_group(ctx: Context) -> Any:
    async def branch() -> None:
        await step("a")
        await anyio.to_thread.run_sync(called.append, "branch", abandon_on_cancel=True)

    async with anyio.create_task_group() as group:
        group.start_soon(branch)


async def runs_in_a_thread_of_a_task(ctx: Context) -> Any:
    await asyncio.create_task(anyio.to_thread.run_sync(called.append, "task"))


async def runs_in_a_thread_with_a_limit(ctx: Context) -> Any:
    with anyio.fail_after(5):
        await anyio.to_thread.run_sync(called.append, "limit", limiter=anyio.CapacityLimiter(1))


@pytest.mark.parametrize(
    "body",
    [
        *(runs_in_a_thread, opens_a_file, looks_at_a_path),
        *(runs_in_a_thread_of_a_group, runs_in_a_thread_of_a_task, runs_in_a_thread_with_a_limit),
    ],
    ids=lambda body: body.__name__,
)
def test_threads_of_anyio_are_refused_before_they_do_anything(body: Body):
    called.clear()
    threads = threading.active_count()
    told = failure_of(body)
    assert "IoInWorkflow" in told
    assert "put it in a step (@step)" in told
    assert called == []
    assert threading.active_count() == threads


async def test_threads_of_anyio_work_beside_bodies():
    assert await anyio.to_thread.run_sync(lambda: 7) == 7


@pytest.mark.parametrize(
    "body",
    [connects, connects_by_name, resolves, runs_a_process, catches_signals, fetches],
    ids=lambda body: body.__name__,
)
def test_real_io_is_refused_and_says_what_to_do(body: Body):
    told = failure_of(body)
    assert told.startswith("perdure.errors.IoInWorkflow: loop.")
    assert "put it in a step (@step)" in told


def test_a_library_that_looks_below_the_surface_finds_the_loop_of_a_task():
    async def body(ctx: Context) -> bool:
        return getattr(asyncio.current_task(), "_loop", None) is asyncio.get_running_loop()

    assert play(body).value is True
