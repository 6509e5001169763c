"""Dispatch in the stores of one process: starts by capacity, messages and wakes to a worker that serves the handler.

Nothing here is durable. The store keeps starts, messages, wakes and claims in its tables; the dispatcher keeps only
what workers hold (`custody`), and a bounded window of the start queue. When the process ends, the store's
tables say what to deliver again; when one worker of several ends, `leave` does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.core.journal import Message, Start
from perdure.errors import StoreClosed
from perdure.stores import custody
from perdure.stores.port import Delivery, Wake

WINDOW_LIMIT = 10_000
"""Queued starts of one handler that are kept in memory; the rest waits in the store's table."""

REFILL_RETRY_SECONDS = 1.0
"""How long after a failure to read queued starts they are read again."""

log = logging.getLogger("perdure.store")


class Page(Struct):
    """Queued starts that were read, in order; `token` of each is its sequence.

    `last` is the highest sequence that was looked at, and `whole` says that none is queued above it. A start
    that cannot be delivered is left out.
    """

    starts: list[Delivery]
    last: int
    whole: bool


Fetch = Callable[[str, int, int], Awaitable[Page]]
"""Reads at most so many queued starts of a handler above a sequence."""


class Hold(custody.Hold, eq=False):
    """What one worker holds of one invocation."""

    woken: Delivery | None = None  # a wake that fell due meanwhile


Member = custody.Member[Hold]


class Line(Struct):
    """The queued starts of one handler. It is `whole` when none of them is in the store's table only."""

    window: deque[Delivery] = field(default_factory=deque[Delivery])
    keyed: set[int] = field(default_factory=set[int])  # positions of those in the window that have a key
    last: int = 0
    whole: bool = False
    refilling: asyncio.Task[None] | None = None
    missed: bool = False  # a start was queued while a refill was reading
    granted: list[Delivery] = []  # those that were granted their key meanwhile: it may have passed them
    doubtful: int = 0  # starts up to this sequence may have been settled by the store: their journals are read first
    reads_doubtful: bool = False  # ... as may those of the refill that reads

    def append(self, delivery: Delivery) -> None:
        self._note(delivery)
        self.window.append(delivery)

    def put_first(self, delivery: Delivery) -> None:
        self._note(delivery)
        self.window.appendleft(delivery)

    def pop(self) -> Delivery:
        delivery = self.window.popleft()
        if self.keyed:
            self.keyed.discard(delivery.token)
        return delivery

    def _note(self, delivery: Delivery) -> None:
        if isinstance(delivery.item, Start) and delivery.item.key is not None:
            self.keyed.add(delivery.token)


class Dispatcher(custody.Custody[Hold]):
    """Hands deliveries to members. `forget` tells the store of one that was acknowledged outside of a commit."""

    def __init__(self, fetch: Fetch, forget: Callable[[Delivery], None]) -> None:
        super().__init__()
        self._fetch = fetch
        self._forget = forget
        self._lines: dict[str, Line] = {}

    # --- members ------------------------------------------------------------------------------------------------------
    def join(self, handlers: Collection[str], deliver: Callable[[Delivery], None]) -> Member:
        """Add a worker. It is for the store to offer what was waiting for these handlers."""
        member = Member(self, handlers, deliver)
        self.members.append(member)
        if self._declined:
            asyncio.get_running_loop().call_soon(self._offer_declined, member)  # not before it has its subscription
        return member

    def leave(self, member: Member) -> None:
        held = self._dispossess(member)
        for id, hold in reversed(held.items()):  # so that starts, put back in front one by one, keep their order
            begun = not any(isinstance(delivery.item, Start) for delivery in hold.deliveries)
            for delivery in hold.deliveries:
                again = replace(delivery, attempt=delivery.attempt + 1)
                if isinstance(delivery.item, Start):
                    self._line(delivery.handler).put_first(again)
                else:
                    self.offer(again, begun=begun)
            if hold.woken is not None:
                self.offer(replace(hold.woken, attempt=2))
            elif hold.claimed:
                self.offer(Delivery(id, hold.handler, Wake(), attempt=2))
        self.pump()

    def close(self) -> None:
        """Forget everything; nothing is delivered any more."""
        for line in self._lines.values():
            if line.refilling is not None:
                line.refilling.cancel()
        self._disband()
        self._lines.clear()

    # --- starts -------------------------------------------------------------------------------------------------------
    def queue(self, delivery: Delivery) -> None:
        """Take a start that is durably queued; it goes out, in order, when a worker that serves it has room."""
        line = self._line(delivery.handler)
        if line.refilling is not None:
            line.missed = True
        if delivery.token <= line.last:
            return  # read from the table already, between its commit and this
        if line.whole and len(line.window) < WINDOW_LIMIT:
            line.append(delivery)
            line.last = delivery.token
        else:
            line.whole = False

    def queue_granted(self, delivery: Delivery) -> None:
        """Take a start that waited for its key and was granted it: it goes out first, as it was queued long ago."""
        line = self._line(delivery.handler)
        if line.refilling is not None:
            line.granted.append(delivery)
        elif delivery.token > line.last:
            self.queue(delivery)
        elif not self._was_read(line, delivery):
            line.put_first(delivery)

    def pump(self) -> None:
        for member in [*self.members]:
            while member.open and member.credit > 0 and (line := self._next_line(member)) is not None:
                delivery = self._as_seen(line.pop())
                if delivery.fresh and delivery.token <= line.doubtful:
                    delivery = replace(delivery, fresh=False)
                owner = self._owners.get(delivery.id)
                if owner is None and not member.may_take(delivery):
                    self._offer_or_keep(delivery)
                    continue
                self.hand(owner or member, delivery)  # an invocation has one owner, whatever comes for it
            if member.open and member.credit > 0:
                for handler in member.handlers:
                    line = self._line(handler)
                    if not line.whole and line.refilling is None:
                        line.refilling = asyncio.ensure_future(self._refill(handler, line))

    # --- the store's own hands ----------------------------------------------------------------------------------------
    def reserve(self, hands: Member, delivery: Delivery) -> bool:
        """Give an invocation that has not begun into the hands of the store; false if a worker has, or may have, it."""
        id = delivery.id
        if id in self._owners or id in self._shaken or delivery.attempt > 1:
            return False
        line = self._line(delivery.handler)
        line.doubtful = max(line.doubtful, line.last)
        line.reads_doubtful = line.refilling is not None
        self.hand(hands, delivery)
        return True

    def release(self, hands: Member, id: str, *, settled: bool) -> None:
        """Take back what came for an invocation in the hands of the store, and all of it if that has not settled it."""
        hold = hands.held.pop(id, None)
        if hold is None:
            return
        self._owners.pop(id, None)
        for delivery in hold.deliveries:
            again = replace(delivery, attempt=delivery.attempt + 1, fresh=False)
            if isinstance(delivery.item, Start):
                self._line(delivery.handler).put_first(again)
            else:
                self.offer(again, begun=settled)
        if hold.woken is not None and not settled:
            self.offer(hold.woken)
        self.pump()

    # --- messages and wakes -------------------------------------------------------------------------------------------
    def wake(self, delivery: Delivery) -> None:
        """Deliver a wake that is due; if a worker holds the invocation, once it lets go without a new release.

        Its token is the time for which it was set, so that the store can forget it when it is acknowledged.
        """
        hold = self.hold_of(delivery.id)
        if hold is None:
            self.offer(delivery)
        elif not any(isinstance(each.item, Wake) and each.token == delivery.token for each in hold.deliveries):
            hold.woken = delivery  # else it is in hand: what is due is read again when a worker joins

    def holds(self, message: Message) -> bool:
        """Report whether a worker holds a message, or it waits for its invocation to begin."""
        hold = self.hold_of(message.to)
        here = [] if hold is None else hold.deliveries
        if self._parked or self._declined:
            here = [*here, *self._parked.get(message.to, ()), *self._declined.get(message.to, ())]
        return any(isinstance(each.item, Message) and each.item.id == message.id for each in here)

    def repeat(self) -> None:
        """Deliver once more all that workers hold."""
        for member in self.members:
            for hold in [*member.held.values()]:
                for delivery in [*hold.deliveries]:
                    again = replace(delivery, attempt=delivery.attempt + 1, fresh=False)
                    self.hand(member, again)

    # --- what became of deliveries ------------------------------------------------------------------------------------
    def committed(self, id: str, acknowledged: Iterable[Delivery], *, ended: bool) -> None:
        """Note a durable commit: what it acknowledged, and whether it ended the claim."""
        self._shaken.discard(id)
        member = self._owners.get(id)
        if member is None:
            return
        hold = member.held[id]
        for delivery in acknowledged:
            if delivery in hold.deliveries:
                hold.deliveries.remove(delivery)
        hold.claimed = not ended
        if ended:
            hold.woken = None
            for delivery in self._parked.pop(id, ()):  # cancelled before it began: this is refused now
                self.hand(member, delivery)
            self._drop_if_done(member, hold)

    def finish(self, delivery: Delivery) -> None:
        self._forget(delivery)
        self.let_go(delivery)

    def take_back(self, member: Member, delivery: Delivery) -> None:
        if isinstance(delivery.item, Start):
            self._line(delivery.handler).put_first(delivery)
            self.pump()
        elif (other := self._other_than(member, delivery)) is not None:
            self.hand(other, delivery)

    # --- inside -------------------------------------------------------------------------------------------------------
    def _new_hold(self, delivery: Delivery) -> Hold:
        return Hold(delivery.id, delivery.handler)

    def _let_gone(self, hold: Hold) -> None:
        if hold.woken is not None:
            self.offer(hold.woken)

    def _line(self, handler: str) -> Line:
        line = self._lines.get(handler)
        if line is None:
            line = self._lines[handler] = Line()
        return line

    def _was_read(self, line: Line, granted: Delivery) -> bool:
        """Report whether a start was read from the table between the commit that granted it its key and now."""
        hold = self.hold_of(granted.id)
        in_hand = hold is not None and any(isinstance(each.item, Start) for each in hold.deliveries)
        return in_hand or granted.token in line.keyed

    def _next_line(self, member: Member) -> Line | None:
        """Return the served line whose head was queued first."""
        lines = [line for handler in member.handlers if (line := self._lines.get(handler)) and line.window]
        if len(lines) < 2:
            return lines[0] if lines else None
        return min(lines, key=lambda line: line.window[0].token)

    async def _refill(self, handler: str, line: Line) -> None:
        try:
            page = await self._read_on(handler, line.last)
            if page is not None:
                self._take_page(line, page)
            for delivery in line.granted:
                if delivery.token <= line.last:
                    line.put_first(delivery)
                else:
                    line.missed = True
            line.whole = page is not None and page.whole and not line.missed
        finally:
            line.refilling = None
            line.reads_doubtful = False
            line.missed = False
            line.granted = []
        self.pump()

    async def _read_on(self, handler: str, after: int) -> Page | None:
        """Read queued starts; None after a failure and a pause, in which nothing else reads them."""
        try:
            return await self._fetch(handler, after, WINDOW_LIMIT)
        except StoreClosed:
            raise asyncio.CancelledError from None
        except Exception:
            log.exception("reading the queued starts of %s failed, trying again in %g s", handler, REFILL_RETRY_SECONDS)
            await asyncio.sleep(REFILL_RETRY_SECONDS)
            return None

    def _take_page(self, line: Line, page: Page) -> None:
        for delivery in page.starts:
            if (owner := self._owners.get(delivery.id)) is not None:
                self.hand(owner, delivery)  # begun already, and its start was never acknowledged
            else:
                line.append(delivery)
        line.last = max(line.last, page.last)
        if line.reads_doubtful:
            line.doubtful = line.last
        if line.granted:
            seen = {delivery.id for delivery in page.starts}
            line.granted = [delivery for delivery in line.granted if delivery.id not in seen]
