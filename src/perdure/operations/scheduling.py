"""Carries out schedules: changes them when asked, and starts what is due.

A schedule is one document (`core.schedule.Record`), and all that is done to it goes by its revision. What is to be
started is written down first, together with the place up to which all ticks are decided; then it is started, under an
id that follows from the schedule and the tick; then it is written down that it was. So whatever any process does or
leaves undone, all of them go by the same decisions, and a process that ends half way is followed by another that starts
the same again, which changes nothing. Several workers do it at a time, and none of them is special.

What must not happen is that a run is purged before it is written down that it was started: it would be started again.
The sweep (`runtime.retention`) leaves alone what changed since then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from perdure.background import RateLimitedLog, Tasks
from perdure.core.ids import check_new_id
from perdure.core.journal import Status
from perdure.core.lifecycle import SETTLED
from perdure.core.schedule import (
    WAITING_LIMIT,
    Plan,
    Record,
    Run,
    arrange,
    carried_out,
    carried_over,
    check_schedule_name,
    delay_of,
    encode_record,
    is_same_plan,
    may_begin,
    must_cancel,
    tick_id,
    trigger_id,
)
from perdure.errors import (
    IdConflict,
    InvalidOption,
    LimitExceeded,
    PerdureError,
    RevisionConflict,
    ScheduleBusy,
    StoreClosed,
    StoreError,
    UnknownInvocation,
    WaitTimeout,
    unknown_schedule,
)
from perdure.operations.port import Operations, Submission
from perdure.operations.schedules import (
    Backfill,
    Change,
    PauseSchedule,
    ResumeSchedule,
    ScheduleInfo,
    Trigger,
    check_count,
    info_of,
    next_instants,
    time_of,
)
from perdure.operations.ticks import check_plan, due, ticks_after
from perdure.runtime.scheduled import SCHEDULES, read_record, scan_schedules
from perdure.stores.documents import Delete, Document, Put, Scan
from perdure.stores.port import Store

LOOK_SECONDS = 1.0
"""How often a worker reads all schedules, to hear of those that other processes have changed."""
FRESH_SECONDS = 5.0
"""How old a decision may be, in the hands of a process, for it to start a run: one that stood still reads again."""
AHEAD_SECONDS = 60.0
"""How far a schedule may be ahead of the clock before that is logged: the clock was set back, or was wrong."""
AT_ONCE_LIMIT = 50
"""Schedules that a worker carries out at the same time."""
NOTE_LENGTH_LIMIT = 1_000
"""Characters of the note of a pause."""

log = logging.getLogger("perdure.schedules")


class LocalOperations(Operations, Protocol):
    """The operations on a store that this process opens."""

    async def opened(self) -> Store:
        """Return the open store."""
        ...


class Kept(Struct, frozen=True):
    """A schedule, the revision of its document, and when that was read or written, by the store's clock."""

    name: str
    record: Record
    revision: int
    at: float


class Schedules:
    """The schedules of a store. `random` gives so many random bytes."""

    def __init__(self, operations: LocalOperations, random: Callable[[int], bytes]) -> None:
        self._operations = operations
        self._random = random
        self._on_duty: set[OnDuty] = set()
        self._log = RateLimitedLog(log)
        self._cancelled: dict[str, set[str]] = {}  # what this process has cancelled for runs that wait, by schedule

    @property
    def quiet(self) -> bool:
        """Report whether nothing is done here until a time comes, or something changes."""
        return all(each.resting for each in self._on_duty)

    # --- changing -----------------------------------------------------------------------------------------------------
    async def put(self, name: str, plan: Plan) -> bool:
        """Make a schedule, or change it from now on; return false if it is the same already."""
        check_schedule_name(name)
        check_plan(plan)
        while True:
            store = await self._operations.opened()
            now, kept = store.clock.now(), await self._read(name)
            if kept is not None and is_same_plan(kept.record.plan, plan):
                return False
            if kept is None:
                record = Record(plan, now, now, int(now))
            elif kept.record.plan.timing == plan.timing:
                record = replace(kept.record, plan=plan, changed_at=now)
            else:
                record = replace(self._retimed(kept, now), plan=plan, changed_at=now)
            if await self._write(name, record, 0 if kept is None else kept.revision) is not None:
                if kept is not None:
                    self._tell(name, (), record.missed - kept.record.missed)
                self._changed()
                return True

    async def change(self, name: str, change: Change) -> list[str]:
        """Tell a schedule something; return the ids of the runs that are started for it, now or later."""
        if isinstance(change, PauseSchedule):
            _check_note(change.note)
        id = await self._id_of(name, change)
        while True:
            kept = await self._found(name)
            record, ids = await self._told(kept, change, id)
            if record == kept.record:
                return ids
            if await self._write(name, record, kept.revision) is not None:
                stays = (*record.starting, *record.waiting)
                gone = [each for each in kept.record.waiting if each not in stays]
                self._tell(name, gone, record.missed - kept.record.missed)
                if ids:
                    await self.advance(name)
                self._changed()
                return ids

    async def _id_of(self, name: str, change: Change) -> str:
        """Return the id of a run that is triggered now."""
        if isinstance(change, Trigger) and change.id is not None:
            return check_new_id(change.id)
        return trigger_id(name, (await self._operations.opened()).clock.now(), self._random(4))

    async def _told(self, kept: Kept, change: Change, id: str) -> tuple[Record, list[str]]:
        record, now = kept.record, (await self._operations.opened()).clock.now()
        match change:
            case PauseSchedule(note):
                return replace(record, paused_at=now if record.paused_at is None else record.paused_at, note=note), []
            case ResumeSchedule():
                if record.paused_at is None:
                    return record, []
                return replace(self._carried_over(kept, now), paused_at=None, note=""), []
            case Trigger():
                return await self._triggered(kept, id, now), [id]
            case Backfill():
                return _backfilled(kept, change, now)

    async def _triggered(self, kept: Kept, id: str, now: float) -> Record:
        record = kept.record
        asked_before = {each.id for each in (*record.starting, *record.waiting)}.union(record.runs)
        if id in asked_before or await self._status(id) is not None:
            return record
        running = await self._running(record)
        placed, skipped = arrange(record, [Run(id, int(now), "trigger")], now, busy=bool(running))
        if all(each.id != id for each in skipped):
            return placed
        if record.plan.overlap == "queue":
            raise _too_many_waiting(kept.name)
        if running:
            other, why = running[-1], "has not ended: wait for it or cancel it"
        else:
            other, why = (*record.starting, *record.waiting)[0].id, "comes first"
        text = f"schedule {kept.name!r} skips what comes while a run goes on or waits, and {other!r} {why}"
        raise ScheduleBusy(text, name=kept.name, invocation_id=other)

    def _carried_over(self, kept: Kept, now: float) -> Record:
        """Return the record as of now, with the ticks that no worker has got to yet."""
        record, found, all_missed = kept.record, list[int](), 0
        while len(found) <= WAITING_LIMIT:
            instants, cursor, missed = _due(record, now)
            if not instants and not missed:
                break
            record, found, all_missed = replace(record, cursor=cursor), found + instants, all_missed + missed
        return carried_over(kept.name, kept.record, found, all_missed, now)

    def _retimed(self, kept: Kept, now: float) -> Record:
        """Return the record as of now, before it gets another timing."""
        try:
            return self._carried_over(kept, now)
        except InvalidOption as error:  # nobody here knows what was due by a time zone that this machine has not
            log.warning("schedule %r is changed, and ticks that were due before are left out: %s", kept.name, error)
            return replace(kept.record, cursor=max(kept.record.cursor, int(now)))

    async def delete(self, name: str) -> bool:
        """Remove a schedule; what it has started goes on. Return whether there was one."""
        check_schedule_name(name)
        (revision,) = await self._operations.write_documents(SCHEDULES, [Delete((name,))])
        self._cancelled.pop(name, None)
        self._changed()
        return revision > 0

    # --- looking ------------------------------------------------------------------------------------------------------
    async def describe(self, name: str) -> ScheduleInfo:
        """Return a schedule, with what runs of it."""
        kept = await self._found(name)
        store = await self._operations.opened()
        running = tuple(await self._running(kept.record))
        served = store.serves(kept.record.plan.handler)
        return info_of(name, kept.record, store.clock.now(), running=running, served=served)

    async def page(self, limit: int, after: str | None) -> list[ScheduleInfo]:
        """Return schedules in the order of their names; those that this release cannot read are left out."""
        store = await self._operations.opened()
        found: list[ScheduleInfo] = []
        beyond = None if after is None else (check_schedule_name(after),)
        while some := await store.documents.scan(SCHEDULES, Scan(after=beyond, limit=limit - len(found))):
            beyond = some[-1].key
            for each in some:
                try:
                    if (kept := self.kept(each, store.clock.now())) is not None:
                        found.append(info_of(kept.name, kept.record, store.clock.now()))
                except InvalidOption as error:  # such as a time zone that this machine does not know
                    self._log(("shown", each.key), "schedule %r cannot be shown: %s", each.key[0], error)
            if len(found) == limit:
                break
        return found

    async def times(self, name: str, count: int) -> list[float]:
        """Return the next times of a schedule, as if it were not paused."""
        check_count(count)
        kept = await self._found(name)
        now = (await self._operations.opened()).clock.now()
        return [each.timestamp() for each in next_instants(kept.record, now, count)]

    # --- its document -------------------------------------------------------------------------------------------------
    async def _found(self, name: str) -> Kept:
        kept = await self._read(check_schedule_name(name))
        if kept is None:
            raise unknown_schedule(name)
        return kept

    async def _read(self, name: str) -> Kept | None:
        store = await self._operations.opened()
        at = store.clock.now()
        (document,) = await store.documents.read(SCHEDULES, [(name,)])
        if document is None:
            return None
        kept = self.kept(document, at)
        if kept is None:
            raise StoreError(f"schedule {name!r} was written by a newer release: change it there, or delete it")
        return kept

    def kept(self, document: Document, at: float) -> Kept | None:
        """Return a schedule that was read; None, and a line in the log, if this release cannot read it."""
        record = read_record(document.value)
        if record is None:
            text = "schedule %r was written by a newer release, and is left alone here"
            self._log(("newer", document.key), text, document.key[0], level=logging.WARNING)
            return None
        return Kept(document.key[0], record, document.revision, at)

    async def _write(self, name: str, record: Record, revision: int) -> int | None:
        """Write a record, and return its new revision; None if another process has written since it was read."""
        writes = [Put((name,), encode_record(record), if_revision=revision)]
        try:
            (new,) = await self._operations.write_documents(SCHEDULES, writes)
        except RevisionConflict:
            return None
        return new

    def _changed(self) -> None:
        for each in self._on_duty:
            each.nudge()

    # --- carrying out -------------------------------------------------------------------------------------------------
    async def on_duty(self) -> None:
        """Carry out all schedules until cancelled: a duty of workers."""
        duty = OnDuty(self, self._operations, await self._operations.opened())
        self._on_duty.add(duty)
        try:
            await duty.run()
        finally:
            self._on_duty.discard(duty)

    async def advance(self, name: str, kept: Kept | None = None) -> Kept | None:
        """Decide what is due of a schedule, at most so much, and start it; return the schedule, None if it was deleted.

        After a long time more may be due: other schedules come first then.
        """
        store = await self._operations.opened()
        while True:
            kept = kept or await self._read(name)
            if kept is None:
                return None
            skipped, missed = list[Run](), 0
            if kept.record.starting:
                refused = await self._start(store, kept)
                if refused is None:
                    kept = None
                    continue
                decided = carried_out(kept.record, refused)
            else:
                decided, skipped, missed = await self._decided(name, kept.record, store.clock.now())
            if decided != kept.record:
                at = store.clock.now()
                revision = await self._write(name, decided, kept.revision)
                if revision is None:
                    kept = None
                    continue
                self._tell(name, skipped, missed)
                kept = Kept(name, decided, revision, at)
            if must_cancel(decided):
                await self._cancel(kept)
            if not decided.starting:
                return kept

    async def _decided(self, name: str, record: Record, now: float) -> tuple[Record, list[Run], int]:
        """Return the record with all ticks up to now decided, those that are skipped, and how many are missed."""
        instants, cursor, missed = _due(record, now)
        if not instants and not missed and not record.waiting:
            return record, [], 0
        running = [] if record.plan.overlap == "allow" else await self._running(record)
        runs = [Run(tick_id(name, instant), instant) for instant in instants]
        placed, skipped = arrange(record, runs, now, busy=bool(running))
        if instants or missed:
            placed = replace(placed, cursor=cursor, missed=placed.missed + missed)
        return placed, skipped, missed

    async def _start(self, store: Store, kept: Kept) -> list[str] | None:
        """Start what is to be started; return the ids that are refused. None: another process has written since."""
        refused: list[str] = []
        read_at = kept.at
        for run in kept.record.starting:
            if store.clock.now() > read_at + FRESH_SECONDS:
                read_at, found = store.clock.now(), await self._read(kept.name)
                if found is None or found.revision != kept.revision:
                    return None
            try:
                await self._operations.start(_submission(kept, run))
            except StoreError:
                raise
            except IdConflict as error:  # it was started before the schedule was changed
                log.warning("schedule %r: %s", kept.name, error)
            except PerdureError as error:
                log.error("schedule %r: %s cannot be started: %s", kept.name, run.id, error)
                refused.append(run.id)
        return refused

    async def _running(self, record: Record) -> list[str]:
        """Return those of the last runs that have not ended."""
        statuses = [(id, await self._status(id)) for id in record.runs]
        return [id for id, status in statuses if status is not None and status not in SETTLED]

    async def _status(self, id: str) -> Status | None:
        """Return the status of an invocation; None if there is none."""
        try:
            return (await self._operations.look(id)).status
        except UnknownInvocation:
            return None

    async def _cancel(self, kept: Kept) -> None:
        """Cancel what runs. Once is enough; when in doubt, a second time changes nothing."""
        told = self._cancelled.setdefault(kept.name, set())
        running = await self._running(kept.record)
        told.intersection_update(running)
        for id in running:
            if id not in told:
                try:
                    with contextlib.suppress(WaitTimeout):  # it is durable, and applied later
                        await self._operations.cancel(id, timeout=0)
                except StoreError:
                    raise
                except PerdureError as error:
                    log.info("schedule %r: %s", kept.name, error)  # it has ended meanwhile
                told.add(id)

    def _tell(self, name: str, skipped: Sequence[Run], missed: int) -> None:
        if missed:
            text = (
                "schedule %r: ticks were missed, %d of them: no worker got to them while they could be caught up with"
            )
            log.warning(text, name, missed)
        if skipped:
            text = "schedule %r: %s and %d more are skipped: an earlier run has not ended"
            values = (name, skipped[0].id, len(skipped) - 1)
            if len(skipped) == 1:
                text, values = text.replace(" and %d more are", " is"), values[:2]
            self._log(("skipped", name), text, *values, level=logging.WARNING)

    async def carry_out(self, kept: Kept) -> Kept | None:
        """Do what `advance` does, and log what fails: other schedules go on."""
        try:
            return await self.advance(kept.name, kept)
        except StoreClosed:
            raise
        except PerdureError as error:
            self._log(("failed", kept.name), "schedule %r cannot be carried out now: %s", kept.name, error)
        except Exception as error:  # noqa: BLE001  the others go on
            text = "schedule %r: unexpected exception, tried again later"
            self._log(("unexpected", kept.name), text, kept.name, exc_info=error)
        return kept


def _check_note(note: str) -> None:
    if len(note) > NOTE_LENGTH_LIMIT:
        text = f"the note has {len(note):,} characters where the limit is {NOTE_LENGTH_LIMIT:,}"
        raise LimitExceeded(text, size=len(note), limit=NOTE_LENGTH_LIMIT)
    try:
        note.encode()
    except UnicodeEncodeError as error:
        raise InvalidOption(f"the note {note[:40]!r} cannot be encoded as UTF-8: {error.reason}") from None


def next_tick(record: Record) -> float:
    """Return when the next tick is to be decided, in seconds since the Unix epoch; infinity if a pause comes first."""
    tick = next(ticks_after(record.plan.timing, record.cursor), math.inf)
    return tick if record.paused_at is None or tick <= record.paused_at else math.inf


def is_open(record: Record) -> bool:
    """Report whether something is to be started, now or when a run has ended."""
    return bool(record.starting) or may_begin(record)


def _due(record: Record, now: float) -> tuple[list[int], int, int]:
    """Return the ticks to decide now, the cursor after them, and how many are missed. A pause ends them."""
    until = int(now) if record.paused_at is None else min(int(now), int(record.paused_at))
    if until <= record.cursor:
        return [], record.cursor, 0
    instants, cursor, missed = due(record.plan.timing, record.cursor, until, now - record.plan.catch_up)
    return instants, cursor if instants or missed else record.cursor, missed


def _submission(kept: Kept, run: Run) -> Submission:
    plan = kept.record.plan
    late = delay_of(kept.name, run.instant, plan.jitter) if run.cause == "tick" else 0.0
    return Submission(
        run.id,
        plan.handler,
        plan.input,
        plan.digest,
        is_chosen=True,
        key=plan.key,
        delay=time_of(run.instant + late) if late else None,
        timeout=plan.timeout,
        tags=plan.tags,
        interface=plan.interface,
    )


def _backfilled(kept: Kept, asked: Backfill, now: float) -> tuple[Record, list[str]]:
    for name, at in (("start", asked.start), ("end", asked.end)):
        if at.tzinfo is None:
            raise InvalidOption(f"backfill({name}={at!r}): give a datetime with a time zone, as in datetime.now(UTC)")
    first, last = math.ceil(asked.start.timestamp()), int(asked.end.timestamp())
    if not 0 <= first <= last:
        raise InvalidOption(f"backfill({asked.start}, {asked.end}): the end must not be before the start")
    if last > now:
        raise InvalidOption(f"backfill({asked.start}, {asked.end}): the end must not be in the future")
    record = kept.record
    waits = {each.id for each in (*record.starting, *record.waiting)}
    found: list[Run] = []
    for instant in ticks_after(record.plan.timing, first - 1):
        if instant > last:
            break
        run = Run(tick_id(kept.name, instant), instant, "backfill")
        if run.id not in waits:
            found.append(run)
        if len(record.waiting) + len(found) > WAITING_LIMIT:
            raise _too_many_waiting(kept.name)
    placed = replace(record, waiting=(*record.waiting, *found))
    return placed, [each.id for each in found]


def _too_many_waiting(name: str) -> LimitExceeded:
    text = f"schedule {name!r}: more than {WAITING_LIMIT:,} runs of it would wait, which is the limit"
    return LimitExceeded(f"{text}: ask for fewer, or when some have ended", size=WAITING_LIMIT + 1, limit=WAITING_LIMIT)


class Known(Struct, frozen=True):
    """A schedule as a worker has read it, and when its next tick comes. `kept` is None if it cannot be carried out."""

    revision: int
    kept: Kept | None = None
    tick: float = math.inf


class OnDuty:
    """One worker's part in carrying out the schedules of a store."""

    def __init__(self, schedules: Schedules, operations: Operations, store: Store) -> None:
        self._schedules = schedules
        self._operations = operations
        self._store = store
        self._nudged = asyncio.Event()
        self._is_resting = False
        self._known: dict[str, Known] = {}
        self._watched: dict[str, str] = {}  # the run that is watched for its end, by schedule
        self._watches = Tasks(log)
        self._log = RateLimitedLog(log)

    @property
    def resting(self) -> bool:
        """Whether it waits for a time, or a change."""
        return self._is_resting and not self._nudged.is_set()

    def nudge(self) -> None:
        """Look again: something has changed, or a time has come."""
        self._nudged.set()

    async def run(self) -> None:
        """Carry out schedules until cancelled."""
        try:
            while True:
                self._nudged.clear()
                await self._look()
                await self._rest()
        finally:
            await self._watches.cancel()

    async def _look(self) -> None:
        """Read all schedules, and carry out those for which there is something to do."""
        now, known_before = self._store.clock.now(), self._known
        self._known = {}
        async for document in scan_schedules(self._store):
            known = known_before.get(document.key[0])
            if known is None or known.revision != document.revision:
                known = self._known_of(document, now)
            self._known[document.key[0]] = known
        self._watched = {name: id for name, id in self._watched.items() if name in self._known}
        to_do = [
            replace(known.kept, at=now)
            for known in self._known.values()
            if known.kept is not None and (is_open(known.kept.record) or known.tick <= self._store.clock.now())
        ]
        for first in range(0, len(to_do), AT_ONCE_LIMIT):
            some = to_do[first : first + AT_ONCE_LIMIT]
            done = await asyncio.gather(*map(self._schedules.carry_out, some))
            for before, kept in zip(some, done, strict=True):
                if kept is not None:
                    now = self._store.clock.now()
                    known = self._known[kept.name] = self._with_tick(kept, now)
                    if known.tick <= now and kept.revision != before.revision:
                        self.nudge()  # there was more to decide than is decided at once
                    self._watch(kept)

    def _known_of(self, document: Document, now: float) -> Known:
        kept = self._schedules.kept(document, now)
        return Known(document.revision) if kept is None else self._with_tick(kept, now)

    def _with_tick(self, kept: Kept, now: float) -> Known:
        try:
            tick = next_tick(kept.record)
        except InvalidOption as error:
            self._log(("timing", kept.name), "schedule %r is not carried out by this worker: %s", kept.name, error)
            return Known(kept.revision)
        if kept.record.cursor > now + AHEAD_SECONDS:
            text = "schedule %r goes on at %s, since the clock was once there; delete it and put it again to go on now"
            at = time_of(kept.record.cursor).isoformat()
            self._log(("ahead", kept.name), text, kept.name, at, level=logging.WARNING)
        return Known(kept.revision, kept, tick)

    def _watch(self, kept: Kept) -> None:
        """Watch the last run for its end, where another waits for that. What else may run is looked at as ever."""
        if not (kept.record.waiting and kept.record.runs):
            self._watched.pop(kept.name, None)
        elif self._watched.get(kept.name) != (last := kept.record.runs[-1]):
            self._watched[kept.name] = last
            self._watches.spawn(self._until_ended(last), name=f"watch {last}")

    async def _until_ended(self, id: str) -> None:
        try:
            async for _ in self._operations.watch(id):
                pass
        except PerdureError as error:
            log.debug("run %s is not watched: %s", id, error)
        self.nudge()

    async def _rest(self) -> None:
        """Wait for a time, a change here, or the next look for changes elsewhere."""
        now = self._store.clock.now()
        due = min((each.tick for each in self._known.values() if each.tick > now), default=math.inf)
        timer = self._store.clock.call_at(due, self.nudge) if due < math.inf else None
        self._is_resting = True
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._nudged.wait()
        except TimeoutError:
            pass
        finally:
            self._is_resting = False
            if timer is not None:
                timer.cancel()
