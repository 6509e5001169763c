"""Faults of the engine that the simulation found, each as a direct test of what was mended."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from perdure import Client, Context, connect, step, workflow
from perdure.connect import client_from
from perdure.core.effects import NO_EFFECTS
from perdure.core.history import DEATHS_LIMIT
from perdure.core.ids import awakeable_id
from perdure.core.journal import Accepted, Claimed, Frame, Message, Released, Returned, Start
from perdure.core.values import encode
from perdure.errors import InvocationCancelled, StoreUnavailable
from perdure.runtime import exchange
from perdure.runtime.worker import Worker
from perdure.stores.clock import VirtualClock
from perdure.stores.memory import MemoryStore
from perdure.stores.port import Clock, Committed, Delivery, Filter, Journal, Store, Transition, Wake, committed
from perdure.testing import replay

SOON = 30.0


@step
async def add(x: int) -> int:
    return x + 1


@workflow
async def three_steps(x: int) -> int:
    for _ in range(3):
        x = await add(x)
    return x


@workflow
async def sleeps_after(x: int) -> int:
    x = await passes(x)
    await asyncio.sleep(5)
    return x


@workflow
async def promises(ctx: Context, x: int) -> int:
    promise = ctx.awakeable(int)
    return await add(x) + await promise


class Gate:
    open: asyncio.Event


@step
async def passes(x: int) -> int:
    await Gate.open.wait()
    return x


@workflow
async def waits(x: int) -> int:
    return await passes(x)


@workflow
async def waits_later(ctx: Context, x: int) -> int:
    await ctx.awakeable(int)
    return await passes(x)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(exchange, "STORE_RETRY_SECONDS", 0.01)
    Gate.open = asyncio.Event()
    yield
    Gate.open.set()


class OpenStore(MemoryStore):
    """Tells what tests look at."""

    @property
    def credits(self) -> list[int]:
        return [member.credit for member in self._dispatcher.members]

    @property
    def messages_in_hand(self) -> int:
        holds = [hold for member in self._dispatcher.members for hold in member.held.values()]
        return sum(isinstance(each.item, Message) for hold in holds for each in hold.deliveries)

    def queue_of(self, key: str) -> list[str]:
        return [id for id, _ in self._lines.get(key, ())]


class OpenWorker(Worker):
    def give(self, delivery: Delivery) -> None:
        self._deliver(delivery)

    def lose(self, id: str) -> None:
        self._lost(id)

    @property
    def slots_taken(self) -> int:
        return self._slots.taken


class TroubledStore(OpenStore):
    """Does something else with the commit of one frame."""

    def __init__(
        self, number: int, instead: Callable[[TroubledStore, Transition, Committed], None], clock: Clock | None = None
    ) -> None:
        super().__init__(clock)
        self._number = number
        self._instead = instead

    def commit(self, transition: Transition, told: Committed, /) -> None:
        self._number -= transition.frame is not None
        if self._number == 0 and transition.frame is not None:
            self._instead(self, transition, told)
        else:
            super().commit(transition, told)

    def write(self, transition: Transition, told: Committed) -> None:
        super().commit(transition, told)


def worker_on(store: MemoryStore, **options: Any) -> OpenWorker:
    async def opened() -> Store:
        return store

    return OpenWorker(opened, [three_steps, promises, sleeps_after, waits], **options)


def client_of(store: MemoryStore) -> Client:
    return client_from(lambda: store)


async def soon(result: Any) -> Any:
    async with asyncio.timeout(SOON):
        return await result


async def test_commit_whose_answer_is_lost_while_nothing_is_in_hand_does_not_leave_the_invocation_behind() -> None:
    def lose(store: TroubledStore, transition: Transition, told: Committed) -> None:
        assert not transition.acknowledge
        away = StoreUnavailable("written, and not told")
        store.write(transition, lambda _, __: told(0, away))

    store = TroubledStore(2, lose)
    async with client_of(store) as client, worker_on(store):
        assert await soon(client.run(three_steps, 0)) == 3


async def test_worker_that_stops_during_a_commit_does_not_release_a_step_that_nobody_begins() -> None:
    held: list[Callable[[], None]] = []

    def hold(store: TroubledStore, transition: Transition, told: Committed) -> None:
        held.append(lambda: store.write(transition, told))

    store = TroubledStore(1, hold)
    async with client_of(store) as client:
        worker = worker_on(store)
        await worker.__aenter__()
        handle = await client.start(promises.using(id="it"), 1)
        async with asyncio.timeout(SOON):
            while not held:
                await asyncio.sleep(0)
        promise = awakeable_id("it", 0, 0, store.secret)
        resolving = asyncio.create_task(client.resolve(promise, 40))
        async with asyncio.timeout(SOON):
            while not store.messages_in_hand:  # while the first frame is in flight
                await asyncio.sleep(0)
        stopping = asyncio.create_task(worker.stop(grace=0))
        for _ in range(10):
            await asyncio.sleep(0)
        held.pop()()
        await soon(stopping)
        async with worker_on(store):
            assert await soon(handle.result()) == 42
            await soon(resolving)


@pytest.mark.parametrize("always_replay", [True, False])
async def test_worker_that_stops_writes_nothing_after_its_release(always_replay: bool) -> None:
    held: list[Callable[[], object]] = []

    def lag(store: TroubledStore, transition: Transition, told: Committed) -> None:
        store.write(transition, lambda revision, error: held.append(lambda: told(revision, error)))

    clock = VirtualClock()
    store = TroubledStore(3, lag, clock)
    async with client_of(store) as client:
        worker = worker_on(store, always_replay=always_replay)
        await worker.__aenter__()
        handle = await client.start(sleeps_after.using(id="it"), 1)
        async with asyncio.timeout(SOON):
            while (await handle.describe()).current_step is None:
                await asyncio.sleep(0)
            stopping = asyncio.create_task(worker.stop(grace=SOON))
            await asyncio.sleep(0)
            Gate.open.set()  # the timer is set and armed while the worker stops
            while not held:
                await asyncio.sleep(0)
        clock.move_to(clock.now() + 5)  # the release is written, and its worker does not know yet
        for _ in range(20):
            await asyncio.sleep(0)
        held.pop()()
        await soon(stopping)
        frames = (await store.journal("it")).frames
        assert [type(frame.entries[-1]) for frame in frames] == [Claimed, Returned, Released]
        async with worker_on(store):
            assert await soon(handle.result()) == 1


async def test_owner_that_reads_of_another_claim_writes_nothing() -> None:
    """The guard cannot tell: what it read is the revision that it would extend."""
    store = OpenStore()
    async with client_of(store) as client, worker_on(store, always_replay=True) as worker:
        await client.start(waits.using(id="it"), 1)
        async with asyncio.timeout(SOON):
            while not worker.steps_in_progress or not (await store.journal("it")).frames:
                await asyncio.sleep(0)
        frame = Frame("another", 1.0, [Claimed(1.0, 2, "another", "3.13", "0")])
        await committed(store, Transition("it", 1, frame, NO_EFFECTS))
        Gate.open.set()
        async with asyncio.timeout(SOON):
            while worker.steps_in_progress or not worker.quiet:
                await asyncio.sleep(0)
        assert len((await store.journal("it")).frames) == 2


# --- room for starts --------------------------------------------------------------------------------------------------
async def test_starts_that_come_again_do_not_make_a_worker_ask_for_more_than_it_has_slots() -> None:
    store = OpenStore()
    async with client_of(store) as client, worker_on(store, max_concurrent=2) as worker:
        handles = [await client.start(waits, n) for n in range(2)]
        async with asyncio.timeout(SOON):
            while [row.status for row in await store.search(Filter())] != ["running"] * 2:
                await asyncio.sleep(0)
        await client.start(waits, 2)
        for _ in range(3):
            store.redeliver()
            await asyncio.sleep(0)
        Gate.open.set()
        assert [await soon(handle.result()) for handle in handles] == [0, 1]
        async with asyncio.timeout(SOON):
            while store.undelivered() or worker.slots_taken:
                await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)  # the last request reaches the store
        assert store.credits == [2]


class Requests:
    """A subscription that counts what is asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def request(self, starts: int, /) -> None:
        self.asked.append(starts)

    def close(self) -> None:
        pass


async def test_start_that_another_process_took_leaves_room_for_another() -> None:
    store = MemoryStore()
    async with client_of(store):
        worker = worker_on(store, max_concurrent=1)
        async with worker:
            requests = Requests()
            worker.subscription = cast("Any", requests)
            worker.give(start("one"))
            worker.give(start("two"))  # it waits for a slot
            assert requests.asked == []
            worker.lose("two")
            assert requests.asked == [1]  # it came unasked, so this is the room that it had taken
            Gate.open.set()


async def test_start_for_an_invocation_that_runs_here_takes_no_slot_and_leaves_its_room() -> None:
    store = MemoryStore()
    async with client_of(store):
        worker = worker_on(store, max_concurrent=2)
        async with worker:
            requests = Requests()
            worker.subscription = cast("Any", requests)
            worker.give(start("one"))
            worker.give(start("one"))
            assert requests.asked == [1]
            Gate.open.set()


def start(id: str) -> Delivery:
    return Delivery(id, "waits", Start(id, "waits", encode({"x": 1}), 1.0, 1.0, 7), fresh=True)


# --- the order of what is due -----------------------------------------------------------------------------------------
async def test_starts_of_a_key_that_are_due_together_run_in_the_order_of_acceptance() -> None:
    clock = VirtualClock()
    store = OpenStore(clock)
    came: list[str] = []
    async with client_of(store) as client:
        await client.operations.open()
        at = clock.now()
        for id in ("c", "a", "b"):
            made = Start(id, "ordered", encode({}), at, at + 5, 7, "key", chosen=True)
            await store.submit([made])
        subscription = store.subscribe(["ordered"], lambda delivery: came.append(delivery.id))
        subscription.request(3)
        clock.move_to(at + 5)
        for _ in range(5):
            await asyncio.sleep(0)
        assert came == ["c"]
        assert store.queue_of("key") == ["a", "b"]


async def test_every_start_that_is_delivered_counts_as_one_that_was_asked_for() -> None:
    store = OpenStore()
    came: list[str] = []
    async with client_of(store) as client:
        await client.operations.open()
        subscription = store.subscribe(["waits"], lambda delivery: came.append(delivery.id))
        subscription.request(2)
        await store.submit([Start("one", "waits", encode({"x": 1}), 1.0, 1.0, 7, chosen=True)])
        await asyncio.sleep(0)
        assert (came, store.credits) == (["one"], [1])
        store.redeliver()
        assert (came, store.credits) == (["one", "one"], [0])


# --- slots ------------------------------------------------------------------------------------------------------------
async def test_paused_invocation_that_waited_for_a_slot_holds_none() -> None:
    async with connect("memory:") as client, client.worker(waits, waits_later, three_steps, max_concurrent=1):
        async with asyncio.timeout(SOON):
            later = await client.start(waits_later, 1)
            while not (promises := (await later.describe()).awakeables):
                await asyncio.sleep(0)
            first = await client.start(waits, 1)
            while (await first.describe()).current_step is None:
                await asyncio.sleep(0)
            await client.resolve(promises[0].id, 1)
            while (await later.describe()).current_step is None:  # it waits for the slot that the first one has
                await asyncio.sleep(0)
            await later.pause()
            Gate.open.set()
            assert await first.result() == 1
            assert await client.run(three_steps, 1) == 4, "the slot is free while the other is paused"
            await later.resume()
            assert await later.result() == 1


async def test_invocation_that_is_paused_since_its_workers_died_keeps_a_message_in_hand() -> None:
    """The cache was full, and dropped it with the message."""
    store = MemoryStore()
    async with client_of(store) as client:
        handle = await client.start(waits.using(id="it"), 1)
        start = await store.start("it")
        assert start is not None
        for n in range(DEATHS_LIMIT):
            claim = Claimed(1.0, n + 1, "another", "3.13", "0")
            frame = Frame("another", 1.0, [claim] if n else [Accepted(start), claim])
            await committed(store, Transition("it", n, frame, NO_EFFECTS))
        asked = asyncio.ensure_future(handle.cancel())
        for _ in range(5):
            await asyncio.sleep(0)
        async with client.worker(waits, cache=0):
            await soon(asked)
            assert (await handle.describe()).status == "paused"
            await soon(handle.resume())
            with pytest.raises(InvocationCancelled):
                await soon(handle.result())


# --- what fails too late to matter ------------------------------------------------------------------------------------
class BrokenReads(OpenStore):
    async def journal(self, id: str, /) -> Journal:
        await Gate.open.wait()
        raise RuntimeError("nobody foresaw this")


async def test_read_that_fails_after_the_invocation_left_does_not_reach_the_handler_of_the_loop() -> None:
    reached: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reached.append(str(context)))
    store = BrokenReads()
    async with client_of(store), worker_on(store) as worker:
        worker.give(Delivery("one", "waits", Wake()))
        await asyncio.sleep(0)
        worker.lose("one")
        Gate.open.set()
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()
    assert reached == []


@workflow
async def naps(x: int) -> int:
    await asyncio.sleep(1)
    return x


async def test_body_that_begins_late_and_is_paused_and_resumed_in_its_first_round_replays() -> None:
    """The note that it began late was dropped when it was resumed."""
    clock = VirtualClock()
    store = MemoryStore(clock)
    async with client_of(store) as client:
        handle = await client.start(naps, 3)
        clock.move_to(clock.now() + 10)
        asked = [asyncio.ensure_future(ask()) for ask in (handle.pause, handle.resume)]
        for _ in range(5):
            await asyncio.sleep(0)
        async with client.worker(naps, cache=0):
            await asyncio.wait_for(asyncio.gather(*asked), SOON)
            assert "Resumed" in str((await store.journal(handle.id)).frames[0]), "all in the first round"
            result = asyncio.ensure_future(handle.result())
            async with asyncio.timeout(SOON):
                while not result.done():
                    clock.move_to(clock.now() + 1)
                    await asyncio.sleep(0)
            assert await result == 3
            replay(naps, await handle.export())
