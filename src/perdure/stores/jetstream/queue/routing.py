"""Routes messages and wakes by what the journal says.

A message for an invocation that another process owns is offered to that process. A retry that waits for its key has no
owner yet: the wake that tells of the grant is offered to all processes, and the one that has the retry in hand takes
it. A process that does not serve the handler passes a delivery on to those that do. An invocation that ran on another
minor version of Python goes to workers of that version, as long as there are any, since the order of commands may
differ between versions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from perdure.background import Tasks
from perdure.core.journal import Answer, Message, decode_message, settles_before_begin
from perdure.errors import StoreError, unknown
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.journals import Journals, Tail
from perdure.stores.jetstream.keys.keys import GRANTED, LIMIT
from perdure.stores.jetstream.layout.facts import Facts, facts_of, lines_of
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.layout.subjects import token as escape
from perdure.stores.jetstream.ownership.holdings import Holdings, Member, Token
from perdure.stores.jetstream.ownership.leases import DUE, Leases
from perdure.stores.jetstream.queue.finding import Finder
from perdure.stores.jetstream.queue.offers import (
    NO_RESPONDERS,
    NOT_MINE,
    OFFER_TIMEOUT_SECONDS,
    TAKEN,
    Offer,
    Offers,
    decode_offer,
    token_of,
)
from perdure.stores.jetstream.queue.pulls import Arrival
from perdure.stores.jetstream.watching import Watching
from perdure.stores.jetstream.wire.protocol import WrongSequence
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Delivery, Wake

FAILED_SECONDS = 1.0
"""The back-off after a failure."""

log = logging.getLogger("perdure.jetstream")


Otherwise = Callable[[Delivery, str, Tail], None]
"""Called with a delivery that no process took, the last token of its subject, and the tail of its journal."""


class Routing:
    """Routes messages and wakes."""

    def __init__(
        self,
        wire: Wire,
        layout: Layout,
        journals: Journals,
        blobs: Blobs,
        leases: Leases,
        holdings: Holdings,
        finder: Finder,
        watching: Watching,
        tasks: Tasks,
        name: str,
        python: str,
    ) -> None:
        self._wire = wire
        self._layout = layout
        self._journals = journals
        self._blobs = blobs
        self._leases = leases
        self._holdings = holdings
        self._finder = finder
        self._watching = watching
        self._tasks = tasks
        self._name = name
        self._python = python
        self._offers = Offers(wire, blobs)
        self.came: list[tuple[Delivery, str]] = []  # to be routed, with the last token of the subject
        self._routing = False
        self._lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by id; see `_route`
        self.is_open = True

    # --- messages and wakes -------------------------------------------------------------------------------------------
    def route_soon(self, delivery: Delivery, name: str) -> None:
        must_wait = self.came or delivery.id in self._lines
        if not must_wait and (member := self._holdings.owner(delivery.id)) is not None:
            self._hand_to_owner(member, delivery)
            return
        self.came.append((delivery, name))  # after those being routed, some of which may be for the same id
        self._start_routing()

    def _hand_to_owner(self, member: Member, delivery: Delivery) -> None:
        hold = member.held[delivery.id]
        if any(_is_same(delivery, each) for each in hold.deliveries):
            for each in hold.deliveries:
                if _is_same(delivery, each):
                    each.token = delivery.token  # a redelivery, which replaces the token
        elif isinstance(delivery.item, Wake) and not delivery.token.urgent:
            self._holdings.wake(delivery)
        else:
            delivery.handler = hold.handler
            self._holdings.hand(member, delivery)

    async def _route_all(self) -> None:
        try:
            while self.came and self.is_open:
                batch = [*self.came]
                tails = await self._journals.tails([*dict.fromkeys(delivery.id for delivery, _ in batch)])
                del self.came[: len(batch)]
                for delivery, name in batch:
                    try:
                        self._route(delivery, name, tails[delivery.id])
                    except Exception as error:  # noqa: BLE001  only this delivery is deferred
                        self.defer(delivery, error)
        finally:
            self._routing = False
            if self.came and self.is_open:  # it failed
                asyncio.get_running_loop().call_later(FAILED_SECONDS, self._start_routing)

    def _start_routing(self) -> None:
        if not self._routing and self.is_open:
            self._routing = True
            self._tasks.spawn(self._route_all())

    def _spawn(self, delivery: Delivery, work: Coroutine[Any, Any, None]) -> None:
        """Go on with a delivery in the background; if the store closes before that ends, it is given back."""
        self._tasks.spawn(work).add_done_callback(partial(self._give_back, delivery))

    def _give_back(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        if task.cancelled() and isinstance(delivery.token, Token):
            self._leases.requeue(delivery.token)

    def _route(self, delivery: Delivery, name: str, tail: Tail) -> None:
        """Route a delivery after those that came before it for the same invocation: the order is that of sending."""
        if delivery.id in self._lines or _may_not_have_begun(tail):
            line = self._lines.setdefault(delivery.id, asyncio.Lock())
            self._spawn(delivery, self._route_in_line(line, delivery, name, tail))
        else:
            self._route_now(delivery, name, tail)

    async def _route_in_line(self, line: asyncio.Lock, delivery: Delivery, name: str, tail: Tail) -> None:
        async with line:  # it is fair: they come as they were sent
            if _may_not_have_begun(tail) and self._holdings.owner(delivery.id) is None:
                await self._route_before_begin(delivery, name, tail)
            else:
                self._route_now(delivery, name, tail)

    def _route_now(self, delivery: Delivery, name: str, tail: Tail) -> None:
        if (member := self._holdings.owner(delivery.id)) is not None:
            self._hand_to_owner(member, delivery)
        elif tail.facts.kind == "gone":
            self._spawn(delivery, self._drop(delivery))
        elif tail.problem and not tail.facts.owner:
            self.defer(delivery, tail.problem)
        elif tail.facts.owner not in ("", self._name):
            subject = self._layout.offers(tail.facts.owner)
            self._spawn(delivery, self._offer(delivery, name, tail, subject, self._deliver_here))
        elif name == GRANTED:
            subject = self._layout.offers_to_holder(tail.facts.handler)
            self._spawn(delivery, self._offer(delivery, name, tail, subject, self._deliver_here))
        else:
            self._deliver_here(delivery, name, tail)

    def defer(self, delivery: Delivery, why: str | Exception) -> None:
        """Leave a delivery to another worker: this release cannot act on it, or routing failed unexpectedly."""
        if isinstance(why, Exception) and not isinstance(why, StoreError):
            self._wire.limited_log(
                ("routing", delivery.id), "routing a delivery for invocation %s failed", delivery.id, exc_info=why
            )
        if isinstance(delivery.token, Token):
            self._leases.defer(delivery.token, f"invocation {delivery.id}", str(why))

    async def _drop(self, delivery: Delivery) -> None:
        """Drop a delivery for an invocation that does not exist; a message is answered with an error."""
        if isinstance(delivery.item, Message):
            await self._watching.give(Answer(delivery.item.id, str(unknown(delivery.item.to))))
        self._leases.acknowledge(delivery.token)

    def _deliver_here(self, delivery: Delivery, name: str, tail: Tail) -> None:
        """Deliver to a worker of this process, unless another with the invocation's version of Python takes it."""
        delivery.handler, python = tail.facts.handler, tail.facts.python
        if tail.problem:
            self.defer(delivery, tail.problem)
        elif self._holdings.serves(delivery.handler) and python not in ("", self._python):
            subject = self._layout.offers_of(python, delivery.handler)
            self._spawn(delivery, self._offer(delivery, name, tail, subject, self._deliver_to_other_python))
        else:
            self._deliver_to_worker(delivery, name, tail)

    def _deliver_to_other_python(self, delivery: Delivery, name: str, tail: Tail) -> None:
        text = "invocation %s (%s) ran on Python %s, and no worker of that version takes it: continuing on %s"
        log.warning(text, delivery.id, delivery.handler, tail.facts.python, self._python)
        self._deliver_to_worker(delivery, name, tail)

    def _deliver_to_worker(self, delivery: Delivery, name: str, tail: Tail) -> None:
        if tail.facts.owner:  # that process is gone
            delivery.attempt = max(2, delivery.attempt)
        if not self._holdings.serves(delivery.handler):
            self._spawn(delivery, self._pass_on(delivery, name))
        elif isinstance(delivery.item, Wake) and not delivery.token.urgent:
            self._holdings.wake(delivery)
        else:
            self._holdings.offer(delivery)

    async def _route_before_begin(self, delivery: Delivery, name: str, tail: Tail) -> None:
        """Route a delivery for an invocation that has not begun: park a message until its start is delivered here."""
        found = await self._finder.start(delivery.id, tail)
        if (member := self._holdings.owner(delivery.id)) is not None:
            self._hand_to_owner(member, delivery)
            return
        if found is None:
            again = await self._journals.tail(delivery.id)
            if not _may_not_have_begun(again):
                self._route_now(delivery, name, again)
            elif again.facts.kind == "reserved" != tail.facts.kind:
                await self._route_before_begin(delivery, name, again)  # it was accepted at this very moment
            else:
                await self._drop(delivery)
            return
        start, is_waiting = found
        delivery.handler = start.handler
        if not self._holdings.serves(start.handler):
            await self._pass_on(delivery, name)
        elif isinstance(delivery.item, Message):
            self._holdings.offer(delivery, begun=is_waiting and settles_before_begin(delivery.item))
        elif name == LIMIT and is_waiting:
            self._holdings.offer(delivery)
        else:
            self._leases.acknowledge(delivery.token)  # its start will be delivered

    async def _pass_on(self, delivery: Delivery, name: str) -> None:
        """Move a delivery to the queue of workers that serve its handler."""
        item = delivery.item
        # One that is in that queue already would be found there by the guard below, and lost. And a process that serves
        # nothing any more gives back what is still on its way to it: then messages keep their order.
        if delivery.token.is_passed_on or not self._holdings.members:
            self._leases.requeue(delivery.token)
            return
        subject = self._layout.passed_on(delivery.handler, delivery.id, name)
        if isinstance(item, Message):
            facts, data = await self._blobs.save(item.to, Facts(item.to, kind="message"), msgspec.msgpack.encode(item))
            try:
                await self._wire.store(subject, data, expected=0, headers=lines_of(facts))
            except WrongSequence:
                log.debug("%s was passed on already", subject)
        else:  # without a guard: a wake that is there may be an earlier one, on which a worker is acting already
            facts = Facts(delivery.id, kind="wake", number=delivery.token.number)
            await self._wire.store(subject, b"", headers=lines_of(facts))
        self._leases.acknowledge(delivery.token)

    def look_at_parked(self) -> None:
        """Route parked deliveries again: their invocations may have begun elsewhere."""
        if ids := [*dict.fromkeys(delivery.id for delivery in self._holdings.parked())]:
            self._tasks.spawn(self._look_at(ids))

    async def _look_at(self, ids: list[str]) -> None:
        for id, tail in (await self._journals.tails(ids)).items():
            if tail.has_frames or tail.facts.kind == "gone":
                for each in self._holdings.unpark(id):
                    if each.token is not None:  # else another process holds it
                        self._route(each, escape(each.item.id) if isinstance(each.item, Message) else DUE, tail)

    async def offer_unread(self, arrival: Arrival, error: Exception) -> None:
        """Offer a message that this release cannot read to the owner of its invocation, or defer it."""
        id = arrival.facts.id
        token = Token(arrival.reply, arrival.sequence, self._wire.now())
        owner = (await self._journals.tail(id)).facts.owner if id else ""
        if owner not in ("", self._name):
            offer = Offer(id, arrival.data, arrival.attempt, token.reply, token.sequence, token.urgent)
            if await self._offers.make(self._layout.offers(owner), offer) == TAKEN:
                return
        self._leases.defer(token, f"a message on {arrival.subject}", str(error))

    # --- offers -------------------------------------------------------------------------------------------------------
    async def _offer(self, delivery: Delivery, name: str, tail: Tail, subject: str, otherwise: Otherwise) -> None:
        """Offer a delivery on a subject. If no process takes it and the owner has not changed, call `otherwise`."""
        answer = await self._offers.ask(subject, delivery)
        if answer == TAKEN:
            return
        again = await self._journals.tail(delivery.id)
        if (again.facts.owner, again.facts.epoch) != (tail.facts.owner, tail.facts.epoch):
            self._route(delivery, name, again)
        elif delivery.attempt == 1 and (answer is None or (answer == NO_RESPONDERS and tail.facts.owner)):
            # A silent process may be busy, and an owner may be reconnecting: offer it once more.
            await asyncio.sleep(min(OFFER_TIMEOUT_SECONDS, self._leases.lease / 4))
            delivery.attempt = 2
            self.route_soon(delivery, name)
        else:
            otherwise(delivery, name, again)

    def offered(self, is_for_all: bool, _subject: str, reply: str, data: bytes, _headers: bytes) -> None:
        """Take an offer to this process if it owns the invocation, or an offer to all that serve the handler."""
        offer = decode_offer(data)
        if not self.is_open or not (is_for_all or self._holdings.owner(offer.id) is not None):
            self._wire.publish(reply, NOT_MINE)
            return
        if offer.message == b"":
            self._wire.publish(reply, TAKEN)
            self._tasks.spawn(self._fetch_offered(offer))
            return
        try:
            item: Message | Wake = Wake() if offer.message is None else decode_message(offer.message)
        except StoreError as error:
            self._wire.limited_log(("offered", offer.id), "refusing an offer for invocation %s: %s", offer.id, error)
            self._wire.publish(reply, NOT_MINE)
            return
        self._wire.publish(reply, TAKEN)
        token = token_of(offer, self._wire.now())
        name = escape(item.id) if isinstance(item, Message) else DUE
        self.route_soon(Delivery(offer.id, "", item, offer.attempt, token=token), name)

    def offered_to_holder(self, subject: str, reply: str, data: bytes, headers: bytes) -> None:
        """Take an offer that all processes get if this one holds the invocation. The others say nothing."""
        if self._holdings.owner(decode_offer(data).id) is not None:
            self.offered(False, subject, reply, data, headers)

    async def _fetch_offered(self, offer: Offer) -> None:
        """Read a large message that was offered. If that fails, it is not renewed, so it is redelivered."""
        stream = offer.reply.split(".")[-7]
        partition = self._layout.partition(offer.id)
        found = await self._wire.first(stream, f"{self._layout.namespace}.q.{partition}.>", offer.sequence)
        if found is not None and found.sequence == offer.sequence:
            facts = facts_of(found.headers)
            message = decode_message(await self._blobs.load(offer.id, facts, found.data))
            token = token_of(offer, self._wire.now())
            self.route_soon(Delivery(offer.id, "", message, offer.attempt, token=token), escape(message.id))


def _may_not_have_begun(tail: Tail) -> bool:
    """Report whether an invocation may be queued, and no more, according to the tail of its journal."""
    return not (tail.has_frames or tail.facts.kind == "gone" or (tail.problem and not tail.facts.owner))


def _is_same(one: Delivery, other: Delivery) -> bool:
    """Report whether two deliveries are of the same message in the queue."""
    if type(one.item) is not type(other.item):
        return False
    if not (isinstance(one.token, Token) and isinstance(other.token, Token)):  # read ahead: see `Admission`
        return isinstance(one.item, Message) and one.item == other.item
    return (
        one.token.sequence == other.token.sequence
        and one.token.reply.split(".")[2:4] == other.token.reply.split(".")[2:4]
    )
