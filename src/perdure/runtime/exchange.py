"""The traffic of one runner with its store: deliveries, and one read or commit at a time, retried when it fails.

An invocation that this runner cannot continue goes on elsewhere: a new runner reads the journal anew, or pauses it
after an unexpected exception, or another worker gets it. No delivery is lost on the way.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial, wraps
from time import perf_counter
from typing import Concatenate, Literal, ParamSpec, TypeVar

from perdure.background import log_error
from perdure.core.failures import failure_of
from perdure.core.journal import Accepted, Start
from perdure.errors import Conflict, NewerJournal, StoreClosed, StoreDamaged, StoreError, Unopened
from perdure.runtime.home import Home
from perdure.runtime.record import Record
from perdure.stores.port import Delivery, Journal, Key, Transition, Wake

STORE_RETRY_SECONDS = 1.0
"""Back-off after a commit or read that failed."""

READS_LIMIT = 5
"""Retries of a read that raises an unexpected exception, before the invocation is handed back."""

COMMITS_LIMIT = 5
"""Retries of a commit that raises an unexpected exception, before the invocation is paused."""

REASON_LIMIT = 4_000
"""Characters of the traceback in the reason of a pause."""

E = TypeVar("E", bound="Exchange")
P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("perdure.worker")


def contained(method: Callable[Concatenate[E, P], None]) -> Callable[Concatenate[E, P], None]:
    """Contain the exceptions of a runner's entry point in its invocation: none reaches the host's loop."""

    @wraps(method)
    def guarded(self: E, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001  everything is contained here
            self.contain(error)

    return guarded


class Exchange(ABC):
    """The deliveries of one invocation that this worker holds, and its traffic with the store."""

    __slots__ = (
        "_committing",
        "_failures",
        "_fault",
        "_inbox",
        "_must_claim",
        "_store",
        "_sure",
        "_taken",
        "closed",
        "handler",
        "home",
        "id",
        "record",
    )

    def __init__(self, home: Home, delivery: Delivery, fault: str | None) -> None:
        start = delivery.item if delivery.fresh and isinstance(delivery.item, Start) else None
        self.id = delivery.id
        self.handler = delivery.handler
        self.closed = False
        self.record = Record(delivery.id, home.writer, start, trail=None if start is None else home.trail_of(start))
        self.home = home
        self._committing = 0.0  # when the commit in flight was handed over
        self._fault = fault  # an unexpected exception that ended the previous runner: the invocation is paused
        self._failures = 0  # reads or commits in a row that raised an unexpected exception
        self._inbox: list[Delivery] = []
        self._taken: list[Delivery] = []  # to be acknowledged by the next commit
        self._must_claim = delivery.attempt > 1  # a worker may have begun on it
        self._sure = False  # the journal was read or written after the last delivery came
        self._store: Literal["idle", "busy", "away"] = "idle"  # a read or commit is in flight, or waits for its retry

    @property
    def about(self) -> dict[str, str]:
        """What records of the log say of this invocation, beside their text."""
        return {"invocation_id": self.id, "handler": self.handler}

    @abstractmethod
    def close(self) -> None:
        """Stop without a trace: nothing is journaled or acknowledged any more."""

    def take(self, delivery: Delivery) -> None:
        """Take a delivery for this invocation."""
        self._inbox.append(delivery)
        self._sure = False
        if delivery.attempt > 1 and not self.record.owned:
            self._must_claim = True
        self.home.schedule(self)

    # --- reads --------------------------------------------------------------------------------------------------------
    def _read(self, question: Callable[[], Awaitable[T]], told: Callable[[T], None]) -> None:
        """Ask the store, and go on with its answer."""
        self._store, self._sure = "busy", True
        task = asyncio.ensure_future(self._in_turn(question))
        task.add_done_callback(partial(self._answered, question, told))

    async def _in_turn(self, question: Callable[[], Awaitable[T]]) -> T:
        async with self.home.reads:
            return await question()

    @contained
    def _answered(self, question: Callable[[], Awaitable[T]], told: Callable[[T], None], task: asyncio.Task[T]) -> None:
        if self.closed or task.cancelled():
            self._store = "idle"
            if not task.cancelled() and (late := task.exception()) is not None:
                log.debug(
                    "invocation %s: a read failed after it had left this worker",
                    self.id,
                    exc_info=late,
                    extra=self.about,
                )
            return
        error = task.exception()
        if error is not None:
            self._read_failed(error, partial(self._read, question, told))
            return
        self._store, self._failures = "idle", 0
        told(task.result())

    def _read_failed(self, error: BaseException, again: Callable[[], None]) -> None:
        if isinstance(error, StoreClosed):
            self.close()
            return
        is_foreseen = isinstance(error, StoreError)
        self._failures = 0 if is_foreseen else self._failures + 1
        if isinstance(error, (NewerJournal, StoreDamaged, Unopened)) or self._failures > READS_LIMIT:
            self._decline(f"its journal cannot be read: {_in_short(error)}")
            return
        told = None if is_foreseen else error
        log.error(
            "the journal of invocation %s cannot be read, trying again: %s",
            self.id,
            error,
            exc_info=told,
            extra=self.about,
        )
        self._later(again)

    def _later(self, work: Callable[[], None]) -> None:
        """Retry later what the store did not do."""
        self._store = "away"
        clock = self.home.clock
        clock.call_at(clock.now() + STORE_RETRY_SECONDS, partial(self._try_again, work))

    @contained
    def _try_again(self, work: Callable[[], None]) -> None:
        if not self.closed:
            self._store = "busy"
            work()

    async def _whole(self) -> tuple[Journal, Start | None, Key]:
        store, start, journal = self.home.store, self.record.start, Journal()
        if start is None or self.record.revision or self._must_claim:
            journal = await store.journal(self.id)
            if not journal.frames:
                # A delivered start proves nothing: its invocation may have run, settled and been purged.
                start = await store.start(self.id)
            elif isinstance(accepted := journal.frames[0].entries[0], Accepted):
                start = accepted.start
        key = Key() if start is None or start.key is None else await store.key(start.key)
        return journal, start, key

    # --- commits ---------------------------------------------------------------------------------------------------
    def _commit(self, transition: Transition, then: Callable[[], None]) -> None:
        self._store, self._taken = "busy", []  # the transition has them
        self._sure = self._sure or transition.frame is not None
        told = partial(self._committed, transition, then)
        self._committing = perf_counter()
        try:
            self.home.store.commit(transition, told)
        except Exception as error:  # noqa: BLE001  told like any other failure
            self.home.loop.call_soon(told, 0, error)

    def _committed(
        self, transition: Transition, then: Callable[[], None], revision: int, error: Exception | None
    ) -> None:
        try:
            if error is not None:
                self._commit_failed(transition, then, error)
                return
            self._store, self._failures = "idle", 0
            record = self.record
            record.has_written = True
            if transition.frame is not None:
                record.revision = revision
                self.home.counters.commits.observe(perf_counter() - self._committing)
                self._emit()
            if transition.effects.starts:
                self.home.started(transition.effects.starts)
            if not self.closed:
                then()
        except BaseException as raised:  # noqa: BLE001  as `contained`, in less time
            self.contain(raised)

    def _commit_failed(self, transition: Transition, then: Callable[[], None], error: Exception) -> None:
        if self.closed:
            if self._fault is not None:  # the next runner goes on with what this commit would have acknowledged
                self._deliver_again(transition.acknowledge)
        elif isinstance(error, StoreClosed):
            self.close()
        elif isinstance(error, Conflict):
            # Another worker has written, perhaps an owner that was declared dead. Our deliveries are still to do.
            log.warning("invocation %s: reloading: %s", self.id, error, extra=self.about)
            if transition.acknowledge or self._inbox:
                self._begin_anew(transition.acknowledge)
            else:
                self._read(partial(self.home.store.journal, self.id), self._begin_anew_if_ours)
        else:  # nothing was written, and the same transition is still right
            self.home.commit_failed(self, error)
            self._failures = 0 if isinstance(error, StoreError) else self._failures + 1
            if self._failures > COMMITS_LIMIT:
                self._taken = [*transition.acknowledge]
                raise error
            self._later(partial(self._commit, transition, then))

    def _emit(self) -> None:
        """Emit the spans of what is durable now."""
        if self.record.trail is not None:
            self.home.emit(self.record.trail.take(self.home.clock.now()))

    # --- leaving ------------------------------------------------------------------------------------------------------
    def _begin_anew(self, taken: Sequence[Delivery]) -> None:
        """Let a new runner read the journal, and give it the deliveries."""
        held = [*taken, *self._inbox]
        self._leave()
        self._deliver_again(held)

    def _begin_anew_if_ours(self, journal: Journal) -> None:
        """Go on, with nothing in hand, if the last frame is our own: it was written, and the answer was lost.

        Nothing would bring the invocation to a worker then: it is claimed by this one.
        """
        is_ours = bool(journal.frames) and journal.frames[-1].writer == self.home.writer.name
        self._begin_anew([Delivery(self.id, self.handler, Wake())] if is_ours else [])

    def _deliver_again(self, held: Sequence[Delivery]) -> None:
        for delivery in held:
            delivery.attempt += 1
            self.home.deliver_again(delivery)

    def _decline(self, reason: str) -> None:
        """Hand back all deliveries of an invocation that cannot run here: another worker may be able to."""
        given_back = (*self._taken, *self._inbox, Delivery(self.id, self.handler, Wake()))[0]
        self._leave()
        self.home.subscription.decline(given_back, reason)

    def contain(self, error: BaseException, /) -> None:
        """Set the invocation aside after an unexpected exception: a new runner pauses it with the reason.

        If that cannot be recorded either, the invocation is handed back for another worker. An exit or interrupt passes
        through: a signal handler raised it here by chance, and the delivery that it hit comes again.
        """
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.close()
            raise error
        log_error(log, "invocation %s (%s): unexpected exception", self.id, self.handler, error=error, extra=self.about)
        if self.closed:
            return
        if self._fault is not None:
            self._decline(f"it cannot even be paused: {_in_short(error)}")
            return
        self._fault = _explain_fault(error)
        held = [*self._taken, *self._inbox] or [Delivery(self.id, self.handler, Wake())]
        self._leave()
        for delivery in held:
            delivery.attempt += 1
        self.home.pause_by_new_runner(held, self._fault)

    def _leave(self) -> None:
        self.close()
        self.home.ended(self)

    def _let_go(self, deliveries: Sequence[Delivery]) -> None:
        """Leave the invocation and acknowledge its deliveries: there is nothing to do."""
        for delivery in deliveries:
            self.home.subscription.acknowledge(delivery)
        self._leave()


def _in_short(error: BaseException) -> str:
    failure = failure_of(error)
    return f"{failure.type}: {failure.message}"


def _explain_fault(error: BaseException) -> str:
    try:
        told = "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001  an exception of the author's that cannot be shown
        told = failure_of(error).traceback
    return f"unexpected exception {_in_short(error)}; mend the code, then resume\n{told[-REASON_LIMIT:]}"
