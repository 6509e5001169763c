"""The same programs on NATS, by changing one URL: the examples print there what they print on a SQLite file."""

from __future__ import annotations

import re

import pytest

from examples.services.nats_server import Options, Server, server
from perdure.stores.jetstream.layout.streams import make
from tests.examples.test_examples import OUTPUT, PATTERNS, check_query, output

pytestmark = pytest.mark.slow

NAMES = [*(name for name in OUTPUT if name != "local"), *PATTERNS]


@pytest.mark.parametrize("name", NAMES)
async def test_example_prints_the_same_on_a_nats_server(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(options=Options(sync_interval="always")) as node:
        await prepare(node)
        monkeypatch.setenv("PERDURE_URL", node.url)
        out = await output(f"examples.{name}")
    if name in OUTPUT:  # in whatever order: between shards there is none of what starts together
        assert sorted(out.splitlines()) == sorted(OUTPUT[name].splitlines())
    else:
        assert re.fullmatch(PATTERNS[name], out, re.DOTALL), out


async def test_query_example_sends_its_requests_to_a_nats_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(options=Options(sync_interval="always")) as node:
        await prepare(node)
        monkeypatch.setenv("PERDURE_URL", node.url)
        check_query(await output("examples.query", "--port", "0"))


async def prepare(node: Server) -> None:
    """Make the streams as `perdure nats init --synced` does: then nothing is to be warned of."""
    await make([node.url], {}, replicas=1, shards=None, synced=True)
