"""The HTTP API: workflows in every status, and the requests by which they are listed, shown and approved.

python -m examples.query [--port 8080] [--stay] [--service HelloService=HOST:PORT]

Each line that begins with $ can be typed in another terminal while `--stay` keeps the server running.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
from contextlib import AsyncExitStack
from typing import Any

import httpx

from examples import stage
from examples.approval import Expense, expense_approval
from examples.services.hello_pb2 import HelloRequest
from examples.services.hello_pb2_grpc import HelloServiceStub
from perdure import Client, Context, Retry, connect, http, step, workflow
from perdure.errors import InvalidOption
from perdure.http.server import Server, address_of

PORT = 8080


@step(retry=Retry(max_attempts=1))
async def refuse(name: str) -> None:
    raise ConnectionError(f"nobody answers {name}")


@workflow
async def greet(ctx: Context, name: str) -> str:
    reply = await ctx.stub(HelloServiceStub).SayHello(HelloRequest(name=name))
    if name == "Nobody":
        await refuse(name)
    return reply.message


class Curl:
    """Shows requests as commands for a shell, sends them, and shows what came."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._http = httpx.AsyncClient(base_url=base)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> Any:
        print(f'$ curl "{self._base}{path}"')
        return self._shown(await self._http.get(path))

    async def post(self, path: str, body: object) -> Any:
        text = json.dumps(body)
        print(
            f"$ curl -X POST {self._base}{path} \\\n  -H 'Content-Type: application/json' \\\n  -d {shlex.quote(text)}"
        )
        return self._shown(await self._http.post(path, content=text, headers={"Content-Type": "application/json"}))

    def _shown(self, response: httpx.Response) -> Any:
        print(json.dumps(found := response.json(), indent=2, ensure_ascii=False), "\n")
        return found


async def served(parts: AsyncExitStack, client: Client, port: int) -> str:
    """Serve the API at a port, or at a free one if that is taken; return its URL."""
    try:
        server = await parts.enter_async_context(Server(http.app(client), address_of(str(port))))
    except InvalidOption:
        server = await parts.enter_async_context(Server(http.app(client), address_of("0")))
    return f"http://localhost:{server.address.port}"


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
