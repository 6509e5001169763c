"""A message that reaches an invocation while it settles is answered, whatever the moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from perdure import InvocationCancelled, connect, step, workflow
from perdure.errors import MessageRefused

MOMENTS = 40


@step
async def shout(text: str) -> str:
    await asyncio.sleep(0.003)
    return text.upper()


@workflow
async def short(text: str) -> str:
    return await shout(text)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_cancel_at_any_moment_of_a_short_life_is_answered(kind: str, tmp_path: Path) -> None:
    url = "memory:" if kind == "memory" else f"sqlite:{tmp_path / 'store.db'}"
    async with connect(url) as client, client.worker(short):
        seen: set[str] = set()
        for moment in range(MOMENTS):
            handle = await client.start(short, "x")
            for _ in range(moment):
                await asyncio.sleep(0.0002)
            try:
                await asyncio.wait_for(handle.cancel(), 5)
                seen.add("applied")
            except MessageRefused:
                seen.add("refused")
            try:
                assert await asyncio.wait_for(handle.result(), 5) == "X"
            except InvocationCancelled:
                seen.add("cancelled")
        assert {"applied", "refused"} <= seen
