# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
"""What goes wrong with a server while clients and workers use it: it is said, nothing waits in silence or is lost."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import nats
import pytest
from nats.js.errors import ServiceUnavailableError

from examples.services.nats_server import Options, Server, server
from perdure import Client, Context, connect, step, workflow
from perdure.errors import StoreError, StoreFull, StoreUnfit
from perdure.stores.jetstream import store as jetstream_store
from perdure.stores.jetstream.care import overdue
from perdure.stores.jetstream.wire.wire import Wire

pytestmark = pytest.mark.slow

LIMIT_SECONDS = 30
ran: Counter[str] = Counter()


@step
async def note(name: str) -> str:
    ran[name] += 1
    return name


@workflow
async def twice(ctx: Context) -> str:
    await note(f"{ctx.invocation_id} first")
    await asyncio.sleep(0.1)
    return await note(f"{ctx.invocation_id} second")


@workflow
async def slowly(ctx: Context) -> str:
    for n in range(3):
        await note(f"{ctx.invocation_id} {n}")
        await asyncio.sleep(1.5)  # longer than what a worker times itself
    return "done"


@workflow
async def echo(text: str) -> str:
    return text


async def all_of(client: Client, prefix: str, count: int = 10) -> list[str]:
    """Run so many to their end."""
    runs = (client.run(twice.using(id=f"{prefix}{n}")) for n in range(count))
    async with asyncio.timeout(LIMIT_SECONDS):
        return await asyncio.gather(*runs)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while not holds():
            await asyncio.sleep(0.05)


def reconfigure(node: Server, **more: Any) -> None:
    """Change the configuration of a server that runs."""
    (node.folder / "server.conf").write_text(json.dumps({**node.configuration(), **more}))
    os.kill(node.pid, signal.SIGHUP)


# --- what a client may not do -----------------------------------------------------------------------------------------


def users(**permissions: Any) -> dict[str, Any]:
    return {"authorization": {"users": [{"user": "bob", "password": "s3cret", "permissions": permissions}]}}


@pytest.mark.parametrize(
    ("kind", "subject"),
    [
        ("publish", "perdure.q.>"),
        ("publish", "$JS.API.>"),
        ("publish", "$JS.API.STREAM.CREATE.>"),
        ("publish", "$JS.API.STREAM.MSG.GET.>"),
        ("publish", "$JS.API.DIRECT.GET.>"),
        ("subscribe", "_INBOX.>"),
    ],
)
async def test_subject_that_a_client_may_not_use_is_an_error_with_its_name(kind: str, subject: str) -> None:
    with server(options=Options(more=users(**{kind: {"deny": [subject]}}))) as node:
        client = connect(node.url, user="bob", password="s3cret")

        async def begin() -> None:
            await client.operations.open()
            await client.start(echo.using(id="one"), "A")

        with pytest.raises(StoreUnfit, match=f"does not permit this client to {kind} to ") as raised:
            await asyncio.wait_for(begin(), 8)
        assert subject.removesuffix(">") in str(raised.value)
        needed = "permit its user to publish and subscribe to perdure.>, $JS.API.>, $JS.ACK.> and _INBOX.>"
        assert needed in str(raised.value)
        await client.aclose()


@pytest.mark.parametrize("subject", ["perdure.j.>", "$JS.API.CONSUMER.>", "$JS.ACK.>"])
async def test_worker_says_once_what_it_may_not_do_and_goes_on_when_it_may(
    subject: str, caplog: pytest.LogCaptureFixture
) -> None:
    with server(options=Options(more=users(publish={"deny": [subject]}))) as node:
        async with connect(node.url, user="bob", password="s3cret") as client, client.worker(twice, echo, lease=3):
            handle = await client.start(echo, "A")
            await until(lambda: "does not permit this client to publish to " in caplog.text)
            await asyncio.sleep(2.5)
            said = [each.getMessage() for each in caplog.records if "does not permit this client" in each.getMessage()]
            assert subject.removesuffix(">") in said[0]
            assert len(said) <= 3  # not one each second
            reconfigure(node, **users(publish={"allow": [">"]}))
            assert await asyncio.wait_for(handle.result(), LIMIT_SECONDS) == "A"
            assert len(await all_of(client, "after")) == 10


async def test_client_that_the_server_disconnects_comes_back_when_it_is_let_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with server() as node:
        async with connect(node.url) as client, client.worker(twice):
            await all_of(client, "before")
            reconfigure(node, authorization={"user": "eve", "password": "s3cret"})
            await until(lambda: "the connection to the NATS server is lost" in caplog.text)
            await until(lambda: caplog.text.lower().count("authorization violation") >= 2)
            reconfigure(node)
            assert len(await all_of(client, "after")) == 10
    assert "reconnected to the NATS server" in caplog.text


# --- what somebody deleted --------------------------------------------------------------------------------------------


async def test_consumers_that_are_deleted_while_workers_run_are_made_again(caplog: pytest.LogCaptureFixture) -> None:
    ran.clear()
    with server() as node:
        async with connect(node.url, shards=2) as client, client.worker(twice, slowly, lease=3):
            handle = await client.start(slowly.using(id="slow"))
            await all_of(client, "before")
            async with await nats.connect(node.url) as raw:
                jetstream = raw.jetstream(timeout=60)
                for stream in ("PERDURE_Q_0", "PERDURE_Q_1"):
                    for each in await jetstream.consumers_info(stream):
                        await jetstream.delete_consumer(stream, each.name)
            assert len(await all_of(client, "after")) == 10
            assert await asyncio.wait_for(handle.result(), LIMIT_SECONDS) == "done"
    assert "consumer msg of PERDURE_Q_0 was deleted: created it again" in caplog.text
    assert {name: count for name, count in ran.items() if name.startswith("slow ") and count > 1} == {}


@pytest.mark.parametrize("stream", ["PERDURE_J_0", "PERDURE_Q_0", "PERDURE_K_0", "PERDURE_B_0"])
async def test_stream_that_is_deleted_while_workers_run_is_an_error_with_its_name(stream: str) -> None:
    with server() as node:
        async with connect(node.url, shards=1) as client, client.worker(twice, echo):
            await all_of(client, "before")
            async with await nats.connect(node.url) as raw:
                await raw.jetstream(timeout=60).delete_stream(stream)
            match stream[-3]:
                case "K":
                    change = client.handle("before0").cancel()
                case "B":
                    change = client.start(echo, "x" * 2_000_000)
                case _:
                    change = client.start(echo.using(id="one"), "A")
            with pytest.raises(StoreUnfit, match=f"{stream} no longer exists: stop the workers and restore a backup"):
                await asyncio.wait_for(change, 20)


async def test_server_that_comes_back_without_jetstream_is_told_and_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with server() as node:
        async with connect(node.url) as client, client.worker(twice):
            await all_of(client, "before")
            assert (await client.stats()).by_status == {"completed": 10}
            before, node.options = node.options, Options(jetstream=False)
            node.restart()
            after = asyncio.ensure_future(all_of(client, "after"))
            await until(lambda: "its JetStream does not answer: is it enabled" in caplog.text)
            stats = await client.stats()
            assert (stats.is_current, stats.by_status) == (False, {"completed": 10})
            assert not after.done()
            node.options = before
            node.restart()
            assert len(await after) == 10
            stats = await client.stats()
            assert (stats.is_current, stats.by_status) == (True, {"completed": 20})


# --- a server that is full --------------------------------------------------------------------------------------------


async def fill(node: Server) -> None:
    """Leave no room for one more message."""
    async with await nats.connect(node.url) as raw:
        jetstream = raw.jetstream(timeout=60)
        await jetstream.add_stream(name="FILL", subjects=["fill"])
        size = 200_000
        while size > 10:
            try:
                await jetstream.publish("fill", b"x" * size)
            except ServiceUnavailableError:
                size //= 4


async def make_room(node: Server) -> None:
    async with await nats.connect(node.url) as raw:
        await raw.jetstream(timeout=60).delete_stream("FILL")


async def test_full_server_refuses_clients_and_holds_workers_up_and_all_goes_on_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(overdue, "OVERDUE_SECONDS", 2.0)
    monkeypatch.setattr(jetstream_store, "LOOK_SECONDS", 1.0)
    ran.clear()
    go = asyncio.Event()

    @step
    async def wait() -> None:
        await go.wait()

    @workflow
    async def waits(ctx: Context) -> str:
        await wait()
        await note(f"{ctx.invocation_id} waited")
        return await echo(await twice())  # a child: what follows from a frame must find room too

    with server(options=Options(storage_limit=16 << 20)) as node:
        async with connect(node.url, shards=2) as client, client.worker(waits, slowly, twice, echo, lease=3):
            handles = [await client.start(waits.using(id=f"busy{n}")) for n in range(20)]
            handles += [await client.start(slowly.using(id=f"slow{n}")) for n in range(20)]
            await until(lambda: ran["slow19 0"] == 1)
            await asyncio.sleep(0.3)  # their frames, which say that they sleep
            await fill(node)
            go.set()
            with pytest.raises(StoreFull, match=r"no room left for perdure.*raise max_file_store"):
                await client.start(echo.using(id="new"), "A")
            with pytest.raises(StoreFull):
                await handles[0].cancel()
            await asyncio.sleep(4)  # all timers are due, and a lease has passed
            assert (await client.stats()).total == 40
            said = [each for each in caplog.records if "no room left" in each.getMessage()]
            assert 1 <= len(said) <= 8  # some for each kind of work, not one for each commit that is tried again
            await make_room(node)
            async with asyncio.timeout(LIMIT_SECONDS):
                await asyncio.gather(*(handle.result() for handle in handles))
    assert "overdue schedules were set again" in caplog.text
    assert {name: count for name, count in ran.items() if count > 1} == {}
    assert len([name for name in ran if name.startswith("slow")]) == 60


# --- sizes ------------------------------------------------------------------------------------------------------------


async def test_server_whose_messages_are_too_small_is_refused() -> None:
    with server(options=Options(max_payload=8_000)) as node:
        client = connect(node.url)
        with pytest.raises(StoreUnfit, match="max_payload is 8,000 bytes, and must be at least 65,536"):
            await client.operations.open()


async def test_smallest_max_payload_takes_values_of_any_size_in_pieces() -> None:
    with server(options=Options(max_payload=65_536)) as node:
        async with connect(node.url) as client, client.worker(echo):
            for size in (40_000, 50_000, 66_000, 1_000_000):
                assert await client.run(echo, "x" * size) == "x" * size


async def test_max_payload_that_was_lowered_is_kept_to(caplog: pytest.LogCaptureFixture) -> None:
    with server(options=Options(max_payload=2 << 20)) as node:
        async with connect(node.url) as client, client.worker(echo):
            assert await client.run(echo, "x" * 1_000_000) == "x" * 1_000_000
            node.options = Options(max_payload=65_536)
            node.restart()
            await until(lambda: "reconnected to the NATS server" in caplog.text)
            async with asyncio.timeout(LIMIT_SECONDS):
                assert await client.run(echo, "y" * 1_000_000) == "y" * 1_000_000


async def test_message_above_max_payload_is_an_error_and_does_not_cost_the_connection() -> None:
    with server(options=Options(max_payload=65_536)) as node:
        async with await nats.connect(node.url) as raw:
            await raw.jetstream(timeout=60).add_stream(name="S", subjects=["s.>"])
        wire = Wire([node.url])
        await wire.open()
        with pytest.raises(StoreError, match=r"s\.1: 70,\d\d\d bytes are more than the server's max_payload of 65,536"):
            await wire.store("s.1", b"x" * 70_000)
        assert await wire.store("s.1", b"x") == 1
        assert wire.reconnects == 0
        await wire.close()


# --- outages in logs and stats ----------------------------------------------------------------------------------------


async def test_outage_is_in_the_log_and_in_stats_and_ends_there_too(caplog: pytest.LogCaptureFixture) -> None:
    with server() as node:
        async with connect(node.url) as client, client.worker(twice):
            await all_of(client, "before")
            first = await client.stats()
            assert (first.is_current, first.behind) == (True, 0)
            node.kill()
            await until(lambda: "the connection to the NATS server is lost" in caplog.text)
            during = await client.stats()
            assert (during.is_current, during.by_status) == (False, {"completed": 10})
            assert "the index lacks at least" in caplog.text
            begun = time.monotonic()
            waiting = asyncio.ensure_future(all_of(client, "after"))
            while time.monotonic() < begun + 3:
                await asyncio.sleep(0.1)
            said = Counter(each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING)
            assert max(said.values()) <= 3, said
            node.start()
            await waiting
            after = await client.stats()
            assert (after.is_current, after.by_status) == (True, {"completed": 20})
    assert "reconnected to the NATS server" in caplog.text
