"""What workers do beside their invocations: it begins with them, ends with them, and does not stop them."""

from __future__ import annotations

import asyncio
import logging

import pytest

from perdure import Client, connect, workflow
from perdure.errors import StoreClosed, StoreUnavailable
from perdure.operations.local import Local
from perdure.runtime import worker as module
from perdure.runtime.worker import Duty, Worker


@workflow
async def greet(name: str) -> str:
    return f"Hello, {name}"


def with_duty(client: Client, duty: Duty) -> Worker:
    assert isinstance(client.operations, Local)
    return Worker(client.operations.opened, [greet], duties=[duty])


async def test_a_duty_that_fails_begins_anew_and_its_worker_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DUTY_AGAIN_SECONDS", 0.0)
    begun = 0
    done, ended = asyncio.Event(), asyncio.Event()

    async def duty() -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise ZeroDivisionError("nobody foresaw it")
        if begun == 2:
            raise StoreUnavailable("the store is away")
        done.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    async with connect("memory:") as client:
        with caplog.at_level(logging.WARNING, "perdure.worker"):
            async with with_duty(client, duty):
                assert await client.run(greet, "Ada") == "Hello, Ada"
                await done.wait()
        assert ended.is_set()
    first, second = caplog.records
    assert "a duty of this worker has failed" in first.getMessage()
    assert first.exc_info is not None
    assert first.exc_info[0] is ZeroDivisionError
    assert second.getMessage() == "a duty of this worker rests for 0 s: the store is away"
    assert second.exc_info is None


@pytest.mark.parametrize("is_done", [True, False])
async def test_a_worker_stops_whether_its_duty_is_done_or_not(is_done: bool) -> None:
    async def duty() -> None:
        if not is_done:
            await asyncio.get_running_loop().create_future()
        raise StoreClosed("closed")

    async with (
        connect("memory:") as client,
        asyncio.timeout(10),
        with_duty(client, duty),
    ):
        assert await client.run(greet, "Ada") == "Hello, Ada"
