"""A retry that waits for its key goes on when it has the key, even if the wake that says so went elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from perdure import Context, Retry, connect, step, workflow
from perdure.core.effects import Effects, Enlist
from perdure.operations.local import store_behind
from perdure.runtime import runner
from perdure.runtime.worker import Worker
from perdure.stores.port import Delivery, Transition, Wake, committed

RESULT_SECONDS = 20.0


class Shop:
    sold_out = True


@step(retry=Retry(max_attempts=1))
async def sell() -> str:
    if Shop.sold_out:
        raise RuntimeError("sold out")
    return "sold"


@workflow
async def sale() -> str:
    return await sell()


@workflow
async def holds(ctx: Context) -> str:
    return await ctx.awakeable(str)


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory:" if request.param == "memory" else f"sqlite:{tmp_path / 'store.db'}"


async def test_retry_looks_for_its_key_by_itself_when_no_wake_comes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "KEY_LOOK_SECONDS", 0.01)
    deliver, dropped = Worker._deliver, asyncio.Event()  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001

    def without_wakes(self: Worker, delivery: Delivery) -> None:
        if isinstance(delivery.item, Wake) and delivery.id == "failed":
            dropped.set()
            self.subscription.acknowledge(delivery)
        else:
            deliver(self, delivery)

    monkeypatch.setattr(Worker, "_deliver", without_wakes)
    Shop.sold_out = True
    async with connect(url) as client, client.worker(sale, holds):
        failed = await client.start(sale.using(id="failed", key="shop"))
        with pytest.raises(RuntimeError, match="sold out"):
            await failed.result(timeout=RESULT_SECONDS)
        holder = await client.start(holds.using(key="shop"))
        while (await holder.describe()).status != "suspended":
            await asyncio.sleep(0.001)
        Shop.sold_out = False
        retrying = asyncio.create_task(failed.retry())
        while (await failed.describe()).waiting_for is None:
            await asyncio.sleep(0.001)
        await client.resolve((await holder.describe()).awakeables[0].id, "done")
        await asyncio.wait_for(retrying, RESULT_SECONDS)
        assert await failed.result(timeout=RESULT_SECONDS) == "sold"
        assert dropped.is_set(), "the wake was not dropped: this shows nothing"


async def test_key_that_an_earlier_owner_asks_for_too_late_is_given_back(url: str) -> None:
    """Two workers had the retry in hand; one stood still, and asked for the key when the other had run the retry."""
    Shop.sold_out = True
    async with connect(url) as client, client.worker(sale):
        failed = await client.start(sale.using(id="failed", key="shop"))
        with pytest.raises(RuntimeError, match="sold out"):
            await failed.result(timeout=RESULT_SECONDS)
        Shop.sold_out = False
        await failed.retry()
        assert await failed.result(timeout=RESULT_SECONDS) == "sold"
        store = await store_behind(client.operations)
        late = Effects(enlist=Enlist("shop", 1))
        await committed(store, Transition("failed", await store.revision("failed"), None, late, "completed", True))
        assert await client.run(sale.using(key="shop", timeout=RESULT_SECONDS)) == "sold"
