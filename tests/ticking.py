"""A worker with a schedule that ticks each second, which can kill its process at any of the writes for it.

python -m tests.ticking URL LOG [POINT]

Its runs note their ids in a file, each with a number that another run of the same id would not have. POINT is when it
kills itself: 0 before its first write for the schedule, 1 after that, 2 before the second, and so on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perdure import Context, Schedule, connect, step, workflow
from perdure.operations.local import store_behind
from perdure.runtime.scheduled import SCHEDULES

NAME = "each second"
RETENTION_SECONDS = 0.2


@step
def note(text: str) -> None:
    with Path(sys.argv[2]).open("a") as file:
        file.write(f"{text}\n")


@workflow
async def noted(ctx: Context) -> None:
    await note(f"{ctx.invocation_id} {ctx.random.getrandbits(60)}")


def arm(store: Any, point: int) -> None:
    """Let the process die at a point."""
    passed = -1

    def pass_one() -> None:
        nonlocal passed
        passed += 1
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)

    write, submit = store.documents.write, store.submit

    async def write_or_die(collection: str, writes: Any, /, fence: Any = None) -> list[int]:
        if collection != SCHEDULES:
            return await write(collection, writes, fence)
        pass_one()
        revisions = await write(collection, writes, fence)
        pass_one()
        return revisions

    def submit_or_die(starts: Sequence[Any], /) -> asyncio.Future[list[bool]]:
        pass_one()
        future = submit(starts)
        future.add_done_callback(done)
        return future

    def done(_: asyncio.Future[list[bool]]) -> None:
        pass_one()

    store.documents.write, store.submit = write_or_die, submit_or_die


async def main(url: str, point: int | None) -> None:
    async with connect(url, retention=RETENTION_SECONDS) as client:
        await client.schedule(NAME).put(Schedule(noted.bind(), every=1, overlap="allow", catch_up=3_600))
        if point is not None:
            arm(await store_behind(client.operations), point)
        async with client.worker(noted, lease=1):
            print("serving", flush=True)
            await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[3]) if len(sys.argv) > 3 else None))
