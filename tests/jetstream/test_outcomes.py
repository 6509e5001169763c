"""Who learns how an invocation with a key ended finds the state that it left, also if he looks just then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from examples.services.nats_server import Server
from perdure import Client, Context, workflow
from perdure.connect import client_from
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.keys.keys import Keys
from perdure.stores.jetstream.queue.deliveries import Deliveries
from perdure.stores.jetstream.watching import Watching
from perdure.stores.port import Transition


class Slow(JetStreamStore):
    """Takes its time between the last frame of an invocation and what follows from it."""

    let_go: asyncio.Event
    has_ended: asyncio.Event

    def __init__(self, servers: Sequence[str], **options: Any) -> None:
        super().__init__(servers, **options)
        try_effects = self.commits.try_effects

        async def slowly(transition: Transition) -> None:
            if transition.outcome is not None:
                self.has_ended.set()
                await self.let_go.wait()
            await try_effects(transition)

        self.commits.try_effects = slowly


@workflow
async def counts(ctx: Context) -> int:
    count = ctx.get("count", int, default=0) + 1
    ctx.set("count", count)
    return count


async def test_result_of_an_invocation_with_a_key_is_not_seen_before_the_state_that_it_leaves(
    nats: Server, namespace: str
) -> None:
    Slow.let_go, Slow.has_ended = asyncio.Event(), asyncio.Event()

    def client_on(kind: type[JetStreamStore]) -> Client:
        return client_from(lambda: kind([nats.url], namespace=namespace, shards=1))

    async with client_on(Slow) as client, client.worker(counts), client_on(JetStreamStore) as elsewhere:
        handle = await client.start(counts.using(id="one", key="k"))
        await asyncio.wait_for(Slow.has_ended.wait(), 10)
        looking = asyncio.ensure_future(elsewhere.handle("one", counts).result())
        await asyncio.sleep(1.5)  # longer than a poll takes that looks for a push that was lost
        assert not looking.done()
        Slow.let_go.set()
        assert await asyncio.wait_for(looking, 10) == await handle.result() == 1
        assert await elsewhere.state("k") == {"count": 1}


async def test_start_that_takes_a_place_again_after_it_has_had_the_key_takes_no_state_back(
    nats: Server, namespace: str
) -> None:
    store = JetStreamStore([nats.url], namespace=namespace, shards=1)
    client = client_from(lambda: store)
    async with client, client.worker(counts):
        assert [await client.run(counts.using(id=id, key="k")) for id in ("one", "two")] == [1, 2]
        start = await store.start("one")
        assert start is not None
        keys: Keys = vars(store)["_keys"]
        # As who sends it again does, if the grant came before this, and the first frame after he had looked for it.
        await keys.join("k", [start], store.clock.now())
        assert await client.run(counts.using(id="three", key="k")) == 3
        assert await client.state("k") == {"count": 3}
        assert not await keys.waiting("k")


async def test_note_that_comes_while_a_key_is_looked_at_has_it_looked_at_again(nats: Server, namespace: str) -> None:
    store = JetStreamStore([nats.url], namespace=namespace, shards=1)
    looked = asyncio.Event()
    keys: Keys = vars(store)["_keys"]
    deliveries: Deliveries = vars(store)["_deliveries"]
    look = keys.look

    async def slowly(name: str) -> None:
        await look(name)
        if not looked.is_set():
            looked.set()
            while deliveries.notes_of(name) < 2:
                await asyncio.sleep(0.01)

    keys.look = slowly
    client = client_from(lambda: store)
    async with client, client.worker(counts):
        await keys.ask_to_look("k")
        await looked.wait()
        assert await asyncio.wait_for(client.run(counts.using(key="k")), 30) == 1


@workflow
async def asks(ctx: Context) -> str:
    return await ctx.awakeable(str)


async def test_outcome_answer_and_end_of_a_watch_come_though_every_push_is_lost(
    nats: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object) -> None:
        pass

    for name in ("_was_settled", "_answer_came", "_changed"):
        monkeypatch.setattr(Watching, name, lose)

    def client_on() -> Client:
        return client_from(lambda: JetStreamStore([nats.url], namespace=namespace, shards=1))

    async with client_on() as client, client.worker(asks), client_on() as elsewhere:
        handle = await elsewhere.start(asks)
        waiting = asyncio.ensure_future(elsewhere.handle(handle.id, asks).result())

        async def watch() -> list[str]:
            return [each.status async for each in handle.watch()]

        watching = asyncio.ensure_future(watch())
        async with asyncio.timeout(30):
            while (await handle.describe()).status != "suspended":
                await asyncio.sleep(0.01)
            [opened] = (await handle.describe()).awakeables
            await elsewhere.resolve(opened.id, "there")
            assert await waiting == "there"
            assert (await watching)[-1] == "completed"
