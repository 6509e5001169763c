"""The store itself: what the Store protocol asks for. See the package for the whole.

A commit is a guarded put of the frame; then its effects, each idempotent; then the acknowledgements. A frame that is
durable while its effects are not is never reported as failed: they are tried until they are done, or the store closes
and leaves them to whoever takes over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from perdure.core.effects import Effects
from perdure.core.history import History
from perdure.core.journal import (
    Answer,
    Cancelled,
    Failed,
    Message,
    Outcome,
    Start,
    Status,
    decode_start,
    encode_message,
    encode_start,
)
from perdure.core.lifecycle import SETTLED
from perdure.errors import Conflict, PerdureError, StoreClosed, StoreError, StoreUnavailable, StoreUnfit
from perdure.stores.clock import SystemClock
from perdure.stores.jetstream.answers import Answers
from perdure.stores.jetstream.care.janitor import PERIOD_SECONDS, Janitor
from perdure.stores.jetstream.care.overdue import LOOK_SECONDS, Overdue
from perdure.stores.jetstream.care.purge import Purge
from perdure.stores.jetstream.index.projection import Projection
from perdure.stores.jetstream.index.rows import Rows
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.done import is_done, starts_in
from perdure.stores.jetstream.journal.journals import NOTHING, Journals, Tail
from perdure.stores.jetstream.keys.keys import LIMIT, Keys
from perdure.stores.jetstream.keys.lanes import Lanes
from perdure.stores.jetstream.layout.layout import ROLLUP, SHARDS, Facts, Layout, facts_of, facts_of_start, lines_of
from perdure.stores.jetstream.layout.streams import prepare, read_secret
from perdure.stores.jetstream.ownership.hands import Member
from perdure.stores.jetstream.ownership.keeping import DUE
from perdure.stores.jetstream.queue.deliveries import FAILED_SECONDS, Deliveries
from perdure.stores.jetstream.wire.checks import check_clock
from perdure.stores.jetstream.wire.wire import Wire, WrongSequence, without_credentials
from perdure.stores.notices import Feed, Notices
from perdure.stores.port import (
    LEASE_SECONDS,
    LINE_LIMIT,
    PAYLOAD_LIMIT_BYTES,
    Committed,
    Counts,
    Delivery,
    Filter,
    Journal,
    Key,
    Row,
    Transition,
    id_conflict,
    identity_of,
    line_full,
    no_partitions,
    unknown,
)

T = TypeVar("T")

_encode_outcome = msgspec.msgpack.Encoder().encode
_decode_outcome: Callable[[bytes], Outcome] = msgspec.msgpack.Decoder(Outcome).decode

PURGE_SPARE = 1_000
"""Invocations that a purge looks at beyond those that it may remove: some of them are still wanted."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""As the workers of this process name it in their claims."""
POLL_SECONDS = 1.0
"""How often an outcome or answer that somebody waits for is looked for, in case its push was lost."""
POLLED_LIMIT = 1_000
"""Outcomes that are looked for at a time."""
CLOCK_SECONDS = 60.0
"""How often the clock of a process with workers is compared with the server's."""
CLOSING_SECONDS = 5.0
"""How long a message waits to learn whether its invocation is purged."""
CLOSING_POLL_SECONDS = 0.05

log = logging.getLogger("perdure.jetstream")


class JetStreamStore:
    """A store on a NATS server or cluster, shared by as many processes as like to."""

    makes_streams = True

    def __init__(
        self,
        servers: Sequence[str],
        *,
        options: dict[str, Any] | None = None,
        namespace: str = "perdure",
        shards: int | None = None,
        replicas: int | None = None,
        index: str | os.PathLike[str] | None = None,
        payload_limit: int = PAYLOAD_LIMIT_BYTES,
        line_limit: int = LINE_LIMIT,
        python: str = PYTHON,
        janitor_seconds: float = PERIOD_SECONDS,
    ) -> None:
        self.clock = SystemClock()
        self.secret = b""
        self.payload_limit = payload_limit
        self.line_limit = line_limit
        self.name = secrets.token_hex(6)
        self.layout = layout = Layout(namespace, shards or SHARDS)
        self.wire = wire = Wire(servers, options, connected=self._reconnected)
        wire.stream_of = layout.stream_of
        self._replicas = replicas
        self._shards = shards
        self._open = False
        self._blobs = Blobs(wire, layout)
        self._journals = Journals(wire, layout, self._blobs, self.name)
        self._keys = Keys(wire, layout, self._blobs, self._journals)
        self._notices = Notices()
        self._index = Rows(wire, layout, self._notices)
        self._projection = Projection(wire, layout, self.clock, None if index is None else Path(index).expanduser())
        self._deliveries = Deliveries(
            wire,
            layout,
            self._journals,
            self._keys,
            self._blobs,
            self.name,
            self.clock,
            self._find_start,
            self._say_unknown,
            python,
        )
        self._answers = Answers(wire, layout, self._notices)
        self._purge = Purge(wire, layout, self._journals, self._blobs, self._deliveries, self.clock)
        self._overdue = Overdue(wire, layout, self.clock)
        self._lanes = Lanes(self._place)
        self.janitor = Janitor(
            wire,
            layout,
            self._journals,
            self._keys,
            self._deliveries.keeper,
            self._projection,
            self.clock,
            self._queue,
            janitor_seconds,
        )
        self._has_janitor = False
        self._watched: dict[str, int] = {}  # ids whose end is listened for, with the subscription
        self._writing = 0
        self._written: asyncio.Future[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.wire.open()
        try:
            replicas = await prepare(
                self.wire,
                self.layout,
                self._replicas,
                self.clock,
                adopt=self._shards is None,
                make=self.makes_streams,
            )
            self._journals.copies = replicas
            self.secret = await read_secret(self.wire, self.layout)
        except BaseException:
            await self.wire.close()
            raise
        self._deliveries.begin()
        self._open = True
        self._poll = self._loop.call_later(POLL_SECONDS, self._look_for_lost_pushes)

    async def aclose(self) -> None:
        if not self._open:
            return
        self._open = False
        self._poll.cancel()
        if self._writing and self.wire.is_up:
            self._written = self._loop.create_future()
            await asyncio.wait([self._written], timeout=CLOSING_SECONDS)
        await self._deliveries.close()
        await self._projection.aclose()
        await self.wire.close()
        self._notices.fail(self._closed())

    def _closed(self) -> StoreClosed:
        return StoreClosed("jetstream: the store is closed")

    def _check(self) -> None:
        if not self._open:
            raise self._closed()

    def _reconnected(self) -> None:
        self._deliveries.reconnected()
        self._index.missed()

    # --- submitting ---------------------------------------------------------------------------------------------------
    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        self._check()
        if len(starts) == 1:
            start = starts[0]
            if start.due <= self.clock.now():
                if start.key is not None:
                    return self._work(self._submit_keyed(start, self._lanes.add(start)))
                if not start.chosen:
                    data = encode_start(start)
                    if not self._blobs.is_large(data):
                        return self._submit_plain(start, data)
        return self._work(self._submit(starts))

    def _submit_plain(self, start: Start, data: bytes) -> asyncio.Future[list[bool]]:
        """Put a start whose id is new and its own into the queue: nothing needs to be asked before."""
        future: asyncio.Future[list[bool]] = self._loop.create_future()
        facts = facts_of_start(start, "pending", self.clock.now(), kind="start")

        def told(_: int, error: StoreError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result([True])
            elif isinstance(error, WrongSequence):
                future.set_result([False])
            else:
                future.set_exception(error)

        self.wire.put(self.layout.start(start.handler, start.id), data, told, expected=0, headers=lines_of(facts))
        return future

    async def _submit_keyed(self, _: Start, placed: asyncio.Future[bool]) -> list[bool]:
        return [await placed]

    async def _place(self, key: str, starts: Sequence[Start], sent: bool) -> list[bool | Exception]:
        """Give starts their places in the line of a key: first their ids, all together, then the places."""
        tails = await self._journals.tails([*dict.fromkeys(start.id for start in starts if start.chosen or sent)])
        room = None
        if not sent:
            room = self.line_limit - await self._keys.waiting(key)
            if room < len(starts) and (await self._keys.read(key)).holder is None:
                room += 1

        async def take_id(start: Start) -> bool | Exception:
            tail = tails.get(start.id, NOTHING)
            try:
                if not sent:
                    await self._check_identity(start, tail)
                if tail.has_frames or (sent and tail.facts.kind == "gone"):
                    return False
                return await self._reserve(start, tail, sent)
            except PerdureError as error:
                return error

        refused: dict[int, Exception] = {}
        for n, start in enumerate(starts):
            if room is not None and tails.get(start.id, NOTHING).facts.kind in ("none", "gone"):
                room -= 1
                if room < 0:
                    refused[n] = line_full(key, self.line_limit)
        taking = [_be(refused[n]) if n in refused else take_id(start) for n, start in enumerate(starts)]
        results = await asyncio.gather(*taking)
        await self._queue_in_line(key, starts, results)
        return results

    async def _queue_in_line(self, key: str, starts: Sequence[Start], results: Sequence[bool | Exception]) -> None:
        """Put those into the line whose ids are taken for them, and who have not begun."""
        now = self.clock.now()
        placed: list[Start] = []
        for start, result in zip(starts, results, strict=True):
            if isinstance(result, Exception):
                continue
            if result or (await self._journals.tail(start.id)).facts.kind == "reserved":
                placed.append(start)
                if start.timeout is not None:  # so that it ends in time even if its key never comes
                    await self._deliveries.keeper.set_wake(start.id, "limit", start.due + start.timeout, LIMIT)
        if placed:
            await self._keys.join(key, placed, now)

    def _work(self, work: Awaitable[T]) -> asyncio.Future[T]:
        """Do something that the closing of the store waits for."""
        self._writing += 1
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._done)
        return task

    def _done(self, _: object = None) -> None:
        self._writing -= 1
        if self._written is not None and not self._writing and not self._written.done():
            self._written.set_result(None)

    async def _submit(self, starts: Sequence[Start]) -> list[bool]:
        together: dict[str, bytes] = {}
        joining: dict[str, int] = {}
        for start in starts:
            if together.setdefault(start.id, identity_of(start)) != identity_of(start):
                raise id_conflict(start.id)
        chosen = [start.id for start in starts if start.chosen or start.key is not None]
        tails = await self._journals.tails([*dict.fromkeys(chosen)]) if chosen else {}
        for start in starts:
            tail = tails.get(start.id, NOTHING)
            await self._check_identity(start, tail)
            if start.key is not None and tail.facts.kind in ("none", "gone"):
                joining[start.key] = joining.get(start.key, 0) + 1
        for key, count in joining.items():
            await self._check_line(key, count)
        first: dict[str, asyncio.Future[bool]] = {}
        results: list[asyncio.Future[bool] | None] = []
        for start in starts:
            if start.id in first:
                results.append(None)
                continue
            accepting = asyncio.ensure_future(self._accept(start, tails.get(start.id, NOTHING)))
            first[start.id] = accepting
            results.append(accepting)
        await asyncio.gather(*first.values())
        return [False if each is None else each.result() for each in results]

    async def _check_identity(self, start: Start, tail: Tail) -> None:
        if tail.facts.kind in ("none", "gone"):
            return
        identity = tail.facts.identity
        if not identity:
            known = await self._journals.start(start.id)
            if known is None:
                return
            identity = identity_of(known).hex()
        if identity != identity_of(start).hex():
            raise id_conflict(start.id)

    async def _check_line(self, key: str, joining: int) -> None:
        ahead = await self._keys.waiting(key) + joining - 1
        if ahead >= self.line_limit and (await self._keys.read(key)).holder is None:
            ahead -= 1
        if ahead >= self.line_limit:
            raise line_full(key, ahead)

    async def _accept(self, start: Start, tail: Tail, *, sent: bool = False) -> bool:
        """Make a start durable; false if its id exists. What a workflow sends with an id that exists is dropped."""
        if start.key is not None and start.due <= self.clock.now():
            return await self._lanes.add(start, sent=True)  # a client's have been counted
        new = True
        if start.chosen or start.key is not None:
            if tail.has_frames:
                return False
            new = await self._reserve(start, tail, sent)
            if not new and sent and (await self._journals.tail(start.id)).has_frames:
                return False
        return await self._queue(start) and new

    async def _reserve(self, start: Start, tail: Tail, sent: bool) -> bool:
        """Put a start into the subject of its journal, before the first frame: whoever comes later finds it there."""
        if tail.facts.kind == "reserved":
            return False
        now = self.clock.now()
        status: Status = "scheduled" if start.due > now else "pending"
        facts = facts_of_start(start, status, now, identity=identity_of(start).hex())
        facts, data = await self._blobs.save(start.id, facts, encode_start(start))
        subject = self.layout.journal(start.id)
        try:
            await self.wire.store(subject, data, expected=tail.sequence, headers=lines_of(facts))
        except WrongSequence:
            again = await self._journals.tail(start.id)
            if again.facts.kind == "gone":
                return await self._reserve(start, again, sent)
            if not sent:
                await self._check_identity(start, again)
            return False
        return True

    async def _queue(self, start: Start) -> bool:
        """Put a start where it waits: for its time, for its key, or for a worker."""
        now = self.clock.now()
        reserved = start.chosen or start.key is not None
        facts = facts_of_start(start, "pending", now, kind="start")
        if start.due > now:
            return await self._schedule(start, facts)
        if start.key is not None:
            return await self._lanes.add(start, sent=True)
        if reserved:
            facts = _quiet(facts)
        facts, data = await self._blobs.save(start.id, facts, encode_start(start))
        try:
            await self.wire.store(self.layout.start(start.handler, start.id), data, expected=0, headers=lines_of(facts))
        except WrongSequence:
            return False
        return True

    async def _schedule(self, start: Start, facts: Facts) -> bool:
        facts, data = await self._blobs.save(start.id, facts, encode_start(start))
        target = self.layout.start(start.handler, start.id)
        if start.key is not None:
            target = self.layout.nudge(start.key, self.layout.journal(start.id).rpartition(".")[2])
        headers = self._deliveries.keeper.schedule_headers(start.due, target)
        subject = self.layout.delayed(start.id, start.key)
        try:
            await self.wire.store(subject, data, expected=0, headers=headers + lines_of(facts))
        except WrongSequence:
            return False
        if not start.chosen and start.key is None:
            self._index.announce(facts, "scheduled")
        return True

    async def _find_start(self, id: str, tail: Tail) -> tuple[Start, bool] | None:
        """Return the start of an invocation without a journal, and whether its time or key is still to come."""
        if tail.facts.kind == "reserved":
            start = await self._journals.start(id)
            if start is None:
                return None
            subject = self.layout.delayed(id, start.key)
            if await self.wire.last(self.layout.stream_of(subject), subject) is not None:
                return start, True
            return start, start.key is not None and await self._keys.is_waiting(start.key, id)
        for subject in (self.layout.delayed(id, None), self.layout.any_start(id), self.layout.any_start(id)):
            stored = await self.wire.last(self.layout.stream("Q", self.layout.shard(id)), subject)
            if stored is not None:
                data = await self._blobs.load(id, facts_of(stored.headers), stored.data)
                return decode_start(data), subject.endswith(".start")
        return None

    # --- messages -----------------------------------------------------------------------------------------------------
    def post(self, message: Message, /) -> asyncio.Future[None]:
        self._check()
        return self._work(self._post(message))

    async def _post(self, message: Message) -> None:
        tail, answer = await asyncio.gather(self._journals.tail(message.to), self._answers.read(message.id))
        if tail.facts.kind == "gone":
            raise unknown(message.to)
        if not tail.has_frames and await self._find_start(message.to, tail) is None:
            if not (await self._journals.tail(message.to)).has_frames:
                raise unknown(message.to)
        if answer is not None:
            return
        subject = self.layout.message(message.to, message.id)
        sequence = await self._put_message(message)
        for _ in range(int(CLOSING_SECONDS / CLOSING_POLL_SECONDS)):  # it may be purged at this very moment
            if tail.facts.status not in SETTLED:
                return
            tail = await self._journals.tail(message.to)
            if tail.facts.kind == "gone":
                if sequence:
                    await self.wire.delete(self.layout.stream_of(subject), sequence)
                raise unknown(message.to)
            if tail.facts.kind != "closing":
                return
            await asyncio.sleep(CLOSING_POLL_SECONDS)
        raise StoreUnavailable(f"invocation {message.to!r} is being purged, and it is not known whether it is gone")

    async def _put_message(self, message: Message) -> int:
        """Queue a message; 0 if it is queued already."""
        facts, data = await self._blobs.save(message.to, Facts(message.to, kind="message"), encode_message(message))
        try:
            return await self.wire.store(
                self.layout.message(message.to, message.id), data, expected=0, headers=lines_of(facts)
            )
        except WrongSequence:
            return 0

    async def _say_unknown(self, message: Message) -> None:
        await self._answers.give(message.to, Answer(message.id, str(unknown(message.to))))

    async def answer(self, message_id: str, /) -> Answer:
        self._check()
        return await self._answers.wait(message_id)

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
        if partitions is not None and not {*partitions} <= {*range(self.layout.shards)}:
            raise no_partitions(partitions, self.layout.shards)
        self._deliveries.every("overdue", LOOK_SECONDS, lambda: self._deliveries.spawn(self._overdue.look()))
        self._deliveries.every("clock", CLOCK_SECONDS, lambda: self._deliveries.spawn(self._look_at_clock()))
        member = self._deliveries.join(handlers, deliver, partitions, lost, lease)
        if not self._has_janitor:
            self._has_janitor = True
            self._deliveries.spawn(self.janitor.run())
        return member

    async def _look_at_clock(self) -> None:
        """Say so when this machine's clock was set, or runs away, while workers run."""
        if not self.wire.is_up:
            return
        before = self.clock.now()
        answer = await self.wire.api(f"STREAM.INFO.{self.layout.stream('J', 0)}")
        try:
            check_clock(str(answer.get("ts", "")), before, self.clock.now(), without_credentials(self.wire.servers[0]))
        except StoreUnfit as error:
            self.wire.complaints.say("clock", "%s", error)

    async def ready(self) -> None:
        """Wait until all that the workers here serve comes: the first worker of a handler makes its queue."""
        await self._deliveries.ready()

    def serves(self, handler: str, /) -> bool | None:
        return self._deliveries.hands.serves(handler)

    def served(self) -> set[str]:
        return self._deliveries.hands.served()

    # --- transitions --------------------------------------------------------------------------------------------------
    def commit(self, transition: Transition, told: Committed, /) -> None:
        if not self._open:
            self._loop.call_soon(told, 0, self._closed())
            return
        self._writing += 1
        if transition.frame is None:
            self._follow(transition, told, transition.expected)
            return
        tail = self._journals.known(transition.id)
        if tail is None and not transition.expected:
            tail = NOTHING
        if tail is None or tail.revision != transition.expected:
            self._beside(told, self._read_and_append(transition, told))
        else:
            self._append(transition, told, tail)

    async def _read_and_append(self, transition: Transition, told: Committed) -> None:
        try:
            tail = await self._journals.tail(transition.id)
        except StoreError as error:
            self._tell(told, 0, error)
            return
        self._journals.note(transition.id, tail)
        if tail.revision != transition.expected or tail.facts.kind == "closing":
            self._conflict(transition, told, tail)
        else:
            self._append(transition, told, tail)

    def _append(self, transition: Transition, told: Committed, tail: Tail) -> None:
        data, facts = self._journals.next_frame(transition, tail, self.clock.now())
        if self._blobs.is_large(data) or self._journals.is_to_be_packed(tail):
            self._beside(told, self._append_with_pieces(transition, told, tail, data, facts))
            return
        self._put_frame(transition, told, tail, data, facts)

    async def _append_with_pieces(
        self, transition: Transition, told: Committed, tail: Tail, data: bytes, facts: Facts
    ) -> None:
        """Append a frame that is too large for a message, or that takes those before it along."""
        try:
            if self._journals.is_to_be_packed(tail):
                facts, data = await self._journals.pack(tail, facts, data)
            facts, data = await self._blobs.save(transition.id, facts, data)
        except StoreError as error:
            self._tell(told, 0, error)
            return
        self._put_frame(transition, told, tail, data, facts)

    def _put_frame(self, transition: Transition, told: Committed, tail: Tail, data: bytes, facts: Facts) -> None:
        self.wire.put(
            self.layout.journal(transition.id),
            data,
            partial(self._appended, transition, told, tail, facts),
            expected=tail.sequence,
            headers=ROLLUP + lines_of(facts) if facts.is_pack else lines_of(facts),
        )

    def _appended(
        self,
        transition: Transition,
        told: Committed,
        tail: Tail,
        facts: Facts,
        sequence: int,
        error: StoreError | None,
    ) -> None:
        if error is None:
            self._journals.note(transition.id, Tail(sequence, facts))
            self._follow(transition, told, sequence)
        elif isinstance(error, WrongSequence):
            self._beside(told, self._look_again(transition, told, tail))
        else:
            self._tell(told, 0, error)

    async def _look_again(self, transition: Transition, told: Committed, before: Tail) -> None:
        """See what is there instead: a reservation that was not known of, or somebody else's frame."""
        try:
            tail = await self._journals.tail(transition.id)
        except StoreError as error:
            self._tell(told, 0, error)
            return
        self._journals.note(transition.id, tail)
        if tail.revision == transition.expected and tail.sequence != before.sequence and tail.facts.kind == "reserved":
            self._append(transition, told, tail)
        else:
            self._conflict(transition, told, tail)

    def _conflict(self, transition: Transition, told: Committed, tail: Tail) -> None:
        id = transition.id
        text = f"invocation {id!r}: expected revision {transition.expected}, found {tail.revision}"
        if tail.facts.owner not in ("", self.name):
            self._deliveries.keeper.lose(id)  # before it is told: nothing of it is to be tried again here
        self._tell(told, 0, Conflict(text, invocation_id=id))

    def _beside(self, told: Committed, work: Coroutine[Any, Any, None]) -> None:
        """Go on with a commit that has to wait for something; whatever becomes of it is told."""

        async def go_on() -> None:
            try:
                await work
            except asyncio.CancelledError:
                self._tell(told, 0, self._closed())
                raise

        self._deliveries.spawn(go_on())

    def _tell(self, told: Committed, revision: int, error: Exception | None) -> None:
        self._done()
        self._loop.call_soon(told, revision, error)

    # --- what follows from a frame ------------------------------------------------------------------------------------
    def _follow(self, transition: Transition, told: Committed, revision: int) -> None:
        effects = transition.effects
        ended = transition.released or transition.outcome is not None
        nothing = not (effects.starts or effects.messages or effects.answers or effects.release or effects.enlist)
        if nothing and (effects.wake is None or not ended) and not self._may_leave_start(transition):
            self._followed(transition, told, revision)
        else:
            self._beside(told, self._do_effects(transition, told, revision))

    def _may_leave_start(self, transition: Transition) -> bool:
        """Tell whether an invocation ends without its start in hand: it was cancelled before it began, or too late."""
        tail = self._journals.known(transition.id)
        return (
            isinstance(transition.outcome, Cancelled | Failed)
            and tail is not None
            and tail.facts.number == 1
            and not any(isinstance(each.item, Start) for each in transition.acknowledge)
        )

    async def _do_effects(self, transition: Transition, told: Committed, revision: int) -> None:
        while True:
            try:
                await self._try_effects(transition)
                break
            except StoreClosed as error:
                self._tell(told, 0, error)
                return
            except StoreError as error:
                self.wire.complaints.say(
                    f"follow {type(error).__name__}",
                    "what follows from invocation %s cannot be done: %s; it is tried again until it works, and so is "
                    "that of others",
                    transition.id,
                    error,
                )
                await asyncio.sleep(FAILED_SECONDS)
        self._followed(transition, told, revision)

    async def _try_effects(self, transition: Transition) -> None:
        id, effects = transition.id, transition.effects
        works: list[Awaitable[object]] = [self._send(start) for start in effects.starts]
        works += [self._put_message(message) for message in effects.messages]
        works += [self._answers.give(id, answer) for answer in effects.answers]
        if len(works) == 1:
            await works[0]
        elif works:
            await asyncio.gather(*works)
        await self._change_key(id, effects)
        ended = transition.released or transition.outcome is not None
        if ended and effects.wake is not None:
            # A wake is replaced after the effects, like an acknowledgement: it may be what redoes them.
            if self._deliveries.keeper.may_nap(id, transition.acknowledge, effects.wake):
                pass
            elif effects.wake <= self.clock.now():
                await self._deliveries.keeper.wake_now(id)
            else:
                facts = (self._journals.known(id) or NOTHING).facts
                await self._deliveries.keeper.set_wake(id, f"due.{facts.epoch}", effects.wake, DUE, facts.number)
        if self._may_leave_start(transition):
            await self.wire.purge(self.layout.stream("Q", self.layout.shard(id)), self.layout.schedules(id))
            tail = self._journals.known(id)
            if tail is not None and tail.facts.key is not None:
                subject = self.layout.delayed(id, tail.facts.key)
                await self.wire.purge(self.layout.stream_of(subject), subject)
            await self.wire.purge(self.layout.stream("Q", self.layout.shard(id)), self.layout.any_start(id))

    async def _send(self, start: Start) -> None:
        if start.key is not None and start.due <= self.clock.now():
            await self._lanes.add(start, sent=True)  # before anything is awaited: in the order sent
            return
        tail = await self._journals.tail(start.id) if start.chosen or start.key is not None else NOTHING
        if tail.facts.kind == "gone":
            return
        await self._accept(start, tail, sent=True)

    async def _change_key(self, id: str, effects: Effects) -> None:
        if effects.release is not None:
            await self._keys.release(id, effects.release)
        if effects.enlist is not None:
            await self._keys.enlist(id, effects.enlist)

    def _followed(self, transition: Transition, told: Committed, revision: int) -> None:
        ended = transition.released or transition.outcome is not None
        if (outcome := transition.outcome) is not None:
            # Only now: who is told may look at what follows from it, as the state of its key.
            self._tell_settled(transition.id, outcome)
            tail = self._journals.known(transition.id)
            if tail is not None and tail.facts.wake > self.clock.now():
                subject = self.layout.schedules(transition.id)
                self._deliveries.spawn(self.wire.purge(self.layout.stream_of(subject), subject))
        if transition.released and (wake := transition.effects.wake) is not None:
            self._deliveries.keeper.nap(transition.id, transition.acknowledge, wake)
        elif ended:
            self._deliveries.keeper.end_nap(transition.id)
        if transition.frame is not None or ended:
            self._deliveries.hands.committed(
                transition.id,
                transition.acknowledge,
                ended=ended,
                wakes=transition.released and transition.effects.wake is not None,
                now=self._loop.time(),
            )
        else:
            for delivery in transition.acknowledge:
                self._deliveries.hands.finish(delivery)
        self._tell(told, revision, None)

    # --- watching -----------------------------------------------------------------------------------------------------
    def _tell_settled(self, id: str, outcome: Outcome) -> None:
        self._loop.call_soon(self._notices.settled, id, outcome)
        data = _encode_outcome(outcome)
        self.wire.publish(self.layout.settled(id), b"" if self._blobs.is_large(data) else data)

    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        self._check()
        if id not in self._watched:
            self._watched[id] = self.wire.subscribe(self.layout.settled(id), partial(self._was_settled, id))
        future = self._notices.watch(id)
        future.add_done_callback(lambda _: self._watched_no_more(id))
        return future

    def _watched_no_more(self, id: str) -> None:
        if not self._notices.is_watched(id) and (sid := self._watched.pop(id, None)) is not None:
            self.wire.unsubscribe(sid)
            self.wire.forget(sid)

    def _was_settled(self, id: str, _subject: str, _reply: str, data: bytes, _headers: bytes) -> None:
        outcome = _decode_outcome(data) if data else None
        if outcome is not None:
            self._notices.settled(id, outcome)
        else:
            self._deliveries.spawn(self._read_outcome(id))

    async def _read_outcome(self, id: str) -> None:
        outcome = await self.outcome(id)
        if outcome is not None:
            self._notices.settled(id, outcome)

    def _look_for_lost_pushes(self) -> None:
        """Read what is waited for, some of it at a time."""
        self._poll = self._loop.call_later(POLL_SECONDS, self._look_for_lost_pushes)
        if self.wire.is_up:
            self._deliveries.spawn(self._poll_outcomes())
            self._deliveries.spawn(self._answers.poll())

    async def _poll_outcomes(self) -> None:
        ids = [*self._watched][:POLLED_LIMIT]
        if not ids:
            return
        for id in ids:  # others come first the next time
            if (sid := self._watched.pop(id, None)) is not None:
                self._watched[id] = sid
        for id, tail in (await self._journals.tails(ids)).items():
            if tail.facts.status in SETTLED:
                await self._read_outcome(id)

    def events(self, filter: Filter, /) -> Feed:
        self._check()
        feed = self._notices.events(filter)
        self._index.listen()
        return feed

    # --- reading ------------------------------------------------------------------------------------------------------
    async def journal(self, id: str, /) -> Journal:
        self._check()
        frames, tail = await self._journals.read(id)
        done = bool(frames and starts_in(frames[-1])) and await is_done(self.wire, self.layout, id, tail)
        return Journal(tuple(frames), tail.revision, done)

    async def revision(self, id: str, /) -> int:
        self._check()
        return (await self._journals.tail(id)).revision

    async def outcome(self, id: str, /) -> Outcome | None:
        self._check()
        tail = await self._journals.tail(id)
        if tail.facts.status not in SETTLED or not tail.has_frames:
            return None
        if tail.facts.key is not None and (await self._keys.read(tail.facts.key)).holder == id:
            return None  # not before its key is released: who is told may read the key's state next
        frame = await self._journals.last_frame(id)
        if frame is None or frame.outcome is not None:
            return None if frame is None else frame.outcome
        return History.of((await self._journals.read(id))[0]).outcome

    async def start(self, id: str, /) -> Start | None:
        self._check()
        for _ in range(2):  # it may begin between the two looks
            tail = await self._journals.tail(id)
            if tail.has_frames:
                return await self._journals.start(id)
            if tail.facts.kind == "gone":
                return None
            if (found := await self._find_start(id, tail)) is not None:
                return found[0]
        return None

    async def key(self, name: str, /) -> Key:
        self._check()
        return await self._keys.read(name)

    async def mail(self, id: str, /) -> list[Message]:
        self._check()
        mail = await self._deliveries.mail(id)
        if mail:
            known = History.of((await self._journals.read(id))[0]).messages
            mail = [message for message in mail if message.id not in known]
        return mail

    async def row(self, id: str, /) -> Row | None:
        self._check()
        for _ in range(2):  # it may begin between the two looks
            tail = await self._journals.tail(id)
            if (row := await self._index.row(id, tail, self._find_start)) is not None:
                return row
        return None

    async def search(self, filter: Filter, /) -> list[Row]:
        self._check()
        return await self._projection.search(filter)

    async def counts(self) -> Counts:
        self._check()
        return await self._projection.counts()

    async def purge(self, before: float, /, *, limit: int, id: str | None = None) -> int:
        self._check()
        if id is None:
            ids = await self._projection.settled(before, limit + PURGE_SPARE)
        else:
            row = await self.row(id)
            ids = [] if row is None or row.status not in SETTLED or row.updated_at > before else [id]
        return await self._work(self._purge.remove(ids, limit))


async def _be(error: Exception) -> Exception:
    return error


def _quiet(facts: Facts) -> Facts:
    """Return facts of what an index has been told already."""
    return replace(facts, quiet=True)
