"""Bodies of scenario 9, each with a way to answer it, and a module to run: it replays their journals in this process.

    python -m tests.core.bodies record|replay FILE

`record` writes the journals of all bodies; `replay` makes junk on the heap, replays them and runs them again.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from perdure.authoring.context import Context
from perdure.core.journal import Frame, encode_frame
from tests.core.driver import Choose, Driver, first, in_order, last, step, timers_first

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


class Refusal(Exception):
    pass


async def steps(name: str, count: int) -> list[Any]:
    return [await step(f"{name}{i}") for i in range(count)]


async def two_steps(name: str) -> list[Any]:
    return await steps(name, 2)


# --- bodies -----------------------------------------------------------------------------------------------------------
async def gathers(ctx: Context) -> Any:
    return await asyncio.gather(steps("a", 3), steps("b", 3), steps("c", 3))


async def gathers_exceptions(ctx: Context) -> Any:
    results = await asyncio.gather(step("good"), step("bad"), step("better"), return_exceptions=True)
    return [repr(result) for result in results]


async def waits_for_the_first(ctx: Context) -> Any:
    tasks = [asyncio.create_task(step(name), name=name) for name in "abcdef"]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    order = [[task.get_name() for task in done], [task.get_name() for task in pending]]
    for task in pending:
        task.cancel()
        await step("cancelled", task.get_name())
    return order


async def waits_for_failures(ctx: Context) -> Any:
    tasks = [asyncio.create_task(step(name)) for name in ("good", "bad", "slow")]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION, timeout=60)
    rest, _ = await asyncio.wait(pending)
    return [[repr(task.exception()) for task in done], [task.result() for task in rest]]


async def takes_coroutines_as_completed(ctx: Context) -> Any:
    return [await result for result in asyncio.as_completed([step(name) for name in "abcdefgh"])]


async def takes_an_iterator_as_completed(ctx: Context) -> Any:
    order: list[Any] = []
    for result in asyncio.as_completed(map(two_steps, "abcd"), timeout=60):
        order.append(await result)
        await step("seen", order[-1])
    return order


async def takes_tasks_as_completed(ctx: Context) -> Any:
    tasks = {asyncio.create_task(step(name)) for name in "abcdefgh"}
    return [await result for result in asyncio.as_completed(tasks)]


async def takes_some_as_completed(ctx: Context) -> Any:
    try:
        return [await result for result in asyncio.as_completed([step("a"), asyncio.sleep(50, "b")], timeout=5)]
    except TimeoutError:
        return "too late"


async def groups(ctx: Context) -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(steps(name, 2)) for name in "abc"]
    return [task.result() for task in tasks]


async def groups_with_a_failure(ctx: Context) -> Any:
    ended: list[str] = []

    async def branch(name: str) -> None:
        try:
            await step(name)
            await step(f"{name} again")
        except asyncio.CancelledError:
            ended.append(name)
            await step("undo", name)
            raise

    try:
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "bad", "c", "d"):
                group.create_task(branch(name))
    except* Refusal as refused:
        ended += [str(error) for error in refused.exceptions]
    return ended


async def groups_in_groups(ctx: Context) -> Any:
    async def inner(name: str) -> None:
        async with asyncio.TaskGroup() as group:
            for i in range(3):
                group.create_task(step(f"{name}{i}"))
            group.create_task(step("bad" if name == "b" else "good"))

    seen: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(inner(name))
    except* Refusal as refused:
        seen = [f"{type(error).__name__}: {error}" for error in refused.exceptions]
    await step("after", len(seen))
    return seen


async def times_out(ctx: Context) -> Any:
    try:
        async with asyncio.timeout(5):
            await step("a")
            await step("slow")
    except TimeoutError:
        await step("late")
    async with asyncio.timeout(None) as other:
        other.reschedule(asyncio.get_running_loop().time() + 10)
        await step("c")
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() - 1):
            await step("never")
    except TimeoutError:
        return "twice"


async def waits_for_each(ctx: Context) -> Any:
    results: list[Any] = []
    for name in ("a", "slow", "c"):
        try:
            results.append(await asyncio.wait_for(step(name), 5))
        except TimeoutError:
            results.append("too late")
    both = await asyncio.gather(
        asyncio.wait_for(step("d"), 5), asyncio.wait_for(asyncio.sleep(50), 1), return_exceptions=True
    )
    return [*results, *map(repr, both)]


async def locks(ctx: Context) -> Any:
    lock = asyncio.Lock()
    order: list[str] = []

    async def branch(name: str) -> None:
        async with lock:
            order.append(name)
            await step(name)

    await asyncio.gather(*(branch(name) for name in "abcd"))
    return order


async def limits(ctx: Context) -> Any:
    two = asyncio.BoundedSemaphore(2)
    order: list[str] = []

    async def branch(name: str) -> None:
        async with two:
            await step(name)
            order.append(name)

    await asyncio.gather(*(branch(name) for name in "abcdef"))
    return order


async def queues(ctx: Context) -> Any:
    queue: asyncio.Queue[Any] = asyncio.Queue(2)
    taken: list[Any] = []

    async def consume(name: str) -> None:
        while True:
            item = await queue.get()
            taken.append([name, await step(name, item)])
            queue.task_done()

    consumers = [asyncio.create_task(consume(name)) for name in "xyz"]
    for item in range(8):
        await queue.put(item)
    await queue.join()
    for task in consumers:
        task.cancel()
    await asyncio.gather(*consumers, return_exceptions=True)
    return taken


async def signals(ctx: Context) -> Any:
    event, order = asyncio.Event(), list[Any]()

    async def branch(name: str) -> None:
        await event.wait()
        order.append(await step(name))

    async def opener() -> None:
        await step("open")
        event.set()

    await asyncio.gather(branch("a"), branch("b"), opener(), branch("c"))
    return order


async def notifies(ctx: Context) -> Any:
    condition, order = asyncio.Condition(), list[str]()
    ready = 0

    async def branch(name: str, least: int) -> None:
        async with condition:
            await condition.wait_for(lambda: ready >= least)
            order.append(name)
            await step(name)

    tasks = [asyncio.create_task(branch(name, least)) for name, least in (("a", 2), ("b", 1), ("c", 2))]
    for _ in range(2):
        await step("more")
        async with condition:
            ready += 1
            condition.notify_all()
    await asyncio.gather(*tasks)
    return order


async def meets(ctx: Context) -> Any:
    barrier, order = asyncio.Barrier(3), list[Any]()

    async def branch(name: str) -> None:
        await step(name)
        order.append([name, await barrier.wait()])
        await step(f"{name} after")

    await asyncio.gather(*(branch(name) for name in "abc"))
    return order


async def numbers(name: str, count: int) -> AsyncIterator[int]:
    try:
        for i in range(count):
            await step(name, i)
            yield i
    finally:
        await step(f"{name} closed")


async def generates(ctx: Context) -> Any:
    seen: list[int] = []
    seen += [i async for i in numbers("all", 2)]
    async for i in numbers("some", 9):
        seen.append(i)
        if i == 1:
            break
    await step("after")
    left_open = numbers("open", 9)
    await anext(left_open)
    seen.append(await anext(left_open))
    return seen


async def varies(ctx: Context) -> Any:
    seen: list[str] = []

    async def branch(name: str) -> None:
        before = colour.get()
        token = colour.set(name)
        await step(name, before)
        seen.append(colour.get())
        colour.reset(token)

    colour.set("outer")
    await asyncio.gather(branch("a"), branch("b"))
    return [*seen, colour.get()]


async def yields(ctx: Context) -> Any:
    order: list[str] = []

    async def branch(name: str, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
            order.append(name)
        await step(name)

    await asyncio.gather(branch("a", 1), branch("b", 3), branch("c", 2))
    return order


async def shields(ctx: Context) -> Any:
    inner = asyncio.ensure_future(step("kept"))
    try:
        async with asyncio.timeout(1):
            await asyncio.shield(inner)
    except TimeoutError:
        await step("meanwhile")
    return await inner


async def sleeps(ctx: Context) -> Any:
    order: list[float] = []

    async def branch(delay: float) -> None:
        order.append(await asyncio.sleep(delay, delay))

    await asyncio.gather(*(branch(delay) for delay in (3, 1, 2, 2, 0)))
    return [order, ctx.now().timestamp()]


async def is_random(ctx: Context) -> Any:
    drawn = [ctx.random.random(), str(ctx.uuid4())]
    await asyncio.gather(step("a"), step("b"))
    return [*drawn, ctx.random.randrange(10**9), str(ctx.uuid4()), ctx.now().isoformat()]


async def stacks(ctx: Context) -> Any:
    @asynccontextmanager
    async def held(name: str) -> AsyncGenerator[str, None]:
        await step("enter", name)
        try:
            yield name
        finally:
            await step("leave", name)

    async with AsyncExitStack() as stack:
        stack.push_async_callback(step, "pushed")
        for name in "ab":
            await stack.enter_async_context(held(name))
        await step("inside")
        async with held("c"):
            await step("bad")


async def drains_tasks(ctx: Context) -> Any:
    """Cancel a set of tasks and wait for them, as servers do."""
    tasks = {asyncio.create_task(step(name)) for name in "abcdef"}
    await step("then")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return sorted(task.cancelled() for task in tasks)


REFUSAL = {"bad": Refusal("no")}
WAYS: tuple[Callable[[], Choose], ...] = (
    lambda: first,
    lambda: last,
    lambda: timers_first,
    lambda: in_order(3, 1, 4, 2, 0),
)
BODIES = (
    *(gathers, gathers_exceptions, waits_for_the_first, waits_for_failures, takes_coroutines_as_completed),
    *(takes_an_iterator_as_completed, takes_tasks_as_completed, takes_some_as_completed, groups),
    *(groups_with_a_failure, groups_in_groups, times_out, waits_for_each, locks, limits, queues, signals, notifies),
    *(meets, generates, varies, yields, shields, sleeps, is_random, stacks, drains_tasks),
)


# --- another process --------------------------------------------------------------------------------------------------
def record() -> list[list[Frame]]:
    """Run every body in every way, with several facts in a frame, and return their journals."""
    journals: list[list[Frame]] = []
    for body in BODIES:
        for way in WAYS:
            driver = Driver(body, batch=2)
            driver.finish(way(), REFUSAL)
            driver.turn.close()
            journals.append(driver.frames)
    return journals


def shuffle_the_heap() -> list[object]:
    """Leave holes of many sizes on the heap, so that addresses have another order than in the last process."""
    chance = random.Random()
    junk: list[object] = [bytearray(chance.randrange(1, 2000)) for _ in range(20_000)]
    chance.shuffle(junk)
    del junk[chance.randrange(5_000, 15_000) :]
    return junk


def main(mode: str, path: Path) -> None:
    from tests.core.driver import make_turn  # noqa: PLC0415

    junk = shuffle_the_heap()
    journals = record()
    lines = [b"".join(map(encode_frame, frames)).hex() for frames in journals]
    if mode == "record":
        path.write_text("\n".join(lines))
        return
    assert lines == path.read_text().split("\n"), "a journal is not what it was"
    for number, frames in enumerate(journals):
        turn = make_turn(BODIES[number // len(WAYS)])
        turn.replay(frames)
        assert turn.divergence is None, f"{BODIES[number // len(WAYS)].__name__}: {turn.divergence}"
        turn.close()
    print(f"{len(journals)} journals, {len(junk)} pieces of junk")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
