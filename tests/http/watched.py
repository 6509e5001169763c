"""The workflows whose metrics and logs are tested. A file `go` beside the store lets `holds` end."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from perdure import Context, Retry, step, workflow

log = logging.getLogger("shop")


@step
async def pack(order: str) -> str:
    log.info("packing %s", order, extra={"weight": 3})
    return order


@step
def count(order: str) -> int:
    log.info("counting in a thread")
    return len(order)


@step(retry=Retry(max_attempts=3, initial=0.001))
async def breaks(order: str) -> str:
    try:
        raise ValueError(f"no {order} left")
    except ValueError:
        log.exception("broken")
        raise


@step
async def hold(order: str) -> str:
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    return order


@step
async def rest(seconds: float) -> None:
    await asyncio.sleep(seconds)


@workflow
async def ships(ctx: Context, order: str) -> str:
    log.info("a body")
    ctx.logger.info("shipping", extra={"colour": "red"})
    await pack(order)
    await count(order)
    return order


@workflow
async def fails(order: str) -> str:
    return await breaks(order)


@workflow
async def waits(ctx: Context) -> str:
    return await ctx.awakeable(str)


@workflow
async def holds(order: str) -> str:
    return await hold(order)


@workflow
async def rests(seconds: float) -> None:
    await rest(seconds)


@workflow
async def names_many(count: int) -> None:
    """Call one step under many names."""
    for number in range(count):
        await pack.using(name=f"pack-{number}")(str(number))


WATCHED = (ships, fails, waits, holds, rests, names_many)
