"""Serves reports until it is killed: `python -m tests.serves_reports URL`.

They fail until there is a file `repaired` in the folder that they are given.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from perdure import Retry, connect, step, workflow
from perdure.operations import carrying

HELD_SECONDS = 3.0
"""How long a job belongs to a process that was killed: less than usual."""


@step(retry=Retry(max_attempts=1))
async def export(folder: str) -> None:
    if not (Path(folder) / "repaired").exists():
        raise ConnectionError("the warehouse is down")


@workflow
async def report(folder: str) -> None:
    await export(folder)


async def main(url: str) -> None:
    carrying.HELD_SECONDS = HELD_SECONDS
    async with connect(url) as client, client.worker(report, lease=3):
        print("serving", flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
