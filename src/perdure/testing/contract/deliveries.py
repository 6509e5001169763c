"""Starts and messages are delivered until they are acknowledged."""

import asyncio
import itertools

from perdure.testing.contract.shared import (
    StoreCase,
)


class Deliveries(StoreCase):
    """Starts and messages are delivered until they are acknowledged."""

    async def test_starts_are_delivered_within_what_was_requested(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            await store.submit([self.start(f"s{n}") for n in range(5)])
            await inbox.stays_empty(self.calm)
            inbox.subscription.request(2)
            assert await inbox.starts(2) == ["s0", "s1"]
            await inbox.stays_empty(self.calm)
            inbox.subscription.request(1)
            inbox.subscription.request(2)
            assert await inbox.starts(3) == ["s2", "s3", "s4"]

    async def test_starts_of_a_handler_come_in_the_order_accepted(self) -> None:
        async with self.opened() as store:
            before = [self.start() for _ in range(50)]
            for start in before[:10]:
                await store.submit([start])
            await store.submit(before[10:])
            inbox = self.inbox(room=100)
            await asyncio.sleep(0)
            after = [self.start() for _ in range(50)]
            await asyncio.gather(*(store.submit([start]) for start in after))
            assert await inbox.starts(100) == [start.id for start in (*before, *after)]

    async def test_only_starts_of_served_handlers_come(self) -> None:
        async with self.opened() as store:
            await store.submit([self.start("a", handler="one"), self.start("b", handler="two"), self.start("c")])
            one, both = self.inbox("one", room=5), self.inbox("two", "three", room=5)
            assert await one.starts(1) == ["a"]
            assert await both.starts(1) == ["b"]
            await store.submit([self.start("d", handler="three")])
            assert await both.starts(1) == ["d"]
            await one.stays_empty(self.calm)
            await both.stays_empty(self.calm)
            assert store.serves("one")
            assert not store.serves("nobody's")

    async def test_each_start_goes_to_one_subscriber(self) -> None:
        async with self.opened() as store:
            first, second = self.inbox(room=10), self.inbox(room=10)
            await store.submit([self.start(f"s{n:02d}") for n in range(20)])
            came = await asyncio.gather(first.starts(10), second.starts(10))
            assert sorted(itertools.chain(*came)) == [f"s{n:02d}" for n in range(20)]
            await first.stays_empty(self.calm)
            await second.stays_empty(self.calm)

    async def test_unacknowledged_starts_come_again_in_order_after_their_subscriber_closes(self) -> None:
        async with self.opened() as store:
            first = self.inbox(room=3)
            await store.submit([self.start(f"s{n}") for n in range(4)])
            assert await first.starts(3) == ["s0", "s1", "s2"]
            first.subscription.close()
            second = self.inbox(room=4)
            came = [await second.next_start() for _ in range(4)]
            again = [delivery.id for delivery in came if delivery.attempt > 1]
            assert again == ["s0", "s1", "s2"]
            # A server may hand out what is new while what was given back is on its way to it.
            assert [delivery.id for delivery in came if delivery.attempt == 1] == ["s3"]
            await first.stays_empty(self.calm)

    async def test_unacknowledged_start_goes_to_a_subscriber_that_waits_already(self) -> None:
        async with self.opened() as store:
            first = self.inbox(room=1)
            await store.submit([self.start("a")])
            await first.next_start()
            second = self.inbox(room=1)
            await second.stays_empty(self.calm)
            first.subscription.close()
            delivery = await second.next_start()
            assert (delivery.id, delivery.attempt > 1) == ("a", True)

    async def test_unacknowledged_start_comes_again_after_reopening(self) -> None:
        async with self.opened() as store:
            await store.submit([self.start("a")])
            await self.inbox(room=1).next_start()
            await self.reopened()
            delivery = await self.inbox(room=1).next_start()
            assert (delivery.id, delivery.attempt > 1) == ("a", True)

    async def test_acknowledged_message_does_not_come_again(self) -> None:
        async with self.opened():
            inbox = self.inbox()
            start, _ = await self.suspended(inbox)
            await self.store.post(self.message(start.id))
            delivery, _ = await inbox.next_message()
            inbox.subscription.acknowledge(delivery)
            await asyncio.sleep(self.calm)  # an acknowledgement is not awaited
            inbox.subscription.close()
            await self.inbox(room=5).stays_empty(self.calm)
            await self.reopened()
            await self.inbox(room=5).stays_empty(self.calm)

    async def test_start_handed_back_goes_to_who_has_room(self) -> None:
        async with self.opened() as store:
            first = self.inbox(room=1)
            await store.submit([self.start("a"), self.start("b")])
            delivery = await first.next_start()
            second = self.inbox()
            first.subscription.hand_back(delivery)
            second.subscription.request(2)
            assert await second.starts(2) == ["a", "b"]

    async def test_message_handed_back_goes_to_somebody_else(self) -> None:
        async with self.opened() as store:
            first = self.inbox()
            start, _ = await self.suspended(first)
            message = self.message(start.id)
            await store.post(message)
            delivery, _ = await first.next_message()
            second = self.inbox()
            first.subscription.hand_back(delivery)
            assert (await second.next_message())[1] == message

    async def test_declined_start_goes_to_another_and_not_to_who_declined_it(self) -> None:
        async with self.opened() as store:
            first = self.inbox(room=5)
            await store.submit([self.start("a")])
            first.subscription.decline(await first.next_start(), "it cannot be run here")
            await first.stays_empty(1.0)  # a store may bring it again after a moment
            second = self.inbox(room=5)
            assert await second.starts(1) == ["a"]
            await first.stays_empty(self.calm)

    async def test_claimed_invocation_comes_to_another_when_its_owner_closes(self) -> None:
        async with self.opened():
            first = self.inbox()
            start, _ = await self.begun(first)
            second = self.inbox()
            first.subscription.close()
            delivery = await second.next()
            assert (delivery.id, delivery.attempt > 1) == (start.id, True)

    async def test_claimed_invocation_comes_again_after_reopening(self) -> None:
        async with self.opened():
            start, _ = await self.begun(self.inbox())
            await self.reopened()
            delivery = await self.inbox(room=1).next()
            assert (delivery.id, delivery.attempt > 1) == (start.id, True)

    async def test_nothing_comes_for_what_is_settled_or_waits(self) -> None:
        async with self.opened():
            inbox = self.inbox()
            await self.completed(inbox)
            await self.suspended(inbox)
            inbox.subscription.close()
            await self.inbox(room=5).stays_empty(self.calm)
            await self.reopened()
            await self.inbox(room=5).stays_empty(self.calm)
