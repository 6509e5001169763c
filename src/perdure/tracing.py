"""Traces, as far as Perdure itself knows them: W3C contexts, spans as data, and what may emit them, as a protocol.

Knows no OpenTelemetry: `integrations.telemetry` emits spans where a program uses that. A context is kept with starts
and messages as its `traceparent` (https://www.w3.org/TR/trace-context/). `tracestate` and baggage are not kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Protocol, Self

from msgspec import Struct

from perdure.core.journal import Start

HEADER = "traceparent"
"""The name of the header of HTTP, and of the metadata of gRPC, that holds a context."""
TRACEPARENT_LIMIT = 55
"""Characters of a `traceparent` of version 00. Later versions may be longer: what they add is not kept."""
SAMPLED = 1
"""The flag of a context whose spans are to be recorded."""

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


class TraceContext(Struct, frozen=True):
    """A span, as others refer to it. `str` gives the `traceparent`."""

    trace_id: int
    span_id: int
    flags: int = SAMPLED

    @classmethod
    def parse(cls, text: str, /) -> Self | None:
        """Read a `traceparent`; None for any other text."""
        found = _TRACEPARENT.match(text)
        rest = "" if found is None else text[TRACEPARENT_LIMIT:]
        if found is None or (rest and (text.startswith("00") or not rest.startswith("-"))):
            return None
        return cls(int(found[1], 16), int(found[2], 16), int(found[3], 16))

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"

    @property
    def is_sampled(self) -> bool:
        return bool(self.flags & SAMPLED)


class Span(Struct, frozen=True):
    """A turn or an attempt that has ended, with times in seconds since the Unix epoch.

    Without a parent it begins a trace. `error` is the class of what failed, and empty if nothing did.
    """

    is_turn: bool
    name: str
    context: TraceContext
    parent: TraceContext | None
    began: float
    ended: float
    attributes: Mapping[str, str | int]
    error: str = ""
    links: Sequence[TraceContext] = ()


class Creation(Protocol):
    """The span of a start that is being made. `trace` is its context, which the start carries."""

    @property
    def trace(self) -> str: ...
    def end(self, error: BaseException | None = None, /) -> None:
        """Emit the span. One that is never ended, of a start that existed before, is not emitted."""
        ...


class Tracer(Protocol):
    """What emits spans. No method raises anything: what goes wrong there harms no invocation."""

    def current(self) -> str:
        """Return the context of the span that is current here; empty if there is none."""
        ...

    def creation(self, start: Start, parent: str, /) -> Creation:
        """Begin the span of a start. `parent` is its parent's context, or empty."""
        ...

    def samples(self, trace_id: int, name: str, /) -> bool:
        """Report whether a trace that begins with a span of this name is to be recorded."""
        ...

    def attach(self, trace: str, /) -> None:
        """Make a context the current one."""
        ...

    def emit(self, span: Span, /) -> None: ...


TracerInUse = Callable[[], Tracer | None]
"""Returns what emits spans now; None if nothing does, which it tells fast."""


def no_tracer() -> None:
    """Emit no spans."""


here: ContextVar[str] = ContextVar("perdure_trace", default="")
"""The context that a request came with, or that of the attempt that runs here; empty if there is none."""


def checked(text: str | None, /) -> str:
    """Return the context in a header as it is kept; empty if there is none, or if it is not valid."""
    found = None if text is None else TraceContext.parse(text)
    return "" if found is None else str(found)


def current(tracer: Tracer | None, /) -> str:
    """Return the context of what is done here.

    A span that is current counts only if it belongs to the trace of the request or attempt, where there is one: a span
    of whatever started this server may be current for all its requests.
    """
    given = here.get()
    spanned = "" if tracer is None else tracer.current()
    return spanned if spanned and (not given or spanned[3:35] == given[3:35]) else given
