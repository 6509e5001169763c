"""Old invocations are purged, and nothing else."""

import asyncio

from perdure.core.effects import Effects
from perdure.core.journal import (
    Accepted,
    Answer,
    Cancelled,
    CancelRequested,
    Completed,
    Paused,
    Released,
    Returned,
)
from perdure.core.values import encode
from perdure.errors import UnknownInvocation
from perdure.stores.port import Filter, Transition, committed
from perdure.testing.contract.shared import (
    StoreCase,
    raised_by,
    within,
)


class Retention(StoreCase):
    """Old invocations are purged, and nothing else."""

    async def purge(self, id: str | None = None, limit: int = 100) -> int:
        """Purge everything that has settled by now."""
        return await within(self.patience, self.store.purge(self.store.clock.now(), limit=limit, id=id), "not purged")

    async def is_unknown(self, id: str) -> bool:
        """Report whether nothing is left of an invocation."""
        store = self.store
        left = (await store.row(id), await store.start(id), await store.outcome(id), (await store.journal(id)).frames)
        return left == (None, None, None, ()) and id not in [row.id for row in await store.search(Filter())]

    async def test_purged_invocation_is_unknown_to_everything(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.suspended(inbox)
            message = self.message(start.id)
            await store.post(message)
            told, _ = await inbox.next_message()
            end = self.frame(self.claim(2), CancelRequested(1.0, message=message.id), Cancelled(1.0))
            await self.commit(start, revision, end, "cancelled", told)
            assert await self.purge() == 1
            for _ in range(2):
                assert await self.is_unknown(start.id)
                assert (await store.counts()).by_status == {}
                for again in (message, self.message(start.id)):
                    await raised_by(store.post(again), UnknownInvocation)
                inbox = self.inbox(room=5)
                await inbox.stays_empty(self.calm)
                store = await self.reopened()

    async def test_id_of_a_purged_invocation_can_be_used_anew(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            await self.completed(inbox, self.start("again", input=encode({"x": 1})))
            await self.purge()
            other = self.start("again", input=encode({"x": 2}))
            assert await store.submit([other]) == [True]
            inbox.subscription.request(1)
            assert (await inbox.next_start()).item == other

    async def test_purge_keeps_what_has_not_settled(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            running, _ = await self.begun(inbox)
            waiting, _ = await self.suspended(inbox)
            paused, revision = await self.suspended(inbox)
            pause = self.frame(self.claim(2), Paused(1.0, "why"), Released(1.0))
            await self.commit(paused, revision, pause, "paused")
            queued, late = self.start(), self.start(due=store.clock.now() + 900)
            await store.submit([queued, late])
            assert await self.purge() == 0
            for start in (running, waiting, paused, queued, late):
                assert await self.purge(start.id) == 0
                assert await store.start(start.id) == start
            assert await self.purge("nobody") == 0

    async def test_purge_removes_the_oldest_first_within_its_limit(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            ids = [(await self.completed(inbox)).id for _ in range(5)]
            times = [row.updated_at for row in reversed(await store.search(Filter()))]
            assert await store.purge(times[0] - 1, limit=10) == 0
            assert await self.purge(limit=2) == 2
            assert [await self.is_unknown(id) for id in ids] == [True, True, False, False, False]
            assert await self.purge(ids[4]) == 1
            assert await store.purge(times[2], limit=10) >= 1
            assert [await self.is_unknown(id) for id in ids[:3]] == [True] * 3
            assert await self.is_unknown(ids[4])

    async def test_purge_keeps_what_has_a_message_without_an_answer(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            served, unserved = await self.completed(inbox), await self.completed(inbox)
            await store.post(self.message(served.id))
            await inbox.next_message()  # held by a worker
            assert await self.purge(served.id) == 0
            inbox.subscription.close()
            await store.post(self.message(unserved.id))  # held by no worker
            assert await self.purge() == 0
            store = await self.reopened()
            assert await self.purge() == 0
            inbox = self.inbox()
            for _ in range(2):
                told, got = await inbox.next_message()
                effects = Effects(answers=(Answer(got.id, "too late"),))
                revision = (await store.journal(got.to)).revision
                transition = Transition(got.to, revision, None, effects, "completed", True, [told])
                await committed(store, transition)
            assert await self.purge() == 2

    async def test_purge_keeps_what_is_in_hand(self) -> None:
        async with self.opened() as store:
            inbox, start = self.inbox(room=1), self.start()
            await store.submit([start])
            delivery = await inbox.next_start()
            settled = self.frame(Accepted(start), self.claim(), Completed(1.0, encode(1)))
            await self.commit(start, 0, settled, "completed")  # without acknowledging the start
            assert await self.purge() == 0
            inbox.subscription.acknowledge(delivery)
            assert await self.purge() == 1

    async def test_message_and_purge_of_the_same_moment_do_not_both_succeed(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            starts = [await self.completed(inbox) for _ in range(40)]
            inbox.subscription.close()
            for n, start in enumerate(starts):
                purge = asyncio.ensure_future(self.purge(start.id))
                for _ in range(n % 5):
                    await asyncio.sleep(0)
                [posted] = await asyncio.gather(store.post(self.message(start.id)), return_exceptions=True)
                purged, gone = await purge, await self.is_unknown(start.id)
                assert isinstance(posted, UnknownInvocation) == gone
                assert purged == gone

    async def test_purge_beside_commits_leaves_them_whole(self) -> None:
        async with self.opened():
            inbox = self.inbox()
            old = [await self.completed(inbox) for _ in range(30)]
            living = [await self.suspended(inbox) for _ in range(10)]
            more = self.frame(self.claim(2), Returned(1, 1.0, encode(2)), Released(2.0))
            results = await asyncio.gather(
                *(self.commit(start, revision, more, "suspended") for start, revision in living),
                *(self.purge(limit=10) for _ in range(6)),
            )
            assert sum(results[10:]) >= 10
            while await self.purge():
                pass
            assert all([await self.is_unknown(start.id) for start in old])
            await self.reopened()
            assert [len(await self.frames_of(start.id)) for start, _ in living] == [3] * 10
