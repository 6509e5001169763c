"""The fixture `lab`: every scenario runs on every store."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure import connect
from perdure.client import Client
from tests.scenarios.engine import Options
from tests.scenarios.fleet import Fleet, OneProcess
from tests.scenarios.lab import Lab, MemoryLab, SqliteLab

kept_turns_only = pytest.mark.parametrize("store", ["memory", "sqlite"], indirect=True)
"""For tests that count replays, or what bodies themselves leave behind."""

MakeLab = Callable[..., Awaitable[Lab]]


@pytest.fixture(params=["memory", "memory, always replayed", "sqlite"])
def store(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def make_lab(store: str, tmp_path: Path) -> AsyncIterator[MakeLab]:
    """Make a lab with options, up and running."""
    labs: list[Lab] = []

    async def make(**options: Any) -> Lab:
        folder = tmp_path / f"lab{len(labs)}"
        kind = SqliteLab if store == "sqlite" else MemoryLab
        replayed = {"always_replay": True} if store == "memory, always replayed" else {}
        lab = kind(folder, msgspec.convert({**replayed, **options}, Options))
        labs.append(lab)
        await lab.up()
        return lab

    yield make
    for lab in labs:
        await lab.close()


@pytest.fixture
async def lab(make_lab: MakeLab) -> Lab:
    return await make_lab()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """A client in this process, for what needs workflows of a test's own."""
    async with connect(f"sqlite:{tmp_path}/db") as connected:
        yield connected


@pytest.fixture
def make_fleet(make_lab: MakeLab) -> Callable[..., Awaitable[Fleet]]:
    """Make a lab whose workers can be killed one by one."""

    async def make(**options: Any) -> Fleet:
        return OneProcess(await make_lab(workers=2, max_concurrent=10, **options))

    return make


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed, printed, so that a failure can be repeated: `PERDURE_SEED=... pytest`."""
    value = int(os.environ.get("PERDURE_SEED") or random.randrange(2**32))
    print(f"seed of {request.node.name}: {value}")
    return value
