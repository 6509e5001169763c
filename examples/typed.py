"""Types from end to end: arguments and results are checked before the program runs, and decoded by the annotations.

python -m examples.typed, or perdure run examples/typed.py '{"name": "TypeSafe World"}' --service HelloService=HOST:PORT
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from examples import stage
from examples.services.hello_pb2 import HelloRequest
from examples.services.hello_pb2_grpc import HelloServiceStub
from perdure import Context, connect, step, workflow


@dataclass(frozen=True)
class Guest:
    name: str
    languages: tuple[str, ...] = ("English",)


@dataclass(frozen=True)
class Greeting:
    guest: Guest
    message: str
    words: int


@step
def count_words(text: str) -> int:
    return len(text.split())


@workflow
async def greet(ctx: Context, guest: Guest) -> Greeting:
    response = await ctx.stub(HelloServiceStub).SayHello(HelloRequest(name=guest.name))
    return Greeting(guest, response.message, await count_words(response.message))


async def main() -> None:
    options = stage.parser(__doc__).parse_args()
    async with stage.hello_service(options.service) as services:
        with stage.store() as url:
            async with connect(url) as client, client.worker(greet, services=services):
                greeting = await client.run(greet, Guest("TypeSafe World"))  # a Greeting, for a type checker too
                # await client.run(greet, "TypeSafe World")  is an error: a Guest is wanted, not a str
    print(greeting.message)
    print(f"{greeting.words} words for {greeting.guest}")


if __name__ == "__main__":
    asyncio.run(main())
