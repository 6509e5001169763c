"""Bugs of a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.core.effects import NO_EFFECTS, Effects
from perdure.core.journal import Answering, Cancelled, Claimed, Entry, Fired, Frame, Message, Raised, Returned, Start
from perdure.errors import Conflict, StoreError
from perdure.runtime import frames, runner
from perdure.runtime.agenda import Agenda
from perdure.runtime.attempt import Attempt
from perdure.runtime.exchange import Exchange
from perdure.runtime.in_progress import InProgress
from perdure.runtime.live import Live
from perdure.runtime.opening import Begin, Settled
from perdure.runtime.record import Record
from perdure.runtime.runner import Runner
from perdure.runtime.slots import Slots
from perdure.runtime.worker import Worker
from perdure.stores.port import Transition, Wake
from tests.simulation.planted.bug import Bug, instead

EARLY_SECONDS = 0.01


# --- commits ----------------------------------------------------------------------------------------------------------
def takes_a_conflict_for_success(patch: pytest.MonkeyPatch) -> None:
    """A worker whose commit was refused, since another has written, goes on as if it were durable."""

    @instead(patch, Exchange, "_committed")
    def committed(original: Any, self: Any, transition: Transition, then: Any, revision: int, error: Any) -> None:
        if isinstance(error, Conflict):
            revision, error = transition.expected + 1, None
        original(self, transition, then, revision, error)


def does_not_repeat_a_commit_that_failed(patch: pytest.MonkeyPatch) -> None:
    """A commit that the store did not take is logged, and nothing else happens."""

    @instead(patch, Exchange, "_commit_failed")
    def commit_failed(original: Any, self: Any, transition: Transition, then: Any, error: Exception) -> None:
        if isinstance(error, StoreError) and not isinstance(error, Conflict):
            self._store = "idle"
            return
        original(self, transition, then, error)


def begins_steps_before_they_are_durable(patch: pytest.MonkeyPatch) -> None:
    """Steps begin when the body asks for them, not when the frame that holds them is written."""

    @instead(patch, Runner, "_write")
    def write(original: Any, self: Any, start: Start, round: Any, ready: Any, outcome: Any) -> None:
        new: list[Any] = [] if self.turn is None else self.steps.new(ready, self.turn.pending)
        original(self, start, round, ready, outcome)
        for step in new:
            self.steps.begin(self, step)


def does_not_redo_effects(patch: pytest.MonkeyPatch) -> None:
    """A worker that takes over does not redo what the last frame asked of the store."""

    @instead(patch, Record, "effects_to_redo")
    def effects_to_redo(_: Any, __: Record, ___: Start) -> Effects:
        return NO_EFFECTS


def claims_under_the_former_epoch(patch: pytest.MonkeyPatch) -> None:
    """A take-over repeats the number of the claim before it."""

    @instead(patch, Record, "claim")
    def claim(original: Any, record: Record, at: float) -> Claimed:
        return replace(original(record, at), epoch=max(1, record.history.epoch))


def writes_without_a_claim(patch: pytest.MonkeyPatch) -> None:
    """The first frame after a release does not claim the invocation."""

    @instead(patch, Record, "preamble")
    def preamble(original: Any, record: Record, start: Start, at: float) -> list[Entry]:
        entries: list[Entry] = original(record, start, at)
        return [each for each in entries if not record.revision or not isinstance(each, Claimed)]


# --- keys -------------------------------------------------------------------------------------------------------------
def begins_a_body_without_its_key(patch: pytest.MonkeyPatch) -> None:
    """A body begins when its start is delivered, whoever has the key."""

    @instead(patch, Record, "may_begin")
    def may_begin(_: Any, __: Record, ___: Any, *, has_start: bool) -> bool:
        return True


def keeps_the_key_of_a_cancelled_invocation(patch: pytest.MonkeyPatch) -> None:
    """An invocation that ends as cancelled does not release its key."""

    def without_release(effects: Effects, frame: Frame | None) -> Effects:
        cancelled = frame is not None and isinstance(frame.outcome, Cancelled)
        return replace(effects, release=None) if cancelled else effects

    @instead(patch, frames, "effects_of")
    def effects_of(original: Any, start: Start, frame: Frame, history: Any) -> Effects:
        return without_release(original(start, frame, history), frame)

    @instead(patch, Record, "effects_of")
    def effects_again(original: Any, record: Record, start: Start, frame: Frame | None) -> Effects:
        return without_release(original(record, start, frame), frame)


# --- messages ---------------------------------------------------------------------------------------------------------
def applies_a_message_twice(patch: pytest.MonkeyPatch) -> None:
    """A message that comes again, since its acknowledgement was lost, is applied again."""

    @instead(patch, frames, "take_message")
    def take_message(original: Any, record: Record, message: Message, turn: Any, round: Any) -> None:
        record.history.messages.pop(message.id, None)
        original(record, message, turn, round)


def runs_what_has_settled(patch: pytest.MonkeyPatch) -> None:
    """A message for a settled invocation is applied as if it ran."""

    @instead(patch, runner, "opening")
    def opening(original: Any, record: Record, found: Sequence[Frame], inbox: Any, *, must_claim: bool) -> Any:
        opened = original(record, found, inbox, must_claim=must_claim)
        return Begin(opened.start, found) if isinstance(opened, Settled) else opened


def forgets_what_waited_during_a_pause(patch: pytest.MonkeyPatch) -> None:
    """After a resume, steps and timers of before the pause are not taken up again."""

    @instead(patch, Live, "_take_up_all")
    def take_up_all(_: Any, __: Any, ___: Any) -> None:
        pass


def takes_what_cannot_be_taken_for_taken(patch: pytest.MonkeyPatch) -> None:
    """A delivery at which something unforeseen is raised is dropped."""

    @instead(patch, Worker, "_decline")
    def decline(_: Any, __: Any, ___: Any, ____: BaseException) -> None:
        pass


def does_not_look_for_its_key(patch: pytest.MonkeyPatch) -> None:
    """A retry waits for the wake that says that it has its key, and looks no more by itself."""

    @instead(patch, Runner, "_look_for_key")
    def look_for_key(_: Any, self: Any) -> None:
        self._awaits_key = True
        if any(isinstance(delivery.item, Wake) for delivery in self._inbox):
            self.home.schedule(self)


def ignores_that_it_was_taken_over(patch: pytest.MonkeyPatch) -> None:
    """A worker that is told that another has an invocation goes on with it."""

    @instead(patch, Worker, "_lost")
    def lost(_: Any, __: Any, ___: str) -> None:
        pass


# --- journals that cannot be read -------------------------------------------------------------------------------------
def keeps_what_it_cannot_read(patch: pytest.MonkeyPatch) -> None:
    """A worker that cannot read a journal keeps what it holds of the invocation."""

    @instead(patch, Exchange, "_decline")
    def decline(_: Any, self: Any, __: str) -> None:
        self._leave()


def ends_at_a_journal_that_it_cannot_read(patch: pytest.MonkeyPatch) -> None:
    """A worker that cannot read a journal serves nothing more."""

    @instead(patch, Exchange, "_decline")
    def decline(original: Any, self: Any, reason: str) -> None:
        original(self, reason)
        self.home.loop.call_soon(self.home.halt)


# --- timers -----------------------------------------------------------------------------------------------------------
def fires_timers_early(patch: pytest.MonkeyPatch) -> None:
    """A timer fires shortly before it is due."""

    @instead(patch, Agenda, "pop")
    def pop(original: Any, self: Agenda, by: float, /) -> int | None:
        return original(self, by + EARLY_SECONDS)

    @instead(patch, Agenda, "arm")
    def arm(original: Any, self: Agenda, at: float, /) -> None:
        original(self, at - EARLY_SECONDS)


def fires_timers_twice(patch: pytest.MonkeyPatch) -> None:
    """A timer that has fired fires once more in the same round."""

    @instead(patch, runner, "fire_due")
    def fire_due(original: Any, record: Record, turn: Any, pop: Any, running: Any, round: Any) -> Any:
        again = original(record, turn, pop, running, round)
        round.entries += [each for each in round.entries if isinstance(each, Fired)]
        return again


# --- steps and slots --------------------------------------------------------------------------------------------------
def runs_steps_again_that_waited_for_a_slot(patch: pytest.MonkeyPatch) -> None:
    """Steps that waited for a slot go on waiting after they have begun."""

    @instead(patch, InProgress, "take_waiting")
    def take_waiting(_: Any, self: Any) -> list[Any]:
        return [*self.waiting]


def takes_the_failure_of_a_step_for_a_result(patch: pytest.MonkeyPatch) -> None:
    """An exception that a step raises is swallowed: the step returns nothing."""

    @instead(patch, Attempt, "fact")
    def fact(original: Any, self: Attempt, *args: Any) -> Answering:
        found = original(self, *args)
        empty = b"\xa0" if self.work.name.startswith("work") else b"\xc0"  # what fits its annotation
        return Returned(found.n, found.at, empty) if isinstance(found, Raised) else found


def swallows_exceptions_of_its_own(patch: pytest.MonkeyPatch) -> None:
    """An exception that nobody foresaw ends the runner, and its deliveries are forgotten."""

    @instead(patch, Exchange, "contain")
    def contain(_: Any, self: Any, error: BaseException, /) -> None:
        self._leave()


def leaks_the_slot_of_a_runner_that_closes(patch: pytest.MonkeyPatch) -> None:
    """A runner that is closed while steps run keeps its slot."""

    @instead(patch, Live, "settle_down")
    def settle_down(original: Any, self: Live) -> None:
        if not self.closed:
            original(self)


def gives_slots_without_limit(patch: pytest.MonkeyPatch) -> None:
    """There is always a free slot."""
    patch.setattr(Slots, "are_free", property(lambda _: True))


def forgets_to_count_starts(patch: pytest.MonkeyPatch) -> None:
    """A start that comes is still counted as one to come: the worker asks for fewer and fewer."""

    @instead(patch, Slots, "start_came")
    def start_came(_: Any, __: Any) -> None:
        pass


BUGS = (
    Bug(takes_a_conflict_for_success, 13, ""),
    Bug(does_not_repeat_a_commit_that_failed, 13, ""),
    Bug(begins_steps_before_they_are_durable, 18, "begins before it is durable"),
    Bug(does_not_redo_effects, 13, ""),
    Bug(claims_under_the_former_epoch, 4, "epoch"),
    Bug(writes_without_a_claim, 4, "without a claim"),
    Bug(begins_a_body_without_its_key, 5, "holds it"),
    Bug(keeps_the_key_of_a_cancelled_invocation, 13, ""),
    Bug(applies_a_message_twice, 7, "applied twice"),
    Bug(runs_what_has_settled, 13, "never acknowledged"),
    Bug(forgets_what_waited_during_a_pause, 13, ""),
    Bug(takes_what_cannot_be_taken_for_taken, 13, ""),
    Bug(does_not_look_for_its_key, 13, ""),
    Bug(ignores_that_it_was_taken_over, 11, "was told that it lost"),
    Bug(keeps_what_it_cannot_read, 19, "has not handed it back"),
    Bug(ends_at_a_journal_that_it_cannot_read, 19, "was not served"),
    Bug(fires_timers_early, 6, "is due at"),
    Bug(fires_timers_twice, 6, ""),
    Bug(runs_steps_again_that_waited_for_a_slot, 2, "runs again"),
    Bug(takes_the_failure_of_a_step_for_a_result, 17, ""),
    Bug(swallows_exceptions_of_its_own, 13, ""),
    Bug(leaks_the_slot_of_a_runner_that_closes, 12, "slots are taken"),
    Bug(gives_slots_without_limit, 12, "in progress"),
    Bug(forgets_to_count_starts, 12, "room"),
)
