"""Groups: many invocations run together, with a rule for when to stop waiting for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, cast

from msgspec import Struct

from perdure.core.retry import Duration, seconds
from perdure.errors import InvalidOption, InvocationCancelled

if TYPE_CHECKING:
    from perdure.authoring.workflow import Call, Workflow

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


# --- when to stop waiting ---------------------------------------------------------------------------------------------
class WaitForever(Struct, frozen=True):
    """Wait until every invocation has ended."""


class WaitForQuota(Struct, frozen=True):
    """Wait until `quota` invocations have completed, then cancel the others."""

    quota: int

    def __post_init__(self) -> None:
        _check_quota(self.quota)


class WaitDuration(Struct, frozen=True):
    """Wait for `duration` (seconds or a timedelta), then cancel what has not ended."""

    duration: Duration

    def __post_init__(self) -> None:
        seconds("WaitDuration(duration=…)", self.duration)


class WaitQuotaOrDuration(Struct, frozen=True):
    """Wait until `quota` have completed or `duration` has passed, whichever comes first, then cancel the others."""

    quota: int
    duration: Duration

    def __post_init__(self) -> None:
        _check_quota(self.quota)
        seconds("WaitQuotaOrDuration(duration=…)", self.duration)


Wait = WaitForever | WaitForQuota | WaitDuration | WaitQuotaOrDuration


def _check_quota(quota: int) -> None:
    if quota < 1:
        raise InvalidOption(f"quota={quota}: give at least 1")


# --- what became of each ----------------------------------------------------------------------------------------------
class Completed(Struct, Generic[R_co], frozen=True):
    """An invocation that returned `value`; `duration` in seconds from its start."""

    id: str
    value: R_co
    duration: float
    status: Literal["completed"] = "completed"


class Failed(Struct, frozen=True):
    """An invocation that raised `error`."""

    id: str
    error: BaseException
    duration: float
    status: Literal["failed"] = "failed"


class Cancelled(Struct, frozen=True):
    """An invocation that was cancelled, by the group or by somebody else; one that never started has no id."""

    id: str
    duration: float
    status: Literal["cancelled"] = "cancelled"


class Group(Generic[R_co]):
    """The outcomes of a group, in the order of its calls. `total_duration` is in seconds."""

    def __init__(self, results: Sequence[Completed[R_co] | Failed | Cancelled], total_duration: float) -> None:
        self.results = results
        self.total_duration = total_duration
        self.completed = sum(isinstance(each, Completed) for each in results)
        self.failed = sum(isinstance(each, Failed) for each in results)
        self.cancelled = sum(isinstance(each, Cancelled) for each in results)

    def values(self) -> list[R_co]:
        """Return the values of those that completed, in order."""
        return [each.value for each in self.results if isinstance(each, Completed)]


# --- running ----------------------------------------------------------------------------------------------------------
class Started(Protocol[R_co]):
    """A handle, as far as a group needs it."""

    id: str

    async def result(self) -> R_co: ...
    async def cancel(self) -> None: ...


class Starter(Protocol):
    """A client, as far as a group needs it."""

    async def start(self, workflow: Workflow[..., R], /, *args: Any, **kwargs: Any) -> Started[R]: ...


async def run_group(client: Starter, calls: Iterable[Call[R]], *, wait: Wait, concurrency: int | None) -> Group[R]:
    """Run calls through a client. What the rule leaves over is cancelled, and waited for."""
    handles: dict[int, str] = {}

    async def run(number: int, call: Call[R]) -> R:
        handle = await client.start(call.workflow, *call.args, **call.kwargs)
        handles[number] = handle.id
        try:
            return await handle.result()
        except asyncio.CancelledError:
            await handle.cancel()
            raise

    return await _gather([*calls], run, handles, wait, concurrency, time.monotonic)


async def run_children(
    invocation_id: str, calls: Iterable[Call[R]], *, wait: Wait | None, concurrency: int | None
) -> Group[R]:
    """Run calls as children of a workflow. The clock is the body's, so that durations repeat on replay."""
    ids: dict[int, str] = {}

    async def run(number: int, call: Call[R]) -> R:
        ids[number] = f"{invocation_id}[{number}]"
        return await call.workflow(*call.args, **call.kwargs)

    loop = asyncio.get_running_loop()
    return await _gather([*calls], run, ids, wait or WaitForever(), concurrency, loop.time)


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
    return Group(cast("Sequence[Completed[R] | Failed | Cancelled]", results), now() - began)


async def _all(tasks: Sequence[asyncio.Task[None]], reached: asyncio.Event) -> None:
    """Wait until every task has ended or the quota is reached."""
    ended = asyncio.gather(*(asyncio.shield(task) for task in tasks), return_exceptions=True)
    enough = asyncio.create_task(reached.wait())
    try:
        await asyncio.wait([asyncio.ensure_future(ended), enough], return_when=asyncio.FIRST_COMPLETED)
    finally:
        enough.cancel()
