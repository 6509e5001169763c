"""Pause, resume, cancel: a paused run begins no further step until it is resumed; a cancelled one cleans up and ends.

python -m examples.pause
"""

from __future__ import annotations

import asyncio

from examples import stage
from perdure import Client, InvocationCancelled, connect, step, workflow

STEPS = 6


@step
async def work(task: str, number: int) -> str:
    await asyncio.sleep(0.1)
    return f"{task}: part {number}"


@step
async def clean_up(task: str) -> None:
    print(f"  cleaning up after {task}")


@workflow
async def slow_workflow(task: str) -> int:
    try:
        parts = [await work(task, number) for number in range(1, STEPS + 1)]
    except asyncio.CancelledError:  # what `cancel` looks like from inside; steps may still run here
        await clean_up(task)
        raise
    return len(parts)


async def pause_and_resume(client: Client) -> None:
    print("📋 DEMO 1: Pause & Resume")
    handle = await client.start(slow_workflow, "my-task")
    await asyncio.sleep(0.25)

    await handle.pause()
    await asyncio.sleep(0.25)  # the step in progress ends, and nothing else begins
    paused = await handle.describe()
    ended = [each for each in paused.journal if each.status == "completed"]
    print(f"⏸️  {paused.status}, {len(ended)} of {STEPS} steps done")

    await handle.resume()  # same id, from where it was
    print(f"▶️  resumed: {await handle.result()} of {STEPS} steps done")
    print("✅ Final Status:", (await handle.describe()).status)


async def cancel(client: Client) -> None:
    print("📋 DEMO 2: Cancel")
    handle = await client.start(slow_workflow, "other-task")
    await asyncio.sleep(0.25)

    print("🛑 cancelling")
    await handle.cancel()  # returns once it is recorded
    try:
        await handle.result()
    except InvocationCancelled as error:
        print(f"  {type(error).__name__}")
    print("✅ Final Status:", (await handle.describe()).status)


async def main() -> None:
    with stage.store() as url:
        async with connect(url) as client, client.worker(slow_workflow):
            await pause_and_resume(client)
            await cancel(client)


if __name__ == "__main__":
    asyncio.run(main())
