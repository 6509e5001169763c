"""Many handlers, handlers of any name, and handlers that nobody serves any more."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import pytest

from examples.services.nats_server import Server
from perdure import Client, workflow
from perdure.connect import client_from
from perdure.core.journal import Accepted, Claimed, Frame, Message, Pause, Released, Start, encode_message
from perdure.errors import StoreClosed
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.care import consumers
from perdure.stores.jetstream.journal.journals import Journals, Tails
from perdure.stores.jetstream.layout.facts import Facts, lines_of
from perdure.stores.jetstream.ownership.holdings import Actions, Holdings, Token
from perdure.stores.port import Delivery, Transition, committed

pytestmark = pytest.mark.limit(120)

PARTITIONS = 4


class Counted(dict[Any, Any]):
    """A dict that counts how many of its items are looked at."""

    looks = 0

    def get(self, *arguments: Any) -> Any:
        Counted.looks += 1
        return super().get(*arguments)

    def items(self) -> Any:
        for each in super().items():
            Counted.looks += 1
            yield each


def holdings_with(handlers: int, started: int) -> tuple[Holdings, list[Delivery]]:
    """Return holdings that serve so many handlers, with so many starts of each queued."""
    numbers = itertools.count()

    def nothing(*_: Any) -> None:
        pass

    holdings = Holdings(lambda id: int(id) % PARTITIONS, Actions(*[nothing] * 9))
    vars(holdings)["_queues"] = Counted()
    delivered: list[Delivery] = []
    holdings.join({f"h{n}" for n in range(handlers)}, delivered.append, None, None)
    for n in range(handlers):
        for _ in range(started):
            number = next(numbers)
            start = Start(str(number), f"h{n}", b"", at=0.0, due=0.0, seed=0)
            token = Token(f"$JS.ACK.Q.start-x.1.1.1.{number}.0", number, float(number), float(number))
            holdings.queue(Delivery(start.id, start.handler, start, token=token))
    return holdings, delivered


def looks_of(work: Callable[[], object]) -> int:
    Counted.looks = 0
    work()
    return Counted.looks


@pytest.mark.parametrize("started", [0, 1, 3])
def test_look_at_what_is_wanted_takes_time_in_proportion_to_handlers(started: int) -> None:
    def look(handlers: int) -> int:
        holdings, _ = holdings_with(handlers, started)
        return looks_of(lambda: [holdings.room(f"h{n}", p) for n in range(handlers) for p in range(PARTITIONS)])

    assert look(400) <= 2.5 * look(200)


def test_starts_go_out_in_the_order_in_which_they_came_within_the_credit() -> None:
    holdings, _ = holdings_with(5, 3)
    [member] = holdings.members
    member.request(7)
    assert [each.id for _, each in holdings.taken] == [str(n) for n in range(7)]
    holdings.requeue_waiting(10.0)
    member.request(100)
    assert [each.id for _, each in holdings.taken] == [str(n) for n in [*range(7), *range(10, 15)]]


# --- on a server ------------------------------------------------------------------------------------------------------
NAMES = [
    "a.b.c",
    "with space",
    "star*",
    "more>",
    "ünïcödé 漢字",
    "%2E",
    "~tilde",
    "x" * 200,
    "$JS.API",
    "=due",
]


def named(name: str) -> Any:
    @workflow(name=name)
    async def says(text: str) -> str:
        return f"{name} {text}"

    return says


def client_of(nats: Server, namespace: str) -> tuple[JetStreamStore, Client]:
    store = JetStreamStore([nats.url], namespace=namespace, shards=2)
    return store, client_from(lambda: store)


async def test_handlers_of_any_name_are_served_and_listed(nats: Server, namespace: str) -> None:
    _, client = client_of(nats, namespace)
    workflows = [named(name) for name in NAMES]
    async with client, client.worker(*workflows):
        results = await asyncio.gather(*(client.run(each, "x") for each in workflows))
        assert results == [f"{name} x" for name in NAMES]
        assert (await client.stats()).by_handler == dict.fromkeys(NAMES, 1)


async def test_worker_with_hundreds_of_handlers_serves_each(nats: Server, namespace: str) -> None:
    _, client = client_of(nats, namespace)
    workflows = [named(f"handler{n}") for n in range(200)]
    async with client, client.worker(*workflows):
        results = await asyncio.gather(*(client.run(each, "x") for each in workflows[::10]))
        assert results == [f"handler{n} x" for n in range(0, 200, 10)]


async def consumers_of(store: JetStreamStore) -> set[str]:
    found: set[str] = set()
    for partition in range(store.layout.partitions):
        answer = await store.wire.api(f"CONSUMER.LIST.{store.layout.stream('Q', partition)}", {"offset": 0})
        found |= {each["config"].get("description", "") for each in answer["consumers"]}
    return found


async def test_consumers_of_handlers_that_nobody_serves_any_more_are_removed(
    nats: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "IDLE_SECONDS", 0.0)
    store, client = client_of(nats, namespace)
    kept, dropped, queued = named("kept"), named("dropped"), named("queued")
    async with client:
        async with client.worker(kept, dropped, queued):
            assert await client.run(dropped, "x") == "dropped x"
            await store.ready()
        waiting = await client.start(queued, "x")
        async with client.worker(kept):
            await store.ready()
            assert {"start dropped", "start kept", "start queued"} <= await consumers_of(store)
            done = await store.janitor.round(0.1)
            assert {"dropped" in each or "consumer" in each for each in done} == {True}
            found = await consumers_of(store)
            assert "start dropped" not in found
            assert {"start kept", "start queued", "msg", "key"} <= found
            assert await client.run(kept, "y") == "kept y"
        async with client.worker(dropped, queued):
            assert await client.run(dropped, "y") == "dropped y"
            assert await waiting.result() == "queued x"


# --- opening ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("after", range(0, 40, 4))
async def test_store_that_is_closed_while_it_opens_is_closed(nats: Server, namespace: str, after: int) -> None:
    store, _ = client_of(nats, namespace)
    opening = asyncio.ensure_future(store.open())
    for _ in range(after):
        await asyncio.sleep(0.001)
    await store.aclose()
    result = (await asyncio.gather(opening, return_exceptions=True))[0]
    assert result is None or isinstance(result, asyncio.CancelledError | StoreClosed)
    assert not store.wire.is_up
    with pytest.raises(StoreClosed):
        store.submit([])


async def test_store_whose_opening_is_cancelled_leaves_no_connection(own_nats: Server) -> None:
    store = JetStreamStore([own_nats.url], shards=1)
    opening = asyncio.ensure_future(store.open())
    while not store.wire.is_up:
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    assert opening.cancelled()
    assert not store.wire.is_up


def then_set(work: Callable[[str], None], event: asyncio.Event, reply: str) -> None:
    work(reply)
    event.set()


async def test_passed_on_message_that_reaches_a_process_whose_worker_has_just_left_is_not_lost(
    nats: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving = JetStreamStore([nats.url], namespace=namespace, shards=1)
    await leaving.open()
    start = Start("a", "h", b"", 1.0, 1.0, 7)
    claim = Claimed(1.0, 1, leaving.name, "3.11", "0")
    revision = await committed(leaving, Transition("a", 0, Frame(leaving.name, 1.0, [Accepted(start), claim])))
    released = Frame(leaving.name, 1.0, [Released(1.0)])
    await committed(leaving, Transition("a", revision, released, status="suspended", released=True))
    subscription = leaving.subscribe(["h"], lambda _: None)
    await leaving.ready()
    journals: Journals = vars(leaving)["_journals"]
    read, came, left = journals.tails, asyncio.Event(), asyncio.Event()

    async def when_it_has_left(ids: Sequence[str]) -> Tails:
        came.set()
        await left.wait()
        return await read(ids)

    message, disposed = Message("m", "a", 1.0, Pause()), asyncio.Event()
    for name in ("acknowledge", "hand_back"):
        dispose: Callable[[str], None] = getattr(leaving.wire, name)
        monkeypatch.setattr(leaving.wire, name, partial(then_set, dispose, disposed))
    monkeypatch.setattr(journals, "tails", when_it_has_left)
    headers = lines_of(Facts("a", kind="message"))
    await leaving.wire.store(leaving.layout.passed_on("h", "a", "m"), encode_message(message), headers=headers)
    async with asyncio.timeout(60):
        await came.wait()
        subscription.close()
        left.set()
        await disposed.wait()
        await leaving.aclose()
        serving = JetStreamStore([nats.url], namespace=namespace, shards=1)
        await serving.open()
        try:
            deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
            serving.subscribe(["h"], deliveries.put_nowait)
            assert (await deliveries.get()).item == message
        finally:
            await serving.aclose()


async def test_worker_that_leaves_while_its_consumers_are_made_pulls_nothing_afterwards(
    nats: Server, namespace: str
) -> None:
    store = JetStreamStore([nats.url], namespace=namespace, shards=2)
    await store.open()
    try:
        subscription = store.subscribe(["h"], lambda _: None)
        await asyncio.sleep(0)  # it has begun to make them
        subscription.close()
        await store.ready()
        pullers = cast("dict[str, object]", vars(vars(store)["_deliveries"])["_pullers"])
        assert pullers == {}
        store.subscribe(["h"], lambda _: None)
        await store.ready()
        assert len(pullers) == 4, "starts, messages, keys, what is passed on"
    finally:
        await store.aclose()
