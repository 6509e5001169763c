"""A worker that is stopped at odd moments of its life."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from perdure import connect, workflow
from perdure.errors import InvalidOption


@workflow
async def echo(word: str) -> str:
    return word


@pytest.mark.parametrize("turns", range(4))
async def test_worker_that_is_stopped_while_it_begins_does_not_serve_and_may_begin_again(
    turns: int, tmp_path: Path
) -> None:
    async with connect(f"sqlite:{tmp_path}/app.db") as client:
        await client.aclose()
    client = connect(f"sqlite:{tmp_path}/app.db")
    worker = client.worker(echo)
    beginning = asyncio.ensure_future(worker.__aenter__())
    for _ in range(turns):
        await asyncio.sleep(0)
    await worker.stop()
    if beginning.done() or turns == 0:  # it had begun, or not yet
        await asyncio.wait([beginning])
        assert beginning.exception() is None
        await worker.stop()
    else:
        with pytest.raises(InvalidOption, match="this worker was stopped while it began to serve"):
            await beginning
    async with client, worker:
        assert await client.run(echo, "again") == "again"


async def test_stopping_a_worker_that_never_began_does_nothing() -> None:
    async with connect("memory:") as client:
        worker = client.worker(echo)
        await worker.stop()
        async with worker:
            assert await client.run(echo, "x") == "x"
