"""Metrics of what a client's counters hold: their names, what they are, and how each is read.

Knows no library of metrics. What reads may run in a thread: it copies before it looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from perdure.counters import Counters, Counts, Histogram, Histograms, Load, StoreCounters


class Described(Struct, frozen=True):
    """A metric. Counters are shown with `_total` after the name."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()

    @property
    def shown_name(self) -> str:
        return f"{self.name}_total" if self.kind == "counter" else self.name


class Sample(Struct, frozen=True):
    """One number of a metric, or a copy of a histogram, with the values of its labels."""

    labels: Sequence[str]
    value: float | Histogram


Reading = tuple[Described, list[Sample]]
"""A metric, as it is now."""

Read = Callable[[Counters], list[Sample]]


# --- reading ----------------------------------------------------------------------------------------------------------
def one(value: float | Histogram) -> list[Sample]:
    """Return the one sample of a metric without labels."""
    return [Sample((), value)]


def counts_of(counts: Counts) -> list[Sample]:
    """Return a sample for each count."""
    return [Sample(labels, count) for labels, count in [*counts.items()]]


def histograms_of(histograms: Histograms) -> list[Sample]:
    """Return a copy of each histogram."""
    return [Sample(labels, each.copy()) for labels, each in [*histograms.items()]]


def _sum(part: Callable[[Load], int]) -> Read:
    return lambda counters: one(sum(part(load()) for load in [*counters.loads]))


def _of_store(read: Callable[[StoreCounters], float | Histogram]) -> Read:
    return lambda counters: [] if counters.store is None else one(read(counters.store))


def _started(counters: Counters) -> list[Sample]:
    return [Sample(labels, sum(waits.counts)) for labels, waits in [*counters.waits.items()]]


def _ended(counters: Counters) -> list[Sample]:
    """Return how invocations ended, those included that ended without a worker."""
    counts = dict(counters.ended.items())
    for of, count in () if counters.store is None else [*counters.store.ended.items()]:
        counts[of] = counts.get(of, 0) + count
    return [Sample(labels, count) for labels, count in counts.items()]


# --- what there is ----------------------------------------------------------------------------------------------------
_WORKERS = Described("perdure_workers", "gauge", "Workers that run in this process.")
_USED = Described("perdure_slots_used", "gauge", "Slots of these workers that invocations with steps in progress use.")
_FREE = Described("perdure_slots_free", "gauge", "Slots of these workers that are free.")
_HELD = Described("perdure_invocations_held", "gauge", "Invocations that these workers hold in memory.")
_CACHED = Described("perdure_invocations_cached", "gauge", "Of these, those that wait and are kept to save a replay.")
_STARTED = Described(
    "perdure_invocations_started", "counter", "Invocations whose body began in this process.", ("handler",)
)
_ENDED = Described(
    *("perdure_invocations_ended", "counter", "Invocations that this process ended. One that is retried ends again."),
    ("outcome", "handler"),
)
_RECOVERED = Described(
    *("perdure_invocations_recovered", "counter"),
    "Invocations that this process took over from a worker that had not handed them over.",
)
_WAITS = Described(
    *("perdure_schedule_to_start_seconds", "histogram", "From when an invocation was due until its body began."),
    ("handler",),
)
_STEPS = Described("perdure_step_seconds", "histogram", "How long attempts of steps took.", ("handler", "step"))
_FAILED = Described("perdure_step_attempts_failed", "counter", "Attempts of steps that failed.", ("handler", "step"))
_INTERRUPTED = Described(
    *("perdure_steps_interrupted", "counter"),
    "Attempts that were asked to end: their body cancelled them, or the worker stopped or lost the invocation.",
)
_REPLAYS = Described("perdure_replay_seconds", "histogram", "How long replays of journals took.")
_COMMITS = Described("perdure_commit_seconds", "histogram", "From when a frame was handed to the store until durable.")
_NOT_COMMITTED = Described("perdure_commits_failed", "counter", "Commits that failed, and were retried.")
_BYTES = Described(
    *("perdure_written_bytes", "counter", "Bytes written to the store: frames and starts; on NATS all messages.")
)
_TRANSACTIONS = Described("perdure_transaction_seconds", "histogram", "How long transactions of SQLite took.")
_BATCHES = Described("perdure_transaction_writes", "histogram", "How many writes shared a transaction of SQLite.")

READERS: Mapping[Described, Read] = {
    _WORKERS: lambda each: one(len(each.loads)),
    _USED: _sum(lambda load: load.slots_used),
    _FREE: _sum(lambda load: load.slots_free),
    _HELD: _sum(lambda load: load.held),
    _CACHED: _sum(lambda load: load.cached),
    _STARTED: _started,
    _ENDED: _ended,
    _RECOVERED: lambda each: one(each.recovered),
    _WAITS: lambda each: histograms_of(each.waits),
    _STEPS: lambda each: histograms_of(each.steps),
    _FAILED: lambda each: counts_of(each.attempts_failed),
    _INTERRUPTED: lambda each: one(each.interrupted),
    _REPLAYS: lambda each: one(each.replays.copy()),
    _COMMITS: lambda each: one(each.commits.copy()),
    _NOT_COMMITTED: lambda each: one(each.commits_failed),
    _BYTES: _of_store(lambda store: store.written_bytes),
    _TRANSACTIONS: _of_store(lambda store: store.transactions.copy()),
    _BATCHES: _of_store(lambda store: store.batches.copy()),
}
"""The metrics of a client's counters, and how each is read."""
