"""Implements the Store protocol, on the loop. The package's docstring has the overview."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

from perdure.background import Tasks
from perdure.core.effects import NO_EFFECTS
from perdure.core.journal import Answer, Message, Outcome, Start, encode_frame, encode_start
from perdure.errors import StoreClosed, StoreDamaged, StoreError
from perdure.stores.finite import check_effects, check_finite, check_message
from perdure.stores.local.dispatch import Member
from perdure.stores.notices import CHANGES_LIMIT, Feed, Notices
from perdure.stores.port import (
    KEY_QUEUE_LIMIT,
    LEASE_SECONDS,
    PAYLOAD_LIMIT_BYTES,
    Committed,
    Delivery,
    Filter,
    Transition,
    Wake,
    gone_row,
)
from perdure.stores.sql.index import SETTLED
from perdure.stores.sqlite.backup import Backups
from perdure.stores.sqlite.checked import ROW
from perdure.stores.sqlite.deliveries import Deliveries
from perdure.stores.sqlite.faults import about, explained
from perdure.stores.sqlite.file import Opened, open_file, refuse_lost
from perdure.stores.sqlite.keys import Keys
from perdure.stores.sqlite.lock import Lock, check_path
from perdure.stores.sqlite.reader import Served, SqliteReader
from perdure.stores.sqlite.rewriting import Write
from perdure.stores.sqlite.schema import NOTHING_OPEN
from perdure.stores.sqlite.unit import Accept, Unit
from perdure.stores.sqlite.writer import Writer

ROWS_LIMIT = 500
"""Rows that are read by id in one query at most."""
PURGE_FRAMES_LIMIT = 2_000
"""Frames that one purge removes at most, or else a single journal: other writes wait for it."""

log = logging.getLogger("perdure.sqlite")


class SqliteStore(SqliteReader):
    """A store in one SQLite file, served by this process alone."""

    def __init__(
        self, path: str, *, payload_limit: int = PAYLOAD_LIMIT_BYTES, key_queue_limit: int = KEY_QUEUE_LIMIT
    ) -> None:
        super().__init__(path, payload_limit=payload_limit, key_queue_limit=key_queue_limit)
        self._notices = Notices()
        self._deliveries = Deliveries(
            self.path, self.clock, self._read, self._enqueue, self._aside, self.commit, self.counters
        )
        self._changed: dict[str, bool] = {}  # ids of changed rows that a feed covers, in order; true: perhaps purged
        self._telling = False
        self._units: list[Unit] = []
        self._flush_scheduled = False
        self._tasks = Tasks(log)
        self._backups = Backups(self.path)

    # --- open and close -----------------------------------------------------------------------------------------------
    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        opening = self._reading.run(self._open_files)
        try:
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._close_files)  # the thread goes on, and what it opened is then closed
            raise
        except BaseException:
            await self._reading.close()
            raise
        self.secret = opened.secret
        self._deliveries.open(opened.sequence)
        self._open = True

    def _open_files(self) -> Opened:
        """Take the lock and open the file, in the reading thread. A failure leaves nothing open."""
        check_path(self.path)
        refuse_lost(self.path)
        lock = Lock.take(self.path)
        source: Served | None = None
        try:
            opened = open_file(self.path, self._aside)
            source = Served(self.path)
            keys = Keys(self.path, self.key_queue_limit, self._aside)
            with explained(self.path):
                self._writer = Writer(self.path, opened, self._loop, self._written, self._lose, keys, self.clock.now)
        except BaseException:
            if source is not None:
                source.close()
            lock.release()
            raise
        self._lock = lock
        self._reading.use(source)
        return opened

    def _close_files(self, opening: asyncio.Future[Opened]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._writer.close()
            self._tasks.spawn(self._release_files())

    async def _release_files(self) -> None:
        await self._reading.close()
        self._lock.release()

    async def aclose(self) -> None:
        if not self._open:
            return
        if os.getpid() != self._pid:
            self._open = False  # the threads, the connections and the lock are the parent's
            return
        self._flush()
        self._open = False
        self._deliveries.close()
        await self._backups.end()
        await self._loop.run_in_executor(None, self._writer.close)
        self._notices.fail(StoreClosed(about(self.path, "the store is closed")))
        self.streams.followers.tell_all()
        await self._release_files()

    def _lose(self, why: StoreError) -> None:
        """Refuse everything from now on: the file was moved, removed or replaced."""
        self._lost = why
        self._lock.keep_log()  # the file there now may be a backup, to which our log does not belong
        self._notices.fail(StoreDamaged(str(why)))
        self.streams.followers.tell_all()
        self._deliveries.close()

    # --- writing ------------------------------------------------------------------------------------------------------
    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        self._check()
        return self._enqueue(Unit(accepts=[self._accept(start) for start in starts], strict=True))

    def post(self, message: Message, /) -> asyncio.Future[None]:
        self._check()
        check_message(message)
        self._aside.check(message.to)
        self._deliveries.unanswered.add(message.id)
        return self._enqueue(Unit(messages=[message], must_exist=True))

    def commit(self, transition: Transition, told: Committed, /) -> None:
        if not self._open:
            self._loop.call_soon(told, 0, StoreClosed(about(self.path, "the store is closed")))
            return
        try:
            self._put(self._unit_of(transition, told))
        except Exception as error:  # noqa: BLE001  reported to `told` instead
            self._loop.call_soon(told, 0, error)

    def _unit_of(self, transition: Transition, told: Committed) -> Unit:
        effects, frame, data = transition.effects, transition.frame, None
        if effects is not NO_EFFECTS:
            check_effects(transition.id, effects)
        if frame is not None:
            data = encode_frame(frame)
            check_finite(data, frame)
        unit = Unit(
            accepts=[self._accept(start) for start in effects.starts] if effects.starts else (),
            transition=transition,
            ended=transition.released or (frame is not None and frame.outcome is not None),
            told=told,
            frame=data,
            messages=effects.messages,
        )
        if effects.enlist is not None:
            unit.position = self._deliveries.next_position()
        for delivery in transition.acknowledge:
            if type(delivery.item) is Message:
                unit.done_messages = (*unit.done_messages, delivery.item.id)
            elif delivery.token is not None and transition.status is None and type(delivery.item) is Wake:
                unit.done_wakes = (*unit.done_wakes, (delivery.id, delivery.token))  # a change of status replaces it
        return unit

    def _accept(self, start: Start) -> Accept:
        data = encode_start(start)
        check_finite(data, start)
        status = "pending" if start.is_due(self.clock.now()) else "scheduled"
        return Accept(start, data, status, self._deliveries.next_position())

    def _hand_over(self, unit: Unit) -> asyncio.Future[Any]:
        self._check()
        return self._enqueue(unit)

    def _enqueue(self, unit: Unit) -> asyncio.Future[Any]:
        unit.future = future = self._loop.create_future()
        self._put(unit)
        return future

    def _put(self, unit: Unit) -> None:
        self._units.append(unit)
        if not self._flush_scheduled:
            # The units of one iteration of the loop go to the writer together.
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        units, self._units = self._units, []
        if units:
            self._writer.put(units)

    def _written(self, units: Sequence[Unit], took: float) -> None:
        """Act on what is durable: deliver starts and messages, and resolve futures. Runs on the loop."""
        self.counters.transactions.observe(took)
        self.counters.batches.observe(len(units))
        for unit in units:
            try:
                self._act_on(unit)
            except Exception as error:  # noqa: BLE001  a callback failed: the other units go on
                text = about(self.path, f"a callback after the write of {unit.about()} failed")
                self._loop.call_exception_handler({"message": text, "exception": error})
        if self._notices.watched and self._open:
            self._note_changes(units)
        self._deliveries.dispatcher.pump()

    def _act_on(self, unit: Unit) -> None:
        if unit.error is not None:
            self._deliveries.unanswered.difference_update(message.id for message in unit.messages)
        elif self._open:
            self.counters.written_bytes += unit.size
            try:
                self._deliveries.written(unit)
                self.streams.written(unit)
                if (transition := unit.transition) is not None and (unit.ended or transition.effects.answers):
                    self._notify(transition)
            except Exception:
                log.exception("%s", about(self.path, f"delivering after the write of {unit.about()} failed"))
        if (transition := unit.transition) is not None:
            told = unit.told
            told(transition.expected + (unit.frame is not None), unit.error)
        elif (future := unit.future) is not None and not future.done():
            if unit.error is not None:
                future.set_exception(unit.error)
            elif unit.purge:
                future.set_result(unit.purged)
            elif unit.documents is not None:
                future.set_result(unit.documents.revisions)
            else:
                future.set_result([accept.new for accept in unit.accepts] if unit.strict else None)

    def _notify(self, transition: Transition) -> None:
        """Tell the outcome and the answers to those who wait for them."""
        if (outcome := transition.outcome) is not None:
            self._notices.settled(transition.id, outcome)
        for answer in transition.effects.answers:
            self._notices.answered(answer)

    # --- changes ------------------------------------------------------------------------------------------------------
    def _note_changes(self, units: Sequence[Unit]) -> None:
        """Push changed rows to their feeds. They are read from the file, since a unit has only part of a row."""
        for unit in units:
            if unit.error is None:
                ids = [accept.start.id for accept in unit.accepts if accept.new]
                ids += [start.id for _, start in unit.promoted]
                if (transition := unit.transition) is not None and transition.status is not None:
                    ids.append(transition.id)
                for id in ids:
                    if self._notices.wants(id):
                        self._changed.pop(id, None)
                        self._changed[id] = False
                if unit.purged:
                    self._changed.update((id, True) for id, _ in unit.purge if self._notices.wants(id))
        if len(self._changed) > CHANGES_LIMIT:
            self._changed.clear()
            self._notices.missed()
        if self._changed and not self._telling:
            self._telling = True
            self._tasks.spawn(self._tell_changes())

    async def _tell_changes(self) -> None:
        try:
            while self._changed:
                ids = [*self._changed][:ROWS_LIMIT]
                purged = {id for id in ids if self._changed.pop(id)}
                made = self._notices.feeds_made
                marks = ",".join("?" * len(ids))
                query = f"SELECT {ROW} FROM invocation WHERE id IN ({marks})"
                found = await self._read(lambda db, query=query, ids=ids: db.execute(query, ids).fetchall())
                rows = {row.id: row for each in found if (row := self._listed(each)) is not None}
                there = {each[0] for each in found}
                for id in ids:
                    if id in rows:
                        self._notices.changed(rows[id], made)
                    elif id in purged and id not in there:
                        self._notices.changed(gone_row(id), made)
        except Exception:
            self._notices.missed()  # readers of feeds then list again, and get the error
            raise
        finally:
            self._telling = False

    # --- deliveries ---------------------------------------------------------------------------------------------------
    def subscribe(
        self,
        handlers: Collection[str],
        deliver: Callable[[Delivery], None],
        *,
        partitions: Collection[int] | None = None,
        lost: Callable[[str], None] | None = None,
        lease: float = LEASE_SECONDS,
    ) -> Member:
        self._check()
        return self._deliveries.join(handlers, deliver)

    def serves(self, handler: str, /) -> bool | None:
        return self._deliveries.dispatcher.serves(handler)

    def served(self) -> set[str]:
        return self._deliveries.dispatcher.served()

    # --- waiting ------------------------------------------------------------------------------------------------------
    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        self._check()
        return self._notices.watch(id)

    def events(self, filter: Filter, /) -> Feed:
        self._check()
        return self._notices.events(filter)

    async def answer(self, message_id: str, /) -> Answer:
        self._check()
        waiting = self._notices.await_answer(message_id)
        if message_id in self._deliveries.unanswered:
            return await waiting
        row = await self._read(
            lambda db: db.execute("SELECT answer FROM message WHERE id = ? AND answered = 1", (message_id,)).fetchone()
        )
        if row is not None:
            waiting.cancel()
            return Answer(message_id, row[0])
        return await waiting

    async def purge(self, before: float, /, *, limit: int, id: str | None = None) -> int:
        query, values = (_DUE, (before, limit)) if id is None else (_DUE_OF_ID, (id, before))
        found = await self._read(lambda db: db.execute(query, values).fetchall())
        chosen: list[tuple[str, float]] = []
        frames = 0
        for each, revision in found:
            frames += revision
            if chosen and frames > PURGE_FRAMES_LIMIT:
                break
            if not self._deliveries.dispatcher.has(each):
                chosen.append((each, before))
        return await self._enqueue(Unit(purge=chosen)) if chosen else 0

    async def _write_again(self, writes: Sequence[Write], *, is_last: bool) -> None:
        await self._enqueue(Unit(rewrites=writes, checkpoint=is_last))

    async def backup(self, target: str, /) -> None:
        """Copy a snapshot of the file to `target`, which must not exist, while it is served."""
        self._check()
        await self._backups.take(target)


# INDEXED BY, since SQLite would otherwise sort all settled invocations, for each batch of a sweep.
_DUE = (
    f"SELECT id, revision FROM invocation INDEXED BY invocation_settled WHERE {SETTLED} AND updated_at <= ? "
    f"AND {NOTHING_OPEN} ORDER BY updated_at LIMIT ?"
)
_DUE_OF_ID = f"SELECT id, revision FROM invocation WHERE id = ? AND {SETTLED} AND updated_at <= ? AND {NOTHING_OPEN}"
