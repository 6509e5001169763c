"""What is rare but must stay as it is; `# error` as in bad.py, `# error[pyright]` and `# error[mypy]` where they differ."""
from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Literal, TypeVar, assert_type, overload

from perdure import Awakeable, Call, Client, Context, Continue, Flow, Group, Retry, Workflow, step, workflow

T = TypeVar("T")

# --- heterogeneous groups: mypy joins what pyright unites
@workflow
async def a(n: int) -> int: return 1
@workflow
async def b(n: str) -> str: return ""
async def heterogeneous(client: Client) -> None:
    group = await client.run_all([a.bind(1), b.bind("x")])
    assert_type(group, Group[int | str])      # error[mypy]
    assert_type(await client.run_all((a.bind(1), b.bind("x"))), Group[int | str])  # error[mypy]
    calls: list[Call[int] | Call[str]] = [a.bind(1), b.bind("x")]
    assert_type(await client.run_all(calls), Group[int | str])  # error[mypy]
    for outcome in group.results:
        if outcome.status == "completed":
            assert_type(outcome.value, int | str)  # error[mypy]

# --- generics, overloads, partial, lambda, class, callable object, builtin, async generator
@step
async def first(xs: list[T]) -> T: return xs[0]
@overload
def either(x: int) -> int: ...
@overload
def either(x: str) -> str: ...
def either(x: int | str) -> int | str: return x
class Thing:
    def __init__(self, n: int) -> None: ...
    async def __call__(self, n: int) -> str: return ""
@step
async def ticks(n: int) -> AsyncIterator[int]:
    yield 1
overloaded = step(either)
squared = step(functools.partial(pow, exp=2))
plus_one = step(lambda x: x + 1)              # error[pyright]
made = step(Thing)
called = step(Thing(3))
size = step(len)
async def use() -> None:
    assert_type(await first([1]), int)
    assert_type(await overloaded(1), int)
    await overloaded("x")                     # error
    await squared(3)
    await plus_one(1)
    assert_type(await made(3), Thing)
    assert_type(await called(3), str)
    assert_type(await size([1]), int)
    assert_type(await ticks(1), AsyncIterator[int])

# --- types of state and awakeables: unions, Literal, tuples
async def state(ctx: Context) -> None:
    assert_type(ctx.get("x", int | None), int | None)
    assert_type(ctx.get("x", int | str, default=0), int | str)
    assert_type(ctx.get("x", dict[str, list[int]], default={}), dict[str, list[int]])
    assert_type(ctx.get("x", tuple[int, ...], default=()), tuple[int, ...])
    assert_type(ctx.awakeable(str | None), Awakeable[str | None])
    assert_type(ctx.awakeable(Literal["yes", "no"]), Awakeable[Literal["yes", "no"]])
    assert_type(workflow.ref("x", takes=int | None, returns=list[str]), Workflow[[int | None], list[str]])

# --- flows: for a checker a node is its result
@step
async def fetch_users(day: str) -> list[int]: return []
@step
async def fetch_orders(day: str) -> dict[str, int]: return {}
@step
async def report(users: list[int], orders: dict[str, int], *, title: str = "") -> str: return ""
flow = Flow("report", strategy="concurrent", max_workers=5)
day = flow.input("day", str)
users = flow.add(fetch_users.bind(day), on_error=Continue(default=[]))
orders = flow.add(fetch_orders.bind(day), on_error=Retry(max_attempts=3))
assert_type(day, str)
assert_type(users, list[int])
assert_type(orders, dict[str, int])
assert_type(flow.add(report.bind(users=users, orders=orders)), str)
flow.add(report.bind(users=orders, orders=users))     # error
flow.add(report.bind(users=users))                    # error
async def run_flow(client: Client) -> None:
    await client.run(flow, {"day": "2026"})
    assert_type(flow.using(key="x"), Flow)
