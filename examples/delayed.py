"""Delayed execution: a workflow schedules another one. The delay is in the store, so nothing needs to run meanwhile.

python -m examples.delayed [--delay SECONDS] [--service HelloService=HOST:PORT]
"""

from __future__ import annotations

import asyncio
import time

from examples import stage
from examples.services.hello_pb2 import HelloRequest
from examples.services.hello_pb2_grpc import HelloServiceStub
from perdure import Context, connect, workflow


@workflow
async def delayed_greeting(ctx: Context, name: str) -> str:
    response = await ctx.stub(HelloServiceStub).SayHello(HelloRequest(name=name))
    return response.message


@workflow
async def scheduler(ctx: Context, name: str, delay: float) -> str:
    await ctx.stub(HelloServiceStub).SayHello(HelloRequest(name="Scheduler"))
    return ctx.send(delayed_greeting.using(delay=delay), name)  # sent exactly once; it outlives this workflow


async def main() -> None:
    parser = stage.parser(__doc__)
    parser.add_argument("--delay", type=float, default=1.0, metavar="SECONDS", help="(default: %(default)s)")
    options = parser.parse_args()
    async with stage.hello_service(options.service) as services:
        with stage.store() as url:
            async with connect(url) as client:
                async with client.worker(scheduler, delayed_greeting, services=services):
                    began = time.monotonic()
                    greeting = client.handle(
                        await client.run(scheduler, "Delayed World", options.delay), delayed_greeting
                    )
                    print("⏰ Scheduled greeting for future execution")
                    print("Status:", (await greeting.describe()).status)
                print("The worker has stopped; another one starts.")
                async with client.worker(scheduler, delayed_greeting, services=services):
                    message = await greeting.result()
                    early = time.monotonic() - began < options.delay
                    print("Too early!" if early else f"After {options.delay:g} s:", message)


if __name__ == "__main__":
    asyncio.run(main())
