"""Schedules: a workflow that starts every second, and one at night. Only the store knows of them: any worker will do.

python -m examples.schedule
"""

from __future__ import annotations

import asyncio
import contextlib

from examples import stage
from perdure import Schedule, connect, step, workflow


@step
async def count(what: str) -> int:
    return len(what)


@workflow
async def report(what: str) -> str:
    return f"{await count(what)} letters"


NIGHTLY = Schedule(report.bind("sales"), cron="30 3 * * MON-FRI", timezone="Europe/Berlin")
OFTEN = Schedule(report.bind("stock"), every=1, overlap="skip")


async def main() -> None:
    with stage.store() as url:
        async with connect(url) as client, client.worker(report):
            nightly = client.schedule("nightly", report)
            print("📅 nightly:", "put" if await nightly.put(NIGHTLY) else "unchanged")
            print("📅 nightly:", "put" if await nightly.put(NIGHTLY) else "unchanged")
            run = await nightly.trigger()
            print("⏩ now:", await run.result())

            often = client.schedule("often", report)
            await often.put(OFTEN)
            async with contextlib.aclosing(client.watch(id_prefix="often@", status="completed")) as runs:
                for number in (1, 2):
                    run = client.handle((await anext(runs)).id, report)
                    print(f"⏰ second {number}:", await run.result())
            await often.pause("that is enough")
            print("⏸️ ", (await often.describe()).note)
            for name in ("nightly", "often"):
                await client.schedule(name).delete()


if __name__ == "__main__":
    asyncio.run(main())
