"""Drives a turn by hand: no runtime, no store, no clock. Records frames as the runtime does, and replays them.

`play(body)` runs a body to its end and then checks, from every frame on, that a fresh turn asks for the same commands,
changes the same state and ends the same way. The body talks to `step`, which is a step without a decorator.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from perdure.authoring.context import Context
from perdure.core.failures import failure_of
from perdure.core.history import History
from perdure.core.journal import (
    Accepted,
    CallChild,
    CallStep,
    Cancelled,
    CancelRequested,
    Command,
    Completed,
    Entry,
    Failed,
    Fired,
    Frame,
    Interrupted,
    OpenAwakeable,
    Outcome,
    Parent,
    Raised,
    Resumed,
    Retried,
    Returned,
    SendStart,
    SetTimer,
    Start,
    Waited,
    decode_frame,
    describe,
    encode_frame,
)
from perdure.core.streams import batches, items_of
from perdure.core.turn import Pending, Turn, current_turn
from perdure.core.types import decoder
from perdure.core.values import digest, encode

Body = Callable[[Context], Coroutine[Any, Any, Any]]
Choose = Callable[[Turn], int]
"""Says which of the pending commands is answered next."""

START = Start("one", "handler", b"\x80", 1000.0, 1000.0, 42)
SECRET = b"secret"

_made: list[Turn] = []


def step(name: str, *args: Any) -> Coroutine[Any, Any, Any]:
    """Issue a step as `@step` does; its default answer is `name`, or `name` and its arguments."""
    turn = current_turn()
    assert turn is not None, f"step {name!r} was called outside a turn: its body would run here"
    return _step(turn, name, args)


async def _step(turn: Turn, name: str, args: tuple[Any, ...]) -> Any:
    return await turn.call_step(name, digest(encode(args)), decoder(Any), (name, args))


async def child(name: str, *args: Any) -> Any:
    return await child_future(name, *args)


def child_future(name: str, *args: Any) -> asyncio.Future[Any]:
    """Issue a child that no task awaits, as `run_all` does: the body may end before it has answered."""
    turn = current_turn()
    assert turn is not None

    def start(id: str, parent: Parent) -> Start:
        data = encode(args)
        return Start(id, name, data, turn.loop.now, turn.loop.now, 0, parent=parent, digest=digest(data))

    return turn.call_child(start, decoder(Any))


def answer_of(pending: Pending) -> Any:
    """Return the default answer: what was asked for."""
    match pending.command:
        case CallStep(name=name):
            _, args = cast("tuple[str, tuple[Any, ...]]", pending.work)
            return [name, *args] if args else name
        case CallChild(start=start):
            return start.handler
        case _:
            return None


def first(turn: Turn) -> int:
    """Answer in the order issued, timers last and by due time."""
    return min(turn.pending, key=lambda n: (*_due(turn.pending[n].command), n))


def last(turn: Turn) -> int:
    """Answer the latest command first, timers last and by due time."""
    return min(turn.pending, key=lambda n: (*_due(turn.pending[n].command), -n))


def timers_first(turn: Turn) -> int:
    return min(turn.pending, key=lambda n: (not isinstance(turn.pending[n].command, SetTimer), n))


def in_order(*numbers: int) -> Choose:
    """Answer these commands, in this order, and then the rest in the order issued."""
    left = list(numbers)

    def choose(turn: Turn) -> int:
        for n in left:
            if n in turn.pending:
                left.remove(n)
                return n
        return first(turn)

    return choose


def by_ranks(ranks: Iterable[int]) -> Choose:
    """Answer the pending command at each of these places in turn (modulo their number), then in order."""
    places = iter(ranks)

    def choose(turn: Turn) -> int:
        pending = sorted(turn.pending)
        return pending[next(places, 0) % len(pending)]

    return choose


def _due(command: Command) -> tuple[bool, float]:
    return (True, command.due) if isinstance(command, SetTimer) else (False, 0.0)


@dataclass
class Driver:
    """One invocation. `batch` entries make a frame; with `evict` the turn is closed and rebuilt before every entry.

    `begins` is when the body begins, if not when it is due.
    """

    body: Body
    start: Start = START
    batch: int = 1
    evict: bool = False
    frames: list[Frame] = field(default_factory=list[Frame])
    outcome: Outcome | None = None
    entries: list[Entry] = field(default_factory=list[Entry])
    now: float = START.due
    generation: int = 0
    begins: float | None = None

    def __post_init__(self) -> None:
        self.turn = self.fresh()
        if self.begins is not None:
            self.now = self.begins
            self.turn.wait_until(self.begins)
        self.give(Accepted(self.start))

    def fresh(self) -> Turn:
        return make_turn(self.body, self.start)

    def replayed(self) -> Turn:
        """Replay the journal in a fresh turn, and check that it does not diverge."""
        turn = self.fresh()
        turn.replay(self.frames)
        assert turn.divergence is None, str(turn.divergence)
        return turn

    # --- one entry at a time ------------------------------------------------------------------------------------------
    def give(self, entry: Entry) -> None:
        if self.evict and self.turn.begun:
            self.commit()
            self.turn.close()
            self.turn = self.replayed()
        self.turn.deliver(entry)
        self.entries.append(entry)
        if (waited := self.turn.waited()) is not None:
            self.entries.insert(-1 if isinstance(entry, Resumed) else 1, waited)
        if len(self.entries) >= self.batch:
            self.commit()

    def commit(self) -> None:
        """Write what was delivered and what came of it as a frame."""
        assert self.turn.divergence is None, str(self.turn.divergence)
        if not self.entries:
            return
        ready = self.turn.ready()
        self.outcome = ready.outcome
        entries = self.entries + ([ready.outcome] if ready.outcome is not None else [])
        before = History.of(self.frames).written
        written = [
            batch
            for name, items in ready.written.items()
            for batch in batches(name, items, first=before.get(name, 0), attempt=self.generation + 1)
        ]
        frame = Frame("writer", self.now, entries, ready.commands, ready.state, ready.cancels, written)
        self.frames.append(decode_frame(encode_frame(frame)))
        self.entries = []

    def returns(self, n: int, value: Any = None) -> None:
        self.give(Returned(n, self._tick(), encode(value)))

    def raises(self, n: int, error: BaseException) -> None:
        self.give(Raised(n, self._tick(), failure_of(error)))

    def fires(self, n: int) -> None:
        command = self.turn.pending[n].command
        assert isinstance(command, SetTimer)
        self.now = max(self.now, command.due)
        self.give(Fired(n, self.now))

    def interrupts(self, n: int) -> None:
        self.give(Interrupted(n, self._tick()))

    def cancels(self, *, timed_out: bool = False) -> None:
        self.give(CancelRequested(self._tick(), timed_out))

    def answer(self, n: int, answers: dict[str, Any] | None = None) -> None:
        """Answer a command: as the body wants its end, when it is due, by `answers` (by name), or by its name."""
        pending = self.turn.pending[n]
        command = pending.command
        if isinstance(command, SetTimer):
            self.fires(n)
        elif pending.cancel_requested:
            self.interrupts(n)
        else:
            name = command.name if isinstance(command, CallStep) else ""
            value = (answers or {}).get(name, pending)
            if isinstance(value, BaseException):
                self.raises(n, value)
            else:
                self.returns(n, answer_of(pending) if value is pending else value)

    def _tick(self) -> float:
        self.now += 0.001
        return self.now

    def retries(self) -> list[Entry]:
        """Retry after a failure; return what was recorded first, without the time."""
        turn = self.fresh()
        at = self._tick()
        entries = turn.retry(self.frames, self.generation + 1, at, f"retry {self.generation + 1}")
        assert not isinstance(entries, str), entries
        self.turn.close()
        self.turn, self.outcome = turn, None
        self.generation += 1
        for entry in entries:
            turn.deliver(entry)
        self.entries += entries
        self.commit()
        return [entry for entry in entries if not isinstance(entry, Waited)]

    def refuses_to_retry(self, body: Body | None = None) -> str:
        turn = make_turn(body or self.body, self.start)
        reason = turn.retry(self.frames, self.generation + 1, self.now, "retry")
        assert isinstance(reason, str)
        return reason

    # --- to the end ---------------------------------------------------------------------------------------------------
    def finish(self, choose: Choose = first, answers: dict[str, Any] | None = None) -> Outcome:
        """Answer command after command until the body ends."""
        for _ in range(1000):
            if self.outcome is None and not self.turn.pending:
                self.commit()
            if self.outcome is not None:
                return self.outcome
            assert self.turn.pending, "the body waits for nothing that could come"
            self.answer(choose(self.turn), answers)
        raise AssertionError("the body does not end")

    @property
    def value(self) -> Any:
        assert isinstance(self.outcome, Completed), describe_outcome(self.outcome)
        return decoder(Any)(self.outcome.value)

    @property
    def commands(self) -> list[str]:
        return [describe(command) for frame in self.frames for command in frame.commands]

    def written(self, name: str) -> list[Any]:
        """Return what the body wrote to a stream, with the attempt, as the journal has it."""
        found = [each for frame in self.frames for each in frame.written if each.name == name]
        assert [each.first for each in found] == [sum(each.count for each in found[:n]) for n in range(len(found))]
        return [(decoder(Any)(item), each.attempt) for each in found for item in items_of(each)]

    @property
    def started(self) -> list[Start]:
        """Starts of children and sends, in the order issued."""
        every = [command for frame in self.frames for command in frame.commands]
        return [each.start for each in every if isinstance(each, CallChild | SendStart)]

    @property
    def names(self) -> list[str]:
        """Names of the steps, and kinds of the other commands, in the order issued."""
        every = [command for frame in self.frames for command in frame.commands]
        return [each.name if isinstance(each, CallStep) else type(each).__name__ for each in every]

    # --- again --------------------------------------------------------------------------------------------------------
    def check_replay(self) -> None:
        """Replay every beginning of the journal in a fresh turn, deliver the next frame live, and compare."""
        for position, frame in enumerate(self.frames):
            turn = self.fresh()
            entries: Sequence[Entry] = frame.entries
            if (retried := next((each for each in entries if isinstance(each, Retried)), None)) is not None:
                planned = turn.retry(self.frames[:position], retried.generation, retried.at, retried.message)
                assert planned == [each for each in entries if not isinstance(each, Failed | Completed | Cancelled)]
                assert not isinstance(planned, str)
                entries = planned
            else:
                turn.replay(self.frames[:position])
            assert turn.divergence is None, str(turn.divergence)
            for entry in entries:
                if isinstance(entry, Waited) and entry.issued == 0:
                    turn.wait_until(entry.at)
            for entry in entries:
                turn.deliver(entry)
            ready = turn.ready()
            assert turn.divergence is None, str(turn.divergence)
            assert ready.commands == frame.commands
            assert ready.state == frame.state
            assert ready.cancels == frame.cancels
            outcome = frame.outcome
            if not (isinstance(outcome, Cancelled) and outcome.forced):
                assert comparable(ready.outcome) == comparable(outcome)
            with nothing_happens():
                turn.close()
        self.check_ids()
        turn = self.replayed()
        assert turn.state == self.turn.state
        assert turn.pending.keys() == self.turn.pending.keys()
        assert turn.loop.now == self.turn.loop.now
        turn.close()

    def check_ids(self) -> None:
        """Check that no derived id names two commands, over all generations."""
        started = [
            each.start.id for frame in self.frames for each in frame.commands if isinstance(each, CallChild | SendStart)
        ]
        assert len(started) == len(set(started)), started
        opened: set[tuple[int, int]] = set()
        generation = issued = 0
        for frame in self.frames:
            for entry in frame.entries:
                if isinstance(entry, Retried):
                    generation, issued = entry.generation, entry.issued
            for command in frame.commands:
                if isinstance(command, OpenAwakeable) and command.n >= issued:
                    assert (generation, command.n) not in opened
                    opened.add((generation, command.n))


def make_turn(body: Body, start: Start = START, generation: int = 0) -> Turn:
    turn = Turn(start, lambda turn: body(Context(turn)), encode, secret=SECRET, generation=generation)
    _made.append(turn)
    return turn


def close_all() -> None:
    """Close what a test left open: a turn that is only dropped would run cleanup where it must not."""
    for turn in _made:
        turn.close()
    _made.clear()


def play(
    body: Body, choose: Callable[[], Choose] = lambda: first, answers: dict[str, Any] | None = None, *, batch: int = 1
) -> Driver:
    """Run a body to its end, check its replay, and that it goes the same way when it is evicted at every await."""
    driver = Driver(body, batch=batch)
    driver.finish(choose(), answers)
    driver.check_replay()
    if batch == 1:
        evicted = Driver(body, evict=True)
        evicted.finish(choose(), answers)
        assert evicted.commands == driver.commands
        assert comparable(evicted.outcome) == comparable(driver.outcome)
    driver.turn.close()
    return driver


def diverges(body: Body, frames: list[Frame], start: Start = START) -> Turn:
    """Replay a journal with other code, and return the turn once it has diverged and been seen to be inert."""
    turn = make_turn(body, start)
    turn.replay(frames)
    assert turn.divergence is not None, "the code does what the journal says"
    assert asks_for_nothing(turn)
    return turn


def asks_for_nothing(turn: Turn) -> bool:
    ready = turn.ready()
    return not (ready.commands or ready.state or ready.cancels or ready.outcome)


def comparable(outcome: Outcome | None) -> object:
    """Return an outcome without the traceback, whose depth depends on who called the turn."""
    if isinstance(outcome, Failed):
        plain = msgspec.structs.replace(outcome.failure, traceback="", cause=None, group=[])
        return (outcome.at, outcome.cause, plain)
    return outcome


def describe_outcome(outcome: Outcome | None) -> str:
    return (
        f"failed: {outcome.failure.type}: {outcome.failure.message}" if isinstance(outcome, Failed) else repr(outcome)
    )


class nothing_happens:
    """Checks that nothing is reported as unraisable in the block, nor when all is collected after it."""

    def __enter__(self) -> None:
        self._seen: list[str] = []
        self._hook = sys.unraisablehook
        sys.unraisablehook = lambda args: self._seen.append(f"{args.err_msg}: {args.exc_value!r} in {args.object!r}")

    def __exit__(self, *_: object) -> None:
        gc.collect(0)
        sys.unraisablehook = self._hook
        assert not self._seen, self._seen
