"""A saga: for each step it is said how to undo it; when one fails, what was done is undone in reverse order.

python -m examples.saga [--service TicketService=HOST:PORT]
"""

from __future__ import annotations

import asyncio

from examples import stage
from examples.services.ticket_pb2 import ReleaseRequest, ReserveRequest
from examples.services.ticket_pb2_grpc import TicketServiceStub
from perdure import Client, Context, connect, workflow


class SoldOut(Exception):
    pass


@workflow
async def book(ctx: Context, tickets: list[str]) -> str:
    service = ctx.stub(TicketServiceStub)
    async with ctx.saga() as saga:
        for ticket in tickets:
            if not (await service.Reserve(ReserveRequest(ticket_id=ticket))).success:
                raise SoldOut(f"{ticket} is taken")
            saga.add_compensation(service.Release, ReleaseRequest(ticket_id=ticket))
    return f"booked {', '.join(tickets)}"


async def attempt(client: Client, *tickets: str) -> None:
    handle = await client.start(book, [*tickets])
    try:
        print("✅", await handle.result())
    except SoldOut as error:
        print("❌", error)
    for call in (await handle.describe()).journal:
        print(f"     {call.step_type}")


async def main() -> None:
    options = stage.parser(__doc__, "TicketService").parse_args()
    async with stage.ticket_service(options.service) as services:
        with stage.store() as url:
            async with connect(url) as client, client.worker(book, services=services):
                await attempt(client, "flight", "hotel")
                await attempt(client, "museum", "theatre", "hotel")  # the hotel is taken: museum and theatre go back
                await attempt(client, "theatre", "museum")  # so they are free again


if __name__ == "__main__":
    asyncio.run(main())
