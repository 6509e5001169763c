"""The workflows that the service is tested with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import pydantic

from perdure import Context, Retry, step, stream, workflow


@dataclass
class Expense:
    amount: Decimal
    note: str = ""
    at: datetime | None = None


@dataclass
class Approval:
    approved: bool
    comments: str = ""


@step
async def add_one(number: int) -> int:
    return number + 1


@step(retry=Retry(max_attempts=1))
async def fail() -> None:
    raise ValueError("no luck")


@workflow
async def add(number: int) -> int:
    """Add one to a number."""
    return await add_one(number)


@workflow
async def greet(name: str = "you", *, times: int = 1) -> list[str]:
    return [name] * times


@step
async def count_aloud(count: int, seconds: float) -> int:
    numbers = stream("numbers", dict[str, Decimal])
    for n in range(count):
        numbers.write({"n": Decimal(n)})
        await asyncio.sleep(seconds)
    return count


@workflow
async def counting(ctx: Context, count: int, seconds: float = 0.0) -> int:
    ctx.stream("status", str).write("counts")
    return await count_aloud(count, seconds)


@workflow
async def echo(value: Any) -> Any:
    return value


@workflow
async def expense(ctx: Context, request: Expense) -> str:
    approval = ctx.awakeable(Approval, title="Expense", assignees=["finance"])
    ctx.set("amount", str(request.amount))
    return "approved" if (await approval).approved else "rejected"


@workflow
async def failing() -> None:
    await fail()


@workflow
async def sleeping(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@workflow
async def returns_bytes(size: int) -> bytes:
    return b"x" * size


@workflow
async def many(count: int) -> int:
    total = 0
    for _ in range(count):
        total = await add_one(total)
    return total


@workflow
async def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


class Amount(pydantic.BaseModel):
    amount: int

    @pydantic.field_validator("amount")
    @classmethod
    def check(cls, amount: int) -> int:
        if amount <= 0:
            raise ValueError("give a positive amount")
        return amount * 10


@workflow
async def checked(value: Amount) -> int:
    return value.amount


@workflow
async def two_awakeables(ctx: Context) -> int:
    first, second = ctx.awakeable(int), ctx.awakeable(int)
    return await first + await second


WORKFLOWS = (
    nested,
    checked,
    two_awakeables,
    add,
    greet,
    echo,
    expense,
    failing,
    sleeping,
    returns_bytes,
    many,
    counting,
)
