"""Show that the engine carries what it must: many suspended invocations, many timers, a sweep of old ones.

    python -m benchmarks.scale [--only suspended reopened timers line sweep] [--stores sqlite memory jetstream]
                               [--count 100000]

Each part runs in a process of its own, through the public client with default settings (SQLite with synchronous=FULL,
in a temporary folder; a nats-server of its own), and prints what it measured beside its bar. The exit status is 1 if a
bar is missed. Without `--stores`, the embedded ones are measured.

* suspended: invocations that each wait for an awakeable, in one serving process, with nobody there who waits for them.
  Resident memory may have grown by 100 MB ten seconds after the last suspension, on SQLite (the memory store keeps the
  journals themselves there); resolving all of them, until the last has ended, may take 60 s.
* reopened: a process that finds as many of them when it opens the file, and resolves them.
* timers: 10,000 invocations that wake at one instant, and 1,000 that sleep 0 to 1,000 ms: all do, and none early.
* line: as many wait for one key whose holder is suspended. They take no memory of the worker to speak of, and when the
  holder ends they run one at a time, in the order of acceptance, and each once.
* sweep: as many settled invocations are purged while others run. What commits meanwhile is not held up, and the space
  in the file is used again.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

from benchmarks.embedded import run
from examples.services.nats_server import server
from perdure import Client, Context, connect, step, workflow
from perdure.core.journal import Status

COUNT = 100_000
IN_FLIGHT = 500
"""Requests that the client has open at a time."""
CALM_SECONDS = 10.0
"""Between the last suspension and the look at memory."""
GROWTH_LIMIT_MB = 100.0
RESOLVE_LIMIT_SECONDS = 60.0
WAKES = 10_000
SLEEPS = 1_000
SLEEP_LIMIT_SECONDS = 1.0
LATE_LIMIT_SECONDS = 30.0
"""How late the last of `WAKES` may be: each is a replay and a step with a commit of its own."""
SWEEP_LATENCY_LIMIT_MS = 50.0
"""How long a workflow of one step may take during a sweep, 99 times of 100."""
FILE_GROWTH_LIMIT = 1.05
"""How much larger a file may be that was filled, purged and filled again to nine tenths."""

handed_out: list[IO[str]] = []
"""Where the step writes the ids of awakeables, which a real one would send to somebody."""
late: list[float] = []


@step
async def hand_out(id: str) -> None:
    handed_out[0].write(f"{id}\n")


@workflow
async def approval(ctx: Context) -> bool:
    promise = ctx.awakeable(bool)
    await hand_out(promise.id)
    return await promise


@step
async def note_lateness(due: float) -> None:
    late.append(time.time() - due)


@workflow
async def wakes_at(ctx: Context, due: float) -> None:
    await asyncio.sleep(due - ctx.now().timestamp())
    await note_lateness(due)


@workflow
async def sleeps(ctx: Context, seconds: float) -> None:
    due = ctx.now().timestamp() + seconds
    await asyncio.sleep(seconds)
    await note_lateness(due)


@workflow
async def holds(ctx: Context) -> None:
    promise = ctx.awakeable(bool)
    await hand_out(promise.id)
    await promise


@workflow
async def count_in_key(ctx: Context) -> int:
    count = ctx.get("count", int, default=0) + 1
    ctx.set("count", count)
    return count


@step
async def add_one(number: int) -> int:
    return number + 1


@workflow
async def one_step(number: int) -> int:
    return await add_one(number)


SERVED = (approval, wakes_at, sleeps, holds, count_in_key, one_step)


# --- what parts share -------------------------------------------------------------------------------------------------
def resident_mb(process: int | str = "self") -> float:
    """Return the resident memory of a process; where the system does not say, the most that this one ever had."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 1e6


async def in_lanes(items: Iterable[Any], do: Callable[[Any], Awaitable[Any]]) -> float:
    """Do something with each item, IN_FLIGHT at a time; return the seconds it took."""
    left = iter(items)

    async def lane() -> None:
        for item in left:
            await do(item)

    started = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
    return time.perf_counter() - started


async def until_all_are(client: Client, status: Status, count: int) -> None:
    while (await client.stats()).by_status.get(status, 0) < count:  # noqa: ASYNC110  nothing pushes a count
        await asyncio.sleep(0.2)


@asynccontextmanager
async def serving(url: str, ids: Path, mode: str) -> AsyncGenerator[Client]:
    """Open a store with a worker of all workflows here."""
    with ids.open(mode) as file:
        handed_out[:] = [file]
        async with connect(url) as client, client.worker(*SERVED):
            yield client


async def resolve_all(client: Client, ids: Path, count: int) -> dict[str, float]:
    started, worked = time.perf_counter(), time.process_time()
    with ids.open() as file:
        await in_lanes((line.strip() for line in file), lambda id: client.resolve(id, True))
    await until_all_are(client, "completed", count)
    passed, used = time.perf_counter() - started, time.process_time() - worked
    return {"resolved in s": passed, "resolved with CPU time of s": used}


# --- suspended --------------------------------------------------------------------------------------------------------
async def suspended(url: str, folder: Path, count: int) -> dict[str, float]:
    return await suspend(url, folder, count, and_resolve=True)


async def left_suspended(url: str, folder: Path, count: int) -> dict[str, float]:
    return await suspend(url, folder, count, and_resolve=False)


async def suspend(url: str, folder: Path, count: int, *, and_resolve: bool) -> dict[str, float]:
    ids = folder / "ids"
    async with serving(url, ids, "w") as client:
        await in_lanes(range(IN_FLIGHT), lambda _: client.run(one_step, 1))  # warm
        gc.collect()
        before = resident_mb()
        started = time.perf_counter()
        await in_lanes(range(count), lambda _: client.start(approval))
        await until_all_are(client, "suspended", count)
        measured = {"suspended in s": time.perf_counter() - started, "just after, MB": resident_mb() - before}
        if and_resolve:
            await asyncio.sleep(CALM_SECONDS)
            measured["grown by MB"] = resident_mb() - before
            handed_out[0].flush()
            measured |= await resolve_all(client, ids, IN_FLIGHT + count)
            measured["in the end, MB"] = resident_mb() - before
    return measured


async def reopened(url: str, folder: Path, count: int) -> dict[str, float]:
    before = resident_mb()
    started = time.perf_counter()
    async with serving(url, folder / "ids", "a") as client:
        opened = time.perf_counter() - started
        await client.run(one_step, 1)
        measured = {"opened in s": opened, "first result after s": time.perf_counter() - started}
        await asyncio.sleep(CALM_SECONDS)
        measured["grown by MB"] = resident_mb() - before
        measured |= await resolve_all(client, folder / "ids", IN_FLIGHT + 1 + count)
        measured["in the end, MB"] = resident_mb() - before
    return measured


# --- line -------------------------------------------------------------------------------------------------------------
async def line(url: str, folder: Path, count: int) -> dict[str, float]:
    async with serving(url, folder / "ids", "w") as client:
        await in_lanes(range(IN_FLIGHT), lambda _: client.run(one_step, 1))  # warm
        holder = await client.start(holds.using(key="k"))
        gc.collect()
        before = resident_mb()
        measured = {"accepted in s": await in_lanes(range(count), lambda _: client.start(count_in_key.using(key="k")))}
        last = await client.start(count_in_key.using(key="k"))
        await asyncio.sleep(CALM_SECONDS)
        measured["grown by MB"] = resident_mb() - before
        handed_out[0].flush()
        started = time.perf_counter()
        await client.resolve((folder / "ids").read_text().strip(), True)
        measured["place of the last"] = await last.result()
        passed = time.perf_counter() - started
        assert (await holder.describe()).status == "completed"
        measured |= {"a second, one at a time": (count + 1) / passed, "counted": (await client.state("k"))["count"]}
    return measured


# --- timers -----------------------------------------------------------------------------------------------------------
async def timers(url: str, folder: Path, _count: int) -> dict[str, float]:
    measured: dict[str, float] = {}
    async with serving(url, folder / "ids", "w") as client:
        await in_lanes(range(IN_FLIGHT), lambda _: client.run(one_step, 1))
        due = time.time() + 15.0
        await in_lanes(range(WAKES), lambda _: client.start(wakes_at, due))
        measured["wakes asked for, s before they were due"] = due - time.time()
        await until_all_are(client, "completed", IN_FLIGHT + WAKES)
        measured |= {"wakes": len(late), "earliest wake late by s": min(late), "last wake late by s": max(late)}
        late.clear()
        chance = random.Random(7)
        lengths = [chance.uniform(0, SLEEP_LIMIT_SECONDS) for _ in range(SLEEPS)]
        await asyncio.gather(*(client.start(sleeps, each) for each in lengths))
        await until_all_are(client, "completed", IN_FLIGHT + WAKES + SLEEPS)
        measured |= {"sleeps": len(late), "earliest sleep late by s": min(late), "last sleep late by s": max(late)}
    return measured


# --- sweep ------------------------------------------------------------------------------------------------------------
async def latencies(client: Client, until: Callable[[], Awaitable[bool]]) -> list[float]:
    """Run one step after another until told to end; return the milliseconds that each took, sorted."""
    times: list[float] = []
    while not await until():
        for _ in range(50):
            started = time.perf_counter()
            await client.run(one_step, 1)
            times.append((time.perf_counter() - started) * 1000)
    return sorted(times)


async def sweep(url: str, folder: Path, count: int) -> dict[str, float]:
    async def settle(some: int) -> float:
        async with connect(url, retention=None) as client, client.worker(one_step):
            return await in_lanes(range(some), lambda _: client.run(one_step, 1))

    await settle(count)
    measured = {"file, MB": size_mb(folder)}
    async with connect(url, retention=None) as client, client.worker(one_step):
        rounds = iter(range(10))

        async def long_enough() -> bool:
            return next(rounds, None) is None

        measured |= summary("without", await latencies(client, long_enough))
    async with connect(url, retention=1.0) as client, client.worker(one_step):
        started = time.perf_counter()

        async def nearly_empty() -> bool:
            return (await client.stats()).total < 2 * IN_FLIGHT

        measured |= summary("during", await latencies(client, nearly_empty))
        measured["purged in s"] = time.perf_counter() - started
    measured["file then, MB"] = size_mb(folder)
    await settle(count * 9 // 10)
    measured["file filled again, MB"] = size_mb(folder)
    return measured


def size_mb(folder: Path) -> float:
    return (folder / "db").stat().st_size / 1e6


def summary(when: str, times: list[float]) -> dict[str, float]:
    return {
        f"p50 {when}, ms": statistics.median(times),
        f"p99 {when}, ms": times[len(times) * 99 // 100],
        f"most {when}, ms": times[-1],
    }


# --- the report -------------------------------------------------------------------------------------------------------
Part = Callable[[str, Path, int], Awaitable[dict[str, float]]]
PARTS: dict[str, Part] = {
    "suspended": suspended,
    "left_suspended": left_suspended,
    "reopened": reopened,
    "timers": timers,
    "line": line,
    "sweep": sweep,
}
Bars = Callable[[dict[str, float]], list[tuple[str, bool]]]
BARS: dict[tuple[str, str], Bars] = {
    ("suspended", "sqlite"): lambda of: [
        (f"grown by less than {GROWTH_LIMIT_MB:.0f} MB", of["grown by MB"] < GROWTH_LIMIT_MB),
        (f"resolved in less than {RESOLVE_LIMIT_SECONDS:.0f} s", of["resolved in s"] < RESOLVE_LIMIT_SECONDS),
    ],
    ("suspended", "jetstream"): lambda of: [
        (f"grown by less than {GROWTH_LIMIT_MB:.0f} MB", of["grown by MB"] < GROWTH_LIMIT_MB),
    ],
    ("suspended", "memory"): lambda of: [
        (f"resolved in less than {RESOLVE_LIMIT_SECONDS:.0f} s", of["resolved in s"] < RESOLVE_LIMIT_SECONDS),
    ],
    ("reopened", "sqlite"): lambda of: [
        (f"grown by less than {GROWTH_LIMIT_MB:.0f} MB", of["grown by MB"] < GROWTH_LIMIT_MB),
        (f"resolved in less than {RESOLVE_LIMIT_SECONDS:.0f} s", of["resolved in s"] < RESOLVE_LIMIT_SECONDS),
    ],
    ("timers", "sqlite"): lambda of: timer_bars(of),
    ("timers", "memory"): lambda of: timer_bars(of),
    ("timers", "jetstream"): lambda of: timer_bars(of),
    ("line", "sqlite"): lambda of: line_bars(of),
    ("line", "jetstream"): lambda of: line_bars(of),
    ("sweep", "sqlite"): lambda of: [
        (
            f"p99 during a sweep less than {SWEEP_LATENCY_LIMIT_MS:.0f} ms",
            of["p99 during, ms"] < SWEEP_LATENCY_LIMIT_MS,
        ),
        ("space is used again", of["file filled again, MB"] <= of["file then, MB"] * FILE_GROWTH_LIMIT),
    ],
}


def line_bars(of: dict[str, float]) -> list[tuple[str, bool]]:
    return [
        (f"grown by less than {GROWTH_LIMIT_MB:.0f} MB", of["grown by MB"] < GROWTH_LIMIT_MB),
        ("each ran once, the last one last", of["counted"] == of["place of the last"] > 1),
    ]


def timer_bars(of: dict[str, float]) -> list[tuple[str, bool]]:
    earliest = min(of["earliest wake late by s"], of["earliest sleep late by s"])
    return [
        ("every timer fired once", (of["wakes"], of["sleeps"]) == (WAKES, SLEEPS)),
        ("none early", earliest >= 0),
        (f"the last less than {LATE_LIMIT_SECONDS:.0f} s late", of["last wake late by s"] < LATE_LIMIT_SECONDS),
    ]


def in_own_process(part: str, url: str, folder: str, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scale", "--measure", part, url, folder, "--count", str(count)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def on_server(part: str, folder: str, count: int) -> dict[str, float]:
    """Measure a part on a nats-server of its own, and the server's memory in the end."""
    with server() as node:
        measured = in_own_process(part, node.url, folder, count)
        return measured | {"server in the end, MB": resident_mb(node.pid)}


def report(part: str, store: str, count: int) -> bool:
    """Measure a part, print it, and tell whether its bars are met."""
    with tempfile.TemporaryDirectory() as folder:
        if store == "jetstream":
            measured = on_server(part, folder, count)
        else:
            url = "memory:" if store == "memory" else f"sqlite:{folder}/db"
            if part == "reopened":
                in_own_process("left_suspended", url, folder, count)
            measured = in_own_process(part, url, folder, count)
    print(f"{part}, {store}, {count} invocations:" if part != "timers" else f"{part}, {store}:")
    for name, value in measured.items():
        print(f"  {name:<42} {value:10.3f}")
    bars = BARS[part, store](measured)
    for bar, met in bars:
        print(f"  {'met   ' if met else 'MISSED'} {bar}")
    sys.stdout.flush()
    return all(met for _, met in bars)


def main() -> None:
    """Parse the options, run the parts, and exit with 1 if a bar is missed."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--only", nargs="*", default=["suspended", "reopened", "timers", "line", "sweep"])
    options.add_argument("--stores", nargs="*", default=["sqlite", "memory"], help="sqlite, memory, jetstream")
    options.add_argument("--count", type=int, default=COUNT)
    options.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.measure:
        part, url, folder = chosen.measure
        print(json.dumps(run(lambda: PARTS[part](url, Path(folder), chosen.count))))
        return
    met = [
        report(part, store, chosen.count)
        for part in chosen.only
        for store in chosen.stores
        if (part, store) in BARS  # a memory store has nothing to open again and no file, and a server is always open
    ]
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
