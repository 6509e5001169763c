"""One real nats-server for these tests, each of which has a namespace of its own on it."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from examples.services.nats_server import Cluster, Server, cluster, server
from perdure.client import Client
from perdure.connect import client_from
from perdure.stores.jetstream import JetStreamStore
from tests.jetstream.liveness import check_liveness, store_of
from tests.jetstream.proxy import Proxy
from tests.scenarios.conftest import MakeLab
from tests.scenarios.engine import Options
from tests.scenarios.fleet import ManyProcesses
from tests.scenarios.lab import JetStreamLab, Lab

Join = Callable[..., Awaitable[JetStreamLab]]

_numbers = itertools.count()


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("nats")) as node:
        yield node


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may kill."""
    folder = tmp_path / "nats"
    folder.mkdir()
    with server(folder) as node:
        yield node


@pytest.fixture
async def way(nats: Server) -> AsyncIterator[Proxy]:
    """A way to the server that a test may cut, stall or slow down."""
    proxy = Proxy(nats.port)
    await proxy.mend()
    yield proxy
    proxy.flow()
    await proxy.cut()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes. Who kills some starts them again."""
    with cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def namespace() -> str:
    return f"test{next(_numbers)}"


@pytest.fixture
def store() -> str:
    return "jetstream"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Scenarios that name the stores they run on run once here: what says "memory" there is left out."""
    here = Path(__file__).parent

    def is_extra(item: pytest.Item) -> bool:
        spec = getattr(item, "callspec", None)
        return here in item.path.parents and spec is not None and spec.params.get("store") == "memory"

    extra = [item for item in items if is_extra(item)]
    if extra:
        config.hook.pytest_deselected(items=extra)
        items[:] = [item for item in items if item not in extra]


@pytest.fixture
async def make_lab(store: str, nats: Server, namespace: str, tmp_path: Path) -> AsyncIterator[MakeLab]:
    """Make a lab with options, up and running, with a lease of one second.

    In the end its processes are killed, and what they leave must all have something that brings it.
    """
    labs: list[JetStreamLab] = []

    async def make(**options: Any) -> Lab:
        folder = tmp_path / f"lab{len(labs)}"
        lab = JetStreamLab(
            folder, msgspec.convert({"lease": 1.0, **options}, Options), nats.url, f"{namespace}x{len(labs)}"
        )
        labs.append(lab)
        await lab.up()
        return lab

    yield make
    for lab in labs:
        await lab.close()
    for lab in labs:
        async with store_of(lab.place) as left:
            await check_liveness(left)


@pytest.fixture
async def join() -> AsyncIterator[Join]:
    """Start one more process on the store of a lab, with the same notes."""
    labs: list[JetStreamLab] = []

    async def one_more(lab: Lab, **options: Any) -> JetStreamLab:
        assert isinstance(lab, JetStreamLab)
        other = lab.beside(**options)
        labs.append(other)
        await other.up()
        return other

    yield one_more
    for each in labs:
        await each.close()


@pytest.fixture
def make_fleet(
    make_lab: MakeLab, join: Callable[..., Awaitable[JetStreamLab]]
) -> Callable[..., Awaitable[ManyProcesses]]:
    """Make a client without workers, and processes with one worker each, which can be killed."""

    async def make(processes: int = 3, **options: Any) -> ManyProcesses:
        client = await make_lab(workers=0, max_concurrent=10, **options)

        async def one_more() -> JetStreamLab:
            return await join(client, workers=1)

        return ManyProcesses(client, [await one_more() for _ in range(processes)], one_more)

    return make


@pytest.fixture
async def lab(make_lab: MakeLab) -> Lab:
    return await make_lab()


@pytest.fixture
async def client(nats: Server, namespace: str) -> AsyncIterator[Client]:
    """A client in this process, for what needs workflows of a test's own."""

    def store() -> JetStreamStore:
        return JetStreamStore([nats.url], namespace=namespace, shards=2)

    async with client_from(store) as connected:
        yield connected


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed, printed, so that a failure can be repeated: `PERDURE_SEED=... pytest`."""
    value = int(os.environ.get("PERDURE_SEED") or random.randrange(2**32))
    print(f"seed of {request.node.name}: {value}")
    return value
