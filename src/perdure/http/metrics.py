"""`GET /metrics`: what this process counted, and what the index of the store says, for Prometheus.

`METRICS` is the table of what there is. The numbers are read on the event loop and written in a thread, by
`prometheus-client`, which is imported on the first scrape.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from perdure.background import RateLimitedLog, end
from perdure.core.lifecycle import TABLE
from perdure.counters import HANDLERS_LIMIT, Counters, Histogram
from perdure.errors import PerdureError
from perdure.http.traffic import Traffic
from perdure.operations.port import Operations, Stats
from perdure.readings import READERS, Described, Reading, Sample, counts_of, histograms_of, one

if TYPE_CHECKING:
    from prometheus_client.core import Metric

STORE_SECONDS = 2.0
"""How long a scrape waits for what the store counts. After that it is answered without."""

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""The formats, as media types."""

log = logging.getLogger("perdure.http")


# --- what there is ----------------------------------------------------------------------------------------------------
_BUILD = Described("perdure_build_info", "gauge", "Always 1: the release of Perdure and Python.", ("version", "python"))
_STARTED_AT = Described("perdure_start_time_seconds", "gauge", "When this server began, in seconds since the epoch.")
_STORE_UP = Described("perdure_store_up", "gauge", "1 if the store answered this scrape in time, else 0.")
_BY_STATUS = Described("perdure_invocations", "gauge", "Invocations in the store.", ("status",))
_OLDEST = Described(
    *("perdure_oldest_pending_seconds", "gauge", "How long the oldest start has waited for a worker."), ("handler",)
)
_CURRENT = Described("perdure_index_current", "gauge", "1 if the index has all changes, 0 if NATS cannot be reached.")
_BEHIND = Described("perdure_index_behind", "gauge", "Changes on NATS that the index lacks, at least.")
_REQUESTS = Described(
    "perdure_http_requests", "counter", "HTTP requests that were answered.", ("method", "route", "status")
)
_REQUEST_SECONDS = Described(
    *("perdure_http_request_seconds", "histogram", "How long HTTP requests took until their answer began."),
    ("method", "route"),
)
_HTTP_WAITS = Described("perdure_http_waits", "gauge", "HTTP requests that wait for a result.")
_HTTP_STREAMS = Described("perdure_http_streams", "gauge", "HTTP streams of events that are open.")

METRICS: tuple[Described, ...] = (
    *(_BUILD, _STARTED_AT, _STORE_UP),
    *(_BY_STATUS, _OLDEST, _CURRENT, _BEHIND),
    *READERS,
    *(_REQUESTS, _REQUEST_SECONDS, _HTTP_WAITS, _HTTP_STREAMS),
)
"""All metrics, besides those of the process itself, which have the usual names (`process_…`)."""


# --- reading it -------------------------------------------------------------------------------------------------------
class Metrics:
    """What one application can tell. `counters` are None where its client's work is done elsewhere."""

    def __init__(self, operations: Operations, counters: Counters | None, traffic: Traffic) -> None:
        self._operations = operations
        self._counters = counters
        self._traffic = traffic
        self._began = time.time()
        self._counting: asyncio.Task[Stats] | None = None
        self._log = RateLimitedLog(log)

    async def aclose(self) -> None:
        """Ask the store no more. A scrape in progress is answered without it."""
        if self._counting is not None:
            await end([self._counting])

    async def text(self, accept: str, *, waits: int, streams: int) -> tuple[bytes, str]:
        """Return all metrics in the format that is asked for, and its media type."""
        stats = await self._stats()
        readings = [*self._read(stats), (_HTTP_WAITS, one(waits)), (_HTTP_STREAMS, one(streams))]
        return await asyncio.to_thread(write, readings, accept)

    async def _stats(self) -> Stats | None:
        """Ask the store what it counts; None if it does not say in time. Scrapes that come together ask once."""
        counting = self._counting
        if counting is None or counting.done():
            counting = self._counting = asyncio.ensure_future(self._operations.stats())
            counting.add_done_callback(_retrieve)
        await asyncio.wait([counting], timeout=STORE_SECONDS)
        if not counting.done():
            self._log("slow", "metrics: the store does not answer within %g s", STORE_SECONDS, level=logging.WARNING)
            return None
        if counting.cancelled():
            return None
        if (error := counting.exception()) is None:
            return counting.result()
        unforeseen = None if isinstance(error, PerdureError) else error
        self._log(type(error), "metrics: the store cannot be asked: %s", error, exc_info=unforeseen)
        return None

    def _read(self, stats: Stats | None) -> Iterator[Reading]:
        yield _BUILD, [Sample(_built(), 1)]
        yield _STARTED_AT, one(self._began)
        yield _STORE_UP, one(stats is not None)
        yield from _of_index(stats)
        counters = self._counters or Counters()
        yield from ((described, read(counters)) for described, read in READERS.items())
        yield _REQUESTS, counts_of(self._traffic.requests)
        yield _REQUEST_SECONDS, histograms_of(self._traffic.seconds)


@cache  # it is read from the disk
def _built() -> tuple[str, str]:
    return version("perdure"), platform.python_version()


def _retrieve(counting: asyncio.Task[Stats]) -> None:
    """Retrieve an error for which no scrape waits any more, so that asyncio does not warn."""
    if not counting.cancelled():
        counting.exception()


def _of_index(stats: Stats | None) -> Iterator[Reading]:
    if stats is None:
        yield from ((each, []) for each in (_BY_STATUS, _OLDEST, _CURRENT, _BEHIND))
        return
    yield _BY_STATUS, [Sample([status], stats.by_status.get(status, 0)) for status in TABLE]
    oldest = sorted(stats.pending_seconds.items(), key=lambda each: -each[1])[:HANDLERS_LIMIT]
    yield _OLDEST, [Sample([handler], seconds) for handler, seconds in oldest]
    yield _CURRENT, one(stats.is_current)
    yield _BEHIND, one(stats.behind)


# --- writing it -------------------------------------------------------------------------------------------------------
class _Collector:
    """Gives readings to prometheus-client."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        from prometheus_client import PROCESS_COLLECTOR  # noqa: PLC0415  only who is scraped imports it

        for described, samples in self._readings:
            yield _metric(described, samples)
        yield from PROCESS_COLLECTOR.collect()


def _metric(described: Described, samples: Sequence[Sample]) -> Metric:
    from prometheus_client import core  # noqa: PLC0415  only who is scraped imports it

    name, help, labels = described.name, described.help, described.labels
    if described.kind == "histogram":
        found = core.HistogramMetricFamily(name, help, labels=labels)
        for sample in samples:
            assert isinstance(sample.value, Histogram)
            found.add_metric(sample.labels, _buckets(sample.value), sample.value.sum)
        return found
    numbers = core.CounterMetricFamily if described.kind == "counter" else core.GaugeMetricFamily
    family = numbers(name, help, labels=labels)
    for sample in samples:
        assert not isinstance(sample.value, Histogram)
        family.add_metric(sample.labels, float(sample.value))
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return how many values there were up to each bound."""
    found: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        found.append((bound, total))
    return found


def write(readings: Sequence[Reading], accept: str) -> tuple[bytes, str]:
    """Return readings in the format that an `Accept` header asks for, and its media type."""
    # Not by the library's own choice, which takes the version from the header, and fails for some.
    from prometheus_client import generate_latest  # noqa: PLC0415  only who is scraped imports it
    from prometheus_client.openmetrics import exposition as openmetrics  # noqa: PLC0415

    asked = {each.partition(";")[0].strip().lower() for each in accept.split(",")}
    if OPENMETRICS.partition(";")[0] in asked:
        untyped: Any = openmetrics
        return untyped.generate_latest(_Collector(readings)), OPENMETRICS
    return generate_latest(_Collector(readings)), TEXT
