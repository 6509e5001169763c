"""Awakeables can be listed, with what is told of them, and whether they are open."""

from collections.abc import Sequence
from typing import Any

from perdure.core.journal import Asked, Completed, OpenAwakeable, Released, Returned, Start
from perdure.core.values import encode
from perdure.stores.awakeables import Awakeable, AwakeableFilter
from perdure.testing.contract.shared import HANDLER, Inbox, StoreCase


class Awakeables(StoreCase):
    """Awakeables can be listed, with what is told of them, and whether they are open."""

    async def asks(self, inbox: Inbox, start: Start, *asked: Asked) -> tuple[list[Awakeable], int]:
        """Begin an invocation that opens awakeables, and suspend it; return them and the revision."""
        _, revision = await self.begun(inbox, start)
        frame = self.frame(
            Released(self.store.clock.now()), commands=[OpenAwakeable(n, each) for n, each in enumerate(asked, 1)]
        )
        made = [Awakeable(start.id, start.handler, 0, n, frame.at, each) for n, each in enumerate(asked, 1)]
        return made, await self.commit(start, revision, frame, "suspended", awakeables=made)

    async def listed(self, **filter: Any) -> list[tuple[str, int]]:
        """List awakeables by invocation and command."""
        which = AwakeableFilter(self.store.clock.now(), **filter)
        return [(each.invocation, each.n) for each in await self.store.awakeables(which)]

    async def test_open_awakeables_are_listed_oldest_first_with_what_is_told_of_them(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            now = store.clock.now()
            told = Asked("Expense", "of 400 EUR", ("finance", "ada"), now + 900.0)
            first, _ = await self.asks(inbox, self.start("b"), told, Asked())
            second, _ = await self.asks(inbox, self.start("a"), Asked("é" * 50))
            for _ in range(2):
                found = await store.awakeables(AwakeableFilter(store.clock.now()))
                assert found == [*first, *second]
                store = await self.reopened()

    async def test_answered_ones_stay_listed_as_such_until_their_invocation_is_purged(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start = self.start("x")
            made, revision = await self.asks(inbox, start, Asked("one"), Asked("two"))
            now = store.clock.now()
            frame = self.frame(self.claim(2), Returned(1, now, encode(1)), Released(now))
            revision = await self.commit(start, revision, frame, "suspended", awakeables=made[1:])
            assert await self.listed() == [("x", 2)]
            assert await self.listed(is_open=False) == [("x", 1)]
            assert await self.listed(is_open=None) == [("x", 1), ("x", 2)]
            frame = self.frame(self.claim(3), Completed(store.clock.now(), encode(1)))
            await self.commit(start, revision, frame, "completed", awakeables=())
            store = await self.reopened()
            assert await self.listed() == []
            assert await self.listed(is_open=False) == [("x", 1), ("x", 2)]
            assert await store.purge(store.clock.now() + 1, limit=10) == 1
            assert await self.listed(is_open=None) == []

    async def test_commit_that_says_nothing_of_them_leaves_them_as_they_are(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start = self.start("x")
            _, revision = await self.asks(inbox, start, Asked("one"))
            frame = self.frame(self.claim(2), Released(store.clock.now()))
            await self.commit(start, revision, frame, "suspended")
            assert await self.listed() == [("x", 1)]

    async def test_opened_anew_it_is_open_again(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start = self.start("x")
            made, revision = await self.asks(inbox, start, Asked("one"))
            for awakeables in ((), made):
                now = store.clock.now()
                frame = self.frame(self.claim(2), Released(now))
                revision = await self.commit(start, revision, frame, "suspended", awakeables=awakeables)
            assert await self.listed() == [("x", 1)]
            assert await self.listed(is_open=False) == []

    async def test_all_filters_together(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(HANDLER, "other")
            now = store.clock.now()
            past, future = now - 5.0, now + 900.0
            await self.asks(inbox, self.start("a"), Asked(assignees=("ada", "bo")), Asked(expires_at=past))
            await self.asks(inbox, self.start("b", handler="other"), Asked(assignees=("bo",), expires_at=future))
            cases: list[tuple[dict[str, Any], Sequence[tuple[str, int]]]] = [
                ({}, [("a", 1), ("b", 1)]),
                ({"assignee": "bo"}, [("a", 1), ("b", 1)]),
                ({"assignee": "ada"}, [("a", 1)]),
                ({"assignee": "a"}, []),
                ({"handler": "other"}, [("b", 1)]),
                ({"handler": "other", "assignee": "ada"}, []),
                ({"is_open": False}, [("a", 2)]),
                ({"is_open": None, "limit": 2}, [("a", 1), ("a", 2)]),
                ({"is_open": False, "assignee": "bo"}, []),
            ]
            for filter, expected in cases:
                assert await self.listed(**filter) == expected, filter

    async def test_pages_go_on_after_a_place_without_gaps_or_repeats(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            made: list[Awakeable] = []
            for n in range(5):
                made += (await self.asks(inbox, self.start(f"p{n}"), *(Asked(f"{n}.{each}") for each in range(4))))[0]
            seen: list[Awakeable] = []
            after = None
            while page := await store.awakeables(AwakeableFilter(store.clock.now(), after=after, limit=3)):
                seen += page
                after = page[-1].place
            assert seen == made
