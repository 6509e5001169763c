"""A store opens, closes and opens again."""

import asyncio
from collections.abc import Awaitable, Callable

from perdure.core.journal import (
    Fired,
)
from perdure.errors import StoreClosed
from perdure.stores.port import Filter, Transition, committed
from perdure.testing.contract.shared import (
    StoreCase,
    called,
    raised_by,
    within,
)


class Lifetime(StoreCase):
    """A store opens, closes and opens again."""

    async def test_secret_stays_the_same(self) -> None:
        async with self.opened() as store:
            secret = store.secret
            assert secret
            assert (await self.reopened()).secret == secret

    async def test_closed_store_says_so_and_waits_end(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            watch = store.watch(start.id)
            answer = asyncio.ensure_future(store.answer("never"))
            await asyncio.sleep(self.calm)
            await store.aclose()
            uses: list[Callable[[], Awaitable[object]]] = [
                lambda: watch,
                lambda: answer,
                lambda: store.submit([self.start("x")]),
                lambda: store.post(self.message(start.id)),
                lambda: committed(store, Transition(start.id, revision, self.frame(Fired(1, 1.0)))),
                lambda: store.journal(start.id),
                lambda: store.outcome(start.id),
                lambda: store.search(Filter()),
                lambda: store.counts(),
                lambda: store.row(start.id),
                lambda: store.start(start.id),
                lambda: store.answer("m"),
            ]
            for use in uses:
                await raised_by(within(self.patience, called(use), "not refused"), StoreClosed)
            store = await self.reopened()
            assert (await store.journal(start.id)).revision == revision

    async def test_what_waits_to_be_written_when_the_store_closes_is_written(self) -> None:
        async with self.opened() as store:
            pending = [store.submit([self.start(f"s{n}")]) for n in range(10)]
            await store.aclose()
            results = await asyncio.gather(*pending, return_exceptions=True)
            store = await self.reopened()
            for n, result in enumerate(results):
                assert result == [True], result
                assert await store.row(f"s{n}") is not None
