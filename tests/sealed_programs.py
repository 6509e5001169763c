"""Workflows for tests of sealed stores, with every kind of step. They carry what must not be found anywhere."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from perdure import Context, NonRetryable, Retry, step, workflow

LONG = "planted-a-long-value-that-nobody-guesses-6f1c2a9e"
SHORT = 738291
"""A value of few bits: its digest could be found by trying."""


class Declined(NonRetryable):
    def __init__(self, text: str, amount: int) -> None:
        super().__init__(text)
        self.amount = amount


@dataclass
class Order:
    note: str
    amount: int


_tries: dict[str, int] = {}


@step
async def charge(amount: int) -> int:
    return amount + 1


@step
async def write(note: str) -> str:
    return note.upper()


@step(retry=Retry(initial=0.01, max_attempts=3))
async def flaky(note: str, id: str) -> str:
    _tries[id] = _tries.get(id, 0) + 1
    if _tries[id] < 2:
        raise OSError(f"no luck with {note}")
    return note


@step
async def decline(note: str, amount: int) -> None:
    raise Declined(f"declined: {note}", amount)


@workflow
async def child(ctx: Context, order: Order) -> Order:
    return Order(await write(order.note), await charge(order.amount))


@workflow
async def sent(ctx: Context, note: str) -> str:
    return note


@workflow
async def failing(ctx: Context, note: str, amount: int) -> None:
    await decline(note, amount)


@workflow
async def counts(ctx: Context, note: str) -> int:
    count = ctx.get(f"count of {note}", int, default=0) + 1
    ctx.set(f"count of {note}", count)
    ctx.set("note", note)
    return count


@workflow
async def everything(ctx: Context, order: Order, id: str) -> list[str]:
    """Run a step, one that is tried again, a child, a send, a timer, one that fails, and wait for people."""
    said = [str(await charge(order.amount)), await flaky(order.note, id)]
    made = await child(order)
    said += [made.note, str(made.amount)]
    ctx.send(sent.using(id=f"{id}-sent"), order.note)
    await asyncio.sleep(0.01)
    try:
        await failing(order.note, order.amount)
    except Declined as error:
        said.append(f"{error} ({error.amount})")
    asked = ctx.awakeable(Order, title=f"May {order.note}?", description=f"{order.amount} it is", assignees=["ann"])
    answer = await asked
    said += [answer.note, str(answer.amount)]
    return said


@workflow
async def holds(ctx: Context, note: str) -> list[str]:
    """Hold a key until somebody answers."""
    ctx.set("notes", [*ctx.get("notes", list[str], default=[]), note])
    return [note, await ctx.awakeable(str, title=note)]


WORKFLOWS = [child, sent, failing, counts, everything, holds]


def charge_digest() -> bytes:
    """Return the digest of the arguments of a step, as a plain journal has it."""
    return charge.signature().digest((SHORT,), {})


def write_digest() -> bytes:
    return write.signature().digest((LONG,), {})
