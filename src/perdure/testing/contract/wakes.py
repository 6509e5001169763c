"""Wakes come when they are due, and not before."""

import asyncio
from collections.abc import Awaitable

from perdure.core.effects import Effects
from perdure.core.journal import Answer, Completed, Paused, Released, Returned
from perdure.stores.port import Filter, Wake
from perdure.testing.contract.shared import StoreCase, within

YEAR_SECONDS = 365 * 86_400.0


class Wakes(StoreCase):
    """Wakes come when they are due, and not before."""

    async def test_wake_comes_once_and_never_early(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            due = store.clock.now() + 0.1
            start, _ = await self.suspended(inbox, wake=due)
            delivery = await inbox.next()
            assert store.clock.now() >= due
            assert (delivery.id, type(delivery.item)) == (start.id, Wake)
            inbox.subscription.acknowledge(delivery)
            await inbox.stays_empty(self.calm)

    async def test_acknowledged_wake_does_not_come_again(self) -> None:
        """Whether it was acknowledged alone or by a commit that sets no other."""
        async with self.opened() as store:
            inbox = self.inbox()
            await self.suspended(inbox, wake=store.clock.now())
            delivery = await inbox.next()
            self.inbox("another")  # what is due is read again for it
            await asyncio.sleep(self.calm)
            inbox.subscription.acknowledge(delivery)
            await inbox.stays_empty(self.calm)
            second, revision = await self.suspended(inbox, wake=store.clock.now())
            delivery = await inbox.next()
            assert delivery.id == second.id
            await self.commit(second, revision, None, None, delivery, effects=Effects((), (), (Answer("m"),)))
            await self.suspended(inbox, wake=store.clock.now() + YEAR_SECONDS)
            inbox.subscription.close()
            inbox = self.inbox()
            await inbox.stays_empty(self.calm)
            await self.reopened()
            inbox = self.inbox()
            await inbox.stays_empty(self.calm)
            kept = await self.suspended(inbox, self.start("kept"), wake=store.clock.now())
            assert (await inbox.next()).id == kept[0].id
            inbox.subscription.close()
            assert (await self.inbox().next()).id == kept[0].id, "it was not acknowledged"

    async def test_wake_that_is_set_again_for_the_same_time_comes_again(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            due = store.clock.now()
            start, revision = await self.suspended(inbox, wake=due)
            delivery = await inbox.next()
            await self.commit(start, revision, self.frame(self.claim(2), Released(due, due)), "suspended", delivery)
            assert (await inbox.next()).id == start.id
            await self.reopened()
            assert (await self.inbox().next()).id == start.id

    async def test_wake_that_is_due_already_comes_at_once(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            for back in (0.0, 0.001, 100.0):
                start, _ = await self.suspended(inbox, wake=store.clock.now() - back)
                while (await inbox.next()).id != start.id:
                    pass  # one before, which was not acknowledged

    async def test_many_wakes_at_all_times_each_come(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            begun = [await self.begun(inbox) for _ in range(100)]
            now = store.clock.now()
            commits: list[Awaitable[int]] = []
            due: dict[str, float] = {}
            for n, (start, revision) in enumerate(begun):
                due[start.id] = now + n / 1_000
                frame = self.frame(Released(now, due[start.id]))
                commits.append(self.commit(start, revision, frame, "suspended"))
            await asyncio.gather(*commits)
            woken: set[str] = set()
            while len(woken) < len(due):
                delivery = await inbox.next()
                assert store.clock.now() >= due[delivery.id]
                woken.add(delivery.id)

    async def test_wakes_set_while_others_fire_each_come(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            for _ in range(40):
                start, _ = await self.suspended(inbox, wake=store.clock.now() + 0.001)
                woken = ""
                while woken != start.id:  # those before may come again: nothing was released since
                    delivery = await inbox.next()
                    woken = delivery.id
                    inbox.subscription.acknowledge(delivery)

    async def test_wake_in_thousands_of_years_stops_nothing(self) -> None:
        """A release before took any number of seconds, and journals hold them."""
        async with self.opened() as store:
            inbox, now = self.inbox(), store.clock.now()
            late = (now + 200 * YEAR_SECONDS, now + 300 * YEAR_SECONDS, 1e11, 2.6e11, 1e15, 1e18, 1e20, 1e300)
            for due in late:
                start, revision = await self.suspended(inbox, wake=due)
                scheduled = self.start(f"at {due}", due=due)
                assert await within(self.patience, store.submit([scheduled]), "not accepted") == [True]
                await store.post(self.message(start.id))
                delivery, message = await inbox.next_message()
                frame = self.frame(self.claim(2), Paused(1.0, "r", message.id), Released(now, due))
                await self.commit(start, revision, frame, "paused", delivery)
            await inbox.stays_empty(self.calm)
            store = await self.reopened()
            assert len(await store.search(Filter(status="scheduled"))) == len(late)
            inbox = self.inbox(room=2 * len(late))
            await inbox.stays_empty(self.calm)
            soon = await self.suspended(inbox, wake=store.clock.now() + 0.01)
            assert (await inbox.next()).id == soon[0].id, "it is not behind them"

    async def test_wake_survives_reopening(self) -> None:
        async with self.opened() as store:
            due = store.clock.now() + 0.1
            start, _ = await self.suspended(self.inbox(), wake=due)
            await self.reopened()
            delivery = await self.inbox().next()
            assert (delivery.id, type(delivery.item)) == (start.id, Wake)
            assert self.store.clock.now() >= due

    async def test_wake_that_falls_due_while_nobody_serves_it_is_kept(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, _ = await self.suspended(inbox, wake=store.clock.now() + 0.03)
            inbox.subscription.close()
            await asyncio.sleep(0.06)
            assert (await self.inbox().next()).id == start.id

    async def test_wake_in_hand_comes_to_another_when_its_holder_closes(self) -> None:
        async with self.opened() as store:
            first = self.inbox()
            start, _ = await self.suspended(first, wake=store.clock.now())
            await first.next()
            first.subscription.close()
            assert (await self.inbox().next()).id == start.id

    async def test_wake_that_falls_due_while_a_message_is_in_hand_is_not_lost(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            due = store.clock.now() + 0.4  # so that a slow machine has delivered the message first
            start, _ = await self.suspended(inbox, wake=due)
            await store.post(self.message(start.id))
            delivery, _ = await inbox.next_message()
            await asyncio.sleep(max(0.0, due - store.clock.now()) + 0.05)
            inbox.subscription.acknowledge(delivery)
            woken = await inbox.next()
            assert (woken.id, type(woken.item)) == (start.id, Wake)

    async def test_next_release_replaces_the_wake(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            now = store.clock.now()
            start, revision = await self.suspended(inbox, wake=now + 0.4)
            other, other_revision = await self.suspended(inbox, wake=now + 0.4)
            frame = self.frame(self.claim(2), Returned(1, 1.0, b"\xc0"), Released(now, now + 0.5))
            await self.commit(start, revision, frame, "suspended")
            frame = self.frame(self.claim(2), Returned(1, 1.0, b"\xc0"), Released(now, None))
            await self.commit(other, other_revision, frame, "suspended")
            due = now + 0.5
            while True:
                delivery = await inbox.next()
                # A wake is a hint: a replaced one may still come. The current one must.
                assert isinstance(delivery.item, Wake)
                inbox.subscription.acknowledge(delivery)
                if delivery.id == start.id and store.clock.now() >= due:
                    return

    async def test_wake_of_settled_invocation_is_gone(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.suspended(inbox, wake=store.clock.now() + 0.5)
            frame = self.frame(self.claim(2), Completed(1.0, b"\xc0"))
            await self.commit(start, revision, frame, "completed")
            await self.reopened()
            await self.inbox(room=1).stays_empty(self.calm)
