"""Delivers from the file to workers: queued starts, open messages, due wakes, and claims left by an earlier process.

Runs on the loop. `local.dispatch` keeps track of what workers hold. A failed read is logged and retried as long as the
store is open.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, TypeVar

from perdure.background import Tasks
from perdure.core.effects import NO_EFFECTS, Effects
from perdure.core.journal import Message, Start, settles_before_begin
from perdure.counters import StoreCounters
from perdure.errors import StoreClosed, StoreError
from perdure.stores.clock import Alarm, SystemClock
from perdure.stores.local.canceller import Canceller
from perdure.stores.local.dispatch import Dispatcher, Member, Page
from perdure.stores.port import Committed, Delivery, Transition, Wake
from perdure.stores.sql.index import LIVELY
from perdure.stores.sqlite.aside import Aside
from perdure.stores.sqlite.checked import message_of, start_of
from perdure.stores.sqlite.keys import queue_deadline
from perdure.stores.sqlite.unit import Accept, Route, Unit

T = TypeVar("T")

RETRY_SECONDS = 1.0
"""How long to wait before a failed read is retried."""
DUE_BATCH_LIMIT = 1_000
"""Delayed starts that are queued in one transaction at most."""
DUE_STARTS = (
    "SELECT id, start, checksum FROM invocation WHERE status = 'scheduled' AND due <= ? ORDER BY due, sequence LIMIT ?"
)
"""Finds delayed starts that are due. A release before stored them without a sequence, so they come first: they were
accepted first."""

log = logging.getLogger("perdure.sqlite")


class Deliveries:
    """Delivers from the file. `last` is the last position assigned in the queue of starts."""

    def __init__(
        self,
        path: str,
        clock: SystemClock,
        read: Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]],
        enqueue: Callable[[Unit], asyncio.Future[Any]],
        aside: Aside,
        commit: Callable[[Transition, Committed], None],
        counters: StoreCounters,
    ) -> None:
        self.dispatcher = Dispatcher(self._fetch, self._forget)
        self.last = 0
        # Messages posted here that have no answer yet: the file need not be read for one.
        self.unanswered: set[str] = set()
        self._path = path
        self._clock = clock
        self._read = read
        self._enqueue = enqueue
        self._aside = aside
        self._alarm = Alarm(clock, self._ring)
        self._opened_at = 0
        self._rung_to = 0.0
        self._ringing = False
        self._ring_again = False
        self._tasks = Tasks(log)
        self._canceller = Canceller(self.dispatcher, clock, self._unbegun, commit, counters)

    def open(self, last: int) -> None:
        """Begin. Starts up to position `last` were queued by an earlier process, which may have begun them."""
        self.last = self._opened_at = last
        self._ring()  # what falls due is queued also while no worker is there

    def close(self) -> None:
        self._alarm.cancel()
        self._canceller.close()
        self.dispatcher.close()
        for task in self._tasks:
            task.cancel()

    def next_position(self) -> int:
        self.last += 1
        return self.last

    # --- after a write ------------------------------------------------------------------------------------------------
    def written(self, unit: Unit) -> None:
        """Deliver what a unit contains, now that it is durable."""
        if unit.accepts or unit.promoted or unit.messages:
            self._deliver(unit)
        if (transition := unit.transition) is not None:
            self.dispatcher.committed(transition.id, transition.acknowledge, ended=unit.ended)
            if transition.effects is not NO_EFFECTS:
                self._note_effects(transition.effects, ended=unit.ended)
        if unit.granted or unit.woken:
            self._deliver_granted(unit)

    def _deliver(self, unit: Unit) -> None:
        for accept in unit.accepts:
            if accept.new:
                self._queue(accept)
        for sequence, start in unit.promoted:
            if start.key is None:
                self.dispatcher.queue(Delivery(start.id, start.handler, start, fresh=True, token=sequence))
            else:
                self._arm_queue_deadline(start)
        for route in unit.routes:
            if not self.dispatcher.holds(route.message):  # else it was read, for a worker that joined just now
                self._route(route)
        if unit.must_exist and not unit.routes:  # a duplicate, which may have been answered
            self.unanswered.difference_update(message.id for message in unit.messages)

    def _deliver_granted(self, unit: Unit) -> None:
        for sequence, id, data, checksum in unit.granted:
            if (start := self._start(id, data, checksum)) is not None:
                self.dispatcher.queue_granted(Delivery(id, start.handler, start, fresh=True, token=sequence))
        for id, handler in unit.woken:
            self._offer(Delivery(id, handler, Wake()))

    def _route(self, route: Route) -> None:
        delivery = Delivery(route.message.to, route.handler, route.message)
        if not self._cancels_unbegun(route, delivery):
            self._offer(delivery, begun=route.may_go)

    def _queue(self, accept: Accept) -> None:
        start = accept.start
        if accept.status == "scheduled":
            self._alarm.by(start.due)
        elif start.key is not None:
            self._arm_queue_deadline(start)
        else:
            self.dispatcher.queue(Delivery(start.id, start.handler, start, fresh=True, token=accept.sequence))

    def _arm_queue_deadline(self, start: Start) -> None:
        if (due := queue_deadline(start)) is not None:
            self._wake_by(due)

    def _wake_by(self, at: float) -> None:
        """Deliver wakes at this time, also if it has passed."""
        if at <= self._rung_to:
            self._rung_to = 0.0
        self._alarm.by(at)

    def _note_effects(self, effects: Effects, *, ended: bool) -> None:
        if ended and effects.wake is not None:
            self._wake_by(effects.wake)
        for answer in effects.answers:
            self.unanswered.discard(answer.message)

    # --- a worker joins -----------------------------------------------------------------------------------------------
    def join(self, handlers: Collection[str], deliver: Callable[[Delivery], None]) -> Member:
        member = self.dispatcher.join(handlers, deliver)
        self._tasks.spawn(self._catch_up(member))
        return member

    async def _catch_up(self, member: Member) -> None:
        """Offer what no worker holds: claims left by an earlier process, open messages, and what is due."""
        while member.open:
            try:
                await self._offer_open(member)
            except Exception as error:  # noqa: BLE001  logged and retried, whatever it is
                if isinstance(error, StoreClosed):
                    return
                _log_retry("reading what waits for a worker", error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._rung_to = 0.0
                self._ring()
                return

    async def _offer_open(self, member: Member) -> None:
        handlers = [*member.handlers]
        marks = ",".join("?" * len(handlers))

        def read(db: sqlite3.Connection) -> tuple[list[Any], list[Any]]:
            claimed = db.execute(
                f"SELECT id, handler FROM invocation WHERE status = 'running' AND {LIVELY} AND handler IN ({marks})",
                handlers,
            ).fetchall()
            open_messages = db.execute(
                "SELECT message.invocation, message.data, message.checksum, handler, status, sequence FROM message "
                f"JOIN invocation ON invocation.id = message.invocation WHERE answered = 0 AND handler IN ({marks})",
                handlers,
            ).fetchall()
            return claimed, open_messages

        claimed, open_messages = await self._read(read)
        for id, handler in claimed:
            if self.dispatcher.owner(id) is None:
                self._offer(Delivery(id, handler, Wake(), attempt=2))
        routes: list[Route] = []
        for to, data, checksum, handler, status, sequence in open_messages:
            if (message := self._message(to, data, checksum)) is not None:
                routes.append(Route.of(message, handler, status, sequence))
        for route in sorted(routes, key=lambda each: each.message.at):  # in the order sent
            message = route.message
            if not self.dispatcher.holds(message):
                self._offer(Delivery(message.to, route.handler, message, attempt=2), begun=route.may_go)

    # --- invocations that are set aside -------------------------------------------------------------------------------
    def _offer(self, delivery: Delivery, *, begun: bool = True) -> None:
        if delivery.id not in self._aside:
            self.dispatcher.offer(delivery, begun=begun)

    def _start(self, id: str, data: bytes, checksum: int) -> Start | None:
        """Return a start to deliver; None if its invocation is set aside."""
        try:
            start = start_of(self._path, id, data, checksum)
        except StoreError as error:
            self._aside.add(id, error)
            return None
        return None if id in self._aside else start

    def _message(self, to: str, data: bytes, checksum: int) -> Message | None:
        try:
            return message_of(self._path, to, data, checksum)
        except StoreError as error:
            self._aside.add(to, error)
            return None

    # --- cancelled before it has begun --------------------------------------------------------------------------------
    def _cancels_unbegun(self, route: Route, delivery: Delivery) -> bool:
        if route.has_begun or not settles_before_begin(route.message) or delivery.id in self._aside:
            return False
        return self._canceller.take(delivery, begun=route.may_go)

    async def _unbegun(self, id: str) -> Start | None:
        """Return the start of an invocation whose body cannot have begun, else None.

        A start that was queued before this process opened the file may have begun.
        """
        query = "SELECT status, sequence, revision, start, checksum FROM invocation WHERE id = ?"
        row = await self._read(lambda db: db.execute(query, (id,)).fetchone())
        if row is None or row[2] or row[0] not in ("scheduled", "pending"):
            return None
        is_queued = row[0] == "pending" and row[1] is not None
        if is_queued and row[1] <= self._opened_at:
            return None
        return self._start(id, row[3], row[4])

    # --- for the dispatcher -------------------------------------------------------------------------------------------
    async def _fetch(self, handler: str, after: int, limit: int) -> Page:
        rows = await self._read(
            lambda db: db.execute(
                "SELECT sequence, id, start, checksum FROM invocation WHERE status = 'pending' AND handler = ? "
                "AND sequence > ? ORDER BY sequence LIMIT ?",
                (handler, after, limit),
            ).fetchall()
        )
        found: list[Delivery] = []
        for sequence, id, data, checksum in rows:
            if (start := self._start(id, data, checksum)) is not None:
                attempt = 2 if sequence <= self._opened_at else 1
                found.append(Delivery(id, handler, start, attempt, fresh=attempt == 1, token=sequence))
        return Page(found, rows[-1][0] if rows else after, len(rows) < limit)

    def _forget(self, delivery: Delivery) -> None:
        if isinstance(delivery.item, Message):
            self.unanswered.discard(delivery.item.id)
            self._enqueue(Unit(done_messages=[delivery.item.id]))
        elif isinstance(delivery.item, Wake) and delivery.token is not None:
            self._enqueue(Unit(done_wakes=[(delivery.id, delivery.token)]))

    # --- due starts and wakes -----------------------------------------------------------------------------------------
    def _ring(self) -> None:
        if self._ringing:
            self._ring_again = True
            return
        self._ringing = True
        self._tasks.spawn(self._answer_ring())

    async def _answer_ring(self) -> None:
        try:
            await self._deliver_due()
        except StoreClosed:
            return
        except Exception as error:  # noqa: BLE001  logged and retried, whatever it is
            _log_retry("reading what is due", error)
            self._rung_to = 0.0
            self._alarm.by(self._clock.now() + RETRY_SECONDS)
        finally:
            self._ringing = False
        if self._ring_again:
            self._ring_again = False
            self._ring()

    async def _deliver_due(self) -> None:
        """Queue the delayed starts that are due, and deliver the wakes later than `_rung_to`, where the last run ended.

        A write that sets an earlier wake meanwhile resets `_rung_to` and the alarm: see `_wake_by`.
        """
        now = self._clock.now()
        rung_to, self._rung_to = self._rung_to, max(self._rung_to, now)

        def read(db: sqlite3.Connection) -> tuple[list[Any], list[Any], Any]:
            starts = db.execute(DUE_STARTS, (now, DUE_BATCH_LIMIT)).fetchall()
            wakes = db.execute(
                "SELECT id, handler, wake FROM invocation WHERE wake > ? AND wake <= ? ORDER BY wake",
                (rung_to, now),
            ).fetchall()
            following = db.execute(
                "SELECT min(at) FROM (SELECT min(due) AS at FROM invocation WHERE status = 'scheduled' AND due > ? "
                "UNION ALL SELECT min(wake) FROM invocation WHERE wake > ?)",
                (now, now),
            ).fetchone()[0]
            return starts, wakes, following

        starts, wakes, following = await self._read(read)
        for id, handler, at in wakes:
            if id not in self._aside:
                self.dispatcher.wake(Delivery(id, handler, Wake(), token=at))
        await self._queue_due(starts)
        if len(starts) == DUE_BATCH_LIMIT:
            self._ring()
        elif following is not None:
            self._alarm.by(following)

    async def _queue_due(self, rows: Sequence[tuple[str, bytes, int]]) -> None:
        due = [start for row in rows if (start := self._start(*row)) is not None]
        if due:
            first, self.last = self.last + 1, self.last + len(due)
            await self._enqueue(Unit(promoted=[*enumerate(due, first)]))


def _log_retry(what: str, error: Exception) -> None:
    log.error("%s failed, retrying in %g s: %s", what, RETRY_SECONDS, error, exc_info=error)
