"""Watches every write of the store, and every step that begins, for the invariants of ARCHITECTURE.md.

It keeps its own account of each invocation, from the frames alone, and believes neither the index nor the runtime.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence

from msgspec import Struct, field

from perdure.core.generations import current
from perdure.core.ids import idempotency_key
from perdure.core.journal import (
    Accepted,
    CallChild,
    CallStep,
    Cancelled,
    CancelRequested,
    Claimed,
    Command,
    Entry,
    Failed,
    Fired,
    Frame,
    Granted,
    Interrupted,
    Joined,
    Outcome,
    Paused,
    Raised,
    Refused,
    Released,
    Resumed,
    Retried,
    Returned,
    SendStart,
    SetTimer,
    Start,
    decode_frame,
    encode_frame,
)
from perdure.core.values import type_name
from perdure.errors import InvocationTimedOut
from perdure.stores.port import Transition
from perdure.testing.programs import Program
from perdure.testing.simulation.shared import Author
from perdure.testing.simulation.trace import Trace
from perdure.testing.simulation.violation import Violation

DIVERGES = "the code diverges"
"""How the reason of a pause begins."""

TIMER_SLACK_SECONDS = 1e-5
"""Times since the epoch are rounded to less than this."""

BROKEN_POLICIES = ("PolicyError", "InvalidOption", "SystemExit")
"""What a step fails with whose retry policy is broken."""

Answer = Returned | Raised | Fired | Interrupted


class Life(Struct):
    """What is known of one invocation."""

    id: str
    start: Start | None = None
    program: Program | None = None  # what it runs, once that was asked for
    frames: list[bytes] = field(default_factory=list[bytes])
    owner: str | None = None
    claimed_by: str | None = None  # the process of the last claim, whether it was released or not
    epoch: int = 0
    outcome: Outcome | None = None
    outcomes: list[Outcome] = field(default_factory=list[Outcome])  # of all generations
    settled_at: int = 0  # the number of the write
    settled_when: float = 0.0  # by the store's clock
    generation: int = 0
    granted: int = -1
    commands: dict[int, Command] = field(default_factory=dict[int, Command])
    answers: dict[int, Answer] = field(default_factory=dict[int, Answer])
    messages: set[str] = field(default_factory=set[str])
    keys: dict[str, int] = field(default_factory=dict[str, int])  # steps, by their idempotency keys
    cancels: dict[str, int] = field(default_factory=dict[str, int])  # children that are to end, and since which write
    forces: dict[str, int] = field(default_factory=dict[str, int])  # ... by force
    awaited: set[str] = field(default_factory=set[str])  # children with chosen ids
    diverged: bool = False
    cancelled_at: int = 0  # the number of the write that brought its own cancellation
    was_paused: bool = False


class Observer:
    """The witness of a run. What it finds goes to `report`."""

    def __init__(self, report: Callable[[Violation], None], trace: Trace) -> None:
        self.lives: dict[str, Life] = {}
        self.gone: dict[str, Life] = {}  # those that were purged
        self.purged: set[str] = set()
        self._report = report
        self._trace = trace
        self._writes = 0
        self._authors: dict[str, str] = {}  # the process behind each writer
        self._derived: dict[str, tuple[str, int, int]] = {}
        self._queues: dict[str, list[tuple[str, int]]] = {}  # of keys, in the order of acceptance
        self._holders: dict[str, str] = {}

    def breach(self, number: int, text: str) -> None:
        self._report(Violation(number, text))

    def life(self, id: str) -> Life:
        life = self.lives.get(id)
        if life is None:
            life = self.lives[id] = Life(id)
        return life

    # --- the witness --------------------------------------------------------------------------------------------------
    def queued(self, id: str, generation: int, key: str, /) -> None:
        self._queues.setdefault(key, []).append((id, generation))

    def removed(self, ids: Collection[str], before: float, /) -> None:
        for id in ids:
            life = self.lives.pop(id, None)
            if life is not None:
                self.gone[id] = life
                if life.outcome is None:
                    self.breach(16, f"{id} is purged, and has not settled")
                elif life.settled_when > before:
                    self.breach(1, f"{id} is purged by what settled before {before}, and settled {life.settled_when}")
            self.purged.add(id)
            self._trace.count("purge")

    def committed(self, author: Author | None, transition: Transition, /) -> None:
        self._trace.note("committed", transition.id, transition.status or "", process=_name(author))

    def wrote(self, author: Author | None, transition: Transition, frame: Frame, size: int, /) -> None:
        self._writes += 1
        id, life = transition.id, self.life(transition.id)
        entries = " ".join(type(entry).__name__ for entry in frame.entries)
        self._trace.note("wrote", id, (transition.expected + 1, entries, len(frame.commands)), process=_name(author))
        if size != len(life.frames) + 1 or transition.expected != len(life.frames):
            self.breach(3, f"{id}: frame {size} extends revision {transition.expected}, and {len(life.frames)} it had")
        life.frames.append(encode_frame(frame))
        self._check_writer(author, life, frame)
        if life.outcome is not None and not any(type(entry) is Retried for entry in frame.entries):
            self.breach(8, f"{id} has settled, and gets another frame: {entries}")
        if id in self.purged:
            self.breach(16, f"{id} was purged, and runs again")
        now = None if author is None else author.now()
        retried = [entry for entry in frame.entries if type(entry) is Retried]
        for entry in retried:
            self._retry(life, entry)
        for (
            command
        ) in frame.commands:  # before the entries: a timer whose time has passed fires in the frame that sets it
            self._issue(life, command)
        for entry in frame.entries:
            self._note(life, entry, now)
        self._check_silence(life, frame)
        forced = isinstance(frame.outcome, Cancelled) and frame.outcome.forced
        for n in frame.cancels:
            self._cancel(life, n, forced=forced)
        if (outcome := frame.outcome) is not None:
            self._settle(life, outcome)

    # --- frames -------------------------------------------------------------------------------------------------------
    def _check_writer(self, author: Author | None, life: Life, frame: Frame) -> None:
        """Only the process of the last claim writes, until it lets go."""
        if self._authors.setdefault(frame.writer, _name(author)) != _name(author):
            self.breach(4, f"{life.id}: {_name(author)} writes in the name of {self._authors[frame.writer]}")
        claims = [entry for entry in frame.entries if type(entry) is Claimed]
        for claim in claims:
            if claim.epoch != life.epoch + 1:
                self.breach(4, f"{life.id}: epoch {claim.epoch} follows {life.epoch}")
            if life.owner is not None and life.owner != frame.writer:
                self._trace.count("take-over of a claimed invocation")
            life.epoch, life.owner, life.claimed_by = claim.epoch, frame.writer, _name(author)
        if life.owner is not None and life.owner != frame.writer:
            self.breach(4, f"{life.id}: {_name(author)} wrote into what {self._authors.get(life.owner)} had claimed")
        if life.owner is None and author is not None:
            self.breach(4, f"{life.id}: {_name(author)} wrote without a claim")
        if frame.outcome is not None or (frame.entries and type(frame.entries[-1]) is Released):
            life.owner = None

    def _note(self, life: Life, entry: Entry, now: float | None) -> None:
        id = life.id
        match entry:
            case Accepted(start=start):
                if life.start is not None:
                    self.breach(7, f"{id} is accepted twice")
                life.start = start
            case Returned() | Raised() | Fired() | Interrupted():
                self._answer(life, entry, now)
            case Granted(generation=generation):
                self._grant(life, generation)
            case CancelRequested():
                life.cancelled_at = life.cancelled_at or self._writes
            case Paused():
                life.was_paused = True
            case _:
                pass
        message = _message_of(entry)
        if message is not None:
            if message in life.messages:
                self.breach(7, f"{id}: message {message} is applied twice")
            life.messages.add(message)

    def _answer(self, life: Life, entry: Answer, now: float | None) -> None:
        command = life.commands.get(entry.n)
        if entry.n in life.answers:
            number = 6 if isinstance(entry, Fired) else 1
            self.breach(number, f"{life.id}: command #{entry.n} has an answer, and gets another")
        if command is None and not isinstance(entry, (Returned, Raised, Interrupted)):
            self.breach(6, f"{life.id}: timer #{entry.n} fires, and was never set")
        life.answers[entry.n] = entry
        if isinstance(entry, Raised) and entry.failure.type.endswith(BROKEN_POLICIES):
            self._trace.count("policy that is broken")
        if isinstance(entry, Fired) and isinstance(command, SetTimer):
            clock = entry.at if now is None else now
            if min(entry.at, clock) < command.due - TIMER_SLACK_SECONDS:
                self.breach(6, f"{life.id}: timer #{entry.n} is due at {command.due}, and fires at {entry.at}")

    def _issue(self, life: Life, command: Command) -> None:
        if command.n in life.commands:
            self.breach(15, f"{life.id}: two commands are #{command.n}")
        life.commands[command.n] = command
        if isinstance(command, CallStep):
            life.keys[self._key_of(life, command)] = command.n
        if isinstance(command, CallChild) and command.start.chosen:
            if command.start.id in life.awaited:
                self._trace.count("child awaited again under its id")
            life.awaited.add(command.start.id)
        if isinstance(command, (CallChild, SendStart)) and not command.start.chosen:
            place = (life.id, life.generation, command.n)
            if self._derived.setdefault(command.start.id, place) != place:
                self.breach(15, f"{command.start.id} names {place} and {self._derived[command.start.id]}")

    def _key_of(self, life: Life, command: CallStep) -> str:
        """Return the idempotency key of a step, which is that of its first try if it is a compensation."""
        key = idempotency_key(life.id, life.generation, command.n, command.name)
        if command.undo is None or command.undo == command.n:
            return key
        self._trace.count("compensation tried again")
        first = life.commands.get(command.undo)
        tries = [n for n, each in life.commands.items() if isinstance(each, CallStep) and each.undo == command.undo]
        if not isinstance(first, CallStep) or first.name != command.name:
            self.breach(21, f"{life.id}: compensation #{command.n} {command.name} is no try of #{command.undo}")
        if any(isinstance(life.answers.get(n), Returned) for n in tries):
            self.breach(21, f"{life.id}: compensation #{command.undo} {command.name} has succeeded, and is tried again")
        return next((known for known, n in life.keys.items() if n in tries and n != command.n), key)

    def _cancel(self, life: Life, n: int, *, forced: bool) -> None:
        command = life.commands.get(n)
        if isinstance(command, CallChild):
            life.cancels.setdefault(command.start.id, self._writes)
            if forced:
                life.forces[command.start.id] = self._writes
                self._trace.count("forced end of one whose child runs")

    def _check_silence(self, life: Life, frame: Frame) -> None:
        """After a divergence nothing comes of the body until it is resumed with code that fits, but a forced end."""
        for entry in frame.entries:
            if isinstance(entry, Paused) and entry.reason.startswith(DIVERGES):
                life.diverged = True
            elif isinstance(entry, (Resumed, Retried)):
                life.diverged = False
        outcome = frame.outcome
        forced = isinstance(outcome, Cancelled) and outcome.forced
        asks = frame.commands or frame.state or ((frame.cancels or outcome is not None) and not forced)
        if life.diverged and asks:
            self.breach(11, f"{life.id}: its code diverged, and asks for {frame.commands or frame.cancels or outcome}")

    def _retry(self, life: Life, entry: Retried) -> None:
        """Take up what a retry keeps of the journal."""
        self._trace.count("retry")
        if type(life.outcome).__name__ != "Failed":
            self.breach(8, f"{life.id} is retried, and has not failed")
        results = results_to_keep(life)
        life.outcome = None
        life.generation = entry.generation
        life.commands, life.answers = {}, {}
        frames = [decode_frame(data, life.id) for data in life.frames]
        *kept, last = current(frames)
        for frame in kept:
            for command in frame.commands:
                life.commands[command.n] = command
            for each in frame.entries:
                if isinstance(each, (Returned, Raised, Fired, Interrupted)):
                    life.answers[each.n] = each
        for command in last.commands:  # issued again: noted with the frame
            life.commands.pop(command.n, None)
        for n in entry.again:
            life.answers.pop(n, None)
        for n in results - life.answers.keys():
            self.breach(2, f"{life.id} is retried, and step #{n} loses its result")

    def _settle(self, life: Life, outcome: Outcome) -> None:
        life.outcome, life.settled_at, life.settled_when = outcome, self._writes, self._trace.time()
        life.outcomes.append(outcome)
        if isinstance(outcome, Cancelled):
            life.cancelled_at = life.cancelled_at or self._writes
        key = None if life.start is None else life.start.key
        if key is not None and self._holders.get(key) == life.id:
            del self._holders[key]
        for command in life.commands.values():
            if isinstance(command, CallChild) and command.n not in life.answers:
                if command.start.id not in life.cancels:
                    self.breach(9, f"{life.id} ends, and leaves its child {command.start.id} behind")

    def _grant(self, life: Life, generation: int) -> None:
        key = None if life.start is None else life.start.key
        if key is None:
            return
        holder = self._holders.get(key)
        if holder is not None and holder != life.id:
            self.breach(5, f"key {key} is granted to {life.id}, and {holder} holds it")
        self._holders[key] = life.id
        life.granted = generation
        for id, queued in self._queues.get(key, []):
            if (id, queued) == (life.id, generation):
                break
            ahead = self.lives.get(id)
            if queued == 0 and id not in self.purged and (ahead is None or (ahead.granted < 0 and not ahead.outcome)):
                self.breach(5, f"{life.id} is granted key {key} before {id}, which was accepted earlier")

    def running_children(self, life: Life) -> list[str]:
        """Return the children that have begun, and whose end an invocation waits for."""
        waits = (each for n, each in life.commands.items() if isinstance(each, CallChild) and n not in life.answers)
        begun = (self.lives.get(each.start.id) for each in waits)
        return [child.id for child in begun if child is not None and child.frames and child.outcome is None]

    # --- steps --------------------------------------------------------------------------------------------------------
    def step_begins(self, process: str, id: str, key: str, name: str, attempt: int, *, is_owner: bool) -> None:
        """Note that a step begins; `is_owner`: the lease of its process is valid, as far as the store knows.

        A process that stood still may get a new delivery, and in the same instant the answer to a commit that it
        sent before another claimed and let go. It begins the steps of that commit as a former owner.
        """
        self._trace.note("step", id, (name, attempt), process=process)
        if id in self.purged:
            self.breach(16, f"{id} was purged, and step {name} runs")
        life = self.lives.get(id)
        if life is None or not life.frames:
            return  # its first frame is held back
        if not is_owner or life.claimed_by != process:
            self._trace.count("step begun by a former owner")
            return
        n = life.keys.get(key)
        if n is None:
            self.breach(18, f"{id}: step {name} begins before it is durable")
        elif life.diverged:
            self.breach(11, f"{id}: its code diverged, and step #{n} {name} begins")
        elif n in life.answers:
            self.breach(2, f"{id}: step #{n} {name} has a result, and runs again")

    # --- in the end ---------------------------------------------------------------------------------------------------
    def left(self, left: Sequence[tuple[str, str]]) -> None:
        """Note that invocations do not end, though nothing fails any more; they are given with their statuses."""
        for id, life in self.lives.items():
            for child in life.cancels:
                if child in self.lives and self.lives[child].outcome is None:
                    self.breach(9, f"{id} was to end its child {child}, which does not end")
        self.breach(13, f"these have not ended: {left}")

    def end(self, frames_of: Callable[[str], list[bytes]], was_told: Callable[[str], bool]) -> Iterator[Violation]:
        """Name what does not hold when all is over."""
        for id, life in self.lives.items():
            if frames_of(id) != life.frames:
                yield Violation(1, f"{id}: its journal is not what was written")
            if life.outcome is None and life.frames:
                yield Violation(13, f"{id} has not ended")
            for child, since in life.cancels.items():
                yield from self._unreached(id, child, since, was_told)

    def _unreached(self, id: str, child: str, since: int, was_told: Callable[[str], bool]) -> Iterator[Violation]:
        life = self.lives.get(child)
        if child in self.purged:
            return
        if life is None or life.outcome is None:
            yield Violation(9, f"{id} was to end its child {child}, which has not ended")
        elif life.settled_at > since and not life.cancelled_at:
            if not was_told(f"cancel:{child}") and not was_told(f"force:{child}"):
                yield Violation(9, f"{id} was to end its child {child}, which was never told")
        if life is not None and life.settled_at > self.lives[id].forces.get(child, life.settled_at):
            if not was_told(f"force:{child}") and not (isinstance(life.outcome, Cancelled) and life.outcome.forced):
                yield Violation(9, f"{id} was ended by force, and its child {child} was not told so")


def results_to_keep(life: Life) -> set[int]:
    """Return the steps whose results a retry must keep: those from before the failure that it supersedes."""
    failed = life.outcome
    if not isinstance(failed, Failed) or failed.failure.type == type_name(InvocationTimedOut):
        return set()
    causes = failed.causes or [failed.cause]
    before = itertools.takewhile(lambda n: n not in causes, life.answers)
    steps = (n for n in before if isinstance(life.commands.get(n), CallStep))
    return {n for n in steps if isinstance(life.answers[n], Returned)}


def _message_of(entry: Entry) -> str | None:
    match entry:
        case (
            Returned(message=message)
            | Raised(message=message)
            | CancelRequested(message=message)
            | Paused(message=message)
            | Resumed(message=message)
            | Refused(message=message)
            | Joined(message=message)
            | Retried(message=message)
            | Cancelled(message=message)
        ):
            return message
        case _:
            return None


def _name(author: Author | None) -> str:
    return "store" if author is None else author.name
