"""Context variables: a step sees those of the body that called it, and never those of a caller of the client."""

from __future__ import annotations

import asyncio
import decimal
import logging
from contextvars import ContextVar
from pathlib import Path

import pytest

from perdure import Retry, connect, step, workflow

SOON = 30.0

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@step
async def seen(_: str) -> str:
    return tenant.get()


@step
def seen_in_thread(_: str) -> str:
    return tenant.get()


@workflow
async def sees(word: str) -> list[str]:
    first = await asyncio.gather(seen(word), seen_in_thread(word))
    await asyncio.sleep(0.001)
    return [*first, await seen(word), tenant.get()]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_variables_of_a_caller_of_the_client_reach_no_body_and_no_step(kind: str, tmp_path: Path) -> None:
    url = "memory:" if kind == "memory" else f"sqlite:{tmp_path}/a.db"
    async with connect(url) as client, client.worker(sees, max_concurrent=2):

        async def request(n: int) -> list[str]:
            tenant.set(f"tenant {n}")
            return await client.run(sees, f"w{n}")

        async with asyncio.timeout(SOON):
            results = await asyncio.gather(*map(request, range(6)))
    assert results == [["nobody"] * 4] * 6


attempts: list[str] = []


@step(retry=Retry(max_attempts=3, initial=0.001))
async def fails_first() -> str:
    attempts.append(tenant.get())
    tenant.set("the step's")
    if len(attempts) < 3:
        raise ConnectionError
    return tenant.get()


@workflow
async def sets() -> list[str]:
    tenant.set("outer")

    async def branch(name: str) -> str:
        tenant.set(name)
        await asyncio.sleep(0.001)
        return await seen(name)

    return [*await asyncio.gather(branch("a"), branch("b")), await fails_first(), await seen(""), tenant.get()]


async def test_a_step_sees_the_variables_of_its_branch_of_the_body_at_each_attempt_and_changes_none() -> None:
    attempts.clear()
    async with connect("memory:") as client, client.worker(sets, cache=0):  # replayed after each wait
        result = await asyncio.wait_for(client.run(sets), SOON)
    assert result == ["a", "b", "the step's", "outer", "outer"]
    assert attempts == ["outer"] * 3


@step
async def third() -> str:
    return str(decimal.Decimal(1) / 3)


@workflow
async def rounds() -> str:
    with decimal.localcontext() as context:
        context.prec = 4
        return await third()


async def test_a_decimal_context_of_the_body_holds_in_its_steps() -> None:
    async with connect("memory:") as client, client.worker(rounds):
        assert await asyncio.wait_for(client.run(rounds), SOON) == "0.3333"


@workflow
async def fails_slowly() -> None:
    await asyncio.sleep(0.001)
    await fails_first()


async def test_what_the_worker_logs_has_the_variables_of_who_started_it(caplog: pytest.LogCaptureFixture) -> None:
    attempts.clear()
    logged: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(tenant.get())

    handler = Notes()
    log = logging.getLogger("perdure.worker")
    log.addHandler(handler)
    token = tenant.set("the service")
    try:
        async with connect("memory:") as client, client.worker(fails_slowly):
            tenant.set("a request")
            await asyncio.wait_for(client.run(fails_slowly), SOON)
    finally:
        tenant.reset(token)
        log.removeHandler(handler)
    assert logged == ["the service"] * 2
