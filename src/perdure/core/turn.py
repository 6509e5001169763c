"""A turn: one workflow body, live on its private loop, driven by its journal and by nothing else.

    turn.begin() / turn.deliver(entry)   ->  the body runs until it waits  ->  turn.ready()

`ready()` returns what the body asked for since the last call: it must be durable before it begins. Entries are
delivered one at a time, in journal order, each followed by a drain, live and on replay alike, so the interleaving of
concurrent branches is a function of the journal. On replay every command is checked against the recorded one; a
difference is kept as the `divergence` of the turn, and nothing leaves the turn any more.

The turn starts nothing and knows no store and no worker. The runtime begins a pending command by its `work`; the turn
carries that and never looks inside.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import events
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any, cast

from perdure.core import resting
from perdure.core.causes import Causes
from perdure.core.context import BodyContext
from perdure.core.ending import coroutine_of, outcome_of, timed_out
from perdure.core.failures import FailureTranslator, failure_of, rebuild
from perdure.core.generations import replayable
from perdure.core.issuer import CommandFuture, Issuer, StubMaker
from perdure.core.journal import (
    Accepted,
    Attempted,
    CallChild,
    CallStep,
    CancelRequested,
    Entry,
    Failed,
    Fired,
    Frame,
    Granted,
    Interrupted,
    OpenAwakeable,
    Outcome,
    Paused,
    Raised,
    Resumed,
    Retried,
    Returned,
    SetTimer,
    Start,
    Waited,
    describe,
)
from perdure.core.loop import Loop
from perdure.core.pending import Pending, Ready
from perdure.core.recorded import Divergence, difference, left_over
from perdure.core.retrying import boundaries_in, issued_again, plan, sort
from perdure.core.where import line_of
from perdure.errors import (
    LimitExceeded,
    Undecodable,
)

__all__ = ["CommandFuture", "Divergence", "Pending", "Ready", "StubMaker", "Turn", "current_turn", "timed_out"]

CLEANUP_ROUNDS_LIMIT = 100
"""Rounds of cancelling the tasks that a body leaves behind, and those that they make meanwhile."""


def current_turn() -> Turn | None:
    """Return the turn whose body is running on this thread, if one is."""
    loop = events._get_running_loop()  # noqa: SLF001
    return loop.host if isinstance(loop, Loop) else None  # pyright: ignore[reportReturnType]  its host is a turn


class Turn(Issuer):
    """One pass of a workflow body over its journal.

    `body` makes the coroutine to run; it is called inside the turn. `encode_result` encodes the body's result, or
    raises. `secret` signs the ids of awakeables. `context` makes the body's context.
    """

    __slots__ = (
        "_body",
        "_cancel_requested",
        "_causes",
        "_encode_result",
        "_endings",
        "_fatal",
        "_held",
        "_left_over",
        "_main",
        "_resting",
        "_rests",
        "_translators",
        "_waited",
        "paused",
        "replaying",
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
        super().__init__(
            start, secret=secret, generation=generation, stubs=stubs, context=context, payload_limit=payload_limit
        )
        self.replaying = False
        self.paused = False
        self.waits_for_key = start.key is not None
        self._body = body
        self._encode_result = encode_result
        self._translators = translators
        self._main: asyncio.Task[Any] | None = None
        self._held: list[Entry] = []  # what arrived for the body while paused
        self._cancel_requested: CancelRequested | None = None
        self._left_over: set[int] = set()  # tasks that outlived the body and were cancelled
        self._endings = 0  # rounds in which tasks that outlived the body were cancelled
        self._causes = Causes()
        self._resting: int | None = None  # the timer of the present rest
        self._rests = 0  # rests in a row
        self._waited: Waited | None = None  # until then, and whether that must be recorded is not known yet
        self._fatal: BaseException | None = None  # the error that ends the body, whatever its main task does

    @property
    def ended(self) -> bool:
        """Report whether the body has ended, and its outcome waits in `ready()`."""
        return self._ready.outcome is not None

    # --- driving ------------------------------------------------------------------------------------------------------
    @property
    def cancelled_unbegun(self) -> CancelRequested | None:
        """The cancellation of a body that waits for its key, as an earlier release recorded it during a pause.

        When such a body goes on, the cancellation would begin it without the key.
        """
        if not self.waits_for_key or self.begun:
            return None
        return next((each for each in self._held if isinstance(each, CancelRequested)), None)

    @property
    def stuck_at(self) -> str | None:
        """Where the body is stuck (`app.py:12, in body`): it waits, or polls for long, and nothing can let it go on.

        None if something is pending, and while it is paused or has not begun.
        """
        main = self._main
        if main is None or self.paused or self.loop.closed or self.loop.stopped:
            return None
        for n in self.pending:
            if n != self._resting or self._rests < resting.STUCK_AFTER_RESTS:
                return None
        waits = main if not main.done() else next(iter(self.loop.live_tasks()), None)
        return None if waits is None else line_of(waits)

    def wait_until(self, at: float, /) -> None:
        """Note, before the body begins or goes on after a pause, that this is not before `at`."""
        loop, self._waited = self.loop, None
        if not self.begun:
            due, at = self.start.due, self.start.begins(at)
            if at != due or loop.now != due:
                self._waited = Waited(at, 0)
        elif at > loop.now:
            self._waited = Waited(at)
        self._pass_time(at)
        loop.looked = False

    def waited(self) -> Waited | None:
        """Return the entry that gives a replay the time of `wait_until`; None if the body has not looked at it.

        Then the next fact tells the time, and first steps need not be durable before they begin: they are the same at
        any time.
        """
        waited, self._waited = self._waited, None
        if waited is None or not self.begun:
            return None
        return waited if self.loop.looked or waited.at < self.start.due else None

    def begin(self) -> None:
        """Start the body and run it until it waits."""
        context = contextvars.Context()
        coro = coroutine_of(context, self._body, self, self.start.handler)
        self._main = self.loop.create_task(coro, name="workflow", context=context)
        self.begun = True
        self._drain()

    def deliver(self, entry: Entry, /) -> None:
        """Give the body one fact, and run it until it waits again. While paused, facts wait until `Resumed`."""
        # Compare types: `isinstance` is slow for a Struct of another class.
        if type(entry) is Returned and self._main is not None and not self.paused:  # most of them: as below
            self._answer(entry)
            self._drain()
            return
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
            self._note(entry)
            return
        self._drain()

    def _note(self, entry: Entry) -> None:
        """Take in what is no fact for the body. Claims, outcomes and the like do not concern it."""
        if type(entry) is Retried:
            self._retried(entry)
        elif type(entry) is Waited:
            self.loop.now = max(self.loop.now, entry.at)
        elif type(entry) is Accepted and not self.replaying and not self.waits_for_key:
            self.begin()

    def replay(self, frames: Sequence[Frame], /) -> None:
        """Deliver recorded frames, and check that the body asks for the same again."""
        self._replay(replayable(frames))

    def retry(self, frames: Sequence[Frame], generation: int, at: float, message: str, /) -> list[Entry] | str:
        """Run a fresh turn to the cut from which its failed invocation is retried.

        Return the entries to deliver and record next, `Waited` and `Retried` first, or the reason why it cannot be
        retried.
        """
        planned = plan(frames, generation, at, message)
        cut = planned.cut
        self._replay(planned.before)
        self._boundaries = [*boundaries_in((*planned.before, planned.last)), (planned.recorded, generation)]
        open_ended = not cut.causes
        self._replay_cut(planned.last, (planned.recorded, at), open_ended=open_ended, to_its_end=cut.is_end)
        if self.divergence is not None:
            return f"its code diverges from what is kept of its journal: {self.divergence}"
        waited = Waited(at, planned.recorded if open_ended and self._issued >= planned.recorded else None)
        issued = min(self._issued, planned.recorded)
        if planned.undone >= issued:
            return "its saga has undone what it did before it failed: start it anew, with restart()"
        self._boundaries[-1] = (issued, generation)
        kept, again = sort(planned, issued, self.pending, at)
        for n in again:
            command = self.pending[n].command
            if isinstance(command, CallChild) and command.start.chosen:
                return (
                    f"its child {command.start.id!r} failed or was cancelled, and another cannot have the id that was "
                    "chosen for it"
                )
        rested = max(0.0, at - cut.at)
        cause = planned.cause
        retried = Retried(at, generation, cause, issued, message, cut.frames, cut.entries, again, rested)
        return [waited, retried, *kept]

    def _replay_cut(self, frame: Frame, then: tuple[int, float], *, open_ended: bool, to_its_end: bool) -> None:
        """Deliver what a retry keeps of a frame: the body may issue only the first of the recorded commands.

        If `open_ended`, a repaired body may ask for more, at the time that it is `then`.
        """
        self.replaying = True
        self._ahead = _times_in(frame)
        if open_ended:
            self._ahead.append(then)
        self._catch_up()
        self._recorded = deque(frame.commands)
        self._recorded_written = Counter()
        for batch in frame.written:
            self._recorded_written[batch.name] += batch.count
        self._open_ended = open_ended
        if self._main is None and frame.commands:
            self.begin()
        for entry in frame.entries:
            if self.divergence is None:
                self.deliver(entry)
        if self.divergence is None and self._recorded and to_its_end:
            self._diverge(left_over(self._recorded[0]))
        self._note_times(frame)
        self._recorded = None
        self._recorded_written = {}
        self._ahead = []
        self._open_ended = False
        self.replaying = False

    def _retried(self, entry: Retried) -> None:
        """Begin a generation: commands issued again are pending anew, and later ones have ids of this generation."""
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
            # The outside has the ids of awakeables, and the keys of steps that undo.
            is_undo = isinstance(command, CallStep) and command.undo is not None
            if not isinstance(command, OpenAwakeable) and not is_undo:
                pending.generation = entry.generation
            pending.command = command
            pending.attempts, pending.retry_due, pending.since = 0, 0.0, entry.at
            self._issue(command)

    def _replay(self, frames: Sequence[Frame]) -> None:
        self.replaying = True
        self._boundaries = boundaries_in(frames)
        for frame in frames:
            self._recorded = deque(frame.commands)
            self._recorded_state = frame.state
            self._ahead = _times_in(frame)
            self._catch_up()
            ran = frame.commands or frame.state or frame.cancels or frame.outcome is not None
            if self._main is None and ran and not self.waits_for_key:
                self.begin()  # not at Accepted: earlier frames may be claims of workers that died at once
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
            self._note_times(frame)
            self._ready = Ready()
        self._recorded = None
        self._recorded_state = {}
        self._ahead = []
        self.replaying = False

    def _note_times(self, frame: Frame) -> None:
        """Let what a replayed frame issued and still waits have waited since then: the body may know no time."""
        for command in frame.commands:
            if (pending := self.pending.get(command.n)) is not None:
                pending.since = frame.at

    def ready(self) -> Ready:
        """Return what the body asked for since the last call; nothing after a divergence or `close`."""
        ready, self._ready = self._ready, Ready()
        return ready if self.divergence is None and not self.loop.closed else Ready()

    def waits_for(self, n: int) -> Pending | None:
        """Return command `n` if it still needs an answer."""
        if any(isinstance(held, (Returned, Raised, Fired, Interrupted)) and held.n == n for held in self._held):
            return None
        return self.pending.get(n)

    def close(self) -> None:
        """Drop the body. It issues no step or command any more, and leaves no task on the host's loop."""
        self.loop.close()
        self.pending.clear()
        self._causes.clear()
        self._main = None
        self.begun = False

    def _granted(self, entry: Granted) -> None:
        """Give the body the key's state; it begins, unless it is paused or a retry has begun it."""
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
            if isinstance(error, StopIteration):  # a future refuses StopIteration
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
            # Cancelled as the body asked; or answered after that, when the cancellation must not be lost.
            asked_to_end = cast("CommandFuture", future)  # any other future ends at once when it is cancelled
            asked_to_end.answer = entry
            asked_to_end.end()

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
        """Run ready callbacks; return false if some are left, since the body rests or has failed."""
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
        """Let the body rest, unless the journal has no rest here; return whether it rests or has failed."""
        recorded = self._recorded
        n, now = self._issued, self.loop.time()
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
            rest = recorded.popleft()  # another release may have rested for another time
        else:
            self._ready.commands.append(rest)
        self._issued = n + 1
        self._catch_up()
        self._rests += 1
        self._resting = n
        self.pending[n] = Pending(rest, None, bytes)
        return True

    def _wake(self) -> None:
        """End a rest: its timer fired, or another fact came."""
        n, self._resting = self._resting, None
        if n is not None and self.pending.pop(n, None) is not None:
            self._ready.cancels.append(n)
            self._rests = 0

    def _give_up(self) -> None:
        """Fail a body that never waits. It is not cancelled: it would not wait in its cleanup either."""
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
        """End as `asyncio.run` does: cancel the tasks that are left, let them end, then set the body's outcome."""
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
            self._endings += 1
            if self._endings > CLEANUP_ROUNDS_LIMIT:  # they make new ones for ever: dropped with the turn
                self._ready.outcome = self._outcome(main)
                return
            for task in live:
                task.cancel()
            if not self._run():
                return
        if self.loop.live_tasks():
            return  # some wait for a step whose end is not journaled yet
        if self.loop.finish_generators():
            self._drain()
            return
        self._ready.outcome = self._outcome(main)

    def _outcome(self, main: asyncio.Task[Any]) -> Outcome:
        at, translators = self.loop.now, self._translators()
        request, encode_result = self._cancel_requested, self._encode_result
        return outcome_of(main, self._fatal, request, encode_result, self._causes, translators, self.start, at)

    def _diverge_on(self, entry: Returned | Raised | Attempted | Fired | Interrupted) -> None:
        if entry.n >= self._issued:
            asked = next((each for each in self._recorded or () if each.n == entry.n), None)
            answered = f"command #{entry.n}" if asked is None else describe(asked)
            self._diverge(Divergence(f"an answer to {answered}", f"{self._issued} commands and no more"))


def _times_in(frame: Frame) -> list[tuple[int, float]]:
    """Return the times that a body has within a frame, and how many commands it has issued by then."""
    return [(each.issued, each.at) for each in frame.entries if type(each) is Waited and each.issued is not None]


_FOR_THE_BODY = frozenset({Returned, Raised, Fired, Interrupted, CancelRequested})
