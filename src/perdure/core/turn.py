"""A turn: one workflow body, live on its private loop, driven by its journal and by nothing else.

    turn.begin() / turn.deliver(entry)   ->  the body runs until it waits  ->  turn.ready()

`ready()` says what the body asked for since the last call: it must be made durable first, and only then begun. Entries
are delivered one at a time, in journal order, each followed by a drain, live and on replay alike, so the interleaving
of concurrent branches is a function of the journal. On replay every command is checked against the recorded ones;
a difference is kept on the turn as its `divergence`, and nothing leaves the turn any more.

The turn starts nothing, knows no store and no worker. `work` of a pending command is what the runtime needs to begin
it; the turn carries it and never looks inside.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from random import Random
from sys import maxsize
from typing import Any, cast

from msgspec import Struct
from msgspec.structs import replace

from perdure.core.context import BodyContext
from perdure.core.failures import FailureTranslator, failure_of, rebuild
from perdure.core.generations import current, cut_of, joined, keep, replayable
from perdure.core.ids import awakeable_id, derived_id, seed_of
from perdure.core.journal import (
    Accepted,
    Answering,
    Arguments,
    Attempted,
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
    Granted,
    Interrupted,
    MarkPatch,
    OpenAwakeable,
    Outcome,
    Parent,
    Paused,
    Raised,
    Resumed,
    Retried,
    Returned,
    SendStart,
    SetTimer,
    Start,
    changed_arguments,
    describe,
    repeats,
)
from perdure.core.loop import Future, Loop
from perdure.errors import (
    CalledOutsideWorkflow,
    InvocationTimedOut,
    LimitExceeded,
    PerdureError,
    TurnClosed,
    Undecodable,
    too_large,
)

COMMANDS_PER_DRAIN_LIMIT = 100_000
"""Commands that a body may issue between two waits; beyond it the body is most likely in an endless loop."""


class Divergence(Struct, frozen=True):
    """Where the code and its journal part ways: both sides, in words."""

    recorded: str
    issued: str

    def __str__(self) -> str:
        return f"the journal has {self.recorded}, the code now asks for {self.issued}"


class Pending(Struct, eq=False):
    """A command that waits for its answer. `attempts` counts the failed ones that are journaled."""

    command: Command
    future: Future[Any] | None
    decode: Callable[[bytes], Any]
    work: object = None
    timer: asyncio.TimerHandle | None = None
    generation: int = 0
    cancel_requested: bool = False
    attempts: int = 0
    retry_due: float = 0.0


class Ready(Struct, eq=False):
    """What the body asked for since the last `ready()`.

    `commands` and `state` belong into the frame; `cancels` are commands whose end the body now wants; `outcome` is set
    when the body has ended.
    """

    commands: list[Command] = []
    state: dict[str, bytes | None] = {}
    cancels: list[int] = []
    outcome: Outcome | None = None


class CommandFuture(Future[Any]):
    """The future of a step or child. Like a Task's, its `cancel` asks; the end comes when the journal says so.

    `answer` is that end, if the future was asked to end: a child may have completed all the same.
    """

    __slots__ = ("answer", "n")
    n: int
    answer: Answering | None

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        cast("Turn", cast("Loop", self.get_loop()).host).cancel_command(self.n)
        return True


def current_turn() -> Turn | None:
    """Return the turn whose body is running on this thread, if one is."""
    loop = events._get_running_loop()  # noqa: SLF001
    return loop.host if isinstance(loop, Loop) else None  # pyright: ignore[reportReturnType]  its host is a turn


StubMaker = Callable[[Any, "Turn", Any, Any], Any]
"""Makes a stub of a class, for a turn, with a retry policy and a timeout."""


class Turn:
    """One pass of a workflow body over its journal.

    `body` makes the coroutine to run; it is called inside the turn. `encode_result` turns what the body returned into
    bytes, or raises. `secret` signs the ids of awakeables. `context` makes what the body is given of its turn.
    """

    __slots__ = (
        "_body",
        "_boundaries",
        "_cancel_requested",
        "_context",
        "_encode_result",
        "_failures",
        "_held",
        "_issued",
        "_issued_in_drain",
        "_left_over",
        "_main",
        "_open_ended",
        "_patches",
        "_payload_limit",
        "_random",
        "_ready",
        "_recorded",
        "_recorded_state",
        "_secret",
        "_stubs",
        "_timers",
        "_translators",
        "begun",
        "divergence",
        "generation",
        "loop",
        "paused",
        "pending",
        "replaying",
        "start",
        "state",
        "unseen",
        "waits_for_key",
    )

    def __init__(
        self,
        start: Start,
        body: Callable[[Turn], Coroutine[Any, Any, Any]],
        encode_result: Callable[[Any], bytes],
        *,
        secret: bytes,
        generation: int = 0,
        translators: Callable[[], Sequence[FailureTranslator]] = tuple,
        stubs: StubMaker | None = None,
        context: Callable[[Turn], BodyContext] | None = None,
        payload_limit: int | None = None,
    ) -> None:
        self.start = start
        self.generation = generation
        self.loop = Loop(self, start.due, salt=start.seed & 0xFFFF_FFFF)
        self.pending: dict[int, Pending] = {}
        self.state: dict[str, bytes] = {}
        self.divergence: Divergence | None = None
        self.begun = False
        self.replaying = False
        self.paused = False
        self.waits_for_key = start.key is not None
        self.unseen: list[dict[str, Any]] = []
        self._body = body
        self._encode_result = encode_result
        self._secret = secret
        self._translators = translators
        self._stubs = stubs
        self._context = context
        self._payload_limit = payload_limit
        self._main: asyncio.Task[Any] | None = None
        self._boundaries: list[tuple[int, int]] = []  # from which command on a later generation issues
        self._open_ended = False  # the replay ends where its recorded commands end, and the body may go on
        self._issued = 0
        self._issued_in_drain = 0
        self._ready = Ready()
        self._recorded: deque[Command] | None = None
        self._recorded_state: dict[str, bytes | None] = {}
        self._timers: dict[int, int] = {}  # id of a TimerHandle -> command
        self._held: list[Entry] = []  # what arrived for the body while paused
        self._patches: dict[str, bool] = {}
        self._random: Random | None = None
        self._cancel_requested: CancelRequested | None = None
        self._left_over: set[int] = set()  # tasks that outlived the body and were cancelled
        self._failures: dict[int, tuple[BaseException, int]] = {}  # what was raised into the body, and by which command

    @property
    def context(self) -> BodyContext:
        """What the body is given, made by what the runtime gave for that."""
        assert self._context is not None, "this turn was made without contexts"
        return self._context(self)

    @property
    def ended(self) -> bool:
        """Tell whether the body has ended, and what it became waits in `ready()`."""
        return self._ready.outcome is not None

    # --- driving ------------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Start the body and run it until it waits."""
        context = contextvars.Context()
        coro = context.run(self._body, self)
        self._main = self.loop.create_task(coro, name="workflow", context=context)
        self.begun = True
        self._drain()

    def deliver(self, entry: Entry, /) -> None:
        """Give the body one fact, and run it until it waits again. While paused, facts wait until `Resumed`."""
        # By `type`: to `isinstance`, every Struct that is not of the class is a slow case.
        if type(entry) is Paused:
            self.paused = True
            return
        if type(entry) is Granted:
            self._granted(entry)
            return
        if type(entry) is Resumed:
            self._resumed()
            return
        if self.paused and type(entry) in _FOR_THE_BODY:
            self._held.append(entry)
            return
        if self._main is None and type(entry) in _FOR_THE_BODY:
            self.begin()
        if type(entry) is Returned or type(entry) is Raised or type(entry) is Fired or type(entry) is Interrupted:
            self._answer(entry)
        elif type(entry) is Attempted:
            self._attempted(entry)
            return
        elif type(entry) is CancelRequested:
            self.cancel(entry)
        else:
            if type(entry) is Retried:
                self._retried(entry)
            elif type(entry) is Accepted and not self.replaying and not self.waits_for_key:
                self.begin()
            return  # Claimed, outcomes and the like are not the body's affair
        self._drain()

    def replay(self, frames: Sequence[Frame], /) -> None:
        """Deliver recorded frames, checking that the body asks for what it asked for then."""
        self._replay(replayable(frames))

    def retry(self, frames: Sequence[Frame], generation: int, at: float, message: str, /) -> list[Entry] | str:
        """Bring a fresh turn to where its failed invocation is retried from, without what made it fail.

        Return what to deliver and to record next, `Retried` first, or why the invocation cannot be retried.
        """
        held = current(frames)
        failed = held[-1].outcome
        assert isinstance(failed, Failed)
        cut = cut_of(held, failed)
        cause = cut.causes[0] if cut.causes else None
        *before, last = joined(keep(held, Retried(at, generation, cause, maxsize, message, cut.frames, cut.entries)))
        recorded = 1 + max((command.n for frame in (*before, last) for command in frame.commands), default=-1)
        self._replay(before)
        self._boundaries = [*_boundaries_in((*before, last)), (recorded, generation)]
        self._replay_cut(last, open_ended=not cut.causes, to_its_end=cut.is_end)
        if self.divergence is not None:
            return f"its code diverges from what is kept of its journal: {self.divergence}"
        issued = min(self._issued, recorded)
        self._boundaries[-1] = (issued, generation)
        later = [each for each in cut.later if isinstance(each, Answering) and each.n < issued]
        kept, again = self._sort(later, {n for frame in held for n in frame.cancels}, {*cut.causes})
        for n in again:
            command = self.pending[n].command
            if isinstance(command, CallChild) and command.start.chosen:
                return f"its child {command.start.id!r} failed, and another cannot have the id that was chosen for it"
        rested = max(0.0, at - cut.at)
        return [Retried(at, generation, cause, issued, message, cut.frames, cut.entries, again, rested), *kept]

    def _replay_cut(self, frame: Frame, *, open_ended: bool, to_its_end: bool) -> None:
        """Deliver what a retry keeps of a frame: what the body asks for in answer is a beginning of what is recorded.

        If `open_ended`, the body may have been repaired, and ask for more.
        """
        self.replaying = True
        self._recorded = deque(frame.commands)
        self._open_ended = open_ended
        if self._main is None and frame.commands:
            self.begin()
        for entry in frame.entries:
            if self.divergence is None:
                self.deliver(entry)
        if self.divergence is None and self._recorded and to_its_end:
            self._diverge(describe(self._recorded[0]), "nothing there")
        self._recorded = None
        self._open_ended = False
        self.replaying = False

    def _sort(self, later: Sequence[Answering], cancelled: set[int], causes: set[int]) -> tuple[list[Entry], list[int]]:
        """Tell apart, of what came after the cut, the outcomes to keep and the commands to issue again.

        A result is kept. A failure is not if it made the invocation fail too, or came of a cancellation after the cut.
        Interrupted steps just run on. The time at rest does not count for timers.
        """
        kept: list[Answering] = []
        again = {n for n in causes if n in self.pending}
        for entry in later:
            n, pending = entry.n, self.pending.get(entry.n)
            if pending is None or n in again:
                continue
            ended_by_failure = n in cancelled and not pending.cancel_requested
            if isinstance(entry, Interrupted) and ended_by_failure:
                if isinstance(pending.command, CallChild):
                    again.add(n)
            elif isinstance(entry, Raised) and ended_by_failure:
                again.add(n)
            else:
                kept.append(entry)
        kept = [entry for entry in kept if entry.n not in again]
        answered = {entry.n for entry in kept if not isinstance(entry, Attempted)}
        again |= {n for n, each in self.pending.items() if isinstance(each.command, SetTimer) and n not in answered}
        return [*kept], sorted(again)

    def _retried(self, entry: Retried) -> None:
        """Begin a generation: what it issues again is pending anew, and what follows has ids of its own."""
        if self._main is None:
            self.begin()
        self.paused = False
        self._held = []
        self._random = Random(f"{self.start.seed}:{entry.generation}")  # noqa: S311  repeatable on purpose
        for n in entry.again:
            pending = self.pending.get(n)
            if pending is None:
                self._diverge(f"command #{n}, issued again by a retry", "nothing that waits by that number")
                return
            command = pending.command
            if isinstance(command, SetTimer):
                command = SetTimer(n, command.due + entry.rested)
            elif isinstance(command, CallChild):
                command = CallChild(n, self._start_again(command.start, n, entry))
            if not isinstance(command, OpenAwakeable):  # the outside has its id
                pending.generation = entry.generation
            pending.command = command
            pending.attempts, pending.retry_due = 0, 0.0
            self._issue(command)

    def _start_again(self, start: Start, n: int, retried: Retried) -> Start:
        id = derived_id(self.start.id, retried.generation, n)
        parent = Parent(self.start.id, retried.generation, n)
        due = retried.at + max(0.0, start.due - start.at)
        return replace(start, id=id, at=retried.at, due=due, seed=seed_of(id), parent=parent)

    def _replay(self, frames: Sequence[Frame]) -> None:
        self.replaying = True
        self._boundaries = _boundaries_in(frames)
        for frame in frames:
            self._recorded = deque(frame.commands)
            self._recorded_state = frame.state
            ran = frame.commands or frame.state or frame.cancels or frame.outcome is not None
            if self._main is None and ran and not self.waits_for_key:
                self.begin()  # not at Accepted: frames before this one may be claims of workers that died at once
            for entry in frame.entries:
                if self.divergence is not None:
                    break
                self.deliver(entry)
            if self.divergence is None and self._recorded:
                self._diverge(describe(self._recorded[0]), "nothing there")
            if self.divergence is None and self._ready.state != frame.state:
                changed = sorted(self._ready.state)
                self._diverge(f"changes of state {sorted(frame.state)}", f"{changed}, or other values")
            if self.divergence is None and self._ready.cancels != frame.cancels and not _is_forced(frame.outcome):
                self._diverge(f"an end asked for commands {frame.cancels}", f"that of {self._ready.cancels}")
            if self.divergence is None:
                self._check_outcome(frame.outcome)
            if self.divergence is not None:
                break
            self._ready = Ready()
        self._recorded = None
        self._recorded_state = {}
        self.replaying = False

    def ready(self) -> Ready:
        """Return what the body asked for since the last call: nothing any more after a divergence or `close`."""
        ready, self._ready = self._ready, Ready()
        return ready if self.divergence is None and not self.loop.closed else Ready()

    def waits_for(self, n: int) -> Pending | None:
        """Return command `n` if it still needs an answer."""
        if any(isinstance(held, (Returned, Raised, Fired, Interrupted)) and held.n == n for held in self._held):
            return None
        return self.pending.get(n)

    def close(self) -> None:
        """Drop the body. It does nothing more: not a step, not a command, not a task on the host's loop."""
        self.loop.close()
        self.pending.clear()
        self._failures.clear()
        self._main = None
        self.begun = False

    # --- what the body asks for (called from inside the drain) --------------------------------------------------------
    def call_step(
        self,
        name: str,
        digest: bytes,
        decode: Callable[[bytes], Any],
        work: object,
        checks: bytes = b"",
        given: Arguments | None = None,
    ) -> asyncio.Future[Any]:
        """Issue a step; its future ends as the journal says."""
        if self.loop.closed or self.loop.stopped:
            return self._nothing()
        command = CallStep(self._next(), name, digest, checks)
        self._issue(command, given)
        return self._await_answer(command, decode, work)

    @property
    def keys_held(self) -> tuple[str, ...]:
        """The keys that this invocation and its ancestors hold: a child that needs one would wait for ever."""
        start = self.start
        return start.held if start.key is None else (*start.held, start.key)

    def call_child(
        self, start: Callable[[str, Parent], Start], decode: Callable[[bytes], Any], given: Arguments | None = None
    ) -> asyncio.Future[Any]:
        """Issue a child; `start` makes its start from the id derived for it, and from who waits for it."""
        if self.loop.closed or self.loop.stopped:
            return self._nothing()
        n = self._next()
        generation = self._generation_of(n)
        parent = Parent(self.start.id, generation, n)
        command = CallChild(n, start(derived_id(self.start.id, generation, n), parent))
        self._check_size(f"the input of child {command.start.handler!r}", command.start.input)
        self._issue(command, given)
        return self._await_answer(command, decode, None)

    def send(self, start: Callable[[str], Start], given: Arguments | None = None) -> str:
        """Issue a one-way start, and return its id."""
        n = self._next()
        sent = start(derived_id(self.start.id, self._generation_of(n), n))
        command = SendStart(n, replace(sent, sender=self.start.id))
        self._check_size(f"the input of what is sent to {command.start.handler!r}", command.start.input)
        self._issue(command, given)
        return command.start.id

    def open_awakeable(self, decode: Callable[[bytes], Any]) -> tuple[str, asyncio.Future[Any]]:
        """Issue an awakeable, and return its id and its future."""
        n = self._next()
        command = OpenAwakeable(n)
        self._issue(command)
        future = Future[Any](loop=self.loop)
        generation = self._generation_of(n)
        self.pending[n] = Pending(command, future, decode, generation=generation)
        return self.name_awakeable(generation, n), future

    def name_awakeable(self, generation: int, n: int) -> str:
        """Return the id of an awakeable: a replay elsewhere, without the store's secret, brings the ids along."""
        return awakeable_id(self.start.id, generation, n, self._secret)

    def patched(self, name: str) -> bool:
        """Tell whether this invocation had the change `name` when it first passed this point."""
        known = self._patches.get(name)
        if known is None:
            recorded = self._recorded
            if recorded is None or (self._open_ended and not recorded):
                known = True
            else:
                known = bool(recorded) and recorded[0] == MarkPatch(self._issued, name)
            if known:
                self._issue(MarkPatch(self._next(), name))
            self._patches[name] = known
        return known

    def set_state(self, name: str, value: bytes | None, repeats: Callable[[bytes], bool] | None = None) -> None:
        """Change a value of the invocation's state, or delete it.

        `repeats` tells whether the value is a recorded one whose bytes differ.
        """
        self._check_open()
        recorded = self._recorded_state.get(name)
        if recorded is not None and value != recorded and repeats is not None and repeats(recorded):
            value = recorded
        if value is not None:
            self._check_size(f"the state {name!r}", value)
        self._ready.state[name] = value
        if value is None:
            self.state.pop(name, None)
        else:
            self.state[name] = value

    def make_stub(self, stub: Any, retry: Any, timeout: Any) -> Any:
        """Return a stub whose calls are steps of this turn, made by what the runtime was given for that."""
        if self._stubs is None:
            raise CalledOutsideWorkflow("ctx.stub() needs a worker made by client.worker(...)")
        return self._stubs(stub, self, retry, timeout)

    @property
    def random(self) -> Random:
        """A generator seeded by the start."""
        if self._random is None:
            self._random = Random(self.start.seed)  # noqa: S311  repeatable on purpose
        return self._random

    def cancel_command(self, n: int) -> None:
        """Note that the body wants command `n` to end."""
        pending = self.pending.get(n)
        if pending is not None and not pending.cancel_requested and not self.loop.closed:
            pending.cancel_requested = True
            self._ready.cancels.append(n)

    # --- what the loop tells ------------------------------------------------------------------------------------------
    def timer_set(self, timer: asyncio.TimerHandle, /) -> None:
        n = self._next()
        command = SetTimer(n, timer.when())
        self._issue(command)
        self._timers[id(timer)] = n
        self.pending[n] = Pending(command, None, bytes, timer=timer)

    def timer_cancelled(self, timer: asyncio.TimerHandle, /) -> None:
        n = self._timers.pop(id(timer), None)
        if n is not None and self.pending.pop(n, None) is not None:
            self._ready.cancels.append(n)

    def task_failed_unseen(self, context: dict[str, Any], /) -> None:
        if not self.loop.closed:
            self.unseen.append(context)

    # --- inside -------------------------------------------------------------------------------------------------------
    def _nothing(self) -> asyncio.Future[Any]:
        """Refuse, or return what never ends: to be awaited by a dropped body that swallows every refusal."""
        self.loop.refuse()
        return Future[Any](loop=self.loop)

    def _next(self) -> int:
        loop = self.loop
        if loop.closed or loop.stopped or events._get_running_loop() is not loop:  # noqa: SLF001
            self._check_open()
        n = self._issued
        self._issued = n + 1
        return n

    def _check_open(self) -> None:
        loop = self.loop
        if loop.closed or loop.stopped:
            raise TurnClosed(self.start.id)
        if events._get_running_loop() is not loop:  # noqa: SLF001
            raise CalledOutsideWorkflow(
                f"the context of invocation {self.start.id!r} is for its body, not for other code"
            )

    def _generation_of(self, n: int) -> int:
        """Return the generation that issues command `n` first."""
        for issued, generation in reversed(self._boundaries):
            if n >= issued:
                return generation
        return self.generation

    def _check_size(self, what: str, data: bytes) -> None:
        # On replay too: what the body was refused then, it must be refused again.
        if self._payload_limit is not None and len(data) > self._payload_limit:
            raise too_large(what, len(data), self._payload_limit)

    def _issue(self, command: Command, given: Arguments | None = None) -> None:
        self._issued_in_drain += 1
        if self._issued_in_drain > COMMANDS_PER_DRAIN_LIMIT:
            text = (
                f"invocation {self.start.id!r} issued more than {COMMANDS_PER_DRAIN_LIMIT:,} commands without waiting"
            )
            raise LimitExceeded(
                f"{text}: await some of them first", size=self._issued_in_drain, limit=COMMANDS_PER_DRAIN_LIMIT
            )
        if self._recorded is None or (self._open_ended and not self._recorded):
            self._ready.commands.append(command)
            return
        recorded = self._recorded.popleft() if self._recorded else None
        if recorded is None or not repeats(command, recorded, given):
            self._diverge(describe(recorded), describe(command) + changed_arguments(command, recorded, given))
            raise TurnClosed(self.start.id)

    def _await_answer(
        self, command: CallStep | CallChild, decode: Callable[[bytes], Any], work: object
    ) -> asyncio.Future[Any]:
        future = CommandFuture(loop=self.loop)
        future.n = command.n
        future.answer = None
        generation = self._generation_of(command.n) if self._boundaries else self.generation
        self.pending[command.n] = Pending(command, future, decode, work, None, generation)
        return future

    def _granted(self, entry: Granted) -> None:
        """Let the body see the key's state; it begins, unless it is paused or a retry has begun it."""
        self.waits_for_key = False
        self.state = dict(entry.state)
        if self._main is None and not self.paused:
            self.begin()

    def _resumed(self) -> None:
        self.paused = False
        if self._main is None and not self.waits_for_key:
            self.begin()
        held, self._held = self._held, []
        for each in held:
            if self.divergence is None:
                self.deliver(each)

    def _attempted(self, entry: Attempted) -> None:
        if (pending := self.pending.get(entry.n)) is None:
            self._diverge_on(entry)
            return
        pending.attempts, pending.retry_due = entry.attempt, entry.due
        self.loop.now = max(self.loop.now, entry.at)

    def _answer(self, entry: Returned | Raised | Fired | Interrupted) -> None:
        loop = self.loop
        if entry.at > loop.now:
            loop.now = entry.at
        pending = self.pending.pop(entry.n, None)
        if pending is None:
            self._diverge_on(entry)
            return
        if pending.timer is not None:
            self._timers.pop(id(pending.timer), None)
            loop.fire(pending.timer)
            return
        future = pending.future
        if future is None or future.done():
            return
        if type(entry) is Raised:
            error = rebuild(entry.failure, translators=self._translators())
            if isinstance(error, StopIteration):  # a future refuses it, as a coroutine that raises it would
                stopped, error = error, RuntimeError("a step or child raised StopIteration")
                error.__cause__ = stopped
            self._failures[id(error)] = (error, entry.n)
            future.set_exception(error)
        elif type(entry) is Returned and not pending.cancel_requested:
            try:
                value = pending.decode(entry.value)
            except Undecodable as error:
                self._diverge(f"a value for {describe(pending.command)}", f"another type: {error}")
                return
            future.set_result(value)
        else:
            # Ended as the body asked; or answered after it asked, when the cancellation must not be lost.
            if isinstance(future, CommandFuture):
                future.answer = entry
            future.end()

    def cancel(self, request: CancelRequested) -> None:
        """Cancel the body's main task, once."""
        self.loop.now = max(self.loop.now, request.at)
        if self._cancel_requested is None:
            self._cancel_requested = request
            if self._main is not None and not self._main.done():
                self._main.cancel()

    def _drain(self) -> None:
        self._issued_in_drain = 0
        self.loop.drain()
        if self._main is not None and self._main.done() and self.divergence is None:
            self._finish()

    def _finish(self) -> None:
        """End as `asyncio.run` does: cancel what is left, let it end, then say what became of the body."""
        main = self._main
        assert main is not None
        if self._ready.outcome is not None:
            return
        if self.loop.is_spent():
            self._ready.outcome = self._outcome(main)
            return
        asked = self._left_over
        while live := [task for task in self.loop.live_tasks() if task.serial not in asked and not task.is_cleanup]:
            asked |= {task.serial for task in live}
            for task in live:
                task.cancel()
            self.loop.drain()
        if self.loop.live_tasks():
            return  # some wait for the journaled end of a step
        if self.loop.finish_generators():
            self._drain()
            return
        self._ready.outcome = self._outcome(main)

    def _outcome(self, main: asyncio.Task[Any]) -> Outcome:
        at = self.loop.now
        request = self._cancel_requested
        if main.cancelled():
            if request is None:
                error = asyncio.CancelledError("the body raised CancelledError without having been cancelled")
                return Failed(at, failure_of(error, translators=self._translators()))
            if not request.timed_out:
                return Cancelled(at)
            return timed_out(self.start, at)
        error_raised = main.exception()
        if error_raised is None:
            try:
                return Completed(at, self._encode_result(main.result()))
            except PerdureError as error:
                error_raised = error
        causes = self._causes(error_raised, set())
        cause = causes[0] if causes else None
        failure = failure_of(error_raised, translators=self._translators())
        return Failed(at, failure, cause, causes if len(causes) > 1 else [])

    def _causes(self, error: BaseException, seen: set[int]) -> list[int]:
        """Find the command whose failure `error` is, or comes from; the commands, if it is a group of several."""
        todo: list[BaseException | None] = [error]
        while todo:
            one = todo.pop(0)
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            if id(one) in self._failures:
                return [self._failures[id(one)][1]]
            if isinstance(one, BaseExceptionGroup):
                members = cast("BaseExceptionGroup[BaseException]", one).exceptions
                if causes := [n for member in members for n in self._causes(member, seen)]:
                    return causes
            todo += [one.__cause__, one.__context__]
        return []

    def _check_outcome(self, recorded: Outcome | None) -> None:
        """Check that the body ended where it did. A forced cancellation ends an invocation without its body."""
        ended = self._ready.outcome
        if type(ended) is not type(recorded) and not _is_forced(recorded):
            self._diverge(_describe_outcome(recorded), _describe_outcome(ended))

    def _diverge(self, recorded: str, issued: str) -> None:
        if self.divergence is None:
            self.divergence = Divergence(recorded, issued)
            self.loop.stopped = True

    def _diverge_on(self, entry: Returned | Raised | Attempted | Fired | Interrupted) -> None:
        if entry.n >= self._issued:
            asked = next((each for each in self._recorded or () if each.n == entry.n), None)
            answered = f"command #{entry.n}" if asked is None else describe(asked)
            self._diverge(f"an answer to {answered}", f"{self._issued} commands and no more")


_FOR_THE_BODY = frozenset({Returned, Raised, Fired, Interrupted, CancelRequested})


def timed_out(start: Start, at: float, /) -> Failed:
    """Return how an invocation ends that did not end within its time limit."""
    text = f"invocation {start.id!r} did not end within its timeout of {start.timeout} s"
    late = InvocationTimedOut(text, invocation_id=start.id, timeout=start.timeout or 0.0)
    return Failed(at, failure_of(late))


def _boundaries_in(frames: Iterable[Frame]) -> list[tuple[int, int]]:
    retries = (entry for frame in frames for entry in frame.entries if type(entry) is Retried)
    return [(retried.issued, retried.generation) for retried in retries]


def _is_forced(outcome: Outcome | None) -> bool:
    return isinstance(outcome, Cancelled) and outcome.forced


def _describe_outcome(outcome: Outcome | None) -> str:
    return "no end of the body here" if outcome is None else f"the body's end here, {type(outcome).__name__.lower()}"
