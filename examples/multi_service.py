"""Four calls of a service in one workflow, each journaled: after a crash only those are made that have no answer yet.

python -m examples.multi_service, or
perdure run examples/multi_service.py "Durable Execution" --service HelloService=HOST:PORT
"""

from __future__ import annotations

import asyncio

from examples import stage
from examples.services.hello_pb2 import HelloRequest
from examples.services.hello_pb2_grpc import HelloServiceStub
from perdure import Context, connect, workflow


@workflow
async def multi_service(ctx: Context, topic: str) -> list[str]:
    hello = ctx.stub(HelloServiceStub)
    names = [f"{topic} (English)", f"{topic} (Spanish)", f"{topic} (French)", "Summary"]
    return [(await hello.SayHello(HelloRequest(name=name))).message for name in names]


async def main() -> None:
    options = stage.parser(__doc__).parse_args()
    async with stage.hello_service(options.service) as services:
        with stage.store() as url:
            async with connect(url) as client, client.worker(multi_service, services=services):
                messages = await client.run(multi_service, "Durable Execution")
    print("Multi-Service Workflow Results:")
    for mark, message in zip(("1️⃣ ", "2️⃣ ", "3️⃣ ", "📊"), messages, strict=True):
        print(mark, message)
    print("Total service calls:", len(messages))


if __name__ == "__main__":
    asyncio.run(main())
