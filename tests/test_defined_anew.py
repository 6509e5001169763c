"""A workflow defined anew, in a notebook or by a reload, is never served or started beside the old code in silence."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from perdure import Workflow, connect, workflow
from perdure.errors import NameTaken

pytestmark = pytest.mark.limit(120)


def old(version: int = 1) -> Workflow[[], int]:
    @workflow
    async def hello() -> int:
        return version

    return hello


def new() -> Workflow[[], str]:
    @workflow
    async def hello() -> str:
        return "new"

    return hello


async def test_worker_with_other_code_by_the_same_name_is_refused_while_one_runs() -> None:
    async with connect("memory:") as client, client.worker(old()):
        with pytest.raises(
            NameTaken, match=r"serves workflow 'hello' with other code: .*test_defined_anew\.py:"
        ) as raised:
            async with client.worker(new()):
                pass
        assert raised.value.name == "hello"


async def test_start_of_the_new_code_is_refused_while_a_worker_runs_the_old() -> None:
    async with connect("memory:") as client, client.worker(old()):
        for call in (client.run, client.start):
            with pytest.raises(NameTaken, match="stop that worker first"):
                await call(new())
        assert (await client.stats()).total == 0


async def test_new_code_is_served_when_the_old_worker_has_stopped() -> None:
    async with connect("memory:") as client:
        async with client.worker(old()):
            assert await client.run(old()) == 1
        async with client.worker(new()):
            assert await client.run(new()) == "new"


async def test_same_code_may_be_served_twice_by_reference_by_name_and_with_options() -> None:
    async with connect("memory:") as client, client.worker(old()), client.worker(old()):
        assert await client.run(old()) == 1
        assert await client.run(old().using(id="chosen")) == 1
        assert await client.run(workflow.ref("hello")) == 1


async def test_refused_worker_leaves_the_running_one_as_it_was() -> None:
    served: Any = old()
    async with connect("memory:") as client, client.worker(served):
        other = client.worker(new())
        for _ in range(2):
            with pytest.raises(NameTaken):
                await other.__aenter__()
        assert await client.run(served) == 1


async def test_older_name_of_a_workflow_is_no_other_code() -> None:
    @workflow(name="renamed", aliases=["hello"])
    async def renamed() -> int:
        return 7

    async with connect("memory:") as client, client.worker(renamed):
        assert await client.run(old()) == 7


async def test_partial_of_a_function_is_other_code_than_another_partial() -> None:
    async def add(n: int, m: int) -> int:
        return n + m

    make: Any = workflow(name="add")
    one, two = make(functools.partial(add, 1)), make(functools.partial(add, 2))
    async with connect("memory:") as client, client.worker(one):
        with pytest.raises(NameTaken):
            await client.run(two, 1)
        assert await client.run(one, 1) == 2
