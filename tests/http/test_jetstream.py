"""Two servers in front of one NATS server, and a worker behind neither."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from examples.services.nats_server import Options, server
from perdure import connect
from perdure.stores.jetstream.layout.streams import make
from tests.http.conftest import site_on
from tests.http.programs import WORKFLOWS

pytestmark = pytest.mark.slow


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
