"""The store as one process sees it: the port, over messages to the store's process, with the faults of the plan.

A process that has ended is not heard any more: what it had sent may still arrive, and no answer reaches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from msgspec.structs import replace

from perdure.core.journal import Answer, Claimed, Message, Outcome, Start
from perdure.errors import Conflict, NewerJournal, StoreFull, StoreUnavailable
from perdure.stores.documents import Document, DocumentKey, DocumentStore, Fence, Scan, Write
from perdure.stores.local.dispatch import Member
from perdure.stores.port import (
    LEASE_SECONDS,
    Committed,
    Counts,
    Delivery,
    Events,
    Filter,
    Journal,
    Key,
    Row,
    Subscription,
    Transition,
)
from perdure.testing.simulation.clock import TICK_SECONDS, ProcessClock
from perdure.testing.simulation.faults import Faults
from perdure.testing.simulation.loop import Process
from perdure.testing.simulation.plan import Fault
from perdure.testing.simulation.server import Server

T = TypeVar("T")

UNFORESEEN = "nobody foresaw this"

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


class Face:
    """The `Store` of one process."""

    def __init__(self, server: Server, process: Process, clock: ProcessClock, faults: Faults, home: Home) -> None:
        self.process = process
        self.name = process.name
        self.clock = clock
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
        self._left: set[str] = set()  # what the worker was told that it lost, and has got nothing for since

    async def open(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    # --- messages -----------------------------------------------------------------------------------------------------
    def _send(self, work: Callable[..., object], *args: Any, delay: float = 0.0) -> None:
        """Have the store's process do something, after all that was sent before without a delay."""
        if not self.process.is_ended:
            self._server.process.receive(work, *args, delay=delay)

    def _reply(self, told: Told, value: Any, error: Exception | None, delay: float = 0.0) -> None:
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
            self._send(self._perform, write, partial(self._reply, told), None)
            return
        self._server.trace.note(fault.kind, id, (what, fault.amount))
        self._server.trace.count(fault.kind)
        self._faulty(fault, write, told)

    def _faulty(self, fault: Fault, write: Writing, told: Told) -> None:
        """Send a write that a fault hits on its way, or on the way back."""
        reply = partial(self._reply, told)
        match fault.kind:
            case "crash before":
                self._home.crash()
            case "crash within":
                self._send(self._perform, write, reply, int(fault.amount))
            case "refused":
                self._send(reply, None, StoreFull("the store is full, as the plan says"))
            case "answer lost":
                away = StoreUnavailable("the store is away, as the plan says")
                self._send(self._perform, write, _nothing, None)
                self._send(reply, None, away)
            case "unforeseen":
                self._send(reply, None, RuntimeError(UNFORESEEN))
            case "slow":
                self._send(self._perform, write, reply, None, delay=fault.amount)
            case "late answer":
                self._send(self._perform, write, partial(self._reply, told, delay=fault.amount), None)
            case "fenced":
                self._send(self._server.expire, self)
                self._send(self._perform, write, reply, None)
            case "redelivery":
                self._send(self._store.redeliver)
                self._send(self._perform, write, reply, None)
            case _:
                self._send(self._perform, write, reply, None)
                self._hit(fault)

    def _hit(self, fault: Fault) -> None:
        """Let a fault hit the process, right after it has sent a write."""
        match fault.kind:
            case "crash after":
                self._send(self._home.crash)
            case "stand still":
                self._server.stands_still(self, fault.amount)
                self.process.stand_still(fault.amount)
                self.process.call_later(fault.amount, self._renew)
            case "clock":
                self.clock.jump(fault.amount)
            case "stop":
                self._home.stop(fault.amount)
            case "outage":
                self._send(self._home.outage)
            case _:
                raise AssertionError(fault)

    def _perform(self, write: Writing, reply: Told, dies_in: int | None) -> None:
        self._server.write(self, lambda: write(reply), dies_in)

    def _renew(self) -> None:
        self._send(self._server.renew, self)

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
        self._send(self._join, [*handlers])
        return _FaceSubscription(self)

    def _join(self, handlers: list[str]) -> None:
        if not self.process.is_ended:
            self.member = self._store.subscribe(handlers, partial(self._server.deliver, self))

    def with_member(self, work: Callable[[Member], object]) -> None:
        """Have the store's process do something with the subscription."""

        def do() -> None:
            if self.member is not None:
                work(self.member)

        self._send(do)

    def take(self, delivery: Delivery) -> None:
        """Hand a delivery to the worker."""
        self._left.discard(delivery.id)
        if self._deliver is not None:
            self._deliver(delivery)

    def tell_lost(self, id: str) -> None:
        """Tell the worker that another process has claimed an invocation."""
        self.process.receive(self._lose, id)

    def _lose(self, id: str) -> None:
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
            self._send(lambda: _drive(question(), partial(self._reply, told)))
        else:
            self._server.trace.note(fault.kind, id, what)
            self._server.trace.count(fault.kind)
            self._send(self._reply, told, None, _read_error(fault, id))
        return await future

    async def journal(self, id: str, /) -> Journal:
        return await self.ask("journal", id, lambda: self._store.journal(id))

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

    async def counts(self) -> Counts:
        return await self.ask("counts", "", self._store.counts)

    # --- waits --------------------------------------------------------------------------------------------------------
    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = self.process.create_future()
        self._send(lambda: self._pass_on(self._store.watch(id), future))
        return future

    async def answer(self, message_id: str, /) -> Answer:
        future: asyncio.Future[Answer] = self.process.create_future()

        def ask() -> None:
            self._pass_on(self._server.process.create_task(self._store.answer(message_id)), future)

        self._send(ask)
        return await future

    def _pass_on(self, inner: asyncio.Future[T], future: asyncio.Future[T]) -> None:
        def ended(done: asyncio.Future[T]) -> None:
            if not done.cancelled():
                error = done.exception()
                value = None if error is not None else done.result()
                self._reply(partial(_end, future), value, error)  # pyright: ignore[reportArgumentType]

        inner.add_done_callback(ended)

    def events(self, filter: Filter, /) -> Events:
        raise NotImplementedError("simulated clients watch single outcomes")

    def serves(self, handler: str, /) -> bool:
        return self._store.serves(handler)

    def served(self) -> Collection[str]:
        return self._store.served()


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
