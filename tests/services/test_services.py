"""The example services in real processes, called as any client would call them."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE

import grpc
import grpc.aio
import pytest

from examples.services.hello_pb2 import HelloRequest
from examples.services.hello_pb2_grpc import HelloServiceStub
from examples.services.process import ROOT, service
from examples.services.ticket_pb2 import ReleaseRequest, ReserveRequest
from examples.services.ticket_pb2_grpc import TicketServiceStub

HELLO = "examples.services.hello"
TICKET = "examples.services.ticket"

pytestmark = pytest.mark.slow


async def greeting(address: str, name: str) -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        return (await HelloServiceStub(channel).SayHello(HelloRequest(name=name))).message


def listens(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((host, int(port))) == 0


async def run(*arguments: str) -> tuple[int, str, str]:
    """Run a module to its end: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", *arguments, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_hello_service_greets_with_the_promised_words() -> None:
    async with service(HELLO) as address:
        assert await greeting(address, "World") == "Hello, World! Welcome to Durable Execution on NATS JetStream."
        assert await greeting(address, "") == "Hello, ! Welcome to Durable Execution on NATS JetStream."


async def test_delay_holds_every_answer_back_but_not_one_call_behind_another() -> None:
    async with service(HELLO, "--delay", "1") as address, grpc.aio.insecure_channel(address) as channel:
        stub = HelloServiceStub(channel)
        await channel.channel_ready()
        begun = time.monotonic()
        await asyncio.gather(*(stub.SayHello(HelloRequest(name=str(n))) for n in range(20)))
        assert 1 <= time.monotonic() - begun < 15, "one behind another they would take 20 s"


async def test_service_is_gone_when_its_block_is_left() -> None:
    async with service(HELLO) as address:
        assert listens(address)
    assert not listens(address)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_lets_the_call_in_progress_end_and_exits_with_0(number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", HELLO, "--port", "0", "--delay", "3", cwd=ROOT, stdout=PIPE
    )
    assert process.stdout is not None
    ready = (await process.stdout.readline()).decode()
    name, _, address = ready.strip().partition(" listening on ")
    assert name == "HelloService"
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        call = HelloServiceStub(channel).SayHello(HelloRequest(name="late"))
        await asyncio.sleep(1)  # it has no way to tell that it came
        process.send_signal(number)
        answer = (await call).message
    assert answer == "Hello, late! Welcome to Durable Execution on NATS JetStream."
    rest, _ = await process.communicate()
    assert (process.returncode, rest) == (0, b"")


async def test_taken_port_is_one_clear_line_and_exit_code_1() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, out, err = await run(TICKET, "--port", str(port))
    assert (code, out) == (1, "")
    assert err == (
        f"TicketService cannot listen on 127.0.0.1:{port}: {os.strerror(errno.EADDRINUSE).lower()}."
        " Choose another port with --port; --port 0 picks a free one.\n"
    )


async def test_second_service_does_not_share_the_port_of_the_first() -> None:
    async with service(HELLO) as address:
        code, out, _ = await run(TICKET, "--port", address.split(":")[1])
    assert (code, out) == (1, "")


@pytest.mark.parametrize("option", ["--port=65536", "--port=-1", "--delay=-1", "--delay=nan"])
async def test_impossible_option_is_refused_by_name(option: str) -> None:
    code, _, err = await run(HELLO, option)
    assert code == 2
    assert f"error: argument {option.partition('=')[0]}: " in err


async def test_ticket_is_reserved_once_until_it_is_released() -> None:
    async with service(TICKET) as address, grpc.aio.insecure_channel(address) as channel:
        stub = TicketServiceStub(channel)
        assert (await stub.Reserve(ReserveRequest(ticket_id="T-1"))).success
        assert not (await stub.Reserve(ReserveRequest(ticket_id="T-1"))).success
        assert (await stub.Reserve(ReserveRequest(ticket_id="T-2"))).success
        assert (await stub.Release(ReleaseRequest(ticket_id="T-1"))).success
        assert not (await stub.Release(ReleaseRequest(ticket_id="T-1"))).success
        assert (await stub.Reserve(ReserveRequest(ticket_id="T-1"))).success


async def test_repeated_call_with_the_same_key_gets_the_first_answer_and_changes_nothing() -> None:
    async with service(TICKET) as address, grpc.aio.insecure_channel(address) as channel:
        stub = TicketServiceStub(channel)
        ours = (("perdure-idempotency-key", "ours"),)
        theirs = (("perdure-idempotency-key", "theirs"),)
        request = ReserveRequest(ticket_id="T-1")
        assert [(await stub.Reserve(request, metadata=ours)).success for _ in range(3)] == [True, True, True]
        assert not (await stub.Reserve(request, metadata=theirs)).success
        assert (await stub.Release(ReleaseRequest(ticket_id="T-1"), metadata=ours)).success
        assert not (await stub.Reserve(request, metadata=theirs)).success
        assert (await stub.Reserve(request)).success, "the repeated calls had reserved it again"


async def test_repeated_call_that_overtakes_its_first_answer_is_the_same_call() -> None:
    async with service(TICKET, "--delay", "0.3") as address, grpc.aio.insecure_channel(address) as channel:
        stub = TicketServiceStub(channel)
        key = (("perdure-idempotency-key", "k"),)
        calls = [stub.Reserve(ReserveRequest(ticket_id="T-1"), metadata=key) for _ in range(2)]
        assert [(await call).success for call in calls] == [True, True]


async def test_empty_ticket_id_is_refused() -> None:
    async with service(TICKET) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await TicketServiceStub(channel).Reserve(ReserveRequest())
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details() == "ticket_id is empty: say which ticket is meant"
