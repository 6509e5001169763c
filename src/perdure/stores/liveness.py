"""The liveness invariant: every unsettled invocation has a delivery, a wake or a position, or waits for the outside.

Tests check it on the memory store before every write, and the janitor of the JetStream store uses it. It reads
journals, not the index, so that it finds a stale index too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from perdure.core.generations import current
from perdure.core.history import History
from perdure.core.journal import (
    Attempted,
    CallChild,
    CallStep,
    Command,
    Fired,
    Frame,
    Interrupted,
    OpenAwakeable,
    Raised,
    Returned,
    SendStart,
    SetTimer,
    Start,
)
from perdure.core.lifecycle import SETTLED
from perdure.stores.port import Key, Row


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of a store: index, journals, queue, delayed starts, open messages, wakes, keys, purged ids."""

    rows: Mapping[str, Row]
    journals: Mapping[str, list[Frame]]
    queued: Collection[str]
    scheduled: Collection[str]
    messages: Mapping[str, Collection[str]]  # ids of the open ones, by the invocation they are for
    wakes: Mapping[str, float]
    keys: Mapping[str, Key] = field(default_factory=dict[str, Key])
    purged: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Waits:
    """What a journal waits for: commands without an answer, and when failed steps are due again."""

    commands: Mapping[int, Command]
    retries: Mapping[int, float]

    @classmethod
    def of(cls, frames: list[Frame]) -> Waits:
        """Read what a journal waits for."""
        commands: dict[int, Command] = {}
        retries: dict[int, float] = {}
        for frame in current(frames):
            for command in frame.commands:
                if isinstance(command, (CallStep, SetTimer, CallChild, OpenAwakeable)):
                    commands[command.n] = command
                    retries.pop(command.n, None)
            for entry in frame.entries:
                match entry:
                    case Returned(n=n) | Raised(n=n) | Fired(n=n) | Interrupted(n=n):
                        commands.pop(n, None)
                        retries.pop(n, None)
                    case Attempted(n=n, due=due):
                        retries[n] = due
                    case _:
                        pass
            for n in frame.cancels:
                if isinstance(commands.get(n), SetTimer):
                    del commands[n]
        return cls(commands, retries)

    def due(self, start: Start, retried_at: float | None) -> float | None:
        """Return the earliest due time."""
        times = [command.due for command in self.commands.values() if isinstance(command, SetTimer)]
        times += self.retries.values()
        if start.timeout is not None:
            times.append((retried_at or start.due) + start.timeout)
        return min(times, default=None)


def breaches(contents: Contents, now: float) -> Iterator[str]:
    """Name every invocation and key that is stuck for ever."""
    for id, row in contents.rows.items():
        for breach in _breaches_of(id, row, contents, now):
            yield f"invocation {id} ({row.status}): {breach}"
    for name, key in contents.keys.items():
        if key.holder is None:
            continue
        row = contents.rows.get(key.holder)
        if row is None:
            yield f"key {name} is held by {key.holder}, which does not exist"
        elif not _is_brought(key.holder, row, contents, now):
            history = History.of(contents.journals.get(key.holder, []))
            if history.outcome is not None:
                yield f"key {name} is held by {key.holder}, which is {history.status} and will not release it"


def _breaches_of(id: str, row: Row, contents: Contents, now: float) -> Iterator[str]:
    frames = contents.journals.get(id, [])
    if not frames:
        if id not in contents.queued and id not in contents.scheduled:
            yield "it has no journal and no start that waits"
        return
    if _is_brought(id, row, contents, now):
        return
    history = History.of(frames)
    assert history.start is not None
    for frame in frames:
        for command in frame.commands:
            if isinstance(command, (CallChild, SendStart)):
                started = command.start.id
                if started not in contents.rows and started not in contents.purged:
                    yield f"{started}, which it starts, does not exist"
    if row.status != history.status and (history.outcome is not None or history.paused is not None):
        yield f"its journal says {history.status}"
    if history.outcome is not None:
        yield from _parent_breaches(history.start, contents)
    elif history.paused is None:
        yield from owed(history, Waits.of(frames), contents.wakes.get(id))


def _is_brought(id: str, row: Row, contents: Contents, now: float) -> bool:
    """Report whether a worker gets it, now or when the store is next opened."""
    is_due = contents.wakes.get(id, now + 1) <= now
    return row.status == "running" or id in contents.queued or bool(contents.messages.get(id)) or is_due


def _parent_breaches(start: Start, contents: Contents) -> Iterator[str]:
    parent = start.parent
    if parent is None or parent.id in contents.purged or contents.rows[parent.id].status in SETTLED:
        return
    waiting = Waits.of(contents.journals[parent.id]).commands.get(parent.n)
    if not isinstance(waiting, CallChild) or waiting.start.id != start.id:
        return
    if f"settled:{start.id}" not in contents.messages.get(parent.id, ()):
        yield f"its parent {parent.id} waits for its outcome, and is not told"


def owed(history: History, waits: Waits, wake: float | None) -> Iterator[str]:
    """Name what a released, undelivered invocation lacks by its journal; `wake` is when it will be woken."""
    assert history.start is not None
    due = waits.due(history.start, history.retried_at)
    if due is not None and (wake is None or wake > due):
        yield f"something is due at {due}, and no wake is set for then"
    for n, command in waits.commands.items():
        if isinstance(command, CallStep) and n not in waits.retries:
            yield f"step #{n} has no end, and it is released"
    if not waits.commands and due is None:
        yield "it waits for nothing"
