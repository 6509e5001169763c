"""The statuses that an invocation can have. Stores write them beside journals."""

from __future__ import annotations

from typing import Literal, cast, get_args

from perdure.errors import NewerJournal

Status = Literal["scheduled", "pending", "running", "suspended", "paused", "completed", "failed", "cancelled"]

STATUSES: frozenset[str] = frozenset(get_args(Status))


def known_status(text: str, invocation_id: str, /) -> Status:
    """Return a status as it was stored, or raise `NewerJournal` if this release has no such status."""
    if text not in STATUSES:
        raise NewerJournal.of("status", text, invocation_id)
    return cast("Status", text)
