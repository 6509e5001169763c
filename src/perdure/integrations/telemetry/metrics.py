"""The metrics of this process as observable instruments: they read the same numbers as `GET /metrics`, when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version

from opentelemetry import metrics

from perdure.client import Client
from perdure.counters import Counters, Histogram
from perdure.errors import InvalidOption
from perdure.readings import READERS, Described, Read, Sample


def observe(client: Client, provider: metrics.MeterProvider | None = None) -> None:
    """Let a meter provider (the default: the one that the program has set) observe what the workers of a client do.

    The names are those of `GET /metrics`. Of a histogram there are `NAME_count` and `NAME_sum`, since an observable
    instrument has no buckets. Call it once for a client; the instruments stay as long as the provider.
    """
    counters = client.counters
    if counters is None:
        raise InvalidOption("observe(client): a client of a server counts nothing: observe a client of the store")
    meter = (provider or metrics.get_meter_provider()).get_meter("perdure", version("perdure"))
    for described, read in READERS.items():
        unit = "s" if described.name.endswith("_seconds") else "By" if described.name.endswith("_bytes") else ""
        told = partial(_observed, described, read, counters)
        if described.kind == "gauge":
            meter.create_observable_gauge(described.name, [partial(told, _number)], unit, described.help)
        elif described.kind == "counter":
            meter.create_observable_counter(described.name, [partial(told, _number)], unit, described.help)
        else:
            meter.create_observable_counter(f"{described.name}_count", [partial(told, _count)], "", described.help)
            meter.create_observable_counter(f"{described.name}_sum", [partial(told, _sum)], unit, described.help)


def _observed(
    described: Described,
    read: Read,
    counters: Counters,
    part: Callable[[Sample], float],
    _: metrics.CallbackOptions,
) -> Iterable[metrics.Observation]:
    """Return a metric as it is now. The provider calls it, in a thread of its own."""
    return [
        metrics.Observation(part(sample), dict(zip(described.labels, sample.labels, strict=True)))
        for sample in read(counters)
    ]


def _number(sample: Sample) -> float:
    assert not isinstance(sample.value, Histogram)
    return sample.value


def _count(sample: Sample) -> float:
    assert isinstance(sample.value, Histogram)
    return sum(sample.value.counts)


def _sum(sample: Sample) -> float:
    assert isinstance(sample.value, Histogram)
    return sample.value.sum
