"""Retry: decides whether a failed invocation may be retried. `Turn.retry` does it."""

from __future__ import annotations

from perdure.core.history import History
from perdure.core.journal import Entry, Message, Refused, RetryInvocation
from perdure.core.lifecycle import refusal


def may_retry(message: Message, history: History, /) -> bool:
    """Report whether a message asks for a retry of a failed invocation and was not applied before."""
    asked = isinstance(message.request, RetryInvocation) and message.id not in history.messages
    return asked and refusal(history.status, "retry") is None


def retry(message: Message, history: History, at: float, /) -> Entry | None:
    if (reason := refusal(history.status, "retry")) is not None:
        return Refused(at, message.id, reason)
    return None  # the turn retries it, or has already
