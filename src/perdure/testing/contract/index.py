"""Invocations can be searched and counted."""

from perdure.core.journal import Cancelled, Released, Resumed
from perdure.stores.port import Filter, Row
from perdure.stores.waits import Wait
from perdure.testing.contract.shared import HANDLER, StoreCase


class Index(StoreCase):
    """Invocations can be searched and counted."""

    async def test_search_lists_newest_first_whatever_the_status(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            now = store.clock.now()
            settled = await self.completed(inbox, self.start("done", at=now - 5))
            waiting, _ = await self.suspended(inbox, self.start("waits", at=now - 4))
            running, _ = await self.begun(inbox, self.start("runs", at=now - 3))
            queued, scheduled = self.start("queued", at=now - 2), self.start("scheduled", at=now - 1, due=now + 900)
            await store.submit([queued, scheduled])
            expected = [scheduled, queued, running, waiting, settled]
            for _ in range(2):
                rows = await store.search(Filter())
                assert [row.id for row in rows] == [start.id for start in expected]
                assert [row.status for row in rows] == ["scheduled", "pending", "running", "suspended", "completed"]
                for row, start in zip(rows, expected, strict=True):
                    assert (row.handler, row.key, row.created_at, row.due) == (HANDLER, None, start.at, start.due)
                    assert await store.row(row.id) == row
                store = await self.reopened()

    async def test_search_filters_and_all_filters_together(self) -> None:
        async with self.opened() as store:
            now = store.clock.now()
            await store.submit(
                [
                    self.start("a1", key="k", at=now),
                    self.start("a2", key="other", at=now + 1),
                    self.start("b1", handler="two", key="k", at=now + 2),
                    self.start("b2", handler="two", at=now + 3, due=now + 900),
                ]
            )
            cases = {
                Filter(handler="two"): ["b2", "b1"],
                Filter(key="k"): ["b1", "a1"],
                Filter(status="scheduled"): ["b2"],
                Filter(status="completed"): [],
                Filter(id_prefix="a"): ["a2", "a1"],
                Filter(id_prefix="a2"): ["a2"],
                Filter(id_prefix="%"): [],
                Filter(handler="two", key="k", status="pending", id_prefix="b"): ["b1"],
                Filter(handler="two", key="k", status="scheduled"): [],
                Filter(limit=3): ["b2", "b1", "a2"],
                Filter(id="a2"): ["a2"],
                Filter(id="a"): [],
                Filter(created_after=now + 1): ["b2", "b1", "a2"],
                Filter(created_before=now + 1): ["a1"],
                Filter(created_after=now + 1, created_before=now + 3, handler="two"): ["b1"],
            }
            for filter, expected in cases.items():
                assert [row.id for row in await store.search(filter)] == expected, filter

    async def test_search_by_tags_finds_what_has_all_of_them_newest_first(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            now = store.clock.now()
            acme, web, other = ("tenant", "acme"), ("from", "web"), ("tenant", "other é/%")
            starts = [
                self.start("a", at=now, tags=(web, acme)),
                self.start("b", at=now + 1, tags=(acme,)),
                self.start("c", at=now + 2, tags=(other,)),
                self.start("d", at=now + 3),
                self.start("e", at=now + 4, due=now + 900, tags=(acme,)),
            ]
            await self.completed(inbox, starts[0])
            await store.submit(starts[1:])
            cases = {
                Filter(tags=(acme,)): ["e", "b", "a"],
                Filter(tags=(acme,), limit=2): ["e", "b"],
                Filter(tags=(acme,), before=(now + 1, "b")): ["a"],
                Filter(tags=(web, acme)): ["a"],
                Filter(tags=(other,)): ["c"],
                Filter(tags=(("tenant", "acm"),)): [],
                Filter(tags=(("tenan", "acme"),)): [],
                Filter(tags=(acme,), status="completed"): ["a"],
                Filter(tags=(acme,), status="scheduled", handler=HANDLER): ["e"],
                Filter(tags=(acme,), id_prefix="b", created_after=now + 1): ["b"],
            }
            for _ in range(2):
                for filter, expected in cases.items():
                    assert [row.id for row in await store.search(filter)] == expected, filter
                rows = {row.id: row for row in await store.search(Filter())}
                assert {id: row.tags for id, row in rows.items()} == {each.id: each.tags for each in starts}
                assert [await store.row(id) for id in rows] == [*rows.values()]
                store = await self.reopened()
            assert await store.purge(now + 10, limit=10) == 1
            assert [row.id for row in await store.search(Filter(tags=(acme,)))] == ["e", "b"]

    async def test_what_ended_is_counted_by_minute_handler_and_status(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            now = store.clock.now()
            for n in range(3):
                await self.completed(inbox, self.start(f"done{n}", at=now - 10 * n, due=now - 5 * n))
            start, revision = await self.begun(inbox)
            frame = self.frame(Cancelled(store.clock.now()))
            await self.commit(start, revision, frame, "cancelled")
            await self.begun(inbox)
            rows = await store.search(Filter())
            for _ in range(2):
                for since in (0.0, now - 60, max(row.updated_at for row in rows if row.status == "completed")):
                    expected: dict[tuple[float, str, str], list[float]] = {}
                    for row in rows:
                        if row.status in ("completed", "cancelled") and row.updated_at >= since:
                            of = (row.updated_at // 60 * 60, row.handler, row.status)
                            expected.setdefault(of, []).append(row.updated_at - row.due)
                    found = await store.minutes(since)
                    assert [(each.at, each.handler, each.status) for each in found] == sorted(expected)
                    for each, took in zip(found, (took for _, took in sorted(expected.items())), strict=True):
                        assert each.count == len(took)
                        assert abs(each.seconds - sum(took)) < 1e-3
                        assert abs(each.longest - max(took)) < 1e-3
                    assert await store.minutes(since, handler=HANDLER) == found
                    assert await store.minutes(since, handler="other") == []
                store = await self.reopened()
            assert sum(each.count for each in await store.minutes(0.0)) == 4
            assert await store.minutes(store.clock.now() + 1) == []
            assert await store.purge(store.clock.now() + 1, limit=10) == 4
            assert await store.minutes(0.0) == []

    async def test_wait_is_told_with_the_status_and_stays_until_the_next(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun(inbox)
            row = await store.row(start.id)
            assert row is not None
            assert row.wait is None
            now = store.clock.now()
            for wait in (
                Wait("é" * 40, now, more=3),
                Wait("charge", now - 5, now + 900, attempt=3),
                None,
                Wait("SLEEP", now, now + 60),
            ):
                frame = self.frame(Resumed(store.clock.now()), Released(store.clock.now()))
                revision = await self.commit(start, revision, frame, "suspended", wait=wait)
                for _ in range(2):
                    row = await store.row(start.id)
                    assert row is not None
                    assert row.wait == wait
                    assert await store.search(Filter()) == [row]
                    store = await self.reopened()
            frame = self.frame(self.claim(2), Resumed(store.clock.now()))
            revision = await self.commit(start, revision, frame)  # says nothing of the row
            assert await store.row(start.id) == row
            revision = await self.commit(start, revision, self.frame(Resumed(store.clock.now())), "running")
            row = await store.row(start.id)
            assert row is not None
            assert (row.status, row.wait) == ("running", None)

    async def test_search_goes_on_page_by_page_without_gaps_or_repeats(self) -> None:
        async with self.opened() as store:
            now = store.clock.now()
            await store.submit([self.start(f"p{n:02d}", at=now + n // 4) for n in range(25)])
            seen: list[Row] = []
            before = None
            while page := await store.search(Filter(before=before, limit=7)):
                seen += page
                before = (page[-1].created_at, page[-1].id)
            assert [row.id for row in seen] == [f"p{n:02d}" for n in reversed(range(25))]

    async def test_pages_neither_repeat_nor_lose_anything_while_new_ones_arrive(self) -> None:
        async with self.opened() as store:
            now = store.clock.now()
            await store.submit([self.start(f"p{n:02d}", at=now + n) for n in range(20)])
            seen: list[str] = []
            before = None
            while page := await store.search(Filter(before=before, limit=6)):
                seen += [row.id for row in page]
                before = (page[-1].created_at, page[-1].id)
                await store.submit([self.start(f"new{len(seen)}", at=now + 100 + len(seen))])
            assert seen == [f"p{n:02d}" for n in reversed(range(20))]
