"""The life of an invocation as one table: which events are legal in which status, and what status follows.

An event that is not in the table is refused with the text of `refusal`, and nothing changes. All code that decides
whether something may be done to an invocation uses this table.
"""

from __future__ import annotations

from typing import Literal

from perdure.core.journal import Status

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


Verb = Literal["pause", "resume", "cancel", "retry"]
"""Events that are requested from outside."""

_DONE: dict[Verb, str] = {"pause": "paused", "resume": "resumed", "cancel": "cancelled", "retry": "retried"}


def refusal(status: Status, verb: Verb, /) -> str | None:
    """Return the reason why this status refuses the event; None when the table allows it."""
    if verb in TABLE[status]:
        return None
    *others, last = (each for each, events in TABLE.items() if verb in events)
    allowed = f"{', '.join(others)} or {last}" if others else last
    return f"it is {status}, and only a {allowed} invocation can be {_DONE[verb]}"


def refusing_status(reason: str, /) -> Status | None:
    """Return the status named by a `refusal`; None for other texts."""
    return _STATUS_OF.get(reason)


_STATUS_OF: dict[str, Status] = {
    reason: status for status in TABLE for verb in _DONE if (reason := refusal(status, verb)) is not None
}


MISFIT = "the value has the wrong shape"
"""How the reason begins why an answer was refused that its awakeable cannot have."""


def diagram() -> str:
    """Draw the table for the documentation, one line for each status."""
    lines: list[str] = []
    for status, events in TABLE.items():
        moves = ", ".join(f"{event} -> {following}" for event, following in events.items())
        lines.append(f"{status:<10} {moves or '(for ever)'}")
    return "\n".join(lines)
