"""The memory store: the Store protocol as an executable specification.

It writes in the order that every store must keep (frame, then effects, acknowledgements last), in separate writes, so
that a test can end the process between any two of them: `hook` is called before each write with its name, and may raise
`Crashed`. After a crash the store refuses everything until `restart`, which forgets what a process would hold in memory
and keeps what a disk would.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

from perdure.core.busy import called_for
from perdure.core.effects import NO_EFFECTS, Effects, Enlist, Release
from perdure.core.journal import (
    Answer,
    Frame,
    Message,
    Outcome,
    Start,
    Status,
    decode_frame,
    encode_frame,
    settles_before_begin,
)
from perdure.core.lifecycle import SETTLED
from perdure.counters import StoreCounters
from perdure.errors import StoreClosed, unknown
from perdure.stores.awakeables import Awakeable, AwakeableFilter, merged, passes
from perdure.stores.clock import Alarm, SystemClock
from perdure.stores.finite import check_effects, check_finite, check_message, check_starts
from perdure.stores.liveness import Contents, breaches
from perdure.stores.local.canceller import Canceller
from perdure.stores.local.dispatch import Dispatcher, Member, Page
from perdure.stores.local.documents import MemoryDocuments
from perdure.stores.local.streams import MemoryStreams
from perdure.stores.notices import Feed, Notices
from perdure.stores.port import (
    KEY_QUEUE_LIMIT,
    LEASE_SECONDS,
    MINUTE_SECONDS,
    PAYLOAD_LIMIT_BYTES,
    Clock,
    Committed,
    Counts,
    Delivery,
    Filter,
    Journal,
    Key,
    Minute,
    Row,
    Transition,
    Wake,
    conflict,
    gone_row,
    id_conflict,
    identity_of,
    key_queue_full,
    matches,
)
from perdure.stores.rewriting import PART_LIMIT, Part, Rewriting, rewritten_frame

A = TypeVar("A")
T = TypeVar("T")

SECRET_BYTES = 32
"""Random bytes by which awakeables and links of one store are told from those of another."""
_NONE: frozenset[str] = frozenset()

Hook = Callable[[str, str], None]
"""Called before each write with its kind and the invocation's id; may raise `Crashed`."""


class Crashed(BaseException):
    """Simulates the end of the process."""


class MemoryStore:
    """Holds everything in dictionaries. `clock` is the system's unless a test brings a virtual one."""

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        payload_limit: int = PAYLOAD_LIMIT_BYTES,
        key_queue_limit: int = KEY_QUEUE_LIMIT,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.clocks_apart = 0.0
        self.secret = os.urandom(SECRET_BYTES)
        self.payload_limit = payload_limit
        self.key_queue_limit = key_queue_limit
        self.counters = StoreCounters()
        self.hook: Hook | None = None
        self.writes = 0
        self._rows: dict[str, Row] = {}
        self._digests: dict[str, bytes] = {}
        self._queued: dict[str, tuple[int, Start]] = {}  # by id, in the order of acceptance
        self._scheduled: dict[str, Start] = {}
        self._starts: dict[str, Start] = {}
        self._frames: dict[str, list[bytes]] = {}
        self._awakeables: dict[str, list[Awakeable]] = {}
        self._messages: dict[str, Message] = {}
        self._answers: dict[str, Answer] = {}
        self._mail: dict[str, set[str]] = {}  # ids of all messages that an invocation got
        # Invocations whose index lags behind their journal, with the ids that their last frame starts. All effects of
        # a frame are done when the index is written; until then a worker may redo them.
        self._undone: dict[str, frozenset[str]] = {}
        self._wakes: dict[str, float] = {}
        self._keys: dict[str, Key] = {}
        self._lines: dict[str, dict[tuple[str, int], int]] = {}  # by key: waiting ids with their positions
        self._sequence = 0
        self.documents = MemoryDocuments(self._check, self._write)
        self.streams = MemoryStreams(self._check, self._write, self._may_write)
        self._begin()

    def _begin(self) -> None:
        """Set up the state that a process holds in memory."""
        self._down = False
        self._pumping = False
        self._opened_at = self._sequence
        self._read_due()
        self._notices = Notices()
        self._dispatcher = self._make_dispatcher()
        self._canceller = Canceller(self._dispatcher, self.clock, self._unbegun, self.commit, self.counters)
        self._alarm = Alarm(self.clock, self._ring)

    def _make_dispatcher(self) -> Dispatcher:
        return Dispatcher(self._fetch, self._forget)

    def restart(self) -> None:
        """Begin again as a new process, with what was written."""
        self._end("it was restarted")
        self._begin()

    def _end(self, why: str) -> None:
        self._down = True
        self._alarm.cancel()
        self._canceller.close()
        self._dispatcher.close()
        self._notices.fail(StoreClosed(f"memory: {why}"))
        self.streams.followers.tell_all()

    async def open(self) -> None:
        self._arm()

    async def aclose(self) -> None:
        self._end("it was closed")

    # --- starts and messages ------------------------------------------------------------------------------------------
    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        return self._durably(self._submit, starts)

    def _submit(self, starts: Sequence[Start]) -> list[bool]:
        together: dict[str, bytes] = {}
        joining: dict[str, int] = {}
        check_starts(starts)
        for start in starts:
            identity = identity_of(start)
            if identity != (self._digests.get(start.id) or together.setdefault(start.id, identity)):
                raise id_conflict(start.id)
            if start.key is not None:
                joining[start.key] = joining.get(start.key, 0) + (start.id not in self._rows)
                self._check_line(start.key, joining[start.key])
        return [self._accept(start, together.get(start.id)) for start in starts]

    def _check_line(self, key: str, joining: int) -> None:
        ahead = len(self._lines.get(key, ())) + joining - 1
        if key not in self._keys or self._keys[key].holder is None:
            ahead -= 1  # the first gets the key
        if joining and ahead >= self.key_queue_limit:
            raise key_queue_full(key, ahead)

    def _accept(self, start: Start, identity: bytes | None = None) -> bool:
        if start.id in self._rows:
            return False
        due = self._due_at(start)  # before `now`: that of a start without a delay may be this very moment
        now = self.clock.now()
        self._write("start", start.id)
        self._digests[start.id] = identity or identity_of(start)
        self._starts[start.id] = start
        status: Status = "scheduled" if due > now else "pending"
        self._index(Row(start.id, start.handler, status, start.key, start.at, now, start.due, start.tags))
        if status == "scheduled":
            self._scheduled[start.id] = start
            self._note_due(due, start.id)
        else:
            self._enqueue(start)
        return True

    def _due_at(self, start: Start) -> float:
        """Return when a start is due by the clock of this store."""
        return min(start.due, self.clock.now()) if start.is_due(start.at) else start.due

    def _enqueue(self, start: Start) -> None:
        self._sequence += 1
        self._queued[start.id] = (self._sequence, start)
        if start.key is not None:
            self._enter_line(start, start.key)
            if start.timeout is not None:  # so that it times out even if it never gets the key
                self._wakes[start.id] = self._due_at(start) + start.timeout
                self._note_due(self._wakes[start.id], start.id)
            self._grant(start.key)
        else:
            self._dispatcher.queue(Delivery(start.id, start.handler, start, fresh=True, token=self._sequence))
            self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pumping:  # once for all that is queued in this round of the loop
            self._pumping = True
            self._soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        self._dispatcher.pump()

    # --- keys ---------------------------------------------------------------------------------------------------------
    def _enter_line(self, start: Start, key: str) -> None:
        """Put a start into the queue of its key, unless it is turned away, and do what it calls for: in one write."""
        holder = self._keys.get(key, Key()).holder
        ahead = [] if holder is None else [holder]
        ahead += [id for id, _ in self._lines.get(key, ())]
        messages = called_for(start, ahead, self.clock.now())
        for message in messages:
            self._keep(message)
        if all(message.to != start.id for message in messages):
            self._lines.setdefault(key, {})[start.id, 0] = self._sequence

    def _grant(self, name: str) -> None:
        """Grant a free key to the first in its queue."""
        key, line = self._keys.get(name, Key()), self._lines.get(name)
        if key.holder is not None or not line:
            return
        (id, generation), sequence = next(iter(line.items()))
        self._write("key", id)
        self._leave_line(name, id, generation)
        self._keys[name] = Key(id, generation, key.state, sequence)
        if generation == 0 and id in self._queued:
            start = self._queued[id][1]
            self._dispatcher.queue_granted(Delivery(id, start.handler, start, fresh=True, token=sequence))
            self._pump_soon()
        else:
            self._soon(partial(self._dispatcher.offer, Delivery(id, self._rows[id].handler, Wake())))

    def _release(self, id: str, release: Release) -> None:
        key = self._keys.get(release.key, Key())
        if key.granted_to(id, release.generation):
            self._write("key", id)
            state = key.state if release.state is None else release.state
            if state:
                self._keys[release.key] = Key(state=state)
            else:
                del self._keys[release.key]
            self._grant(release.key)
        elif (id, release.generation) in self._lines.get(release.key, ()):
            self._write("key", id)
            self._leave_line(release.key, id, release.generation)
            self._queued.pop(id, None)

    def _enlist(self, id: str, enlist: Enlist) -> None:
        line = self._lines.setdefault(enlist.key, {})
        key = self._keys.get(enlist.key, Key())
        if (id, enlist.generation) not in line and not key.granted_to(id, enlist.generation):
            self._write("key", id)
            self._sequence += 1
            line[id, enlist.generation] = self._sequence
            self._grant(enlist.key)

    def _leave_line(self, name: str, id: str, generation: int) -> None:
        line = self._lines[name]
        del line[id, generation]
        if not line:
            del self._lines[name]

    def _waits_in_line(self, id: str) -> bool:
        """Report whether a start that has not begun does not have its key: it waits for it, or is turned away."""
        key = self._rows[id].key
        return key is not None and id in self._queued and not self._keys.get(key, Key()).granted_to(id, 0)

    async def key(self, name: str, /) -> Key:
        self._check()
        return self._keys.get(name, Key())

    def post(self, message: Message, /) -> asyncio.Future[None]:
        return self._durably(self._post, message)

    def _post(self, message: Message) -> None:
        check_message(message)
        if message.to not in self._rows:
            raise unknown(message.to)
        self._put(message)

    def _put(self, message: Message) -> None:
        row = self._rows.get(message.to)
        if row is None or message.id in self._messages or message.id in self._answers:
            return
        self._write("message", message.to)
        self._keep(message)

    def _keep(self, message: Message) -> None:
        self._messages[message.id] = message
        self._mail.setdefault(message.to, set()).add(message.id)
        self._soon(partial(self._route, message, 1))

    def _route(self, message: Message, attempt: int) -> None:
        row = self._rows[message.to]
        is_put_off = message.to in self._scheduled or self._waits_in_line(message.to)
        has_start_to_come = row.status in ("pending", "scheduled") and (is_put_off or message.to in self._queued)
        begun = not has_start_to_come or (is_put_off and settles_before_begin(message))
        delivery = Delivery(message.to, row.handler, message, attempt)
        if has_start_to_come and settles_before_begin(message) and self._canceller.take(delivery, begun=begun):
            return
        self._dispatcher.offer(delivery, begun=begun)

    async def _unbegun(self, id: str) -> Start | None:
        """Return the start of an invocation whose body cannot have begun: none before this process opened the store."""
        if id in self._frames or id not in self._rows:
            return None
        if id in self._scheduled or self._waits_in_line(id):
            return self._starts[id]
        sequence, start = self._queued.get(id, (0, None))
        return start if sequence > self._opened_at else None

    async def answer(self, message_id: str, /) -> Answer:
        self._check()
        known = self._answers.get(message_id)
        return known if known is not None else await self._notices.await_answer(message_id)

    def _may_write(self, id: str) -> bool:
        """Report whether a step of an invocation may write to its streams."""
        row = self._rows.get(id)
        return row is not None and row.status not in SETTLED

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
        member = self._dispatcher.join(handlers, deliver)
        self._offer_what_waits(member)
        return member

    def _offer_what_waits(self, member: Member) -> None:
        """Offer a member that has joined what no other worker holds."""
        for id, row in self._rows.items():
            if row.handler in member.handlers and row.status == "running" and self._dispatcher.owner(id) is None:
                self._soon(partial(self._dispatcher.offer, Delivery(id, row.handler, Wake(), attempt=2)))
        for message in [*self._messages.values()]:
            row = self._rows[message.to]
            if row.handler in member.handlers and not self._dispatcher.holds(message):
                if row.id in self._queued and not self._waits_in_line(row.id) and not self._dispatcher.owner(row.id):
                    self._route(message, 2)  # it is parked, and so comes with its start, which may go out at once
                else:
                    self._soon(partial(self._route, message, 2))
        for key in self._lines:
            self._soon(partial(self._grant, key))  # its process may have died just before
        self._read_due()
        self._arm()

    async def _fetch(self, handler: str, after: int, limit: int) -> Page:
        found = [
            Delivery(id, handler, start, 2 if sequence <= self._opened_at else 1, id not in self._frames, sequence)
            for id, (sequence, start) in self._queued.items()
            if start.handler == handler and sequence > after and not self._waits_in_line(id)
        ]
        starts = found[:limit]
        return Page(starts, starts[-1].token if starts else after, len(found) < limit)

    def _forget(self, delivery: Delivery) -> None:
        match delivery.item:
            case Start():
                self._write("acknowledge", delivery.id)
                self._queued.pop(delivery.id, None)
            case Message(id=message_id):
                self._write("acknowledge", delivery.id)
                self._messages.pop(message_id, None)
            case Wake():
                self._forget_wake(delivery)

    def _forget_wake(self, delivery: Delivery) -> None:
        """Forget a wake, unless another was set meanwhile."""
        if delivery.token is not None and self._wakes.get(delivery.id) == delivery.token:
            self._write("wake", delivery.id)
            del self._wakes[delivery.id]

    # --- transitions --------------------------------------------------------------------------------------------------
    def commit(self, transition: Transition, told: Committed, /) -> None:
        revision, error = 0, None
        try:
            self._check()
            revision = self._commit(transition)
        except Exception as failed:  # noqa: BLE001  it is told instead
            error = failed
        asyncio.get_running_loop().call_soon(told, revision, error)

    def _commit(self, transition: Transition) -> int:
        id, frame, effects = transition.id, transition.frame, transition.effects
        outcome = None if frame is None else frame.outcome
        if effects is not NO_EFFECTS:
            check_effects(id, effects)
        if frame is not None:
            self._append(id, transition.expected, frame, effects)
        if effects is not NO_EFFECTS:
            self._do(id, effects)
        ended = transition.released or outcome is not None
        # A wake is replaced after the effects, like an acknowledgement: it may be what redoes them.
        sets_wake = ended and effects.wake is not None
        if ended and effects.wake is not None:
            self._set_wake(id, effects.wake)
        told = outcome
        if frame is None and transition.status in SETTLED and id in self._undone:
            told = decode_frame(self._frames[id][-1], id).outcome  # it could not be seen before
        self._change_index(transition)
        if ended and effects.wake is None and id in self._wakes:
            self._write("wake", id)
            del self._wakes[id]
        if outcome is not None:
            self._scheduled.pop(id, None)  # cancelled before it was due
            self._queued.pop(id, None)  # ... or before a worker had it
        for delivery in transition.acknowledge:
            if not (sets_wake and isinstance(delivery.item, Wake)):  # it may be set for the same time again
                self._forget(delivery)
        if told is not None:
            self._soon(partial(self._notices.settled, id, told))
        self._dispatcher.committed(id, transition.acknowledge, ended=ended)  # before any caller hears of it
        return len(self._frames[id])

    def _change_index(self, transition: Transition) -> None:
        id = transition.id
        if transition.status is not None or transition.awakeables is not None:
            self._write("index", id)
        if transition.awakeables is not None:
            self._awakeables[id] = merged(self._awakeables.get(id, ()), transition.awakeables)
        if transition.status is not None:
            row = self._rows[id]
            times = (row.created_at, self.clock.now(), row.due)
            self._index(Row(id, row.handler, transition.status, row.key, *times, row.tags, transition.wait))
            self._undone.pop(id, None)

    def _append(self, id: str, expected: int, frame: Frame, effects: Effects) -> None:
        data = encode_frame(frame)
        check_finite(data, frame)
        frames = self._frames.get(id) or []
        if len(frames) != expected or id not in self._rows:  # it may have ended elsewhere, and been purged
            raise conflict(id, expected)
        self._write("frame", id)
        frames.append(data)
        self._frames[id] = frames
        self.counters.written_bytes += len(data)
        self._undone[id] = frozenset(start.id for start in effects.starts) if effects.starts else _NONE

    def _do(self, id: str, effects: Effects) -> None:
        for batch in effects.written:
            self.streams.append_of_body(id, batch)
        for start in effects.starts:
            self._accept(start)
        for message in effects.messages:
            self._put(message)
        for answer in effects.answers:
            self._write("answer", id)
            self._answers[answer.message] = answer
            self._mail.setdefault(id, set()).add(answer.message)
            self._soon(partial(self._notices.answered, answer))
        if effects.release is not None:
            self._release(id, effects.release)
        if effects.enlist is not None:
            self._enlist(id, effects.enlist)

    def _set_wake(self, id: str, at: float) -> None:
        self._write("wake", id)
        self._wakes[id] = at
        self._note_due(at, id)

    def _read_due(self) -> None:
        """Sort all that is to come by when it is due; what is due at the same time, in the order of acceptance."""
        times = [(at, id) for id, at in self._wakes.items()]
        times += [(self._due_at(start), id) for id, start in self._scheduled.items()]
        self._due = [(at, number, id) for number, (at, id) in enumerate(times)]
        self._due_noted = len(times)
        heapq.heapify(self._due)

    def _note_due(self, at: float, id: str) -> None:
        self._due_noted += 1
        heapq.heappush(self._due, (at, self._due_noted, id))
        self._arm()

    def _arm(self) -> None:
        if self._due:
            self._alarm.by(self._due[0][0])

    def _ring(self) -> None:
        now = self.clock.now()
        while self._due and self._due[0][0] <= now:
            at, _, id = heapq.heappop(self._due)
            if (start := self._scheduled.get(id)) is not None:
                row = self._rows[id]
                self._write("due", id)
                del self._scheduled[id]
                self._index(Row(id, row.handler, "pending", row.key, row.created_at, now, row.due, row.tags))
                self._enqueue(start)
            elif self._wakes.get(id) == at:
                self._dispatcher.wake(Delivery(id, self._rows[id].handler, Wake(), token=at))
        self._arm()

    # --- reading ------------------------------------------------------------------------------------------------------
    async def journal(self, id: str, /) -> Journal:
        self._check()
        frames = tuple(decode_frame(data, id) for data in self._frames.get(id, ()))
        return Journal(frames, len(frames), done=id not in self._undone)

    async def revision(self, id: str, /) -> int:
        self._check()
        return len(self._frames.get(id, ()))

    async def outcome(self, id: str, /) -> Outcome | None:
        self._check()
        frames = self._frames.get(id)
        if not frames or ((last := decode_frame(frames[-1], id)).written and id in self._undone):
            return None  # only once its streams are whole: the caller may read them next
        return last.outcome

    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        self._check()
        return self._notices.watch(id)

    def events(self, filter: Filter, /) -> Feed:
        self._check()
        return self._notices.events(filter)

    async def mail(self, id: str, /) -> list[Message]:
        self._check()
        mail = [each for each in self._messages.values() if each.to == id and each.id not in self._answers]
        return sorted(mail, key=lambda each: each.at)

    async def start(self, id: str, /) -> Start | None:
        self._check()
        return self._starts.get(id)

    def serves(self, handler: str, /) -> bool:
        return self._dispatcher.serves(handler)

    def served(self) -> set[str]:
        return self._dispatcher.served()

    async def row(self, id: str, /) -> Row | None:
        self._check()
        return self._rows.get(id)

    async def search(self, filter: Filter, /) -> list[Row]:
        self._check()
        found = (row for row in self._rows.values() if matches(row, filter))
        return heapq.nlargest(filter.limit, found, key=lambda row: (row.created_at, row.id))

    async def awakeables(self, filter: AwakeableFilter, /) -> list[Awakeable]:
        self._check()
        found = (each for made in self._awakeables.values() for each in made if passes(each, filter))
        return sorted(found, key=lambda each: each.place)[: filter.limit]

    async def counts(self) -> Counts:
        self._check()
        counts = Counts()
        for row in self._rows.values():
            counts.by_status[row.status] = counts.by_status.get(row.status, 0) + 1
            counts.by_handler[row.handler] = counts.by_handler.get(row.handler, 0) + 1
        for _, start in self._queued.values():
            counts.due_since[start.handler] = min(start.due, counts.due_since.get(start.handler, start.due))
        return counts

    async def minutes(
        self, since: float, /, *, handler: str | None = None, within: float | None = None
    ) -> list[Minute]:
        self._check()
        ended: dict[tuple[float, str, Status], list[float]] = {}
        for row in self._rows.values():
            if row.status in SETTLED and row.updated_at >= since and handler in (None, row.handler):
                minute = row.updated_at // MINUTE_SECONDS * MINUTE_SECONDS
                took = max(0.0, row.updated_at - row.due)
                ended.setdefault((minute, row.handler, row.status), []).append(took)
        return [Minute(*of, len(took), sum(took), max(took)) for of, took in sorted(ended.items())]

    async def purge(self, before: float, /, *, limit: int, id: str | None = None) -> int:
        self._check()
        rows = [*self._rows.values()] if id is None else [row] if (row := self._rows.get(id)) is not None else []
        kept = {message.to for message in self._messages.values()}
        kept.update(*self._undone.values())  # these may be started again
        due = [row for row in rows if self._is_at_rest(row, before) and row.id not in kept]
        due.sort(key=lambda row: row.updated_at)
        removed = [row.id for row in due[:limit]]
        for each in removed:
            self._remove(each)
        return len(removed)

    def _is_at_rest(self, row: Row, before: float) -> bool:
        """Report whether an invocation settled by `before`, and nothing is pending for it."""
        in_hand = row.id in self._queued or self._dispatcher.has(row.id)
        return row.status in SETTLED and row.updated_at <= before and not in_hand

    def _remove(self, id: str) -> None:
        self._write("purge messages", id)
        for message_id in self._mail.pop(id, ()):
            self._answers.pop(message_id, None)
        self._write("purge", id)  # in one write: without its frames it would run again
        tables = (self._rows, self._digests, self._starts, self._frames, self._wakes, self._undone, self._awakeables)
        for table in tables:
            table.pop(id, None)
        self.streams.remove(id)
        if self._notices.watched:
            self._notices.changed(gone_row(id), self._notices.feeds_made)

    # --- rewriting ----------------------------------------------------------------------------------------------------
    async def rewrite(self, rewriting: Rewriting, after: str = "", /) -> Part:
        self._check()
        number, changed = int(after or 0), 0
        tables, change = (every := self._values(rewriting))[number]
        for seen, name in enumerate([*tables[0]], 1):
            if name in tables[0] and (new := change(name, old := tables[0][name])) != old:
                self._write("rewrite", str(name))
                changed += 1
                for table in tables:
                    if name in table:
                        table[name] = new
            if not seen % PART_LIMIT:
                await asyncio.sleep(0)
                self._check()
        await asyncio.sleep(0)
        return Part(str(number + 1) if number + 1 < len(every) else None, len(tables[0]), changed)

    def _values(self, rewriting: Rewriting) -> list[tuple[Sequence[dict[Any, Any]], Callable[[Any, Any], Any]]]:
        """Return the tables that hold values, some of them the same ones, and what becomes of each value."""
        documents = self.documents.collections.items()
        return [
            ([self._starts, self._scheduled], lambda _, start: rewriting.start(start)),
            ([self._queued], lambda _, queued: (queued[0], rewriting.start(queued[1]))),
            ([self._frames], lambda id, frames: [rewritten_frame(rewriting, id, each) for each in frames]),
            ([self._awakeables], lambda _, made: [*map(rewriting.awakeable, made)]),
            ([self._messages], lambda _, message: rewriting.message(message)),
            ([self._answers], lambda _, answer: rewriting.answer(answer)),
            ([self._keys], rewriting.key),
            ([self.streams.chunks], lambda id, chunks: self.streams.rewritten(id, chunks, rewriting)),
            *(([held], lambda _, each, name=name: rewriting.document(name, each)) for name, held in documents),
        ]

    @property
    def awaited(self) -> bool:
        """Report whether a caller waits for one invocation."""
        return self._notices.awaited

    # --- for tests ----------------------------------------------------------------------------------------------------
    def check_liveness(self, purged: Collection[str] = ()) -> None:
        """Raise if an invocation or key is stuck for ever, see `stores.liveness`.

        `purged` are ids that were removed on purpose.
        """
        messages: dict[str, set[str]] = {}
        for message in self._messages.values():
            messages.setdefault(message.to, set()).add(message.id)
        journals = {id: [decode_frame(data, id) for data in frames] for id, frames in self._frames.items()}
        contents = Contents(
            self._rows, journals, self._queued, self._scheduled, messages, self._wakes, self._keys, purged
        )
        if found := [*breaches(contents, self.clock.now())]:
            raise AssertionError("; ".join(found))

    def undelivered(self) -> list[str]:
        """Return the ids of starts, messages and wakes that are queued or unacknowledged."""
        return [*self._queued, *self._scheduled, *self._messages, *self._wakes]

    def redeliver(self) -> None:
        """Deliver everything that is held once more to its holder, as after late acknowledgements."""
        self._dispatcher.repeat()

    def acknowledge_late(self, delivery: Delivery) -> None:
        """Apply the acknowledgement of a worker that may not hold the delivery any more."""
        self._forget(delivery)

    # --- inside -------------------------------------------------------------------------------------------------------
    def _write(self, kind: str, id: str) -> None:
        self.writes += 1
        if self.hook is not None:
            try:
                self.hook(kind, id)
            except Crashed:
                self._end("the process crashed")
                raise

    def _index(self, row: Row) -> None:
        self._rows[row.id] = row
        if self._notices.watched:
            self._notices.changed(row, self._notices.feeds_made)

    def _check(self) -> None:
        if self._down:
            raise StoreClosed("memory: the store is closed, or its process crashed")

    def _durably(self, write: Callable[[A], T], what: A) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            self._check()
            future.set_result(write(what))
        except Exception as error:  # noqa: BLE001  it ends the future instead
            future.set_exception(error)
        return future

    def _soon(self, callback: Callable[[], Any]) -> None:
        process = self._dispatcher  # the next process knows nothing of the timers of this one

        def do() -> None:
            if process is self._dispatcher and not self._down:
                callback()

        asyncio.get_running_loop().call_soon(do)
