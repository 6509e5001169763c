"""Fire and forget: start a workflow, do something else, and fetch the result later by its id.

python -m examples.async [--service HelloService=HOST:PORT]
"""

from __future__ import annotations

import asyncio

from examples import stage
from examples.services.hello_pb2 import HelloRequest
from examples.services.hello_pb2_grpc import HelloServiceStub
from perdure import Context, connect, workflow


@workflow
async def hello(ctx: Context, name: str) -> str:
    response = await ctx.stub(HelloServiceStub).SayHello(HelloRequest(name=name))
    return response.message


async def main() -> None:
    options = stage.parser(__doc__).parse_args()
    async with stage.hello_service(options.service) as services:
        with stage.store() as url:
            async with connect(url) as client, client.worker(hello, services=services):
                submitted = (await client.start(hello, "World")).id  # durable from here on; the id is all one needs
                print("Submitted:", submitted)

                print("Doing other work...")
                await asyncio.sleep(0.2)

                handle = client.handle(submitted, hello)  # in any program that reaches the store
                print("Result:", await handle.result(timeout=30))
                print("Status:", (await handle.describe()).status)


if __name__ == "__main__":
    asyncio.run(main())
