"""Every line marked `# error` must be reported by both checkers, and no other line."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TypedDict

from perdure import Client, Continue, Each, Flow, Graph, flow, step, workflow


@dataclass
class User:
    name: str


class Split(TypedDict):
    big: list[str]


@step
async def fetch_users(day: date) -> list[User]:
    return []


@step
async def fetch_page(user: User, day: date, *, size: int = 10) -> str:
    return ""


@step
def split(pages: list[str]) -> Split:
    return {"big": []}


@step
def first(users: list[User]) -> User:
    return users[0]


@step
def is_big(pages: list[str]) -> bool:
    return True


@step
async def render(title: str, pages: list[str]) -> str:
    return ""


@workflow
async def archive(pages: list[str]) -> int:
    return 1


@flow  # error
def no_graph(day: date) -> str:
    return ""


@flow(workers=3)  # error
def unknown_option(graph: Graph, day: date) -> str:
    return ""


@flow(strategy="parallel")  # error
def unknown_strategy(graph: Graph, day: date) -> str:
    return ""


@flow
def wrong_result(graph: Graph, day: date) -> str:
    return graph.add(fetch_users.bind(day))  # error


@flow
def report(graph: Graph, day: date, *, title: str = "") -> str:
    graph.add(fetch_users.bind("2026"))  # error
    graph.add(fetch_users.bind())  # error
    graph.add(fetch_users)  # error
    graph.add(fetch_users(day))  # error
    users = graph.add(fetch_users.bind(day))
    graph.add(fetch_users.bind(day), on_error="skip")  # error
    graph.add(fetch_users.bind(users))  # error
    graph.map(fetch_page.bind(users, day))  # error
    graph.map(fetch_page.bind(Each(day), day))  # error
    graph.map(fetch_page.bind(Each(["x"]), day))  # error
    graph.map(fetch_page.bind(Each(users), day), max_workers=3)  # error
    graph.map(fetch_page.bind(Each(users), day), tolerate="2")  # error
    pages = graph.map(fetch_page.bind(Each(users), day))
    numbers: list[int] = graph.map(fetch_page.bind(Each(users), day))  # error
    graph.add(render.bind(title, pages[0]))  # error
    graph.add(render.bind(title, [users]))  # error
    parts = graph.add(split.bind(pages))
    graph.add(render.bind(title, parts["small"]))  # error
    graph.add(render.bind(title, parts["big"][0]))  # error
    graph.add(render.bind(graph.add(first.bind(users)).age, pages))  # error
    graph.when(users, then=archive.bind(pages))  # error
    graph.when(render.bind(title, pages), then=archive.bind(pages))  # error
    graph.when(is_big.bind(pages), then=pages)  # error
    graph.when(is_big.bind(pages))  # error
    graph.when(is_big.bind(pages), then=archive.bind(pages), els=archive.bind(pages))  # error
    where = graph.when(is_big.bind(pages), then=archive.bind(pages))
    count: int = where  # error
    both = graph.when(is_big.bind(pages), then=archive.bind(pages), otherwise=render.bind(title, pages))
    text: str = both  # error
    graph.input("x", int)  # error
    graph.add(report.bind(day, titel="x"))  # error
    print(numbers, count, text)
    return graph.add(render.bind(title, pages))


built = Flow("built", worker=3)  # error
built = Flow("built")
day = built.input("day", date)
built.add(fetch_users.bind(built.input("n", int)))  # error
built.add(fetch_users.bind(day), on_error=Continue())  # error
typed = built.returns(built.add(fetch_users.bind(day)))


async def run(client: Client) -> None:
    await client.run(report)  # error
    await client.run(report, "2026")  # error
    await client.run(report, {"day": date(2026, 1, 1)})  # error
    await client.run(report, day=date(2026, 1, 1), titel="x")  # error
    await client.run(report, date(2026, 1, 1), "title")  # error
    number: int = await client.run(report, date(2026, 1, 1))  # error
    text: str = await client.run(typed, {"day": date(2026, 1, 1)})  # error
    await client.run(built)  # error
    await client.run(built, day=date(2026, 1, 1))  # error
    report.using(strategy="parallel")  # error
    archive.using(strategy="sequential")  # error
    Flow.loads(report.dumps())  # error
    Flow.loads(report.dumps(), steps=["fetch_users"])  # error
    await client.profile(archive)  # error
    client.worker(fetch_users)  # error
    print(number, text)
