"""Pause an invocation, and resume it."""

from __future__ import annotations

from perdure.core.history import History
from perdure.core.journal import Entry, Message, Paused, Refused, Resumed
from perdure.core.lifecycle import refusal


def pause(message: Message, history: History, at: float, /) -> Entry:
    if (reason := refusal(history.status, "pause")) is not None:
        return Refused(at, message.id, reason)
    return Paused(at, "asked for", message.id)


def resume(message: Message, history: History, at: float, /) -> Entry:
    if (reason := refusal(history.status, "resume")) is not None:
        return Refused(at, message.id, reason)
    return Resumed(at, message.id)
