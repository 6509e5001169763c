"""Messages for one invocation come to its owner in the order in which they were sent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence

import pytest

from examples.services.nats_server import Server
from perdure.core.journal import Accepted, Claimed, Frame, Message, Pause, Released, Start
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.journal.journals import Journals, Tail, Tails
from perdure.stores.jetstream.queue.finding import Finder
from perdure.stores.port import Delivery, Transition, committed


@pytest.fixture
async def stores(nats: Server, namespace: str) -> AsyncGenerator[tuple[JetStreamStore, JetStreamStore]]:
    """Two processes' stores on one server: one receives, the other sends."""
    one, other = (JetStreamStore([nats.url], namespace=namespace, shards=1) for _ in range(2))
    async with contextlib.AsyncExitStack() as parts:
        for each in (one, other):
            parts.push_async_callback(each.aclose)
            await each.open()
        yield one, other


async def test_message_that_comes_while_earlier_ones_are_looked_at_stays_behind_them(
    stores: tuple[JetStreamStore, JetStreamStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, elsewhere = stores
    came: asyncio.Queue[Delivery] = asyncio.Queue()
    journals: Journals = vars(store)["_journals"]
    read = journals.tails

    async def slowly(ids: Sequence[str]) -> Tails:
        found = await read(ids)
        await asyncio.sleep(0.02)
        return found

    start = Start("a", "h", b"", 1.0, 1.0, 7)
    claim = Claimed(1.0, 1, store.name, "3.11", "0")
    revision = await committed(store, Transition("a", 0, Frame(store.name, 1.0, [Accepted(start), claim])))
    released = Frame(store.name, 1.0, [Released(1.0)])
    await committed(store, Transition("a", revision, released, status="suspended", released=True))
    store.subscribe(["h"], came.put_nowait)
    await store.ready()
    monkeypatch.setattr(journals, "tails", slowly)
    sent = [Message(f"m{n}", "a", float(n), Pause()) for n in range(60)]
    for message in sent:
        await elsewhere.post(message)
    assert [(await asyncio.wait_for(came.get(), 5)).item for _ in sent] == sent


async def test_messages_whose_start_is_looked_up_faster_for_the_later_ones_come_in_order(
    stores: tuple[JetStreamStore, JetStreamStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a replica lags, a look-up asks the leader as well."""
    store, elsewhere = stores
    came: asyncio.Queue[Delivery] = asyncio.Queue()
    finder: Finder = vars(store)["_finder"]
    find, pauses = finder.start, iter([0.4, 0.2, 0.1])

    async def slower_first(id: str, tail: Tail) -> tuple[Start, bool] | None:
        found = await find(id, tail)
        await asyncio.sleep(next(pauses, 0.0))
        return found

    now = time.time()  # messages are not read ahead for a start that has not waited
    start = Start("a", "h", b"", now, now, 7)
    await elsewhere.submit([start])
    sent = [Message(f"m{n}", "a", now + n, Pause()) for n in range(5)]
    for message in sent[:4]:
        await elsewhere.post(message)
    monkeypatch.setattr(finder, "start", slower_first)
    subscription = store.subscribe(["h"], came.put_nowait)
    await store.ready()
    await asyncio.sleep(0.1)
    subscription.request(1)
    assert (await asyncio.wait_for(came.get(), 5)).item == start
    await elsewhere.post(sent[4])  # its invocation has an owner by now
    assert [(await asyncio.wait_for(came.get(), 5)).item for _ in sent] == sent
