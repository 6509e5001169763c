"""The slots of a worker: which runners have one, what waits for one, and how many starts have room.

Decides, and does nothing itself. A slot is the right of an invocation to have steps in progress. Runners that wait for
one come before new starts.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, Protocol, TypeVar

from perdure.stores.port import Delivery


class Holder(Protocol):
    """What takes slots: a runner."""

    has_slot: bool

    @property
    def closed(self) -> bool: ...


H = TypeVar("H", bound=Holder)


class Slots(Generic[H]):
    """At most `limit` slots. `taken` are in use; `wanting` are the runners without one, `starts` the starts."""

    def __init__(self, limit: int) -> None:
        self.taken = 0
        self._limit = limit
        self.wanting: deque[H] = deque()
        self.starts: OrderedDict[str, list[Delivery]] = OrderedDict()  # by id: a start without a slot, its messages
        self._asked = 0  # starts requested from the store that have not come; below 0 if some came unasked

    @property
    def are_free(self) -> bool:
        return self.taken < self._limit

    # --- runners ------------------------------------------------------------------------------------------------------
    def take(self, holder: H) -> None:
        """Give a slot even if none is free."""
        self.taken += 1
        holder.has_slot = True

    def acquire(self, holder: H) -> bool:
        """Give a slot if one is free; otherwise the holder waits for one."""
        if self.taken < self._limit:
            self.take(holder)
            return True
        if holder not in self.wanting:
            self.wanting.append(holder)
        return False

    def release(self, holder: H) -> None:
        holder.has_slot = False
        self.taken -= 1

    def next_runner(self) -> H | None:
        """Give a free slot to the runner that has waited longest, and return it."""
        while self.wanting and self.are_free:
            holder = self.wanting.popleft()
            if not holder.closed:
                self.take(holder)
                return holder
        return None

    # --- starts -------------------------------------------------------------------------------------------------------
    def ask(self) -> int:
        """Return how many more starts to ask for, and count them as asked."""
        room = max(0, self._limit - self.taken - self._asked - len(self.starts))
        self._asked += room
        return room

    def start_came(self) -> None:
        self._asked -= 1

    def keep_waiting(self, delivery: Delivery, *, is_start: bool) -> bool:
        """Keep a start that finds no slot, and deliveries for one that waits; false if the delivery may go on."""
        waiting = self.starts.get(delivery.id)
        if waiting is not None:
            waiting.append(delivery)
            return True
        if is_start and self.taken >= self._limit:
            self.starts[delivery.id] = [delivery]
            return True
        return False

    def next_start(self) -> list[Delivery] | None:
        """Remove and return the start that has waited longest, with its deliveries, if a slot is free."""
        return self.starts.popitem(last=False)[1] if self.starts and self.are_free else None

    def drop(self, id: str) -> None:
        """Forget a start that another worker has taken."""
        self.starts.pop(id, None)

    def forget(self) -> None:
        """Forget all that waits."""
        self.wanting.clear()
        self.starts.clear()
        self._asked = 0
