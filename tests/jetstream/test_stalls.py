"""A process that stands still between looking at a start and handing it over does not begin on what others may have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from examples.services.nats_server import Server
from perdure.core.journal import Start
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.journal.journals import Journals, Tails
from perdure.stores.port import Delivery

LEASE_SECONDS = 1.0


async def test_start_that_was_looked_at_a_lease_ago_is_left_to_come_again(
    nats: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JetStreamStore([nats.url], namespace=namespace, shards=1)
    await store.open()
    came: asyncio.Queue[Delivery] = asyncio.Queue()
    journals: Journals = vars(store)["_journals"]
    read = journals.tails
    stalls = 1

    async def stalling(ids: Sequence[str]) -> Tails:
        nonlocal stalls
        found = await read(ids)
        if stalls:
            stalls -= 1
            time.sleep(1.2 * LEASE_SECONDS)  # noqa: ASYNC251  the whole process, as SIGSTOP does
        return found

    try:
        monkeypatch.setattr(journals, "tails", stalling)
        store.subscribe(["h"], came.put_nowait, lease=LEASE_SECONDS).request(5)
        await store.submit([Start("a", "h", b"", 1.0, 1.0, 7)])
        delivery = await asyncio.wait_for(came.get(), 10)
        assert (delivery.id, delivery.fresh, delivery.attempt) == ("a", True, 2)
        assert stalls == 0
        assert came.empty()
    finally:
        await store.aclose()
