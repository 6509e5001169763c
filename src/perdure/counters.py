"""What happens in this process, counted: plain numbers, kept where it happens, and read by whoever shows them.

Knows no library of metrics. All of it belongs to the event loop: a thread hands over what it has counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, TypeVar

from msgspec import Struct

T = TypeVar("T")

SHORT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets for what takes milliseconds: commits, transactions, replays, requests."""
LONG_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""... for what may take from milliseconds to hours: steps, and starts that wait for a worker."""
BATCH_SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0)
"""... for how many writes share a transaction."""

HANDLERS_LIMIT = 100
"""Handlers that are counted apart; the others are counted together, as `OTHER`."""
STEPS_LIMIT = 200
"""Steps that are counted apart, of all handlers together; the others are counted together, as `OTHER`."""
OTHER = "other"


class Count:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Histogram:
    """How often there were values up to each bound, and their sum. `counts` has one more: of those above the last."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Series(Generic[T]):
    """One number for each combination of labels, made when it is first asked for.

    Once there are `limit`, what is new is counted under the same labels with `OTHER` as the last, and once there are
    as many of these, under `OTHER` alone.
    """

    __slots__ = ("_by_labels", "_limit", "_make")

    def __init__(self, make: Callable[[], T], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._by_labels: dict[tuple[str, ...], T] = {}

    def of(self, *labels: str) -> T:
        found = self._by_labels.get(labels)
        return self._new(labels) if found is None else found

    def _new(self, labels: tuple[str, ...]) -> T:
        if len(self._by_labels) >= self._limit:
            labels = (*labels[:-1], OTHER)
        if len(self._by_labels) >= 2 * self._limit and labels not in self._by_labels:
            labels = (OTHER,) * len(labels)
        if labels not in self._by_labels:
            self._by_labels[labels] = self._make()
        return self._by_labels[labels]

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], T]]:
        return iter(self._by_labels.items())


class StoreCounters:
    """What one store did in this process."""

    __slots__ = ("batches", "cancelled", "transactions", "written_bytes")

    def __init__(self) -> None:
        self.written_bytes = 0
        self.cancelled = Series(Count, HANDLERS_LIMIT)  # by handler: before they had begun, and without a worker
        self.transactions = Histogram(SHORT_SECONDS)  # of SQLite
        self.batches = Histogram(BATCH_SIZES)  # writes of one transaction


class Load(Struct, frozen=True):
    """How busy a worker is: slots in use and free, invocations that it holds, those of them that are cached."""

    slots_used: int
    slots_free: int
    held: int
    cached: int


class Counters:
    """What the workers of one client did in this process.

    `store` is what its store did, once that has been opened. `loads` tell how busy the workers are that run now.
    """

    __slots__ = (
        "attempts_failed",
        "commits",
        "commits_failed",
        "ended",
        "interrupted",
        "loads",
        "recovered",
        "replays",
        "started",
        "steps",
        "store",
        "waits",
    )

    def __init__(self) -> None:
        self.store: StoreCounters | None = None
        self.loads: list[Callable[[], Load]] = []
        self.started = Series(Count, HANDLERS_LIMIT)  # by handler: bodies that began
        self.ended = Series(Count, HANDLERS_LIMIT)  # by outcome and handler
        self.waits = Series(partial(Histogram, LONG_SECONDS), HANDLERS_LIMIT)  # by handler: due until begun
        self.steps = Series(partial(Histogram, LONG_SECONDS), STEPS_LIMIT)  # by handler and step: attempts
        self.attempts_failed = Series(Count, STEPS_LIMIT)  # by handler and step
        self.interrupted = 0  # attempts that were asked to end before they had
        self.recovered = 0  # invocations taken over from a worker that did not hand them over
        self.replays = Histogram(SHORT_SECONDS)
        self.commits = Histogram(SHORT_SECONDS)  # handed over until durable
        self.commits_failed = 0
