"""Turn a start away: only before its body has begun, which `core.unbegun` does."""

from __future__ import annotations

from perdure.core.journal import Entry, Message, Refused


def busy(message: Message, at: float, /) -> Entry:
    return Refused(at, message.id, "its body has begun")
