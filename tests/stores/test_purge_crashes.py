"""Invariant 16, exhaustively for small programs: whenever a process crashes, retention makes nothing run again.

Retention is at its worst here: whatever may be purged is purged at once. Between the process that crashes and the one
that ends the program stands one that serves only what the program starts: so the started ones settle and are purged
while the effects of the frame that started them may still be undone, and are done (again) only afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from perdure.authoring.context import Context
from perdure.authoring.step import step
from perdure.authoring.workflow import Workflow, workflow
from perdure.connect import client_from
from perdure.core.history import History
from perdure.core.ids import derived_id
from perdure.core.journal import CallStep, Frame, Returned, decode_frame
from perdure.errors import InvocationCancelled, StoreClosed
from perdure.operations.local import store_behind
from perdure.runtime.worker import Worker
from perdure.stores.memory import Crashed
from perdure.stores.port import Filter
from tests.stores import test_crash_enumerator as crashes
from tests.stores.test_crash_enumerator import ID, MODES, Lab, Mode, Program, WatchedStore, always_replay, cancel, runs

A_DAY = 86_400.0


# --- programs ---------------------------------------------------------------------------------------------------------
@step
async def work(of: str) -> str:
    runs[f"work of {of}"] += 1
    return of


@workflow
async def started(of: str) -> str:
    return await work(of)


@workflow
async def sends_and_sleeps(ctx: Context, _: int) -> list[str]:
    sent: list[str] = []
    for n in range(3):
        sent.append(ctx.send(started, f"tick {n}"))
        await asyncio.sleep(5)
    return sent


@workflow
async def sends_last(ctx: Context, _: int) -> str:
    await work("the sender")
    return ctx.send(started, "the sent")


@workflow
async def sends_chosen(ctx: Context, _: int) -> str:
    sent = ctx.send(started.using(id="chosen"), "the sent")
    await work("the sender")
    return sent


@workflow
async def sends_while_a_step_runs(ctx: Context, _: int) -> list[str]:
    first = ctx.send(started, "first")
    await work("between")
    return [first, ctx.send(started, "second")]


@workflow
async def calls(_: int) -> list[str]:
    first = await started("first")
    await asyncio.sleep(5)
    return [first, await started("second")]


@workflow
async def sleeps_long(of: str) -> str:
    await asyncio.sleep(1_000 * A_DAY)
    return of


@workflow
async def calls_and_is_cancelled(_: int) -> str:
    try:
        return await sleeps_long("x")
    finally:
        await started("cleanup")


STARTED = (started, sleeps_long)
STARTING = (sends_and_sleeps, sends_last, sends_chosen, sends_while_a_step_runs, calls, calls_and_is_cancelled)


def steps(*of: str) -> dict[str, int]:
    return {f"work of {each}": 1 for each in of}


PROGRAMS = (
    Program(
        "sends and sleeps",
        sends_and_sleeps,
        [derived_id(ID, 0, n) for n in (0, 2, 4)],
        steps("tick 0", "tick 1", "tick 2"),
    ),
    Program("sends last", sends_last, derived_id(ID, 0, 1), steps("the sender", "the sent")),
    Program("sends a chosen id", sends_chosen, "chosen", steps("the sender", "the sent")),
    Program(
        "sends while a step runs",
        sends_while_a_step_runs,
        [derived_id(ID, 0, 0), derived_id(ID, 0, 2)],
        steps("first", "between", "second"),
    ),
    Program("calls", calls, ["first", "second"], steps("first", "second")),
    Program("calls and is cancelled", calls_and_is_cancelled, InvocationCancelled, steps("cleanup"), cancel),
)


# --- a lab that keeps nothing -----------------------------------------------------------------------------------------
class ForgetfulStore(WatchedStore):
    """Knows what was purged, and how many steps had a result in it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.purged: set[str] = set()
        self.purged_results = 0

    def purging(self, id: str) -> None:
        """Note that an invocation is about to go."""
        frames = [decode_frame(data) for data in self._frames[id]]
        assert History.of(frames).outcome is not None
        self.purged.add(id)
        self.purged_results += results(frames)

    def check_liveness(self, purged: Collection[str] = ()) -> None:
        super().check_liveness(self.purged)


def results(frames: Sequence[Frame]) -> int:
    known = {command.n for frame in frames for command in frame.commands if isinstance(command, CallStep)}
    return sum(isinstance(e, Returned) and e.n in known for frame in frames for e in frame.entries)


class ForgetfulLab(Lab):
    """Purges all that it may whenever nothing is in progress, but the program itself."""

    store: ForgetfulStore

    def __init__(self, *, always_replay: bool, mode: Mode) -> None:
        super().__init__(
            always_replay=always_replay, redeliver=mode == "redelivery", late=mode == "stale acknowledgement"
        )
        self.store = ForgetfulStore(self.clock)
        self.store.hook = self._before_write
        self.served: tuple[Workflow[..., Any], ...] = (*STARTING, *STARTED)

    def _before_write(self, kind: str, id: str) -> None:
        super()._before_write(kind, id)
        if kind == "purge":
            self.store.purging(id)

    @asynccontextmanager
    async def process(self) -> AsyncGenerator[None]:
        self.crashed.clear()
        self.deadline = asyncio.get_running_loop().time() + crashes.RESULT_WAIT_SECONDS
        self.client = client_from(lambda: self.store)
        await self.client.operations.open()
        await self.purge()
        self.worker = Worker(
            lambda: store_behind(self.client.operations), self.served, always_replay=self._always_replay
        )
        try:
            await self.worker.__aenter__()
            yield
        finally:
            await self.worker.crash()

    async def settle(self) -> None:
        await super().settle()
        if not self.crashed.is_set():
            await self.purge()

    async def purge(self) -> None:
        for row in await self.store.search(Filter()):
            if row.id != ID:
                await self.store.purge(self.clock.now(), limit=1, id=row.id)

    async def serve_only_what_is_started(self) -> None:
        self.served = STARTED
        async with self.process():
            for _ in range(3):
                await self.settle()
                self.clock.move_to(self.clock.now() + A_DAY)
        self.store.restart()
        self.served = (*STARTING, *STARTED)


async def run_to_end(program: Program, mode: Mode, crash_at: int, *, replay: bool) -> ForgetfulLab:
    """Run a program to its end through one crash, and check that each step ran as often as it should."""
    runs.clear()
    asyncio.get_running_loop().set_exception_handler(crashes.report_all_but_crashes)
    lab = ForgetfulLab(always_replay=replay, mode=mode)
    lab.crash_at = [crash_at]
    lost = 0
    while True:
        try:
            async with lab.process():
                result = await lab.drive(program)
                await lab.drain()
                break
        except (StoreClosed, Crashed):
            assert lab.crashed.is_set()
        lab.store.restart()
        known = [[*(await lab.store.journal(row.id)).frames] for row in await lab.store.search(Filter())]
        lost = sum(runs.values()) - sum(map(results, known)) - lab.store.purged_results
        await lab.serve_only_what_is_started()
        lab.arrange_trouble()
    where = f"{program.name}, crash at {crash_at}, {runs}, writes {lab.writes}"
    assert result == program.result, where
    assert runs.keys() == program.steps.keys(), where
    assert sum(runs.values()) <= sum(program.steps.values()) + lost, where
    assert [row.id for row in await lab.store.search(Filter())] == [ID], where
    assert lab.store.purged, where
    return lab


# --- the enumeration --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
@always_replay
async def test_nothing_that_was_purged_runs_again_whenever_a_process_crashes(
    program: Program, always_replay: bool
) -> None:
    writes = (await run_to_end(program, "plain", 0, replay=always_replay)).writes
    assert len(writes) > len(program.steps)
    for mode in MODES:
        for k in range(1, len(writes) + 1):
            lab = await run_to_end(program, mode, k, replay=always_replay)
            assert not lab.crash_at
