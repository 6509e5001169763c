"""The wire on a real server: outcomes of puts are known, through restarts too; hints are dropped meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from examples.services.nats_server import Server, free_ports
from perdure.errors import StoreClosed, StoreUnavailable
from perdure.stores.jetstream.wire.protocol import WrongSequence
from perdure.stores.jetstream.wire.wire import Wire


@asynccontextmanager
async def wired(url: str, stream: str = "S") -> AsyncGenerator[Wire]:
    wire = Wire([url])
    wire.stream_of = lambda _: stream
    await wire.open()
    try:
        answer = await wire.api(
            f"STREAM.CREATE.{stream}", {"name": stream, "subjects": [f"{stream}.>"], "allow_direct": True}
        )
        assert "error" not in answer
        yield wire
    finally:
        await wire.close()


async def test_guard_lets_one_of_several_puts_through(nats: Server) -> None:
    async with wired(nats.url, "GUARD") as wire:
        results = await asyncio.gather(
            *(wire.store("GUARD.a", b"%d" % n, expected=0) for n in range(5)), return_exceptions=True
        )
        assert [type(each) for each in results].count(int) == 1
        assert sum(isinstance(each, WrongSequence) for each in results) == 4
        last = await wire.last("GUARD", "GUARD.a")
        assert last is not None
        assert last.data == b"0"
        with pytest.raises(WrongSequence):
            await wire.store("GUARD.a", b"x", expected=last.sequence + 1)
        assert await wire.store("GUARD.a", b"y", expected=last.sequence) > last.sequence


async def test_puts_made_while_the_server_is_down_are_stored_once_in_the_end(own_nats: Server) -> None:
    async with wired(own_nats.url) as wire:
        before = [asyncio.ensure_future(wire.store(f"S.{n}", b"before", expected=0)) for n in range(200)]
        await asyncio.sleep(0)
        await asyncio.to_thread(own_nats.kill)
        await asyncio.sleep(0.1)
        assert not wire.is_up
        during = [asyncio.ensure_future(wire.store(f"S.d{n}", b"during", expected=0)) for n in range(10)]
        wire.publish("S.hint", b"dropped")
        await asyncio.to_thread(own_nats.start)
        sequences = await asyncio.wait_for(asyncio.gather(*before, *during), 20)
        assert len(set(sequences)) == 210, "each is stored once, and known to be"
        assert wire.reconnects == 1
        assert len(await wire.batch("S", "S.>")) == 210
        assert await wire.last("S", "S.hint") is None


async def test_batched_reads_are_in_order_and_bounded(nats: Server) -> None:
    async with wired(nats.url, "READ") as wire:
        for n in range(7):
            await wire.store(f"READ.{n % 2}.x", b"%d" % n)
        assert [each.data for each in await wire.batch("READ", "READ.0.x")] == [b"0", b"2", b"4", b"6"]
        assert [each.data for each in await wire.batch("READ", "READ.*.x", 3, 2)] == [b"2", b"3"]
        assert await wire.batch("READ", "READ.none") == []
        assert await wire.count("READ", "READ.1.x") == 3
        lasts = await wire.last_of("READ", ["READ.0.x", "READ.1.x", "READ.2.x"])
        assert {subject: each.data for subject, each in lasts.items()} == {"READ.0.x": b"6", "READ.1.x": b"5"}


async def test_first_message_is_that_of_many_subjects_from_a_sequence_on(nats: Server) -> None:
    async with wired(nats.url, "FIRST") as wire:
        assert await wire.first("FIRST", "FIRST.a.>") is None
        for n in range(4):
            await wire.store(f"FIRST.{'ba'[n % 2]}.{n}", b"%d" % n)
        for sequence, data in ((1, b"1"), (2, b"1"), (3, b"3")):
            found = await wire.first("FIRST", "FIRST.a.>", sequence)
            assert found is not None
            assert (found.data, found.sequence) == (data, int(data) + 1)
        assert await wire.first("FIRST", "FIRST.a.>", 5) is None
        assert await wire.first("FIRST", "FIRST.c.>") is None


async def test_no_server_and_a_closed_wire_are_clear_errors(nats: Server) -> None:
    url = f"nats://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(StoreUnavailable, match=url.rpartition("/")[2]):
        await Wire([url]).open()
    async with wired(nats.url, "SHUT") as wire:
        pass
    with pytest.raises(StoreClosed):
        await wire.store("SHUT.a", b"")
