"""A file that is only looked at, also while another process serves it: what reads works, what writes is refused."""

from __future__ import annotations

import asyncio
from typing import Never

from perdure.core.journal import Outcome
from perdure.errors import StoreReadOnly
from perdure.stores.notices import Feed
from perdure.stores.port import Filter
from perdure.stores.read_only import OnlyLooking
from perdure.stores.sqlite.faults import about
from perdure.stores.sqlite.file import look
from perdure.stores.sqlite.store import SqliteStore


class SqliteView(OnlyLooking, SqliteStore):
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

    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        self._refuse_change("nothing is told when an invocation ends: describe it")

    def events(self, filter: Filter, /) -> Feed:
        self._refuse_change("nothing is told of changes: list what there is")

    def serves(self, handler: str, /) -> bool | None:
        return None  # another process may

    def _refuse_change(self, what: str) -> Never:
        self._check()
        raise StoreReadOnly(about(self.path, f"it was opened to be read only, so {what}"))
