"""What a simulation finds: an invariant of ARCHITECTURE.md that does not hold."""

from __future__ import annotations

INVARIANTS = {
    0: "an unforeseen exception stays with one invocation",
    1: "an acknowledged result is never lost or changed, except by a retry",
    2: "a step whose result was acknowledged never runs again, except after the failure that a retry supersedes",
    3: "one writer per journal position: a commit names the revision that it extends",
    4: "at most one owner makes progress",
    5: "invocations of a key never overlap, and start in the order of acceptance",
    6: "a timer never fires early, and fires once",
    7: "an accepted start or message is processed once per id",
    8: "a settled invocation changes only by a retry",
    9: "a cancellation reaches every descendant; cleanup runs to its end",
    10: "replay is a fixed point",
    11: "after a divergence or `close`, nothing leaves the turn",
    12: "limits are never exceeded and slots never leak",
    13: "when faults stop, every invocation ends",
    14: "journals of every release replay on the current code",
    15: "no derived id names two commands",
    16: "retention never makes anything run again",
    17: "what the engine came to is what the model says",
    18: "durable first, visible second",
    19: "what a release cannot read it leaves alone, and it serves the others",
    20: "a watcher sees changes in their order, and every end",
    21: "a compensation that has succeeded never runs again, and all its tries have one idempotency key",
}
"""By their numbers in ARCHITECTURE.md, and those that stand in its text or in the docstrings of the face."""


class Violation(Exception):
    """An invariant that does not hold."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"invariant {number} ({INVARIANTS[number]}): {text}")
        self.number = number
        self.text = text
