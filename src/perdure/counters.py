"""What happens in this process, counted: plain numbers, kept where it happens, and read by whoever shows them.

Knows no library of metrics. All of it belongs to the event loop: a thread hands over what it has counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, ItemsView, Sequence

from msgspec import Struct

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


Labels = tuple[str, ...]
"""What tells the numbers of one metric apart, such as the handler."""


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

    def copy(self) -> Histogram:
        found = Histogram(self.bounds)
        found.counts, found.sum = self.counts[:], self.sum
        return found


class Counts:
    """How often something happened, by labels."""

    __slots__ = ("_by", "_limit")

    def __init__(self, limit: int) -> None:
        self._by: dict[Labels, int] = {}
        self._limit = limit

    def add(self, labels: Labels) -> None:
        by = self._by
        if labels not in by:
            labels = within(by, labels, self._limit)
            by.setdefault(labels, 0)
        by[labels] += 1

    def items(self) -> ItemsView[Labels, int]:
        return self._by.items()


class Histograms:
    """A histogram for each combination of labels."""

    __slots__ = ("_bounds", "_by", "_limit")

    def __init__(self, bounds: Sequence[float], limit: int) -> None:
        self._bounds = bounds
        self._by: dict[Labels, Histogram] = {}
        self._limit = limit

    def observe(self, labels: Labels, value: float) -> None:
        found = self._by.get(labels)
        if found is None:
            labels = within(self._by, labels, self._limit)
            found = self._by.setdefault(labels, Histogram(self._bounds))
        found.counts[bisect_left(self._bounds, value)] += 1
        found.sum += value

    def items(self) -> ItemsView[Labels, Histogram]:
        return self._by.items()


def within(known: Collection[Labels], labels: Labels, limit: int) -> Labels:
    """Return the labels under which to count what has new ones, so that there are about twice the limit at most.

    Beyond the limit, the last label is `OTHER`; beyond twice the limit, all are.
    """
    if len(known) < limit:
        return labels
    some = (*labels[:-1], OTHER)
    return some if some in known or len(known) < 2 * limit else (OTHER,) * len(labels)


class StoreCounters:
    """What one store did in this process."""

    __slots__ = ("batches", "ended", "transactions", "written_bytes")

    def __init__(self) -> None:
        self.written_bytes = 0
        self.ended = Counts(HANDLERS_LIMIT)  # by status and handler: before they had begun, and without a worker
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
        "steps",
        "store",
        "waits",
    )

    def __init__(self) -> None:
        self.store: StoreCounters | None = None
        self.loads: list[Callable[[], Load]] = []
        self.ended = Counts(3 * HANDLERS_LIMIT)  # by outcome, of which there are three, and handler
        self.waits = Histograms(LONG_SECONDS, HANDLERS_LIMIT)  # by handler: due until its body began
        self.steps = Histograms(LONG_SECONDS, STEPS_LIMIT)  # by handler and step: attempts
        self.attempts_failed = Counts(STEPS_LIMIT)  # by handler and step
        self.interrupted = 0  # attempts that were asked to end before they had
        self.recovered = 0  # invocations taken over from a worker that did not hand them over
        self.replays = Histogram(SHORT_SECONDS)
        self.commits = Histogram(SHORT_SECONDS)  # handed over until durable
        self.commits_failed = 0
