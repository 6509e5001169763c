"""The sync door: any coroutine of the client, from threads without a loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perdure import connect, step, workflow
from perdure.errors import InvalidOption


@step
def add(number: int) -> int:
    return number + 1


@workflow
async def adds(number: int) -> int:
    return await add(number)


@workflow
async def fails() -> None:
    raise LookupError("nothing here")


def test_sync_caller_runs_workflows_from_many_threads(tmp_path: Path) -> None:
    client = connect(f"sqlite:{tmp_path}/b.db")
    with client.blocking(client.worker(adds, fails)) as wait:
        assert wait(client.run(adds, 1)) == 2

        def run(number: int) -> int:
            return wait(client.run(adds, number))

        with ThreadPoolExecutor(4) as pool:
            assert [*pool.map(run, range(20))] == [*range(1, 21)]
        assert len([*wait.each(client.list(handler="adds"))]) == 21
        with pytest.raises(LookupError, match="nothing here"):
            wait(client.run(fails))


def test_blocking_a_loop_is_refused() -> None:
    client = connect("memory:")
    with client.blocking() as wait:

        async def inside() -> None:
            with pytest.raises(InvalidOption, match="await"):
                wait(client.stats())

        asyncio.run(inside())


def test_client_that_cannot_open_says_so(tmp_path: Path) -> None:
    client = connect(f"sqlite:{tmp_path}/missing/b.db")
    with pytest.raises(Exception, match="does not exist"), client.blocking():
        pass
