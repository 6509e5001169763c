"""One invocation in the hands of this worker: collect what arrived, give it to the turn, commit, then act.

The order is the whole point. For one invocation, again and again:

    arrivals -> turn -> frame -> commit ->  (durable)  -> start steps, arm timers, tell the waiters

One commit is in flight at a time; what arrives meanwhile goes into the next. Nothing that the body asked for begins
before the frame that records it is durable, with one exception that saves a commit: on the first delivery of a new
invocation, steps may start before the first frame, since a rerun would ask for the same steps.

The runner decides *when*; the turn decides *what*; the store remembers. It runs in plain callbacks of the host's loop,
never inside a host task, so that the body's tasks can be entered on every Python.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial, wraps
from typing import Concatenate, ParamSpec, Protocol

from msgspec.structs import replace

from perdure.authoring.step import StepInfo, Work
from perdure.core.apply import apply, may_retry, reply_to
from perdure.core.effects import NO_EFFECTS, Effects, Enlist, Release, effects_of
from perdure.core.failures import Failure
from perdure.core.history import DEATHS_LIMIT, History
from perdure.core.journal import (
    Accepted,
    Answer,
    Answering,
    Attempted,
    CallStep,
    Cancel,
    Cancelled,
    CancelRequested,
    Claimed,
    Entry,
    Fired,
    Frame,
    Granted,
    Interrupted,
    Message,
    Outcome,
    Paused,
    Raised,
    Refused,
    Released,
    Resume,
    Resumed,
    Returned,
    SetTimer,
    Start,
    Status,
)
from perdure.core.turn import Pending, Ready, Turn, timed_out
from perdure.errors import (
    Conflict,
    NewerJournal,
    PerdureError,
    StoreClosed,
    StoreDamaged,
    StoreError,
)
from perdure.runtime.agenda import DEADLINE, Agenda
from perdure.runtime.attempt import Attempt
from perdure.stores.port import (
    Clock,
    Delivery,
    Journal,
    Key,
    Store,
    Subscription,
    Transition,
    Wake,
    committed,
)

CANCEL_GRACE_SECONDS = 10.0
"""How long a cancelled step may take to end before its end is journaled without it."""

STORE_RETRY_SECONDS = 1.0
"""How long after a commit or a read that failed it is tried again."""

STOP_POLL_SECONDS = 0.002
"""How often a stopping worker looks whether a last commit has ended."""

COMMIT_PATIENCE_SECONDS = 10.0
"""How long a stopping worker waits for a last commit that its store does not take."""

READS_LIMIT = 5
"""How often a read that raises what no store should is tried again before the invocation is handed back."""

COMMITS_LIMIT = 5
"""How often a commit that raises what no store should is tried again before the invocation is paused."""

REASON_LIMIT = 4_000
"""Characters of the traceback that a pause gives as its reason."""

P = ParamSpec("P")

log = logging.getLogger("perdure.worker")


def contained(method: Callable[Concatenate[Runner, P], None]) -> Callable[Concatenate[Runner, P], None]:
    """Let an entry point of a runner keep what it raises with its own invocation: nothing reaches the host's loop.

    An exit or interrupt passes through: a signal handler raised it here by chance. What it hit is redelivered later.
    """

    @wraps(method)
    def guarded(self: Runner, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except (KeyboardInterrupt, SystemExit):
            self.close()
            raise
        except BaseException as error:  # noqa: BLE001  everything is contained here
            self.contain(error)

    return guarded


class Watch(Protocol):
    """Told when a body begins to run and when it waits again."""

    def began(self, runner: Runner, /) -> None: ...
    def ended(self) -> None: ...


class Home(Protocol):
    """What a runner needs of its worker."""

    name: str
    store: Store
    clock: Clock
    subscription: Subscription
    loop: asyncio.AbstractEventLoop
    reads: asyncio.Semaphore
    python: str
    hash_seed: str
    always_replay: bool

    @property
    def watch(self) -> Watch: ...
    def schedule(self, runner: Runner, /) -> None: ...
    def hold_first_frame(self, runner: Runner, /) -> None: ...
    def acquire_slot(self, runner: Runner, /) -> bool: ...
    def release_slot(self, runner: Runner, /) -> None: ...
    def became_idle(self, runner: Runner, /) -> None: ...
    def ended(self, runner: Runner, /) -> None: ...
    def deliver_again(self, delivery: Delivery, /) -> None: ...
    def set_aside(self, deliveries: Sequence[Delivery], reason: str, /) -> None: ...
    def commit_failed(self, id: str, error: BaseException, /) -> None: ...
    def make_turn(self, start: Start, /) -> Turn: ...
    def failure_of(self, error: BaseException, /) -> Failure: ...
    def begin_attempt(self, work: Work, info: StepInfo, runner: Runner, /) -> Attempt: ...


class Runner:
    """Runs one invocation. Made with its first delivery; `take` gives it the others."""

    __slots__ = (
        "_agenda",
        "_all_done",
        "_arrivals",
        "_begun_early",
        "_busy",
        "_failures",
        "_fault",
        "_force_frame",
        "_granted",
        "_has_written",
        "_home",
        "_inbox",
        "_key",
        "_left_behind",
        "_must_claim_first",
        "_outage",
        "_owned",
        "_redo",
        "_running",
        "_start",
        "_status",
        "_stopping",
        "_stuck",
        "_sure",
        "_taken",
        "_to_begin",
        "_unwritten",
        "closed",
        "handler",
        "has_slot",
        "history",
        "id",
        "revision",
        "scheduled",
        "turn",
    )

    def __init__(self, home: Home, delivery: Delivery, fault: str | None = None) -> None:
        self.id = delivery.id
        self.handler = delivery.handler
        self.has_slot = False
        self.scheduled = False
        self.closed = False
        self.turn: Turn | None = None
        self.history = History()
        self.revision = 0
        self._home = home
        self._start = delivery.item if delivery.fresh and isinstance(delivery.item, Start) else None
        self._must_claim_first = delivery.attempt > 1
        self._key = Key()  # as last read, while the key is not granted
        self._granted: Granted | None = None  # belongs into the next frame
        self._owned = False  # our claim is in the journal and not released
        self._status: Status | None = None
        self._stuck: str | None = None  # why there is no turn: the code does not fit the journal
        self._fault = fault  # an unexpected exception that ended the runner before this one: the invocation is paused
        self._failures = 0  # reads or commits in a row that raised what no store should
        self._inbox: list[Delivery] = []
        self._taken: list[Delivery] = []  # to be acknowledged by the next commit
        self._arrivals: list[Answering] = []  # outcomes of steps that are not journaled yet
        self._unwritten: Ready | None = None  # what the body asked for, while the first frame is held back
        self._redo = NO_EFFECTS  # those of the last frame, if another wrote it: they come first
        self._all_done = False  # it is known that there are none to do again
        self._has_written = False
        self._sure = False  # the journal was read or written after all that is in hand had come
        self._begun_early: set[int] = set()  # steps in it: they have begun, and may have ended since
        self._force_frame = False
        self._running: dict[int, Attempt] = {}
        self._left_behind: set[Attempt] = set()  # ended for the journal, but still running
        self._to_begin: list[tuple[int, Work, int, int]] = []  # durable commands that wait for a slot
        self._agenda: Agenda | None = None  # made when something is due of itself
        self._busy = False  # a read or a commit is in flight
        self._outage = False  # ... and is tried again in a moment
        self._stopping = False

    # --- deliveries ---------------------------------------------------------------------------------------------------
    def take(self, delivery: Delivery) -> None:
        """Take a delivery for this invocation."""
        self._inbox.append(delivery)
        self._sure = False
        if delivery.attempt > 1 and not self._owned:
            self._must_claim_first = True
        self._home.schedule(self)

    @contained
    def advance(self) -> None:
        """Do what can be done now: one round of the loop in this module's docstring."""
        if self._busy or self.closed:
            return
        if self.turn is not None and self.turn.waits_for_key:
            self._forget_turn()  # the key may be ours by now: it is read again
        if self.turn is None and self._stuck is None:
            if self._start is None or self._start.key is not None or self.revision or self._must_claim_first:
                self._load()
                return
            self._open(self._start, ())
        self._round()

    # --- reading the journal ------------------------------------------------------------------------------------------
    def _load(self) -> None:
        self._busy = self._sure = True
        task = asyncio.ensure_future(self._read_in_turn())
        task.add_done_callback(self._loaded)

    async def _read_in_turn(self) -> tuple[Journal, Start | None, Key]:
        async with self._home.reads:
            return await self._read()

    async def _read(self) -> tuple[Journal, Start | None, Key]:
        store = self._home.store
        start = self._start
        journal = Journal()
        if start is None or self.revision or self._must_claim_first:
            journal = await store.journal(self.id)
            if not journal.frames:
                # A start in hand proves nothing: its invocation may have run, settled and been purged meanwhile.
                start = await store.start(self.id)
            elif isinstance(accepted := journal.frames[0].entries[0], Accepted):
                start = accepted.start
        key = Key() if start is None or start.key is None else await store.key(start.key)
        return journal, start, key

    @contained
    def _loaded(self, task: asyncio.Task[tuple[Journal, Start | None, Key]]) -> None:
        self._busy = False
        if self.closed or task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._read_failed(error, self._load)
            return
        self._failures = 0
        journal, start, self._key = task.result()
        self.revision, self._all_done = journal.revision, journal.done
        self.history = history = History.of(journal.frames)
        self._start = start = history.start or start
        if start is None:
            log.error("delivery for invocation %s, which the store does not know, is dropped", self.id)
            self._acknowledge_all()
            return
        self._status = history.status if journal.frames else None
        if history.outcome is not None:
            self._redo_settled(start, journal.frames)
        elif not journal.frames and not any(isinstance(each.item, Start) for each in self._inbox):
            self._open(start, ())  # it is not due yet: only a cancellation is brought now, and ends it
            self._round()
        elif self._must_claim_first or (history.claimed and not self._owned):
            self._claim_first(start)
        else:
            if not self._has_written:
                self._redo = self._effects_to_redo(start)
            self._open(start, journal.frames)
            self._round()

    def _read_failed(self, error: BaseException, read: Callable[[], None]) -> None:
        if isinstance(error, StoreClosed):
            self.close()
            return
        is_foreseen = isinstance(error, StoreError)
        self._failures = 0 if is_foreseen else self._failures + 1
        if isinstance(error, (NewerJournal, StoreDamaged)) or self._failures > READS_LIMIT:
            self._decline(f"its journal cannot be read: {_in_short(error)}")
            return
        told = None if is_foreseen else error
        log.error("the journal of invocation %s cannot be read, trying again: %s", self.id, error, exc_info=told)
        self._busy = True
        self._later(read)

    def _later(self, work: Callable[[], None]) -> None:
        """Try again in a moment what the store did not do."""
        self._outage = True
        clock = self._home.clock
        clock.call_at(clock.now() + STORE_RETRY_SECONDS, partial(self._try_again, work))

    def _decline(self, reason: str) -> None:
        """Hand back all deliveries of an invocation that cannot run here: another worker may be able to."""
        given_back = (*self._taken, *self._inbox, Delivery(self.id, self.handler, Wake()))[0]
        self.close()
        self._home.ended(self)
        self._home.subscription.decline(given_back, reason)

    @contained
    def _try_again(self, work: Callable[[], None]) -> None:
        self._outage = False
        if not self.closed:
            work()

    def _confirm(self, answers: list[Answer]) -> None:
        """See whether the journal is as it is known here, before what came is dropped as meaningless.

        Another worker may have gone on since a turn was kept, or since a claim ran out: a frame would meet his and
        fail, but nothing is written here.
        """
        self._busy = self._sure = True
        task = asyncio.ensure_future(self._read_revision())
        task.add_done_callback(partial(self._confirmed, answers))

    async def _read_revision(self) -> int:
        async with self._home.reads:
            return await self._home.store.revision(self.id)

    @contained
    def _confirmed(self, answers: list[Answer], task: asyncio.Task[int]) -> None:
        self._busy = False
        if self.closed or task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._read_failed(error, partial(self._confirm, answers))
        elif task.result() == self.revision:
            self._drop(answers)
        else:
            log.info("invocation %s is read again: another worker has written since", self.id)
            self._begin_anew(self._taken)

    def _redo_settled(self, start: Start, frames: Sequence[Frame]) -> None:
        """Finish what a settled invocation's last owner may have left undone, and refuse what came too late.

        If a retry is among what came, it is next, and what came after it waits.
        """
        answers: list[Answer] = []
        replies: list[Message] = []
        enlist: Enlist | None = None
        then = self._settled
        taken, self._inbox = [*self._taken, *self._inbox], []
        self._taken = []
        for place, delivery in enumerate(taken):
            if isinstance(delivery.item, Message):
                if may_retry(delivery.item, self.history):
                    following = self.history.generation + 1
                    if start.key is None or self._key.granted_to(self.id, following):
                        taken, self._inbox = taken[:place], taken[place + 1 :]
                        then = partial(self._retry, start, frames, delivery, delivery.item)
                    else:  # the message waits, unanswered, until a wake says that the key is ours
                        self._inbox = [each for each in taken[place:] if not isinstance(each.item, Wake)]
                        taken = [each for each in taken if each not in self._inbox]
                        enlist = Enlist(start.key, following)
                        then = self._look_for_key
                    break
                at = self._home.clock.now()
                entry = apply(delivery.item, self.history, None, at)
                if (reply := reply_to(delivery.item, start, self.history, at)) is not None:
                    replies.append(reply)
                known = self.history.messages.get(delivery.item.id, "")
                if known is None:
                    answers.append(Answer(delivery.item.id))
                elif isinstance(entry, Refused):
                    answers.append(Answer(delivery.item.id, entry.reason))
        effects = self._effects_to_redo(start)
        messages = (*effects.messages, *replies)
        effects = replace(effects, messages=messages, answers=(*effects.answers, *answers), enlist=enlist)
        transition = Transition(self.id, self.revision, None, effects, self.history.status, True, taken)
        self._commit(transition, then)

    def _look_for_key(self) -> None:
        """Read the key again if we were woken meanwhile."""
        if any(isinstance(delivery.item, Wake) for delivery in self._inbox):
            self._home.schedule(self)

    def _retry(self, start: Start, frames: Sequence[Frame], delivery: Delivery, message: Message) -> None:
        """Run a failed invocation again: claim it, and record what is superseded and what stays."""
        at = self._home.clock.now()
        turn: Turn | None = None
        entries: list[Entry] | str = self._fault or ""
        try:
            turn = self._home.make_turn(start) if self._fault is None else None
        except PerdureError as error:
            entries = str(error)
        if turn is not None:
            watch = self._home.watch
            watch.began(self)
            try:
                entries = self._retry_turn(turn, frames, at, message)
            finally:
                watch.ended()
        if turn is None or isinstance(entries, str):
            if turn is not None:
                turn.close()
            release = None if start.key is None else Release(start.key, self.history.generation + 1)
            effects = replace(NO_EFFECTS, answers=(Answer(message.id, str(entries)),), release=release)
            transition = Transition(self.id, self.revision, None, effects, self.history.status, True, [delivery])
            self._commit(transition, self._settled)
            return
        self.turn, self._stuck, self._must_claim_first = turn, None, False
        for entry in entries:
            self.history.note(entry)
        ready = turn.ready()
        if turn.unseen:
            self._report_unseen(turn)
        self._forget_times()
        self._note_deadline(start)
        said = {command.n for command in ready.commands}.union(ready.cancels)  # `_write` and `_durable` see to these
        for n, pending in turn.pending.items():
            if n not in said:
                self._take_up(n, pending)
        if ready.outcome is not None:
            entries.append(ready.outcome)
        self._taken.append(delivery)
        self._write(start, at, entries, ready, ready.outcome, [])

    def _retry_turn(self, turn: Turn, frames: Sequence[Frame], at: float, message: Message) -> list[Entry] | str:
        generation = self.history.generation + 1
        entries = turn.retry(frames, generation, at, message.id)
        if isinstance(entries, str):
            return entries
        if turn.start.key is not None:
            entries.insert(0, Granted(at, generation, self._key.state))
        for entry in entries:
            turn.deliver(entry)
        return entries if turn.divergence is None else self._explain(turn)

    def _claim_first(self, start: Start) -> None:
        """Take over from an owner that did not release: the claim is a frame of its own, before the body runs.

        It redoes the effects of the frame before it. An invocation whose owners died again and again is set aside.
        """
        at = self._home.clock.now()
        history = self.history
        claim = self._claim(at)
        entries: list[Entry] = [claim] if self.revision else [Accepted(start), claim]
        # A start that comes again without a frame: somebody died before he could claim.
        deaths = history.deaths + (history.unclaimed_deaths if self.revision else 1)
        status: Status = "paused" if history.paused is not None else "running"
        if deaths >= DEATHS_LIMIT:
            status = "paused"
            reason = f"set aside: {deaths} workers in a row died while they ran it, without a new entry in its journal"
            entries += [Paused(at, reason), Released(at)]
            log.error("invocation %s (%s) is paused: %s", self.id, self.handler, reason)
        frame = Frame(self._home.name, at, entries)
        effects = self._effects_to_redo(start)
        starts = [each for each in self._inbox if not isinstance(each.item, Message)]
        self._inbox = [each for each in self._inbox if isinstance(each.item, Message)]
        set_aside = deaths >= DEATHS_LIMIT
        history.add(frame)

        def claimed() -> None:
            self._must_claim_first = False
            if set_aside:
                self._forget_turn()
                self._rest()
            self._home.schedule(self)

        transition = Transition(self.id, self.revision, frame, effects, status, set_aside, starts)
        self._status = status
        self._owned = not set_aside
        self._commit(transition, claimed)

    def _claim(self, at: float) -> Claimed:
        home = self._home
        return Claimed(at, self.history.epoch + 1, home.name, home.python, home.hash_seed)

    # --- the turn -----------------------------------------------------------------------------------------------------
    def _open(self, start: Start, frames: Sequence[Frame]) -> None:
        """Make the turn and bring it to where its journal ends."""
        self._start = start
        if self._fault is not None:
            self._stuck = self._fault
            return
        try:
            turn = self._home.make_turn(start)
        except PerdureError as error:
            self._stuck = str(error)
            return
        self.turn = turn
        if frames:
            watch = self._home.watch
            watch.began(self)
            try:
                turn.replay(frames)
            finally:
                watch.ended()
            if turn.divergence is not None:
                self._stuck = self._explain(turn)
                self._forget_turn()
                return
            self._forget_times()
            self._resume_commands(turn)
        self._note_deadline(start)

    def _explain(self, turn: Turn) -> str:
        hint = ""
        if self.history.hash_seed != self._home.hash_seed:
            hint = f" (recorded under hash seed {self.history.hash_seed}, now {self._home.hash_seed}: a set's order?)"
        if self.history.python and self.history.python != self._home.python:
            hint += f" (recorded by Python {self.history.python}, now {self._home.python})"
        return f"the code diverges from the journal: {turn.divergence}{hint}; deploy the code that fits, then resume"

    def _resume_commands(self, turn: Turn) -> None:
        """Take up the commands that wait for an answer, after a replay or a pause. While paused, some may be held."""
        if self.history.paused is not None:
            return
        arrived = {each.n for each in self._arrivals}
        begun = {each[0] for each in self._to_begin}
        for n, pending in turn.pending.items():
            if n not in arrived and n not in begun:
                self._take_up(n, pending)

    def _take_up(self, n: int, pending: Pending) -> None:
        match pending.command:
            case CallStep():
                if n in self._running:
                    if pending.cancel_requested:
                        self._interrupt(n)
                elif pending.cancel_requested:
                    self._arrivals.append(Interrupted(n, self._home.clock.now()))
                elif pending.retry_due > self._home.clock.now():
                    self._note_time(pending.retry_due, n)
                else:
                    self._queue(n, pending)
            case SetTimer(due=due):
                self._note_time(due, n)
            case _:
                pass

    def _forget_turn(self) -> None:
        turn, self.turn = self.turn, None
        if turn is not None:
            try:
                turn.close()
            except Exception:
                log.exception("invocation %s: its body did not end when it was dropped", self.id)

    # --- one round ----------------------------------------------------------------------------------------------------
    def _round(self) -> None:
        start, turn = self._start, self.turn
        assert start is not None
        at = self._home.clock.now()
        entries: list[Entry] = []
        answers: list[Answer] = []
        if self._stuck is not None:
            self._stuck_round(at, entries, answers)
            ready = Ready()
        else:
            assert turn is not None
            watch = self._home.watch
            watch.began(self)
            try:
                self._feed(turn, at, entries, answers)
            finally:
                watch.ended()
            ready = turn.ready()
            if turn.unseen:
                self._report_unseen(turn)
            if turn.divergence is not None:
                self._stuck = self._explain(turn)
                self._forget_turn()
                ready = Ready()
                # Before the facts of this round: code that fits is given them on resuming, and asks for more only then.
                entries.insert(0, Paused(at, self._stuck))
        if (unwritten := self._unwritten) is not None:
            ready.commands[:0] = unwritten.commands
            self._unwritten = None
        outcome = self.history.outcome  # a forced cancellation has noted one
        if outcome is not None:
            ready = Ready()
            ready.cancels = self.history.open_children()  # it acts without the body, which would have asked for these
        elif ready.outcome is not None:
            outcome = ready.outcome
            entries.append(outcome)
        if not self.revision and self._may_hold_first_frame(ready, entries, answers):
            self._unwritten = ready
            self._home.hold_first_frame(self)
            self._begin_new(ready)
            self._begun_early.update(command.n for command in ready.commands)
            return
        self._write(start, at, entries, ready, outcome, answers)

    def _stuck_at(self, turn: Turn | None) -> str | None:
        """Return where the body waits for nothing that can come; log it when it begins to."""
        stuck_at = None if turn is None else turn.stuck_at
        if stuck_at is not None and stuck_at != self.history.stuck_at:
            log.warning(
                "invocation %s (%s) waits at %s for something that nothing can bring: no step, timer, child or "
                "awakeable is pending. Only a cancellation or its time limit can end it",
                self.id,
                self.handler,
                stuck_at,
            )
        return stuck_at

    def _report_unseen(self, turn: Turn) -> None:
        """Log what tasks of the body raised and nobody awaited, as asyncio does."""
        for context in turn.unseen:
            log.error("invocation %s: %s", self.id, context.get("message"), exc_info=context.get("exception"))
        turn.unseen.clear()

    def _feed(self, turn: Turn, at: float, entries: list[Entry], answers: list[Answer]) -> None:
        """Give the turn all that arrived, one fact at a time."""
        if not turn.begun:
            if (self.revision == 0 or not self._may_begin(turn)) and self._cancelled_unseen(at, entries):
                return
            if turn.waits_for_key:
                if self._may_begin(turn):
                    self._granted = granted = Granted(at, self.history.generation, self._key.state)
                    self.history.note(granted)
                    turn.deliver(granted)
            elif self.history.paused is None:
                turn.begin()
        arrivals, self._arrivals = self._arrivals, []
        for entry in arrivals:
            turn.deliver(entry)
            entries.append(entry)
            if type(entry) is Attempted:
                self._note_time(entry.due, entry.n)
        if self._inbox:
            self._take_inbox(turn, at, entries, answers)
        if self._agenda is not None and self.history.paused is None and self.history.outcome is None:
            self._fire_due(self._agenda, turn, at, entries)

    def _take_inbox(self, turn: Turn, at: float, entries: list[Entry], answers: list[Answer]) -> None:
        inbox, self._inbox = self._inbox, []
        for delivery in inbox:
            if type(delivery.item) is not Message:
                self._taken.append(delivery)
            elif turn.ended:  # it came too late: it is refused once the outcome is durable
                self._inbox.append(delivery)
            else:
                self._taken.append(delivery)
                self._take_message(delivery.item, turn, at, entries, answers)

    def _take_message(
        self, message: Message, turn: Turn | None, at: float, entries: list[Entry], answers: list[Answer]
    ) -> None:
        if message.id in self.history.messages:
            answers.append(Answer(message.id, self.history.messages[message.id]))
            return
        entry = apply(message, self.history, turn, at)
        if entry is None:
            if (start := self._start) is not None and (reply := reply_to(message, start, self.history, at)) is not None:
                self._redo = replace(self._redo, messages=(*self._redo.messages, reply))
            return
        self.history.note(entry)
        entries.append(entry)
        if turn is not None:
            turn.deliver(entry)
            if isinstance(entry, Resumed):
                self._resume_commands(turn)

    def _may_begin(self, turn: Turn) -> bool:
        """Tell whether the body's key is ours, or it needs none. A wake or message alone does not begin a body."""
        if not turn.waits_for_key:
            return True
        is_begun = bool(self.revision) or any(isinstance(each.item, Start) for each in self._inbox)
        return is_begun and self._key.granted_to(self.id, self.history.generation)

    def _cancelled_unseen(self, at: float, entries: list[Entry]) -> bool:
        """Settle an invocation that was cancelled before its body could run. Other messages are refused after that."""
        for delivery in self._inbox:
            if type(delivery.item) is Message and isinstance(delivery.item.request, Cancel):
                others = [each for each in self._inbox if isinstance(each.item, Message) and each is not delivery]
                self._taken += [each for each in self._inbox if each not in others]
                self._inbox = others
                ended = Cancelled(at, message=delivery.item.id)
                self.history.note(ended)
                entries.append(ended)
                return True
        return False

    def _fire_due(self, agenda: Agenda, turn: Turn, at: float, entries: list[Entry]) -> None:
        while (n := agenda.pop(at)) is not None:
            entry: Entry | None = None
            if n == DEADLINE and turn.waits_for_key:  # it never ran: there is nothing to clean up
                late = timed_out(turn.start, at)
                self.history.note(late)
                entries.append(late)
                return
            if n == DEADLINE:
                entry = CancelRequested(at, timed_out=True)
            elif (pending := turn.pending.get(n)) is not None:
                if isinstance(pending.command, SetTimer):
                    entry = Fired(n, at)
                elif n not in self._running and not pending.cancel_requested:
                    self._queue(n, pending)
            if entry is not None:
                turn.deliver(entry)
                entries.append(entry)

    def _stuck_round(self, at: float, entries: list[Entry], answers: list[Answer]) -> None:
        """Pause an invocation whose code does not fit its journal; only what needs no code is applied."""
        assert self._stuck is not None
        if self.history.paused is None:
            paused = Paused(at, self._stuck)
            self.history.note(paused)
            entries.append(paused)
            log.error("invocation %s (%s) is paused: %s", self.id, self.handler, self._stuck)
        entries += self._arrivals
        self._arrivals = []
        inbox, self._inbox = self._inbox, []
        for delivery in inbox:
            self._taken.append(delivery)
            message = delivery.item
            if isinstance(message, Message):
                if isinstance(message.request, Resume) and message.id not in self.history.messages:
                    refused = Refused(at, message.id, self._stuck)
                    self.history.note(refused)
                    entries.append(refused)
                else:
                    self._take_message(message, None, at, entries, answers)

    # --- writing ------------------------------------------------------------------------------------------------------
    def _may_hold_first_frame(self, ready: Ready, entries: list[Entry], answers: list[Answer]) -> bool:
        """Tell whether steps may start before the first frame: a first delivery that asked for steps and no more."""
        if self._force_frame or entries or answers or not ready.commands or ready.state or ready.cancels:
            return False
        return all(type(command) is CallStep for command in ready.commands) and not self._stopping

    def _write(
        self,
        start: Start,
        at: float,
        entries: list[Entry],
        ready: Ready,
        outcome: Outcome | None,
        answers: list[Answer],
    ) -> None:
        begins = self._begins(ready)
        if not (entries or ready.commands or ready.state or ready.cancels or (begins and not self._owned)):
            if self.revision and not self._must_release():
                self._after_nothing(answers)
                return
            if not self.revision and self.turn is not None and self.turn.waits_for_key:
                self._let_go()
                return
        for n in ready.cancels:
            self._cancel_unbegun(n)
        turn = self.turn
        for command in ready.commands:
            if type(command) is SetTimer and turn is not None and command.n in turn.pending:
                self._note_time(command.due, command.n)
        release = outcome is None and not begins and not self._running and not self._arrivals
        frame_entries = [*self._preamble(start, at), *entries]
        if release:
            frame_entries.append(Released(at, self._next_due(), self._stuck_at(turn)))
        if outcome is not None and frame_entries[-1] is not outcome:
            frame_entries.remove(outcome)
            frame_entries.append(outcome)
        frame = Frame(self._home.name, at, frame_entries, ready.commands, ready.state, ready.cancels)
        self.history.add(frame)
        effects = self._effects_of(start, frame)
        if answers or self._redo is not NO_EFFECTS:
            effects = self._with_redo(effects, answers)
        status = self.history.status
        changed = status if status != self._status or release else None
        taken, self._taken = self._taken, []
        self._status = status
        self._owned = not release and outcome is None
        transition = Transition(self.id, self.revision, frame, effects, changed, release, taken)
        if outcome is not None:
            self._commit(transition, self._settled)
        else:
            self._commit(transition, partial(self._durable, ready, release))

    def _preamble(self, start: Start, at: float) -> list[Entry]:
        """Return what comes first in the next frame: what makes the invocation ours, as far as it is not yet."""
        entries: list[Entry] = []
        if self.revision == 0:
            entries.append(Accepted(start))
        if not self._owned:
            entries.append(self._claim(at))
        if self._granted is not None:
            entries.append(self._granted)
            self._granted = None
        return entries

    def _must_release(self) -> bool:
        """Tell whether nothing is left to do for a claim that we hold."""
        return self._owned and not (self._running or self._to_begin or self._arrivals)

    def _begins(self, ready: Ready) -> bool:
        """Tell whether steps will begin once the frame is durable."""
        if self.history.paused is not None or self.turn is None:
            return False
        if self._to_begin:
            return True
        pending = self.turn.pending
        for command in ready.commands:
            if type(command) is CallStep and (waiting := pending.get(command.n)) is not None:
                if not waiting.cancel_requested and command.n not in self._begun_early:
                    return True
        return False

    def _cancel_unbegun(self, n: int) -> None:
        """End a step that has not begun when the body no longer wants it: its end is a fact at once."""
        turn = self.turn
        pending = turn.pending.get(n) if turn is not None else None
        if pending is not None and isinstance(pending.command, CallStep) and n not in self._running:
            self._to_begin = [each for each in self._to_begin if each[0] != n]
            self._arrivals.append(Interrupted(n, self._home.clock.now()))

    def _effects_of(self, start: Start, frame: Frame | None) -> Effects:
        return NO_EFFECTS if frame is None else effects_of(start, frame, self.history)

    def _effects_to_redo(self, start: Start) -> Effects:
        """Return the effects of the last frame, which another wrote, unless they are known to be done."""
        return NO_EFFECTS if self._all_done else self._effects_of(start, self.history.last)

    def _with_redo(self, effects: Effects, answers: Sequence[Answer]) -> Effects:
        """Add answers, and the effects of a frame that another wrote and may not have acted on."""
        redo, self._redo = self._redo, NO_EFFECTS
        return replace(  # neither has a key to release: the journal goes on
            effects,
            starts=(*redo.starts, *effects.starts),
            messages=(*redo.messages, *effects.messages),
            answers=(*redo.answers, *effects.answers, *answers),
        )

    def _let_go(self) -> None:
        """Leave an invocation that waits for its key: it was woken too early, and the store keeps its place."""
        for delivery in self._taken:
            self._home.subscription.acknowledge(delivery)
        self.close()
        self._home.ended(self)

    def _after_nothing(self, answers: list[Answer]) -> None:
        """Nothing to record, as far as is known here."""
        if self._sure:
            self._drop(answers)
        else:
            self._confirm(answers)

    def _drop(self, answers: list[Answer]) -> None:
        """Answer and acknowledge what needs no frame. Who was woken too early sets the wake again first."""
        taken, self._taken = self._taken, []
        due = None if self._owned else self._next_due()
        if answers or due is not None or self._redo is not NO_EFFECTS:
            effects = self._with_redo(replace(NO_EFFECTS, wake=due), answers)
            status = None if due is None else self.history.status
            transition = Transition(self.id, self.revision, None, effects, status, due is not None, taken)
            self._commit(transition, self._after_quiet_commit)
            return
        for delivery in taken:
            self._home.subscription.acknowledge(delivery)
        self._after_quiet_commit()

    def _after_quiet_commit(self) -> None:
        self._begin_waiting()
        if self._owned:
            self._arm()  # as after a takeover: its claim is a frame of its own, and the timers are older
        self.settle_down()
        if self._arrivals or self._inbox:
            self._home.schedule(self)
        elif not self._owned:
            self._rest()

    def _rest(self) -> None:
        """Stay in the cache for the next delivery; after a fault, let that find a new runner, which tries the code."""
        if self._fault is None:
            self._home.became_idle(self)
        else:
            self.close()
            self._home.ended(self)

    def _commit(self, transition: Transition, then: Callable[[], None]) -> None:
        self._busy = True
        self._sure = self._sure or transition.frame is not None
        told = partial(self._committed, transition, then)
        try:
            self._home.store.commit(transition, told)
        except Exception as error:  # noqa: BLE001  told like any other failure
            self._home.loop.call_soon(told, 0, error)

    @contained
    def _committed(
        self, transition: Transition, then: Callable[[], None], revision: int, error: Exception | None
    ) -> None:
        if error is not None:
            self._commit_failed(transition, then, error)
            return
        self._busy = False
        self._has_written = True
        self._failures = 0
        if transition.frame is not None:
            self.revision = revision
        if not self.closed:
            then()

    def _commit_failed(self, transition: Transition, then: Callable[[], None], error: Exception) -> None:
        if self.closed:
            if self._fault is not None:  # the next runner goes on with what this commit would have acknowledged
                self._deliver_again(transition.acknowledge)
        elif isinstance(error, StoreClosed):
            self.close()
        elif isinstance(error, Conflict):
            # Another worker has written, perhaps an owner whose end we were told of. What we hold is still to be done.
            log.warning("invocation %s: reloading: %s", self.id, error)
            self._begin_anew(transition.acknowledge)
        else:
            self._commit_again(transition, then, error)

    def _commit_again(self, transition: Transition, then: Callable[[], None], error: Exception) -> None:
        """Try a commit again of which nothing happened: the same transition is still right."""
        self._home.commit_failed(self.id, error)
        self._failures = 0 if isinstance(error, StoreError) else self._failures + 1
        if self._failures > COMMITS_LIMIT:
            self._taken = [*transition.acknowledge]
            raise error
        self._later(partial(self._commit, transition, then))

    def _begin_anew(self, taken: Sequence[Delivery]) -> None:
        """Let a new runner read the journal, and give it what is in hand."""
        held = [*taken, *self._inbox]
        self.close()
        self._home.ended(self)
        self._deliver_again(held)

    def _deliver_again(self, held: Sequence[Delivery]) -> None:
        for delivery in held:
            delivery.attempt += 1
            self._home.deliver_again(delivery)

    def contain(self, error: BaseException) -> None:
        """Set the invocation aside after an unexpected exception: a new runner pauses it with the reason.

        If that cannot be recorded either, the invocation is handed back, for another worker to try.
        """
        if self.closed:
            log.error("invocation %s (%s): unexpected exception at its end", self.id, self.handler, exc_info=error)
            return
        log.error("invocation %s (%s): unexpected exception", self.id, self.handler, exc_info=error)
        if self._fault is not None:
            self._decline(f"it cannot even be paused: {_in_short(error)}")
            return
        self._fault = reason = _explain_fault(error)
        held = [*self._taken, *self._inbox] or [Delivery(self.id, self.handler, Wake())]
        self.close()
        self._home.ended(self)
        for delivery in held:
            delivery.attempt += 1
        self._home.set_aside(held, reason)

    # --- after a commit -----------------------------------------------------------------------------------------------
    def _durable(self, ready: Ready, released: bool) -> None:
        """Act on a frame that is durable."""
        turn = self.turn
        if turn is not None:
            for n in ready.cancels:
                self._interrupt(n)
            if self.history.paused is None:
                self._begin_new(ready)
        self._begun_early.clear()
        if self._to_begin:
            self._begin_waiting()
        if self._agenda is not None and not released:
            self._arm()  # while the turn is there to ask: a time limit must end a step that runs
        if self._home.always_replay:
            self._forget_turn()
        if released:
            self._disarm()
            self.settle_down()
            if not self._inbox:
                self._rest()
        if self._arrivals or self._inbox:
            self._home.schedule(self)

    def _begin_new(self, ready: Ready) -> None:
        """Begin the steps among commands just issued."""
        turn = self.turn
        assert turn is not None
        for command in ready.commands:
            if type(command) is CallStep and (pending := turn.pending.get(command.n)) is not None:
                if not pending.cancel_requested and command.n not in self._begun_early:
                    self._begin(command.n, pending.work, 0, pending.generation)  # type: ignore[arg-type]

    def _begin_waiting(self) -> None:
        if self.history.paused is None and self._to_begin and not self._stopping:
            waiting, self._to_begin = self._to_begin, []
            for each in waiting:
                self._begin(*each)

    def _queue(self, n: int, pending: Pending) -> None:
        """Let a step that is durable begin after the next commit, or when there is a slot."""
        self._to_begin.append((n, pending.work, pending.attempts, pending.generation))  # type: ignore[arg-type]

    def _begin(self, n: int, work: Work, attempts: int, generation: int) -> None:
        if n in self._running or self._stopping:
            return
        if not self.has_slot and not self._home.acquire_slot(self):
            self._to_begin.append((n, work, attempts, generation))
            return
        start = self._start
        assert start is not None
        attempt = self._home.begin_attempt(work, StepInfo(self.id, generation, n, work.name, attempts + 1), self)
        self._running[n] = attempt
        attempt.task.add_done_callback(partial(self._step_ended, n, attempts + 1, attempt))

    @contained
    def slot_granted(self) -> None:
        """Go on with the steps that waited for a slot."""
        self._begin_waiting()
        self.settle_down()

    def _interrupt(self, n: int) -> None:
        """Ask a running step to end; after a grace its end is journaled without it."""
        attempt = self._running.get(n)
        if attempt is not None:
            attempt.cancelled = True
            attempt.task.cancel()
            self._home.loop.call_later(CANCEL_GRACE_SECONDS, self._leave_behind, n, attempt)

    @contained
    def _leave_behind(self, n: int, attempt: Attempt) -> None:
        if self._running.get(n) is attempt and not self.closed:
            del self._running[n]
            self._left_behind.add(attempt)
            log.warning(
                "step %s of invocation %s did not end within its grace; it is left behind", attempt.work.name, self.id
            )
            at = self._home.clock.now()
            self._arrivals.append(Interrupted(n, at, at - attempt.began))
            self._home.schedule(self)

    @contained
    def _step_ended(self, n: int, number: int, attempt: Attempt, task: asyncio.Task[bytes]) -> None:
        if self._running.get(n) is not attempt:
            self._left_behind.discard(attempt)
            if not task.cancelled():
                task.exception()  # seen: its end is journaled already
            self.settle_down()
            return
        del self._running[n]
        if attempt.busy_threads:
            self._left_behind.add(attempt)
        if self.closed or (self._stopping and task.cancelled()):
            return
        home = self._home
        fact = attempt.fact(n, number, home.clock.now(), home.store.payload_limit, home.failure_of)
        if type(fact) is not Returned:
            self._log_failure(attempt, number, fact)
        self._arrivals.append(fact)
        home.schedule(self)

    def _log_failure(self, attempt: Attempt, number: int, fact: Answering) -> None:
        if not isinstance(fact, (Attempted, Raised)):
            return
        work = attempt.work
        of = "" if (most := getattr(work.retry, "max_attempts", None)) is None else f" of {most}"
        after = f"next attempt at {_moment(fact.due)}" if isinstance(fact, Attempted) else "no further attempt"
        error = f"{fact.failure.type}: {fact.failure.message}"
        extra = {"invocation_id": self.id, "handler": self.handler, "step": work.name, "attempt": number}
        log.warning(
            "invocation %s (%s): attempt %d%s of step %s failed: %s; %s",
            *(self.id, self.handler, number, of, work.name, error, after),
            extra=extra,
        )

    # --- time ---------------------------------------------------------------------------------------------------------
    def _note_time(self, at: float, n: int) -> None:
        if self._agenda is None:
            self._agenda = Agenda(self._home.clock, self._rung)
        self._agenda.add(at, n)

    def _note_deadline(self, start: Start) -> None:
        if start.timeout is not None:
            self._note_time((self.history.retried_at or start.due) + start.timeout, DEADLINE)

    def _forget_times(self) -> None:
        if self._agenda is not None:
            self._agenda.clear()

    def _next_due(self) -> float | None:
        """Return when something is due of itself, dropping what is not wanted any more."""
        if self._agenda is None or self.history.paused is not None:
            return None
        return self._agenda.next(None if self.turn is None else self.turn.pending)

    def _arm(self) -> None:
        due = self._next_due()
        if self._agenda is not None and due is not None:
            self._agenda.arm(due)

    def _disarm(self) -> None:
        if self._agenda is not None:
            self._agenda.disarm()

    def _rung(self) -> None:
        self._home.schedule(self)

    # --- slots, idleness and the end ----------------------------------------------------------------------------------
    @contained
    def settle_down(self) -> None:
        """Give the slot back once nothing is in progress, abandoned steps included."""
        if self._left_behind:
            self._left_behind = {each for each in self._left_behind if each.busy_threads or not each.task.done()}
        if self.has_slot and not (self._running or self._left_behind or self._busy or self._to_begin or self._arrivals):
            self._home.release_slot(self)

    @property
    def idle(self) -> bool:
        """Tell whether nothing is in progress and nothing has arrived."""
        return not (self._busy or self._running or self._arrivals or self._inbox or self._to_begin or self._owned)

    @property
    def in_progress(self) -> bool:
        """Tell whether a step, a read or a commit is in progress, and not only time is missing."""
        return not self._outage and bool(self._busy or self._running or self._arrivals or self._inbox)

    @property
    def steps_in_progress(self) -> list[str]:
        """The names of the steps that run now."""
        return [attempt.work.name for attempt in self._running.values()]

    @property
    def first_frame_held(self) -> bool:
        """Tell whether steps run whose commands are not durable yet."""
        return self._unwritten is not None and not self._busy and not self.closed

    def write_first_frame(self) -> None:
        """Commit the first frame that was held back, now."""
        self._force_frame = True
        self._home.schedule(self)

    def _settled(self) -> None:
        """Let go of everything: the outcome is durable."""
        late, self._inbox = self._inbox, []
        self.close()
        self._home.ended(self)
        for delivery in late:
            self._home.deliver_again(delivery)

    def close(self) -> None:
        """Stop without a trace: nothing is journaled or acknowledged any more."""
        if self.closed:
            return
        self.closed = True
        self._disarm()
        for attempt in self._running.values():
            self._left_behind.add(attempt)
            attempt.task.cancel()
        self._running.clear()
        self._to_begin.clear()
        self._arrivals.clear()
        self._inbox.clear()
        self._forget_turn()
        self._busy = False
        self.settle_down()

    async def stop(self, grace: float) -> None:
        """Hand the invocation over: give steps a grace, interrupt them unjournaled, release the claim."""
        self._stopping = True
        if self._running and grace > 0:
            await asyncio.wait([attempt.task for attempt in self._running.values()], timeout=grace)
        for attempt in self._running.values():
            attempt.task.cancel()
        if self._running:
            await asyncio.wait([attempt.task for attempt in self._running.values()], timeout=CANCEL_GRACE_SECONDS)
        self._running.clear()
        # An event would have to be kept up to date by every commit, for an end that comes once.
        patience = int(COMMIT_PATIENCE_SECONDS / STOP_POLL_SECONDS)
        while (self._busy or self.scheduled) and not self.closed and patience:
            await asyncio.sleep(STOP_POLL_SECONDS)
            patience -= 1
        if self._busy:
            log.error("the store does not take the last commit of invocation %s: it is redelivered instead", self.id)
            self.close()
        if self._owned and not self.closed:
            await self._release()
        self.close()

    async def _release(self) -> None:
        at = self._home.clock.now()
        arrivals, self._arrivals = self._arrivals, []
        wake = at if self.history.paused is None else None
        frame = Frame(self._home.name, at, [*arrivals, Released(at, wake)])
        self.history.add(frame)
        transition = Transition(
            self.id, self.revision, frame, replace(NO_EFFECTS, wake=wake), self.history.status, True
        )
        transition.acknowledge = self._taken
        try:
            await committed(self._home.store, transition)
        except PerdureError as error:
            log.warning("invocation %s could not be released, it is redelivered instead: %s", self.id, error)
        except Exception:
            log.exception("invocation %s could not be released, it is redelivered instead", self.id)

    def _acknowledge_all(self) -> None:
        for delivery in self._inbox:
            self._home.subscription.acknowledge(delivery)
        self.close()
        self._home.ended(self)


def _in_short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _explain_fault(error: BaseException) -> str:
    told = "".join(traceback.format_exception(error))
    return f"unexpected exception {_in_short(error)}; mend the code, then resume\n{told[-REASON_LIMIT:]}"


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
