"""Everything in one process and in memory: for development and tests, with breakpoints where they are wanted.

python -m examples.local, or perdure run examples/local.py "Local World" --url memory:
"""

from __future__ import annotations

import asyncio

from perdure import connect, step, workflow


@step
async def greet(name: str) -> str:
    return f"Hello, {name}! Welcome to durable execution in memory."


@workflow
async def hello(name: str) -> str:
    return await greet(name)


async def main() -> None:
    async with connect("memory:") as client, client.worker(hello):
        result = await client.run(hello, "Local World")
    print("✓ Executed locally!")
    print("Result:", result)


if __name__ == "__main__":
    asyncio.run(main())
