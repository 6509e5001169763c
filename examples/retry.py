"""Failed runs: find them, then run them again, either under the same id from the failed step, or with other input.

python -m examples.retry
"""

from __future__ import annotations

import asyncio
import logging

from examples import stage
from perdure import Client, Handle, Retry, connect, step, workflow

broken = {"task-flaky-1", "task-flaky-2"}
"""Tasks that an outside service refuses until it is repaired."""


@step
async def prepare(task: str) -> str:
    print(f"  prepare({task})")
    return f"{task} prepared"


@step(retry=Retry(max_attempts=1))  # by default a step is tried ten times before it fails
async def process(task: str) -> str:
    if task in broken:
        raise ConnectionError(f"{task}: service unavailable")
    return f"{task} processed"


@workflow
async def flaky_workflow(task: str) -> str:
    await prepare(task)
    return await process(task)


async def outcomes(title: str, handles: dict[str, Handle[str]]) -> list[str]:
    """Wait for all, print how each ended, and return the tasks that failed."""
    await asyncio.gather(*(handle.result() for handle in handles.values()), return_exceptions=True)
    print(title)
    failed: list[str] = []
    for task, handle in handles.items():
        found = await handle.describe()
        print(f"  {task}: {found.status}", "✅" if found.status == "completed" else f"❌ {found.error}")
        if found.status == "failed":
            failed.append(task)
    return failed


async def retry(client: Client) -> None:
    print("📤 PHASE 1: Submitting workflows...")
    tasks = ("task-success-1", "task-flaky-1", "task-success-2", "task-flaky-2")
    handles = {task: await client.start(flaky_workflow, task) for task in tasks}

    first, second = await outcomes("📊 PHASE 2: Checking workflow status...", handles)

    print("🔄 PHASE 3: Retrying failed workflows...")
    broken.remove(first)  # the world is repaired
    print(f"  {first}: same id, from the failed step; nothing is prepared again")
    await handles[first].retry()
    print(f"  {second}: other input, new id")
    handles[f"{second}-retry"] = await client.start(flaky_workflow, f"{second}-retry")
    del handles[second]

    failed = await outcomes("✅ PHASE 4: Verifying retry results...", handles)
    print(f"Overall Success Rate: {len(handles) - len(failed)}/{len(handles)}")


async def main() -> None:
    logging.getLogger("perdure.worker").setLevel(logging.ERROR)  # the failures are shown below
    with stage.store() as url:
        async with connect(url) as client, client.worker(flaky_workflow):
            await retry(client)


if __name__ == "__main__":
    asyncio.run(main())
