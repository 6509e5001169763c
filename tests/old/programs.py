"""The workflows behind the old stores that the tests of this folder open. They stay as they are, for ever.

Bodies here are those that ran when a store was made: a change that replay notices is a fault of the change. What was
deployed differently then, is at the end. They use the public names only, so that any release can run them.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import attrs
import msgspec
import pydantic

from perdure import (
    Context,
    Continue,
    Flow,
    NonRetryable,
    Retry,
    Skip,
    WaitForQuota,
    WaitQuotaOrDuration,
    step,
    workflow,
)

ran: list[str] = []
"""Labels of the steps that ended here."""
broken: set[str] = set()
"""Labels of the steps that fail."""
hanging: set[str] = set()
"""Labels of the steps that never end."""

ONCE = Retry(max_attempts=1)
FAR_SECONDS = 50 * 365 * 86_400.0


class Unmended(Exception):
    """What a broken step raises."""


@step(retry=ONCE)
async def act(label: str) -> str:
    if label in broken:
        raise Unmended(label)
    if label in hanging:
        await asyncio.sleep(3_600)
    ran.append(label)
    return label


@step(retry=ONCE)
def act_in_thread(label: str) -> str:
    ran.append(label)
    return label


@step(retry=Retry(max_attempts=3, initial=0.02, jitter=0))
async def act_again(label: str, failures: int) -> str:
    """Fail so many times, then return."""
    if ran.count(f"failed {label}") < failures:
        ran.append(f"failed {label}")
        raise ConnectionError(f"{label} is down")
    ran.append(label)
    return label


@step(retry=Retry(max_attempts=5, initial=4, factor=1, jitter=0))
async def act_later(label: str) -> str:
    """Fail while broken; the next attempt is four seconds later."""
    if label in broken:
        raise Unmended(label)
    ran.append(label)
    return label


# --- values -----------------------------------------------------------------------------------------------------------
class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


@dataclass(frozen=True)
class Item:
    name: str
    price: Decimal
    tags: frozenset[str] = frozenset()


@dataclass
class Order:
    id: UUID
    items: list[Item]
    at: datetime
    wait: timedelta
    size: Size = Size.SMALL
    notes: dict[str, list[int]] = field(default_factory=dict[str, list[int]])


class Address(pydantic.BaseModel):
    street: str
    zip: int | str = 0


class Customer(pydantic.BaseModel):
    name: str
    born: date
    addresses: list[Address] = []
    vip: bool | None = None


@attrs.define
class Parcel:
    weight: float
    to: str
    inner: Parcel | None = None


class Tag(msgspec.Struct):
    key: str
    value: int | str | None = None


@attrs.define
class Receipt:
    order: Order
    customer: Customer
    parcel: Parcel
    total: Decimal


ORDER = Order(
    UUID(int=7),
    [Item("tea", Decimal("3.50"), frozenset({"hot", "green", "loose"})), Item("cup", Decimal("10.00"))],
    datetime(2026, 11, 28, 12, 30, tzinfo=UTC),
    timedelta(days=2, seconds=0.5),
    Size.LARGE,
    {"a": [1, 2], "b": []},
)
CUSTOMER = Customer(name="Ada", born=date(1815, 12, 10), addresses=[Address(street="S", zip="SW1")], vip=True)
PARCEL = Parcel(1.5, "Ada", Parcel(0.5, "Bob"))
TAGS = (Tag("one", 1), Tag("none"), Tag("text", "ü"))


@step(retry=ONCE)
async def pack(order: Order, customer: Customer, parcel: Parcel, tags: tuple[Tag, ...]) -> Receipt:
    ran.append(f"pack {customer.name}")
    return Receipt(order, customer, parcel, sum((item.price for item in order.items), Decimal(0)))


@workflow
async def typed(
    ctx: Context, order: Order, customer: Customer, parcel: Parcel, tags: tuple[Tag, ...], wait: bool
) -> Receipt:
    receipt = await pack(order, customer, parcel, tags)
    child = await passed_on(receipt, {tag.key for tag in tags})
    if wait:
        receipt.customer = await ctx.awakeable(Customer)
    assert child == receipt.total
    return receipt


@workflow
async def passed_on(receipt: Receipt, keys: set[str]) -> Decimal:
    await act(f"{receipt.customer.name} {len(keys)}")
    return receipt.total


# --- all that a body can ask for --------------------------------------------------------------------------------------
@workflow
async def hello(name: str) -> str:
    return f"Hello {await act(name)}"


@workflow
async def everything(ctx: Context, label: str, wait: bool) -> list[str]:
    """Each kind of command and of entry, and a wait at the end."""
    told = [await act(f"{label} first"), await act_in_thread(f"{label} thread"), await act_again(f"{label} again", 2)]
    ctx.set("words", told)
    ctx.set("gone", 1)
    told += await asyncio.gather(*(act(f"{label} {n}") for n in range(3)), hello(f"{label} child"))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(act(f"{label} group {n}")) for n in range(2)]
    told += [task.result() for task in tasks]
    loser = asyncio.create_task(asyncio.sleep(FAR_SECONDS))
    await asyncio.wait({loser, asyncio.create_task(act(f"{label} winner"))}, return_when=asyncio.FIRST_COMPLETED)
    loser.cancel()
    told.append(ctx.send(hello.using(id=f"{label}-sent"), f"{label} sent"))
    if ctx.patched("shuffled"):
        ctx.random.shuffle(told)
    told.append(str(ctx.uuid4()))
    await asyncio.sleep(0.01)
    ctx.delete("gone")
    try:
        async with asyncio.timeout(0.01):
            await ctx.awakeable(int)
    except TimeoutError:
        told.append("late")
    try:
        await fails(f"{label} of child", "value")
    except ValueError as error:
        told.append(str(error))
    if wait:
        told.append(await ctx.awakeable(str))
        told.append(await act(f"{label} last"))
    return told


@workflow
async def long(ctx: Context, label: str, steps: int, wait: bool) -> int:
    """More frames than a store keeps apart."""
    for n in range(steps):
        await act(f"{label} {n}")
    if wait:
        await ctx.awakeable(type(None))
        await act(f"{label} last")
    return steps


@step(retry=ONCE)
async def make_big(label: str, size: int) -> bytes:
    ran.append(label)
    return label[0].encode() * size


@workflow
async def big(ctx: Context, label: str, text: str, wait: bool) -> tuple[int, bytes]:
    made = await make_big(label, len(text))
    ctx.set("big", made)
    if wait:
        made += await ctx.awakeable(bytes)
    return len(text), made


@workflow
async def asks(ctx: Context, label: str) -> str:
    await act(f"{label} asked")
    given = await ctx.awakeable(str)
    return f"{label} {given} {await act(f'{label} told')}"


@workflow
async def sleeps(label: str, seconds: float) -> str:
    await act(f"{label} sleeps")
    await asyncio.sleep(seconds)
    return await act(f"{label} woke")


@workflow
async def waits_for_child(label: str) -> str:
    return f"parent of {await asks(f'{label} child')}"


@workflow
async def waits_for_shared(label: str) -> str:
    return f"{label} of {await asks.using(id='shared')('shared')}"


@workflow
async def tidies(ctx: Context, label: str) -> str:
    try:
        await act(f"{label} begun")
        return await ctx.awakeable(str)
    finally:
        await act(f"{label} tidied")


@workflow
async def stops_everything(label: str) -> str:
    """Its child tidies up too."""
    try:
        return await tidies(f"{label} child")
    finally:
        await act(f"{label} tidied")


@workflow
async def sends(ctx: Context, label: str) -> list[str]:
    far = ctx.send(hello.using(id=f"{label}-far", delay=FAR_SECONDS), "far")
    soon = ctx.send(hello.using(id=f"{label}-soon", delay=4), f"{label} soon")
    unserved = ctx.send(later.using(id=f"{label}-unserved"), f"{label} unserved")
    return [far, soon, unserved]


@workflow
async def hangs(label: str) -> str:
    return f"{await act(f'{label} before')} {await act(f'{label} hung')} {await act(f'{label} after')}"


@workflow
async def tries_later(label: str) -> str:
    return f"{await act(f'{label} before')} {await act_later(f'{label} late')}"


# --- keys -------------------------------------------------------------------------------------------------------------
@workflow
async def deposit(ctx: Context, label: str, amount: int, wait: bool) -> int:
    balance = ctx.get("balance", int, default=0) + amount
    ctx.set("balance", balance)
    ctx.set("labels", [*ctx.get("labels", list[str], default=[]), label])
    await act(f"{label} {amount}")
    if wait:
        await ctx.awakeable(type(None))
        await act(f"{label} waited")
    return balance


@workflow
async def transfers(label: str, to: str) -> int:
    """A child that waits for a key."""
    return await deposit.using(key=to)(label, 5, False)


# --- groups and flows -------------------------------------------------------------------------------------------------
@workflow
async def crowd(ctx: Context, label: str, quota: int) -> list[str]:
    """Some that end and some that wait; with a quota, the others are cancelled."""
    calls = [hello.bind(f"{label} {n}") for n in range(3)] + [asks.bind(f"{label} {n}") for n in range(2)]
    group = await ctx.run_all(calls, wait=WaitForQuota(quota) if quota else None, concurrency=4)
    return [each.status for each in group.results]


@workflow
async def short_of_time(ctx: Context, label: str) -> list[str]:
    calls = [hello.bind(label), asks.bind(label)]
    group = await ctx.run_all(calls, wait=WaitQuotaOrDuration(2, 0.3))
    return [each.status for each in group.results]


@step(retry=ONCE)
async def users(day: str) -> list[str]:
    if f"users {day}" in broken:
        raise Unmended(day)
    ran.append(f"users {day}")
    return [day, "ada"]


@step(retry=ONCE)
async def orders(day: str, limit: int) -> dict[str, int]:
    if f"orders {day}" in hanging:
        await asyncio.sleep(3_600)
    ran.append(f"orders {day}")
    return {day: limit}


@step(retry=ONCE)
async def report(users: list[str], orders: dict[str, int], *, title: str) -> str:
    ran.append(f"report {title} {orders}")
    return f"{title} {users} {orders}"


def make_flow() -> Flow:
    flow = Flow("daily", max_workers=2)
    day = flow.input("day", str)
    some = flow.add(users.bind(day), on_error=Continue(default=["nobody"]))
    all_orders = flow.add(orders.bind(day, 3))
    flow.add(act.bind(day), name="extra", on_error=Skip())
    flow.returns(flow.add(report.bind(users=some, orders=all_orders, title="daily")))
    return flow


daily = make_flow()


# --- failures ---------------------------------------------------------------------------------------------------------
class Declined(Exception):
    """An error with arguments of its own."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"declined with {code}: {reason}")
        self.code = code
        self.reason = reason


@dataclass
class Short(Exception):
    """A dataclass, raised."""

    missing: int
    of: str = "money"


@attrs.define
class Lost(Exception):
    """An attrs class, raised."""

    where: str


def chained() -> BaseException:
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise LookupError("outer") from error
    except LookupError as outer:
        return outer


def noted() -> BaseException:
    error = RuntimeError("with notes")
    error.add_note("first note")
    error.add_note("second ü")
    return error


def invalid() -> BaseException:
    try:
        Customer.model_validate({"name": 7, "born": "never"})
    except pydantic.ValidationError as error:
        return error
    raise AssertionError("it is invalid")


def with_object() -> BaseException:
    error = RuntimeError("with an object", object)
    vars(error)["lock"] = asyncio.Event
    return error


FAILURES: dict[str, Callable[[], BaseException]] = {
    "value": lambda: ValueError("no good", 7),
    "key": lambda: KeyError("missing"),
    "file": lambda: FileNotFoundError(2, "No such file", "/tmp/nothing"),
    "never again": lambda: NonRetryable("never"),
    "own": lambda: Declined(402, reason="no funds"),
    "dataclass": lambda: Short(7),
    "attrs": lambda: Lost("there"),
    "group": lambda: ExceptionGroup("two", [ValueError("one"), ExceptionGroup("in", [KeyError("two")])]),
    "chained": chained,
    "noted": noted,
    "pydantic": invalid,
    "object": with_object,
    "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "wordless": AssertionError,
    "wordy": lambda: OSError("x" * 5_000),
}


@step(retry=ONCE)
async def fail(label: str, kind: str) -> None:
    ran.append(f"fail {label}")
    raise FAILURES[kind]()  # noqa: RSE102  a function


@workflow
async def fails(label: str, kind: str) -> None:
    await act(f"{label} before")
    await fail(label, kind)


@workflow
async def raises(label: str, kind: str) -> None:
    """Fails by itself, not by a command."""
    await act(f"{label} before")
    if label in broken:
        raise FAILURES[kind]()  # noqa: RSE102  a function


@workflow
async def fails_by_child(label: str, kind: str) -> None:
    await fails(f"{label} child", kind)


@workflow
async def fails_twice(label: str) -> None:
    """A group of failures of two commands."""
    async with asyncio.TaskGroup() as group:
        group.create_task(both_fail(label, 1))
        group.create_task(both_fail(label, 2))


@step(retry=ONCE)
async def both_fail(label: str, n: int) -> None:
    if f"{label} {n}" in broken:
        raise Declined(n, reason="both")
    ran.append(f"{label} {n}")


@workflow
async def gives_up(label: str) -> None:
    await act_again(label, 99)


@workflow
async def locks_itself(ctx: Context, label: str) -> int:
    return await deposit.using(key=str(ctx.key))(label, 1, False)


@workflow
async def mends(ctx: Context, label: str, wait: bool) -> list[str]:
    """Fails at two steps, one after the other, until these are mended; siblings are kept."""
    told = [await act(f"{label} before")]
    told += await asyncio.gather(act(f"{label} fragile"), act(f"{label} sturdy"))
    told.append(await act(f"{label} second"))
    if wait:
        told.append(await ctx.awakeable(str))
        told.append(await act(f"{label} last"))
    return told


# --- what was deployed differently when the store was made ------------------------------------------------------------
@workflow
async def later(label: str) -> str:
    """Nobody served it then."""
    return await act(f"{label} at last")


async def grows_then(ctx: Context, label: str) -> str:
    """Before the patch."""
    await act(f"{label} old")
    return await ctx.awakeable(str)


@workflow
async def grows(ctx: Context, label: str) -> str:
    """With the patch: those that began before it do not know it."""
    if ctx.patched("anew"):
        await act(f"{label} new")
    else:
        await act(f"{label} old")
    return await ctx.awakeable(str)


async def changes_then(ctx: Context, label: str) -> str:
    """What was deployed by mistake, and paused what was under way."""
    await act(f"{label} mistaken")
    return await ctx.awakeable(str)


@workflow
async def changes(ctx: Context, label: str) -> str:
    await act(f"{label} right")
    return await ctx.awakeable(str)


SERVED = (
    typed,
    passed_on,
    hello,
    everything,
    long,
    big,
    asks,
    sleeps,
    waits_for_child,
    waits_for_shared,
    tidies,
    stops_everything,
    sends,
    hangs,
    tries_later,
    deposit,
    transfers,
    crowd,
    short_of_time,
    daily,
    fails,
    raises,
    fails_by_child,
    fails_twice,
    gives_up,
    locks_itself,
    mends,
)
"""What was served when the store was made, besides the last two."""

NOW = (*SERVED, later, grows, changes)
