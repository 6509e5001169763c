"""One store of those that are compared, with a worker's view of it: what is in hand, and the revisions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping
from typing import Any

from perdure.core.journal import Message, Start, settles_before_begin
from perdure.stores.clock import VirtualClock
from perdure.stores.memory import MemoryStore
from perdure.stores.port import Delivery, Store, Subscription, Wake

MakeStore = Callable[[Store | None], Store]
"""Makes a new store, or one over what the given one left."""


class Side:
    """A store under test, in this process or (not `is_local`) on a server.

    `clock` is the virtual one that it goes by, if it can go by one.
    """

    def __init__(self, name: str, make: MakeStore, clock: VirtualClock | None = None, *, is_local: bool = True) -> None:
        self.is_local = is_local
        self.name = name
        self.clock = clock
        self._make = make
        self.store = make(None)
        self.in_hand: dict[str, list[Delivery]] = {}  # by invocation: delivered, and not acknowledged
        self.arrived: dict[str, list[str]] = {}  # by handler: starts without a key, in the order they first came in
        self.revisions: dict[str, list[int]] = {}
        self.faults: list[str] = []
        self._subscriptions: dict[str, Subscription] = {}
        self.waits: dict[str, asyncio.Future[Any]] = {}

    async def open(self) -> None:
        await self.store.open()

    async def close(self) -> None:
        self.lose_process()
        await self.store.aclose()

    async def reopen(self) -> None:
        await self.close()
        self.store = self._make(self.store)
        await self.store.open()

    def lose_process(self) -> None:
        """Forget what a process holds in memory."""
        for wait in self.waits.values():
            wait.cancel()
        self.waits.clear()
        self.in_hand.clear()
        self._subscriptions.clear()

    # --- subscriptions ------------------------------------------------------------------------------------------------
    def subscribe(self, handler: str, room: int) -> None:
        def deliver(delivery: Delivery) -> None:
            self.in_hand.setdefault(delivery.id, []).append(delivery)
            if isinstance(delivery.item, Start) and delivery.item.key is None:
                arrived = self.arrived.setdefault(handler, [])
                if delivery.id not in arrived:
                    arrived.append(delivery.id)

        subscription = self.store.subscribe([handler], deliver)
        self._subscriptions[handler] = subscription
        subscription.request(room)

    def request(self, handler: str, room: int) -> None:
        self._subscriptions[handler].request(room)

    def unsubscribe(self, handler: str) -> None:
        subscription = self._subscriptions.pop(handler)
        for id, deliveries in [*self.in_hand.items()]:
            if deliveries and deliveries[0].handler == handler:
                del self.in_hand[id]
        subscription.close()

    def subscription(self, handler: str) -> Subscription:
        return self._subscriptions[handler]

    def forget_arrival(self, id: str) -> None:
        for arrived in self.arrived.values():
            if id in arrived:
                arrived.remove(id)

    # --- deliveries ---------------------------------------------------------------------------------------------------
    def take(self, id: str, chosen: Callable[[Delivery], bool]) -> list[Delivery]:
        """Remove and return deliveries of an invocation that are in hand."""
        deliveries = self.in_hand.pop(id, [])
        if kept := [each for each in deliveries if not chosen(each)]:
            self.in_hand[id] = kept
        return [each for each in deliveries if chosen(each)]

    def held(self) -> dict[str, set[str]]:
        """Return what is in hand, by invocation."""
        return {id: {name_of(each) for each in deliveries} for id, deliveries in self.in_hand.items()}

    def compared(self, begun: Mapping[str, Container[str]]) -> dict[str, set[str]]:
        """Return what is in hand of all that must be. `begun` are the messages with which each journal has dealt.

        A wake is a hint: one that comes beside something else says nothing more. A message with which the journal has
        dealt says what a wake says, and so does a start of what has begun: on a server it may be what brings a claim. A
        message that waits for its start may come to a worker that has the invocation already, by a wake.
        """
        compared: dict[str, set[str]] = {}
        for id, deliveries in self.in_hand.items():
            known = begun.get(id, ())
            names = {name_of(each) for each in deliveries if not _is_of(each, known)}
            if id in begun and "start" in names:
                names = names - {"start"} | {"wake"}
            if any(_is_of(each, known) for each in deliveries):
                names.add("wake")
            if "start" not in names and id not in begun:
                names = {name_of(each) for each in deliveries if _ends_unbegun(each)}
            if names:
                compared[id] = names - {"wake"} or names
        return compared

    def order(self, id: str, names: Container[str]) -> list[str]:
        """Return in which order these are in hand."""
        return [name for name in dict.fromkeys(map(name_of, self.in_hand[id])) if name in names]

    # --- revisions ----------------------------------------------------------------------------------------------------
    def revision(self, id: str) -> int:
        """Return the revision that the last commit gave, 0 before the first."""
        return self.revisions.get(id, [0])[-1]

    def number_of(self, id: str, revision: int) -> int | str:
        """Return how many commits made this revision: revisions grow, and their numbers mean nothing else."""
        known = [0, *self.revisions.get(id, [])]
        return known.index(revision) if revision in known else f"unknown revision {revision}"


def _is_of(delivery: Delivery, known: Container[str]) -> bool:
    return isinstance(delivery.item, Message) and delivery.item.id in known


def _ends_unbegun(delivery: Delivery) -> bool:
    item = delivery.item
    return isinstance(item, Wake) or (isinstance(item, Message) and settles_before_begin(item))


def name_of(delivery: Delivery) -> str:
    match delivery.item:
        case Start():
            return "start"
        case Message(id=id):
            return f"message {id}"
        case _:
            return "wake"


def memory(clock: VirtualClock | None) -> Side:
    """Return the executable specification, with which the others are compared."""

    def make(before: Store | None) -> Store:
        if before is None:
            return MemoryStore(clock)
        assert isinstance(before, MemoryStore)
        before.restart()
        return before

    return Side("memory", make, clock)
