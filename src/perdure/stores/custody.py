"""Tracks which worker of this process holds which invocation. Shared by the stores that hand out deliveries.

An invocation has one owner among the workers. A worker owns it while it holds an unacknowledged delivery or a claim.
Nothing here is durable, and nothing knows where deliveries come from: see
`local.dispatch` for the stores of one process, `jetstream.ownership.holdings` for one that several processes share.

It runs on one event loop and is not thread-safe.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from perdure.background import RateLimitedLog
from perdure.core.journal import Message, Start
from perdure.stores.port import Delivery

DECLINED_LIMIT = 10_000
"""Invocations of which it is known that a worker declined them; beyond it, it is offered the oldest again."""

DECLINED_SECONDS = 60.0
"""How long a worker is not offered an invocation that it declined; each time it declines it again, twice as long."""

DECLINED_LONGEST_SECONDS = 3600.0
"""The longest that a worker is not offered an invocation that it declined."""

log = logging.getLogger("perdure.store")


class Hold(Struct, eq=False):
    """What one worker holds of one invocation: deliveries to acknowledge, and perhaps a claim."""

    id: str
    handler: str
    deliveries: list[Delivery] = []
    claimed: bool = False


class Declined(Struct):
    """What a worker declined: how often, and until when it is not offered it again, in the loop's time."""

    times: int = 0
    until: float = 0.0


H = TypeVar("H", bound=Hold)


class Member(Generic[H]):
    """One worker's subscription."""

    def __init__(
        self,
        custody: Custody[H],
        handlers: Collection[str],
        deliver: Callable[[Delivery], None],
        partitions: Collection[int] | None = None,
        lost: Callable[[str], None] | None = None,
    ) -> None:
        self.handlers = frozenset(handlers)
        self.partitions = partitions
        self.deliver = deliver
        self.lost = lost
        self.credit = 0
        self.open = True
        self.held: dict[str, H] = {}
        self.declined: dict[str, Declined] = {}  # invocations that it cannot run, oldest first
        self._custody = custody

    def takes(self, partition: int) -> bool:
        return self.partitions is None or partition in self.partitions

    def request(self, starts: int, /) -> None:
        self.credit += starts
        self._custody.pump()

    def acknowledge(self, delivery: Delivery, /) -> None:
        self._custody.finish(delivery)

    def hand_back(self, delivery: Delivery, /) -> None:
        self._custody.let_go(delivery)
        self._custody.take_back(self, delivery)

    def decline(self, delivery: Delivery, reason: str, /) -> None:
        if not self.open:
            return  # what it held is for others already
        declined = self.declined[delivery.id] = self.declined.pop(delivery.id, None) or Declined()
        wait = min(DECLINED_SECONDS * 2 ** min(declined.times, 16), DECLINED_LONGEST_SECONDS)
        declined.times += 1
        declined.until = asyncio.get_running_loop().time() + wait
        if len(self.declined) > DECLINED_LIMIT:
            del self.declined[next(iter(self.declined))]
        self._custody.decline(self, delivery, reason)

    def may_take(self, delivery: Delivery) -> bool:
        """Report whether it serves the handler and has not declined the invocation a while ago."""
        if delivery.handler not in self.handlers:
            return False
        declined = self.declined.get(delivery.id)
        return declined is None or declined.until <= asyncio.get_running_loop().time()

    def close(self) -> None:
        if self.open:
            self.open = False
            self._custody.leave(self)


def sent_at(delivery: Delivery) -> float:
    """Return when a message was sent; 0 for what has no place among messages."""
    return delivery.item.at if isinstance(delivery.item, Message) else 0.0


class Custody(ABC, Generic[H]):
    """Hands deliveries to members, and knows which member holds what."""

    def __init__(self) -> None:
        self.members: list[Member[H]] = []
        self._owners: dict[str, Member[H]] = {}
        self._parked: dict[str, list[Delivery]] = {}  # messages for invocations that have not begun
        self._shaken: set[str] = set()  # invocations whose owner here ended without releasing them
        self._declined: dict[str, list[Delivery]] = {}  # deliveries that every worker here declined
        self._offering: asyncio.TimerHandle | None = None  # it will offer what was declined once more
        self._log = RateLimitedLog(log)

    # --- what a store adds --------------------------------------------------------------------------------------------
    @abstractmethod
    def pump(self) -> None:
        """Hand out starts that wait while there is room."""

    @abstractmethod
    def finish(self, delivery: Delivery) -> None:
        """Acknowledge outside of a commit."""

    @abstractmethod
    def take_back(self, member: Member[H], delivery: Delivery) -> None:
        """Keep what a member has given back, for another member or for later."""

    @abstractmethod
    def leave(self, member: Member[H]) -> None:
        """End a worker's claims, and deliver what it held to others at once."""

    @abstractmethod
    def _new_hold(self, delivery: Delivery) -> H: ...

    @abstractmethod
    def _let_gone(self, hold: H) -> None:
        """Note that an invocation is no longer held."""

    # --- what is held -------------------------------------------------------------------------------------------------
    def serves(self, handler: str) -> bool:
        for member in self.members:  # noqa: SIM110  a generator would double the cost, for every start
            if handler in member.handlers:
                return True
        return False

    def served(self) -> set[str]:
        """Return the handlers that workers here serve."""
        return {handler for member in self.members for handler in member.handlers}

    def owner(self, id: str) -> Member[H] | None:
        """Return the member that holds an invocation, if one does."""
        return self._owners.get(id)

    def hold_of(self, id: str) -> H | None:
        member = self._owners.get(id)
        return None if member is None else member.held[id]

    def has(self, id: str) -> bool:
        """Report whether a member holds anything for an invocation, or something waits here for it."""
        return id in self._owners or id in self._parked or id in self._declined

    # --- handing over -------------------------------------------------------------------------------------------------
    def offer(self, delivery: Delivery, *, begun: bool = True) -> bool:
        """Deliver a message or wake to the owner, or to a member that serves the handler; false if none does.

        A message for an invocation that has not `begun` waits here for its start.
        """
        member = self._owners.get(delivery.id)
        if member is None:
            if not begun:
                parked = self._parked.setdefault(delivery.id, [])
                parked.append(delivery)
                if delivery.attempt > 1:  # it was accepted before this process opened the store, or by those before
                    parked.sort(key=sent_at)
                return True
            serving = [member for member in self.members if member.may_take(delivery)]
            if not serving:
                if not self.serves(delivery.handler):
                    return False
                self._keep(delivery)  # all that serve it declined it
                return True
            member = min(serving, key=lambda each: len(each.held))
            delivery = self._as_seen(delivery)
        self.hand(member, delivery)
        return True

    def hand(self, member: Member[H], delivery: Delivery) -> None:
        """Deliver to a member, which owns the invocation from now on; messages parked for its start follow."""
        hold = member.held.get(delivery.id)
        if hold is None:
            hold = member.held[delivery.id] = self._new_hold(delivery)
            self._owners[delivery.id] = member
        hold.deliveries.append(delivery)
        if isinstance(delivery.item, Start):
            member.credit -= 1  # whatever brings it: the worker counts it too. Below 0, it came unasked
        member.deliver(delivery)
        if self._parked and isinstance(delivery.item, Start):
            for message in self._parked.pop(delivery.id, ()):
                self.hand(member, message)

    def _as_seen(self, delivery: Delivery) -> Delivery:
        """Mark a delivery as one that a worker may have begun, if a worker that held its invocation ended here."""
        if delivery.attempt == 1 and delivery.id in self._shaken:
            return replace(delivery, attempt=2)
        return delivery

    # --- what workers cannot run --------------------------------------------------------------------------------------
    def decline(self, member: Member[H], delivery: Delivery, reason: str) -> None:
        """Take back all that a member holds of an invocation that it cannot run: another member gets it, or it waits.

        The deliveries come again as ones that a worker may have begun.
        """
        hold = member.held.pop(delivery.id, None)
        if hold is not None:
            del self._owners[delivery.id]
        given_back = [delivery] if hold is None or not hold.deliveries else hold.deliveries
        self._shaken.add(delivery.id)
        self._log(
            ("declined", delivery.handler),
            "invocation %s (%s) is handed back, for a worker that can run it: %s",
            *(delivery.id, delivery.handler, reason),
            level=logging.WARNING,
        )
        for each in given_back:
            self._offer_or_keep(replace(each, attempt=each.attempt + 1, fresh=False))
        if hold is not None:
            self._let_gone(hold)

    def _offer_or_keep(self, delivery: Delivery) -> None:
        """Hand a delivery to its owner or to another member that may take it, or keep it until one joins."""
        owner = self._owners.get(delivery.id) or next((each for each in self.members if each.may_take(delivery)), None)
        if owner is not None:
            self.hand(owner, delivery)
        else:
            self._keep(delivery)

    def _keep(self, delivery: Delivery) -> None:
        """Keep a delivery that every worker here declined: the journal may be repaired, or another worker join."""
        self._declined.setdefault(delivery.id, []).append(delivery)
        self._offer_later()

    def _offer_later(self) -> None:
        if self._offering is None:
            self._offering = asyncio.get_running_loop().call_later(DECLINED_SECONDS, self._offer_declined_again)

    def _offer_declined_again(self) -> None:
        """Hand what was declined to those that may be offered it by now."""
        self._offering = None
        for member in [*self.members]:
            self._offer_declined(member)
        if self._declined:
            self._offer_later()

    def _offer_declined(self, member: Member[H]) -> None:
        """Hand what all others declined to a member that has joined, or that declined it a while ago."""
        for id, waiting in [*self._declined.items()]:
            if member.open and member.may_take(waiting[0]):
                for delivery in self._declined.pop(id):
                    self.hand(self._owners.get(id) or member, delivery)

    # --- letting go ---------------------------------------------------------------------------------------------------
    def let_go(self, delivery: Delivery) -> None:
        """Forget that a delivery is held."""
        member = self._owners.get(delivery.id)
        if member is not None:
            hold = member.held[delivery.id]
            if delivery in hold.deliveries:
                hold.deliveries.remove(delivery)
            self._drop_if_done(member, hold)

    def _drop_if_done(self, member: Member[H], hold: H) -> None:
        if not hold.deliveries and not hold.claimed:
            del member.held[hold.id]
            del self._owners[hold.id]
            self._let_gone(hold)

    def _dispossess(self, member: Member[H]) -> dict[str, H]:
        """Take back and return everything that a leaving member holds."""
        self.members.remove(member)
        held, member.held = member.held, {}
        for id in held:
            del self._owners[id]
        self._shaken.update(held)
        return held

    def _disband(self) -> None:
        """End all members."""
        for member in self.members:
            member.open = False
        self.members.clear()
        self._owners.clear()
        self._declined.clear()
        if self._offering is not None:
            self._offering.cancel()
            self._offering = None

    def _other_than(self, member: Member[H], delivery: Delivery) -> Member[H] | None:
        """Return another member that may take a delivery."""
        return next((each for each in self.members if each is not member and each.may_take(delivery)), None)
