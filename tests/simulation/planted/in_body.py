"""Bugs of the core: of the live body, its replay and what follows from its journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.authoring.saga import Saga
from perdure.core import issuer, retrying, turn
from perdure.core.effects import Effects
from perdure.core.generations import Cut
from perdure.core.history import History
from perdure.core.journal import Answering, Cancel, Cancelled, CancelRequested, Completed, Failed, Frame, Outcome, Start
from perdure.core.pending import Ready
from perdure.core.turn import Turn
from perdure.runtime import frames, in_progress, record
from tests.simulation.planted.bug import Bug, instead


def replays_entries_in_another_order(patch: pytest.MonkeyPatch) -> None:
    """A replay delivers the facts of a frame in the reverse of their order."""

    @instead(patch, turn, "replayable")
    def replayable(original: Any, found: Sequence[Frame]) -> Sequence[Frame]:
        def turned(frame: Frame) -> Frame:
            facts = [each for each in frame.entries if isinstance(each, Answering)]
            return replace(
                frame, entries=[facts.pop() if isinstance(each, Answering) else each for each in frame.entries]
            )

        return [turned(frame) for frame in original(found)]


def replays_without_the_last_frame(patch: pytest.MonkeyPatch) -> None:
    """A replay ends one frame early."""

    @instead(patch, turn, "replayable")
    def replayable(original: Any, found: Sequence[Frame]) -> Sequence[Frame]:
        return original(found)[:-1]


def derives_one_id_for_two_commands(patch: pytest.MonkeyPatch) -> None:
    """All children of an invocation get one id."""

    @instead(patch, issuer, "derived_id")
    def derived_id(original: Any, id: str, generation: int, _: int) -> str:
        return original(id, generation, 0)


def does_not_tell_a_child_of_its_cancellation(patch: pytest.MonkeyPatch) -> None:
    """The cancellation of a child is recorded, and no message is sent."""

    for module in (frames, record):

        @instead(patch, module, "effects_of")
        def effects_of(original: Any, start: Start, frame: Frame, history: History) -> Effects:
            effects: Effects = original(start, frame, history)
            told = tuple(each for each in effects.messages if not isinstance(each.request, Cancel))
            return replace(effects, messages=told)


def forgets_children_when_forced_to_end(patch: pytest.MonkeyPatch) -> None:
    """A forced cancellation ends an invocation, and leaves its children behind."""

    @instead(patch, History, "open_children")
    def open_children(_: Any, __: History) -> list[int]:
        return []


def ends_a_cancelled_body_without_its_cleanup(patch: pytest.MonkeyPatch) -> None:
    """A cancellation drops the body instead of cancelling its task: no `finally` runs."""

    @instead(patch, Turn, "cancel")
    def cancel(_: Any, self: Any, request: CancelRequested) -> None:
        self._cancel_requested = request
        self._ready.outcome = Cancelled(request.at)
        self._ready.cancels += [n for n in self.pending if n not in self._ready.cancels]
        self.loop.stopped = True


def takes_the_failure_of_a_body_for_a_result(patch: pytest.MonkeyPatch) -> None:
    """An exception that a body raises is swallowed: the invocation returns an empty list."""

    @instead(patch, turn, "outcome_of")
    def outcome_of(original: Any, *args: Any) -> Outcome:
        found = original(*args)
        return Completed(found.at, b"\x90") if isinstance(found, Failed) else found


def retries_steps_that_have_a_result(patch: pytest.MonkeyPatch) -> None:
    """A retry cuts the journal at its beginning, and runs everything again."""

    @instead(patch, retrying, "cut_of")
    def cut_of(_: Any, held: Sequence[Frame], failed: Failed) -> Cut:
        began = next(number for number, frame in enumerate(held) if frame.commands)
        return Cut(began, 0, (), (), failed.at)


def loses_changes_of_the_state(patch: pytest.MonkeyPatch) -> None:
    """What a body has set is in its frame, and does not reach the key."""

    @instead(patch, History, "_change_state")
    def change_state(_: Any, __: History, ___: Any) -> None:
        pass


def stands_still_when_a_timer_fires(patch: pytest.MonkeyPatch) -> None:
    """The body's clock does not show the time at which its timer fired."""

    @instead(patch, Turn, "_answer")
    def answer(original: Any, self: Turn, entry: Any) -> None:
        original(self, replace(entry, at=0.0))


def forgets_that_a_body_diverged(patch: pytest.MonkeyPatch) -> None:
    """A divergence is noted, and the body asks on."""

    @instead(patch, Turn, "ready")
    def ready(_: Any, self: Any) -> Ready:
        asked, self._ready, self.divergence = self._ready, Ready(), None
        return asked

    @instead(patch, Turn, "replay")
    def replay(original: Any, self: Any, found: Sequence[Frame]) -> None:
        original(self, found)
        if self.divergence is not None:
            self.divergence, self.loop.stopped = None, False
            self._ready.commands += [each.command for each in self.pending.values()]


def interrupts_cleanup_by_every_cancellation(patch: pytest.MonkeyPatch) -> None:
    """A second cancellation is raised in the body, too."""

    @instead(patch, Turn, "cancel")
    def cancel(original: Any, self: Any, request: CancelRequested) -> None:
        self._cancel_requested = None
        original(self, request)


def ends_descendants_of_a_forced_end_gently(patch: pytest.MonkeyPatch) -> None:
    """The children of what is ended by force are cancelled as if nobody had asked for force."""

    for module in (frames, record):

        @instead(patch, module, "effects_of")
        def effects_of(original: Any, start: Start, frame: Frame, history: History) -> Effects:
            effects: Effects = original(start, frame, history)
            told = [
                replace(each, id=each.id.replace("force:", "cancel:"), request=Cancel(False))
                if isinstance(each.request, Cancel)
                else each
                for each in effects.messages
            ]
            return replace(effects, messages=tuple(told)) if told else effects


def tries_all_compensations_again(patch: pytest.MonkeyPatch) -> None:
    """A retry of a saga begins with all compensations, those that succeeded included."""

    @instead(patch, Saga, "_stand")
    async def stand(original: Any, self: Any, failed: list[Any], tried: int, error: BaseException) -> None:
        await original(self, failed, tried, error)
        failed[:] = [(each, error) for each in self._compensations[::-1]]


def tries_compensations_under_new_keys(patch: pytest.MonkeyPatch) -> None:
    """A compensation that is tried again has the idempotency key of its own command."""

    @instead(patch, in_progress, "key_number")
    def key_number(_: Any, command: Any) -> int:
        return command.n


BUGS = (
    Bug(tries_all_compensations_again, 21, "has succeeded"),
    Bug(tries_compensations_under_new_keys, 18, "before it is durable"),
    Bug(replays_entries_in_another_order, 10, ""),
    Bug(replays_without_the_last_frame, 15, "two commands"),
    Bug(derives_one_id_for_two_commands, 15, "names"),
    Bug(does_not_tell_a_child_of_its_cancellation, 9, "never told"),
    Bug(forgets_children_when_forced_to_end, 9, "behind"),
    Bug(ends_a_cancelled_body_without_its_cleanup, 9, "cleanup"),
    Bug(forgets_that_a_body_diverged, 11, ""),
    Bug(interrupts_cleanup_by_every_cancellation, 9, "once more"),
    Bug(ends_descendants_of_a_forced_end_gently, 9, "was not told so"),
    Bug(takes_the_failure_of_a_body_for_a_result, 17, ""),
    Bug(retries_steps_that_have_a_result, 2, "result"),
    Bug(loses_changes_of_the_state, 17, "state"),
    Bug(stands_still_when_a_timer_fires, 17, "early"),
)
