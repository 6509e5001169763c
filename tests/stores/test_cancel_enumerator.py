"""Exhaustive small scope: a cancellation at every instant, and a crash of the process at every instant after it.

The lab is that of the crash enumerator. A program of a parent, a child and a send, with steps, sleeps and cleanup, runs
once to count its writes. Then, for every k, it runs again and is cancelled right after write k: while it is scheduled,
queued, in its key's line, in its first step, before its child has started, while it settles. Whatever the instant:
everything ends, the answer to the cancellation is true, cleanup runs for what had begun and once, and nothing leaks.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any, Literal

import pytest

from perdure.authoring.context import Context
from perdure.authoring.step import step
from perdure.authoring.workflow import Workflow, workflow
from perdure.core.history import History
from perdure.core.journal import CallStep, CancelRequested
from perdure.errors import IllegalTransition, InvocationCancelled, StoreClosed, UnknownInvocation
from perdure.stores.memory import Crashed
from perdure.stores.port import Filter
from tests.stores.test_crash_enumerator import ID, Lab, check_statuses, report_all_but_crashes

ran: Counter[str] = Counter()
begun: Counter[str] = Counter()
"""Bodies that ran to their first step, by handler: what of them must clean up."""


@step
async def act(name: str) -> str:
    ran[name] += 1
    return name


@step
async def undo(name: str) -> None:
    ran[f"undo {name}"] += 1


@workflow
async def family(ctx: Context) -> str:
    try:
        await act("first")
        await offspring()
        await asyncio.sleep(5)
        ctx.send(distant.using(delay=7))
        return await act("last")
    finally:
        await undo("family")


@workflow
async def offspring() -> str:
    try:
        await act("child's")
        await asyncio.sleep(5)
        return await act("child's last")
    finally:
        await undo("offspring")


@workflow
async def distant() -> str:
    return await act("distant")


@workflow
async def holder() -> None:
    """Hold the key that the family waits for."""
    await asyncio.sleep(4)


SERVED: tuple[Workflow[..., Any], ...] = (family, offspring, distant, holder)
KEY = "the family's"
Case = Literal["at once", "scheduled", "in line"]


class CancellingLab(Lab):
    """Cancels right after a write, and remembers what became of it."""

    served = SERVED

    def __init__(self, *, cancel_at: int = 0, force: bool = False, always_replay: bool = False) -> None:
        super().__init__(always_replay=always_replay)
        self.cancel_at = cancel_at
        self.force = force
        self.cancelling: asyncio.Task[None] | None = None
        self.applied: bool | None = None
        """Whether it was; None when its process ended before it could say."""

    def _before_write(self, kind: str, id: str) -> None:
        super()._before_write(kind, id)
        if len(self.writes) == self.cancel_at:
            asyncio.get_running_loop().call_soon(self._begin_to_cancel)

    def _begin_to_cancel(self) -> None:
        self.cancelling = asyncio.ensure_future(self.cancel())

    async def cancel(self) -> None:
        with suppress(StoreClosed, Crashed):
            try:
                await self.client.handle(ID).cancel(force=self.force)
            except UnknownInvocation:
                self.applied = None  # it was asked for before there was anything to cancel
            except IllegalTransition:
                self.applied = False
            else:
                self.applied = True

    async def run(self, case: Case) -> str:
        """Run to the end, through as many processes as it takes; return the status of the family."""
        ran.clear()
        asyncio.get_running_loop().set_exception_handler(report_all_but_crashes)
        while True:
            try:
                async with self.process():
                    with suppress(UnknownInvocation):  # it was never accepted
                        await self._let_it_end(case)
                    await self.drain()
                    self.stop_if_crashed()
                    self.left = self.worker.slots_taken, self.worker.runners
                break
            except (StoreClosed, Crashed):
                assert self.crashed.is_set()
            finally:
                if self.cancelling is not None:
                    if not self.cancelling.done():
                        self.cancelling.cancel()
                    await asyncio.wait([self.cancelling])
            self.store.restart()
        row = await self.store.row(ID)
        return row.status if row is not None else "unknown"

    async def _let_it_end(self, case: Case) -> None:
        result = asyncio.ensure_future(self._outcome(case))
        try:
            while not result.done():
                await self.settle()
                self.stop_if_crashed()
                if (due := self.clock.next_due()) is not None:
                    self.clock.move_to(due)
            result.result()
        except Crashed:
            raise StoreClosed("the process crashed") from None
        finally:
            result.cancel()
            await asyncio.wait([result])

    async def _outcome(self, case: Case) -> None:
        with suppress(InvocationCancelled):
            if case == "in line":
                await self.client.start(holder.using(id="holder", key=KEY))
            starting = {"in line": family.using(key=KEY), "scheduled": family.using(delay=3)}.get(case, family)
            handle = await self.client.start(starting.using(id=ID))
            await handle.result()


async def check(lab: CancellingLab, status: str, where: str) -> None:
    where = f"{where}, writes {lab.writes}"
    store = lab.store
    store.check_liveness()
    assert store.undelivered() == [], where
    assert (await store.key(KEY)).holder is None, where
    assert lab.left == (0, 0), where
    if lab.applied is not None:
        assert status == ("cancelled" if lab.applied else "completed"), where
    for row in await store.search(Filter()):
        journal = await store.journal(row.id)
        history = History.of(journal.frames)
        assert history.outcome is not None, where
        assert row.status == history.status, where
        check_statuses(journal.frames, where)
        cancelled = [e for frame in journal.frames for e in frame.entries if isinstance(e, CancelRequested)]
        if row.handler == "distant":
            assert row.status == "completed", f"what was sent is not the sender's to cancel: {where}"
            assert ran["distant"] >= 1, where
        elif row.status == "completed" and row.handler != "holder":
            assert ran[f"undo {row.handler}"] >= 1, where
        if cancelled and row.handler == "offspring" and not lab.force:
            assert row.status == "cancelled", where


async def was_cancelled_in_cleanup(lab: CancellingLab, handler: str) -> bool:
    """Report whether the body was cleaning up of itself when it was cancelled: that is then raised there."""
    (row,) = await lab.store.search(Filter(handler=handler))
    frames = (await lab.store.journal(row.id)).frames
    undo = {c.n for frame in frames for c in frame.commands if isinstance(c, CallStep) and c.name == "undo"}
    return any(undo.intersection(frame.cancels) for frame in frames)


@pytest.mark.parametrize("case", ["at once", "scheduled", "in line"])
@pytest.mark.parametrize("always_replay", [False, True], ids=["kept turns", "always replayed"])
@pytest.mark.parametrize("force", [False, True], ids=["with cleanup", "forced"])
async def test_cancel_at_every_instant_has_one_outcome_and_leaks_nothing(
    force: bool, always_replay: bool, case: Case
) -> None:
    undisturbed = CancellingLab(always_replay=always_replay)
    assert await undisturbed.run(case) == "completed"
    await check(undisturbed, "completed", "undisturbed")
    assert {*ran.values()} == {1}
    points = len(undisturbed.writes)
    assert points > 30
    seen: Counter[str] = Counter()
    for k in range(1, points + 1):
        lab = CancellingLab(cancel_at=k, force=force, always_replay=always_replay)
        status = await lab.run(case)
        seen[status] += 1
        where = f"cancelled after write {k}"
        await check(lab, status, where)
        assert max(ran.values(), default=0) <= 1, f"{where}: {ran}"
        for name, first in (("family", "first"), ("offspring", "child's")):
            if ran[first] and not force and not await was_cancelled_in_cleanup(lab, name):
                assert ran[f"undo {name}"] == 1, f"{where}: {ran}"
        if case == "scheduled" and k == 1:
            assert (status, len(ran)) == ("cancelled", 0), f"{where}: {ran}"
    assert set(seen) == {"completed", "cancelled"}, seen


@pytest.mark.parametrize("case", ["at once", "in line"])
@pytest.mark.parametrize("force", [False, True], ids=["with cleanup", "forced"])
async def test_cancel_at_every_instant_ends_the_same_when_the_process_crashes_at_any_later_one(
    force: bool, case: Case
) -> None:
    undisturbed = CancellingLab()
    await undisturbed.run(case)
    for k in range(1, len(undisturbed.writes) + 1):
        calm = CancellingLab(cancel_at=k, force=force)
        await calm.run(case)
        for crash in range(k + 1, len(calm.writes) + 1):
            lab = CancellingLab(cancel_at=k, force=force)
            lab.crash_at = [crash]
            await check(lab, await lab.run(case), f"cancelled after write {k}, crashed before {crash}")
