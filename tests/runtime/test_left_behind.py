"""A step that does not end when it is asked to: the body goes on after a grace, and the slot stays held."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure import InvocationCancelled, connect, step, workflow
from perdure.runtime import steps

GRACE_SECONDS = 0.1


class Stubborn:
    asked = 0
    ended = False
    let_go: asyncio.Event


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(steps, "CANCEL_GRACE_SECONDS", GRACE_SECONDS)
    Stubborn.asked, Stubborn.ended, Stubborn.let_go = 0, False, asyncio.Event()
    yield
    Stubborn.let_go.set()


@step
async def hangs_on() -> str:
    while not Stubborn.let_go.is_set():
        try:
            await Stubborn.let_go.wait()
        except asyncio.CancelledError:
            Stubborn.asked += 1
    Stubborn.ended = True
    return "at last"


@step
async def quick(word: str) -> str:
    return word


@workflow
async def patient() -> str:
    return await hangs_on()


@workflow
async def impatient() -> str:
    try:
        async with asyncio.timeout(0.05):
            return await hangs_on()
    except TimeoutError:
        return await quick("went on")


@workflow
async def other() -> str:
    return await quick("other")


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory:" if request.param == "memory" else f"sqlite:{tmp_path / 'store.db'}"


async def test_body_goes_on_without_a_step_that_does_not_end_and_its_slot_stays_held(url: str) -> None:
    async with connect(url) as client, client.worker(impatient, other, max_concurrent=1):
        assert await asyncio.wait_for(client.run(impatient), 10) == "went on"
        assert (Stubborn.asked, Stubborn.ended) == (1, False)
        waiting = await client.start(other)
        await asyncio.sleep(2 * GRACE_SECONDS)
        assert (await waiting.describe()).status == "pending", "it ran beside a step that had the only slot"
        Stubborn.let_go.set()
        assert await asyncio.wait_for(waiting.result(), 10) == "other"
        assert Stubborn.ended


async def test_cancel_ends_an_invocation_whose_step_does_not_end(url: str) -> None:
    async with connect(url) as client, client.worker(patient):
        handle = await client.start(patient)
        async with asyncio.timeout(10):
            while not (await handle.describe()).journal:
                await asyncio.sleep(0.01)
            await handle.cancel()
            with pytest.raises(InvocationCancelled):
                await handle.result()
        described = await handle.describe()
        assert [each.status for each in described.journal] == ["cancelled"]
        Stubborn.let_go.set()
        await asyncio.sleep(0.01)
        assert await handle.describe() == described, "a late result is no fact any more"
