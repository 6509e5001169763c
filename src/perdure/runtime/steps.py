"""Begins and ends the steps of one invocation, as `in_progress` decides: attempts, slots, grace periods."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

from perdure.authoring.step import StepInfo, Work
from perdure.core.journal import Attempted, Interrupted, Raised, Returned
from perdure.runtime.attempt import Attempt, AttemptEnd
from perdure.runtime.home import Home
from perdure.runtime.in_progress import InProgress, Waiting
from perdure.runtime.record import Record
from perdure.stores.port import loggable

CANCEL_GRACE_SECONDS = 10.0
"""How long a cancelled step may take to end before its end is journaled without it."""

log = logging.getLogger("perdure.worker")


class Owner(Protocol):
    """The runner whose steps these are."""

    id: str
    handler: str
    has_slot: bool
    record: Record

    @property
    def home(self) -> Home: ...
    @property
    def closed(self) -> bool: ...
    @property
    def about(self) -> dict[str, str]: ...
    async def durable_epoch(self) -> int | None: ...
    def attempt_of(self, n: int, failed: int, /) -> int: ...
    def arrived(self) -> None:
        """Note that an outcome is among the arrivals."""
        ...

    def settle_down(self) -> None: ...
    def contain(self, error: BaseException, /) -> None: ...


class Steps(InProgress[Attempt]):
    """The steps of one invocation, begun and ended."""

    __slots__ = ()

    def begin_waiting(self, owner: Owner) -> None:
        """Begin the durable steps for which there is a slot."""
        if self.waiting and not self.stopping:
            for each in self.take_waiting():
                self.begin(owner, each)

    def begin(self, owner: Owner, step: Waiting) -> None:
        if step.n in self.running or self.stopping:
            return
        if not owner.has_slot and not owner.home.acquire_slot(owner):
            self.waiting.append(step)
            return
        work: Work = step.work
        history, start = owner.record.history, owner.record.start
        claim = (history.epoch, None, None)
        if start is not None and start.key is not None:
            claim = (history.epoch, start.key, history.grant)
        info = StepInfo(owner.id, step.attempts + 1, (*step.key, work.name), *claim, owner.handler, step.n)
        trace = "" if start is None else start.trace
        if (trail := owner.record.trail) is not None:
            trace = str(trail.begin(step.n, step.key[0], step.attempts + 1, work.name, owner.home.clock.now()))
        attempt = owner.home.begin_attempt(work, info, owner, step.variables, trace)
        self.running[step.n] = attempt
        attempt.task.add_done_callback(partial(self._ended, owner, step.n, step.attempts + 1, attempt))

    def interrupt(self, owner: Owner, n: int) -> None:
        """Ask a running step to end; after a grace its end is journaled without it."""
        attempt = self.running.get(n)
        if attempt is not None and not attempt.task.done():  # one that has ended, though not yet here, was not asked
            attempt.cancelled = True
            attempt.task.cancel()
            owner.home.loop.call_later(CANCEL_GRACE_SECONDS, self._grace_over, owner, n, attempt)

    def close(self, owner: Owner) -> None:
        """Interrupt all steps; nothing of them is journaled any more."""
        for attempt in self.abandon():
            owner.home.counters.interrupted += attempt.task.cancel()

    async def stop(self, owner: Owner, grace: float) -> None:
        """Begin nothing more, give running steps a grace, then interrupt them, unjournaled."""
        self.stopping = True
        if self.running and grace > 0:
            await asyncio.wait([attempt.task for attempt in self.running.values()], timeout=grace)
        for attempt in self.running.values():
            owner.home.counters.interrupted += attempt.task.cancel()
        if self.running:
            await asyncio.wait([attempt.task for attempt in self.running.values()], timeout=CANCEL_GRACE_SECONDS)
        self.running.clear()

    # --- called by the loop -------------------------------------------------------------------------------------------
    def _grace_over(self, owner: Owner, n: int, attempt: Attempt) -> None:
        if not owner.closed and self.leave_behind(n, attempt):
            attempt.leave()
            name = attempt.work.name
            text = "step %s of invocation %s did not end within its grace; it is left behind"
            log.warning(text, name, owner.id, extra={**owner.about, "step": name})
            at = owner.home.clock.now()
            owner.home.counters.interrupted += 1
            self.arrivals.append(Interrupted(n, at, at - attempt.began))
            owner.arrived()

    def _ended(self, owner: Owner, n: int, number: int, attempt: Attempt, task: asyncio.Task[None]) -> None:
        try:
            if self.running.get(n) is attempt and not attempt.busy_threads:
                del self.running[n]  # nearly all: as `ended`, in less time
                was_running = True
            else:
                was_running = self.ended(n, attempt)
            if not was_running:
                if not task.cancelled():
                    task.exception()  # retrieved, so that asyncio does not warn: its end is journaled already
                owner.settle_down()
            elif not owner.closed and not (self.stopping and task.cancelled()):
                home = owner.home
                fact = attempt.fact(n, number, home.clock.now())
                home.counters.steps.observe((owner.handler, attempt.work.name), fact.took or 0.0)
                if type(fact) is not Returned:
                    _note_failure(owner, attempt, number, fact)
                self.arrivals.append(fact)
                home.schedule(owner)
        except Exception as error:  # noqa: BLE001  everything is contained in its invocation
            owner.contain(error)


def _note_failure(owner: Owner, attempt: Attempt, number: int, fact: AttemptEnd) -> None:
    work, counters = attempt.work, owner.home.counters
    if not isinstance(fact, (Attempted, Raised)):
        counters.interrupted += isinstance(fact, Interrupted)
        return
    counters.attempts_failed.add((owner.handler, work.name))
    of = "" if (most := getattr(work.retry, "max_attempts", None)) is None else f" of {most}"
    after = f"next attempt at {_moment(fact.due)}" if isinstance(fact, Attempted) else "no further attempt"
    error = f"{fact.failure.type}: {loggable(owner.home.store, fact.failure.message)}"
    log.warning(
        "invocation %s (%s): attempt %d%s of step %s failed: %s; %s",
        *(owner.id, owner.handler, number, of, work.name, error, after),
        extra={**owner.about, "step": work.name, "attempt": number},
    )


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
