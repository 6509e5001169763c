"""What every read-only store refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any, Never

from perdure.core.journal import Message, Start
from perdure.stores.port import LEASE_SECONDS, Committed, Delivery, Transition


class OnlyLooking:
    """Mixed in before the class of a store: refuses to start, send, write, serve and purge."""

    def _refuse_change(self, what: str) -> Never:
        """Raise `StoreReadOnly`, naming the store; `StoreClosed` if it is closed."""
        raise NotImplementedError

    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        self._refuse_change("nothing can be started")

    def post(self, message: Message, /) -> asyncio.Future[None]:
        self._refuse_change("nothing can be sent")

    def commit(self, transition: Transition, told: Committed, /) -> None:
        self._refuse_change("nothing can be written")

    def subscribe(
        self,
        handlers: Collection[str],
        deliver: Callable[[Delivery], None],
        *,
        partitions: Collection[int] | None = None,
        lost: Callable[[str], None] | None = None,
        lease: float = LEASE_SECONDS,
    ) -> Any:
        self._refuse_change("no worker can serve it")

    async def purge(self, before: float, /, *, limit: int, id: str | None = None) -> int:
        self._refuse_change("nothing can be removed")
