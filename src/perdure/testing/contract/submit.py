"""Starts are accepted once."""

import asyncio

from perdure.core.effects import Effects
from perdure.core.journal import (
    Accepted,
    Parent,
    Start,
)
from perdure.core.values import encode
from perdure.errors import IdConflict
from perdure.stores.port import Filter, Transition, committed
from perdure.testing.contract.shared import (
    HANDLER,
    StoreCase,
    raised_by,
)


class Submit(StoreCase):
    """Starts are accepted once."""

    async def test_new_start_is_accepted_and_can_be_read(self) -> None:
        async with self.opened() as store:
            start = self.start(key="k", timeout=3.5, parent=Parent("p", 0, 4), held=("a", "b"))
            assert await store.submit([start]) == [True]
            assert await store.start(start.id) == start
            row = await store.row(start.id)
            assert row is not None
            assert (row.id, row.handler, row.status, row.key) == (start.id, HANDLER, "pending", "k")
            assert (row.created_at, row.due) == (start.at, start.due)
            assert (await store.journal(start.id)).frames == ()

    async def test_existing_id_with_the_same_start_changes_nothing(self) -> None:
        async with self.opened() as store:
            for chosen in (True, False):
                first = self.start(f"again-{chosen}", chosen=chosen)
                assert await store.submit([first]) == [True]
                later = self.start(f"again-{chosen}", chosen=chosen, seed=8)
                assert await store.submit([later]) == [False]
                assert await store.start(first.id) == first
            assert len(await store.search(Filter())) == 2

    async def test_existing_id_with_another_time_or_key_changes_nothing(self) -> None:
        async with self.opened() as store:
            late = store.clock.now() + 900
            await store.submit([self.start("late", due=late), self.start("now"), self.start("keyed", key="k")])
            again = [self.start("late"), self.start("now", due=late), self.start("keyed", key="l")]
            for start in (*again, self.start("keyed")):
                assert await store.submit([start]) == [False]
            rows = {row.id: (row.status, row.key) for row in await store.search(Filter())}
            assert rows == {"late": ("scheduled", None), "now": ("pending", None), "keyed": ("pending", "k")}
            for id, (status, key) in rows.items():
                row = await store.row(id)
                assert row is not None
                assert (row.status, row.key) == (status, key)
            inbox = self.inbox(room=10)
            came = [(await inbox.next_start()).item for _ in range(2)]
            assert {start.key for start in came if isinstance(start, Start)} == {None, "k"}
            await inbox.stays_empty(self.calm)

    async def test_existing_id_with_another_input_or_handler_is_a_conflict_and_none_is_accepted(self) -> None:
        async with self.opened() as store:
            first = self.start("taken", input=encode({"x": 1}))
            await store.submit([first])
            others = (
                self.start("taken", input=encode({"x": 2})),
                self.start("taken", handler="other", input=first.input),
            )
            for other in others:
                error = await raised_by(store.submit([self.start("before"), other, self.start("after")]), IdConflict)
                assert "taken" in str(error)
            assert await store.row("before") is None
            assert await store.row("after") is None
            assert await store.start("taken") == first

    async def test_conflict_of_one_submit_does_not_fail_another_of_the_same_moment(self) -> None:
        async with self.opened() as store:
            await store.submit([self.start("taken", input=encode({"x": 1}))])
            good, bad = self.start("good"), self.start("taken", input=encode({"x": 2}))
            results = await asyncio.gather(
                store.submit([self.start("early")]), store.submit([bad]), store.submit([good]), return_exceptions=True
            )
            assert results[0] == [True]
            assert isinstance(results[1], IdConflict)
            assert results[2] == [True]

    async def test_two_submits_of_one_id_in_the_same_moment_accept_it_once(self) -> None:
        async with self.opened() as store:
            for chosen in (True, False):
                starts = [self.start(f"same-{chosen}", chosen=chosen) for _ in range(5)]
                results = await asyncio.gather(*(store.submit([start]) for start in starts))
                assert sorted(new for (new,) in results) == [False] * 4 + [True]
            assert len(await store.search(Filter())) == 2

    async def test_many_starts_in_one_call_are_told_apart(self) -> None:
        async with self.opened() as store:
            await store.submit([self.start("b")])
            assert await store.submit([self.start("a"), self.start("b"), self.start("c")]) == [True, False, True]
            assert await store.submit([]) == []
            assert await store.submit([self.start() for _ in range(1_000)]) == [True] * 1_000

    async def test_one_id_twice_in_one_call_is_accepted_once_or_is_a_conflict(self) -> None:
        async with self.opened() as store:
            assert await store.submit([self.start("twice"), self.start("twice")]) == [True, False]
            differing = [self.start("other", input=encode({"x": 1})), self.start("other", input=encode({"x": 2}))]
            await raised_by(store.submit(differing), IdConflict)
            assert await store.row("other") is None

    async def test_accepted_start_survives_reopening(self) -> None:
        async with self.opened() as store:
            start = self.start()
            await store.submit([start])
            store = await self.reopened()
            assert await store.start(start.id) == start
            delivery = await self.inbox(room=1).next_start()
            assert (delivery.id, delivery.item) == (start.id, start)
            assert await store.submit([start]) == [False]

    async def test_delayed_start_is_delivered_when_due_and_not_before(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=5)
            due = store.clock.now() + 0.15
            await store.submit([self.start("late", due=due), self.start("now")])
            assert await inbox.starts(1) == ["now"]
            row = await store.row("late")
            assert row is not None
            assert (row.status, row.due) == ("scheduled", due)
            assert await inbox.starts(1) == ["late"]
            assert store.clock.now() >= due
            await inbox.stays_empty(self.calm)

    async def test_start_without_a_delay_is_due_at_once_though_its_authors_clock_is_ahead(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            ahead = store.clock.now() + 3_600
            plain, keyed = self.start(at=ahead, due=ahead), self.start("keyed", at=ahead, due=ahead, key="k")
            chosen = [self.start(f"chosen-{n}", at=ahead, due=ahead) for n in range(2)]
            await store.submit([plain])
            await store.submit([keyed])
            await store.submit(chosen)
            ids = {plain.id, keyed.id, *(each.id for each in chosen)}
            for id in ids:
                row = await store.row(id)
                assert row is not None
                assert (row.status, row.due) == ("pending", ahead)
            assert {row.id for row in await store.search(Filter(status="pending"))} == ids
            assert {*await inbox.starts(len(ids))} == ids

    async def test_what_a_worker_with_a_clock_ahead_starts_is_due_at_once(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([start := self.start()])
            delivery = await inbox.next_start()
            ahead = store.clock.now() + 3_600
            sent = [
                self.start(None, at=ahead, due=ahead, sender=start.id),
                self.start("chosen", at=ahead, due=ahead, sender=start.id),
                self.start(None, at=ahead, due=ahead, key="k", sender=start.id),
            ]
            frame = self.frame(Accepted(start), self.claim())
            effects = Effects(starts=tuple(sent))
            await committed(store, Transition(start.id, 0, frame, effects, None, False, [delivery]))
            assert {*await inbox.starts(3)} == {each.id for each in sent}

    async def test_start_without_a_delay_survives_reopening_by_a_clock_that_is_behind(self) -> None:
        async with self.opened() as store:
            ahead = store.clock.now() + 3_600
            await store.submit([self.start("first", at=ahead, due=ahead)])
            await self.reopened()
            assert await self.inbox(room=1).starts(1) == ["first"]

    async def test_delayed_start_survives_reopening(self) -> None:
        async with self.opened() as store:
            due = store.clock.now() + 0.15
            await store.submit([self.start("late", due=due)])
            await self.reopened()
            assert await self.inbox(room=1).starts(1) == ["late"]
            assert self.store.clock.now() >= due

    async def test_delayed_start_that_falls_due_while_nobody_serves_it_is_kept(self) -> None:
        async with self.opened() as store:
            await store.submit([self.start("late", due=store.clock.now() + 0.05)])
            await asyncio.sleep(0.1)
            assert await self.inbox(room=1).starts(1) == ["late"]

    async def test_delayed_starts_and_others_submitted_as_they_fall_due_are_all_delivered(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100_000)
            now = store.clock.now()
            late = [self.start(due=now + 0.02 + n / 1_000) for n in range(60)]
            await store.submit(late)
            expected = {start.id for start in late}
            while store.clock.now() < now + 0.1:
                start = self.start()
                expected.add(start.id)
                await store.submit([start])
                await asyncio.sleep(0)
            assert set(await inbox.starts(len(expected))) == expected
