"""Everything here must pass pyright strict and mypy --strict with no diagnostics."""
from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, assert_type

from examples.services.hello_pb2 import HelloRequest, HelloResponse
from examples.services.hello_pb2_grpc import HelloServiceStub
from perdure import (
    Awakeable, BulkJob, BulkPreview, BulkProgress, Call, Check, Client, Completed, Context, Continue, Delete, Document,
    Documents, Failed, Flow, Group, Handle, Invocation, Page, Put, Retry, RevisionConflict, Schedule, ScheduleHandle, ScheduleInfo, Step, StreamItem, StreamWriter, WaitQuotaOrDuration, Workflow, connect, step,
    step_info, stream, workflow,
)
from perdure.encryption import Encrypted
from perdure.testing import Environment, crash_everywhere, replay

# --- steps
@step
async def greet(name: str) -> str: return name
@step
def length(name: str) -> int: return len(name)           # sync: still awaited
@step(retry=Retry(max_attempts=5), timeout=10)
async def charge(card: str, cents: int = 100, *, currency: str = "eur") -> bytes: return b""
@step(name="slow-length")
def slow_length(name: str) -> int: return len(name)
@step
def untyped_result(x: int) -> Any: return x

def plain_fetch(url: str, timeout: float = 1.0) -> bytes: return b""
fetch = step(plain_fetch)
fetch2 = step(plain_fetch, retry=Retry(max_attempts=1))

class Client2:
    def get(self, path: str) -> bytes: return b""
bound = step(Client2().get)                               # a bound method

class Payments:
    @step
    async def charge(self, cents: int, *, note: str = "") -> str: return note
    @step(retry=Retry(max_attempts=2))
    def check(self, cents: int) -> bool: return True
    @step
    @staticmethod
    def static(cents: int) -> bool: return True

# --- workflows
@dataclass
class Approval:
    approved: bool
@dataclass
class Order:
    user: str
    items: list[str] = field(default_factory=list[str])

@workflow
async def nothing() -> None: ...
@workflow
async def hello(name: str, times: int = 1) -> int: return await length(await greet(name))
@workflow
async def only_ctx(ctx: Context) -> int: return 1
@workflow
async def with_ctx(ctx: Context, a: int) -> bytes: return b""
@workflow
async def ctx_default(ctx: Context, a: int = 1, *, b: str = "") -> bytes: return b""
@workflow
async def kwonly(*, a: int, b: str = "") -> bytes: return b""
@workflow
async def ctx_kwonly(ctx: Context, *, a: int) -> bytes: return b""
@workflow
async def star(*xs: int) -> bytes: return b""
@workflow
async def ctx_star(ctx: Context, *xs: int) -> bytes: return b""
@workflow
async def ctx_both(ctx: Context, /, *xs: int, **kw: str) -> bytes: return b""   # mypy needs the slash when there is **kw
@workflow(name="options", timeout=timedelta(hours=1))
async def options(ctx: Context, a: int) -> bytes: return b""
@workflow(aliases=["old"])
async def options_plain(a: int) -> bytes: return b""
@workflow
async def any_arg(payload: Any) -> bytes: return b""
@workflow
async def object_arg(payload: object, n: int = 0) -> bytes: return b""
@workflow
async def expense(ctx: Context, order: Order) -> str:
    assert_type(ctx.get("cart", list[str], default=[]), list[str])
    assert_type(ctx.get("cart", list[str]), list[str] | None)
    assert_type(ctx.get("n", int, 0), int)
    ctx.set("cart", ["x"])
    approval = ctx.awakeable(Approval)
    assert_type(approval, Awakeable[Approval])
    decision = await approval
    assert_type(decision, Approval)
    sent = ctx.send(hello.using(delay=timedelta(minutes=15), key=order.user), "x", times=2)
    assert_type(sent, str)
    assert_type(await hello("x"), int)                    # a child
    assert_type(await hello.using(id="c")("x", times=1), int)
    assert_type(await charge.using(timeout=60)("card", 5, currency="usd"), bytes)
    a, b = await asyncio.gather(greet("x"), length("y"))
    assert_type(a, str)
    assert_type(b, int)
    async with asyncio.TaskGroup() as tg:
        t1 = tg.create_task(length("y"))
    assert_type(t1.result(), int)
    async with asyncio.timeout(3600):
        pages = await asyncio.gather(*(fetch(u) for u in order.items))
    assert_type(pages, list[bytes])
    pay = Payments()
    assert_type(await pay.charge(3, note="n"), str)
    assert_type(await pay.check(3), bool)
    assert_type(await Payments.static(3), bool)
    assert_type(await bound("/x"), bytes)
    group = await ctx.run_all([hello.bind("a"), hello.bind("b", times=2)])
    assert_type(group, Group[int])
    return "approved" if decision.approved else "rejected"

# --- a generated gRPC stub: the one for asyncio
@workflow
async def greeting(ctx: Context, name: str) -> str:
    service = ctx.stub(HelloServiceStub, retry=Retry(max_attempts=3), timeout=5)
    reply = await service.SayHello(HelloRequest(name=name))
    assert_type(reply, HelloResponse)
    return reply.message

# --- a workflow known by its name only
@workflow.ref
async def remote(name: str, when: int | None = None) -> list[str]: ...  # type: ignore[empty-body]
by_name = workflow.ref("hello")
old_ref = workflow.ref("hello", takes=str, returns=str)

async def main() -> None:
    assert_type(length.fn("x"), Any)
    async with connect("memory:") as client, client.worker(hello, with_ctx, max_concurrent=10):
        assert_type(await client.run(nothing), None)
        assert_type(await client.run(hello, "x"), int)
        assert_type(await client.run(hello, name="x", times=3), int)
        assert_type(await client.run(only_ctx), int)
        assert_type(await client.run(with_ctx.using(key="k"), 3), bytes)
        assert_type(await client.run(with_ctx.using(key="k", when_busy="reject"), 3), bytes)
        assert_type(await client.run(ctx_default), bytes)
        assert_type(await client.run(ctx_default, b="x"), bytes)
        assert_type(await client.run(kwonly, a=1), bytes)
        assert_type(await client.run(ctx_kwonly, a=1), bytes)
        assert_type(await client.run(star, 1, 2, 3), bytes)
        assert_type(await client.run(ctx_star, 1, 2, 3), bytes)
        assert_type(await client.run(ctx_both, 1, 2, k="v"), bytes)
        assert_type(await client.run(options, 3), bytes)
        assert_type(await client.run(options_plain, 3), bytes)
        await client.run(any_arg, {"a": 1})
        assert_type(await client.run(object_arg, {"a": 1}, n=2), bytes)
        assert_type(await client.run(remote, "x", when=None), list[str])
        assert_type(await client.run(old_ref, "x"), str)
        assert_type(await client.run(by_name, 1, 2, x=3), Any)
        h = await client.start(hello.using(id="job-7", delay=5), "x", times=2)
        assert_type(h, Handle[int])
        assert_type(await h.result(timeout=30), int)
        assert_type(client.handle("job-7", hello), Handle[int])
        assert_type(client.handle("job-7"), Handle[Any])
        info = await h.describe()
        assert_type(info, Invocation)
        if info.status == "failed":
            await h.retry()
        assert_type(await h.restart(), Handle[int])
        assert_type(await h.restart(id="job-7-again"), Handle[int])
        assert_type(await h.restart(hello.using(timeout=5).bind("y", times=3), id="job-7-again"), Handle[int])
        await h.purge()
        async for item in client.list(status="failed", handler="slow", limit=100):
            assert_type(item, Invocation)
        page = await client.page(limit=10, key="k", id_prefix="job-", created_after=datetime.now(UTC), cursor=None)
        assert_type(page, Page)
        assert_type(page.next, str | None)
        async for item in client.list(cursor=page.next):
            assert_type(item.mail, tuple[str, ...])
        async with aclosing(h.watch()) as states:
            assert_type(await anext(states), Invocation)
        async for changed in client.watch(status="failed", handler="slow"):
            assert_type(changed, Invocation)
        await h.cancel(force=True, timeout=timedelta(seconds=5))
        preview = await client.bulk_preview("retry", status="failed", tags={"tenant": "acme"})
        assert_type(preview, BulkPreview)
        assert_type(await client.bulk(preview), BulkJob)
        job = await client.bulk("cancel", force=True, handler="slow", created_before=datetime.now(UTC))
        assert_type(await job.result(timeout=30), BulkProgress)
        assert_type((await job.stop()).applied, int)
        async for each_job in client.bulk_jobs():
            assert_type(each_job, BulkProgress)
        await client.resolve("awakeable", 5, timeout=0)
        group = await client.run_all([hello.bind(n) for n in "abc"], wait=WaitQuotaOrDuration(quota=3, duration=10))
        assert_type(group, Group[int])
        for outcome in group.results:
            match outcome:
                case Completed():
                    assert_type(outcome.value, int)
                case Failed(error=error):
                    assert_type(error, BaseException)
                case _:
                    assert_type(outcome.status, str)  # type: ignore[assert-type] # pyright: ignore
        x, y = await asyncio.gather(client.run(hello, "x"), client.run(with_ctx, 3))
        assert_type(x, int)
        assert_type(y, bytes)

# --- tests of workflows
async def a_test() -> None:
    async with Environment(hello, greeting, max_concurrent=5, replay=False) as env:
        env.fake(greet, lambda name: name.upper())
        async def fake_length(name: str) -> int: return len(name)
        env.fake(length, fake_length)
        env.fake("HelloService.SayHello", lambda request: HelloResponse(message="x"))
        h = await env.client.start(hello, "x")
        await env.advance(timedelta(days=3))
        await env.crash()
        env.crash_before_commit()
        env.crash_after_commit(2)
        env.fail_commits(3)
        env.redeliver()
        assert_type(await env.awakeable(h), str)
        assert_type(await h.export(), bytes)
        replay(hello, await h.export())
    for env in crash_everywhere(hello):
        async with env:
            assert_type(await env.client.run(hello, "x"), int)

# --- sync users
def script() -> None:
    client = connect("http://localhost:8080")
    client = connect("memory:", codec=Encrypted({"new": b"k" * 32}, allow_plain_until=datetime.now(UTC)))
    _ = (connect("memory:", retention=None), connect("memory:", retention=timedelta(days=30)))
    with client.blocking() as wait:
        assert_type(wait(client.run(hello, "World")), int)
        assert_type(wait(client.start(hello, "World")), Handle[int])

# --- generic code over workflows
async def twice(w: Workflow[[str], int], x: str) -> int:
    return await w(x)
def takes_step(s: Step[..., object]) -> None: ...
takes_step(greet)
def takes_calls(calls: list[Call[int]]) -> None: ...
takes_calls([hello.bind("x")])
f: Callable[[str], Any] = hello
_ = (untyped_result, slow_length, fetch2, step_info, AsyncIterator, Flow, Continue, twice, a_test)

# --- documents
@dataclass
class Token:
    name: str

async def documents(client: Client) -> None:
    notes = client.documents("notes", Token)
    assert_type(notes, Documents[Token])
    assert_type(client.documents("anything"), Documents[Any])
    assert_type(client.documents("mixed", int | str), Documents[int | str])
    note = await notes.get("ada/1")
    assert_type(note, Document[Token] | None)
    revision = await notes.put("ada/1", Token("x"), if_revision=0 if note is None else note.revision)
    assert_type(revision, int)
    try:
        await notes.put_all([Put("ada/1", Token("y"), if_revision=revision), Delete("ada/2"), Check(("ada", "3"), 0)])
        await notes.put_all([Put("ada/1", Token("y"), if_revision=revision), Put("ada/2", Token("z"))])
    except RevisionConflict as conflict:
        print(conflict.key, conflict.revision)
    async for each in notes.range("ada/", after="ada/1", limit=10, reverse=True):
        assert_type(each, Document[Token])
    assert_type(await notes.get_many(["a", ("b", "c")]), list[Document[Token] | None])
    assert_type(await notes.delete("ada/1"), bool)
    assert_type(await notes.delete_range("ada/"), int)

# --- schedules
SCHEDULES: dict[str, Schedule[Any]] = {"nightly": Schedule(hello.bind("x"), cron="0 3 * * *", timezone="Europe/Berlin")}
async def schedules(client: Client) -> None:
    nightly = client.schedule("nightly", hello)
    assert_type(nightly, ScheduleHandle[int])
    assert_type(client.schedule("nightly"), ScheduleHandle[Any])
    schedule = Schedule(hello.bind("x"), every=timedelta(hours=1), overlap="queue", catch_up=3600, jitter=1.5)
    assert_type(schedule, Schedule[int])
    assert_type(await nightly.put(schedule), bool)
    assert_type(await nightly.trigger(), Handle[int])
    assert_type(await nightly.backfill(datetime.now(UTC), datetime.now(UTC)), list[Handle[int]])
    assert_type(await nightly.next(3), list[datetime])
    assert_type(await nightly.describe(), ScheduleInfo)
    for name, each in SCHEDULES.items():
        await client.schedule(name).put(each)
    async for info in client.schedules():
        assert_type(info, ScheduleInfo)

# --- streams
@step
async def answer(prompt: str) -> str:
    tokens = stream("tokens", Token)
    assert_type(tokens, StreamWriter[Token])
    for word in prompt.split():
        tokens.write(Token(word))
        await tokens.drain()
    tokens.write_nowait(Token("last"))
    assert_type(tokens.dropped, int)
    assert_type(step_info().number, int)
    return prompt
@step
def answer_in_a_thread(prompt: str) -> str:
    stream("tokens", str | None).write(None)
    return prompt
@workflow
async def chat(ctx: Context, prompt: str) -> str:
    status = ctx.stream("status", Literal["thinking", "writing"])
    status.write("thinking")
    return await answer(prompt)
async def follow(client: Client) -> None:
    handle = await client.start(chat, "hello")
    start = 0
    async for item in handle.stream("tokens", Token, start=start):
        assert_type(item, StreamItem[Token])
        assert_type(item.value.name, str)
        assert_type((item.offset, item.attempt, item.step), tuple[int, int, int | None])
        start = item.offset + 1
    async with aclosing(client.handle("job-7", chat).stream("tokens", follow=False)) as items:
        assert_type(items, AsyncGenerator[StreamItem[Any], None])
