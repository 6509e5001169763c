"""Begins and ends the steps of one invocation, as `in_progress` decides: attempts, slots, graces."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, cast

from perdure.authoring.step import StepInfo, Work
from perdure.core.failures import Failure
from perdure.core.journal import Answering, Attempted, Interrupted, Raised, Returned
from perdure.runtime.attempt import Attempt
from perdure.runtime.in_progress import InProgress, Waiting
from perdure.stores.port import Clock, Store

CANCEL_GRACE_SECONDS = 10.0
"""How long a cancelled step may take to end before its end is journaled without it."""

log = logging.getLogger("perdure.worker")


class Floor(Protocol):
    """What steps need of their worker."""

    store: Store
    clock: Clock
    loop: asyncio.AbstractEventLoop

    def acquire_slot(self, runner: Any, /) -> bool: ...
    def failure_of(self, error: BaseException, /) -> Failure: ...
    def begin_attempt(self, work: Work, info: StepInfo, runner: Any, /) -> Attempt: ...


class Owner(Protocol):
    """The runner whose steps these are."""

    id: str
    handler: str
    has_slot: bool

    @property
    def closed(self) -> bool: ...
    def arrived(self) -> None:
        """Hear that an outcome is among the arrivals."""
        ...

    def settle_down(self) -> None: ...
    def contain(self, error: BaseException, /) -> None: ...


class Steps(InProgress[Attempt]):
    """The steps of one invocation, and the acts."""

    __slots__ = ("_floor", "_owner", "stopping")

    def __init__(self, floor: Floor, owner: Owner) -> None:
        super().__init__()
        self._floor = floor
        self._owner = owner
        self.stopping = False

    def begin_waiting(self) -> None:
        """Begin the steps that are durable, as far as there is a slot."""
        if self.waiting and not self.stopping:
            for each in self.take_waiting():
                self.begin(each)

    def begin(self, step: Waiting) -> None:
        owner = self._owner
        if step.n in self.running or self.stopping:
            return
        if not owner.has_slot and not self._floor.acquire_slot(owner):
            self.waiting.append(step)
            return
        work = cast("Work", step.work)
        info = StepInfo(owner.id, step.generation, step.n, work.name, step.attempts + 1)
        attempt = self._floor.begin_attempt(work, info, owner)
        self.running[step.n] = attempt
        attempt.task.add_done_callback(partial(self._ended, step.n, step.attempts + 1, attempt))

    def interrupt(self, n: int) -> None:
        """Ask a running step to end; after a grace its end is journaled without it."""
        attempt = self.running.get(n)
        if attempt is not None:
            attempt.cancelled = True
            attempt.task.cancel()
            self._floor.loop.call_later(CANCEL_GRACE_SECONDS, self._grace_over, n, attempt)

    def close(self) -> None:
        """Interrupt all steps; nothing of them is journaled any more."""
        for attempt in self.abandon():
            attempt.task.cancel()

    async def stop(self, grace: float) -> None:
        """Begin nothing more, give running steps a grace, then interrupt them, unjournaled."""
        self.stopping = True
        if self.running and grace > 0:
            await asyncio.wait([attempt.task for attempt in self.running.values()], timeout=grace)
        for attempt in self.running.values():
            attempt.task.cancel()
        if self.running:
            await asyncio.wait([attempt.task for attempt in self.running.values()], timeout=CANCEL_GRACE_SECONDS)
        self.running.clear()

    # --- called by the loop -------------------------------------------------------------------------------------------
    def _grace_over(self, n: int, attempt: Attempt) -> None:
        owner = self._owner
        if not owner.closed and self.leave_behind(n, attempt):
            name = attempt.work.name
            log.warning("step %s of invocation %s did not end within its grace; it is left behind", name, owner.id)
            at = self._floor.clock.now()
            self.arrivals.append(Interrupted(n, at, at - attempt.began))
            owner.arrived()

    def _ended(self, n: int, number: int, attempt: Attempt, task: asyncio.Task[bytes]) -> None:
        try:
            if not self.ended(n, attempt):
                if not task.cancelled():
                    task.exception()  # seen: its end is journaled already
                self._owner.settle_down()
            elif not self._owner.closed and not (self.stopping and task.cancelled()):
                self._journal_end(n, number, attempt)
        except Exception as error:  # noqa: BLE001  everything is contained in its invocation
            self._owner.contain(error)

    def _journal_end(self, n: int, number: int, attempt: Attempt) -> None:
        floor = self._floor
        fact = attempt.fact(n, number, floor.clock.now(), floor.store.payload_limit, floor.failure_of)
        if type(fact) is not Returned:
            self._log_failure(attempt, number, fact)
        self.arrivals.append(fact)
        self._owner.arrived()

    def _log_failure(self, attempt: Attempt, number: int, fact: Answering) -> None:
        if not isinstance(fact, (Attempted, Raised)):
            return
        owner, work = self._owner, attempt.work
        of = "" if (most := getattr(work.retry, "max_attempts", None)) is None else f" of {most}"
        after = f"next attempt at {_moment(fact.due)}" if isinstance(fact, Attempted) else "no further attempt"
        error = f"{fact.failure.type}: {fact.failure.message}"
        log.warning(
            "invocation %s (%s): attempt %d%s of step %s failed: %s; %s",
            *(owner.id, owner.handler, number, of, work.name, error, after),
            extra={"invocation_id": owner.id, "handler": owner.handler, "step": work.name, "attempt": number},
        )


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
