"""Every line marked `# error` must be reported by both checkers, and no other line."""
from __future__ import annotations

import asyncio
from typing import Any

from examples.services.hello_pb2 import HelloRequest, HelloResponse
from examples.services.hello_pb2_grpc import HelloServiceStub
from perdure import Client, Context, Handle, Put, Retry, Schedule, Workflow, connect, step, stream, workflow
from perdure.encryption import Encrypted
from perdure.testing import Environment, replay

@step
async def greet(name: str) -> str: return name
@step
def length(name: str) -> int: return len(name)
class Payments:
    @step
    async def charge(self, cents: int, *, note: str = "") -> str: return note
@workflow
async def nothing() -> None: ...
@workflow
async def hello(name: str, times: int = 1) -> int: return await length(await greet(name))
@workflow
async def with_ctx(ctx: Context, a: int) -> bytes: return b""
@workflow
async def kwonly(*, a: int, b: str = "") -> bytes: return b""
@workflow
async def star(*xs: int) -> bytes: return b""
@workflow
async def obj(payload: object) -> int: return 1
@workflow.ref
async def remote(name: str) -> list[str]: ...  # type: ignore[empty-body]
@workflow                                  # error
def not_async(name: str) -> int: return 1
@step(retries=3)                           # error
async def unknown_option(name: str) -> int: return 1

@workflow
async def body(ctx: Context, n: int) -> int:
    greet("x")                             # error
    length("x")                            # error
    nothing()                              # error
    await greet(3)                         # error
    await greet()                          # error
    await greet("x", "y")                  # error
    await greet(nam="x")                   # error
    a: int = await greet("x")              # error
    b: int = length("x")                   # error
    await greet.using(key="k")("x")        # error
    await greet.using(timeout="3")("x")    # error
    await hello.using(tiemout=3)("x")      # error
    await with_ctx(ctx, 3)                 # error
    await Payments().charge("x")           # error
    await Payments().charge()              # error
    cart: list[str] = ctx.get("cart", list[str], default=[1])  # error
    c: int = ctx.get("n", int)             # error
    ctx.send(hello)                        # error
    ctx.send(hello, 3)                     # error
    ctx.send(greet, "x")                   # error
    d: int = await ctx.awakeable(str)      # error
    await ctx.run_all([hello("x")])        # error
    hello.bind()                           # error
    hello.bind(3)                          # error
    await asyncio.gather(greet(3), length("y"))  # error
    async with asyncio.TaskGroup() as tg:
        t = tg.create_task(length("y"))
    e: str = t.result()                    # error
    service = ctx.stub(HelloServiceStub)
    await service.SayHello(HelloResponse())     # error
    await service.SayHelo(HelloRequest())       # error
    service.SayHello(HelloRequest()).message    # error
    ctx.stub(HelloServiceStub, retries=3)       # error
    return a + b + c + d + len(e) + len(cart)

async def main() -> None:
    async with connect("memory:") as client, client.worker(hello, with_ctx):
        await client.run(hello, 3)         # error
        await client.run(hello)            # error
        await client.run(hello, "x", "y")  # error
        await client.run(hello, nme="x")   # error
        await client.run(with_ctx, "no")   # error
        await client.run(with_ctx.using(key=3), 3)  # error
        await client.run(with_ctx.using(key="k", when_busy="wait"), 3)  # error
        await client.run(hello.using(id="1"))  # error
        await client.run(kwonly, 1)        # error
        await client.run(kwonly)           # error
        await client.run(star, "x")        # error
        await client.run(obj)              # error
        await client.run(remote, 3)        # error
        await client.run(greet, "x")       # error
        client.run(hello, "x")             # error
        x: str = await client.run(hello, "x")  # error
        h: Handle[str] = await client.start(hello, "x")  # error
        y: str = await (await client.start(hello, "x")).result()  # error
        z: Handle[str] = client.handle("job", hello)  # error
        await z.restart(hello.bind(3))     # error
        await z.restart("other input")     # error
        z = await (await client.start(hello, "x")).restart()  # error
        await client.run_all([hello.bind("x"), hello("y")])  # error
        async for item in client.list(status="faild"):  # error
            print(item.idd)                # error
        client.list(created_after=1.0)     # error
        client.list(handlr="slow")         # error
        await client.page(limit="all")     # error
        await client.bulk("explode", status="failed")  # error
        await client.bulk("retry", handlr="slow")      # error
        await client.bulk_preview("retry", status=1)   # error
        client.watch(status="faild")       # error
        await h.watch()                    # error
        await h.pause(timeout="3")         # error
        client.worker(greet)               # error
        print(x, h, y, z)

Retry(attempts=3)                          # error
connect("memory:", retention="7d")         # error
connect("memory:", codec=Encrypted)        # error
connect("memory:", codec=b"key")           # error
Encrypted({"k": "text"})                   # error
w: Workflow[[str], str] = hello            # error
_: Any = (unknown_option, not_async, star, body)
async def a_test() -> None:
    async with Environment(greet) as env:              # error
        env.fake(greet, lambda name: 7)                # error[mypy]
        env.fake(greet, lambda: "x")                   # error
        env.fake(hello, lambda name, times: 1)         # error
        await env.advance("3 days")                    # error
        replay(greet, b"")                             # error
        replay(hello, {})                              # error
async def more() -> None:
    async with connect("memory:") as client:
        await client.run_all([greet.bind("x")])        # error
        await client.run(hello.using(retry=Retry()), "x")  # error
        await client.run("hello", "x")                 # error
        with client.blocking() as wait:
            q: str = wait(client.run(hello, "x"))      # error
            print(q)

class Token:
    name: str
async def documents(client: Client) -> None:
    notes = client.documents("notes", Token)
    await notes.put("a", 7)                            # error
    await notes.put("a", Token(), if_revision="new")   # error
    await notes.put("a", Token(), revision=3)          # error
    await notes.put_all([Put("a", 7)])                 # error
    await notes.put_all({"a": Token()})                # error
    (await notes.get("a")).value                       # error
    await notes.range("a/")                            # error
    await notes.delete(prefix="a/")                    # error
    await notes.get(7)                                 # error
    async for note in notes.range("a/"):
        print(note.value.id)                           # error

async def schedules(client: Client) -> None:
    nightly = client.schedule("nightly", hello)
    Schedule(hello, every=60)                          # error
    Schedule(hello.bind(7), every=60)                  # error
    Schedule(hello.bind("x"), "* * * * *")             # error
    Schedule(hello.bind("x"), every="1h")              # error
    Schedule(hello.bind("x"), every=60, overlap="no")  # error
    await nightly.put(hello.bind("x"))                 # error
    await nightly.pause(5)                             # error
    text: str = await (await nightly.trigger()).result()  # error
    await nightly.backfill("yesterday", "today")       # error
    await client.schedules()                           # error

async def streams(ctx: Context, client: Client) -> None:
    stream("tokens")                                         # error
    stream("tokens", str).write(3)                           # error
    stream("tokens", str).write_nowait(3)                    # error
    ctx.stream("tokens", str).write(None)                    # error
    ctx.stream("tokens", str).send("x")                      # error
    ctx.stream("tokens", str).drain()                        # error
    handle = client.handle("x", hello)
    async for item in handle.stream("tokens", str):
        item.value + 1                                       # error
    async for item in handle.stream("tokens", int, start="0"): pass    # error
    async for item in handle.stream(): pass                  # error
    for item in handle.stream("tokens", str): pass           # error
