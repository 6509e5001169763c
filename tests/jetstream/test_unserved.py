"""A child or a send that no worker of this process serves is logged on JetStream too."""

from __future__ import annotations

import asyncio
import logging

import pytest

from examples.services.nats_server import Server
from perdure.connect import client_from
from perdure.runtime import unserved
from perdure.stores.jetstream import JetStreamStore
from tests.test_client import doubles, starts_doubles, warned

pytestmark = pytest.mark.limit(120)


@pytest.mark.parametrize("how", ["child", "send", "child with a key"])
async def test_child_or_send_that_no_worker_serves_is_warned_of(
    nats: Server,
    namespace: str,
    how: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(unserved, "UNSERVED_SECONDS", 0.3)
    store = JetStreamStore([nats.url], namespace=namespace, shards=2)
    async with client_from(lambda: store) as client, client.worker(starts_doubles):
        parent = await client.start(starts_doubles, how)
        text = await warned(caplog, "none here serves workflow 'doubles'")
        assert "invocation lonely waits for a worker" in text
        async with client.worker(doubles), asyncio.timeout(30):
            await parent.result()
            assert await client.handle("lonely").result() == 2
