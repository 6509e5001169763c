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
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from math import inf
from random import Random
from typing import Any, cast

from msgspec.structs import replace

from perdure.core import resting
from perdure.core.causes import Causes
from perdure.core.context import BodyContext
from perdure.core.failures import FailureTranslator, failure_of, rebuild
from perdure.core.generations import replayable
from perdure.core.ids import awakeable_id, derived_id
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
from perdure.core.pending import Pending, Ready
from perdure.core.recorded import Divergence, difference, left_over
from perdure.core.retry import DURATION_LIMIT_SECONDS
from perdure.core.retrying import boundaries_in, issued_again, plan, sort
from perdure.core.where import line_of
from perdure.errors import (
    CalledOutsideWorkflow,
    InvalidOption,
    InvocationTimedOut,
    IoInWorkflow,
    LimitExceeded,
    TurnClosed,
    Undecodable,
    too_large,
)

COMMANDS_PER_DRAIN_LIMIT = 100_000
"""Commands that a body may issue between two waits; beyond it the body is most likely in an endless loop."""


class CommandFuture(Future[Any]):
    """The future of a step or child. Like a Task's, its `cancel` asks; the end comes when the journal says so.

    `answer` is that end, if the future was asked to end: a child may have completed all the same.
    """

    __slots__ = ("answer", "n")
    n: int
    answer: Answering | None
    message: Any = None  # of the first cancellation: libraries know their own by it

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        if cast("Turn", cast("Loop", self.get_loop()).host).cancel_command(self.n):
            self.message = msg
        return True

    def end(self) -> None:
        """End as cancelled, with the message of what asked for it."""
        super().cancel(self.message)


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
        "_causes",
        "_context",
        "_encode_result",
        "_fatal",
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
        "_resting",
        "_rests",
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
        self._causes = Causes()
        self._resting: int | None = None  # the timer that the body rests by
        self._rests = 0  # in a row
        self._fatal: BaseException | None = None  # what ends the body whatever its main task does

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
    @property
    def stuck_at(self) -> str | None:
        """Where the body waits (`app.py:12, in body`), if nothing that is outstanding could let it go on.

        None if something is pending, and while it is paused or has not begun. A body that polls for long counts too.
        """
        main = self._main
        if main is None or self.paused or self.loop.closed or self.loop.stopped:
            return None
        for n in self.pending:
            if n != self._resting or self._rests < resting.STUCK_AFTER_RESTS:
                return None
        waits = main if not main.done() else next(iter(self.loop.live_tasks()), None)
        return None if waits is None else line_of(waits)

    def begin(self) -> None:
        """Start the body and run it until it waits."""
        context = contextvars.Context()
        coro = _made(context, self._body, self)
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
        planned = plan(frames, generation, at, message)
        cut = planned.cut
        self._replay(planned.before)
        self._boundaries = [*boundaries_in((*planned.before, planned.last)), (planned.recorded, generation)]
        self._replay_cut(planned.last, open_ended=not cut.causes, to_its_end=cut.is_end)
        if self.divergence is not None:
            return f"its code diverges from what is kept of its journal: {self.divergence}"
        issued = min(self._issued, planned.recorded)
        self._boundaries[-1] = (issued, generation)
        kept, again = sort(planned, issued, self.pending)
        for n in again:
            command = self.pending[n].command
            if isinstance(command, CallChild) and command.start.chosen:
                return f"its child {command.start.id!r} failed, and another cannot have the id that was chosen for it"
        rested = max(0.0, at - cut.at)
        cause = planned.cause
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
            self._diverge(left_over(self._recorded[0]))
        self._recorded = None
        self._open_ended = False
        self.replaying = False

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
                text = f"command #{n}, issued again by a retry"
                self._diverge(Divergence(text, "nothing that waits by that number"))
                return
            command = issued_again(pending.command, entry, self.start)
            if not isinstance(command, OpenAwakeable):  # the outside has its id
                pending.generation = entry.generation
            pending.command = command
            pending.attempts, pending.retry_due = 0, 0.0
            self._issue(command)

    def _replay(self, frames: Sequence[Frame]) -> None:
        self.replaying = True
        self._boundaries = boundaries_in(frames)
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
            if self._recorded:
                self._diverge(left_over(self._recorded[0]))
            elif (differs := difference(self._ready, frame)) is not None:
                self._diverge(differs)
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
        self._causes.clear()
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

    def cancel_command(self, n: int) -> bool:
        """Note that the body wants command `n` to end; return false if it was known."""
        pending = self.pending.get(n)
        if pending is None or pending.cancel_requested or self.loop.closed:
            return False
        pending.cancel_requested = True
        self._ready.cancels.append(n)
        return True

    # --- what the loop tells ------------------------------------------------------------------------------------------
    def timer_set(self, timer: asyncio.TimerHandle, /) -> None:
        due = float(timer.when())
        if not -DURATION_LIMIT_SECONDS <= due - self.loop.now <= DURATION_LIMIT_SECONDS:
            if (bounded := self._bounded(due)) is None:
                return
            due = bounded
        n = self._next()
        command = SetTimer(n, due)
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

    def _bounded(self, due: float) -> float | None:
        """Return when a timer is due that is not within the limit; None if never, as when nothing is to time out."""
        recorded = self._recorded[0] if self._recorded else None
        if isinstance(recorded, SetTimer) and recorded.due == due:
            return due  # of a release that took what it got
        if due == inf:
            return None
        if due < self.loop.now:
            return self.loop.now
        seconds = due - self.loop.now
        raise InvalidOption(
            f"a wait of {seconds} seconds in the body of invocation {self.start.id!r}: give at most "
            f"{DURATION_LIMIT_SECONDS:.0f}, or math.inf where asyncio takes it for no limit"
        )

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
            asked = describe(command) + changed_arguments(command, recorded, given)
            self._diverge(Divergence(describe(recorded), asked))
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
            self._causes.add(error, entry.n)
            future.set_exception(error)
        elif type(entry) is Returned and not pending.cancel_requested:
            try:
                value = pending.decode(entry.value)
            except Undecodable as error:
                asked = describe(pending.command)
                self._diverge(Divergence(f"a value for {asked}", f"another type: {error}"))
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
        if self._resting is not None:
            self._wake()
        if not self._run() or self._main is None or self.divergence is not None:
            return
        if self._main.done() or self._fatal is not None:
            self._finish()

    def _run(self) -> bool:
        """Run what is ready; return false if some of it is left, since the body rests or has failed."""
        loop = self.loop
        issued, unrested = self._issued, 0
        while not loop.drain(resting.CALLBACKS_PER_DRAIN_LIMIT):
            if self._issued == issued:
                unrested += resting.CALLBACKS_PER_DRAIN_LIMIT
                if self._rest(unrested):
                    return False
            issued = self._issued
        self._rests = 0
        if loop.escaped and self._fatal is None and self._main is not None and not self._main.done():
            self._fatal = loop.unhandled()
        return True

    def _rest(self, unrested: int) -> bool:
        """Let the body rest, unless it did not when this was recorded; return whether it does, or has failed."""
        recorded = self._recorded
        n, now = self._issued, self.loop.now
        if not self.pending and self._rests >= resting.RESTS_LIMIT:
            self._give_up()
            return True
        rest = SetTimer(n, now + resting.seconds_of(self._rests), rest=True)
        if recorded is not None and not (self._open_ended and not recorded):
            if not recorded or not (isinstance(recorded[0], SetTimer) and recorded[0].rest):
                if unrested < resting.UNRESTED_CALLBACKS_LIMIT:
                    return False
                self._diverge(Divergence("no rest here", f"{unrested:,} callbacks and more without waiting"))
                return True
            rest = recorded.popleft()  # shorter or longer, in another release
        else:
            self._ready.commands.append(rest)
        self._issued = n + 1
        self._rests += 1
        self._resting = n
        self.pending[n] = Pending(rest, None, bytes)
        return True

    def _wake(self) -> None:
        """End a rest: its time has come, or another fact."""
        n, self._resting = self._resting, None
        if n is not None and self.pending.pop(n, None) is not None:
            self._ready.cancels.append(n)
            self._rests = 0

    def _give_up(self) -> None:
        """Fail a body that runs on and on. It is not cancelled: it would not wait for its cleanup either."""
        assert self._main is not None
        callbacks = resting.RESTS_LIMIT * resting.CALLBACKS_PER_DRAIN_LIMIT
        text = (
            f"the body of invocation {self.start.id!r} ran {callbacks:,} callbacks without waiting for anything, last "
            f"at {line_of(self._main)}: await a step, a child, a timer or an awakeable there"
        )
        failure = failure_of(LimitExceeded(text, size=callbacks, limit=callbacks), translators=self._translators())
        self._ready.outcome = Failed(self.loop.now, failure)
        self.loop.stopped = True

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
            if not self._run():
                return
        if self.loop.live_tasks():
            return  # some wait for the journaled end of a step
        if self.loop.finish_generators():
            self._drain()
            return
        self._ready.outcome = self._outcome(main)

    def _outcome(self, main: asyncio.Task[Any]) -> Outcome:
        at = self.loop.now
        request = self._cancel_requested
        error_raised = self._fatal
        if error_raised is None and main.cancelled():
            if request is not None:
                return timed_out(self.start, at) if request.timed_out else Cancelled(at)
            error_raised = _cancelled_itself(main)
        elif error_raised is None:
            error_raised = main.exception()
        if error_raised is None:
            try:
                return Completed(at, self._encode_result(main.result()))
            except Exception as error:  # noqa: BLE001  whatever an encoder raises is the failure of this invocation
                error_raised = error
        error_raised = _refusal_in(error_raised)
        causes = self._causes.of(error_raised)
        cause = causes[0] if causes else None
        failure = failure_of(error_raised, translators=self._translators())
        return Failed(at, failure, cause, causes if len(causes) > 1 else [])

    def _diverge(self, divergence: Divergence) -> None:
        if self.divergence is None:
            self.divergence = divergence
            self.loop.stopped = True

    def _diverge_on(self, entry: Returned | Raised | Attempted | Fired | Interrupted) -> None:
        if entry.n >= self._issued:
            asked = next((each for each in self._recorded or () if each.n == entry.n), None)
            answered = f"command #{entry.n}" if asked is None else describe(asked)
            self._diverge(Divergence(f"an answer to {answered}", f"{self._issued} commands and no more"))


_FOR_THE_BODY = frozenset({Returned, Raised, Fired, Interrupted, CancelRequested})


def timed_out(start: Start, at: float, /) -> Failed:
    """Return how an invocation ends that did not end within its time limit."""
    text = f"invocation {start.id!r} did not end within its timeout of {start.timeout} s"
    late = InvocationTimedOut(text, invocation_id=start.id, timeout=start.timeout or 0.0)
    return Failed(at, failure_of(late))


def _made(context: contextvars.Context, body: Callable[[Turn], Any], turn: Turn) -> Coroutine[Any, Any, Any]:
    """Make the coroutine of a body. What is raised in making it, or made instead of it, is raised by it."""
    try:
        coro = context.run(body, turn)
    except Exception as error:  # noqa: BLE001  raised again, inside
        return _raising(error)
    if asyncio.iscoroutine(coro):
        return coro
    if isinstance(coro, Awaitable):
        return _awaiting(cast("Awaitable[Any]", coro))
    made = type(cast("object", coro)).__name__
    return _raising(TypeError(f"workflow {turn.start.handler!r} gave a {made} when called, and nothing to await"))


async def _awaiting(made: Awaitable[Any]) -> Any:
    return await made


async def _raising(error: Exception) -> None:
    raise error


def _refusal_in(error: BaseException) -> BaseException:
    """Return what a group holds if that is only a refusal of I/O: libraries connect in task groups of their own."""
    inner = error
    while isinstance(inner, BaseExceptionGroup):
        members = cast("BaseExceptionGroup[BaseException]", inner).exceptions
        if len(members) > 1:
            return error
        inner = next(iter(members))
    return inner if isinstance(inner, IoInWorkflow) else error


def _cancelled_itself(main: asyncio.Task[Any]) -> BaseException:
    """Return what a body raised that let a CancelledError of its own escape."""
    error = asyncio.CancelledError("the body raised CancelledError without having been cancelled")
    try:
        main.result()
    except asyncio.CancelledError as raised:
        error.__traceback__ = raised.__traceback__
    return error
