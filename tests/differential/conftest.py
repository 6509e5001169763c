"""A seed that a failure prints, and the stores that are compared."""

from __future__ import annotations

import itertools
import logging
import os
import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from examples.services.nats_server import Server, server
from perdure.stores.clock import VirtualClock
from perdure.stores.jetstream import JetStreamStore
from tests.differential.running import Folder, MakeSides, sqlite
from tests.differential.sides import Side, memory

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep what stores log out of the report of a failure: hundreds of them are opened."""
    caplog.set_level(logging.CRITICAL, "perdure")


@pytest.fixture
def seed() -> int:
    """The first seed, another one in each run: a failure prints the command that repeats it."""
    return int(os.environ.get("PERDURE_SEED") or random.randrange(2**32))


@pytest.fixture
def count() -> int | None:
    """How many sequences to run: `PERDURE_SEQUENCES=... pytest`. None: as many as the suite runs."""
    named = os.environ.get("PERDURE_SEQUENCES")
    return int(named) if named else None


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("nats")) as node:
        yield node


@pytest.fixture
def embedded() -> MakeSides:
    """Memory and SQLite, on one virtual clock."""

    @contextmanager
    def sides() -> Generator[list[Side]]:
        clock = VirtualClock()
        with Folder() as folder:
            yield [memory(clock), sqlite(folder, clock)]

    return sides


@pytest.fixture
def all_three(nats: Server) -> MakeSides:
    """All stores, on the machine's clock."""

    @contextmanager
    def sides() -> Generator[list[Side]]:
        namespace = f"differential{next(_numbers)}"
        with Folder() as folder:
            # One shard: starts have an order in a shard, and not between shards.
            yield [
                memory(None),
                sqlite(folder, None),
                Side("jetstream", lambda _: JetStreamStore([nats.url], namespace=namespace, shards=1), is_local=False),
            ]

    return sides
