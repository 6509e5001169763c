"""The verbs that change something, on a NATS server where a worker is up: they wait for its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.services.nats_server import Server, server
from perdure import Client, connect
from tests.cli.command import perdure
from tests.cli.operated import SERVED, Broken, approval, payment

pytestmark = pytest.mark.slow


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Server]:
    with server(tmp_path / "nats") as found:
        yield found


async def told(node: Server, folder: Path, *arguments: str) -> tuple[int, str]:
    done = await asyncio.to_thread(perdure, *arguments, "--url", node.url, cwd=folder)
    errors = [line for line in done.stderr.splitlines(keepends=True) if line.startswith("error:")]  # and no warnings
    return done.returncode, done.stdout + "".join(errors)


async def suspended(client: Client, id: str) -> None:
    async for state in client.handle(id).watch():
        if state.status == "suspended":
            return


async def test_verbs_are_applied_by_the_worker_and_its_refusal_is_a_failure(node: Server, tmp_path: Path) -> None:
    async with connect(node.url, shards=1, replicas=1) as client, client.worker(*SERVED), asyncio.timeout(120):
        await client.start(approval.using(id="ask"), 5)
        await suspended(client, "ask")
        awakeable = (await client.handle("ask").describe()).awakeables[0].id
        assert await told(node, tmp_path, "pause", "ask") == (0, "pause of ask: applied\n")
        assert await told(node, tmp_path, "resume", "ask") == (0, "resume of ask: applied\n")
        code, text = await told(node, tmp_path, "resolve", awakeable, "[1, 2]")
        assert code == 1
        assert "the value has the wrong shape" in text
        code, text = await told(node, tmp_path, "retry", "ask", "nobody", "--json")
        first, second = map(json.loads, text.splitlines())
        assert code == 1
        assert (first["outcome"], second["outcome"]) == ("refused", "refused")
        assert await told(node, tmp_path, "resolve", awakeable, '"yes"') == (0, f"resolve of {awakeable}: applied\n")
        result: Any = await client.handle("ask").result()
        assert result == "yes"
        code, text = await told(node, tmp_path, "backup", "copy.db")
        assert code == 1
        assert "back up its streams" in text


async def test_retry_that_waits_for_a_key_says_who_holds_it(node: Server, tmp_path: Path) -> None:
    async with connect(node.url, shards=1, replicas=1) as client, client.worker(*SERVED), asyncio.timeout(120):
        broken = await client.start(payment.using(id="broken", key="k"), 5)
        with pytest.raises(Broken):
            await broken.result()
        holder = await client.start(approval.using(id="holder", key="k"), 5)
        await suspended(client, "holder")
        text = "retry of broken: accepted; it waits for key 'k', which invocation holder holds, to be retried\n"
        assert await told(node, tmp_path, "retry", "broken") == (0, text)
        await holder.cancel()
