"""Two servers in front of one NATS server, and a worker behind neither."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from examples.services.nats_server import Options, server
from perdure import Context, Webhook, connect, workflow
from perdure.http import StandardWebhooks
from perdure.http.hooks import put_hook
from perdure.stores.jetstream.layout.streams import make
from tests.http.conftest import site_on
from tests.http.pages import Page
from tests.http.programs import WORKFLOWS
from tests.http.test_hooks import SECRET, send, standard

pytestmark = pytest.mark.slow


@workflow
async def on_payment(event: Webhook) -> int:
    return event.json()["amount"]


@workflow
async def approval(ctx: Context) -> bool:
    return await ctx.awakeable(bool)


async def test_what_is_started_on_one_server_is_awaited_and_answered_on_another() -> None:
    with server(options=Options(sync_interval="always")) as node:
        await make([node.url], {}, replicas=1, shards=None, synced=True)
        async with AsyncExitStack() as parts:
            behind = await parts.enter_async_context(connect(node.url))
            await parts.enter_async_context(behind.worker(*WORKFLOWS))
            one = await site_on(parts, node.url)
            other = await site_on(parts, node.url)
            while len((await one.get("/api/handlers")).json()["handlers"]) < len(WORKFLOWS):
                await asyncio.sleep(0.02)
            sent = {"Idempotency-Key": "k"}
            answers = await asyncio.gather(
                *(
                    site.post("/api/workflows/expense/invoke", {"amount": "3"}, headers=sent)
                    for site in (one, other)
                    for _ in range(5)
                )
            )
            (id,) = {each.json()["invocation_id"] for each in answers}
            waiting = asyncio.create_task(other.get(f"/api/workflows/{id}/result?wait=60"))
            while not (found := (await other.get("/api/awakeables?open=true")).json()["awakeables"]):
                await asyncio.sleep(0.02)
            resolved = await other.post(f"/api/awakeables/{found[0]['id']}/resolve", {"result": {"approved": True}})
            assert resolved.status_code == 200, resolved.text
            assert (await waiting).json()["result"] == "approved"
            assert (await one.get(f"/api/workflows/{id}/result?wait=60")).json()["result"] == "approved"
            while (await one.get("/api/workflows/stats")).json()["by_status"] != {"completed": 1}:
                await asyncio.sleep(0.02)


async def test_hook_and_link_are_the_same_on_every_server() -> None:
    with server(options=Options(sync_interval="always")) as node:
        await make([node.url], {}, replicas=1, shards=None, synced=True)
        async with AsyncExitStack() as parts:
            behind = await parts.enter_async_context(connect(node.url))
            await parts.enter_async_context(behind.worker(on_payment, approval))
            sites = [await site_on(parts, node.url) for _ in range(2)]
            while len((await sites[0].get("/api/handlers")).json()["handlers"]) < 2:
                await asyncio.sleep(0.02)
            await put_hook(behind.operations, "on_payment", StandardWebhooks(SECRET))
            headers = standard()
            sent = [send(site, "on_payment", headers) for site in sites for _ in range(5)]
            answers = await asyncio.gather(*sent)
            assert {each.status_code for each in answers} == {200}
            (id,) = {each.json()["invocation_id"] for each in answers}
            assert (await sites[0].get(f"/api/workflows/{id}/result?wait=60")).json()["result"] == 12

            handle = await behind.start(approval)
            while not (found := (await sites[0].get("/api/awakeables?open=true")).json()["awakeables"]):
                await asyncio.sleep(0.02)
            assert found[0]["schema"] == {"type": "boolean"}
            links = await asyncio.gather(
                *(site.post(f"/api/awakeables/{found[0]['id']}/link") for site in sites for _ in range(3))
            )
            urls = [each.json()["url"] for each in links]
            for url in urls:
                for site in sites:
                    assert Page((await site.get(url)).text).buttons == {"Approve": "approve", "Decline": "decline"}
            assert (await sites[0].http.post(urls[-1], data={"verb": "approve"})).status_code == 303
            assert await handle.result() is True
            assert Page((await sites[1].get(urls[0])).text).heading == "Approved"
