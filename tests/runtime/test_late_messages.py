"""A message that reaches an invocation while it settles is answered, whatever the moment."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from perdure import InvocationCancelled, connect, step, workflow
from perdure.errors import MessageRefused

PATIENCE_SECONDS = 60

may_end = asyncio.Event()


@step
async def shout(text: str) -> str:
    await may_end.wait()
    return text.upper()


@workflow
async def short(text: str) -> str:
    return await shout(text)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_cancel_at_any_moment_of_a_short_life_is_answered(kind: str, tmp_path: Path) -> None:
    url = "memory:" if kind == "memory" else f"sqlite:{tmp_path / 'store.db'}"
    async with connect(url) as client, client.worker(short):
        applied, rounds = 0, 0
        while True:  # later each time, from while the step runs until it is too late
            may_end.clear()
            handle = await client.start(short, "x")
            if rounds > 0:
                may_end.set()
            for _ in range(rounds):
                await asyncio.sleep(0)
            try:
                await asyncio.wait_for(handle.cancel(), PATIENCE_SECONDS)
                applied += 1
            except MessageRefused:
                break
            with suppress(InvocationCancelled):
                assert await asyncio.wait_for(handle.result(), PATIENCE_SECONDS) == "X"
            rounds += 1 + rounds // 8
        assert applied > 0
        assert await asyncio.wait_for(handle.result(), PATIENCE_SECONDS) == "X"
