# pyright: reportUnknownMemberType=false
"""Measure the engine on NATS JetStream: throughput, latency, wakes, suspended invocations, beside the bare server.

    python -m benchmarks.jetstream [--rounds 3] [--count 5000] [--only throughput latency wakes suspended long ...]

A nats-server of its own on this machine, four shards; the client is this process, the worker another, as in use. Bare
chains (four dependent guarded publishes each, from the same client library, on as many streams as there are shards, no
engine) run in turn with the engine, since machines are shared: what counts is the median of the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Generator, Iterable
from pathlib import Path
from typing import Any, cast

import nats
import uvloop

from benchmarks.embedded import IN_FLIGHT, in_flight, one_step, three_steps
from examples.services.nats_server import Options, Server, server
from examples.services.workers import workers
from perdure import Client, Context, connect, step, workflow
from perdure.operations.local import store_behind
from perdure.stores.port import Delivery, Wake

SHARDS = 4
PUBLISHES = 4
"""Of one bare chain: as many as a workflow of three steps needs (its start, two frames, the last frame)."""
WAKES = 10_000
SUSPENDED = 100_000
LONG = 10_000
SYNCS = ("2m", "always")
WANTED = {  # what the issue asks for: workflows per second, and their ratio to bare chains
    "2m": (1_500, 0.15),
    "always": (1_000, 0.35),
}


@workflow
async def nap_until(ctx: Context, until: float) -> None:
    await asyncio.sleep(until - ctx.now().timestamp())


@step
async def at() -> float:
    return time.perf_counter()


@workflow
async def many_steps(count: int) -> list[float]:
    """Return how long each step took, with its commit."""
    times = [await at() for _ in range(count + 1)]
    return [after - before for before, after in itertools.pairwise(times)]


@contextlib.contextmanager
def on_server(sync: str, processes: int) -> Generator[tuple[Server, list[int]]]:
    """Run a server, and worker processes for the workflows of this module; yield their process ids too."""
    with server(options=Options(sync_interval=sync)) as node:
        arguments = ("benchmarks.jetstream", "--url", node.url, "--max-concurrent", str(IN_FLIGHT))
        with workers(processes, arguments) if processes else contextlib.nullcontext([]) as running:
            yield node, [each.pid for each in running]


# --- bare chains ------------------------------------------------------------------------------------------------------
async def bare_chains(node: Server, count: int) -> float:
    """Run `count` chains of guarded publishes, IN_FLIGHT at a time; return chains per second."""
    async with await nats.connect(node.url) as raw:
        jetstream = cast("Any", raw).jetstream()
        for shard in range(SHARDS):
            await jetstream.add_stream(name=f"BARE_{shard}", subjects=[f"bare.{shard}.>"])
        numbers = iter(range(count + IN_FLIGHT))

        async def chain(number: int) -> None:
            subject, sequence = f"bare.{number % SHARDS}.{number}", 0
            for _ in range(PUBLISHES):
                headers = {"Nats-Expected-Last-Subject-Sequence": str(sequence)}
                sequence = (await jetstream.publish(subject, b"x" * 200, headers=headers)).seq

        async def lane(these: Iterable[int]) -> None:
            for number in these:
                await chain(number)

        await asyncio.gather(*(chain(number) for number in itertools.islice(numbers, IN_FLIGHT)))  # warm
        began = time.perf_counter()
        await asyncio.gather(*(lane(numbers) for _ in range(IN_FLIGHT)))
        took = time.perf_counter() - began
        for shard in range(SHARDS):
            await jetstream.delete_stream(f"BARE_{shard}")
    return count / took


# --- the engine -------------------------------------------------------------------------------------------------------
async def throughput(rounds: int, count: int) -> None:
    for sync in SYNCS:
        found: list[tuple[float, float]] = []
        for _ in range(rounds):
            with on_server(sync, 1) as (node, _):
                async with connect(node.url) as client:
                    await in_flight(client, three_steps, IN_FLIGHT, int)  # warm
                    engine = await in_flight(client, three_steps, count, int)
            with on_server(sync, 0) as (node, _):
                bare = await bare_chains(node, count)
            found.append((engine, bare))
        wanted, ratio = WANTED[sync]
        engine = statistics.median(engine for engine, _ in found)
        bare = statistics.median(bare for _, bare in found)
        share = statistics.median(engine / bare for engine, bare in found)
        print(f"throughput, sync_interval {sync:>6}: {engine:,.0f} workflows/s (wanted {wanted:,}); ", end="")
        print(f"bare chains {bare:,.0f}/s; ratio {share:.3f} (wanted {ratio})", flush=True)


async def two_workers(rounds: int, count: int) -> None:
    for processes in (1, 2):
        found: list[float] = []
        for _ in range(rounds):
            with on_server("2m", processes) as (node, _):
                async with connect(node.url) as client:
                    await in_flight(client, three_steps, IN_FLIGHT, int)
                    found.append(await in_flight(client, three_steps, count, int))
        print(f"worker processes {processes}: {statistics.median(found):,.0f} workflows/s on {os.cpu_count()} cores")


async def latency(_rounds: int, _count: int) -> None:
    with on_server("2m", 1) as (node, _):
        async with connect(node.url) as client:
            for flow, wanted in ((one_step, " (wanted 4)"), (three_steps, "")):
                times: list[float] = []
                for number in range(500):
                    began = time.perf_counter()
                    await client.run(flow, number)
                    times.append(time.perf_counter() - began)
                p50, p99 = (statistics.quantiles(times[100:], n=100)[n] * 1000 for n in (49, 98))
                print(f"one at a time, {flow.name}: p50 {p50:.2f} ms{wanted}, p99 {p99:.2f} ms", flush=True)


async def wakes(_rounds: int, _count: int) -> None:
    """Let many timers be due at one instant, and see when the wakes come to the worker, here in this process."""
    with on_server("2m", 0) as (node, _):
        async with connect(node.url) as client:
            came: list[float] = []
            await _note_wakes(client, came)
            async with client.worker(nap_until, max_concurrent=IN_FLIGHT):
                until = time.time() + 30
                await asyncio.gather(*(client.start(nap_until, until) for _ in range(WAKES)))
                await _until(client, "suspended", WAKES)
                left = until - time.time()
                await asyncio.sleep(max(left, 0))
                await _until(client, "completed", WAKES)
                ended = time.time() - until
    late = sorted(at - until for at in came if at >= until - 1)
    early = sum(each < 0 for each in late)
    print(
        f"{WAKES:,} wakes due at one instant ({left:.0f} s after the last was set): {len(late):,} came, {early} early, "
    )
    print(f"  half within {late[len(late) // 2]:.2f} s, the last within {late[-1]:.2f} s (wanted 1); ", end="")
    print(f"all invocations had ended after {ended:.2f} s", flush=True)


async def _note_wakes(client: Client, came: list[float]) -> None:
    store = cast("Any", await store_behind(client.operations))
    subscribe = store.subscribe

    def noting(handlers: Any, deliver: Callable[[Delivery], None], **more: Any) -> Any:
        def noted(delivery: Delivery) -> None:
            if isinstance(delivery.item, Wake):
                came.append(time.time())
            deliver(delivery)

        return subscribe(handlers, noted, **more)

    store.subscribe = noting


async def suspended(_rounds: int, _count: int) -> None:
    """See how the worker's memory grows with the number of suspended invocations."""
    with on_server("2m", 1) as (node, (pid,)):
        async with connect(node.url) as client:
            until = time.time() + 86_400
            for share in (5, 10, 20, 50, 100):
                now = (await client.stats()).total
                wanted = SUSPENDED * share // 100
                for begin in range(now, wanted, IN_FLIGHT):
                    batch = min(IN_FLIGHT, wanted - begin)
                    await asyncio.gather(*(client.start(nap_until, until) for _ in range(batch)))
                await _until(client, "suspended", wanted)
                memory = f"worker {_resident_mb(pid)} MB, server {_resident_mb(node.pid)} MB"
                print(f"suspended {wanted:,}: {memory}", flush=True)


async def long(_rounds: int, _count: int) -> None:
    """See what a step costs at the beginning and at the end of a long invocation, and what it takes to read it."""
    with on_server("2m", 1) as (node, _):
        async with connect(node.url) as client:
            handle = await client.start(many_steps, LONG)
            times = await handle.result()
            store = cast("Any", await store_behind(client.operations))
            began = time.perf_counter()
            frames = len((await store.journal(handle.id)).frames)
            took = time.perf_counter() - began
            layout = store.layout
            left = await store.wire.count(layout.stream("J", layout.partition(handle.id)), layout.journal(handle.id))
    first, last = (statistics.median(times[at : at + 1_000]) * 1000 for at in (0, LONG - 1_000))
    print(
        f"{LONG:,} steps in one invocation: {first:.2f} ms a step among the first 1,000, {last:.2f} among the last; ",
        end="",
    )
    print(f"{frames:,} frames are {left:,} messages, read in {took * 1000:.0f} ms", flush=True)


async def _until(client: Client, status: Any, count: int) -> None:
    while (await client.stats()).by_status.get(status, 0) < count:  # noqa: ASYNC110  other processes are polled
        await asyncio.sleep(0.25)


def _resident_mb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) // 1024


MEASURES: dict[str, Callable[[int, int], Awaitable[None]]] = {
    "throughput": throughput,
    "latency": latency,
    "two-workers": two_workers,
    "wakes": wakes,
    "suspended": suspended,
    "long": long,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the engine on NATS JetStream.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=5_000, help="workflows of a round")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=[*MEASURES])
    options = parser.parse_args()
    for name in options.only:
        uvloop.run(cast("Any", MEASURES[name])(options.rounds, options.count))


if __name__ == "__main__":
    main()
