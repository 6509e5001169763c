"""Messages for one invocation come to its owner in the order in which they were sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from examples.services.nats_server import Server
from perdure.core.journal import Accepted, Claimed, Frame, Message, Pause, Released, Start
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.journal.journals import Journals, Tails
from perdure.stores.port import Delivery, Transition, committed


async def test_message_that_comes_while_earlier_ones_are_looked_at_stays_behind_them(
    nats: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JetStreamStore([nats.url], namespace=namespace, shards=1)
    elsewhere = JetStreamStore([nats.url], namespace=namespace, shards=1)
    await store.open()
    await elsewhere.open()
    came: asyncio.Queue[Delivery] = asyncio.Queue()
    journals: Journals = vars(store)["_journals"]
    read = journals.tails

    async def slowly(ids: Sequence[str]) -> Tails:
        found = await read(ids)
        await asyncio.sleep(0.02)
        return found

    try:
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
    finally:
        await elsewhere.aclose()
        await store.aclose()
