"""`ctx.stub` against services that really run: what works with the shop works with any generated stub."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2  # pyright: ignore[reportMissingTypeStubs]

from examples.services.hello_pb2 import HelloRequest, HelloResponse
from examples.services.hello_pb2_grpc import HelloServiceStub
from examples.services.process import service
from examples.services.ticket_pb2 import ReserveRequest
from examples.services.ticket_pb2_grpc import TicketServiceStub
from perdure import Context, Retry, connect, step, workflow
from perdure.authoring.workflow import Workflow
from perdure.client import Client
from perdure.errors import (
    CalledOutsideWorkflow,
    InvalidOption,
    IoInWorkflow,
    NotRepeatable,
    PerdureError,
    ServiceUnknown,
    Unencodable,
)
from perdure.integrations.grpc import RETRIED, Channels, StatusRetry
from tests.grpc.shop_pb2 import (
    CHANNEL_COUNTER,
    AuditReport,
    AuditRequest,
    Cart,
    Line,
    TrackRequest,
    Transfer,
    Trouble,
)
from tests.grpc.shop_pb2_grpc import ShopStub

SHOP = "tests.grpc.shop_service"
HELLO = "examples.services.hello"
TICKET = "examples.services.ticket"

HANGS_S = 45
"""A test that takes longer waits for what will not come."""

AT_ONCE = Retry(initial=0.01, maximum=0.01)
"""Ten attempts without much of a wait."""

UNAVAILABLE = 14
NOT_FOUND = 5
UNKNOWN = 2

pytestmark = pytest.mark.slow


@dataclass
class Shop:
    """A running shop, and what it saw."""

    address: str

    async def audit(self, cart_id: str) -> AuditReport:
        async with grpc.aio.insecure_channel(self.address) as channel:
            return await ShopStub(channel).Audit(AuditRequest(cart_id=cart_id))


@asynccontextmanager
async def shop(*options: str) -> AsyncGenerator[Shop]:
    async with service(SHOP, *options) as address:
        yield Shop(address)


@asynccontextmanager
async def serving(
    services: Mapping[str, str], *workflows: Workflow[..., Any], cache: int = 0
) -> AsyncGenerator[Client]:
    """A client whose worker forgets every suspended body, so that each `sleep` in it is followed by a replay."""
    async with connect("memory:") as client, client.worker(*workflows, services=services, cache=cache):
        async with asyncio.timeout(HANGS_S):
            yield client


def cart(id: str, *, code: int = 0, times: int = 0, delay_s: float = 0.0, empty: bool = False) -> Cart:
    lines = [] if empty else [Line(sku="a", cents=250)]
    return Cart(id=id, lines=lines, trouble=Trouble(code=code, times=times, delay_s=delay_s))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    trailing = dict(error.trailing_metadata())
    packed = trailing["grpc-status-details-bin"]
    assert isinstance(packed, bytes)
    status = status_pb2.Status.FromString(packed)
    debug = error.debug_error_string() or ""
    reason = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(reason)
    return {
        "class": f"{type(error).__module__}.{type(error).__qualname__}",
        "code": error.code().name,
        "details": error.details(),
        "reason": trailing["shop-reason"],
        "field": reason.field_violations[0].field,
        "initial": len(error.initial_metadata()),
        "debug": "the cart is empty" in debug,
    }


# --- calls that work --------------------------------------------------------------------------------------------------
async def test_call_returns_the_reply_and_is_named_after_service_and_method() -> None:
    @workflow
    async def greet(ctx: Context, name: str) -> str:
        reply = await ctx.stub(HelloServiceStub).SayHello(HelloRequest(name=name))
        assert isinstance(reply, HelloResponse)
        return reply.message

    async with service(HELLO) as address, serving({"HelloService": address}, greet) as client:
        handle = await client.start(greet, "World")
        assert (await handle.result()).startswith("Hello, World!")
        described = await handle.describe()
    assert [(each.step_type, each.status) for each in described.journal] == [("HelloService.SayHello", "completed")]
    assert HelloResponse.FromString(described.journal[0].result).message.startswith("Hello, World!")


async def test_every_field_of_a_message_survives_the_journal() -> None:
    sent = Cart(
        id="c",
        lines=[Line(sku="a", cents=250), Line(sku="b", cents=-50, note="")],
        labels={"gift": "yes", "a": "b", "z": ""},
        channel=CHANNEL_COUNTER,
        placed_at=Timestamp(seconds=1_700_000_000, nanos=1),
        signature=b"\x00\xff",
        transfer=Transfer(iban="x"),
    )

    @workflow
    async def buy(ctx: Context) -> list[Any]:
        receipt = await ctx.stub(ShopStub).Checkout(sent)
        await asyncio.sleep(0.01)
        notes = [line.HasField("note") for line in receipt.cart.lines]
        return [receipt.cart == sent, receipt.total_cents, receipt.paid_by, receipt.calls, notes]

    async with shop() as running, serving({"Shop": running.address}, buy) as client:
        assert await client.run(buy) == [True, 200, "transfer", 1, [False, True]]
        assert len((await running.audit("c")).calls) == 1


async def test_replay_makes_no_call_again() -> None:
    @workflow
    async def buy(ctx: Context) -> list[int]:
        shop = ctx.stub(ShopStub)
        counts: list[int] = []
        for _ in range(3):
            counts.append((await shop.Checkout(cart("r"))).calls)
            await asyncio.sleep(0.01)
        return counts

    async with shop() as running, serving({"acme.shop.v2.Shop": running.address}, buy) as client:
        assert await client.run(buy) == [1, 2, 3]
        assert len((await running.audit("r")).calls) == 3


async def test_calls_run_side_by_side_in_gather_tasks_and_groups() -> None:
    @workflow
    async def many(ctx: Context) -> list[str]:
        hello = ctx.stub(HelloServiceStub)
        first = await asyncio.gather(*(hello.SayHello(HelloRequest(name=str(n))) for n in range(10)))
        async with asyncio.TaskGroup() as group:

            async def one(n: int) -> HelloResponse:
                return await hello.SayHello(HelloRequest(name=str(n)))

            tasks = [group.create_task(one(n)) for n in range(10, 13)]
        future = asyncio.ensure_future(hello.SayHello(HelloRequest(name="13")))
        waited = await asyncio.wait_for(hello.SayHello(HelloRequest(name="14")), 60)
        async with asyncio.timeout(60):
            last = await hello.SayHello(HelloRequest(name="15"))
        replies = [*first, *(task.result() for task in tasks), await future, waited, last]
        replies += [await each for each in asyncio.as_completed([hello.SayHello(HelloRequest(name="16"))])]
        await asyncio.sleep(0.01)
        return [reply.message.split("!")[0] for reply in replies]

    async with service(HELLO, "--delay", "0.3") as address, serving({"HelloService": address}, many) as client:
        begun = asyncio.get_running_loop().time()
        assert await client.run(many) == [f"Hello, {n}" for n in range(17)]
        assert asyncio.get_running_loop().time() - begun < 16 * 0.3


async def test_call_begins_when_it_is_made_and_not_when_it_is_awaited() -> None:
    @workflow
    async def eager(ctx: Context) -> list[str]:
        hello = ctx.stub(HelloServiceStub)
        first, second = hello.SayHello(HelloRequest(name="1")), hello.SayHello(HelloRequest(name="2"))
        return [(await second).message[:8], (await first).message[:8], (await first).message[:8]]

    async with service(HELLO) as address, serving({"HelloService": address}, eager) as client:
        handle = await client.start(eager)
        assert await handle.result() == ["Hello, 2", "Hello, 1", "Hello, 1"]
        journal = (await handle.describe()).journal
    assert [HelloResponse.FromString(each.result).message[:8] for each in journal] == ["Hello, 1", "Hello, 2"]


async def test_call_object_tells_what_became_of_it() -> None:
    seen: list[Any] = []

    @workflow
    async def curious(ctx: Context) -> list[Any]:
        shop = ctx.stub(ShopStub)
        good, bad = shop.Checkout(cart("good")), shop.Checkout(cart("bad", code=NOT_FOUND, times=9))
        good.add_done_callback(lambda call: seen.append(call is good))
        before = (good.done(), good.cancelled())
        codes = [await good.code(), await bad.code()]
        texts = [await good.details(), await bad.details()]
        metadata = [len(await good.initial_metadata()), len(await bad.trailing_metadata())]
        assert isinstance(good, grpc.aio.UnaryUnaryCall)
        with pytest.raises(NotRepeatable, match=r"time_remaining\(\) of Shop.Checkout"):
            good.time_remaining()
        with pytest.raises(IoInWorkflow, match="wait_for_ready=True"):
            await good.wait_for_connection()
        return [before, (good.done(), bad.done()), [code.name for code in codes], texts, metadata, good.cancel()]

    async with shop() as running, serving({"Shop": running.address}, curious, cache=100) as client:
        told = await client.run(curious)
    assert told == [
        [False, False],
        [True, True],
        ["OK", "NOT_FOUND"],
        ["", "told to fail, call 1"],
        [0, 0],
        False,
    ]
    assert seen == [True]


async def test_reply_metadata_is_journaled_when_there_is_some() -> None:
    class Echo(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            async def echo(request: bytes, context: Any) -> bytes:
                await context.send_initial_metadata((("first", "1"),))
                context.set_trailing_metadata((("last-bin", b"\x00\xff"),))
                return request

            handler: Any = grpc.unary_unary_rpc_method_handler
            return handler(echo)

    class EchoStub:
        def __init__(self, channel: grpc.aio.Channel) -> None:
            self.Echo: Any = channel.unary_unary("/raw.Echo/Echo")

    @workflow
    async def echo(ctx: Context) -> list[Any]:
        call = ctx.stub(EchoStub).Echo(b"raw")
        reply = await call
        await asyncio.sleep(0.01)
        return [reply, list(await call.initial_metadata()), list(await call.trailing_metadata())]

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with serving({"Echo": f"127.0.0.1:{port}"}, echo) as client:
        assert await client.run(echo) == [b"raw", [["first", "1"]], [["last-bin", b"\x00\xff"]]]
    await server.stop(None)


# --- failures ---------------------------------------------------------------------------------------------------------
async def test_status_is_the_same_exception_on_the_first_run_and_on_replay() -> None:
    told: list[dict[str, Any]] = []

    @workflow
    async def refused(ctx: Context) -> bool:
        try:
            await ctx.stub(ShopStub).Checkout(cart("e", empty=True))
        except grpc.aio.AioRpcError as error:
            told.append(status_of(error))
        await asyncio.sleep(0.01)
        return True

    async with shop() as running, serving({"Shop": running.address}, refused) as client:
        assert await client.run(refused)
        assert len((await running.audit("e")).calls) == 1
    assert len(told) >= 2
    assert all(each == told[0] for each in told)
    assert told[0] == {
        "class": "grpc.aio._call.AioRpcError",
        "code": "INVALID_ARGUMENT",
        "details": "the cart is empty",
        "reason": "empty-cart",
        "field": "lines",
        "initial": 0,
        "debug": True,
    }


async def test_status_that_the_body_lets_through_reaches_the_client() -> None:
    @workflow
    async def refused(ctx: Context) -> None:
        await ctx.stub(ShopStub).Checkout(cart("e", empty=True))

    async with shop() as running, serving({"Shop": running.address}, refused) as client:
        with pytest.raises(grpc.RpcError) as failed:
            await client.run(refused)
    assert isinstance(failed.value, grpc.aio.AioRpcError)
    assert status_of(failed.value)["field"] == "lines"


async def test_status_of_a_blocking_stub_in_a_step_tells_its_code_too() -> None:
    addresses: list[str] = []

    @step(retry=Retry(max_attempts=1))
    def blocking() -> None:
        with grpc.insecure_channel(addresses[0]) as channel:
            ShopStub(channel).Checkout(cart("e", empty=True))

    @workflow
    async def refused() -> list[str]:
        try:
            await blocking()
        except grpc.RpcError as error:
            call: Any = error
            text = str(error)
            await asyncio.sleep(0.01)
            return [
                call.code().name,
                call.details(),
                dict(call.trailing_metadata())["shop-reason"],
                text.split("\n")[0],
            ]
        return []

    async with shop() as running, serving({}, refused) as client:
        addresses.append(running.address)
        told = await client.run(refused)
    assert told[:3] == ["INVALID_ARGUMENT", "the cart is empty", "empty-cart"]
    assert told[3].startswith("<")


async def test_reply_that_does_not_decode_fails_the_call_and_is_not_journaled() -> None:
    class Garbled:
        def __init__(self, channel: grpc.aio.Channel) -> None:
            self.Reserve: Any = channel.unary_unary(
                "/ticket.TicketService/Reserve",
                request_serializer=ReserveRequest.SerializeToString,
                response_deserializer=Timestamp.FromString,
            )

    class NoTimestamp:
        def __init__(self, channel: grpc.aio.Channel) -> None:
            def deserialize(data: bytes) -> None:
                raise ValueError("not what was agreed")

            self.Reserve: Any = channel.unary_unary(
                "/ticket.TicketService/Reserve",
                request_serializer=ReserveRequest.SerializeToString,
                response_deserializer=deserialize,
            )

    @workflow
    async def reserve(ctx: Context) -> list[str]:
        await ctx.stub(Garbled).Reserve(ReserveRequest(ticket_id="T"))
        call = ctx.stub(NoTimestamp).Reserve(ReserveRequest(ticket_id="T"))
        return [(await call.code()).name, await call.details()]

    async with service(TICKET) as address, serving({"TicketService": address}, reserve) as client:
        code, details = await client.run(reserve)
    assert (code, details) == ("INTERNAL", "the reply of TicketService.Reserve does not decode: not what was agreed")


# --- retries ----------------------------------------------------------------------------------------------------------
async def test_call_waits_for_a_service_that_comes_up_later() -> None:
    @workflow
    async def patient(ctx: Context) -> str:
        return (await ctx.stub(HelloServiceStub).SayHello(HelloRequest(name="late"))).message[:11]

    port = free_port()
    async with serving({"HelloService": f"127.0.0.1:{port}"}, patient) as client:
        handle = await client.start(patient)
        async with asyncio.timeout(20):
            while not (described := await handle.describe()).journal or not described.journal[0].attempts:
                await asyncio.sleep(0.02)
        async with service(HELLO, "--port", str(port)):
            assert await handle.result(timeout=30) == "Hello, late"


async def test_idempotency_key_is_the_same_on_every_attempt_and_differs_between_calls() -> None:
    @workflow
    async def persistent(ctx: Context) -> list[int]:
        shop = ctx.stub(ShopStub, retry=AT_ONCE)
        metadata = (("tenant", "acme"), ("trace-bin", b"\x00\x01"))
        first = await shop.Checkout(cart("k", code=UNAVAILABLE, times=2), metadata=metadata)
        second = await shop.Checkout(cart("k"))
        return [first.calls, second.calls]

    async with shop() as running, serving({"Shop": running.address}, persistent) as client:
        handle = await client.start(persistent.using(id="büro 7"))
        assert await handle.result() == [3, 4]
        calls = (await running.audit("k")).calls
    carried = [call.metadata for call in calls]
    assert [each["perdure-attempt"] for each in carried] == ["1", "2", "3", "1"]
    keys = [each["perdure-idempotency-key"] for each in carried]
    assert len(set(keys[:3])) == 1
    assert keys[3] != keys[0]
    assert {each["perdure-invocation-id"] for each in carried} == {"b%C3%BCro%207"}
    assert [each.get("tenant") for each in carried] == ["acme"] * 3 + [None]


async def test_service_that_dedupes_by_the_key_reserves_once() -> None:
    @workflow
    async def reserve(ctx: Context) -> list[bool]:
        tickets = ctx.stub(TicketServiceStub)
        return [(await tickets.Reserve(ReserveRequest(ticket_id="T-1"))).success for _ in range(2)]

    async with service(TICKET) as address, serving({"ticket.TicketService": address}, reserve) as client:
        assert await client.run(reserve) == [True, False]


@pytest.mark.parametrize(
    ("code", "retry", "calls"),
    [
        (NOT_FOUND, AT_ONCE, 1),
        (UNKNOWN, AT_ONCE, 1),
        (UNAVAILABLE, AT_ONCE, 3),
        (UNAVAILABLE, Retry(max_attempts=2, initial=0.01), 2),
        (NOT_FOUND, Retry(on=(grpc.RpcError,), initial=0.01), 3),
        (NOT_FOUND, StatusRetry(codes={grpc.StatusCode.NOT_FOUND}, initial=0.01), 3),
        (UNAVAILABLE, StatusRetry(codes={grpc.StatusCode.NOT_FOUND}, initial=0.01), 1),
    ],
)
async def test_status_code_decides_whether_a_call_is_tried_again(code: int, retry: Retry, calls: int) -> None:
    @workflow
    async def buy(ctx: Context) -> str:
        return (await ctx.stub(ShopStub, retry=retry).Checkout(cart("p", code=code, times=2)).code()).name

    async with shop() as running, serving({"Shop": running.address}, buy) as client:
        outcome = await client.run(buy)
        assert len((await running.audit("p")).calls) == calls
    assert (outcome == "OK") == (calls == 3)


def test_codes_tried_again_are_those_that_a_wait_can_cure() -> None:
    assert sorted(code.name for code in RETRIED) == ["DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE"]
    retry = StatusRetry(max_attempts=2, jitter=0)

    def failed(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "", "")

    assert {code for code in grpc.StatusCode if retry.delay(failed(code), 1, 0.5) is not None} == RETRIED
    assert retry.delay(failed(grpc.StatusCode.UNAVAILABLE), 2, 0.5) is None
    assert retry.delay(ValueError("a bug is no status"), 1, 0.5) is None


# --- time limits and cancellation -------------------------------------------------------------------------------------
async def test_timeout_is_a_deadline_that_the_service_sees() -> None:
    once = Retry(max_attempts=1)

    @workflow
    async def hurry(ctx: Context) -> list[str]:
        slow = await ctx.stub(ShopStub, retry=once).Checkout(cart("slow", delay_s=30), timeout=0.2).code()
        await ctx.stub(ShopStub, retry=once, timeout=40).Checkout(cart("long"))
        await ctx.stub(ShopStub, retry=once, timeout=40).Checkout(cart("short"), timeout=20)
        await ctx.stub(ShopStub).Checkout(cart("none"))
        return [slow.name]

    async with shop() as running, serving({"Shop": running.address}, hurry) as client:
        assert await client.run(hurry) == ["DEADLINE_EXCEEDED"]
        left = {id: (await running.audit(id)).calls[0] for id in ("slow", "long", "short", "none")}
        assert left["slow"].cancelled
    assert 0 < left["slow"].time_remaining_s < 1
    assert 25 < left["long"].time_remaining_s < 45
    assert 10 < left["short"].time_remaining_s < 25
    assert not left["none"].HasField("time_remaining_s")


async def test_attempt_that_passes_its_deadline_is_tried_again() -> None:
    @workflow
    async def hurry(ctx: Context) -> str:
        retry = Retry(max_attempts=3, initial=0.01)
        return (await ctx.stub(ShopStub, retry=retry, timeout=0.1).Checkout(cart("d", delay_s=30)).code()).name

    async with shop() as running, serving({"Shop": running.address}, hurry) as client:
        assert await client.run(hurry) == "DEADLINE_EXCEEDED"
        assert len((await running.audit("d")).calls) == 3


async def test_cancelled_call_is_cancelled_at_the_service() -> None:
    @workflow
    async def impatient(ctx: Context) -> list[Any]:
        shop = ctx.stub(ShopStub)
        try:
            async with asyncio.timeout(0.3):
                await shop.Checkout(cart("x", delay_s=30))
        except TimeoutError:
            pass
        call = shop.Checkout(cart("y", delay_s=30))
        await asyncio.sleep(0.3)
        asked = call.cancel()
        code = (await call.code()).name
        with pytest.raises(asyncio.CancelledError):
            await call
        return [asked, code, call.cancelled(), call.cancel()]

    async with shop() as running, serving({"Shop": running.address}, impatient, cache=100) as client:
        assert await client.run(impatient) == [True, "CANCELLED", True, False]
        async with asyncio.timeout(10):
            while not all([(await running.audit(id)).calls[0].cancelled for id in ("x", "y")]):
                await asyncio.sleep(0.02)


# --- what is refused --------------------------------------------------------------------------------------------------
async def test_streaming_method_refuses_when_called_and_works_in_a_step() -> None:
    addresses: list[str] = []

    @step
    async def places(cart_id: str) -> list[str]:
        async with grpc.aio.insecure_channel(addresses[0]) as channel:
            return [position.place async for position in ShopStub(channel).Track(TrackRequest(cart_id=cart_id))]

    @workflow
    async def track(ctx: Context) -> list[str]:
        shop = ctx.stub(ShopStub)
        with pytest.raises(IoInWorkflow, match=r"Shop\.Track .*call it in a step"):
            shop.Track(TrackRequest(cart_id="s"))
        with pytest.raises(IoInWorkflow, match=r"Shop\.Import"):
            shop.Import(iter(()))
        with pytest.raises(IoInWorkflow, match=r"Shop\.Chat"):
            shop.Chat()
        return await places("s")

    async with shop() as running, serving({"Shop": running.address}, track) as client:
        addresses.append(running.address)
        assert await client.run(track) == ["warehouse", "road", "door"]


async def test_call_of_a_service_without_an_address_fails_at_once_and_names_those_known() -> None:
    @workflow
    async def buy(ctx: Context) -> None:
        await ctx.stub(ShopStub).Checkout(cart("u"))

    @workflow
    async def ask(ctx: Context) -> str:
        try:
            return (await ctx.stub(ShopStub).Checkout(cart("u")).code()).name
        except ServiceUnknown as error:
            return error.service

    async with serving({"TicketService": "127.0.0.1:1", "hello.HelloService": "127.0.0.1:1"}, buy, ask) as client:
        with pytest.raises(ServiceUnknown) as failed:
            await asyncio.wait_for(client.run(buy), 5)
        assert await client.run(ask) == "acme.shop.v2.Shop"
    for part in ("acme.shop.v2.Shop", "TicketService", "hello.HelloService", "services={"):
        assert part in str(failed.value)


async def refused_call(call: Callable[[Context], Any]) -> PerdureError:
    """Run a body that makes one call which is refused where it is made; return what it raised."""

    @workflow
    async def body(ctx: Context) -> None:
        await call(ctx)

    async with serving({"Shop": "127.0.0.1:1"}, body) as client:
        with pytest.raises(PerdureError) as failed:
            await asyncio.wait_for(client.run(body), 5)
    return failed.value


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"metadata": (("Tenant", "x"),)}, "'Tenant' is not a name"),
        ({"metadata": (("tenant", "ä"),)}, "printable ASCII"),
        ({"metadata": (("tenant", 7),)}, "printable ASCII"),
        ({"metadata": (("tenant-bin", "x"),)}, "must be bytes"),
        ({"metadata": 7}, "pairs of a name and a value"),
        ({"timeout": 0}, "timeout of Shop.Checkout"),
        ({"timeout": "soon"}, "timeout of Shop.Checkout"),
    ],
)
async def test_option_that_makes_no_sense_is_refused_where_the_call_is_made(options: dict[str, Any], text: str) -> None:
    error = await refused_call(lambda ctx: ctx.stub(ShopStub).Checkout(cart("o"), **options))
    assert isinstance(error, InvalidOption)
    assert text in str(error)


async def test_request_that_is_no_message_is_refused_where_the_call_is_made() -> None:
    wrong: Any = {"id": "c"}
    error = await refused_call(lambda ctx: ctx.stub(ShopStub).Checkout(wrong))
    assert isinstance(error, Unencodable)
    assert "the request of Shop.Checkout, a dict, cannot be serialized" in str(error)


async def test_stub_of_a_workflow_refuses_inside_a_step() -> None:
    stubs: list[Any] = []

    @step(retry=Retry(max_attempts=1))
    async def borrowed() -> None:
        await stubs[0].Checkout(cart("b"))

    @workflow
    async def lend(ctx: Context) -> None:
        stubs.append(ctx.stub(ShopStub))
        await borrowed()

    async with serving({"Shop": "127.0.0.1:1"}, lend) as client:
        with pytest.raises(CalledOutsideWorkflow, match=r"Shop\.Checkout"):
            await client.run(lend)


# --- addresses --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost",
        "localhost:",
        ":9090",
        "localhost:0",
        "localhost:65536",
        "localhost:http",
        "http://h:1",
        "a b:1",
        "h:1:2",
    ],
)
def test_bad_address_is_refused_at_once(address: Any) -> None:
    with pytest.raises(InvalidOption, match=r"services\['HelloService'\]"):
        Channels({"HelloService": address})


@pytest.mark.parametrize("name", ["", " HelloService", "/hello.HelloService"])
def test_bad_service_name_is_refused_at_once(name: str) -> None:
    with pytest.raises(InvalidOption, match="names no gRPC service"):
        Channels({name: "localhost:1"})


async def test_channels_are_opened_once_per_address_and_again_after_they_were_closed() -> None:
    channels = Channels(
        {"a.One": "localhost:1", "Two": "localhost:1", "Three": "[::1]:2", "One": "tls://example.org:443"}
    )
    one, two = channels.channel("a.One"), channels.channel("b.Two")
    assert one is two
    assert channels.channel("c.Three") is not one
    assert channels.channel("c.One") is not one  # the short name, since this full one has no address
    assert one.method("/a.One/Do") is one.method("/a.One/Do")
    with pytest.raises(ServiceUnknown):
        channels.channel("Four")
    await channels.aclose()
    again = channels.channel("a.One")
    assert again is not one
    await channels.aclose()
