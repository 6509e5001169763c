"""Tracks which steps of one invocation run, wait for a slot, or were left behind. Decides, and begins and ends nothing.

It knows no loop, no worker and no store: an attempt is any object that says whether it is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Context
from typing import Any, Generic, Protocol, TypeVar

from msgspec import Struct

from perdure.core.journal import Answering, CallStep, Interrupted, key_number
from perdure.core.turn import Pending, Ready


class Running(Protocol):
    """One attempt of a step."""

    @property
    def is_over(self) -> bool:
        """Whether its task and all its threads have ended."""
        ...


A = TypeVar("A", bound=Running)


class Waiting(Struct, frozen=True):
    """A durable step that has not begun: command `n`, after so many attempts.

    `key` is what its idempotency key is made of: the generation and number of the command that it repeats, or its own.
    """

    n: int
    work: Any  # of the runtime, which never looks inside here
    attempts: int
    key: tuple[int, int]
    variables: Context | None = None  # of the body, where it called the step

    @classmethod
    def of(cls, n: int, pending: Pending) -> Waiting:
        key = (pending.generation, key_number(pending.command))
        return cls(n, pending.work, pending.attempts, key, pending.variables)


class InProgress(Generic[A]):
    """The steps of one invocation. `arrivals` are outcomes that are not journaled yet."""

    __slots__ = ("arrivals", "begun_early", "left_behind", "running", "stopping", "waiting")

    def __init__(self) -> None:
        self.arrivals: list[Answering] = []
        self.running: dict[int, A] = {}
        self.waiting: list[Waiting] = []
        self.left_behind: set[A] = set()  # ended for the journal, but still running
        self.begun_early: set[int] = set()  # begun before the first frame was durable; they may have ended since
        self.stopping = False  # nothing more begins

    # --- what there is ------------------------------------------------------------------------------------------------
    @property
    def needs_claim(self) -> bool:
        """Whether something is in progress or to be journaled."""
        return bool(self.running or self.waiting or self.arrivals)

    def needs_slot(self, *, is_paused: bool) -> bool:
        """Report whether anything is in progress, abandoned steps included; what waits during a pause is not."""
        if self.left_behind:
            self.left_behind = {each for each in self.left_behind if not each.is_over}
        return bool(self.running or self.left_behind or self.arrivals or (self.waiting and not is_paused))

    def open(self, pending: Mapping[int, Pending]) -> list[tuple[int, Pending]]:
        """Return the pending commands that have no arrival and do not wait here."""
        known = {each.n for each in self.arrivals}.union(each.n for each in self.waiting)
        return [(n, each) for n, each in pending.items() if n not in known]

    # --- what begins --------------------------------------------------------------------------------------------------
    def new(self, ready: Ready, pending: Mapping[int, Pending]) -> list[Waiting]:
        """Return the steps to begin among commands that were just issued."""
        found: list[Waiting] = []
        for command in ready.commands:
            if type(command) is CallStep and (waiting := pending.get(command.n)) is not None:
                if not waiting.cancel_requested and command.n not in self.begun_early:
                    found.append(Waiting.of(command.n, waiting))
        return found

    def queue(self, n: int, pending: Pending) -> None:
        """Let a durable step begin after the next commit, or when there is a slot."""
        self.waiting.append(Waiting.of(n, pending))

    def take_waiting(self) -> list[Waiting]:
        waiting, self.waiting = self.waiting, []
        return waiting

    # --- what ends ----------------------------------------------------------------------------------------------------
    def take_arrivals(self) -> list[Answering]:
        arrivals, self.arrivals = self.arrivals, []
        return arrivals

    def cancel_unbegun(self, n: int, pending: Pending | None, at: float) -> None:
        """End a step that has not begun and that the body no longer wants: its end is an arrival at once."""
        if pending is not None and isinstance(pending.command, CallStep) and n not in self.running:
            self.waiting = [each for each in self.waiting if each.n != n]
            if not any(each.n == n for each in self.arrivals):  # a pause that ends may have brought its end already
                self.arrivals.append(Interrupted(n, at))

    def ended(self, n: int, attempt: A) -> bool:
        """Remove an attempt whose task has ended; false if it was left behind before."""
        if self.running.get(n) is not attempt:
            if attempt.is_over:
                self.left_behind.discard(attempt)
            return False
        del self.running[n]
        if not attempt.is_over:
            self.left_behind.add(attempt)
        return True

    def leave_behind(self, n: int, attempt: A) -> bool:
        """Go on without an attempt; false if it has ended."""
        if self.running.get(n) is not attempt:
            return False
        del self.running[n]
        self.left_behind.add(attempt)
        return True

    def abandon(self) -> list[A]:
        """Leave everything behind; return the attempts to cancel."""
        attempts = [*self.running.values()]
        self.left_behind.update(attempts)
        self.running.clear()
        self.waiting.clear()
        self.arrivals.clear()
        return attempts
