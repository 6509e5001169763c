"""One call of a gRPC service, journaled: it is not made again once its answer is recorded.

python -m examples.simple, or perdure run examples/simple.py World --service HelloService=HOST:PORT
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
                print(await client.run(hello, "World"))


if __name__ == "__main__":
    asyncio.run(main())
