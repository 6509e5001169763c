"""A body that waits for what nothing can bring is logged with its line, and described so."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import Context, Handle, InvocationCancelled, connect, step, workflow
from perdure.errors import IllegalTransition

SOON = 30.0


@step
async def note(text: str) -> str:
    return text


async def event() -> None:
    await asyncio.Event().wait()  # event


async def future() -> None:
    await asyncio.get_running_loop().create_future()  # future


async def lock_taken_twice() -> None:
    lock = asyncio.Lock()
    async with lock:
        await lock.acquire()  # lock_taken_twice


async def empty_queue() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    await queue.get()  # empty_queue


async def task_of_its_own() -> None:
    async def inner() -> None:
        await asyncio.Event().wait()

    await asyncio.create_task(inner())  # task_of_its_own


async def after_a_step() -> None:
    await note("first")
    await asyncio.Event().wait()  # after_a_step


WAITS: list[Callable[[], Awaitable[None]]] = [
    event,
    future,
    lock_taken_twice,
    empty_queue,
    task_of_its_own,
    after_a_step,
]


def line_of(wait: Callable[..., object]) -> str:
    """Return the place in this file that is marked with the name of a function."""
    name = wait.__name__
    lines = inspect.getsource(inspect.getmodule(wait) or wait).splitlines()
    [number] = [n for n, line in enumerate(lines, start=1) if line.endswith(f"  # {name}")]
    return f"{Path(__file__).name}:{number}, in {name}"


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "perdure.worker" and record.levelno == logging.WARNING
    ]


async def described_as_waiting(handle: Handle[Any]) -> str:
    async with asyncio.timeout(SOON):
        while (info := await handle.describe()).status != "suspended" or info.waiting_for is None:
            await asyncio.sleep(0.01)
    return info.waiting_for


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.__name__)
async def test_body_that_nothing_can_wake_is_a_warning_with_its_line_and_described_so(
    wait: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    @workflow(name="waits")
    async def waits() -> None:
        await wait()

    async with connect("memory:") as client, client.worker(waits):
        handle = await client.start(waits.using(id="w"))
        waiting_for = await described_as_waiting(handle)
        line = line_of(wait)
        assert waiting_for == f"something that nothing can bring: its body waits at {line}"
        told = f"invocation w (waits) waits at {line} for something that nothing can bring: no step, timer, child or "
        told += "awakeable is pending. Only a cancellation or its time limit can end it"
        assert warnings_in(caplog) == [told]
        await handle.cancel()
        with pytest.raises(InvocationCancelled):
            await asyncio.wait_for(handle.result(), SOON)
        assert (await handle.describe()).waiting_for is None


async def test_stuck_body_is_logged_once_however_often_it_is_woken(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    @workflow(name="waits")
    async def waits() -> None:
        await event()

    url = f"sqlite:{tmp_path / 'db'}"
    for _ in range(2):  # the second worker replays it
        async with connect(url) as client, client.worker(waits):
            handle = await client.start(waits.using(id="w"))
            assert "nothing can bring" in await described_as_waiting(handle)
            with pytest.raises(IllegalTransition):
                await asyncio.wait_for(handle.resume(), SOON)
            assert "nothing can bring" in await described_as_waiting(handle)
    assert len([text for text in warnings_in(caplog) if "nothing can bring" in text]) == 1


@pytest.mark.parametrize("at_once", [True, False])
async def test_future_of_another_loop_fails_the_body_that_awaits_it(at_once: bool) -> None:
    other = asyncio.new_event_loop()
    waiting = other.create_future()
    other.close()

    @workflow(name="waits")
    async def waits() -> None:
        if not at_once:
            await note("first")
        await waiting

    async with connect("memory:") as client, client.worker(waits):
        with pytest.raises(RuntimeError, match="attached to a different loop"):
            await asyncio.wait_for(client.run(waits), SOON)


async def test_body_that_something_can_wake_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    @workflow(name="waits")
    async def waits(ctx: Context) -> str:
        answer = await ctx.awakeable(str)
        async with asyncio.timeout(3600):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return answer
        return answer

    async with connect("memory:") as client, client.worker(waits):
        handle = await client.start(waits.using(id="w"))
        assert (await described_as_waiting(handle)).startswith("AWAKEABLE:")
        [awakeable] = (await handle.describe()).awakeables
        await client.resolve(awakeable.id, "yes")
        async with asyncio.timeout(SOON):
            while not (await described_as_waiting(handle)).startswith("SLEEP until "):
                await asyncio.sleep(0.01)
        assert warnings_in(caplog) == []
