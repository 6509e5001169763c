"""Where one invocation is in its traces: folded from its journal, frame by frame. Pure; it emits nothing.

A frame with which the body ran is a turn, and a span. The turns of a trace are below the span that created the
invocation, and the attempts of steps below the turn that began them. A timer, an answer or a verb that ends a rest
begins a new trace, linked to the creation: a trace of weeks is of no use. The answer of a child does not.

Ids derive from the start and from what the journal has so far. A replay folds the same frames, writes none, and so
emits nothing; a worker that takes over goes on with the ids that the one before would have used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Self

from msgspec import Struct
from msgspec.structs import replace

from perdure.core.journal import (
    Accepted,
    Attempted,
    CallChild,
    CancelRequested,
    Claimed,
    Entry,
    Failed,
    Fired,
    Frame,
    Interrupted,
    Joined,
    Paused,
    Raised,
    Refused,
    Released,
    Resumed,
    Retried,
    Returned,
    SetTimer,
    Start,
    Status,
    Waited,
)
from perdure.tracing import SAMPLED, Span, TraceContext

Samples = Callable[[int, str], bool]
"""Decides whether a trace of this id, which begins with a span of this name, is recorded."""

_BOOKKEEPING = frozenset({Accepted, Claimed, Waited, Released})
"""Entries with which no turn goes on."""
_FROM_OUTSIDE = frozenset({Fired, CancelRequested, Paused, Resumed, Refused, Joined, Retried})
"""Entries that begin a new trace after a rest, besides the answers of awakeables."""


class _Begun(Struct, frozen=True):
    """An attempt in progress, with the turn that began it."""

    name: str
    number: int
    context: TraceContext
    turn: TraceContext


class Trail:
    """The traces of one invocation. `turn` is the last turn, or the one to come if there was none."""

    __slots__ = (
        "_begun",
        "_first_began",
        "_flags",
        "_is_new",
        "_origin",
        "_quiet",
        "_resting",
        "_root",
        "_spans",
        "_start",
        "_traces",
        "_turns",
        "turn",
    )

    def __init__(self, start: Start, samples: Samples) -> None:
        self._start = start
        self._origin = self._root = TraceContext.parse(start.trace)  # the creation; what the turns are below
        self._is_new = self._origin is None or start.due > start.at  # the next turn begins a trace
        self._traces = self._turns = 0  # those that have begun
        self._resting = False
        self._quiet: set[int] = set()  # commands whose answers do not begin a trace
        self._begun: dict[int, _Begun] = {}
        self._first_began: float | None = None  # steps may begin before their turn is written
        self._spans: list[Span] = []  # of frames that are not durable yet
        if self._origin is None:
            trace_id = self._id("trace", 0, size=16)
            self._flags = SAMPLED if samples(trace_id, f"turn {start.handler}") else 0
        else:
            self._flags = self._origin.flags
        self.turn = self._next(is_new=self._is_new)

    @classmethod
    def of(cls, start: Start, frames: Iterable[Frame], samples: Samples) -> Self:
        """Fold the frames of a journal. Their spans were emitted when they were written."""
        trail = cls(start, samples)
        for frame in frames:
            trail.add(frame, "running", ())
        trail._spans.clear()
        return trail

    # --- turns --------------------------------------------------------------------------------------------------------
    def turn_of(self, entries: Sequence[Entry]) -> TraceContext:
        """Return the context of the turn whose frame has these entries."""
        return self._next(is_new=self._begins_trace(entries))

    def add(self, frame: Frame, status: Status, sent: Sequence[str]) -> None:
        """Fold a frame, and note its spans. `status` is that after it, `sent` are the traces of its messages."""
        told = [each for each in frame.entries if type(each) not in _BOOKKEEPING]
        if told or frame.commands or frame.state or frame.cancels:
            self._add_turn(frame, told, status, sent)
        if frame.outcome is not None or any(type(each) is Released for each in frame.entries):
            self._resting = True

    def _add_turn(self, frame: Frame, told: Sequence[Entry], status: Status, sent: Sequence[str]) -> None:
        is_new = self._begins_trace(told)
        self.turn = turn = self._next(is_new=is_new)
        parent, origin = None if is_new else self._root, self._origin
        links = [found for each in sent if (found := TraceContext.parse(each)) is not None]
        if is_new:
            self._root = turn
            self._traces += 1
            if origin is None:
                self._origin = turn
            else:
                links.insert(0, origin)
        self._turns += 1
        self._is_new = self._resting = False
        for command in frame.commands:
            if isinstance(command, CallChild) or (isinstance(command, SetTimer) and command.rest):
                self._quiet.add(command.n)
            else:
                self._quiet.discard(command.n)  # a retry numbers its commands anew
        if turn.is_sampled:
            began, self._first_began = self._first_began or frame.at, None
            outcome = frame.outcome
            error = outcome.failure.type if isinstance(outcome, Failed) else ""
            attributes = self._attributes(outcome=status)
            name = f"turn {self._start.handler}"
            self._spans.append(Span(True, name, turn, parent, began, 0.0, attributes, error, links))
        for each in told:
            if isinstance(each, (Returned, Raised, Attempted, Interrupted)) and each.took is not None:
                self._end(each, each.took)

    def _begins_trace(self, entries: Iterable[Entry]) -> bool:
        return self._is_new or (self._resting and any(map(self._is_from_outside, entries)))

    def _is_from_outside(self, entry: Entry) -> bool:
        if isinstance(entry, (Returned, Raised)):
            return entry.message is not None and entry.n not in self._quiet
        return type(entry) in _FROM_OUTSIDE and not (isinstance(entry, Fired) and entry.n in self._quiet)

    def _next(self, *, is_new: bool) -> TraceContext:
        span_id = self._id("turn", self._turns)
        if is_new or self._root is None:
            return TraceContext(self._id("trace", self._traces, size=16), span_id, self._flags)
        return TraceContext(self._root.trace_id, span_id, self._flags)

    # --- attempts -----------------------------------------------------------------------------------------------------
    def begin(self, n: int, generation: int, number: int, name: str, at: float) -> TraceContext:
        """Note that attempt `number` of step `n` begins; return its context."""
        context = replace(self.turn, span_id=self._id("attempt", generation, n, number))
        self._begun[n] = _Begun(name, number, context, self.turn)
        if not self._turns and self._first_began is None:
            self._first_began = at
        return context

    def _end(self, entry: Returned | Raised | Attempted | Interrupted, took: float) -> None:
        begun = self._begun.pop(entry.n, None)
        if begun is None or not begun.context.is_sampled:
            return
        error, outcome = "", "interrupted" if isinstance(entry, Interrupted) else "completed"
        if isinstance(entry, (Raised, Attempted)):
            error, outcome = entry.failure.type, "failed"
        attributes = self._attributes(outcome=outcome, step=begun.name, attempt=begun.number)
        name, began = f"attempt {begun.name}", entry.at - took
        self._spans.append(Span(False, name, begun.context, begun.turn, began, entry.at, attributes, error))

    # --- what is emitted ----------------------------------------------------------------------------------------------
    def take(self, at: float) -> list[Span]:
        """Return the spans of a frame that is durable since `at`. Each is returned once."""
        spans, self._spans = self._spans, []
        return [each if each.ended else replace(each, ended=at) for each in spans]

    def _attributes(self, **more: str | int) -> dict[str, str | int]:
        found: dict[str, str | int] = {
            "perdure.invocation.id": self._start.id,
            "perdure.handler": self._start.handler,
        }
        return found | {f"perdure.{name}": value for name, value in more.items()}

    def _id(self, kind: str, *numbers: int, size: int = 8) -> int:
        start = self._start
        text = "\n".join(map(str, (start.id, start.seed, start.at, start.trace, kind, *numbers)))
        return int.from_bytes(blake2b(text.encode(), digest_size=size, person=b"perdure-trace").digest(), "big") or 1
