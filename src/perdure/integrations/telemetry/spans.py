"""Emits the spans of starts, turns and attempts through the tracer provider that the program has set.

Uses the API, and of the SDK what a tracer shows of itself: its sampler and its generator of ids. A provider without
these cannot be given the ids of spans, and gets none.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import lru_cache, wraps
from importlib.metadata import version
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from opentelemetry import context, trace

from perdure.background import RateLimitedLog
from perdure.core.journal import Start
from perdure.core.values import type_name
from perdure.tracing import Span, TraceContext

P = ParamSpec("P")
T = TypeVar("T")

NANOSECONDS = 1_000_000_000

log = logging.getLogger("perdure.telemetry")


def find_tracer() -> Tracing | None:
    """Return what emits spans through the provider that is set; None if there is none."""
    return _tracing_of(trace.get_tracer_provider())


@lru_cache(maxsize=1)  # a program sets one provider
def _tracing_of(provider: trace.TracerProvider) -> Tracing | None:
    try:
        tracer: Any = provider.get_tracer("perdure", version("perdure"))
    except Exception:
        log.exception("no spans are emitted: the tracer provider gives no tracer")
        return None
    return Tracing(tracer) if hasattr(tracer, "id_generator") and hasattr(tracer, "sampler") else None


def _harmless(
    instead: T,
) -> Callable[[Callable[Concatenate[Tracing, P], T]], Callable[Concatenate[Tracing, P], T]]:
    """Log what a sampler, processor or exporter raises, and return something else."""

    def decorated(method: Callable[Concatenate[Tracing, P], T]) -> Callable[Concatenate[Tracing, P], T]:
        @wraps(method)
        def guarded(self: Tracing, *args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001  no invocation must suffer from it
                self.failed(error)
                return instead

        return guarded

    return decorated


_NO_SPAN = cast("trace.Span", trace.INVALID_SPAN)


class _Given:
    """Gives a span the ids that it is to have."""

    def __init__(self, own: TraceContext) -> None:
        self._own = own

    def generate_trace_id(self) -> int:
        return self._own.trace_id

    def generate_span_id(self) -> int:
        return self._own.span_id

    def is_trace_id_random(self) -> bool:
        return True  # as a digest of what has random parts


class Creation:
    """The span of a start that is being made."""

    def __init__(self, tracing: Tracing, span: trace.Span, parent: str) -> None:
        self._tracing = tracing
        self._span = span
        own = span.get_span_context()
        self.trace = str(_ours(own)) if own.is_valid else parent

    def end(self, error: BaseException | None = None, /) -> None:
        self._tracing.end(self._span, "" if error is None else type_name(type(error)))


class Tracing:
    """Emits spans with a tracer of the SDK. Nothing that it is asked to do raises."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._log = RateLimitedLog(log)

    def failed(self, error: Exception) -> None:
        self._log(type(error), "a span could not be emitted: %s", type_name(type(error)), exc_info=error)

    @_harmless("")
    def current(self) -> str:
        found = trace.get_current_span().get_span_context()
        return str(_ours(found)) if found.is_valid else ""

    def creation(self, start: Start, parent: str, /) -> Creation:
        return Creation(self, self._begin(start, parent), parent)

    @_harmless(_NO_SPAN)
    def _begin(self, start: Start, parent: str) -> trace.Span:
        attributes = {"perdure.invocation.id": start.id, "perdure.handler": start.handler}
        above = _below(TraceContext.parse(parent))
        return self._tracer.start_span(f"start {start.handler}", above, trace.SpanKind.PRODUCER, attributes)

    @_harmless(None)
    def end(self, span: trace.Span, error: str, ended: int | None = None) -> None:
        if error:
            span.set_attribute("error.type", error)
            span.set_status(trace.StatusCode.ERROR)
        span.end(ended)

    @_harmless(False)
    def samples(self, trace_id: int, name: str, /) -> bool:
        found = self._tracer.sampler.should_sample(context.Context(), trace_id, name, trace.SpanKind.CONSUMER)
        return found.decision.is_sampled()

    @_harmless(None)
    def attach(self, text: str, /) -> None:
        context.attach(_below(TraceContext.parse(text), is_remote=False))

    @_harmless(None)
    def emit(self, span: Span, /) -> None:
        tracer = copy.copy(self._tracer)
        tracer.id_generator = _Given(span.context)
        if span.parent is None:  # a trace that begins after a wait is recorded if the creation was
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415  the program's, and loaded

            tracer.sampler = ALWAYS_ON
        began = tracer.start_span(
            span.name,
            _below(span.parent),
            trace.SpanKind.CONSUMER if span.is_turn else trace.SpanKind.INTERNAL,
            span.attributes,
            [trace.Link(_theirs(each)) for each in span.links],
            round(span.began * NANOSECONDS),
        )
        self.end(began, span.error, round(span.ended * NANOSECONDS))


def _below(parent: TraceContext | None, *, is_remote: bool = True) -> context.Context:
    """Return the context of what is below a span; of nothing that is current here."""
    if parent is None:
        return context.Context()
    span = trace.NonRecordingSpan(_theirs(parent, is_remote=is_remote))
    return trace.set_span_in_context(span, context.Context())


def _theirs(found: TraceContext, *, is_remote: bool = True) -> trace.SpanContext:
    return trace.SpanContext(found.trace_id, found.span_id, is_remote, trace.TraceFlags(found.flags))


def _ours(found: trace.SpanContext) -> TraceContext:
    return TraceContext(found.trace_id, found.span_id, found.trace_flags)
