"""Count the walks: what of our code runs, on the loop's thread, for one start, one resolve, and one start with a key.

    python -m benchmarks.walks [--runs 40] [--stores sqlite jetstream] [--largest]

Client and worker are in one process, on one loop, with default settings. `calls` are calls of functions of the package
(a coroutine that goes on counts as one), `files` are the files that they are in, and `moves` is how often the one that
runs is in another file than the one before it: how often a reader has to turn to another. It is counted by
`sys.setprofile`, over many runs after some that warm up, one at a time, and given for one.

`--largest` lists the files of more than 500 lines and the classes of more than 40 methods instead.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from types import FrameType
from typing import Any

import perdure
from examples.services.nats_server import server
from perdure import Client, Context, connect, step, workflow

PACKAGE = str(Path(perdure.__file__).parent)
WARM = 20
LINES_LIMIT = 500
METHODS_LIMIT = 40


@step
async def greet(name: str) -> str:
    return f"Hello {name}"


@workflow
async def hello(name: str) -> str:
    return await greet(name)


@workflow
async def asks(ctx: Context) -> str:
    return await ctx.awakeable(str)


# --- counting ---------------------------------------------------------------------------------------------------------
class Walk:
    """What the profiler saw. Its hook is called for everything that this thread calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.moves = 0
        self.by_file: dict[str, int] = {}
        self._last = ""

    def saw(self, frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(PACKAGE):
            return
        self.calls += 1
        self.by_file[file] = self.by_file.get(file, 0) + 1
        if file != self._last:
            self.moves += 1
            self._last = file

    @contextlib.contextmanager
    def watching(self) -> Generator[None]:
        sys.setprofile(self.saw)
        try:
            yield
        finally:
            sys.setprofile(None)


async def count(act: Callable[[int], Awaitable[object]], runs: int) -> Walk:
    """Do it so many times, one after the other, and count all but the first ones."""
    for number in range(WARM):
        await act(number)
    walk = Walk()
    with walk.watching():
        for number in range(WARM, WARM + runs):
            await act(number)
    return walk


# --- what is walked ---------------------------------------------------------------------------------------------------
async def walks(client: Client, runs: int) -> dict[str, Walk]:
    async with client.worker(hello, asks):

        async def run(number: int) -> None:
            await client.run(hello, f"{number}")

        async def run_with_key(number: int) -> None:
            await client.run(hello.using(key=f"key {number}"), f"{number}")

        handles = [await client.start(asks) for _ in range(WARM + runs)]
        awakeables = [await awakeable(client, handle.id) for handle in handles]

        async def resolve(number: int) -> None:
            await client.resolve(awakeables[number], "yes")
            await handles[number].result()

        return {
            "client.run(hello)": await count(run, runs),
            "a resolve, and its result": await count(resolve, runs),
            "client.run with a key": await count(run_with_key, runs),
        }


async def awakeable(client: Client, id: str) -> str:
    while True:
        described = await client.handle(id).describe()
        if described.awakeables and described.status == "suspended":
            return described.awakeables[0].id
        await asyncio.sleep(0.005)


async def on_sqlite(runs: int) -> dict[str, Walk]:
    with tempfile.TemporaryDirectory() as folder:
        async with connect(f"sqlite:{folder}/walks.db") as client:
            return await walks(client, runs)


async def on_jetstream(runs: int) -> dict[str, Walk]:
    with server() as nats:
        async with connect(nats.url) as client:
            return await walks(client, runs)


STORES = {"sqlite": on_sqlite, "jetstream": on_jetstream}


def report(store: str, found: dict[str, Walk], runs: int) -> None:
    for name, walk in found.items():
        most = sorted(walk.by_file.items(), key=lambda each: -each[1])[:5]
        told = ", ".join(f"{Path(file).relative_to(PACKAGE)} {calls / runs:.0f}" for file, calls in most)
        calls, moves = walk.calls / runs, walk.moves / runs
        print(f"| {store} | {name} | {calls:.0f} | {len(walk.by_file)} | {moves:.0f} | {told} |", flush=True)


# --- what is large ----------------------------------------------------------------------------------------------------
def largest() -> list[str]:
    """Return a line for each file and class that is above its limit."""
    found: list[str] = []
    for path in sorted(Path(PACKAGE).rglob("*.py")):
        text = path.read_text()
        name = path.relative_to(PACKAGE)
        if (lines := len(text.splitlines())) > LINES_LIMIT:
            found.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                methods = [each for each in node.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]
                if len(methods) > METHODS_LIMIT:
                    found.append(f"{name}: class {node.name} has {len(methods)} methods")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what runs for one start, one resolve, one start with a key.")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--stores", nargs="+", choices=STORES, default=[*STORES])
    parser.add_argument("--largest", action="store_true", help="list files and classes that are too large instead")
    options = parser.parse_args()
    if options.largest:
        print("\n".join(largest()) or "nothing is above its limit")
        return
    print("| store | walk | calls | files | moves | most of them in |\n|---|---|---|---|---|---|")
    for store in options.stores:
        report(store, asyncio.run(STORES[store](options.runs)), options.runs)


if __name__ == "__main__":
    main()
