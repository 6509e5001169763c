"""The live turn of one invocation, from replay to drop, with its steps and due times."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import TypeVar

from perdure.background import log_error
from perdure.core.journal import CallStep, Frame, Interrupted, SetTimer, Start
from perdure.core.turn import Pending, Turn
from perdure.core.values import type_name
from perdure.errors import PerdureError
from perdure.runtime.agenda import DEADLINE, Agenda
from perdure.runtime.exchange import Exchange, contained
from perdure.runtime.home import Home
from perdure.runtime.steps import Steps
from perdure.stores.port import Delivery, SealsValues

T = TypeVar("T")

log = logging.getLogger("perdure.worker")


def _class_of(error: object) -> str:
    return type_name(error.__class__)


class Live(Exchange):
    """The turn, if there is one, with its steps and due times."""

    __slots__ = ("_agenda", "_awaits_claim", "_stuck", "has_slot", "scheduled", "steps", "turn")

    def __init__(self, home: Home, delivery: Delivery, fault: str | None) -> None:
        super().__init__(home, delivery, fault)
        self.has_slot = False
        self.scheduled = False
        self.turn: Turn | None = None
        self.steps = Steps()
        self._stuck: str | None = None  # why there is no turn: the code does not fit the journal
        self._agenda: Agenda | None = None  # made on the first due time
        self._awaits_claim: list[asyncio.Future[None]] = []  # of steps that write before the first frame is durable

    # --- the turn -----------------------------------------------------------------------------------------------------
    def _open(self, start: Start, frames: Sequence[Frame]) -> None:
        """Make the turn and replay its journal."""
        self.record.start = start
        if self._fault is not None:
            self._stuck = self._fault
            return
        try:
            turn = self.home.make_turn(start)
        except PerdureError as error:
            self._stuck = str(error)
            return
        self.turn = turn
        if frames:
            began = perf_counter()
            self._watched(partial(turn.replay, frames))
            self.home.counters.replays.observe(perf_counter() - began)
            if turn.divergence is not None:
                self._stuck = self.record.explain(turn)
                self._forget_turn()
                return
            if self._agenda is not None:
                self._agenda.clear()
            self.steps.waiting.clear()  # another worker may have run what waited here when this one let go
            self._take_up_all(turn)
        self._note_deadline(start)

    def _take_up_all(self, turn: Turn) -> None:
        """Take up the commands that wait for an answer, after a replay or a pause. While paused, some are held back."""
        if self.record.history.paused is None:
            for n, pending in self.steps.open(turn.pending):
                self._take_up(n, pending)

    def _take_up(self, n: int, pending: Pending) -> None:
        command = pending.command
        if isinstance(command, SetTimer):
            self._note_time(command.due, n)
        elif isinstance(command, CallStep):
            if n in self.steps.running:
                if pending.cancel_requested:
                    self.steps.interrupt(self, n)
            elif pending.cancel_requested:
                self.steps.arrivals.append(Interrupted(n, self.home.clock.now()))
            elif pending.retry_due > self.home.clock.now():
                self._note_time(pending.retry_due, n)
            else:
                self.steps.queue(n, pending)

    def _watched(self, run: Callable[[], T]) -> T:
        """Run the body under the watch, which reports it if it blocks."""
        watch = self.home.watch
        watch.count += 1
        watch.current = self
        try:
            return run()
        finally:
            watch.current = None

    def _forget_turn(self) -> None:
        turn, self.turn = self.turn, None
        if turn is not None:
            try:
                turn.close()
            except Exception:
                log.exception("invocation %s: its body did not end when it was dropped", self.id, extra=self.about)

    def _report_unseen(self, turn: Turn) -> None:
        """Log exceptions of the body's tasks that nothing awaited, as asyncio does."""
        for context in turn.unseen:
            text, message, error = "invocation %s: %s", context.get("message"), context.get("exception")
            if isinstance(self.home.store, SealsValues):  # the text of an exception may hold a value
                text = "invocation %s: an exception that nothing awaited: %s"
                log.error(text, self.id, _class_of(error), extra=self.about)
            elif error is None:
                log.error(text, self.id, message, extra=self.about)
            else:
                log_error(log, text, self.id, message, error=error, extra=self.about)
        turn.unseen.clear()

    def _stuck_at(self) -> str | None:
        """Return where the body is stuck, if it is; log it the first time."""
        stuck_at = None if self.turn is None else self.turn.stuck_at
        if stuck_at is not None and stuck_at != self.record.history.stuck_at:
            log.warning(
                "invocation %s (%s) waits at %s for something that nothing can bring: no step, timer, child or "
                "awakeable is pending. Only a cancellation or its time limit can end it",
                *(self.id, self.handler, stuck_at),
                extra=self.about,
            )
        return stuck_at

    # --- streams ------------------------------------------------------------------------------------------------------
    async def durable_epoch(self) -> int | None:
        """Return the epoch of the claim, once it is durable; None if the invocation has left this worker."""
        while not self.record.revision and not self.closed:
            waiting: asyncio.Future[None] = self.home.loop.create_future()
            self._awaits_claim.append(waiting)
            self.write_first_frame()
            await waiting
        return None if self.closed else self.record.history.epoch

    @abstractmethod
    def write_first_frame(self) -> None:
        """Commit the first frame now, if it was held back."""

    def _claimed(self) -> None:
        """Let those go on that wait for a durable claim."""
        if self._awaits_claim:
            waiting, self._awaits_claim = self._awaits_claim, []
            for each in waiting:
                if not each.done():
                    each.set_result(None)

    def attempt_of(self, n: int, failed: int, /) -> int:
        """Return the number of the attempt of step `n` before which so many have failed, for readers of streams."""
        return self.record.history.attempt_of(n, failed)

    # --- time ---------------------------------------------------------------------------------------------------------
    def _note_time(self, at: float, n: int) -> None:
        if self._agenda is None:
            self._agenda = Agenda(self.home.clock, self.arrived)
        self._agenda.add(at, n)

    def _note_deadline(self, start: Start) -> None:
        if start.timeout is not None:
            self._note_time((self.record.history.retried_at or start.due) + start.timeout, DEADLINE)

    def _next_due(self) -> float | None:
        """Return the earliest due time, dropping those that are no longer wanted."""
        if self._agenda is None or self.record.history.paused is not None:
            return None
        return self._agenda.next(None if self.turn is None else self.turn.pending)

    def _arm(self) -> None:
        due = self._next_due()
        if self._agenda is not None and due is not None:
            self._agenda.arm(due)

    def arrived(self) -> None:
        self.home.schedule(self)

    # --- slots --------------------------------------------------------------------------------------------------------
    @contained
    def slot_granted(self) -> None:
        """Go on with the steps that waited for a slot."""
        if self.record.history.paused is None:
            self.steps.begin_waiting(self)
        self.settle_down()

    def settle_down(self) -> None:
        """Give the slot back once nothing is in progress, abandoned steps included."""
        try:
            if self.has_slot and self._store == "idle":
                if not self.steps.needs_slot(is_paused=self.record.history.paused is not None):
                    self.home.release_slot(self)
        except BaseException as error:  # noqa: BLE001  as `contained`, in less time
            self.contain(error)
