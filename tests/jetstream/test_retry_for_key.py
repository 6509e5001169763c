"""A retry that waits for its key goes on as soon as it has the key, whichever process has it in hand."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from examples.services.nats_server import Server
from perdure import Client, Context, Handle, Retry, step, workflow
from perdure.connect import client_from
from perdure.core.effects import Effects, Enlist
from perdure.runtime import runner
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.port import Transition, committed
from tests.jetstream.liveness import check_liveness

RESULT_SECONDS = 30.0
RETRIES = 12
"""Left to chance, half of the grants go to a worker that does not have the retry."""

attempts: dict[str, int] = {}


@pytest.fixture(autouse=True)
def _forget() -> None:
    attempts.clear()


@step(retry=Retry(max_attempts=1))
async def sell(what: str) -> str:
    attempts[what] = attempts.get(what, 0) + 1
    if attempts[what] == 1:
        raise RuntimeError("sold out")
    return f"{what} sold"


@workflow
async def sale(what: str) -> str:
    return await sell(what)


@workflow
async def holds(ctx: Context) -> str:
    return await ctx.awakeable(str)


async def waits_for_its_key(client: Client, n: int) -> tuple[Handle[str], Handle[str], asyncio.Task[None]]:
    """Return a retry that waits for the key of another, and that other."""
    failed = await client.start(sale.using(id=f"s{n}", key=f"k{n}"), f"{n}")
    with pytest.raises(RuntimeError, match="sold out"):
        await failed.result(timeout=RESULT_SECONDS)
    holder = await client.start(holds.using(key=f"k{n}"))
    while (await holder.describe()).status != "suspended":
        await asyncio.sleep(0.01)
    retrying = asyncio.create_task(failed.retry())
    while (await failed.describe()).waiting_for is None:
        await asyncio.sleep(0.01)
    return failed, holder, retrying


async def test_grant_reaches_the_process_that_has_the_retry(
    nats: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "KEY_LOOK_SECONDS", 3_600.0)  # none looks by itself
    stores = [JetStreamStore([nats.url], namespace=namespace, shards=2) for _ in range(2)]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_from(lambda store=store: store)) for store in stores]
        for client, store in zip(clients, stores, strict=True):
            await stack.enter_async_context(client.worker(sale, holds))
            await store.ready()
        waiting = await asyncio.gather(*(waits_for_its_key(clients[0], n) for n in range(RETRIES)))
        for failed, holder, retrying in waiting:
            await clients[0].resolve((await holder.describe()).awakeables[0].id, "done")
            await asyncio.wait_for(retrying, RESULT_SECONDS)
            assert (await failed.result(timeout=RESULT_SECONDS)).endswith("sold")
        await check_liveness(stores[0])
    assert attempts == dict.fromkeys(map(str, range(RETRIES)), 2)


@workflow
async def sale_on_approval(ctx: Context, what: str) -> str:
    sold = await sell(what)
    await ctx.awakeable(str)
    return sold


async def approve(client: Client, waiting: Handle[str]) -> None:
    async with asyncio.timeout(RESULT_SECONDS):
        while not (found := await waiting.describe()).awakeables:
            await asyncio.sleep(0.01)
    await client.resolve(found.awakeables[0].id, "done")
    await waiting.result(timeout=RESULT_SECONDS)


@pytest.mark.parametrize("moment", ["while the retry runs", "when another holds the key", "when the key is free"])
async def test_key_that_an_earlier_owner_of_a_retry_requests_too_late_is_not_held_for_ever(
    nats: Server, namespace: str, moment: str
) -> None:
    """Its commit has no frame, so that no guard refuses it. The queue drops the request for a retry that has begun.

    If the key were granted all the same, the worker that is woken would redo the release.
    """
    stores = [JetStreamStore([nats.url], namespace=namespace, shards=2) for _ in range(2)]
    async with AsyncExitStack() as stack:
        client, _ = [await stack.enter_async_context(client_from(lambda store=store: store)) for store in stores]
        await stack.enter_async_context(client.worker(sale_on_approval, holds))
        late = stores[1]  # it hears of nothing that the worker does
        await late.ready()
        failed = await client.start(sale_on_approval.using(id="failed", key="shop"), "tea")
        with pytest.raises(RuntimeError, match="sold out"):
            await failed.result(timeout=RESULT_SECONDS)
        enlist = Effects(enlist=Enlist("shop", 1))
        too_late = Transition("failed", await late.revision("failed"), None, enlist, None, True)
        await failed.retry()
        holder = failed
        if moment != "while the retry runs":
            await approve(client, failed)
            holder = await client.start(holds.using(key="shop"))
        if moment == "when the key is free":
            await approve(client, holder)
        await committed(late, too_late)
        if moment != "when the key is free":
            await approve(client, holder)
        await approve(client, await client.start(holds.using(key="shop")))
        assert (await late.key("shop")).holder is None
        await check_liveness(stores[0])
    assert attempts == {"tea": 2}
