"""A retry that waits for its key goes on as soon as it has the key, whichever process has it in hand."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from examples.services.nats_server import Server
from perdure import Client, Context, Handle, Retry, step, workflow
from perdure.connect import client_from
from perdure.runtime import runner
from perdure.stores.jetstream import JetStreamStore
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
