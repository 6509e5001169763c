"""Changes are told to those that follow."""

import asyncio

from perdure.core.effects import Effects
from perdure.core.journal import (
    Accepted,
    Answer,
    CallStep,
    Cancel,
    Completed,
    Message,
    Pause,
    Paused,
    Released,
    Resume,
    Resumed,
    Returned,
    Status,
)
from perdure.core.values import encode
from perdure.errors import StoreClosed
from perdure.stores.port import Events, Filter
from perdure.testing.contract.shared import (
    HANDLER,
    StoreCase,
    raised_by,
    within,
)


class Changes(StoreCase):
    """Changes are told to those that follow."""

    async def test_purged_invocation_is_told_of_to_those_that_ask_for_it(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(HANDLER, "another")
            start = await self.completed(inbox)
            await self.suspended(inbox)
            asked = store.events(Filter(handler="another", gone=True))
            other = store.events(Filter(handler="another"))
            assert await within(self.patience, store.purge(store.clock.now() + 1, limit=10), "not purged") == 1
            rows = await within(self.patience, asked.next(), "no change told")
            assert rows is not None
            assert [(row.id, row.gone) for row in rows] == [(start.id, True)]
            await self.completed(inbox, self.start("last", handler="another"))
            told = {row.id for row in await within(self.patience, other.next(), "no change told") or ()}
            assert told == {"last"}

    async def changes(self, events: Events) -> list[tuple[str, Status]]:
        """Return what changed next, as ids and statuses."""
        rows = await within(self.patience, events.next(), "no change was pushed")
        assert rows is not None
        return [(row.id, row.status) for row in rows]

    async def test_every_change_of_status_is_pushed_with_its_row(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            events = store.events(Filter())
            now = store.clock.now()
            late = self.start("late", at=now, due=now + 0.2)
            await store.submit([late])
            assert await self.changes(events) == [("late", "scheduled")]
            assert await self.changes(events) == [("late", "pending")]
            inbox.subscription.request(1)
            delivery = await inbox.next_start()
            first = self.frame(Accepted(late), self.claim(), commands=[CallStep(0, "s", b"d")])
            revision = await self.commit(late, 0, first, "running", delivery)
            assert await self.changes(events) == [("late", "running")]
            revision = await self.commit(late, revision, self.frame(Released(now)), "suspended")
            rows = await within(self.patience, events.next(), "no change was pushed")
            assert rows == [await store.row("late")]
            await self.commit(late, revision, self.frame(Completed(now, encode(1))), "completed")
            assert await self.changes(events) == [("late", "completed")]
            events.close()

    async def test_only_changes_that_pass_the_filter_are_pushed(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            cases = {
                Filter(id="b"): [("b", "completed")],
                Filter(status="suspended"): [("c", "suspended")],
                Filter(id_prefix="a"): [("ab", "completed"), ("aa", "completed")],
                Filter(handler="other"): [],
            }
            feeds = [store.events(filter) for filter in cases]
            for id in ("ab", "b", "aa"):
                await self.completed(inbox, self.start(id))
            await self.suspended(inbox, self.start("c"))
            await self.all_is_told()
            for feed, expected in zip(feeds, cases.values(), strict=True):
                assert (await self.changes(feed) if expected else []) == expected
                feed.close()

    async def all_is_told(self) -> None:
        """Wait until all changes so far are pushed: changes are pushed in order."""
        last = self.start()
        events = self.store.events(Filter(id=last.id))
        await self.store.submit([last])
        await self.changes(events)
        events.close()

    async def test_slow_reader_gets_the_newest_of_each_the_latest_change_last(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            events = store.events(Filter(id_prefix="x"))
            first, second = self.start("x1"), self.start("x2")
            await store.submit([first, second])
            await self.suspended(inbox, first)
            await self.completed(inbox, second)
            await self.all_is_told()
            assert await self.changes(events) == [("x1", "suspended"), ("x2", "completed")]

    async def test_closing_the_store_ends_a_reader_after_what_it_was_told(self) -> None:
        async with self.opened() as store:
            events, waiting = store.events(Filter(id_prefix="x")), store.events(Filter(id="nobody"))
            reading = asyncio.ensure_future(waiting.next())
            await store.submit([self.start("x")])
            await self.all_is_told()
            await store.aclose()
            assert await self.changes(events) == [("x", "pending")]
            for ended in (events.next(), reading):
                await raised_by(within(self.patience, ended, "the reader waits on"), StoreClosed)

    async def test_mail_is_what_was_accepted_and_not_answered_oldest_first(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.suspended(inbox)
            other, _ = await self.suspended(inbox)
            at = store.clock.now()
            pause = Message("z", start.id, at, Pause())
            resume, cancel = Message("y", start.id, at + 1, Resume()), Message("x", start.id, at + 2, Cancel())
            for message in (pause, cancel, resume):
                await store.post(message)
            await store.post(self.message(other.id))
            assert await store.mail(start.id) == [pause, resume, cancel]
            delivery = next(each for each in [await inbox.next() for _ in range(4)] if each.item == pause)
            await self.commit(start, revision, self.frame(Paused(at, "asked for", "z")), "paused", delivery)
            assert await store.mail(start.id) == [resume, cancel]
            revision = (await store.journal(start.id)).revision
            frame = self.frame(self.claim(2), Resumed(at, "y"), Released(at))
            await self.commit(start, revision, frame, "suspended")  # its delivery is not acknowledged yet
            assert await store.mail(start.id) == [cancel]
            store = await self.reopened()
            assert await store.mail(start.id) == [cancel]
            assert await store.mail("nobody") == []

    async def test_mail_that_was_refused_once_its_invocation_had_settled_is_not_listed(self) -> None:
        async with self.opened() as store:
            start = await self.completed(self.inbox())
            messages = [self.message(start.id) for _ in range(2)]
            for message in messages:
                await store.post(message)
            revision = await store.revision(start.id)
            effects = Effects((), (), (Answer(messages[0].id, "too late"),))
            await self.commit(start, revision, None, "completed", effects=effects)  # its delivery comes again
            assert await store.mail(start.id) == messages[1:]

    async def test_revision_is_that_of_the_journal_and_zero_without_one(self) -> None:
        async with self.opened() as store:
            assert await store.revision("nobody") == 0
            inbox = self.inbox()
            running, first = await self.begun(inbox)
            second = await self.commit(running, first, self.frame(Returned(0, 1.0, encode(1))))
            assert await store.revision(running.id) == second > first
            start, revision = await self.suspended(inbox)
            inbox.subscription.close()
            await store.submit([self.start("queued")])
            assert await store.revision("queued") == 0
            assert await store.revision(start.id) == revision == (await store.journal(start.id)).revision

    async def test_messages_posted_while_nobody_serves_come_in_the_order_sent(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, _ = await self.suspended(inbox)
            inbox.subscription.close()
            at = store.clock.now()
            sent = [Message(id, start.id, at + n, Pause()) for n, id in enumerate("zaybxc")]
            for message in sent:
                await store.post(message)
            await self.reopened()
            again = self.inbox()
            assert [(await again.next_message())[1] for _ in sent] == sent

    async def test_counts_include_what_is_queued_scheduled_and_settled(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            assert (await store.counts()).by_status == {}
            await self.completed(inbox)
            await self.completed(inbox)
            await self.suspended(inbox)
            late = store.clock.now() + 900
            await store.submit([self.start(handler="two"), self.start(handler="two", due=late)])
            for _ in range(2):
                counts = await store.counts()
                assert counts.by_status == {"completed": 2, "suspended": 1, "pending": 1, "scheduled": 1}
                assert counts.by_handler == {HANDLER: 3, "two": 2}
                store = await self.reopened()

    async def test_time_of_the_last_change_is_in_the_index(self) -> None:
        async with self.opened() as store:
            start = self.start(at=store.clock.now() - 50)
            await self.completed(self.inbox(), start)
            row = await store.row(start.id)
            assert row is not None
            assert start.at + 49 < row.updated_at <= store.clock.now()
