"""The HTTP API: workflows in every status, and the requests by which they are listed, shown and approved.

python -m examples.query [--port 8080] [--stay] [--service HelloService=HOST:PORT]

Each line that begins with $ can be typed in another terminal while `--stay` keeps the server running.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack

from examples import stage
from examples.approval import Expense, expense_approval
from examples.curl import PORT, Curl, served
from examples.services.hello_pb2 import HelloRequest
from examples.services.hello_pb2_grpc import HelloServiceStub
from perdure import Context, Retry, connect, step, workflow


@step(retry=Retry(max_attempts=1))
async def refuse(name: str) -> None:
    raise ConnectionError(f"nobody answers {name}")


@workflow
async def greet(ctx: Context, name: str) -> str:
    reply = await ctx.stub(HelloServiceStub).SayHello(HelloRequest(name=name))
    if name == "Nobody":
        await refuse(name)
    return reply.message


async def main() -> None:
    parser = stage.parser(__doc__)
    parser.add_argument("--port", type=int, default=PORT, help=f"where the API listens (default: {PORT})")
    parser.add_argument("--stay", action="store_true", help="serve on, until Ctrl-C")
    options = parser.parse_args()
    logging.getLogger("perdure.worker").setLevel(logging.ERROR)  # one of the workflows is to fail
    async with AsyncExitStack() as parts:
        services = await parts.enter_async_context(stage.hello_service(options.service))
        client = await parts.enter_async_context(connect(parts.enter_context(stage.store())))
        await parts.enter_async_context(client.worker(greet, expense_approval, services=services))
        base = await served(parts, client, options.port)
        curl = Curl(base)
        parts.push_async_callback(curl.aclose)

        await client.run(greet, "Ada")
        failing = await client.start(greet, "Nobody")
        waiting = await client.start(expense_approval.using(key="ada"), Expense("Ada", 120))
        for handle, status in ((failing, "failed"), (waiting, "suspended")):
            async for each in handle.watch():
                if each.status == status:
                    break

        await curl.get("/api/workflows")
        await curl.get(f"/api/workflows/{waiting.id}")
        await curl.get("/api/workflows/stats")
        await curl.get("/api/workflows?status=completed")
        await curl.get("/api/workflows?status=failed")
        await curl.get("/api/workflows?handler=expense_approval")
        await curl.get("/api/workflows?limit=1")
        [awakeable] = (await curl.get("/api/awakeables?open=true"))["awakeables"]
        answer = {"result": json.dumps({"approved": True, "comments": "Looks good!"})}
        await curl.post(f"/api/awakeables/{awakeable['id']}/resolve", answer)
        await curl.get(f"/api/workflows/{waiting.id}/result?wait=10")
        if options.stay:
            print(f"Serving at {base}. Ctrl-C stops.")
            await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner() as runner:
        try:
            runner.run(main())
        except KeyboardInterrupt:
            print("stopped")
