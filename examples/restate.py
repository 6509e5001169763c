"""All patterns side by side: durable calls, references, local mode, composition, delayed sends, answers, state.

python -m examples.restate [--service HelloService=HOST:PORT]
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from examples import stage
from examples.services.hello_pb2 import HelloRequest
from examples.services.hello_pb2_grpc import HelloServiceStub
from perdure import Client, Context, connect, step, workflow


@workflow
async def greeting(ctx: Context, name: str) -> str:
    response = await ctx.stub(HelloServiceStub).SayHello(HelloRequest(name=name))
    return response.message


elsewhere = workflow.ref("greeting", takes=str, returns=str)
"""The same workflow, as a program names it that has only its name and types."""


@workflow
async def greet_many(names: list[str]) -> list[str]:
    return await asyncio.gather(*(greeting(name) for name in names))  # children, side by side


@workflow
async def greet_later(ctx: Context, name: str, delay: float) -> str:
    return ctx.send(greeting.using(delay=delay), name)  # not awaited: the id of a run to come


questions: asyncio.Queue[str] = asyncio.Queue()


@step
async def ask(awakeable_id: str) -> None:
    await questions.put(awakeable_id)


@workflow
async def greet_whom(ctx: Context) -> str:
    name = ctx.awakeable(str)
    await ask(name.id)
    return await greeting(await name)


@workflow
async def visit(ctx: Context) -> str:
    visits = ctx.get("visits", int, default=0) + 1  # the state belongs to the key, and its runs go one at a time
    ctx.set("visits", visits)
    return f"visit {visits} of {ctx.key}"


WORKFLOWS = (greeting, greet_many, greet_later, greet_whom, visit)


async def patterns(client: Client) -> None:
    print("2. Type-safe call:", await client.run(greeting, "Restate-Style"))
    print("3. By reference:  ", await client.run(elsewhere, "Remote"))
    print("4. Composition:")
    for message in await client.run(greet_many, ["Alice", "Bob", "Charlie"]):
        print("                  ", message)

    later = client.handle(await client.run(greet_later, "Later", 0.2), greeting)
    print("5. Delayed send:  ", await later.result())

    asked = await client.start(greet_whom)
    await client.resolve(await questions.get(), "Awakeable")
    print("6. Outside answer:", await asked.result())

    visits = [await client.start(visit.using(key="Alice")) for _ in range(3)]
    print("7. State of a key:", ", ".join([await each.result() for each in visits]))


async def local(services: Mapping[str, str]) -> None:
    async with connect("memory:") as client, client.worker(greeting, services=services):
        print("1. Local mode:    ", await client.run(greeting, "Local"))


async def main() -> None:
    options = stage.parser(__doc__).parse_args()
    async with stage.hello_service(options.service) as services:
        await local(services)
        with stage.store() as url:
            async with connect(url) as client, client.worker(*WORKFLOWS, services=services):
                await patterns(client)


if __name__ == "__main__":
    asyncio.run(main())
