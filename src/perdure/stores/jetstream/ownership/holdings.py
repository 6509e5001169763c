"""What the workers of this process hold, and which worker gets a delivery.

Unlike the dispatcher of the embedded stores, it has no table to fall back on: a delivery that no worker takes is
requeued at the server, by its token. An invocation that is claimed here keeps one delivery unacknowledged
(`Hold.kept`), or has a wake at the end of its lease: if this process dies, that delivers it to another.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator

from msgspec import Struct
from msgspec.structs import replace

from perdure.core.journal import Start
from perdure.stores import custody
from perdure.stores.port import Delivery, Wake


class Token(Struct, eq=False):
    """Acknowledges a delivery, by its reply subject. `sequence` is the same at every redelivery."""

    reply: str
    sequence: int
    at: float  # loop time of its arrival or last renewal
    came: float = 0.0  # loop time of its arrival
    urgent: bool = False  # a wake to be delivered to the owner at once
    done: bool = False
    number: int = 0  # of the frame that set this wake

    @property
    def times(self) -> int:
        """How often the server has delivered it."""
        return int(self.reply.split(".")[-5])

    @property
    def is_start(self) -> bool:
        """Report whether it is a start, which is redelivered only to a worker with room for one."""
        return self.reply.split(".")[-6].startswith("start-")

    @property
    def is_passed_on(self) -> bool:
        """Report whether it comes from the queue of workers that serve its handler."""
        return self.reply.split(".")[-6].startswith("to-")


class Hold(custody.Hold, eq=False):
    """What one worker holds of one invocation, and what delivers it to another process if this one dies."""

    since: float = 0.0  # loop time of the claim
    kept: Token | None = None  # unacknowledged while claimed, so that it is redelivered if this process dies
    leased: str = ""  # the schedule of the wake at the end of the lease, if there is one
    woken: Delivery | None = None  # a wake that fell due meanwhile
    suspected: int = 0  # the sequence at which the journal was read without an owner

    @property
    def has_delivery(self) -> bool:
        """Report whether an unacknowledged delivery would be redelivered to another process."""
        return any(isinstance(each.token, Token) and not each.token.done for each in self.deliveries)


Member = custody.Member[Hold]


class Actions(Struct):
    """What holdings ask of the other parts of the store."""

    acknowledge: Callable[[Token], None]
    requeue: Callable[[Token], None]  # at the server, for any worker
    defer: Callable[[Token, str, str], None]  # requeue with a delay, for a worker that can act on it
    wake_now: Callable[[str, Token | None], object]  # replace a start that has begun by a wake
    drop_lease: Callable[[Hold], None]
    protect: Callable[[Hold], None]  # set a wake for a claim without a delivery
    admit: Callable[[], None]  # starts were taken from the queue: see `taken`
    wants: Callable[[], None]  # the number of wanted starts may have changed
    left: Callable[[Member], None]


class Holdings(custody.Custody[Hold]):
    """Tracks holds, and hands deliveries to members."""

    def __init__(self, partition_of: Callable[[str], int], actions: Actions) -> None:
        super().__init__()
        self._partition_of = partition_of
        self._actions = actions
        self._queues: dict[str, dict[int, deque[Delivery]]] = {}  # by handler and partition; none is empty
        self.taken: deque[tuple[Member, Delivery]] = deque()  # starts for a member, to be admitted first

    # --- members ------------------------------------------------------------------------------------------------------
    def join(
        self,
        handlers: Collection[str],
        deliver: Callable[[Delivery], None],
        partitions: Collection[int] | None,
        lost: Callable[[str], None] | None,
    ) -> Member:
        member = Member(self, handlers, deliver, partitions, lost)
        self.members.append(member)
        return member

    def leave(self, member: Member) -> None:
        held = self._dispossess(member)
        for hold in held.values():
            for delivery in hold.deliveries:
                if isinstance(delivery.item, Start) and not self.serves(delivery.handler):
                    self._requeue(delivery)  # in order
        for id, hold in reversed(held.items()):  # starts are put back in front one by one: so they keep their order
            begun = not any(isinstance(delivery.item, Start) for delivery in hold.deliveries)
            for delivery in reversed(hold.deliveries) if not begun else hold.deliveries:
                again = replace(delivery, attempt=delivery.attempt + 1, fresh=False)
                if isinstance(delivery.item, Start):
                    self._put_back(again)
                else:
                    self._offer_or_requeue(again, begun=begun)
            self._pass_claim_on(id, hold)
        for id in [id for id, parked in self._parked.items() if not self.serves(parked[0].handler)]:
            for delivery in self._parked.pop(id):
                self._requeue(delivery)
        self._actions.left(member)
        self.pump()

    def _pass_claim_on(self, id: str, hold: Hold) -> None:
        if hold.woken is not None:
            self._offer_or_requeue(replace(hold.woken, attempt=2), begun=True)
        if not hold.claimed:
            return
        if hold.kept is not None:
            self._offer_or_requeue(Delivery(id, hold.handler, Wake(), 2, token=hold.kept), begun=True)
        elif hold.leased:
            self._actions.wake_now(id, None)

    def _offer_or_requeue(self, delivery: Delivery, *, begun: bool) -> None:
        if not self.offer(delivery, begun=begun):
            self._requeue(delivery)

    def _requeue(self, delivery: Delivery) -> None:
        token = delivery.token
        if isinstance(token, Token) and not token.done:
            if isinstance(delivery.item, Wake) and token.is_start:
                self._actions.wake_now(delivery.id, token)
            else:
                self._actions.requeue(token)

    def _put_back(self, delivery: Delivery) -> None:
        if self.serves(delivery.handler):
            self._queue_of(delivery).appendleft(delivery)
        else:
            self._requeue(delivery)

    def close(self) -> list[Hold]:
        """Forget everything; return the holds."""
        holds = [hold for member in self.members for hold in member.held.values()]
        self._disband()
        return holds

    def holds(self) -> Iterator[tuple[Member, Hold]]:
        for member in self.members:
            for hold in member.held.values():
                yield member, hold

    def waiting(self) -> Iterator[Delivery]:
        """Iterate over the deliveries that no worker has yet."""
        for queues in self._queues.values():
            for queue in queues.values():
                yield from queue
        for parked in self._parked.values():
            yield from parked
        for _, delivery in self.taken:
            yield delivery

    # --- starts -------------------------------------------------------------------------------------------------------
    def queue(self, delivery: Delivery) -> None:
        """Queue a start until a worker that serves it has room."""
        self._queue_of(delivery).append(delivery)

    def _queue_of(self, delivery: Delivery) -> deque[Delivery]:
        queues = self._queues.setdefault(delivery.handler, {})
        return queues.setdefault(self._partition_of(delivery.id), deque())

    def _take_first(self, handler: str, partition: int) -> Delivery:
        """Take the first start out of a queue."""
        queues = self._queues[handler]
        delivery = queues[partition].popleft()
        if not queues[partition]:
            del queues[partition]
            if not queues:
                del self._queues[handler]
        return delivery

    def requeue_waiting(self, before: float) -> None:
        """Requeue starts that came before a time and still wait here: other processes may have room."""
        for handler, partition in [(handler, each) for handler, queues in self._queues.items() for each in queues]:
            while (queue := self._queues.get(handler, {}).get(partition)) and _came(queue[0]) < before:
                self._requeue(self._take_first(handler, partition))

    def pump(self) -> None:
        """Take starts from the queues while there is room, to be admitted and then handed over."""
        before = len(self.taken)
        for member in [*self.members]:
            while member.credit > 0 and (queue := self._next_queue(member)) is not None:
                delivery = self._take_first(*queue)
                if (owner := self._owners.get(delivery.id)) is not None:
                    self.hand(owner, delivery)  # an invocation has one owner for all its deliveries
                elif (taker := self._taker_of(delivery, member)) is not None:
                    taker.credit -= 1
                    self.taken.append((taker, delivery))
                else:
                    self._keep(delivery)
        if len(self.taken) > before:
            self._actions.admit()
        self._actions.wants()

    def _taker_of(self, delivery: Delivery, first: Member) -> Member | None:
        """Return a member with room for a start that it has not declined: `first`, if it is one."""
        partition = self._partition_of(delivery.id)
        for member in (first, *self.members):
            if member.credit > 0 and member.takes(partition) and member.may_take(delivery):
                return member
        return None

    def room(self, handler: str, partition: int) -> int:
        """Return for how many more starts of a handler, from a partition, there is room."""
        credit = sum(member.credit for member in self.members if handler in member.handlers and member.takes(partition))
        queued = sum(map(len, self._queues.get(handler, {}).values()))
        return max(0, credit - queued)

    def hand_taken(self, member: Member, delivery: Delivery) -> None:
        """Hand over a start that was admitted; if its member left meanwhile, it is queued again."""
        if (owner := self._owners.get(delivery.id)) is not None:
            member.credit += member.open
            self.hand(owner, delivery)
        elif member.open:
            member.credit += 1  # it was reserved by `pump`, and counts now
            self.hand(member, self._as_seen(delivery))
        else:
            self._put_back(delivery)
            self.pump()

    def not_taken(self, member: Member) -> None:
        """Give a member back the room for a start that was not admitted."""
        if member.open:
            member.credit += 1
            self.pump()

    def decline(self, member: Member, delivery: Delivery, reason: str) -> None:
        hold = member.held.get(delivery.id)
        super().decline(member, delivery, reason)
        if hold is not None:
            self._pass_claim_on(delivery.id, hold)

    def _keep(self, delivery: Delivery) -> None:
        if isinstance(delivery.token, Token):
            what = f"invocation {delivery.id} ({delivery.handler})"
            self._actions.defer(delivery.token, what, "every worker of this process declined it")

    # --- messages and wakes -------------------------------------------------------------------------------------------
    def offer(self, delivery: Delivery, *, begun: bool = True) -> bool:
        """Deliver a message or wake; return false if no worker here serves the handler."""
        is_ours = begun or self.serves(delivery.handler) or delivery.id in self._owners
        return is_ours and super().offer(delivery, begun=begun)

    def wake(self, delivery: Delivery) -> bool:
        """Deliver a wake. If a worker holds the invocation, it waits until that hold ends without setting a wake."""
        member = self._owners.get(delivery.id)
        if member is None:
            return self.offer(delivery)
        hold = member.held[delivery.id]
        if hold.woken is not None:
            self._acknowledge(hold.woken)
        hold.woken = delivery
        return True

    def parked(self) -> list[Delivery]:
        return [each for parked in self._parked.values() for each in parked]

    def unpark(self, id: str) -> list[Delivery]:
        """Remove and return the deliveries that wait for an invocation to begin."""
        return self._parked.pop(id, [])

    # --- acknowledging ------------------------------------------------------------------------------------------------
    def committed(
        self, id: str, acknowledged: Iterable[Delivery], *, ended: bool, wakes: bool = False, now: float = 0.0
    ) -> None:
        """Record a durable commit, and acknowledge its deliveries; one is kept while the invocation is claimed.

        `wakes` says that the commit set a wake, which may have been delivered already.
        """
        self._shaken.discard(id)
        member = self._owners.get(id)
        if member is None:
            for delivery in acknowledged:
                self._acknowledge(delivery)
            return
        hold = member.held[id]
        if not ended and not hold.claimed:
            hold.claimed, hold.since = True, now
        for delivery in acknowledged:
            if delivery in hold.deliveries:
                hold.deliveries.remove(delivery)
            self._keep_or_acknowledge(hold, delivery, ended)
        if not ended and hold.kept is None and not hold.leased and not hold.has_delivery:
            self._actions.protect(hold)
        if ended:
            hold.claimed = False
            if hold.kept is not None:
                self._actions.acknowledge(hold.kept)
                hold.kept = None
            if hold.leased:
                self._actions.drop_lease(hold)
            if hold.woken is not None and not wakes:
                self._acknowledge(hold.woken)
                hold.woken = None
            self._drop_if_done(member, hold)

    def _keep_or_acknowledge(self, hold: Hold, delivery: Delivery, ended: bool) -> None:
        token = delivery.token
        if not ended and hold.kept is None and not hold.leased and isinstance(token, Token) and not token.done:
            hold.kept = token
        else:
            self._acknowledge(delivery)

    def _acknowledge(self, delivery: Delivery) -> None:
        token = delivery.token
        if isinstance(token, Token) and not token.done:
            self._actions.acknowledge(token)

    def finish(self, delivery: Delivery) -> None:
        member = self._owners.get(delivery.id)
        if member is None:
            self._acknowledge(delivery)
            return
        hold = member.held[delivery.id]
        self._keep_or_acknowledge(hold, delivery, not hold.claimed)
        self.let_go(delivery)

    def take_back(self, member: Member, delivery: Delivery) -> None:
        if isinstance(delivery.item, Start):
            self._put_back(delivery)
            self.pump()
        elif (other := self._other_than(member, delivery)) is not None:
            self.hand(other, delivery)
        else:
            self._requeue(delivery)

    def lose(self, id: str) -> list[Delivery]:
        """Forget an invocation that another process has claimed, without acknowledging; return its deliveries."""
        member = self._owners.pop(id, None)
        if member is None:
            return []
        hold = member.held.pop(id)
        found = [*hold.deliveries]
        if hold.woken is not None:
            found.append(hold.woken)
        if member.lost is not None:
            member.lost(id)
        return found

    # --- internals ----------------------------------------------------------------------------------------------------
    def _new_hold(self, delivery: Delivery) -> Hold:
        return Hold(delivery.id, delivery.handler)

    def _let_gone(self, hold: Hold) -> None:
        if hold.woken is not None:
            self._offer_or_requeue(hold.woken, begun=True)
            hold.woken = None

    def _next_queue(self, member: Member) -> tuple[str, int] | None:
        """Return handler and partition of the queue with the oldest head that the member serves."""
        heads = [
            (queue[0].token.at, handler, partition)
            for handler, queues in self._queues.items()
            if handler in member.handlers
            for partition, queue in queues.items()
            if member.takes(partition)
        ]
        return min(heads)[1:] if heads else None


def _came(delivery: Delivery) -> float:
    return delivery.token.came if isinstance(delivery.token, Token) else math.inf
