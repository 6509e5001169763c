"""The programs of the API's page run as written, with their imports completed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from examples.services.process import service
from examples.services.ticket_pb2 import ReserveRequest
from examples.services.ticket_pb2_grpc import TicketServiceStub
from perdure import Context, Retry, connect, step, workflow
from perdure.testing import Environment

FIVE_LINES = """
import asyncio
from perdure import connect, step, workflow

@step
async def greet(name: str) -> str:
    return f"Hello, {name}!"

@workflow
async def hello(name: str) -> str:
    return await greet(name)              # journaled: never runs again once its result is recorded

async def main() -> None:
    async with connect("sqlite:hello.db") as client, client.worker(hello):
        print(await client.run(hello, "World"))

if __name__ == "__main__":                # the command line imports this file
    asyncio.run(main())
"""


def test_five_lines_greet_from_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(FIVE_LINES)
    for _ in range(2):  # the second time on the file of the first
        ran = subprocess.run([sys.executable, "hello.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "Hello, World!\n", "")


# --- 2. steps ---------------------------------------------------------------------------------------------------------
@dataclass
class Receipt:
    card: str
    cents: int
    attempt: int


tries: list[str] = []


@step(retry=Retry(max_attempts=5), timeout=10)
async def charge(card: str, cents: int) -> Receipt:
    tries.append(card)
    if len(tries) == 1:
        raise ConnectionError("the first never works")
    return Receipt(card, cents, len(tries))


@workflow
async def pay(card: str) -> Receipt:
    first = await charge(card, 500)  # inside a workflow: durable
    second = await charge.using(timeout=60)(card, 500)  # options for one call, types kept
    assert second.attempt == first.attempt + 1
    return first


async def test_step_with_options_is_retried_in_a_workflow_and_plain_outside() -> None:
    async with connect("memory:") as client, client.worker(pay):
        assert await client.run(pay, "4242") == Receipt("4242", 500, 2)
    assert tries == ["4242"] * 3
    assert await charge("1111", 1) == Receipt("1111", 1, 4)
    assert await charge.fn("1111", 1) == Receipt("1111", 1, 5)


# --- 3. ordinary asyncio ----------------------------------------------------------------------------------------------
@step
async def fetch(url: str) -> str:
    return f"page of {url}"


@workflow
async def crawl(urls: list[str]) -> int:
    async with asyncio.timeout(3600):  # durable deadline
        pages = await asyncio.gather(*(fetch(u) for u in urls))
    await asyncio.sleep(86_400)  # durable: survives restarts, costs no memory
    return sum(map(len, pages))


async def test_crawl_sleeps_for_a_day_of_virtual_time() -> None:
    async with Environment(crawl) as env:
        before = env.clock.now()
        assert await env.client.run(crawl, ["a", "bc"]) == len("page of a") + len("page of bc")
        assert env.clock.now() - before >= 86_400


# --- 4. the context ---------------------------------------------------------------------------------------------------
@dataclass
class AddTicket:
    user_id: str
    ticket_id: str


expired: list[str] = []


@workflow
async def expire_ticket(ctx: Context, order: AddTicket) -> None:
    cart = ctx.get("cart", list[str], default=[])
    if order.ticket_id in cart:
        ctx.set("cart", [each for each in cart if each != order.ticket_id])
        expired.append(order.ticket_id)


@workflow
async def add_ticket_to_cart(ctx: Context, order: AddTicket) -> bool:
    tickets = ctx.stub(TicketServiceStub)  # any generated gRPC stub, every call journaled
    reply = await tickets.Reserve(ReserveRequest(ticket_id=order.ticket_id))
    if reply.success:
        cart = ctx.get("cart", list[str], default=[])
        ctx.set("cart", [*cart, order.ticket_id])  # state of the key, shared by its invocations
        ctx.send(expire_ticket.using(delay=timedelta(minutes=15), key=order.user_id), order)
    return reply.success


async def test_ticket_in_the_cart_of_a_user_expires(tmp_path: Path) -> None:
    async with service("examples.services.ticket") as address:
        url = f"sqlite:{tmp_path / 'cart.db'}"
        services = {"TicketService": address}
        async with connect(url) as client, client.worker(add_ticket_to_cart, expire_ticket, services=services):
            assert await client.run(add_ticket_to_cart.using(key="user-1"), AddTicket("user-1", "T-1"))
            assert await client.run(add_ticket_to_cart.using(key="user-1"), AddTicket("user-1", "T-2"))
            assert await client.state("user-1") == {"cart": ["T-1", "T-2"]}
            assert await client.state("user-2") == {}
            assert (await client.stats()).by_status["scheduled"] == 2


# --- 8. tests ---------------------------------------------------------------------------------------------------------
@dataclass
class Expense:
    id: str
    amount: float


@dataclass
class Approval:
    approved: bool


@step
async def notify_manager(request: Expense, id: str) -> None:
    pytest.fail("a test fakes it")


@workflow
async def expense_approval(ctx: Context, request: Expense) -> str:
    approval = ctx.awakeable(Approval)
    await notify_manager(request, approval.id)
    decision = await approval
    return "approved" if decision.approved else "rejected"


async def test_approved_after_days() -> None:
    async with Environment(expense_approval) as env:  # perdure.testing: memory store, clock that jumps, always-replay
        env.fake(notify_manager, lambda request, id: None)
        handle = await env.client.start(expense_approval, Expense("E1", 12.5))
        await env.advance(timedelta(days=3))
        await env.client.resolve(await env.awakeable(handle), Approval(True))
        assert await handle.result() == "approved"
