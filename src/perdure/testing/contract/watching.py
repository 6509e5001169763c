"""Outcomes are pushed to those that watch."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from perdure.core.journal import (
    Completed,
    Fired,
)
from perdure.core.values import encode
from perdure.errors import Conflict
from perdure.stores.port import Transition, committed
from perdure.testing.contract.shared import (
    StoreCase,
    raised_by,
    within,
)


class Watching(StoreCase):
    """Outcomes are pushed to those that watch."""

    async def test_outcome_is_pushed_to_all_who_watch(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun(inbox)
            watches = [store.watch(start.id) for _ in range(3)]
            elsewhere = store.watch("somebody else")
            watches.pop().cancel()
            assert await store.outcome(start.id) is None
            outcome = Completed(2.0, encode("done"))
            await self.commit(start, revision, self.frame(outcome), "completed")
            for watch in watches:
                assert await within(self.patience, watch, "not pushed") == outcome
            assert not elsewhere.done()
            elsewhere.cancel()
            assert await store.outcome(start.id) == outcome

    async def test_who_registers_then_reads_misses_nothing(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()

            async def result(id: str) -> Any:
                watch = store.watch(id)
                outcome = await store.outcome(id)
                if outcome is None:
                    return await within(self.patience, watch, "not pushed")
                watch.cancel()
                return outcome

            for pauses in range(6):
                start, revision = await self.begun(inbox)
                outcome = Completed(2.0, encode("done"))
                settling = asyncio.ensure_future(self.commit(start, revision, self.frame(outcome), "completed"))
                for _ in range(pauses):
                    await asyncio.sleep(0)
                assert await result(start.id) == outcome
                await settling

    async def test_commit_is_told_once_and_never_before_it_returns(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            told: list[tuple[int, Exception | None]] = []
            frame = self.frame(Fired(1, 1.0))
            store.commit(Transition(start.id, revision, frame), lambda at, error: told.append((at, error)))
            assert told == []
            await raised_by(committed(store, Transition(start.id, revision, frame)), Conflict)
            await asyncio.sleep(self.calm)
            assert told == [((await store.journal(start.id)).revision, None)]

    async def test_one_that_fails_when_told_does_not_keep_others_from_being_told(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            begun = [await self.begun(inbox) for _ in range(6)]
            failures: list[object] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
            fault = RuntimeError("whoever is told fails")

            def fail(revision: int, error: Exception | None) -> None:
                raise fault

            commits: list[Awaitable[int]] = []
            for failing, other in zip(begun[::2], begun[1::2], strict=True):
                store.commit(Transition(failing[0].id, failing[1], self.frame(Fired(1, 1.0))), fail)
                commits.append(self.commit(*other, self.frame(Fired(2, 1.0))))
            await asyncio.gather(*commits)
            assert failures == [fault] * 3

    async def test_push_comes_only_when_the_outcome_can_be_read(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            watch = store.watch(start.id)
            frame = self.frame(Completed(2.0, b"\xc0"))
            committed(store, Transition(start.id, revision, frame, status="completed"))
            assert await within(self.patience, watch, "not pushed") == await store.outcome(start.id)
