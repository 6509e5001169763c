"""What a journal says of its invocation without running the body: its owner, whether it is paused, how it ended."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import assert_never

from msgspec import Struct

from perdure.core.journal import (
    Accepted,
    Answering,
    Asked,
    Attempted,
    CallChild,
    CallStep,
    Cancelled,
    CancelRequested,
    Claimed,
    Command,
    Completed,
    Entry,
    Failed,
    Fired,
    Frame,
    Granted,
    Interrupted,
    Joined,
    OpenAwakeable,
    Outcome,
    Parent,
    Paused,
    Raised,
    Refused,
    Released,
    Resumed,
    Retried,
    Returned,
    Start,
    Status,
    Waited,
)

DEATHS_LIMIT = 5
"""Claims in a row that ran the body without a new entry or release, before an invocation is paused."""


class Made(Struct, frozen=True, gc=False):
    """An awakeable that the body made: in which generation and frame time, and what people are told of it."""

    generation: int
    at: float
    asked: Asked


class History(Struct):
    """A journal, folded. `of` reads one; `add` keeps it up to date."""

    start: Start | None = None
    epoch: int = 0
    python: str = ""
    hash_seed: str = ""
    claimed: bool = False
    paused: str | None = None
    outcome: Outcome | None = None
    deaths: int = 0
    idle: bool = True  # nothing was in progress when the last claim ended
    cuts: int = 0  # claims in this generation that may have cut off what was in progress
    tried: int = 0  # the most attempts of one step in this generation, as far as they failed
    tries_before: int = 0  # more than any attempt of a step in earlier generations
    issued_after: dict[int, int] = {}  # the cuts before a step was issued, if there were any
    unclaimed_deaths: int = 0
    children: dict[int, Start] = {}
    children_ended: set[int] = set()  # children whose command is answered
    awakeables: dict[int, Made] = {}  # by command
    answers: dict[int, bytes] = {}  # digests of what messages answered, by command
    children_unwanted: set[int] = set()  # children that the body asked to end
    joined: list[Parent] = []  # parents that await it besides the one that started it
    messages: dict[str, str | None] = {}
    last: Frame | None = None  # the last frame that holds more than a claim
    generation: int = 0  # number of retries
    retried_at: float | None = None
    granted: int | None = None  # the last generation that was granted the key
    grant: int = 0  # the number of that grant
    key_state: dict[str, bytes] = {}  # state of the key, as this invocation leaves it
    key_state_changed: bool = False
    rolled_back: bool = False  # what it changes does not count
    stuck_at: str | None = None  # where the body was stuck at the last release
    written: dict[str, int] = {}  # how many items the body has written to each stream

    @classmethod
    def of(cls, frames: Iterable[Frame]) -> History:
        """Fold the frames of a journal."""
        history = cls()
        for frame in frames:
            history.add(frame)
        return history

    def add(self, frame: Frame) -> None:
        """Fold one more frame."""
        only_claim = not frame.commands
        first = self.start is None
        for entry in frame.entries:
            if type(entry) is not Returned or entry.message is not None:
                if type(entry) is Accepted:
                    self.start = entry.start
                    continue
                if type(entry) is Claimed:
                    self._claim(entry)
                    continue
                self.note(entry)
            only_claim = False
            if self.deaths or self.unclaimed_deaths:
                self.deaths = self.unclaimed_deaths = 0
        if frame.commands or frame.written:
            self._note_requests(frame)
        if frame.cancels and self.children:
            self.children_unwanted.update(n for n in frame.cancels if n in self.children)
        if frame.state and self.granted is not None:
            self._change_state(frame.state)
        if not only_claim:
            self.last = frame
        elif first:
            self.unclaimed_deaths = 1  # a first frame that only claims follows a worker that died without a claim

    def _note_requests(self, frame: Frame) -> None:
        for command in frame.commands:
            if type(command) is not CallStep:
                self._issue(command, frame.at)
            elif self.cuts:
                self.issued_after[command.n] = self.cuts
        for batch in frame.written:
            self.written[batch.name] = batch.first + batch.count

    def _issue(self, command: Command, at: float) -> None:
        if type(command) is CallChild:
            self.children[command.n] = command.start
        elif type(command) is OpenAwakeable:
            made = Made(self.generation, at, command.asked)
            self.awakeables.setdefault(command.n, made)  # a retry opens the same one again

    def note(self, entry: Entry) -> None:
        """Fold one entry, perhaps before its frame is written. Folding it again changes nothing."""
        match entry:
            case Completed() | Failed() | Cancelled():
                self._ended(entry)
            case Released(at=at, wake=wake, stuck_at=stuck_at):
                self.claimed = False
                self.stuck_at = stuck_at
                self.idle = self.paused is None and (wake is None or wake > at)  # else a worker stopped its steps
            case Accepted(start=start):
                self.start = start
            case Claimed():
                self._claim(entry)
            case Granted(generation=generation, state=state, grant=grant):
                self.granted, self.grant = generation, grant
                self.key_state = dict(state)
                self.key_state_changed = self.rolled_back = False
            case Paused() | Resumed() | CancelRequested():
                self._note_request(entry)
            case Refused(message=message, reason=reason):
                self.messages[message] = reason
            case Retried():
                self._retried(entry)
            case Joined():
                self._note_joined(entry)
            case Returned() | Raised() | Attempted() | Fired() | Interrupted():
                self._note_answer(entry)
            case Waited():
                pass  # for the body alone
            case _:
                assert_never(entry)

    def _note_request(self, entry: Paused | Resumed | CancelRequested) -> None:
        if isinstance(entry, CancelRequested):
            self.rolled_back = self.rolled_back or entry.rollback
        else:
            self.paused = entry.reason if isinstance(entry, Paused) else None
        self._answered(entry.message)

    def _note_joined(self, entry: Joined) -> None:
        if entry.message not in self.messages:
            self.joined.append(entry.parent)
            self._answered(entry.message)

    def _ended(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.claimed = False
        self.idle = True
        if type(outcome) is Cancelled:
            self._answered(outcome.message)

    def _change_state(self, changes: dict[str, bytes | None]) -> None:
        self.key_state_changed = True
        for name, value in changes.items():
            if value is None:
                self.key_state.pop(name, None)
            else:
                self.key_state[name] = value

    def _note_answer(self, entry: Answering) -> None:
        if isinstance(entry, Attempted):
            self.tried = max(self.tried, entry.attempt)
        if entry.n in self.children:
            self.children_ended.add(entry.n)
        if isinstance(entry, (Returned, Raised)):
            self._answered(entry.message)
            if entry.message is not None and entry.n not in self.children:
                self.answers[entry.n] = _digest_of(entry)

    def open_children(self) -> list[int]:
        """Return the commands that are children and have not answered."""
        return [n for n in self.children if n not in self.children_ended]

    def attempt_of(self, n: int, failed: int) -> int:
        """Return the number of the next attempt of step `n`, of which so many failed since it was issued.

        It is greater than that of every earlier attempt of a step of this number, also of those that a death of their
        worker or a retry cut off.
        """
        return self.tries_before + self.cuts - self.issued_after.get(n, 0) + failed + 1

    def waits_for_child(self, n: int, generation: int, child: str) -> bool:
        """Report whether command `n` of a generation is a child of this id that has not answered yet."""
        start = self.children.get(n)
        if start is None or start.parent is None or n in self.children_ended:
            return False
        return start.id == child and start.parent.generation == generation

    def was_answered(self, n: int, generation: int, answer: Returned | Raised) -> bool:
        """Report whether awakeable `n` of a generation has this very answer."""
        made = self.awakeables.get(n)
        return made is not None and made.generation == generation and self.answers.get(n) == _digest_of(answer)

    def _answered(self, message: str | None) -> None:
        if message is not None:
            self.messages[message] = None

    def _retried(self, entry: Retried) -> None:
        if entry.generation == self.generation:
            return
        self.outcome = None
        self.paused = None
        self.joined = []  # they were told
        self.generation = entry.generation
        self.retried_at = entry.at
        self.tries_before += self.tried + self.cuts + 1
        self.tried, self.cuts, self.issued_after = 0, 0, {}
        self.children = {n: start for n, start in self.children.items() if n < entry.issued}
        self.children_ended = {n for n in self.children_ended if n < entry.issued and n not in entry.again}
        self.children_unwanted = {n for n in self.children_unwanted if n < entry.issued and n not in entry.again}
        self.awakeables = {n: made for n, made in self.awakeables.items() if n < entry.issued}
        self.answers = {n: made for n, made in self.answers.items() if n < entry.issued and n not in entry.again}
        self._answered(entry.message)

    def _claim(self, entry: Claimed) -> None:
        if entry.epoch == self.epoch:
            return
        self.deaths += 1
        self.cuts += not self.idle
        self.idle = False
        self.epoch = entry.epoch
        self.claimed = True
        self.python = self.python or entry.python
        self.hash_seed = entry.hash_seed

    @property
    def waits_for_key(self) -> bool:
        """Whether the body may not run yet: its key has not been granted in this generation."""
        return self.start is not None and self.start.key is not None and self.granted != self.generation

    @property
    def status(self) -> Status:
        """The status that follows from the journal."""
        if self.outcome is None:
            if self.paused is not None:
                return "paused"
            if self.claimed:
                return "running"
            return "pending" if self.waits_for_key else "suspended"
        match self.outcome:
            case Completed():
                return "completed"
            case Failed():
                return "failed"
            case Cancelled():
                return "cancelled"
            case _:
                assert_never(self.outcome)


def _digest_of(answer: Returned | Raised) -> bytes:
    """Return what tells one answer from another, however long it is."""
    if isinstance(answer, Returned):
        return hashlib.blake2b(answer.value, digest_size=16).digest()
    return hashlib.blake2b(repr(answer.failure.fields.get("reason")).encode(), digest_size=16, key=b"raised").digest()
