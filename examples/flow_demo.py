"""A flow of fetchers, processors, an aggregator and a formatter: concurrent and sequential, with an error, as data.

python -m examples.flow_demo
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from time import perf_counter

from examples import stage
from perdure import Client, Continue, Flow, Graph, Retry, connect, flow, step

FLOOR = {"concurrent": 0.25, "sequential": 0.65}
"""Seconds that the fetchers take: the slowest of them, and all of them."""


@step
async def fetch_users(day: str) -> list[str]:
    await asyncio.sleep(0.2)
    return ["ada", "bob"]


@step
async def fetch_orders(day: str) -> dict[str, int]:
    await asyncio.sleep(0.2)
    return {"ada": 3, "bob": 1}


@step(retry=Retry(max_attempts=1))
async def fetch_weather(day: str, *, works: bool = True) -> str:
    await asyncio.sleep(0.25)
    if not works:
        raise ConnectionError("the weather service is down")
    return "sunny"


@step
async def process_users(users: list[str]) -> list[str]:
    return sorted(user.title() for user in users)


@step
async def process_orders(orders: dict[str, int]) -> int:
    return sum(orders.values())


@step
async def aggregate(users: list[str], orders: int, weather: str) -> dict[str, str]:
    return {"users": ", ".join(users), "orders": str(orders), "weather": weather}


@step
async def render(title: str, report: dict[str, str]) -> str:
    return f"{title}: " + "; ".join(f"{name} {value}" for name, value in report.items())


@flow(max_workers=5)
def daily(graph: Graph, day: str, *, works: bool = True) -> str:
    users = graph.add(process_users.bind(graph.add(fetch_users.bind(day))))
    orders = graph.add(process_orders.bind(graph.add(fetch_orders.bind(day))))
    weather = graph.add(fetch_weather.bind(day, works=works), on_error=Continue(default="unknown"))
    report = graph.add(aggregate.bind(users, orders, weather))
    return graph.add(render.bind("Report", report))


STEPS = [fetch_users, fetch_orders, fetch_weather, process_users, process_orders, aggregate, render]


async def timed(client: Client, title: str, strategy: str, run: Flow[..., str], *, works: bool = True) -> float:
    began = perf_counter()
    result = await client.run(run, "2026-11-20", works=works)
    took = perf_counter() - began
    print(f"  {title}: {result}\n  ⏱️  {took:.2f} s (the fetchers alone take {FLOOR[strategy]} s)")
    return took


@asynccontextmanager
async def serving(url: str, *flows: Flow[..., object]) -> AsyncGenerator[Client]:
    async with connect(url) as client, client.worker(*flows):
        yield client


async def main() -> None:
    stage.parser(__doc__).parse_args()
    logging.disable()  # the failed attempt
    with stage.store() as url:
        async with serving(url, daily) as client:
            print("📋 TEST 1: Concurrent execution")
            concurrent = await timed(client, "concurrent", "concurrent", daily)
            print("📋 TEST 2: Sequential, by an option of the start")
            sequential = await timed(client, "sequential", "sequential", daily.using(strategy="sequential"))
            print(f"  🚀 {sequential / concurrent:.1f} times as fast")
            print("📋 TEST 3: A fetcher fails")
            await timed(client, "with a default", "concurrent", daily, works=False)
            print("📋 TEST 4: As data, and back")
            text = daily.dumps()
            same = Flow.loads(text, steps=STEPS)
            print(f"  {len(text.splitlines())} lines of JSON, {len(same.plan.pieces)} nodes")
            profile = await client.profile(daily)
            slowest = max(profile.nodes, key=lambda name: profile.nodes[name].critical_share)
            print(f"📊 Of {profile.runs} runs, {slowest} is most of the critical path")
        async with serving(url, same) as client:
            print(f"  {await client.run(same, {'day': '2026-11-20'})}")
    print(daily.diagram(), end="")


if __name__ == "__main__":
    asyncio.run(main())
