"""Streams: each item once, in order, from any number on; nothing of a worker that has lost its invocation."""

import asyncio
from collections.abc import Sequence

from perdure.core.effects import Effects
from perdure.core.journal import Claimed, Completed, Frame, Released, Returned, Start
from perdure.core.streams import ITEM_LIMIT_BYTES, STREAM_LIMIT_BYTES, Batch, batches, items_of
from perdure.core.values import encode
from perdure.errors import Fenced, LimitExceeded, StoreClosed
from perdure.stores.port import Transition, committed
from perdure.testing.contract.shared import StoreCase, called, raised_by, within

Item = tuple[int, bytes, int | None, int]
"""The number of an item, its bytes, and the step and attempt that wrote it."""


def batch(*items: bytes, name: str = "s", step: int | None = 0, attempt: int = 1, first: int = 0) -> Batch:
    """Make a batch."""
    (found,) = batches(name, items, first=first, attempt=attempt, step=step)
    return found


class Streams(StoreCase):
    """Streams: each item once, in order, from any number on; nothing of a worker that has lost its invocation."""

    async def items(self, id: str, start: int = 0, name: str = "s") -> list[Item]:
        """Read all items of a stream from one on."""
        found: list[Item] = []
        while chunks := await self.store.streams.read(id, name, start):
            assert chunks[0].offset <= start < chunks[0].end
            for chunk in chunks:
                assert chunk.offset <= start
                batch = chunk.batch
                items = [(chunk.offset + n, item) for n, item in enumerate(items_of(batch))]
                found += [(*item, batch.step, batch.attempt) for item in items if item[0] >= start]
                start = chunk.end
        return found

    def writing(self, *written: Batch, entries: Sequence[Returned | Completed | Released] = ()) -> Frame:
        """Make a frame of a body that writes."""
        return Frame("w", self.store.clock.now(), list(entries), written=list(written))

    async def again(self, start: Start, revision: int, *written: Batch) -> None:
        """Do the effects of a frame once more, as the worker does that takes over."""
        redo = Transition(start.id, revision, None, Effects(written=written))
        await within(self.patience, committed(self.store, redo), "not committed")

    async def test_items_are_read_in_order_from_any_number_on(self) -> None:
        async with self.opened() as store:
            start, _ = await self.begun(self.inbox())
            for n in range(0, 40, 2):
                first = batch(b"%d" % n, b"%d" % (n + 1), first=n)
                await store.streams.append(start.id, 1, first)
            expected = [(n, b"%d" % n, 0, 1) for n in range(40)]
            store = await self.reopened()
            for begin in (0, 1, 2, 17, 38, 39, 40, 99):
                assert await self.items(start.id, begin) == expected[begin:]
            assert await self.items(start.id, name="other") == []
            assert await self.items("nobody") == []

    async def test_reading_begins_where_it_is_asked_to_among_streams_of_others(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, _ = await self.begun(inbox)
            other, _ = await self.begun(inbox)
            for n in range(50):
                for id, name in ((start.id, "s"), (start.id, "t"), (other.id, "s"))[: 1 + n % 3]:
                    await store.streams.append(id, 1, batch(b"%d" % n, name=name))
            store = await self.reopened()
            for begin in range(50):
                assert [item[1] for item in await self.items(start.id, begin)] == [b"%d" % n for n in range(begin, 50)]
            assert await store.streams.counts(start.id) == {"s": 50, "t": 33}
            assert await store.streams.counts(other.id) == {"s": 16}
            assert await store.streams.counts("nobody") == {}

    async def test_large_items_come_in_several_reads(self) -> None:
        async with self.opened() as store:
            start, _ = await self.begun(self.inbox())
            large = [bytes([n]) * ITEM_LIMIT_BYTES for n in range(5)]
            for each in large:
                await store.streams.append(start.id, 1, batch(each))
            assert len(await store.streams.read(start.id, "s", 0)) < len(large)
            assert [item[1] for item in await self.items(start.id)] == large

    async def test_body_and_steps_write_to_one_stream(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            await store.streams.append(start.id, 1, batch(b"a", b"b"))
            body = batch(b"c", step=None)
            revision = await self.commit(start, revision, self.writing(body))
            await store.streams.append(start.id, 1, batch(b"d", step=3, attempt=2))
            expected = [(0, b"a", 0, 1), (1, b"b", 0, 1), (2, b"c", None, 1), (3, b"d", 3, 2)]
            assert await self.items(start.id) == expected
            await self.again(start, revision, body)
            assert await self.items(start.id) == expected

    async def test_what_a_body_writes_is_written_once_however_often_it_is_done(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            first, second = batch(b"a", b"b", step=None), batch(b"c", step=None, first=2)
            revision = await self.commit(start, revision, self.writing(first, second))
            store = await self.reopened()
            self.inbox()
            await self.again(start, revision, first, second)
            third = batch(b"d", step=None, first=3)
            revision = await self.commit(start, revision, self.writing(third))
            await self.again(start, revision, third)
            assert [item[1] for item in await self.items(start.id)] == [b"a", b"b", b"c", b"d"]
            assert [frame.written for frame in await self.frames_of(start.id)] == [[], [first, second], [third]]
            assert await store.streams.counts(start.id) == {"s": 4}

    async def test_worker_that_lost_the_invocation_is_refused(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            await store.streams.append(start.id, 1, batch(b"old"))
            await self.commit(start, revision, self.frame(Claimed(1.0, 2, "w", "3.11", "0")))
            await store.streams.append(start.id, 2, batch(b"new", attempt=2))
            await raised_by(store.streams.append(start.id, 1, batch(b"late", first=1)), Fenced)
            await store.streams.append(start.id, 2, batch(b"more", attempt=2, first=1))
            assert [item[1] for item in await self.items(start.id)] == [b"old", b"new", b"more"]

    async def test_nothing_is_appended_to_what_has_settled_or_is_unknown(self) -> None:
        async with self.opened() as store:
            start = await self.completed(self.inbox())
            await raised_by(store.streams.append(start.id, 1, batch(b"late")), Fenced)
            await raised_by(store.streams.append("nobody", 1, batch(b"late")), Fenced)
            assert await self.items(start.id) == []

    async def test_stream_is_whole_once_the_outcome_can_be_seen(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            watching = store.watch(start.id)
            last = self.writing(batch(b"bye", step=None), entries=[Completed(store.clock.now(), encode(1))])
            commit = asyncio.ensure_future(self.commit(start, revision, last, "completed"))
            while await store.outcome(start.id) is None:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert [item[1] for item in await self.items(start.id)] == [b"bye"]
            await within(self.patience, watching, "no outcome was pushed")
            await commit

    async def test_full_stream_takes_no_more_of_steps_but_what_its_body_writes(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            large = b"x" * (ITEM_LIMIT_BYTES - 1_000)
            for n in range(STREAM_LIMIT_BYTES // ITEM_LIMIT_BYTES):
                await store.streams.append(start.id, 1, batch(large, first=n))
            error = await raised_by(store.streams.append(start.id, 1, batch(large)), LimitExceeded)
            assert "stream 's' has" in str(error)
            await self.commit(start, revision, self.writing(batch(b"end", step=None)))
            await store.streams.append(start.id, 1, batch(b"x", name="another"))
            count = STREAM_LIMIT_BYTES // ITEM_LIMIT_BYTES + 1
            assert await store.streams.counts(start.id) == {"another": 1, "s": count}

    async def test_reader_is_told_that_there_is_more(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun(inbox)
            other, _ = await self.begun(inbox)
            following = store.streams.follow(start.id, "s")
            more = asyncio.ensure_future(called(following.more))
            await store.streams.append(other.id, 1, batch(b"a"))
            await store.streams.append(start.id, 1, batch(b"a", name="t"))
            await asyncio.sleep(self.calm)
            assert not more.done()
            await store.streams.append(start.id, 1, batch(b"a"))
            await within(self.patience, more, "nothing was told")
            more = asyncio.ensure_future(called(following.more))
            await self.commit(start, revision, self.writing(batch(b"b", step=None)))
            await within(self.patience, more, "nothing was told of the body")
            following.close()

    async def test_closing_the_store_wakes_its_readers(self) -> None:
        async with self.opened() as store:
            start, _ = await self.begun(self.inbox())
            following = store.streams.follow(start.id, "s")
            more = asyncio.ensure_future(called(following.more))
            await asyncio.sleep(0)
            await store.aclose()
            await within(self.patience, more, "nothing was told")
            await raised_by(called(lambda: store.streams.read(start.id, "s", 0)), StoreClosed)

    async def test_streams_go_with_their_invocation(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            for n in range(2):
                start, revision = await self.begun(inbox, self.start("again"))
                await store.streams.append(start.id, 1, batch(b"%d" % n))
                last = self.writing(batch(b"bye", step=None), entries=[Completed(store.clock.now(), encode(1))])
                await self.commit(start, revision, last, "completed")
                assert [item[:2] for item in await self.items(start.id)] == [(0, b"%d" % n), (1, b"bye")]
                assert await store.purge(store.clock.now(), limit=1) == 1
                assert await self.items(start.id) == []
                assert await store.streams.counts(start.id) == {}
