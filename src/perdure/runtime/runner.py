"""Runs one invocation: collect arrivals, deliver them to the turn, commit, then act.

The order is the point. Each round of an invocation is:

    arrivals -> turn -> frame -> commit ->  (durable)  -> start steps, arm timers, tell the waiters

One commit is in flight at a time; what arrives meanwhile goes into the next. Nothing that the body asked for begins
before the frame that records it is durable, with one exception that saves a commit: on the first delivery of a new
invocation, steps may start before the first frame, since a rerun would ask for the same steps.

The turn decides *what*; `opening` and `frames` decide what that means for the journal, `in_progress` for the steps; the
runner carries it out. It runs in plain callbacks of the host's loop, never in a host task, so that the body's tasks can
be entered on every Python. An exception in a callback stays with its invocation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from perdure.core.effects import NO_EFFECTS
from perdure.core.journal import (
    Entry,
    Frame,
    Message,
    Outcome,
    Paused,
    Released,
    SetTimer,
    Start,
)
from perdure.core.turn import Ready, Turn
from perdure.errors import PerdureError
from perdure.runtime.frames import (
    Round,
    compose,
    fire_due,
    gather,
    gather_stuck,
    is_empty,
    may_hold,
    outcome_of,
    release_now,
)
from perdure.runtime.home import Home
from perdure.runtime.in_progress import Waiting
from perdure.runtime.live import Live
from perdure.runtime.opening import (
    Begin,
    Done,
    Retry,
    Settled,
    TakeOver,
    Unknown,
    finish,
    opening,
    refuse_retry,
    retry_entries,
    take_over,
)
from perdure.runtime.waits import wait_of
from perdure.stores.port import Delivery, Journal, Key, Transition, Wake, committed, loggable

STOP_POLL_SECONDS = 0.002
"""How often a stopping worker checks whether its last commit has ended."""

KEY_LOOK_SECONDS = 1.0
"""How long a retry waits for the wake that says that it has its key before it looks by itself; then twice as long.

Where processes share a store, the wake may have gone to another, which has no retry in hand and drops it: a process of
an earlier release hands it to any, and one that holds the invocation for something else may have taken it."""

KEY_LOOK_LONGEST_SECONDS = 30.0

COMMIT_PATIENCE_SECONDS = 10.0
"""How long a stopping worker waits for a last commit, and then for a release, that its store does not take."""

log = logging.getLogger("perdure.worker")


class Runner(Live):
    """Runs one invocation. Made with its first delivery; `take` adds the others."""

    __slots__ = ("_awaits_key", "_force_frame", "_key_looks", "_unwritten")

    def __init__(self, home: Home, delivery: Delivery, fault: str | None = None) -> None:
        super().__init__(home, delivery, fault)
        self._unwritten: Ready | None = None  # the body's requests, while the first frame is held back
        self._force_frame = False
        self._awaits_key = False  # a retry in the inbox waits in the queue of its key
        self._key_looks = 0  # how often it has looked

    # --- the inbox ----------------------------------------------------------------------------------------------------
    def advance(self) -> None:
        """Do one round, as far as possible now: see the module's docstring."""
        try:
            if self._store != "idle" or self.closed:
                return
            self._awaits_key = False
            if self.turn is not None and self.turn.waits_for_key:
                self._forget_turn()  # the key may be ours by now: it is read again
            if self.turn is None and self._stuck is None:
                start = self.record.start
                if start is None or start.key is not None or self.record.revision or self._must_claim:
                    self._read(self._whole, self._loaded)
                    return
                self._open(start, ())
            self._round()
        except BaseException as error:  # noqa: BLE001  everything is contained here
            self.contain(error)

    # --- a journal that was read --------------------------------------------------------------------------------------
    def _loaded(self, found: tuple[Journal, Start | None, Key]) -> None:
        record, frames, was_owned = self.record, found[0].frames, self.record.owned
        record.read(*found)
        if was_owned and not record.owned:
            log.info("invocation %s: reloading: another worker has written since", self.id, extra=self.about)
            self._begin_anew(self._taken)
            return
        if not was_owned and record.start is not None:  # an owner has folded its frames, and its steps may run
            record.trail = self.home.trail_of(record.start, frames)
        match opening(record, frames, self._inbox, must_claim=self._must_claim):
            case Begin(start=start, frames=frames):
                self._open(start, frames)
                self._round()
            case TakeOver(start=start):
                is_others = record.history.claimed and frames[-1].writer != self.home.writer.name
                self._take_over(start, is_recovery=is_others)
            case Settled(start=start):
                self._finish_settled(start, frames)
            case Unknown():
                log.error(
                    "delivery for invocation %s, which the store does not know, is dropped", self.id, extra=self.about
                )
                self._let_go(self._inbox)

    def _take_over(self, start: Start, *, is_recovery: bool) -> None:
        claim = take_over(self.record, start, self._inbox, self.home.clock.now())
        self._inbox = claim.inbox
        if claim.paused_because is not None:
            log.error("invocation %s (%s) is paused: %s", self.id, self.handler, claim.paused_because, extra=self.about)

        def claimed() -> None:
            self._must_claim = False
            self.home.counters.recovered += is_recovery
            if claim.paused_because is not None:
                self._forget_turn()
                if not self._inbox:  # else the cache may drop it with a message in hand
                    self._rest()
            self.home.schedule(self)

        self._commit(claim.transition, claimed)

    # --- what has settled ---------------------------------------------------------------------------------------------
    def _finish_settled(self, start: Start, frames: Sequence[Frame]) -> None:
        found = finish(self.record, start, [*self._taken, *self._inbox], self.home.clock.now())
        self._taken, self._inbox = [], found.inbox
        then = self._look_for_key
        if isinstance(found.then, Retry):
            then = partial(self._retry, start, frames, found.then.delivery, found.then.message)
        elif isinstance(found.then, Done):
            then = self._settled
        self._commit(found.transition, then)

    def _look_for_key(self) -> None:
        """Wait until the key is ours; read it again if we were woken meanwhile, or after a while."""
        self._awaits_key = True
        if any(isinstance(delivery.item, Wake) for delivery in self._inbox):
            self.home.schedule(self)
            return
        wait = min(KEY_LOOK_SECONDS * 2 ** min(self._key_looks, 16), KEY_LOOK_LONGEST_SECONDS)
        self._key_looks += 1
        self.home.loop.call_later(wait, self._look_again, self._key_looks)

    def _look_again(self, look: int) -> None:
        if self._awaits_key and look == self._key_looks and not self.closed:
            self.home.schedule(self)

    def _retry(self, start: Start, frames: Sequence[Frame], delivery: Delivery, message: Message) -> None:
        """Retry a failed invocation: claim it, and record what is superseded and what is kept."""
        at = self.home.clock.now()
        self._taken.append(delivery)
        turn: Turn | None = None
        entries: list[Entry] | str = self._fault or ""
        try:
            turn = self.home.make_turn(start) if self._fault is None else None
        except PerdureError as error:
            entries = str(error)
        if turn is not None:
            entries = self._watched(partial(retry_entries, self.record, turn, frames, at, message))
        if turn is None or isinstance(entries, str):
            if turn is not None:
                turn.close()
            self._commit(refuse_retry(self.record, start, delivery, message, str(entries)), self._settled)
            return
        self.turn, self._stuck, self._must_claim = turn, None, False
        for entry in entries:
            self.record.history.note(entry)
        ready = turn.ready()
        self._report_unseen(turn)
        if self._agenda is not None:
            self._agenda.clear()
        self._note_deadline(start)
        said = {command.n for command in ready.commands}.union(ready.cancels)  # `_write` and `_durable` see to these
        for n, pending in turn.pending.items():
            if n not in said:
                self._take_up(n, pending)
        if ready.outcome is not None:
            entries.append(ready.outcome)
        self._write(start, Round(at, entries, taken=self._taken), ready, ready.outcome)

    # --- one round ----------------------------------------------------------------------------------------------------
    def _round(self) -> None:
        record = self.record
        start = record.start
        assert start is not None
        round, ready = self._gather(self.home.clock.now())
        self._inbox = round.inbox
        if self._taken:
            round.taken[:0] = self._taken
        self._taken = round.taken
        if (unwritten := self._unwritten) is not None:
            ready.commands[:0] = unwritten.commands
            self._unwritten = None
        outcome: Outcome | None = None
        if ready.outcome is not None or record.history.outcome is not None:
            ready, outcome = outcome_of(record, ready, round)
        if not record.revision and not self._force_frame and not self.steps.stopping:
            if may_hold(ready, round):
                self._hold(ready)
                return
        self._write(start, round, ready, outcome)

    def _gather(self, at: float) -> tuple[Round, Ready]:
        """Deliver the arrivals to the turn, and return the round."""
        steps, inbox = self.steps, self._inbox
        arrivals, steps.arrivals = steps.arrivals, []
        if self._stuck is not None:
            if self.record.history.paused is None:
                told = loggable(self.home.store, self._stuck)
                log.error("invocation %s (%s) is paused: %s", self.id, self.handler, told, extra=self.about)
            return gather_stuck(self.record, self._stuck, arrivals, inbox, at), Ready()
        turn = self.turn
        assert turn is not None
        watch = self.home.watch
        watch.count += 1
        watch.current = self
        try:
            round = gather(self.record, turn, arrivals, inbox, at)
            for entry in round.attempted:
                self._note_time(entry.due, entry.n)
            if round.resumed:
                self._take_up_all(turn)
            if self._agenda is not None:
                for n, pending in fire_due(self.record, turn, self._agenda.pop, self.steps.running, round):
                    self.steps.queue(n, pending)
        finally:
            watch.current = None
        if round.begins and turn.begun:
            self.home.counters.waits.observe((self.handler,), max(0.0, at - turn.start.due))
        ready = turn.ready()
        if turn.unseen:
            self._report_unseen(turn)
        if turn.divergence is None:
            return round, ready
        self._stuck = self.record.explain(turn)
        self._forget_turn()
        # Before the facts of this round: code that fits gets them on resuming, and issues commands only then.
        round.entries.insert(0, Paused(at, self._stuck))
        return round, Ready()

    def _hold(self, ready: Ready) -> None:
        """Begin the first steps, and hold their frame back for a while: it may then hold their outcomes too."""
        turn, steps = self.turn, self.steps
        assert turn is not None
        self._unwritten = ready
        self.home.hold_first_frame(self)
        for step in steps.new(ready, turn.pending):
            steps.begin(self, step)
        for command in ready.commands:
            steps.begun_early.add(command.n)

    def _write(self, start: Start, round: Round, ready: Ready, outcome: Outcome | None) -> None:
        """Commit the next frame, or do without one if there is nothing to record."""
        record, steps, turn = self.record, self.steps, self.turn
        pending, new, begins = {}, (), False
        if turn is not None:
            pending = turn.pending
            if record.history.paused is None:
                new = steps.new(ready, pending) if ready.commands else ()
                begins = bool(new or steps.waiting)
        if is_empty(ready, round) and not (begins and not record.owned):
            if record.revision and not (record.owned and not steps.needs_claim):
                self._without_frame(round)
                return
            if not record.revision and turn is not None and turn.waits_for_key:
                self._let_go(round.taken)  # woken too early; the store keeps its position
                return
        for n in ready.cancels:
            steps.cancel_unbegun(n, pending.get(n), round.at)
        for command in ready.commands:
            if type(command) is SetTimer and command.n in pending:
                self._note_time(command.due, command.n)
        in_progress = begins or steps.running or steps.arrivals
        release = outcome is None and not in_progress and not steps.stopping  # then `stop` releases, and sets a wake
        released = Released(round.at, self._next_due(), self._stuck_at()) if release else None
        transition = compose(record, start, turn, round, ready, outcome, released)
        then = self._ended if outcome is not None else partial(self._durable, new, ready.cancels, release)
        self._commit(transition, then)

    def _without_frame(self, round: Round) -> None:
        """Answer and acknowledge what needs no frame, once the journal is known to be unchanged.

        Another worker may have continued since the turn was cached or a claim expired. A commit would conflict, but
        there is none here.
        """
        if not self._sure:
            self._read(partial(self.home.store.revision, self.id), partial(self._confirmed, round))
            return
        record = self.record
        due = None if record.owned else self._next_due()  # after an early wake, the wake is set again first
        if round.answers or due is not None or record.redo is not NO_EFFECTS:
            effects = record.with_redo(NO_EFFECTS if due is None else replace(NO_EFFECTS, wake=due), round.answers)
            status = None if due is None else record.history.status
            wait = None if due is None else wait_of(self.turn, round.at, at_rest=True)
            transition = Transition(
                self.id, record.revision, None, effects, status, due is not None, round.taken, wait=wait
            )
            self._commit(transition, self._after_quiet_commit)
            return
        self._taken = []
        for delivery in round.taken:
            self.home.subscription.acknowledge(delivery)
        self._after_quiet_commit()

    def _confirmed(self, round: Round, revision: int) -> None:
        if revision == self.record.revision:
            self._sure = True
            self._without_frame(round)
        else:
            log.info("invocation %s: reloading: another worker has written since", self.id, extra=self.about)
            self._begin_anew(round.taken)

    # --- after a commit -----------------------------------------------------------------------------------------------
    def _durable(self, new: Sequence[Waiting], cancels: Sequence[int], released: bool) -> None:
        """Act on a frame that is durable: begin its `new` steps, interrupt those that the body asked to end."""
        steps = self.steps
        self._claimed()
        if self.turn is not None:
            if cancels:
                for n in cancels:
                    steps.interrupt(self, n)
            for step in new:
                steps.begin(self, step)
        steps.begun_early.clear()
        if steps.waiting and self.record.history.paused is None:
            steps.begin_waiting(self)
        if not released and self._agenda is not None:
            self._arm()  # while the turn exists: a time limit must end a running step
        if self.home.always_replay:
            self._forget_turn()
        if released:
            if self._agenda is not None:
                self._agenda.disarm()
            self.settle_down()
            if not self._inbox:
                self._rest()
        if steps.arrivals or self._inbox:
            self.home.schedule(self)

    def _after_quiet_commit(self) -> None:
        if self.record.history.paused is None:
            self.steps.begin_waiting(self)
        if self.record.owned:
            self._arm()  # as after a takeover, whose claim is a frame of its own and whose timers are older
        self.settle_down()
        if self.steps.arrivals or self._inbox:
            self.home.schedule(self)
        elif not self.record.owned:
            self._rest()

    # --- slots, idleness and the end ----------------------------------------------------------------------------------
    @property
    def in_progress(self) -> bool:
        """Report whether a step, a read or a commit is in progress, so that not only time or a key is missing."""
        inbox = self._inbox and not self._awaits_key
        busy = self._store == "busy" or self.steps.running or self.steps.arrivals or inbox
        return self._store != "away" and bool(busy)

    @property
    def steps_in_progress(self) -> list[str]:
        """The names of the steps that run now."""
        return [attempt.work.name for attempt in self.steps.running.values()]

    @property
    def first_frame_held(self) -> bool:
        """Report whether steps run whose commands are not durable yet."""
        return self._unwritten is not None and self._store == "idle" and not self.closed

    def write_first_frame(self) -> None:
        """Commit the first frame now, if it was held back."""
        self._force_frame = True
        self.home.schedule(self)

    def _rest(self) -> None:
        """Stay in the cache for the next delivery; after a fault leave, and the next delivery makes a new runner."""
        if self._fault is None:
            self.home.became_idle(self)
        else:
            self._leave()

    def _ended(self) -> None:
        self.home.counters.ended.add((self.record.history.status, self.handler))
        self._settled()

    def _settled(self) -> None:
        """Let go of everything: the outcome is durable."""
        late = self._inbox
        self._inbox = []
        self._leave()
        for delivery in late:
            self.home.deliver_again(delivery)

    def close(self) -> None:
        """Stop without a trace: nothing is journaled or acknowledged any more."""
        if self.closed:
            return
        self.closed = True
        self._claimed()
        if self._agenda is not None:
            self._agenda.disarm()
        self.steps.close(self)
        self._inbox = []
        self._forget_turn()
        self._store = "idle"
        self.settle_down()

    async def stop(self, grace: float) -> None:
        """Hand the invocation over: give steps a grace, interrupt them unjournaled, release the claim."""
        await self.steps.stop(self, grace)
        # Polled: every commit would have to maintain an event that is used once.
        patience = int(COMMIT_PATIENCE_SECONDS / STOP_POLL_SECONDS)
        while (self._store != "idle" or self.scheduled) and not self.closed and patience:
            await asyncio.sleep(STOP_POLL_SECONDS)
            patience -= 1
        if self._store != "idle":
            log.error(
                "the store does not take the last commit of invocation %s: it is redelivered instead",
                self.id,
                extra=self.about,
            )
            self.close()
        if self.record.owned and not self.closed:
            await self._release()
        self.close()

    async def _release(self) -> None:
        at = self.home.clock.now()
        transition = release_now(self.record, self.steps.take_arrivals(), self._taken, at)
        self._store = "busy"  # until `close`: what is due meanwhile is for the next owner
        try:
            async with asyncio.timeout(COMMIT_PATIENCE_SECONDS):
                await committed(self.home.store, transition)
            self._emit()
        except TimeoutError:
            text = "invocation %s could not be released, it is redelivered instead: the store does not answer"
            log.warning(text, self.id, extra=self.about)
        except PerdureError as error:
            log.warning(
                "invocation %s could not be released, it is redelivered instead: %s", self.id, error, extra=self.about
            )
        except Exception:
            log.exception("invocation %s could not be released, it is redelivered instead", self.id, extra=self.about)
