"""A store that is only looked at: nothing is made, started, sent or written, and no worker serves it from here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Never

from perdure.core.journal import Message, Start
from perdure.errors import StoreReadOnly
from perdure.stores.jetstream.hands import Member
from perdure.stores.jetstream.store import JetStreamStore
from perdure.stores.store import LEASE_SECONDS, Committed, Delivery, Transition


class JetStreamView(JetStreamStore):
    """A store whose streams must exist. Changes are pushed, as to any other client."""

    makes_streams = False

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
    ) -> Member:
        self._refuse_change("no worker can serve it")

    async def purge(self, before: float, /, *, limit: int, id: str | None = None) -> int:
        self._refuse_change("nothing can be removed")

    def _refuse_change(self, what: str) -> Never:
        self._check()
        raise StoreReadOnly(f"jetstream: the store was opened to be read only, so {what}")
