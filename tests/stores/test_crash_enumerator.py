"""Exhaustive small scope: a crash between every two writes of small programs, with late and repeated deliveries.

Each program runs once to count its writes. Then, for every k, it runs again and its process ends before write k; a new
process (client and worker on what was written) runs it to its end. Some runs apply an acknowledgement of the dead
process late, deliver everything in hand a second time, or crash the second process too. The liveness invariant is
checked before every write and in the end.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from perdure.authoring.context import Context
from perdure.authoring.step import step
from perdure.authoring.streams import stream
from perdure.authoring.workflow import Workflow, workflow
from perdure.client import Client
from perdure.connect import client_from
from perdure.core.generations import current
from perdure.core.history import History
from perdure.core.ids import derived_id
from perdure.core.journal import (
    Attempted,
    CallStep,
    Cancelled,
    CancelRequested,
    Claimed,
    Completed,
    Entry,
    Failed,
    Frame,
    Paused,
    Raised,
    Released,
    Resumed,
    Retried,
    Returned,
    Status,
)
from perdure.core.lifecycle import TABLE, Event
from perdure.core.retry import Retry
from perdure.core.streams import items_of
from perdure.core.types import decoder
from perdure.core.values import encode
from perdure.errors import InvocationCancelled, MessageRefused, PerdureError, StoreClosed
from perdure.operations.local import store_behind
from perdure.runtime.worker import Worker
from perdure.stores.clock import VirtualClock
from perdure.stores.memory import Crashed, MemoryStore
from perdure.stores.port import Committed, Delivery, Filter, Transition

ID = "it"
decode = decoder(int)
KEY = "k"
QUIET_ROUNDS = 12
RESULT_WAIT_SECONDS = 30.0
Mode = Literal["plain", "stale acknowledgement", "redelivery"]
MODES: tuple[Mode, ...] = ("plain", "stale acknowledgement", "redelivery")

runs: Counter[str] = Counter()
"""How often each step ran, over all processes of one run."""
awakeables: list[str] = []
retrying: set[str] = set()


# --- programs ---------------------------------------------------------------------------------------------------------
@step
async def add(x: int, y: int) -> int:
    runs[f"add {x} {y}"] += 1
    return x + y


@step(retry=Retry(max_attempts=None, initial=1.0, jitter=0.0))
async def fails_once(x: int) -> int:
    runs["fails_once"] += 1
    if runs["fails_once"] == 1:
        raise ValueError("the first time")
    return x


@step(retry=Retry(max_attempts=1))
async def fails() -> int:
    runs["fails"] += 1
    raise KeyError("always")


@step
async def hand_out(id: str) -> None:
    runs["hand_out"] += 1
    awakeables.append(id)


@step
async def clean_up() -> int:
    runs["clean_up"] += 1
    return 1


@workflow
async def three_steps(x: int) -> int:
    for n in range(3):
        x = await add(x, n)
    return x


@workflow
async def gathered(x: int) -> tuple[int, int, int]:
    return await asyncio.gather(add(x, 1), add(x, 2), add(x, 3))


@workflow
async def retried(x: int) -> int:
    return await fails_once(x)


@workflow
async def sleeper(x: int) -> int:
    await asyncio.sleep(5)
    x = await add(x, 1)
    await asyncio.sleep(5)
    return x


@workflow
async def double_sleeper(x: int) -> int:
    await asyncio.sleep(5)
    await asyncio.sleep(5)
    return x


@workflow
async def child(x: int) -> int:
    return await add(x, 10)


@workflow
async def parent(x: int) -> int:
    return await child(await child(x))


@workflow
async def sleepy_parent(x: int) -> int:
    await asyncio.sleep(5)
    return await child(x)


@workflow
async def parent_of_sleeper(x: int) -> int:
    return await sleeper(x)


@workflow
async def twins(x: int) -> tuple[int, int]:
    """Two children of one id are one, whose outcome both get."""
    return await asyncio.gather(child.using(id="shared")(x), child.using(id="shared")(x))


@workflow
async def sender(ctx: Context, x: int) -> str:
    await add(x, 1)
    return ctx.send(child, x)


@workflow
async def asker(ctx: Context, x: int) -> int:
    promise = ctx.awakeable(int)
    await hand_out(promise.id)
    return await add(await promise, x)


@workflow
async def cleaner(x: int) -> int:
    try:
        await asyncio.sleep(1_000)
    finally:
        await clean_up()
    return x


@workflow
async def catcher(x: int) -> int:
    try:
        return await fails()
    except KeyError:
        return await add(x, 1)


@workflow
async def counter(ctx: Context, x: int) -> int:
    count = ctx.get("count", int, default=0)
    await add(count, x)
    ctx.set("count", count + 1)
    return count + 1


@workflow
async def sends_to_a_key(ctx: Context, x: int) -> int:
    ctx.set("count", 10)
    ctx.send(counter.using(key=KEY), x)
    ctx.send(counter.using(key=KEY), x)
    return await add(x, 1)


@step(retry=Retry(max_attempts=1))
async def fails_at_first() -> int:
    runs["fails_at_first"] += 1
    if not retrying:
        raise KeyError("not yet")
    return 1


@workflow
async def retried_by_hand(ctx: Context, x: int) -> int:
    count = ctx.get("count", int, default=0) + 1
    ctx.set("count", count)
    return count + await fails_at_first()


@step
async def speak(x: int) -> int:
    runs[f"speak {x}"] += 1
    words = stream("words", int)
    words.write(x)
    words.write(x + 1)
    return x


@workflow
async def speaker(ctx: Context, x: int) -> int:
    said = ctx.stream("said", int)
    said.write(1)
    await speak(10)
    ctx.stream("words", int).write(2)
    await asyncio.sleep(5)
    await speak(20)
    said.write(3)
    return x


SERVED: tuple[Workflow[..., Any], ...] = (
    *(
        three_steps,
        gathered,
        retried,
        sleeper,
        double_sleeper,
        child,
        parent,
        sleepy_parent,
        parent_of_sleeper,
        twins,
        sender,
        asker,
        cleaner,
        catcher,
        counter,
        sends_to_a_key,
        retried_by_hand,
        speaker,
    ),
)

Act = Callable[["Lab"], Awaitable[None]]
"""What the outside does while a program runs; done again after a crash until it is answered."""


async def resolve(lab: Lab) -> None:
    await lab.until(lambda: bool(awakeables))
    await lab.ask(lambda client: client.resolve(awakeables[0], 5))


async def pause_and_resume(lab: Lab) -> None:
    await lab.started()
    handle = lab.client.handle(ID)
    await lab.ask(lambda _: handle.pause())
    await lab.ask(lambda _: handle.resume())


async def cancel(lab: Lab) -> None:
    await lab.started()
    await lab.settle()
    await lab.ask(lambda client: client.handle(ID).cancel())


async def cancel_in_line(lab: Lab) -> None:
    """Another invocation waits for the key of the first, and is cancelled there; a third one gets it."""
    await lab.started()
    await lab.ask_for("waits", sleeper.using(key=KEY))
    await lab.ask_for("third", counter.using(key=KEY))
    await lab.ask(lambda client: client.handle("waits").cancel())


async def retry_behind_another(lab: Lab) -> None:
    """The first one fails; while another holds the key it is retried, and gets the key after it."""
    await lab.has_status(ID, "failed", "completed")
    retrying.add(ID)
    await lab.ask_for("another", counter.using(key=KEY))
    await lab.ask(lambda client: client.handle(ID).retry())


async def nothing(_: Lab) -> None:
    pass


@dataclass(frozen=True)
class Program:
    name: str
    body: Workflow[..., Any]
    result: Any
    steps: dict[str, int]
    """How often each step runs when no process crashes."""
    act: Act = nothing
    points: int = 0
    """Writes of an undisturbed run: the crash points."""
    twice: bool = False
    """Whether a second crash at every later write is tried too."""
    rows: int = 1
    """Invocations that there are in the end."""
    count: int | None = None
    """What the key's state says in the end."""


PROGRAMS = (
    Program("three steps", three_steps, 3, {"add 0 0": 1, "add 0 1": 1, "add 1 2": 1}, points=7, twice=True),
    Program("gather", gathered, (1, 2, 3), {"add 0 1": 1, "add 0 2": 1, "add 0 3": 1}, points=4, twice=True),
    Program("a step that fails once", retried, 0, {"fails_once": 2}, points=10),
    Program("sleep", sleeper, 1, {"add 0 1": 1}, points=14),
    Program("two sleeps", double_sleeper, 0, {}, points=11, twice=True),
    Program("children", parent, 20, {"add 0 10": 1, "add 10 10": 1}, points=22, rows=3),
    Program("a child after a sleep", sleepy_parent, 10, {"add 0 10": 1}, points=17, rows=2),
    Program("a child that sleeps", parent_of_sleeper, 1, {"add 0 1": 1}, points=23, rows=2),
    Program("a shared child", twins, (10, 10), {"add 0 10": 1}, points=23, rows=2),
    Program("send", sender, derived_id(ID, 0, 1), {"add 0 1": 1, "add 0 10": 1}, points=8, rows=2, twice=True),
    Program("awakeable", asker, 5, {"hand_out": 1, "add 5 0": 1}, resolve, points=11),
    Program("pause and resume", sleeper, 1, {"add 0 1": 1}, pause_and_resume, points=22),
    Program("cancel", cleaner, InvocationCancelled, {"clean_up": 1}, cancel, points=13, twice=True),
    Program("a caught failure", catcher, 1, {"fails": 1, "add 0 1": 1}, points=6, twice=True),
    Program("a key", counter.using(key=KEY), 1, {"add 0 0": 1}, points=6, twice=True, count=1),
    Program("streams", speaker, 0, {"speak 10": 1, "speak 20": 1}, points=17, twice=True),
    Program(
        "sends to its own key",
        sends_to_a_key.using(key=KEY),
        1,
        {"add 0 1": 1, "add 10 0": 1, "add 11 0": 1},
        points=20,
        rows=3,
        count=12,
    ),
    Program(
        "cancel in a key's line",
        sleeper.using(key=KEY),
        1,
        {"add 0 1": 1, "add 0 0": 1},
        cancel_in_line,
        points=29,
        rows=3,
        count=1,
    ),
    Program(
        "keyed retry",
        retried_by_hand.using(key=KEY),
        2,
        {"fails_at_first": 2, "add 1 0": 1},
        retry_behind_another,
        points=26,
        rows=2,
        count=2,
    ),
)


# --- one run ----------------------------------------------------------------------------------------------------------
class WatchedStore(MemoryStore):
    """Remembers the deliveries that a process acknowledged last, or was about to."""

    last_acknowledged: Sequence[Delivery] = ()

    def commit(self, transition: Transition, told: Committed, /) -> None:
        self.committing = transition
        super().commit(transition, told)

    def acknowledging(self) -> None:
        """Note that the frame and effects of the transition are written, and acknowledgements come."""
        self.last_acknowledged = self.committing.acknowledge


class CountedWorker(Worker):
    """A worker that says what it has in hand."""

    @property
    def slots_taken(self) -> int:
        return self._slots.taken

    @property
    def runners(self) -> int:
        return len(self._runners)


class Lab:
    """A memory store whose processes come and go."""

    served = SERVED

    def __init__(self, *, always_replay: bool, redeliver: bool = False, late: bool = False) -> None:
        self.clock = VirtualClock()
        self.store = WatchedStore(self.clock)
        self.store.hook = self._before_write
        self.crash_at: list[int] = []
        self.writes: list[tuple[str, str]] = []
        self.crashed = asyncio.Event()
        self._always_replay = always_replay
        self._redeliver = redeliver
        self._late = late
        self._to_do_after_write: list[Callable[[], None]] = []

    def _before_write(self, kind: str, id: str) -> None:
        self.store.check_liveness()
        self.writes.append((kind, id))
        if kind == "acknowledge":
            self.store.acknowledging()
        if self.crash_at and len(self.writes) == self.crash_at[0]:
            self.crash_at.pop(0)
            self.crashed.set()
            raise Crashed
        if kind == "frame":
            todo, self._to_do_after_write = self._to_do_after_write, []
            for do in todo:
                asyncio.get_running_loop().call_soon(do)

    @asynccontextmanager
    async def process(self) -> AsyncGenerator[None]:
        """Open what was written, with a client and a worker."""
        self.crashed.clear()
        self.deadline = asyncio.get_running_loop().time() + RESULT_WAIT_SECONDS
        self.client = client_from(lambda: self.store)
        await self.client.operations.open()
        self.worker = CountedWorker(
            lambda: store_behind(self.client.operations), self.served, always_replay=self._always_replay
        )
        try:
            await self.worker.__aenter__()
            yield
        finally:
            await self.worker.crash()

    def arrange_trouble(self) -> None:
        """After the next frame of the new process: late acknowledgements of the old one, or everything again."""
        if self._late:
            for delivery in self.store.last_acknowledged:
                self._to_do_after_write.append(lambda delivery=delivery: self.store.acknowledge_late(delivery))
        if self._redeliver:
            self._to_do_after_write.append(self.store.redeliver)

    async def settle(self) -> None:
        calm = 0
        while calm < QUIET_ROUNDS and not self.crashed.is_set():
            calm = calm + 1 if self.worker.quiet else 0
            await asyncio.sleep(0)
            self.stop_if_late()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.stop_if_crashed()
            await asyncio.sleep(0)

    def stop_if_late(self) -> None:
        if asyncio.get_running_loop().time() > self.deadline:
            raise AssertionError(f"it does not end; writes: {self.writes}")

    def stop_if_crashed(self) -> None:
        self.stop_if_late()
        if self.crashed.is_set():
            raise StoreClosed("the process crashed")

    async def started(self) -> None:
        while await self.store.row(ID) is None:
            self.stop_if_crashed()
            await asyncio.sleep(0)

    async def has_status(self, id: str, *statuses: str) -> None:
        while (row := await self.store.row(id)) is None or row.status not in statuses:
            self.stop_if_crashed()
            await asyncio.sleep(0)

    async def ask_for(self, id: str, body: Workflow[..., Any]) -> None:
        await self.client.start(body.using(id=id), 0)

    async def ask(self, request: Callable[[Client], Awaitable[None]]) -> None:
        """Send a message; asked again after a crash, it may be refused since it was applied then."""
        with suppress(MessageRefused):
            await request(self.client)

    async def drive(self, program: Program) -> Any:
        """Run the program in this process until it ends or the process crashes; time jumps when nothing else can."""
        result = asyncio.ensure_future(self._result(program))
        acting = asyncio.ensure_future(program.act(self))
        try:
            while not (result.done() and acting.done()):
                await self.settle()
                self.stop_if_crashed()
                if acting.done() and (due := self.clock.next_due()) is not None:
                    self.clock.move_to(due)
            acting.result()
            return result.result()
        except Crashed:
            raise StoreClosed("the process crashed") from None
        finally:
            for task in (result, acting):
                task.cancel()
            await asyncio.gather(result, acting, return_exceptions=True)

    async def _result(self, program: Program) -> Any:
        handle = await self.client.start(program.body.using(id=ID), 0)
        try:
            return await handle.result()
        except InvocationCancelled as error:
            return type(error)
        except KeyError:
            await self.has_status(ID, "completed")
            return await handle.result()

    async def drain(self) -> None:
        """Let time pass until nothing is left to be done."""
        await self.settle()
        while (due := self.clock.next_due()) is not None:
            self.clock.move_to(due)
            await self.settle()
            self.stop_if_crashed()


@dataclass
class Run:
    lab: Lab
    result: Any = None
    processes: int = 0
    lost_steps: int = 0
    """Ends of steps that no journal knew when their process crashed."""


async def run_to_end(program: Program, mode: Mode, crash_at: list[int], *, always_replay: bool) -> Run:
    """Run a program to its end through crashes, and check all that must hold then."""
    runs.clear()
    awakeables.clear()
    retrying.clear()
    asyncio.get_running_loop().set_exception_handler(report_all_but_crashes)
    lab = Lab(always_replay=always_replay, redeliver=mode == "redelivery", late=mode == "stale acknowledgement")
    run = Run(lab)
    lab.crash_at = [*crash_at]
    while True:
        run.processes += 1
        try:
            async with lab.process():
                run.result = await lab.drive(program)
                await lab.drain()
                break
        except (StoreClosed, Crashed):
            assert lab.crashed.is_set()
        except PerdureError as error:
            raise AssertionError(f"{error!r}; writes: {lab.writes}") from error
        lab.store.restart()
        run.lost_steps = sum(runs.values()) - await journaled_attempts(lab.store)
        lab.arrange_trouble()
    lab.store.check_liveness()
    await check(program, run, crashes=len(crash_at) - len(lab.crash_at))
    return run


def report_all_but_crashes(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), (Crashed, StoreClosed)):
        loop.default_exception_handler(context)


async def check(program: Program, run: Run, *, crashes: int) -> None:
    store = run.lab.store
    where = f"{program.name}, {crashes} crashes, writes {run.lab.writes}"
    assert run.result == program.result, where
    rows = {row.id: row for row in await store.search(Filter())}
    for id, row in rows.items():
        journal = await store.journal(id)
        history = History.of(journal.frames)
        assert history.outcome is not None, f"{id} is {row.status}: {where}"
        assert row.status == history.status, where
        check_statuses(journal.frames, where)
        answered = [n for frame in current(journal.frames) for e in frame.entries if (n := answers(e)) is not None]
        assert len(answered) == len(set(answered)), f"{id}: a command has two answers: {where}"
        messages = [m for frame in journal.frames for e in frame.entries if (m := getattr(e, "message", None))]
        assert len(messages) == len(set(messages)), f"{id}: a message was applied twice: {where}"
    assert store.undelivered() == [], where
    assert len(rows) == program.rows, where
    key = await store.key(KEY)
    assert key.holder is None, f"{key}: {where}"
    assert key.state == ({} if program.count is None else {"count": encode(program.count)}), f"{key}: {where}"
    assert runs.keys() == program.steps.keys(), where
    # A step whose end was journaled never runs again; one whose end was not does, once.
    assert sum(runs.values()) <= sum(program.steps.values()) + run.lost_steps, f"{runs}: {where}"
    assert await journaled_attempts(store) == sum(program.steps.values()) or "fails_once" in runs, where
    assert run.processes == crashes + 1
    await check_streams(store, where)


async def check_streams(store: MemoryStore, where: str) -> None:
    """Check that what a body wrote is there once, and of a step, each attempt, the last one whole."""
    for name, written in (await store.streams.counts(ID)).items():
        chunks = await store.streams.read(ID, name, 0)
        assert [chunk.offset for chunk in chunks] == [
            sum(c.batch.count for c in chunks[:n]) for n in range(len(chunks))
        ]
        items = [
            (batch.step, batch.attempt, decode(item)) for c in chunks for batch in [c.batch] for item in items_of(batch)
        ]
        assert written == len(items), where
        assert [value for step, _, value in items if step is None] == {"said": [1, 3], "words": [2]}[name], where
        for number, words in ((0, [10, 11]), (2, [20, 21])):
            attempts = [attempt for each, attempt, _ in items if each == number]
            assert attempts == sorted(attempts), where
            last = [value for each, attempt, value in items if (each, attempt) == (number, max(attempts, default=0))]
            assert last == (words if name == "words" else []), f"{items}: {where}"


EVENTS: dict[type[Entry], Event] = {
    Paused: "pause",
    Resumed: "resume",
    CancelRequested: "cancel",
    Retried: "retry",
    Completed: "complete",
    Failed: "fail",
    Cancelled: "end_cancelled",
}


def check_statuses(frames: Sequence[Frame], where: str) -> None:
    """Check that a journal moves along the table of statuses, and nowhere else."""
    history = History()
    statuses: list[Status] = ["pending"]
    for entry in (entry for frame in frames for entry in frame.entries):
        status = statuses[-1]
        event = EVENTS.get(type(entry))
        if isinstance(entry, Claimed) and status in ("pending", "suspended"):  # before a retry it is failed still
            event = "run"
        elif isinstance(entry, Released) and status == "running":
            event = "suspend"
        history.note(entry)
        if event is not None:
            assert event in TABLE[status], f"{event} while {status}: {where}"
            following = TABLE[status][event]
            # A pause that ends before anybody has claimed: it runs as soon as somebody does.
            statuses.append(history.status if event == "resume" else following)
            assert statuses[-1] == history.status, f"after {entry}: {where}"


async def journaled_attempts(store: MemoryStore) -> int:
    count = 0
    for row in await store.search(Filter()):
        journal = await store.journal(row.id)
        steps = {c.n for frame in journal.frames for c in frame.commands if isinstance(c, CallStep)}
        answering = (Returned, Raised, Attempted)
        count += sum(isinstance(e, answering) and e.n in steps for frame in journal.frames for e in frame.entries)
    return count


def answers(entry: Any) -> int | None:
    return entry.n if type(entry).__name__ in ("Returned", "Raised", "Fired", "Interrupted") else None


# --- the enumeration --------------------------------------------------------------------------------------------------
always_replay = pytest.mark.parametrize("always_replay", [False, True], ids=["kept turns", "always replayed"])
programs = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)


@programs
@always_replay
async def test_number_of_crash_points_is_known(program: Program, always_replay: bool) -> None:
    run = await run_to_end(program, "plain", [], always_replay=always_replay)
    assert len(run.lab.writes) == program.points, run.lab.writes
    assert runs == program.steps


@programs
@always_replay
async def test_program_ends_the_same_when_its_process_crashes_before_any_write(
    program: Program, always_replay: bool
) -> None:
    for mode in MODES:
        for k in range(1, program.points + 1):
            run = await run_to_end(program, mode, [k], always_replay=always_replay)
            assert run.processes == 2


@pytest.mark.parametrize("program", [each for each in PROGRAMS if each.twice], ids=lambda program: program.name)
@always_replay
async def test_small_program_ends_the_same_when_two_processes_crash_before_any_two_writes(
    program: Program, always_replay: bool
) -> None:
    for mode in MODES:
        for k in range(1, program.points + 1):
            undisturbed = await run_to_end(program, mode, [k], always_replay=always_replay)
            for k2 in range(k + 1, len(undisturbed.lab.writes) + 1):
                run = await run_to_end(program, mode, [k, k2], always_replay=always_replay)
                assert run.processes == 3
