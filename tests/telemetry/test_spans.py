"""What is emitted for one invocation, in one process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler

from perdure import Context, Retry, connect, step, workflow
from perdure.client import Client
from perdure.core.exported import load
from perdure.core.journal import CallChild, SendStart, Start
from perdure.integrations.telemetry import find_tracer, observe
from perdure.integrations.telemetry.spans import Tracing
from perdure.operations.local import Local
from perdure.runtime.trail import Trail
from perdure.tracing import TraceContext, checked, current, here
from tests.http.conftest import site_on
from tests.http.test_metrics import one, run_known_program, scrape
from tests.http.watched import WATCHED

COMPOSER = sys.modules["perdure.connect"]
GIVEN = "00-11111111111111111111111111111111-2222222222222222-01"
UNSAMPLED = GIVEN.removesuffix("01") + "00"


class Traced:
    """A provider with an exporter in memory; connections made meanwhile use it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sampler: Sampler = ALWAYS_ON) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=ParentBased(sampler))
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        tracing = Tracing(self.provider.get_tracer("perdure"))
        monkeypatch.setattr(COMPOSER, "tracer_in_use", lambda: tracing)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    @property
    def told(self) -> list[tuple[str, str | int | None, str | None]]:
        """The names of the spans in the order of their ends, with the outcome and the class of the error."""
        found: list[tuple[str, Any, Any]] = []
        for each in sorted(self.spans, key=lambda each: each.end_time or 0):
            attributes = each.attributes or {}
            found.append((each.name, attributes.get("perdure.outcome"), attributes.get("error.type")))
        return found


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Traced:
    return Traced(monkeypatch)


@step
async def add(a: int) -> int:
    return a + 1


@step(retry=Retry(max_attempts=2, initial=0.001))
async def refuse(secret: str) -> None:
    raise ValueError(secret)


@workflow
async def adds(a: int) -> int:
    return await add(a)


@workflow
async def refuses(secret: str) -> None:
    await refuse(secret)


@workflow
async def calls(ctx: Context, a: int) -> int:
    b = await adds(a)
    ctx.send(adds, b)
    await asyncio.sleep(0.01)
    return await adds(b)


async def starts_of(client: Client) -> dict[str, Start]:
    """Return the starts of all invocations, by id."""
    assert isinstance(client.operations, Local)
    store = await client.operations.opened()
    found = [await store.start(each.id) async for each in client.list()]
    return {each.id: each for each in found if each is not None}


# --- the ids ----------------------------------------------------------------------------------------------------------
async def test_ids_follow_from_the_journal_and_what_is_started_carries_them(traced: Traced) -> None:
    async with connect("memory:") as client, client.worker(calls, adds):
        handle = await client.start(calls, 1)
        await handle.result()
        while len([each async for each in client.list(status="completed")]) < 4:
            await asyncio.sleep(0.001)
        assert isinstance(client.operations, Local)
        store = await client.operations.opened()
        (start,) = [each for each in (await starts_of(client)).values() if each.handler == "calls"]
        frames = (await store.journal(handle.id)).frames
        assert load(await handle.export()).start.trace == start.trace
    emitted = [each.context for each in traced.spans if each.name == "turn calls"]
    trail, derived = Trail(start, lambda _id, _name: True), list[TraceContext]()
    for frame in frames:
        before = trail.turn_of(frame.entries)
        trail.add(frame, "running", ())
        for command in frame.commands:
            if isinstance(command, (CallChild, SendStart)):
                assert command.start.trace == str(trail.turn) == str(before)
        derived += [each.context for each in trail.take(1.0)]
    assert [(each.trace_id, each.span_id) for each in derived] == [
        (each.trace_id, each.span_id) for each in emitted if each is not None
    ]
    assert len({each.trace_id for each in derived}) == 2


async def test_a_second_start_of_the_same_id_and_a_replay_emit_nothing(traced: Traced) -> None:
    async with connect("memory:") as client:
        async with client.worker(adds):
            for _ in range(3):
                assert await client.run(adds.using(id="i"), 1) == 2
        before = traced.told
        assert [name for name, *_ in before].count("start adds") == 1
        async with client.worker(adds):
            assert await client.handle("i", adds).result() == 2
    assert traced.told == before


async def test_failures_are_told_by_their_class_and_a_retry_begins_a_linked_trace(traced: Traced) -> None:
    async with connect("memory:") as client, client.worker(refuses):
        handle = await client.start(refuses, "hunter2")
        with pytest.raises(ValueError, match="hunter2"):
            await handle.result()
        first = len(traced.spans)
        await handle.retry()
        with pytest.raises(ValueError, match="hunter2"):
            await handle.result()
    attempt = ("attempt refuse", "failed", "ValueError")
    assert traced.told.count(attempt) == 4
    assert ("turn refuses", "failed", "ValueError") in traced.told
    creation, retried = traced.spans[0].context, traced.spans[first]
    assert creation is not None
    assert (retried.parent, [each.context.span_id for each in retried.links]) == (None, [creation.span_id])
    attempts = [each.attributes or {} for each in traced.spans if each.name == attempt[0]]
    assert [each["perdure.attempt"] for each in attempts] == [1, 2, 1, 2]
    assert "hunter2" not in "".join(each.to_json() for each in traced.spans)


async def test_a_delayed_start_begins_in_a_trace_of_its_own(traced: Traced) -> None:
    async with connect("memory:") as client, client.worker(adds):
        await client.run(adds.using(delay=0.02), 1)
    creation, turn = (next(each for each in traced.spans if each.name == f"{kind} adds") for kind in ("start", "turn"))
    assert creation.context is not None
    assert (turn.parent, [each.context.span_id for each in turn.links]) == (None, [creation.context.span_id])


# --- sampling ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("given", "sampler", "is_emitted"), [(GIVEN, ALWAYS_OFF, True), (UNSAMPLED, ALWAYS_ON, False)])
async def test_the_flag_of_the_creation_counts_for_all_its_traces(
    monkeypatch: pytest.MonkeyPatch, given: str, sampler: Sampler, is_emitted: bool
) -> None:
    traced = Traced(monkeypatch, sampler)
    here.set(given)
    async with connect("memory:") as client, client.worker(calls, adds):
        await client.run(calls, 1)
        starts = await starts_of(client)
    assert [each.name for each in traced.spans if each.parent is None] == ["turn calls"] * is_emitted  # after the wait
    assert len({each.context.trace_id for each in traced.spans if each.context}) == 2 * is_emitted
    assert {each.trace[-2:] for each in starts.values()} == {given[-2:]}


async def test_what_was_started_without_a_trace_has_one_if_the_sampler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for sampler, count in ((ALWAYS_ON, 2), (ALWAYS_OFF, 0)):
        async with AsyncExitStack() as parts:
            with monkeypatch.context() as off:
                off.setattr(COMPOSER, "tracer_in_use", lambda: None)
                client = await parts.enter_async_context(connect("memory:"))
            handle = await client.start(adds, 1)
            traced = Traced(monkeypatch, sampler)
            tracing = Tracing(traced.provider.get_tracer("perdure"))
            worker = client.worker(adds)
            worker._tracer = lambda tracing=tracing: tracing  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            await parts.enter_async_context(worker)
            await handle.result()
        assert len(traced.spans) == count
        assert len({each.context.trace_id for each in traced.spans if each.context}) == min(count, 1)


# --- what goes wrong --------------------------------------------------------------------------------------------------
class Broken(SpanProcessor, Sampler):
    """Fails at whatever it is asked."""

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        raise RuntimeError("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("on_end")

    def should_sample(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("should_sample")

    def get_description(self) -> str:
        return "broken"


class BrokenAtTheEnd(Broken):
    """Fails when a span ends."""

    def on_start(self, span: Span, parent_context: Any = None) -> None: ...


@pytest.mark.parametrize("part", ["sampler", "start", "end"])
async def test_what_processors_and_samplers_raise_harms_no_invocation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    traced = Traced(monkeypatch, Broken() if part == "sampler" else ALWAYS_ON)
    if part != "sampler":
        traced.provider.add_span_processor(Broken() if part == "start" else BrokenAtTheEnd())
    async with connect("memory:") as client, client.worker(calls, adds):
        assert await client.run(calls, 1) == 3
    assert {each.name for each in caplog.records if each.levelname == "ERROR"} == {"perdure.telemetry"}
    assert "a span could not be emitted: RuntimeError" in caplog.text


def test_nothing_is_loaded_for_a_program_without_telemetry_and_no_provider_means_none() -> None:
    program = (
        "import asyncio, sys\nfrom perdure import connect, workflow\n"
        "@workflow\nasync def w() -> int: return 1\n"
        "async def main():\n  async with connect('memory:') as c, c.worker(w): print(await c.run(w))\n"
        "asyncio.run(main())\nprint([each for each in sys.modules if each.startswith('opentelemetry')])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "1\n[]\n"
    assert find_tracer() is None


# --- contexts ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (GIVEN, GIVEN),
        (UNSAMPLED, UNSAMPLED),
        (GIVEN.replace("00-1", "cc-1") + "-of a later version", GIVEN),
        (GIVEN + "-more", ""),
        (GIVEN.replace("00-1", "ff-1"), ""),
        (GIVEN.replace("2", "0"), ""),
        (GIVEN.replace("1", "0"), ""),
        (GIVEN.replace("1", "A"), ""),
        (GIVEN[:-1], ""),
        ("", ""),
        ("x" * 10_000, ""),
        (None, ""),
    ],
)
def test_only_a_valid_context_is_kept(text: str | None, kept: str) -> None:
    assert checked(text) == kept


def test_a_span_of_another_trace_does_not_hide_the_one_of_the_request(traced: Traced) -> None:
    tracer = traced.provider.get_tracer("theirs")
    tracing = Tracing(tracer)
    with tracer.start_as_current_span("of the server") as span:
        found = span.get_span_context()
        assert current(tracing) == str(TraceContext(found.trace_id, found.span_id, found.trace_flags))
        token = here.set(GIVEN)
        assert current(tracing) == GIVEN
        below = trace.set_span_in_context(trace.NonRecordingSpan(_span_context(GIVEN)))
        with tracer.start_as_current_span("of the request", below):
            assert current(tracing).startswith(GIVEN[:36])
            assert current(tracing) != GIVEN
        here.reset(token)


def _span_context(text: str) -> trace.SpanContext:
    found = TraceContext.parse(text)
    assert found is not None
    return trace.SpanContext(found.trace_id, found.span_id, True, trace.TraceFlags(found.flags))


# --- over HTTP --------------------------------------------------------------------------------------------------------
@workflow
async def asks(ctx: Context) -> str:
    return await ctx.awakeable(str)


async def test_a_header_is_the_parent_also_where_nothing_emits_spans() -> None:
    sent = {"traceparent": GIVEN}
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", adds, calls)
        for headers in (sent, {"traceparent": "nonsense"}, {}):
            await site.post("/api/workflows/calls/invoke?wait=10", 1, headers=headers)
        await site.post("/api/workflows:batch", {"starts": [{"handler": "adds", "input": 1}]}, headers=sent)
        remote = await parts.enter_async_context(connect(str(site.http.base_url)))
        token = here.set(GIVEN)
        await remote.run(adds, 1)
        here.reset(token)
        starts = await starts_of(site.client)
    found = sorted((each.handler, each.trace) for each in starts.values())
    children = [("adds", GIVEN)] * 3 + [("adds", "")] * 6
    alone = [("adds", GIVEN), ("adds", GIVEN), ("calls", GIVEN), ("calls", ""), ("calls", "")]
    assert found == sorted(children + alone)


async def test_a_client_of_a_server_passes_its_span_and_an_answer_is_linked(traced: Traced, tmp_path: Path) -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, f"sqlite:{tmp_path}/store.db", asks)
        remote = await parts.enter_async_context(connect(str(site.http.base_url)))
        tracer = traced.provider.get_tracer("theirs")
        with tracer.start_as_current_span("asking") as asking:
            handle = await remote.start(asks)
        (awakeable,) = [each async for each in _waiting(remote)]
        with tracer.start_as_current_span("answering") as answering:
            await remote.resolve(awakeable, "yes")
        assert await handle.result() == "yes"
    creation = next(each for each in traced.spans if each.name == "start asks")
    assert creation.context is not None
    assert creation.parent is not None
    assert creation.parent.span_id == asking.get_span_context().span_id
    last = [each for each in traced.spans if each.name == "turn asks"][-1]
    linked = [each.context.span_id for each in last.links]
    assert linked == [creation.context.span_id, answering.get_span_context().span_id]


async def _waiting(client: Client) -> AsyncGenerator[str]:
    while True:
        async for each in client.awakeables():
            yield each.id
            return
        await asyncio.sleep(0.001)


# --- metrics ----------------------------------------------------------------------------------------------------------
async def test_instruments_observe_what_a_scrape_tells() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WATCHED)
        observe(site.client, provider)
        await run_known_program(site)
        numbers = await scrape(site.http)
        told = json.loads(await asyncio.to_thread(lambda: reader.get_metrics_data().to_json()))  # type: ignore[union-attr]
    provider.shutdown()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for metric in told["resource_metrics"][0]["scope_metrics"][0]["metrics"]:
        for point in metric["data"]["data_points"]:
            found.setdefault(metric["name"], []).append((point["attributes"], point["value"]))
    assert ({"handler": "fails", "outcome": "failed"}, 1) in found["perdure_invocations_ended"]
    compared = 0
    for name, points in found.items():
        shown = name if name in numbers else f"{name}_total"
        for labels, value in points:
            assert one(numbers, shown, **labels) == value, name
            compared += bool(value)
    assert compared > 15
