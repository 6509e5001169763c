"""Messages are delivered and answered once."""

import asyncio

from perdure.core.effects import Effects
from perdure.core.journal import (
    Answer,
    Cancel,
    Fired,
    Pause,
    Paused,
    Refused,
    Released,
    Resume,
)
from perdure.errors import UnknownInvocation
from perdure.stores.port import Transition, committed
from perdure.testing.contract.shared import (
    HANDLER,
    StoreCase,
    raised_by,
    requests,
    within,
)


class Messages(StoreCase):
    """Messages are delivered and answered once."""

    async def test_message_goes_to_who_serves_its_invocation(self) -> None:
        async with self.opened() as store:
            inbox, other = self.inbox(), self.inbox("other", room=5)
            start, _ = await self.suspended(inbox)
            for request in requests():
                message = self.message(start.id, request)
                await store.post(message)
                delivery, got = await inbox.next_message()
                assert (delivery.id, delivery.handler, got) == (start.id, HANDLER, message)
                inbox.subscription.acknowledge(delivery)
            await other.stays_empty(self.calm)

    async def test_second_message_of_one_id_changes_nothing(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.suspended(inbox)
            await asyncio.gather(*(store.post(self.message(start.id, Pause(), id="m")) for _ in range(3)))
            await store.post(self.message(start.id, Resume(), id="m"))
            delivery, message = await inbox.next_message()
            assert message.request == Pause()
            frame = self.frame(self.claim(2), Paused(1.0, "r", "m"), Released(1.0))
            await self.commit(start, revision, frame, "paused", delivery)
            await store.post(self.message(start.id, Pause(), id="m"))
            assert await store.answer("m") == Answer("m")
            await inbox.stays_empty(self.calm)

    async def test_message_to_nobody_is_refused(self) -> None:
        async with self.opened() as store:
            error = await raised_by(store.post(self.message("nobody")), UnknownInvocation)
            assert "nobody" in str(error)

    async def test_message_to_nobody_does_not_fail_others_of_the_same_moment(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, _ = await self.suspended(inbox)
            results = await asyncio.gather(
                store.post(self.message(start.id)),
                store.post(self.message("nobody")),
                store.submit([self.start("x")]),
                return_exceptions=True,
            )
            assert (results[0], results[2]) == (None, [True])
            assert isinstance(results[1], UnknownInvocation)
            await inbox.next_message()
            await inbox.stays_empty(self.calm)

    async def test_message_for_a_queued_start_is_delivered_after_it_to_the_same_subscriber(self) -> None:
        async with self.opened() as store:
            first, second = self.inbox(), self.inbox()
            start = self.start()
            await store.submit([start])
            messages = [self.message(start.id), self.message(start.id)]
            for message in messages:
                await store.post(message)
            await first.stays_empty(self.calm)
            second.subscription.request(1)
            assert [(await second.next()).item for _ in range(3)] == [start, *messages]
            await first.stays_empty(self.calm)

    async def test_message_for_a_queued_start_is_delivered_after_it_when_the_first_subscriber_closes(self) -> None:
        async with self.opened() as store:
            first = self.inbox(room=1)
            start = self.start()
            message = self.message(start.id)
            await store.submit([start])
            await first.next_start()
            await store.post(message)
            await first.next_message()
            second = self.inbox()
            first.subscription.close()
            await second.stays_empty(self.calm)
            second.subscription.request(1)
            assert [(await second.next()).item for _ in range(2)] == [start, message]

    async def test_message_for_a_queued_start_is_delivered_after_it_after_reopening(self) -> None:
        async with self.opened() as store:
            start = self.start()
            message = self.message(start.id)
            await store.submit([start])
            await store.post(message)
            await self.reopened()
            inbox = self.inbox()
            await inbox.stays_empty(self.calm)
            inbox.subscription.request(1)
            assert [(await inbox.next()).item for _ in range(2)] == [start, message]

    async def test_messages_for_a_queued_start_come_in_the_order_sent_also_when_the_store_was_reopened_between(
        self,
    ) -> None:
        async with self.opened() as store:
            start = self.start()
            await store.submit([start])
            sent = [self.message(start.id) for _ in range(2)]
            for message in sent:
                await store.post(message)
            store = await self.reopened()
            sent += [self.message(start.id) for _ in range(2)]
            for message in sent[2:]:
                await store.post(message)
            inbox = self.inbox(room=1)
            assert await inbox.starts(1) == [start.id]
            assert [(await inbox.next_message())[1] for _ in sent] == sent

    async def test_message_for_a_claimed_invocation_goes_to_its_owner(self) -> None:
        async with self.opened() as store:
            idle, owner = self.inbox(), self.inbox()
            start, revision = await self.begun(owner)
            for _ in range(3):
                await store.post(self.message(start.id))
                delivery, _ = await owner.next_message()
                revision = await self.commit(start, revision, self.frame(Fired(1, 1.0)), None, delivery)
            await idle.stays_empty(self.calm)

    async def test_cancellation_of_what_has_begun_comes_to_the_worker_that_joins_at_that_moment(self) -> None:
        async with self.opened() as store:
            start, _ = await self.suspended(self.inbox())
            store = await self.reopened()
            message = self.message(start.id, Cancel())
            await store.post(message)
            inbox = self.inbox()
            assert (await inbox.next_message())[1] == message

    async def test_unacknowledged_message_comes_again(self) -> None:
        async with self.opened() as store:
            first = self.inbox()
            start, _ = await self.suspended(first)
            message = self.message(start.id)
            await store.post(message)
            await first.next_message()
            first.subscription.close()
            second = self.inbox()
            delivery, again = await second.next_message()
            assert (again, delivery.attempt > 1) == (message, True)
            await self.reopened()
            delivery, again = await self.inbox().next_message()
            assert (again, delivery.attempt > 1) == (message, True)

    async def test_message_posted_while_nobody_serves_its_invocation_waits(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, _ = await self.suspended(inbox)
            inbox.subscription.close()
            message = self.message(start.id)
            await store.post(message)
            assert (await self.inbox().next_message())[1] == message

    async def test_message_that_settled_invocation_gets_is_delivered_to_be_refused(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start = await self.completed(inbox)
            await store.post(self.message(start.id, Cancel(), id="late"))
            delivery, _ = await inbox.next_message()
            revision = (await store.journal(start.id)).revision
            transition = Transition(
                start.id, revision, None, Effects((), (), (Answer("late", "too late"),)), "completed", True, [delivery]
            )
            await committed(store, transition)
            assert await store.answer("late") == Answer("late", "too late")
            row = await store.row(start.id)
            assert row is not None
            assert row.status == "completed"

    async def test_answer_can_be_awaited_before_it_is_given_and_read_after(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.suspended(inbox)
            await store.post(self.message(start.id, id="m"))
            waiting = [asyncio.ensure_future(store.answer("m")) for _ in range(2)]
            delivery, _ = await inbox.next_message()
            await asyncio.sleep(0)
            assert not any(each.done() for each in waiting)
            frame = self.frame(self.claim(2), Paused(1.0, "r", "m"), Released(1.0))
            await self.commit(start, revision, frame, "paused", delivery)
            for each in waiting:
                assert await within(self.patience, each, "no answer") == Answer("m")
            assert await store.answer("m") == Answer("m")
            store = await self.reopened()
            assert await within(self.patience, store.answer("m"), "no answer") == Answer("m")

    async def test_answer_is_given_to_its_own_message_only(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun(inbox)
            await store.post(self.message(start.id, id="one"))
            await store.post(self.message(start.id, id="two"))
            waiting = asyncio.ensure_future(store.answer("two"))
            delivery, _ = await inbox.next_message()
            await self.commit(start, revision, self.frame(Refused(1.0, "one", "r")), None, delivery)
            assert await store.answer("one") == Answer("one", "r")
            await asyncio.sleep(self.calm)
            assert not waiting.done()
            waiting.cancel()

    async def test_given_up_wait_for_an_answer_leaves_others_waiting(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun(inbox)
            await store.post(self.message(start.id, id="m"))
            given_up, kept = (asyncio.ensure_future(store.answer("m")) for _ in range(2))
            await asyncio.sleep(self.calm)
            given_up.cancel()
            delivery, _ = await inbox.next_message()
            await self.commit(start, revision, self.frame(Refused(1.0, "m", "r")), None, delivery)
            assert await within(self.patience, kept, "no answer") == Answer("m", "r")
