"""Settles invocations that are cancelled before their body has begun, without a worker.

A cancellation of a start that no worker has in hand need not wait until one has a slot for it, or exists at all: the
body has not begun, so there is nothing to clean up. The store takes the invocation into its own hands, as a worker
would, writes the one frame that settles it, guarded by revision 0, and lets go. Whatever fails on the way, the
message and the start are given back, and a worker settles it later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from perdure.background import Tasks
from perdure.core.journal import Message, Start
from perdure.core.unbegun import ended_unbegun
from perdure.counters import StoreCounters
from perdure.errors import Conflict, StoreClosed
from perdure.stores.local.dispatch import Dispatcher, Member
from perdure.stores.port import Clock, Committed, Delivery, Transition

WRITER = "canceller"
"""What frames of the store itself name as their writer."""

log = logging.getLogger("perdure.store")


class Canceller:
    """The store's own hands. `unbegun` gives the start of an invocation whose body cannot have begun."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        clock: Clock,
        unbegun: Callable[[str], Awaitable[Start | None]],
        commit: Callable[[Transition, Committed], None],
        counters: StoreCounters,
    ) -> None:
        self._dispatcher = dispatcher
        self._clock = clock
        self._unbegun = unbegun
        self._commit = commit
        self._counters = counters
        self._hands = Member(dispatcher, (), self._collect)
        self._tasks = Tasks(log)

    def take(self, delivery: Delivery, *, begun: bool) -> bool:
        """Take the cancellation of an invocation that no worker has; false if it is for a worker.

        `begun` says that a worker may have it at once: then it does, if there is one.
        """
        dispatcher, message = self._dispatcher, delivery.item
        if begun and dispatcher.serves(delivery.handler):
            return False
        if not isinstance(message, Message) or not dispatcher.reserve(self._hands, delivery):
            return False
        self._tasks.spawn(self._settle(delivery, message))
        return True

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _collect(self, delivery: Delivery) -> None:
        """Keep what comes for an invocation in these hands: it is given back when that is let go."""

    async def _settle(self, delivery: Delivery, message: Message) -> None:
        id, settled = delivery.id, False
        try:
            start = await self._unbegun(id)
            if start is not None:
                frame, effects, status = ended_unbegun(start, message, WRITER, self._clock.now())
                held = self._hands.held[id].deliveries
                taken = [each for each in held if each is delivery or isinstance(each.item, Start)]
                await self._committed(Transition(id, 0, frame, effects, status, False, taken))
                settled = True
                self._counters.ended.add((status, start.handler))
        except StoreClosed:
            return
        except Conflict as error:
            log.debug("invocation %s has begun meanwhile: %s", id, error)
        except Exception as error:
            log.warning("invocation %s could not be cancelled without a worker: %s", id, error, exc_info=error)
        finally:
            self._dispatcher.release(self._hands, id, settled=settled)

    def _committed(self, transition: Transition) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def told(revision: int, error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(revision)
            else:
                future.set_exception(error)

        self._commit(transition, told)
        return future
