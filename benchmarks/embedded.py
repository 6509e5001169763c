"""Measure the embedded engine: throughput, latency, long invocations, gRPC, beside what the disk allows.

    python -m benchmarks.embedded [--ceiling PATH/TO/ceiling_sqlite.py] [--rounds 5] [--only throughput ...]

Everything goes through the public client with its default settings, on SQLite with synchronous=FULL in a temporary
folder. The ceiling (independent chains of four dependent commits, no engine) runs in turn with the engine in one run,
in processes of their own, since machines are shared: what counts is the median of the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from examples.services.hello_pb2 import HelloRequest
from examples.services.hello_pb2_grpc import HelloServiceStub
from examples.services.process import service
from perdure import Client, Context, Workflow, connect, step, workflow

CEILING = os.path.join(os.path.dirname(__file__), "..", "..", "shared", "bench", "ceiling_sqlite.py")
IN_FLIGHT = 500


@step
async def first(number: int) -> int:
    return number + 1


@step
async def second(number: int) -> int:
    return number + 1


@step
async def third(number: int) -> int:
    return number + 1


@workflow
async def one_step(number: int) -> int:
    return await first(number)


@workflow
async def three_steps(number: int) -> int:
    return await third(await second(await first(number)))


@workflow
async def many_steps(count: int) -> int:
    number = 0
    for _ in range(count):
        number = await first(number)
    return number


@workflow
async def three_calls(ctx: Context, name: str) -> str:
    hello = ctx.stub(HelloServiceStub)
    text = ""
    for greeting in ("User", "Async", "Confirm"):
        reply = await hello.SayHello(HelloRequest(name=f"{greeting}:{name}"))
        text = reply.message
    return text


@asynccontextmanager
async def engine(*workflows: Workflow[..., Any], services: dict[str, str] | None = None) -> AsyncGenerator[Client]:
    """Open a new store in a temporary folder, with a worker."""
    with tempfile.TemporaryDirectory() as folder:
        async with connect(f"sqlite:{folder}/bench.db") as client, client.worker(*workflows, services=services):
            yield client


async def in_flight(client: Client, flow: Workflow[..., Any], count: int, argument: Callable[[int], Any]) -> float:
    """Run `count` workflows, IN_FLIGHT at a time; return workflows per second."""
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await client.run(flow, argument(number))

    started = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
    return count / (time.perf_counter() - started)


async def throughput() -> float:
    async with engine(three_steps) as client:
        await in_flight(client, three_steps, IN_FLIGHT, int)  # warm
        return await in_flight(client, three_steps, 5_000, int)


async def latency() -> tuple[float, float]:
    """Return the p50 of one step and of three, in milliseconds, one at a time."""
    async with engine(one_step, three_steps) as client:
        medians: list[float] = []
        for flow in (one_step, three_steps):
            times: list[float] = []
            for number in range(300):
                started = time.perf_counter()
                await client.run(flow, number)
                times.append(time.perf_counter() - started)
            medians.append(statistics.median(times[50:]) * 1000)
        return medians[0], medians[1]


async def long_invocation() -> tuple[float, float]:
    """Return microseconds per step of an invocation of 1,000 steps and of one of 10,000."""
    async with engine(many_steps) as client:
        costs: list[float] = []
        for count in (1_000, 10_000):
            started = time.perf_counter()
            await client.run(many_steps, count)
            costs.append((time.perf_counter() - started) / count * 1e6)
        return costs[0], costs[1]


@workflow
async def increment(ctx: Context, number: int) -> int:
    """Count in the state of the key."""
    count = ctx.get("count", int, default=0) + 1
    ctx.set("count", count)
    return count


async def one_key() -> float:
    """Return increments of one key per second."""
    async with engine(increment) as client:
        await client.run(increment.using(key="counter"), 0)
        rate = await in_flight(client, increment.using(key="counter"), 3_000, int)
        assert await client.state("counter") == {"count": 3_001}
        return rate


async def grpc_calls() -> float:
    services = service("examples.services.hello")
    async with services as address, engine(three_calls, services={"HelloService": address}) as client:
        await in_flight(client, three_calls, 200, str)
        return await in_flight(client, three_calls, 3_000, str)


async def bare_calls() -> float:
    """Make the same calls without Perdure; return threes of calls per second."""
    async with service("examples.services.hello") as address, grpc.aio.insecure_channel(address) as channel:
        hello = HelloServiceStub(channel)
        numbers = iter(range(3_000))

        async def lane() -> None:
            for number in numbers:
                for greeting in ("User", "Async", "Confirm"):
                    await hello.SayHello(HelloRequest(name=f"{greeting}:{number}"))

        started = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
        return 3_000 / (time.perf_counter() - started)


def run(measurement: Callable[[], Awaitable[Any]]) -> Any:
    """Run one measurement on uvloop, as the command line does, where it exists."""
    try:
        import uvloop  # noqa: PLC0415  not everywhere
    except ImportError:
        return asyncio.run(measurement())  # type: ignore[arg-type]
    return uvloop.run(measurement())  # type: ignore[arg-type]


def ceiling(path: str) -> float:
    """Run the ceiling in a process of its own; return chains per second."""
    command = [sys.executable, path, "--chains", "5000", "--concurrency", str(IN_FLIGHT)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.match(r"(\d+) chains/s", printed)
    assert found is not None, printed
    return float(found[1])


def in_own_process(name: str) -> float:
    """Run one measurement of this file in a process of its own; return the number it prints."""
    command = [sys.executable, "-m", "benchmarks.embedded", "--measure", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def report_throughput(rounds: int, path: str) -> None:
    ratios: list[float] = []
    for number in range(rounds):
        ours, most = in_own_process("throughput"), ceiling(path)
        ratios.append(ours / most)
        print(f"  round {number + 1}: {ours:6.0f} workflows/s, ceiling {most:6.0f} chains/s, ratio {ours / most:.3f}")
    print(f"three steps, {IN_FLIGHT} in flight: median ratio {statistics.median(ratios):.3f} (bar 0.15, aim 0.20)")


def report_latency() -> None:
    one, three = run(latency)
    print(f"one at a time: p50 of one step {one:.2f} ms (bar 1.5), of three {three:.2f} ms (bar 3)")


def report_long() -> None:
    short, long = run(long_invocation)
    print(f"one invocation: {short:.0f} us a step at 1,000, {long:.0f} at 10,000, ratio {long / short:.2f} (bar 1.3)")


def report_key() -> None:
    print(f"one key: {run(one_key):.0f} increments/s, {IN_FLIGHT} waiting for it (bar 500)")


def report_grpc(rounds: int) -> None:
    pairs = [(in_own_process("grpc_calls"), in_own_process("bare_calls")) for _ in range(rounds)]
    for number, (ours, bare) in enumerate(pairs, 1):
        print(f"  round {number}: {ours:5.0f} workflows/s, bare grpc.aio {bare:5.0f}, ratio {ours / bare:.2f}")
    rate, ratio = (statistics.median(each) for each in zip(*((o, o / b) for o, b in pairs), strict=True))
    print(f"three gRPC calls each, {IN_FLIGHT} in flight: median {rate:.0f} workflows/s (bar 1,000), ratio {ratio:.2f}")


MEASURED = {"throughput": throughput, "grpc_calls": grpc_calls, "bare_calls": bare_calls}


def main() -> None:
    """Parse the options and print the report."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--ceiling", default=CEILING)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", nargs="*", default=["throughput", "latency", "long", "key", "grpc"])
    options.add_argument("--measure", choices=[*MEASURED], help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.measure:
        print(run(MEASURED[chosen.measure]))
        return
    if "throughput" in chosen.only:
        report_throughput(chosen.rounds, chosen.ceiling)
    if "latency" in chosen.only:
        report_latency()
    if "long" in chosen.only:
        report_long()
    if "key" in chosen.only:
        report_key()
    if "grpc" in chosen.only:
        report_grpc(min(chosen.rounds, 3))


if __name__ == "__main__":
    main()
