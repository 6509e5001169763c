"""The store as one process sees it: the port, over messages to the store's process, with the faults of the plan.

A process that has ended is not heard any more: what it had sent may still arrive, and no answer reaches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from msgspec.structs import replace

from perdure.core.journal import Answer, Claimed, Message, Outcome, Start
from perdure.core.streams import Batch
from perdure.errors import Conflict, NewerJournal, StoreDamaged, StoreFull, StoreUnavailable
from perdure.stores.awakeables import Awakeable, AwakeableFilter
from perdure.stores.documents import Document, DocumentKey, DocumentStore, Fence, Scan, Write
from perdure.stores.local.dispatch import Member
from perdure.stores.notices import Feed
from perdure.stores.port import (
    LEASE_SECONDS,
    Committed,
    Counts,
    Delivery,
    Events,
    Filter,
    Journal,
    Key,
    Minute,
    Row,
    Subscription,
    Transition,
)
from perdure.stores.rewriting import Part, Rewriting
from perdure.stores.streams import Chunk, Following, StreamStore
from perdure.testing.simulation.clock import TICK_SECONDS, ProcessClock
from perdure.testing.simulation.faults import Faults
from perdure.testing.simulation.loop import Process
from perdure.testing.simulation.plan import Fault
from perdure.testing.simulation.server import Server
from perdure.testing.simulation.violation import Violation
from perdure.testing.simulation.watching import Seen, pushed, watching

T = TypeVar("T")

UNFORESEEN = "nobody foresaw this"

POLL_SECONDS = 1.0
"""How long after a push was lost it is found by the poll."""

Told = Callable[[Any, Exception | None], object]
Writing = Callable[[Told], None]
"""Writes, and calls back with the result; in the store's process."""


class Home(Protocol):
    """What the process is: it can be made to crash, to stop, and to go down with all others."""

    def crash(self) -> None: ...
    def stop(self, grace: float) -> None: ...
    def outage(self) -> None: ...


class _Documents:
    """The documents, as one process sees them."""

    def __init__(self, face: Face, kept: DocumentStore) -> None:
        self._face = face
        self._kept = kept

    async def write(self, collection: str, writes: Sequence[Write], /, fence: Fence | None = None) -> list[int]:
        return await self._face.ask("write", collection, lambda: self._kept.write(collection, writes, fence))

    async def read(self, collection: str, keys: Sequence[DocumentKey], /) -> list[Document | None]:
        return await self._face.ask("read", collection, lambda: self._kept.read(collection, keys))

    async def scan(self, collection: str, which: Scan, /) -> list[Document]:
        return await self._face.ask("scan", collection, lambda: self._kept.scan(collection, which))


class _Streams:
    """The streams, as one process sees them. What the store pushes of them is never lost."""

    def __init__(self, face: Face, kept: StreamStore) -> None:
        self._face = face
        self._kept = kept

    async def append(self, id: str, epoch: int, batch: Batch, /) -> None:
        await self._face.ask("append", id, lambda: self._kept.append(id, epoch, batch))

    async def read(self, id: str, name: str, start: int, /) -> Sequence[Chunk]:
        return await self._face.ask("read", id, lambda: self._kept.read(id, name, start))

    async def counts(self, id: str, /) -> Mapping[str, int]:
        return await self._face.ask("counts", id, lambda: self._kept.counts(id))

    def follow(self, id: str, name: str, /) -> Following:
        return self._kept.follow(id, name)


class Face:
    """The `Store` of one process."""

    def __init__(self, server: Server, process: Process, clock: ProcessClock, faults: Faults, home: Home) -> None:
        self.process = process
        self.name = process.name
        self.clock = clock
        self.clocks_apart = server.store.clocks_apart
        self.counters = server.store.counters
        self.documents = server.store.documents
        self.secret = server.store.secret
        self.payload_limit = server.store.payload_limit
        self.member: Member | None = None
        self.is_zombie = False  # its lease has ended since it last showed life
        self._server = server
        self._store = server.store
        self._faults = faults
        self._home = home
        self._deliver: Callable[[Delivery], None] | None = None
        self._lost: Callable[[str], None] | None = None
        self.documents = _Documents(self, server.store.documents)
        self.streams = _Streams(self, server.store.streams)
        self.feeds: list[_FaceEvents] = []  # those that the process has not closed
        self._left: set[str] = set()  # what the worker was told that it lost, and has got nothing for since

    async def open(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    # --- messages -----------------------------------------------------------------------------------------------------
    def send(self, work: Callable[..., object], *args: Any, delay: float = 0.0) -> None:
        """Have the store's process do something, after all that was sent before without a delay."""
        if not self.process.is_ended:
            self._server.process.receive(work, *args, delay=delay)

    def reply(self, told: Told, value: Any, error: Exception | None, delay: float = 0.0) -> None:
        self.process.receive(told, value, error, delay=delay or self._server.delay())

    def crash(self) -> None:
        self._home.crash()

    def now(self) -> float:
        return self.clock.now()

    def owns(self, id: str) -> bool:
        """Report whether this process holds an invocation, as the store knows it."""
        member = self.member
        return member is not None and member.open and self._store.dispatcher.owner(id) is member

    # --- writes -------------------------------------------------------------------------------------------------------
    def _write(self, what: str, id: str, write: Writing, told: Told) -> None:
        """Send a write, which meets the next fault of the plan."""
        fault = self._faults.of_write()
        if fault is None:
            self.send(self._perform, write, partial(self.reply, told), None)
            return
        self._server.trace.note(fault.kind, id, (what, fault.amount))
        self._server.trace.count(fault.kind)
        self._faulty(fault, id, write, told)

    def _faulty(self, fault: Fault, id: str, write: Writing, told: Told) -> None:
        """Send a write that a fault hits on its way, or on the way back."""
        reply = partial(self.reply, told)
        match fault.kind:
            case "crash before":
                self._home.crash()
            case "crash within":
                self.send(self._perform, write, reply, int(fault.amount))
            case "refused":
                self.send(reply, None, StoreFull("the store is full, as the plan says"))
            case "answer lost":
                away = StoreUnavailable("the store is away, as the plan says")
                self.send(self._perform, write, _nothing, None)
                self.send(reply, None, away)
            case "unforeseen":
                self.send(reply, None, RuntimeError(UNFORESEEN))
            case "slow":
                self.send(self._perform, write, reply, None, delay=fault.amount)
            case "late answer":
                self.send(self._perform, write, partial(self.reply, told, delay=fault.amount), None)
            case "fenced":
                self.send(self._server.expire, self)
                self.send(self._perform, write, reply, None)
            case "later release" | "unknown":
                self.send(self._perform, write, reply, None)
                self.send(self._server.make_unreadable, id, fault.kind, fault.amount)
            case "redelivery":
                self.send(self._store.redeliver)
                self.send(self._perform, write, reply, None)
            case _:
                self.send(self._perform, write, reply, None)
                self._hit(fault)

    def _hit(self, fault: Fault) -> None:
        """Let a fault hit the process, right after it has sent a write."""
        match fault.kind:
            case "crash after":
                self.send(self._home.crash)
            case "stand still":
                self._server.stands_still(self, fault.amount)
                self.process.stand_still(fault.amount)
                self.process.call_later(fault.amount, self._renew)
            case "clock":
                self.clock.jump(fault.amount)
            case "stop":
                self._home.stop(fault.amount)
            case "outage":
                self.send(self._home.outage)
            case _:
                raise AssertionError(fault)

    def _perform(self, write: Writing, reply: Told, dies_in: int | None) -> None:
        self._server.write(self, lambda: write(reply), dies_in)

    def _renew(self) -> None:
        self.send(self._server.renew, self)

    def commit(self, transition: Transition, told: Committed, /) -> None:
        def written(revision: Any, error: Exception | None) -> None:
            if isinstance(error, Conflict):
                self._server.trace.count("write of a former owner fenced")
            told(revision or 0, error)

        id, sent = transition.id, self._by_the_stores_clock(transition)
        if transition.frame is not None and any(type(entry) is Claimed for entry in transition.frame.entries):
            self._left.discard(id)  # it takes it over anew: a delivery was still in hand
        elif id in self._left:
            self._server.breach(11, f"{id}: {self.name} writes what it was told that it lost")
        self._write("commit", id, lambda reply: self._store.commit(sent, reply), written)

    def _by_the_stores_clock(self, transition: Transition) -> Transition:
        """Set the wake for when it is due by the clock of this process, as a store of many processes must."""
        wake, apart = transition.effects.wake, self._store.clock.now() - self.clock.now()
        if wake is None or not apart:
            return transition
        return replace(transition, effects=replace(transition.effects, wake=wake + apart + TICK_SECONDS))

    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        return self._accept("submit", starts[0].id, lambda: self._store.submit(starts))

    def post(self, message: Message, /) -> asyncio.Future[None]:
        return self._accept("post", message.to, lambda: self._store.post(message))

    async def purge(self, before: float, /, *, limit: int, id: str | None = None) -> int:
        def write(reply: Told) -> None:
            _drive(self._store.purge(before, limit=limit, id=id), reply)

        future = self.process.create_future()
        self._write("purge", id or "", write, partial(_end, future))
        return await future

    async def rewrite(self, rewriting: Rewriting, after: str = "", /) -> Part:
        return await self._store.rewrite(rewriting, after)  # without faults: no program of a simulation asks for it

    def _accept(self, what: str, id: str, accept: Callable[[], asyncio.Future[T]]) -> asyncio.Future[T]:
        def write(reply: Told) -> None:
            accepted = accept()  # the memory store has ended it by now
            error = accepted.exception()
            reply(None if error is not None else accepted.result(), error)  # pyright: ignore[reportArgumentType]

        future: asyncio.Future[T] = self.process.create_future()
        self._write(what, id, write, partial(_end, future))
        return future

    # --- deliveries ---------------------------------------------------------------------------------------------------
    def subscribe(
        self,
        handlers: Collection[str],
        deliver: Callable[[Delivery], None],
        *,
        partitions: Collection[int] | None = None,
        lost: Callable[[str], None] | None = None,
        lease: float = LEASE_SECONDS,
    ) -> Subscription:
        self._deliver, self._lost = deliver, lost
        self.send(self._join, [*handlers])
        return _FaceSubscription(self)

    def _join(self, handlers: list[str]) -> None:
        if not self.process.is_ended:
            self.member = self._store.subscribe(handlers, partial(self._server.deliver, self))

    def with_member(self, work: Callable[[Member], object]) -> None:
        """Have the store's process do something with the subscription."""

        def do() -> None:
            if self.member is not None:
                work(self.member)

        self.send(do)

    def take(self, delivery: Delivery) -> None:
        """Hand a delivery to the worker."""
        self._left.discard(delivery.id)
        if self._deliver is not None:
            self._deliver(delivery)

    def handed_back(self, id: str) -> None:
        """Note that the worker gives back all that it holds of an invocation."""
        self._server.handed_back(self, id)

    def tell_lost(self, id: str) -> None:
        """Tell the worker that another process has claimed an invocation."""
        self.process.receive(self._lose, id)

    def _lose(self, id: str) -> None:
        self._server.handed_back(self, id)
        self._server.trace.note("lost", id)
        self._server.trace.count("process told that it was taken over")
        if self._lost is not None:
            self._lost(id)
            self._left.add(id)

    # --- reads --------------------------------------------------------------------------------------------------------
    async def ask(self, what: str, id: str, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Ask the store's process something, and wait for the answer."""
        future: asyncio.Future[T] = self.process.create_future()
        told: Told = partial(_end, future)
        fault = self._faults.of_read()
        if fault is None:
            self.send(lambda: _drive(question(), partial(self.reply, told)))
        else:
            self._server.trace.note(fault.kind, id, what)
            self._server.trace.count(fault.kind)
            self.send(self.reply, told, None, _read_error(fault, id))
        return await future

    async def journal(self, id: str, /) -> Journal:
        try:
            return await self.ask("journal", id, lambda: self._store.journal(id))
        except (NewerJournal, StoreDamaged):
            self._server.met_unreadable(self, id)
            raise

    async def revision(self, id: str, /) -> int:
        return await self.ask("revision", id, lambda: self._store.revision(id))

    async def outcome(self, id: str, /) -> Outcome | None:
        return await self.ask("outcome", id, lambda: self._store.outcome(id))

    async def start(self, id: str, /) -> Start | None:
        return await self.ask("start", id, lambda: self._store.start(id))

    async def key(self, name: str, /) -> Key:
        return await self.ask("key", name, lambda: self._store.key(name))

    async def mail(self, id: str, /) -> list[Message]:
        return await self.ask("mail", id, lambda: self._store.mail(id))

    async def row(self, id: str, /) -> Row | None:
        return await self.ask("row", id, lambda: self._store.row(id))

    async def search(self, filter: Filter, /) -> list[Row]:
        return await self.ask("search", "", lambda: self._store.search(filter))

    async def awakeables(self, filter: AwakeableFilter, /) -> list[Awakeable]:
        return await self.ask("search", "", lambda: self._store.awakeables(filter))

    async def counts(self) -> Counts:
        return await self.ask("counts", "", self._store.counts)

    async def minutes(
        self, since: float, /, *, handler: str | None = None, within: float | None = None
    ) -> list[Minute]:
        return await self.ask("minutes", "", lambda: self._store.minutes(since, handler=handler, within=within))

    # --- waits --------------------------------------------------------------------------------------------------------
    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = self.process.create_future()
        self.send(lambda: self._pass_on(self._store.watch(id), future))
        return future

    async def answer(self, message_id: str, /) -> Answer:
        future: asyncio.Future[Answer] = self.process.create_future()

        def ask() -> None:
            self._pass_on(self._server.process.create_task(self._store.answer(message_id)), future)

        self.send(ask)
        return await future

    def _pass_on(self, inner: asyncio.Future[T], future: asyncio.Future[T]) -> None:
        """Push what is awaited, once; a push that is lost is found by the next poll."""

        def ended(done: asyncio.Future[T]) -> None:
            if not done.cancelled():
                error = done.exception()
                value = None if error is not None else done.result()
                delay = POLL_SECONDS if self._server.loses("push") else 0.0
                self.reply(partial(_end, future), value, error, delay)  # pyright: ignore[reportArgumentType]

        inner.add_done_callback(ended)

    def events(self, filter: Filter, /) -> Events:
        return _FaceEvents(self, self._server, filter, watching.get())

    def close_feeds(self) -> None:
        """Have the store push nothing more to a process that has ended."""
        for each in [*self.feeds]:
            each.close_in_store()

    def serves(self, handler: str, /) -> bool:
        return self._store.serves(handler)

    def served(self) -> Collection[str]:
        return self._store.served()


class _FaceEvents:
    """A feed of the store, read by messages. What was pushed and not read may be lost: the reader is told so."""

    def __init__(self, face: Face, server: Server, filter: Filter, seen: Seen | None) -> None:
        self.filter = filter
        self._face = face
        self._server = server
        self._seen = seen
        self._feed: Feed | None = None
        self._reading: asyncio.Task[list[Row] | None] | None = None
        self._told = 0  # of all changes, those of which the reader was told
        face.feeds.append(self)
        face.send(self._open)

    async def next(self) -> list[Row] | None:
        future: asyncio.Future[list[Row] | None] = self._face.process.create_future()
        self._face.send(self._next, future)
        return await future

    def close(self) -> None:
        self._face.send(self.close_in_store)

    # --- in the store's process ---------------------------------------------------------------------------------------
    def _open(self) -> None:
        if self in self._face.feeds:
            self._feed = self._server.store.events(self.filter)
            self._told = len(self._server.store.changes)
            if self._seen is not None:
                self._seen.began = self._told

    def close_in_store(self) -> None:
        if self in self._face.feeds:
            self._face.feeds.remove(self)
        if self._feed is not None:
            self._feed.close()
        if self._reading is not None:
            self._reading.cancel()

    def _next(self, future: asyncio.Future[list[Row] | None]) -> None:
        feed = self._feed
        if feed is None or self not in self._face.feeds:
            return
        if self._server.loses("change"):
            feed.miss()
            self._told = len(self._server.store.changes)
        self._reading = self._server.process.create_task(self._read(feed))
        self._reading.add_done_callback(partial(self._tell, future))

    async def _read(self, feed: Feed) -> list[Row] | None:
        rows, changes = await feed.next(), self._server.store.changes
        if rows is not None and not self._face.process.is_ended:  # else the store may be another by now
            if rows != (newest := pushed(changes, self._told, self.filter)):
                self._server.breach(20, f"a feed of {self._face.name} tells {rows}, and this is new: {newest}")
            self._told = len(changes)
        return rows

    def _tell(self, future: asyncio.Future[list[Row] | None], reading: asyncio.Task[list[Row] | None]) -> None:
        if not reading.cancelled() and self in self._face.feeds:
            error = reading.exception()
            self._face.reply(partial(_end, future), None if error is not None else reading.result(), error)  # pyright: ignore[reportArgumentType]


class _FaceSubscription:
    """What a worker asks of the store, sent to it in order."""

    def __init__(self, face: Face) -> None:
        self._face = face

    def request(self, starts: int, /) -> None:
        self._face.with_member(lambda member: member.request(starts))

    def acknowledge(self, delivery: Delivery, /) -> None:
        self._face.with_member(lambda member: member.acknowledge(delivery))

    def hand_back(self, delivery: Delivery, /) -> None:
        self._face.with_member(lambda member: member.hand_back(delivery))

    def decline(self, delivery: Delivery, reason: str, /) -> None:
        self._face.handed_back(delivery.id)
        self._face.with_member(lambda member: member.decline(delivery, reason))

    def close(self) -> None:
        self._face.with_member(lambda member: member.close())


def _nothing(_: Any, __: Exception | None) -> None:
    """Tell nobody."""


def _end(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def _drive(question: Coroutine[Any, Any, Any], told: Told) -> None:
    """Run a coroutine of the memory store, which never waits, and tell what it returns."""
    try:
        question.send(None)
    except StopIteration as found:
        told(found.value, None)
    except Violation:
        raise
    except Exception as error:  # noqa: BLE001  it is told instead
        told(None, error)
    else:
        raise AssertionError("a read of the memory store waits")


def _read_error(fault: Fault, id: str) -> Exception:
    match fault.kind:
        case "newer":
            return NewerJournal(f"the journal of {id!r} was written by a newer release", invocation_id=id)
        case "read raises":
            return RuntimeError(UNFORESEEN)
        case _:
            return StoreUnavailable("the store is away, as the plan says")
