"""The state of one invocation in a worker between two rounds.

Values only: no loop, no store, no clock. `opening` and `frames` decide by it; `runner` carries the decisions out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import replace

from perdure.core.effects import NO_EFFECTS, Effects, effects_of
from perdure.core.history import History
from perdure.core.journal import (
    Accepted,
    Answer,
    CallChild,
    Claimed,
    Command,
    Entry,
    Frame,
    Granted,
    SendStart,
    Start,
    Status,
)
from perdure.core.turn import Turn
from perdure.runtime.trail import Trail
from perdure.stores.awakeables import Awakeable, made_by
from perdure.stores.port import Journal, Key
from perdure.stores.waits import Wait

_NOT_READ = Key()


class Writer(Struct, frozen=True):
    """The worker, as its claims name it."""

    name: str
    python: str
    hash_seed: str


@dataclass(slots=True, eq=False)  # a Struct's attributes take longer to set
class Record:
    """One invocation, as this worker last read or wrote it."""

    id: str
    writer: Writer
    start: Start | None = None
    history: History = field(default_factory=History)
    revision: int = 0
    key: Key = _NOT_READ  # as last read, while the key is not granted
    granted: Granted | None = None  # goes into the next frame
    status: Status | None = None  # the status in the index
    owned: bool = False  # our claim is in the journal and not released
    all_done: bool = False  # the effects of the last frame are known to be done
    has_written: bool = False
    awakeables: Sequence[Awakeable] | None = None  # those that are open in the index; None: not known
    wait: Wait | None = None  # what the index says that it waits for, as far as this worker told it
    redo: Effects = NO_EFFECTS  # effects of the last frame, if another worker wrote it: they come first
    trail: Trail | None = None  # where it is in its traces, if there are any

    def read(self, journal: Journal, start: Start | None, key: Key) -> None:
        """Fold the frames that the store has. An owner keeps its claim only if it is still the last one."""
        epoch = self.history.epoch
        self.revision, self.all_done, self.key = journal.revision, journal.done, key
        self.history = History.of(journal.frames)
        self.owned = self.owned and self.history.claimed and self.history.epoch == epoch
        self.start = self.history.start or start
        self.status = self.history.status if journal.frames else None
        self.awakeables = None
        self.wait = None

    def add(self, frame: Frame, sent: Sequence[str] = ()) -> None:
        """Fold a frame that is about to be written; `sent` are the traces of the messages in it."""
        self.history.add(frame)
        if self.trail is not None:
            self.trail.add(frame, self.history.status, sent)

    def with_trace(self, start: Start, entries: Sequence[Entry], commands: list[Command]) -> list[Command]:
        """Return the commands of a frame: what they start belongs to the trace of the turn that issued them."""
        if self.trail is None and not start.trace:
            return commands
        trace = start.trace if self.trail is None else str(self.trail.turn_of(entries))
        return [
            replace(each, start=replace(each.start, trace=trace)) if isinstance(each, (CallChild, SendStart)) else each
            for each in commands
        ]

    def claim(self, at: float) -> Claimed:
        writer = self.writer
        return Claimed(at, self.history.epoch + 1, writer.name, writer.python, writer.hash_seed)

    def preamble(self, start: Start, at: float) -> list[Entry]:
        """Return the first entries of the next frame: acceptance and claim, unless the journal has them."""
        entries: list[Entry] = []
        if self.revision == 0:
            entries.append(Accepted(start))
        if not self.owned:
            entries.append(self.claim(at))
        if self.granted is not None:
            entries.append(self.granted)
            self.granted = None
        return entries

    def open_awakeables(self, start: Start, turn: Turn | None) -> Sequence[Awakeable] | None:
        """Return what to tell the index: those that are open now, in the end all; None if it knows them."""
        made = self.history.awakeables
        found: list[Awakeable] = []
        if self.history.outcome is not None:
            found = made_by(start, self.history)
        elif turn is None:
            return None  # its code does not fit: what is open stays so
        else:
            for n in turn.open_awakeables():
                if n in self.history.answers:  # of one that is paused: the body has not heard it yet
                    continue
                asked, expires_at = made[n].asked, turn.expiry_of(n)
                if expires_at != asked.expires_at:  # a retry waits anew
                    asked = replace(asked, expires_at=expires_at)
                found.append(Awakeable(start.id, start.handler, made[n].generation, n, made[n].at, asked))
        if found == self.awakeables:
            return None
        self.awakeables = found
        return found

    def may_begin(self, turn: Turn, *, has_start: bool) -> bool:
        """Report whether we hold the body's key, or it needs none. A wake or message alone does not begin a body."""
        if not turn.waits_for_key:
            return True
        return (bool(self.revision) or has_start) and self.key.granted_to(self.id, self.history.generation)

    def effects_of(self, start: Start, frame: Frame | None) -> Effects:
        return NO_EFFECTS if frame is None else effects_of(start, frame, self.history)

    def effects_to_redo(self, start: Start) -> Effects:
        """Return the effects of the last frame if another worker wrote it, unless they are known to be done."""
        return NO_EFFECTS if self.all_done else self.effects_of(start, self.history.last)

    def with_redo(self, effects: Effects, answers: Sequence[Answer]) -> Effects:
        """Add answers, and the effects of a frame that another worker wrote and may have left undone."""
        redo, self.redo = self.redo, NO_EFFECTS
        return replace(  # neither releases a key: the journal goes on
            effects,
            starts=(*redo.starts, *effects.starts),
            messages=(*redo.messages, *effects.messages),
            answers=(*redo.answers, *effects.answers, *answers),
            written=(*redo.written, *effects.written),
        )

    def explain(self, turn: Turn) -> str:
        """Return the reason for pausing code that diverges from its journal."""
        hint = ""
        if self.history.hash_seed != self.writer.hash_seed:
            hint = f" (recorded under hash seed {self.history.hash_seed}, now {self.writer.hash_seed}: a set's order?)"
        if self.history.python and self.history.python != self.writer.python:
            hint += f" (recorded by Python {self.history.python}, now {self.writer.python})"
        return f"the code diverges from the journal: {turn.divergence}{hint}; deploy the code that fits, then resume"
