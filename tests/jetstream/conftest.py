"""One real nats-server for these tests, each of which has a namespace of its own on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jetstream.server import Server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may kill."""
    with Server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def namespace() -> str:
    return f"test{next(_numbers)}"
