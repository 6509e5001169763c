"""State of a key: a user's cart is there on the next invocation, and the one that expires a ticket finds it.

python -m examples.ticket_cart [--hold SECONDS] [--service TicketService=HOST:PORT]
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from examples import stage
from examples.services.ticket_pb2 import ReleaseRequest, ReserveRequest
from examples.services.ticket_pb2_grpc import TicketServiceStub
from perdure import Client, Context, connect, workflow


@dataclass(frozen=True)
class AddTicket:
    user: str
    ticket: str
    hold: float = 15 * 60.0
    """Seconds until the ticket leaves the cart again."""


@workflow
async def add_ticket_to_cart(ctx: Context, order: AddTicket) -> bool:
    tickets = ctx.stub(TicketServiceStub)
    reply = await tickets.Reserve(ReserveRequest(ticket_id=order.ticket))
    if reply.success:
        ctx.set("cart", [*ctx.get("cart", list[str], default=[]), order.ticket])
        ctx.send(expire_ticket.using(delay=order.hold, key=order.user), order)
    return reply.success


@workflow
async def expire_ticket(ctx: Context, order: AddTicket) -> None:
    cart = ctx.get("cart", list[str], default=[])
    if order.ticket in cart:  # nothing else changes this cart meanwhile: invocations of a key run one at a time
        await ctx.stub(TicketServiceStub).Release(ReleaseRequest(ticket_id=order.ticket))
        ctx.set("cart", [each for each in cart if each != order.ticket])


@workflow
async def show_cart(ctx: Context) -> list[str]:
    return ctx.get("cart", list[str], default=[])


WORKFLOWS = (add_ticket_to_cart, expire_ticket, show_cart)


async def add(client: Client, order: AddTicket) -> None:
    reserved = await client.run(add_ticket_to_cart.using(key=order.user), order)
    print(f"🎫 {order.user} adds {order.ticket}:", "reserved" if reserved else "taken")


async def show(client: Client, user: str) -> None:
    print(f"🛒 {user}:", await client.run(show_cart.using(key=user)))


async def shop(client: Client, hold: float) -> None:
    await add(client, AddTicket("user-1", "T-1", hold))
    await add(client, AddTicket("user-1", "T-2", hold))
    await add(client, AddTicket("user-2", "T-1", hold))
    await show(client, "user-1")

    await asyncio.sleep(hold + 0.5)
    print("⌛ Expired")
    await show(client, "user-1")
    await add(client, AddTicket("user-2", "T-1", hold))


async def main() -> None:
    parser = stage.parser(__doc__, "TicketService")
    parser.add_argument("--hold", type=float, default=1.0, metavar="SECONDS", help="(default: %(default)s)")
    options = parser.parse_args()
    async with stage.ticket_service(options.service) as services:
        with stage.store() as url:
            async with connect(url) as client, client.worker(*WORKFLOWS, services=services):
                await shop(client, options.hold)


if __name__ == "__main__":
    asyncio.run(main())
