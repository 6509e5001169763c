"""Flows. Everything here must pass pyright strict and mypy --strict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, TypedDict, assert_type

from perdure import (
    Client,
    Context,
    Continue,
    Each,
    Flow,
    Graph,
    Handle,
    Profile,
    Retry,
    Skip,
    Stop,
    flow,
    step,
    workflow,
)


@dataclass
class User:
    name: str
    pages: list[str]


class Split(TypedDict):
    big: list[str]
    small: list[str]


@dataclass
class Totals:
    count: int
    first: User


@step
async def fetch_users(day: date) -> list[User]:
    return []


@step
async def fetch_page(user: User, day: date, *, size: int = 10) -> str:
    return ""


@step
def split(pages: list[str]) -> Split:
    return {"big": [], "small": []}


@step
def total(users: list[User], weight: float = 1) -> Totals:
    raise NotImplementedError


@step
def is_big(pages: list[str]) -> bool:
    return True


@step
async def render(title: str, pages: list[str], extra: dict[str, list[str]] | None = None) -> str:
    return ""


@step
def merge(parts: list[list[str]], by: dict[str, Totals], pair: tuple[str, int]) -> str:
    return ""


@workflow
async def archive(ctx: Context, pages: list[str]) -> int:
    return 1


@workflow
async def keep(pages: list[str]) -> str:
    return ""


# --- the decorated form: inputs are parameters, the result is what is returned
@flow
def pages_of(graph: Graph, users: list[User], day: date) -> list[str]:
    return graph.map(fetch_page.bind(Each(users), day, size=5), concurrency=8, tolerate=2)


@flow(name="daily-report", max_workers=5, on_error=Stop())
def report(graph: Graph, day: date, title: str = "Daily", *, weight: float = 1) -> str:
    users = graph.add(fetch_users.bind(day), on_error=Continue(default=[]))
    assert_type(users, list[User])
    pages = graph.map(fetch_page.bind(Each(users), day), name="page", tolerate=0.1, on_error=Continue(default=""))
    assert_type(pages, list[str])
    again = graph.map(fetch_page.bind(Each(users), Each([day, day])), on_error=Skip())
    totals = graph.add(total.bind(users, weight), on_error=Retry(max_attempts=3))
    assert_type(totals.count, int)  # an attribute of a node is a node
    assert_type(totals.first.pages[0], str)
    parts = graph.add(split.bind(pages))
    assert_type(parts["big"], list[str])  # so is an element
    graph.add(merge.bind([parts["big"], again], {"all": totals}, (title, totals.count)))  # nodes in containers
    where = graph.when(is_big.bind(pages), then=archive.bind(pages), otherwise=keep.bind(pages))
    assert_type(where, int | str)
    maybe = graph.when(graph.add(is_big.bind(again)), then=archive.using(key="archive").bind(again))
    assert_type(maybe, int | None)
    nested = graph.add(pages_of.bind(users, day=day))  # a flow in a flow
    assert_type(nested, list[str])
    each_day = graph.map(archive.bind(Each([parts["big"], parts["small"]])))
    assert_type(each_day, list[int])
    return graph.add(render.bind(title, nested, extra={"again": again}))


@flow
def several(graph: Graph, day: date) -> dict[str, list[User]]:
    users = graph.add(fetch_users.bind(day))
    return {"users": users, "same": users}  # nodes in a container are a result, too


async def run(client: Client) -> None:
    day = date(2026, 11, 20)
    assert_type(await client.run(report, day), str)
    assert_type(await client.run(report, day=day, title="x", weight=2), str)
    assert_type(await client.run(report.using(id="r-1", key="k", strategy="sequential"), day), str)
    assert_type(await client.start(report, day), Handle[str])
    assert_type(await client.run(several, day), dict[str, list[User]])
    assert_type((await client.run_all([report.bind(day) for _ in range(3)])).values(), list[str])
    profile = await client.profile(report, last=500)
    assert_type(profile, Profile)
    print(profile.speedup, profile.nodes["page"].seconds.p95, await client.profile("daily-report"))
    print(report.diagram(), report.dumps())
    loaded = Flow.loads(
        report.dumps(), steps=[fetch_users, fetch_page, split, total, is_big, render, merge, archive, keep, pages_of]
    )
    assert_type(loaded, Flow[[Mapping[str, Any]], Any])
    assert_type(await client.run(loaded, {"day": day}), Any)
    async with client.worker(report, several, loaded, archive, keep):
        pass


@workflow
async def parent(ctx: Context, day: date) -> str:
    return await report(day, title="from a workflow")  # a child


# `workflow.ref` types a flow whose graph is elsewhere, or was loaded
@workflow.ref
async def daily_report(day: date, title: str = "Daily") -> str:
    raise NotImplementedError


async def elsewhere(client: Client) -> None:
    assert_type(await client.run(daily_report, date(2026, 11, 20)), str)


# --- a helper works on both forms
def add_pages(graph: Graph, day: date) -> list[str]:
    return graph.map(fetch_page.bind(Each(graph.add(fetch_users.bind(day))), day))


# --- the builder of today
built = Flow("built", strategy="sequential", max_workers=5)
day = built.input("day", date)
size = built.input("size", int, default=10)
users = built.add(fetch_users.bind(day), on_error=Continue(default=[]))
pages = built.map(fetch_page.bind(Each(users), day, size=size))
pages2 = add_pages(built, day)
for number in range(3):
    built.add(split.bind(pages), name=f"split-{number}")
built.returns(built.add(render.bind("Daily", pages2)))
typed = built.returns(built.add(render.bind("Daily", pages)))
assert_type(built, Flow)
assert_type(built.using(key="x"), Flow)
assert_type(typed, Flow[[Mapping[str, Any]], str])
same = Flow.deserialize(built.serialize(), steps=[fetch_users, fetch_page, render])


def takes_flow(one: Flow) -> Flow:
    return one


async def run_built(client: Client) -> None:
    assert_type(await client.run(built, {"day": date(2026, 11, 20)}), Any)
    assert_type(await client.run(typed, {"day": date(2026, 11, 20)}), str)
    takes_flow(same)
