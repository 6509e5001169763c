from __future__ import annotations

import asyncio

import pytest

from perdure.cli.batch import run_batch, run_lanes
from perdure.cli.summary import Tally
from perdure.errors import InvocationCancelled, StoreFull


async def test_lanes_do_every_run_once_and_no_more_at_a_time() -> None:
    seen: list[int] = []
    running = most = 0

    async def run(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        seen.append(number)
        return number

    tally = Tally(1000)
    await run_lanes(run, tally, 7)
    assert sorted(seen) == list(range(1, 1001))
    assert (tally.completed, most) == (1000, 7)


async def test_every_outcome_is_counted() -> None:
    async def run(number: int) -> int:
        if number == 1:
            raise InvocationCancelled("cancelled")
        if number == 2:
            raise TimeoutError
        return number

    tally = Tally(4)
    await run_lanes(run, tally, 2)
    assert (tally.completed, tally.failed, tally.cancelled, tally.ended) == (2, 1, 1, 4)


async def test_store_that_fails_ends_the_batch_with_its_error() -> None:
    async def run(number: int) -> int:
        if number > 3:
            raise StoreFull("no space")
        return number

    tally = Tally(1000)
    with pytest.raises(StoreFull, match="no space"):
        await run_lanes(run, tally, 5)
    assert tally.completed == 3


async def test_batch_that_is_cancelled_prints_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    reached = asyncio.Event()

    async def run(number: int) -> int:
        if number > 5:
            reached.set()
            await asyncio.Event().wait()
        return number

    batch = asyncio.create_task(run_batch(run, count=10, concurrency=3, timeout=None))
    await reached.wait()
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert "Not ended: 5\n" in capsys.readouterr().out
