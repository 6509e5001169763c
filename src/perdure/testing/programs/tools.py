"""Plain asyncio as bodies use it: branches side by side, races, time limits, queues and what tasks meet at.

Nothing here knows of workflows. What is given as `make` or `act` makes a coroutine when it is called. Everything leaves
no task behind, also when it is cancelled itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any, assert_never

from perdure.testing.programs.program import LOST, SEMAPHORE, TIMED_OUT, Result, WaysTogether, WaysToGiveUp, WaysToGuard

Make = Callable[[], Coroutine[Any, Any, Result]]
Act = Callable[[str], Coroutine[Any, Any, str]]


class BrokenError(Exception):
    """What branches and programs fail with."""


def text_of(result: Result | BaseException) -> Result:
    """Return a result, or the text of a failure. What is no `BrokenError` is raised."""
    if isinstance(result, BrokenError):
        return str(result)
    if isinstance(result, BaseException):
        raise result
    return result


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended."""
    left = [each for each in tasks if not each.done()]
    for each in left:
        each.cancel()
    if left:
        await asyncio.wait(left)
    for each in left:
        if not each.cancelled():
            each.exception()  # seen


# --- branches ---------------------------------------------------------------------------------------------------------
async def together(makes: Sequence[Make], way: WaysTogether) -> Result:
    """Run branches, and return the result of each, or the text of its failure; of the first failure for some ways."""
    match way:
        case "gather":
            return await _gather(makes)
        case "gather all":
            found = await asyncio.gather(*(make() for make in makes), return_exceptions=True)
            return [text_of(each) for each in found]
        case "group":
            return await _group(makes)
        case "as_completed":
            return await _as_completed(makes)
        case "wait":
            tasks = [asyncio.create_task(make()) for make in makes]
            try:
                await asyncio.wait(tasks)
            finally:
                await end(tasks)
            return [text_of(each.exception() or each.result()) for each in tasks]
        case _:
            assert_never(way)


async def _gather(makes: Sequence[Make]) -> Result:
    tasks = [asyncio.create_task(make()) for make in makes]
    try:
        return await asyncio.gather(*tasks)
    except BrokenError as error:
        return str(error)
    finally:
        await end(tasks)


async def _group(makes: Sequence[Make]) -> Result:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(make()) for make in makes]
    except* BrokenError as errors:
        result: Result = str(errors.exceptions[0])
    else:
        result = [each.result() for each in tasks]
    return result


async def _as_completed(makes: Sequence[Make]) -> Result:
    async def numbered(number: int, make: Make) -> tuple[int, Result]:
        try:
            return number, await make()
        except BrokenError as error:
            error.args = (*error.args, number)
            raise

    tasks = [asyncio.create_task(numbered(number, make)) for number, make in enumerate(makes)]
    found: dict[int, Result] = {}
    try:
        for each in asyncio.as_completed(tasks):
            try:
                number, result = await each
            except BrokenError as error:
                result, number = error.args
            found[number] = result
    finally:
        await end(tasks)
    return [found[number] for number in range(len(makes))]


async def race(makes: Sequence[Make]) -> Result:
    """Run branches until the first has ended; return the results of those that had, and that the others lost."""
    tasks = [asyncio.create_task(make()) for make in makes]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(tasks)
    return [LOST if each.cancelled() else each.result() for each in tasks]


async def limit(seconds: float, make: Make, way: str) -> Result:
    """Run a branch for so long at most."""
    try:
        if way == "wait_for":
            return await asyncio.wait_for(make(), seconds)
        async with asyncio.timeout(seconds):
            return await make()
    except TimeoutError:
        return TIMED_OUT


async def shield(seconds: float, make: Make) -> Result:
    """Run a branch; a time limit in between does not touch it."""
    task = asyncio.create_task(make())
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.shield(task)
        return await task
    finally:
        await end([task])


async def give_up(seconds: float, wait: Callable[[], Coroutine[Any, Any, None]], way: WaysToGiveUp) -> bool:
    """Wait for what never comes, and give it up after so long; tell whether it was given up."""
    match way:
        case "timeout" | "limit":
            try:
                async with asyncio.timeout(seconds if way == "timeout" else None):
                    await wait()
            except TimeoutError:
                return True
            return False
        case "wait_for":
            try:
                await asyncio.wait_for(wait(), seconds)
            except TimeoutError:
                return True
            return False
        case "wait" | "cancel":
            task = asyncio.create_task(wait())
            try:
                if way == "wait":
                    await asyncio.wait([task], timeout=seconds)
                else:
                    await asyncio.sleep(seconds)
            finally:
                await end([task])
            return task.cancelled()
        case _:
            assert_never(way)


async def take(values: Sequence[str], count: int, act: Act, close: Callable[[], Awaitable[Any]]) -> Result:
    """Take some of what an async generator yields, and close it."""
    found: list[str] = []

    async def generate() -> AsyncIterator[str]:
        try:
            for each in values:
                yield await act(each)
        finally:
            await close()
            found.append("closed")

    generator: Any = generate()
    async with aclosing(generator):
        found += [await anext(generator) for _ in range(count)]
    return found


# --- what tasks meet at -----------------------------------------------------------------------------------------------
async def through_queue(values: Sequence[str], count: int, room: int, act: Act) -> Result:
    """Pass values through a queue to so many tasks, and return what they made of each, sorted."""
    queue: asyncio.Queue[str] = asyncio.Queue(room)
    found: list[str] = []

    async def work() -> None:
        while True:
            value = await queue.get()
            found.append(await act(value))
            queue.task_done()

    tasks = [asyncio.create_task(work()) for _ in range(count)]
    try:
        for each in values:
            await queue.put(each)
        await queue.join()
    finally:
        await end(tasks)
    return sorted(found)


async def guarded(values: Sequence[str], way: WaysToGuard, act: Act) -> Result:
    """Have a task for each value, which meet; return who did something in which order, where there is one."""
    match way:
        case "lock":
            return await _one_by_one(values, asyncio.Lock(), act)
        case "semaphore":
            return await _one_by_one(values, asyncio.Semaphore(SEMAPHORE), act)
        case "condition":
            return await _counted(values, act)
        case "event":
            return await _after_first(values, act)
        case "barrier":
            return await _at_barrier(values, act)
        case _:
            assert_never(way)


async def _one_by_one(values: Sequence[str], guard: asyncio.Lock | asyncio.Semaphore, act: Act) -> Result:
    inside, most = 0, 0
    entered: list[str] = []

    async def enter(value: str) -> None:
        nonlocal inside, most
        async with guard:
            entered.append(value)
            inside += 1
            most = max(most, inside)
            await act(value)
            inside -= 1

    async with asyncio.TaskGroup() as group:
        for each in values:
            group.create_task(enter(each))
    return [*entered, f"{most} at a time"]


async def _counted(values: Sequence[str], act: Act) -> Result:
    condition = asyncio.Condition()
    found: list[str] = []

    async def count(value: str) -> None:
        text = await act(value)
        async with condition:
            found.append(text)
            condition.notify_all()

    async with asyncio.TaskGroup() as group:
        for each in values:
            group.create_task(count(each))
        async with condition:
            await condition.wait_for(lambda: len(found) == len(values))
    return sorted(found)


async def _after_first(values: Sequence[str], act: Act) -> Result:
    event = asyncio.Event()
    found: list[str] = []

    async def follow(number: int, value: str) -> None:
        if number:
            await event.wait()
        found.append(await act(value))
        event.set()

    async with asyncio.TaskGroup() as group:
        for number, each in enumerate(values):
            group.create_task(follow(number, each))
    return [*found[:1], *sorted(found[1:])]


async def _at_barrier(values: Sequence[str], act: Act) -> Result:
    barrier = asyncio.Barrier(len(values))

    async def arrive(value: str) -> tuple[str, int]:
        text = await act(value)
        return text, await barrier.wait()

    found = await asyncio.gather(*(arrive(each) for each in values))
    return [*sorted(text for text, _ in found), *map(str, sorted(place for _, place in found))]
