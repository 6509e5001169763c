"""A consumer that is pulled: as much comes as is wanted, without a pause."""

from __future__ import annotations

import asyncio

from examples.services.nats_server import Server
from perdure.stores.jetstream.layout.streams import ensure_consumer
from perdure.stores.jetstream.queue.pulls import Arrival, Puller
from perdure.stores.jetstream.wire.wire import Wire

WANTED = 100


async def test_more_is_asked_for_before_all_that_was_asked_for_has_come(nats: Server) -> None:
    wire = Wire([nats.url])
    wire.stream_of = lambda _: "PULLED"
    await wire.open()
    try:
        await wire.api("STREAM.CREATE.PULLED", {"name": "PULLED", "subjects": ["pulled.>"], "retention": "workqueue"})
        await ensure_consumer(wire, "PULLED", "all", {"durable_name": "all", "ack_policy": "explicit"})
        numbers = [await wire.store(f"pulled.{n}", b"") for n in range(12 * WANTED)]
        came: list[int] = []
        all_came = asyncio.Event()

        def arrived(arrival: Arrival) -> None:
            wire.acknowledge(arrival.reply)
            came.append(arrival.sequence)
            if len(came) == len(numbers):
                all_came.set()

        puller = Puller(wire, "PULLED", "all", lambda: WANTED, arrived, lambda: None)
        puller.ask(wire.now())  # once: the rest is asked for as they come
        await asyncio.wait_for(all_came.wait(), 20)
        assert came == numbers
        puller.stop()
    finally:
        await wire.close()
