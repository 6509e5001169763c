"""Bodies that run on without waiting: when they must rest, and for how long.

A body that polls (`while not task.done(): await asyncio.sleep(0)`), or a library that repeats a cancellation in every
round of the loop, always has something to run. After a number of callbacks the turn lets it rest: it stops the drain,
keeps the ready callbacks, and sets a timer of its own. The next fact or that timer lets the body go on. So other
invocations run meanwhile, time passes for a body that reads the clock, and the journal records the rests: a replay
rests there and nowhere else, even if the bounds have changed.
"""

from __future__ import annotations

CALLBACKS_PER_DRAIN_LIMIT = 10_000
"""Callbacks that a body may run after one fact without asking for anything, before it rests."""

RESTS_LIMIT = 100
"""Rests in a row of a body that waits for nothing else; it fails after that."""

STUCK_AFTER_RESTS = 13
"""Rests in a row, 8 seconds of them, after which a body that waits for nothing else counts as stuck."""

UNRESTED_CALLBACKS_LIMIT = 1_000_000
"""Callbacks that a replay runs without a rest where its journal has none, as those of earlier releases."""

SHORTEST_REST_SECONDS = 0.001
LONGEST_REST_SECONDS = 60.0
"""The first rest in a row, and the longest: each takes twice as long as the one before."""


def seconds_of(rest: int, /) -> float:
    """Return how long a rest takes, by its number in a row, from 0."""
    return min(LONGEST_REST_SECONDS, SHORTEST_REST_SECONDS * 2.0 ** min(rest, 30))
