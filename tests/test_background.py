"""Work that no caller awaits: a task that fails is logged, and a message that repeats is rate-limited."""

from __future__ import annotations

import asyncio
import logging

import pytest

from perdure import background
from perdure.background import LOG_AGAIN_SECONDS, RateLimitedLog, Tasks


def test_repeated_message_is_logged_once_in_a_while_and_counted_in_between(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    limited = RateLimitedLog(logging.getLogger("perdure.jetstream"), lambda: now)
    for n in range(5):
        limited("full", "no room for %d", n)
    limited("other", "something else")
    now += LOG_AGAIN_SECONDS
    limited("full", "no room for %d", 9)
    assert [each.getMessage() for each in caplog.records] == [
        "no room for 0",
        "something else",
        "no room for 9 (and 4 times since this was last logged)",
    ]


async def test_task_that_takes_a_cancellation_for_something_else_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "CANCEL_AGAIN_SECONDS", 0.01)
    taken: list[int] = []

    async def goes_on() -> None:
        while len(taken) < 3:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                taken.append(1)

    tasks = Tasks(logging.getLogger("perdure.jetstream"))
    spawned = tasks.spawn(goes_on())
    await asyncio.sleep(0)
    await asyncio.wait_for(tasks.cancel(), 10)
    assert spawned.done()
    assert len(tasks) == 0
