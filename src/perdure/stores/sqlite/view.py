"""A file that is only looked at, also while another process serves it: what reads works, what writes is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Never

from perdure.core.journal import Message, Outcome, Start
from perdure.errors import StoreReadOnly
from perdure.stores.dispatch import Member
from perdure.stores.notices import Feed
from perdure.stores.sqlite.faults import about
from perdure.stores.sqlite.file import look
from perdure.stores.sqlite.store import SqliteStore
from perdure.stores.store import LEASE_SECONDS, Committed, Delivery, Filter, Transition


class SqliteView(SqliteStore):
    """A store that takes no lock and has no writer. Every read sees the last commit."""

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            self._read_db, opened = await self._loop.run_in_executor(self._reader, look, self.path)
        except BaseException:
            self._reader.shutdown(wait=False)
            raise
        self.secret = opened.secret
        self._open = True

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            await self._loop.run_in_executor(self._reader, self._read_db.close)
            self._reader.shutdown(wait=False)

    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        self._refuse("nothing can be started")

    def post(self, message: Message, /) -> asyncio.Future[None]:
        self._refuse("nothing can be sent")

    def commit(self, transition: Transition, told: Committed, /) -> None:
        self._refuse("nothing can be written")

    def subscribe(
        self,
        handlers: Collection[str],
        deliver: Callable[[Delivery], None],
        *,
        partitions: Collection[int] | None = None,
        lost: Callable[[str], None] | None = None,
        lease: float = LEASE_SECONDS,
    ) -> Member:
        self._refuse("no worker can serve it")

    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        self._refuse("nothing is told when an invocation ends: describe it")

    def events(self, filter: Filter, /) -> Feed:
        self._refuse("nothing is told of changes: list what there is")

    def serves(self, handler: str, /) -> bool | None:
        return None  # another process may

    def _refuse(self, what: str) -> Never:
        self._check()
        raise StoreReadOnly(about(self.path, f"it was opened to be read only, so {what}"))
