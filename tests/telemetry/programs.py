"""What the processes of `test_processes` serve, with providers that send each span as it ends, and metrics.

`COLLECTOR` is where to send them, `RELEASE` a file for which `hold` waits, and `HELD` one to which it adds a line.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from perdure import Context, step, workflow
from tests.grpc.shop_pb2 import Cart, Line
from tests.grpc.shop_pb2_grpc import ShopStub


class ToCollector(SpanExporter):
    """Sends spans as JSON, in the form of the SDK, with the process that they come from."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            sent = {**json.loads(span.to_json()), "process": os.getpid()}
            urlopen(os.environ["COLLECTOR"], json.dumps(sent).encode()).close()
        return SpanExportResult.SUCCESS


class MetricsToCollector(MetricExporter):
    """Sends metrics as JSON, in the form of the SDK."""

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:
        urlopen(f"{os.environ['COLLECTOR']}/metrics", metrics_data.to_json(indent=None).encode()).close()
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None: ...


reader = PeriodicExportingMetricReader(MetricsToCollector(), export_interval_millis=200)
metrics.set_meter_provider(MeterProvider([reader]))
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ToCollector()))
trace.set_tracer_provider(provider)


@step
async def pick(order: str) -> str:
    with trace.get_tracer("theirs").start_as_current_span("inside"):
        return f"{order} picked"


@workflow
async def picks(order: str) -> str:
    return await pick(order)


@step
async def hold(order: str) -> str:
    with open(os.environ["HELD"], "a") as file:  # noqa: ASYNC230  one line
        file.write(f"{order}\n")
    while not Path(os.environ["RELEASE"]).exists():
        await asyncio.sleep(0.02)
    return order


@workflow
async def ships(ctx: Context, order: str) -> str:
    await ctx.stub(ShopStub).Checkout(Cart(id=order, lines=[Line(sku="a", cents=1)]))
    await picks(order)
    approved = await ctx.awakeable(str)
    await hold(order)
    await asyncio.sleep(0.5)
    return approved
