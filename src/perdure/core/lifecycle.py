"""The life of an invocation as one table: which event may happen in which status, and what status follows.

An event that is not in the table is illegal there: `after` raises `IllegalTransition` and nothing changes.
"""

from __future__ import annotations

from typing import Literal

from perdure.core.journal import Status
from perdure.errors import IllegalTransition

Event = Literal["due", "run", "suspend", "pause", "resume", "cancel", "complete", "fail", "end_cancelled", "retry"]

TABLE: dict[Status, dict[Event, Status]] = {
    "scheduled": {"due": "pending", "pause": "paused", "cancel": "cancelled", "run": "running"},
    "pending": {"run": "running", "pause": "paused", "cancel": "pending", "end_cancelled": "cancelled"},
    "running": {
        "suspend": "suspended",
        "pause": "paused",
        "cancel": "running",
        "complete": "completed",
        "fail": "failed",
        "end_cancelled": "cancelled",
    },
    "suspended": {"run": "running", "pause": "paused", "cancel": "suspended", "end_cancelled": "cancelled"},
    "paused": {"resume": "running", "cancel": "paused", "end_cancelled": "cancelled"},
    "completed": {},
    "failed": {"retry": "running"},
    "cancelled": {},
}

SETTLED: frozenset[Status] = frozenset({"completed", "failed", "cancelled"})
"""Statuses in which an invocation is at rest: only a retry of a failed one leaves them."""


def after(status: Status, event: Event, invocation_id: str, /) -> Status:
    """Return the status that follows `event`, or raise `IllegalTransition`."""
    following = TABLE[status].get(event)
    if following is None:
        raise IllegalTransition(
            f"cannot {event} invocation {invocation_id!r}: it is {status}", invocation_id=invocation_id, status=status
        )
    return following


def diagram() -> str:
    """Draw the table, one line for each status, for the documentation."""
    lines: list[str] = []
    for status, events in TABLE.items():
        moves = ", ".join(f"{event} -> {following}" for event, following in events.items())
        lines.append(f"{status:<10} {moves or '(for ever)'}")
    return "\n".join(lines)
