"""Flows: graphs of steps, run as workflows."""

from __future__ import annotations

import asyncio

import pytest

from perdure import Continue, Flow, Retry, Skip, step
from perdure.errors import InputRefused, InvalidOption, NameTaken
from perdure.testing import Environment

ran: list[str] = []
failing: dict[str, int] = {}


def note(name: str) -> None:
    ran.append(name)
    if failing.get(name, 0):
        failing[name] -= 1
        raise ConnectionError(name)


@step(retry=Retry(max_attempts=1))
async def users(day: str) -> list[int]:
    note("users")
    return [len(day)]


@step(retry=Retry(max_attempts=1))
async def orders(day: str) -> dict[str, int]:
    note("orders")
    return {day: 1}


@step
async def report(users: list[int], orders: dict[str, int], *, title: str = "") -> str:
    note("report")
    return f"{title}{users} {orders}"


@pytest.fixture(autouse=True)
def _clean() -> None:
    ran.clear()
    failing.clear()


def graph(**rules: Skip | Retry | Continue[list[int]]) -> Flow:
    flow = Flow("daily", max_workers=2)
    day = flow.input("day", str)
    some_users = flow.add(users.bind(day), on_error=rules.get("users"))
    some_orders = flow.add(orders.bind(day))
    flow.returns(flow.add(report.bind(users=some_users, orders=some_orders, title="r: ")))
    return flow


async def run(flow: Flow, inputs: dict[str, object] | None = None) -> object:
    async with Environment(flow) as env:
        return await asyncio.wait_for(env.client.run(flow, inputs or {"day": "mon"}), 60)


async def test_edges_are_arguments() -> None:
    assert await run(graph()) == "r: [3] {'mon': 1}"
    assert sorted(ran) == ["orders", "report", "users"]


async def test_failure_stops_the_flow() -> None:
    failing["users"] = 1
    with pytest.raises(ConnectionError, match="users"):
        await run(graph())
    assert "report" not in ran


async def test_default_takes_the_place_of_a_failure() -> None:
    failing["users"] = 1
    assert await run(graph(users=Continue(default=[]))) == "r: [] {'mon': 1}"


async def test_skipped_node_takes_along_what_needs_it() -> None:
    failing["users"] = 1
    assert await run(graph(users=Skip())) is None
    assert "report" not in ran


async def test_retry_rule_tries_again() -> None:
    failing["users"] = 2
    assert await run(graph(users=Retry(max_attempts=3))) == "r: [3] {'mon': 1}"
    assert ran.count("users") == 3


async def test_serialized_flow_runs_alike() -> None:
    flow = graph(users=Continue(default=[7]))
    same = Flow.deserialize(flow.serialize(), steps=[users, orders, report])
    assert same.serialize()[0] == flow.serialize()[0]
    assert same.serialize()[1]["nodes"] == flow.serialize()[1]["nodes"]
    failing["users"] = 1
    assert await run(same) == "r: [7] {'mon': 1}"


async def test_sequential_flow_runs_in_the_order_added_and_returns_all_results() -> None:
    flow = Flow("in-order", strategy="sequential")
    day = flow.input("day", str)
    flow.add(orders.bind(day))
    flow.add(users.bind(day), name="people")
    assert await run(flow) == {"orders": {"mon": 1}, "people": [3]}
    assert ran == ["orders", "users"]


async def test_wrong_inputs_are_refused_by_name() -> None:
    with pytest.raises(InputRefused, match="day"):
        await run(graph(), {"dya": "mon"})


def test_mistakes_in_a_graph_are_refused() -> None:
    flow = Flow("mistakes")
    day = flow.input("day", str)
    with pytest.raises(NameTaken):
        flow.input("day", str)
    with pytest.raises(InvalidOption, match="another flow"):
        flow.add(users.bind(Flow("other").input("elsewhere", str)))
    with pytest.raises(InvalidOption, match="node"):
        flow.returns("day")
    with pytest.raises(InvalidOption, match="strategy"):
        Flow("x", strategy="eager")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="calls 'users', which is not there"):
        Flow.deserialize(graph().serialize(), steps=[orders, report])
    with pytest.raises(InvalidOption, match="serialize"):
        Flow.deserialize([1, 2], steps=[])
    assert day is not None
