"""A worker raises the collector's first threshold while it runs, and leaves the program's own setting alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from perdure import connect, workflow
from perdure.runtime.worker import COLLECTOR_THRESHOLD


@workflow
async def nothing() -> None: ...


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    found = gc.get_threshold()
    yield
    gc.set_threshold(*found)


@pytest.mark.parametrize("own", [700, COLLECTOR_THRESHOLD * 5, 0])
async def test_threshold_is_put_back_however_many_workers_ran(own: int) -> None:
    gc.set_threshold(own, 10, 10)
    async with connect("memory:") as client:
        first, second = client.worker(nothing), client.worker(nothing)
        async with first, second:
            assert gc.get_threshold()[0] == (COLLECTOR_THRESHOLD if 0 < own < COLLECTOR_THRESHOLD else own)
    assert gc.get_threshold() == (own, 10, 10)
