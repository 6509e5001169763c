"""When a step began and how long it took, as its journal says; and that a thread runs it once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from perdure import Retry, connect, step, workflow
from perdure.core.journal import Returned
from perdure.testing import Environment

TOOK = 0.2


@step
async def slow() -> str:
    await asyncio.sleep(TOOK)
    return "done"


@step(retry=Retry(max_attempts=2, initial=0.1, jitter=0))
async def twice() -> None:
    await asyncio.sleep(TOOK)
    raise ConnectionError("away")


@step
def in_thread() -> str:
    return "done"


@workflow
async def three() -> None:
    await slow()
    await in_thread()
    try:
        await twice()
    except ConnectionError:
        return


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_step_started_when_its_first_attempt_began(kind: str, tmp_path: Path) -> None:
    url = "memory:" if kind == "memory" else f"sqlite:{tmp_path / 'db'}"
    async with connect(url) as client, client.worker(three):
        handle = await client.start(three)
        await asyncio.wait_for(handle.result(), 30)
        described = await handle.describe()
    first, thread, last = described.journal
    for each in (first, thread, last):
        assert each.started_at is not None
        assert each.ended_at is not None
        assert each.took is not None
        assert described.created_at is not None
        assert described.created_at <= each.started_at <= each.ended_at
        assert described.started_at is not None
        assert described.ended_at is not None
        assert described.started_at <= each.started_at
        assert each.ended_at <= described.ended_at
    assert first.took is not None
    assert first.took >= TOOK * 0.9
    assert first.ended_at is not None
    assert first.started_at is not None
    assert abs((first.ended_at - first.started_at).total_seconds() - first.took) < 0.001
    assert last.ended_at is not None
    assert last.started_at is not None
    assert last.ended_at - last.started_at >= timedelta(seconds=2 * TOOK * 0.9 + 0.1), "from the first attempt on"


async def test_times_of_steps_in_the_test_environment_are_those_of_its_clock() -> None:
    async def takes_an_hour() -> str:
        return "done"

    async with Environment(three) as env:
        env.fake(slow, takes_an_hour)
        handle = await env.client.start(three)
        await handle.result()
        first = (await handle.describe()).journal[0]
        assert first.took == 0.0


def test_outcomes_of_older_releases_have_no_duration() -> None:
    make: Callable[..., Any] = Returned
    assert make(1, 1.5, b"\x01").took is None


async def test_step_whose_thread_could_not_be_started_runs_once_it_can_and_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pool of the standard library keeps in its queue what it refuses because no thread can be started."""
    ran: list[int] = []
    refusals = [3]
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("perdure-step") and refusals[0]:
            refusals[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    @step(retry=Retry(initial=0.01))
    def counted() -> int:
        ran.append(1)
        return len(ran)

    @workflow
    async def counts() -> int:
        return await counted()

    monkeypatch.setattr(threading.Thread, "start", refuse)
    async with connect("memory:") as client:
        async with client.worker(counts):
            assert await client.run(counts) == 1
        assert (refusals, len(ran)) == ([0], 1)  # the worker has ended, and its threads with it
