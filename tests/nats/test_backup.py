"""A store that was copied and put on an empty server goes on from where it was, by the way of `nats account backup`."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.services.nats_server import server
from perdure import Client, Context, connect, step, workflow
from tests.nats.backup import back_up, restore

pytestmark = pytest.mark.slow

LARGE = "x" * 2_000_000
LATER_SECONDS = 9.0
LIMIT_SECONDS = 60
ran: Counter[str] = Counter()


@step
async def note(name: str) -> str:
    ran[name] += 1
    return name


@step
async def large() -> str:
    ran["large"] += 1
    return LARGE


@workflow
async def done(ctx: Context) -> str:
    return await note(f"{ctx.invocation_id} only")


@workflow
async def sleeper(ctx: Context, until: float) -> int:
    await note(f"{ctx.invocation_id} before")
    await asyncio.sleep(max(0.0, until - ctx.now().timestamp()))
    await note(f"{ctx.invocation_id} after")
    return round(ctx.now().timestamp())


@workflow
async def holder(ctx: Context) -> int:
    """Count its key up, by way of a large result and a message from outside."""
    result = await large()
    count = ctx.get("count", int, 0) + 1
    ctx.set("count", count)
    wanted = ctx.awakeable(str)
    await note(f"{ctx.invocation_id} holds")
    await wanted
    return count * len(result)


WORKFLOWS = (done, sleeper, holder)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while not holds():
            await asyncio.sleep(0.05)


async def grant(client: Client, id: str) -> None:
    """Resolve what an invocation waits for."""
    handle = client.handle(id)
    async with asyncio.timeout(LIMIT_SECONDS):
        while not (open := [each for each in (await handle.describe()).awakeables if not each.resolved]):
            await asyncio.sleep(0.1)
    await client.resolve(open[0].id, "go")


@pytest.mark.parametrize("consumers", [True, False])
async def test_store_that_is_restored_on_an_empty_server_goes_on_from_its_copy(consumers: bool, tmp_path: Path) -> None:
    ran.clear()
    table = tmp_path / "index.db"
    due = time.time() + LATER_SECONDS
    with server(tmp_path / "first") as node:
        async with connect(node.url, index=table) as client, client.worker(*WORKFLOWS, lease=3):
            assert await client.run(done.using(id="done")) == "done only"
            for n in range(5):
                await client.start(sleeper.using(id=f"sleeps{n}"), due)
            for n in range(3):
                await client.start(holder.using(id=f"holds{n}", key="k"))
            await client.start(done.using(id="delayed", delay=due - time.time()))
            await client.start(done.using(id="delayed with a key", key="other", delay=due - time.time()))
            await grant(client, "holds0")
            await until(lambda: ran["holds1 holds"] == 1 and ran["sleeps4 before"] == 1)
        async with connect(node.url) as client:  # nobody serves it any more
            await client.start(done.using(id="queued"))
            before = {each.id: each.status async for each in client.list()}
        copies = await back_up(node.url, consumers=consumers)
        assert len(copies) == 16
        # What happens afterwards is lost with that server; a table of the index has seen it, though.
        async with connect(node.url, index=table) as client, client.worker(*WORKFLOWS, lease=3):
            for n in range(20):
                await client.run(done.using(id=f"lost{n}"))
            assert (await client.stats()).by_status["completed"] == 23
    counted, _ = Counter(ran), ran.clear()
    assert counted["queued only"] == 1
    with server(tmp_path / "second") as node:
        await restore(node.url, copies)
        async with connect(node.url) as client:
            assert {each.id: each.status async for each in client.list()} == before
        async with connect(node.url, index=table) as client, client.worker(*WORKFLOWS, lease=3):
            assert {each.id async for each in client.list()} == before.keys()
            assert await client.handle("done").result() == "done only"
            async with asyncio.timeout(LIMIT_SECONDS):
                for n in range(5):
                    assert await client.handle(f"sleeps{n}").result() >= int(due)
                for id in ("queued", "delayed", "delayed with a key"):
                    assert await client.handle(id).result() == f"{id} only"
            await grant(client, "holds1")
            await grant(client, "holds2")
            results = [await client.handle(f"holds{n}").result() for n in range(3)]
            assert results == [n * len(LARGE) for n in (1, 2, 3)]  # in order, each with what the one before left
            assert await client.run(done.using(id="lost0")) == "lost0 only"  # its id is not known here
            assert (await client.stats()).by_status == {"completed": len(before) + 1}
    after = ["delayed only", "delayed with a key only", "holds2 holds", "large", "lost0 only", "queued only"]
    assert ran == Counter(after + [f"sleeps{n} after" for n in range(5)])
    assert time.time() >= due


async def test_index_that_has_read_more_than_an_older_copy_holds_is_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran.clear()
    table = tmp_path / "index.db"
    with server(tmp_path / "nats") as node:
        async with connect(node.url, index=table) as client, client.worker(done):
            await client.run(done.using(id="kept"))
            assert (await client.stats()).total == 1
        node.stop()
        shutil.copytree(tmp_path / "nats" / "data", tmp_path / "copy")
        node.start()
        async with connect(node.url, index=table) as client, client.worker(done):
            for n in range(20):
                await client.run(done.using(id=f"lost{n}"))
            assert (await client.stats()).total == 21
        node.stop()
        shutil.rmtree(tmp_path / "nats" / "data")
        shutil.move(tmp_path / "copy", tmp_path / "nats" / "data")
        node.start()
        async with connect(node.url, index=table) as client, client.worker(done):
            assert {each.id async for each in client.list()} == {"kept"}
            await client.run(done.using(id="new"))
            assert {each.id async for each in client.list()} == {"kept", "new"}
    assert "the streams end before the index does" in caplog.text
