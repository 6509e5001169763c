"""Work that no caller awaits: a task that fails is logged, and a message that repeats is rate-limited."""

from __future__ import annotations

import logging

import pytest

from perdure.background import LOG_AGAIN_SECONDS, RateLimitedLog


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
