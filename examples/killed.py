"""Kill it, and go on: a batch is ended by SIGKILL in the middle, and the same command finishes it.

python -m examples.killed [--count 2000]

Prints a transcript. The steps note each of their runs in a file, outside the engine, so that they can be counted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from perdure import connect, step, workflow

NOTES = "NOTES"
"""The variable that names the file."""


async def service(call: str) -> None:
    await asyncio.sleep(0.02)
    note(call)


def note(line: str) -> None:
    with open(os.environ[NOTES], "a") as file:
        file.write(f"{line}\n")


@step
async def charge(order: str) -> str:
    await service(f"charge {order}")
    return f"receipt of {order}"


@step
async def pack(order: str) -> str:
    await service(f"pack {order}")
    return f"parcel of {order}"


@step
async def ship(parcel: str) -> str:
    await service(f"ship {parcel}")
    return f"{parcel} is on its way"


@workflow
async def fulfil(order: str) -> str:
    await charge(order)
    return await ship(await pack(order))


async def recorded(url: str) -> int:
    """Return how many steps have a result in the journals."""
    total = 0
    async with connect(url) as client:
        async for each in client.list():
            journal = (await client.handle(each.id).describe()).journal
            total += sum(call.status == "completed" for call in journal)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2_000, help="how many orders (default: %(default)s)")
    count: int = parser.parse_args().count
    verb = ["run", "examples/killed.py:fulfil", "order-{i}", "--count", str(count), "--id", "batch", "--timeout", "0"]
    shown = f"perdure {' '.join(verb)} --url sqlite:orders.db".replace("order-{i}", "'order-{i}'")
    with tempfile.TemporaryDirectory() as folder:
        notes, url = Path(folder, "notes"), f"sqlite:{Path(folder, 'orders.db')}"
        command = [sys.executable, "-m", "perdure", *verb, "--url", url]
        environment = os.environ | {NOTES: str(notes)}

        print(f"$ {shown} &", flush=True)
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as run:
            while run.poll() is None and lines(notes) < count:  # of three times as many
                time.sleep(0.01)
            run.send_signal(signal.SIGKILL)
        done = asyncio.run(recorded(url))
        print(f"$ kill -9 {run.pid}   # {lines(notes):,} steps have run, {done:,} results are recorded", flush=True)

        print(f"$ {shown}")
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        print("...", *ran.stdout.splitlines()[-8:], sep="\n")
        runs = Counter(notes.read_text().splitlines())
        again = sum(runs.values()) - len(runs)
        print(f"{len(runs):,} steps, each recorded once. {again} ran twice: they had no result when the process died.")
    return ran.returncode


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
