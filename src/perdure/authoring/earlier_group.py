"""Groups as children, as they were before members had real ids. Kept so that journals of that time replay.

Its faults must stay: a member that completes while it is being cancelled counts as cancelled, and ids are made up. New
journals have a mark, and use `authoring.children`. Change nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from perdure.authoring.group import (
    Cancelled,
    Completed,
    Ended,
    Failed,
    Group,
    Wait,
    WaitDuration,
    WaitForQuota,
    WaitQuotaOrDuration,
)
from perdure.core.retry import seconds
from perdure.errors import InvalidOption, InvocationCancelled

if TYPE_CHECKING:
    from perdure.authoring.workflow import Call

R = TypeVar("R")


async def run_children(
    invocation_id: str, calls: Sequence[Call[R]], *, wait: Wait, concurrency: int | None
) -> Group[R]:
    """Run calls as children of a workflow. The clock is the body's, so that durations repeat on replay."""
    ids: dict[int, str] = {}

    async def run(number: int, call: Call[R]) -> R:
        ids[number] = f"{invocation_id}[{number}]"
        return await call.workflow(*call.args, **call.kwargs)

    loop = asyncio.get_running_loop()
    return await _gather(calls, run, ids, wait, concurrency, loop.time)


async def _gather(
    calls: Sequence[Call[R]],
    run: Callable[[int, Call[R]], Awaitable[R]],
    ids: dict[int, str],
    wait: Wait,
    concurrency: int | None,
    now: Callable[[], float],
) -> Group[R]:
    if concurrency is not None and concurrency < 1:
        raise InvalidOption(f"concurrency={concurrency}: give at least 1")
    began = now()
    results: list[Any] = [None] * len(calls)
    room = asyncio.Semaphore(concurrency or max(1, len(calls)))
    quota = wait.quota if isinstance(wait, (WaitForQuota, WaitQuotaOrDuration)) else len(calls) + 1
    reached = asyncio.Event()
    completed = 0

    async def one(number: int, call: Call[R]) -> None:
        nonlocal completed
        started = now()
        try:
            async with room:
                started = now()
                value = await run(number, call)
        except asyncio.CancelledError:
            results[number] = Cancelled(ids.get(number, ""), now() - started)
        except InvocationCancelled:
            results[number] = Cancelled(ids[number], now() - started)
        except Exception as error:  # noqa: BLE001  it is this call's outcome
            results[number] = Failed(ids.get(number, ""), error, now() - started)
        else:
            results[number] = Completed(ids[number], value, now() - started)
            completed += 1
            if completed >= quota:
                reached.set()

    tasks = [asyncio.create_task(one(number, call)) for number, call in enumerate(calls)]
    everything = asyncio.create_task(_all(tasks, reached))
    limit = wait.duration if isinstance(wait, (WaitDuration, WaitQuotaOrDuration)) else None
    try:
        async with asyncio.timeout(None if limit is None else seconds("duration", limit)):
            await asyncio.shield(everything)
    except TimeoutError:
        pass
    finally:
        everything.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, everything, return_exceptions=True)
    return Group(cast("Sequence[Ended[R]]", results), now() - began)


async def _all(tasks: Sequence[asyncio.Task[None]], reached: asyncio.Event) -> None:
    """Wait until every task has ended or the quota is reached."""
    ended = asyncio.gather(*(asyncio.shield(task) for task in tasks), return_exceptions=True)
    enough = asyncio.create_task(reached.wait())
    try:
        await asyncio.wait([asyncio.ensure_future(ended), enough], return_when=asyncio.FIRST_COMPLETED)
    finally:
        enough.cancel()
