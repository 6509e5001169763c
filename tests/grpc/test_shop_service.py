"""The shop does what `shop.proto` says, so that a test that relies on it fails for its own reasons only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2  # pyright: ignore[reportMissingTypeStubs]

from examples.services.process import service
from tests.grpc.shop_pb2 import (
    CHANNEL_COUNTER,
    AuditRequest,
    Card,
    Cart,
    Line,
    Question,
    TrackRequest,
    Transfer,
    Trouble,
)
from tests.grpc.shop_pb2_grpc import ShopStub

SHOP = "tests.grpc.shop_service"

pytestmark = pytest.mark.slow


async def test_checkout_gives_back_every_field_as_it_was_sent() -> None:
    cart = Cart(
        id="c-1",
        lines=[Line(sku="a", cents=250), Line(sku="b", cents=-50, note="")],
        labels={"gift": "yes"},
        channel=CHANNEL_COUNTER,
        placed_at=Timestamp(seconds=1_700_000_000, nanos=1),
        signature=b"\x00\xff",
        transfer=Transfer(iban="x"),
    )
    async with service(SHOP) as address, grpc.aio.insecure_channel(address) as channel:
        receipt = await ShopStub(channel).Checkout(cart)
    assert receipt.cart == cart
    assert (receipt.cart_id, receipt.total_cents, receipt.paid_by, receipt.calls) == ("c-1", 200, "transfer", 1)
    assert [line.HasField("note") for line in receipt.cart.lines] == [False, True]


async def test_trouble_fails_the_first_calls_and_the_audit_shows_what_each_carried() -> None:
    trouble = Trouble(code=grpc.StatusCode.UNAVAILABLE.value[0], times=2)
    cart = Cart(id="c-2", lines=[Line(sku="a", cents=1)], card=Card(number="4"), trouble=trouble)
    async with service(SHOP) as address, grpc.aio.insecure_channel(address) as channel:
        stub = ShopStub(channel)
        for attempt in ("1", "2"):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.Checkout(cart, timeout=20, metadata=(("attempt", attempt),))
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            assert failed.value.details() == f"told to fail, call {attempt}"
        receipt = await stub.Checkout(cart, metadata=(("attempt", "3"),))
        report = await stub.Audit(AuditRequest(cart_id="c-2"))
        nothing = await stub.Audit(AuditRequest(cart_id="c-3"))
    assert (receipt.calls, receipt.paid_by) == (3, "card")
    assert [call.metadata["attempt"] for call in report.calls] == ["1", "2", "3"]
    assert [call.HasField("time_remaining_s") for call in report.calls] == [True, True, False]
    assert report.calls[0].time_remaining_s == pytest.approx(20, abs=10)
    assert not nothing.calls


async def test_audit_shows_a_call_whose_caller_gave_up() -> None:
    cart = Cart(id="c-4", lines=[Line(sku="a", cents=1)], trouble=Trouble(delay_s=30))
    async with service(SHOP) as address, grpc.aio.insecure_channel(address) as channel:
        stub = ShopStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Checkout(cart, timeout=0.3)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(10):
            while not (await stub.Audit(AuditRequest(cart_id="c-4"))).calls[0].cancelled:
                await asyncio.sleep(0.02)


async def test_empty_cart_is_refused_with_rich_details() -> None:
    async with service(SHOP) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ShopStub(channel).Checkout(Cart(id="c-5"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    trailing = dict(refused.value.trailing_metadata())
    assert trailing["shop-reason"] == "empty-cart"
    packed = trailing["grpc-status-details-bin"]
    assert isinstance(packed, bytes)
    status = status_pb2.Status.FromString(packed)
    reason = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(reason)
    assert (status.message, reason.field_violations[0].field) == ("the cart is empty", "lines")


async def test_streams_flow_in_all_three_directions() -> None:
    async def questions() -> AsyncIterator[Question]:
        for text in ("one", "two"):
            yield Question(text=text)

    async def lines() -> AsyncIterator[Line]:
        for cents in (1, 2, 3):
            yield Line(sku="a", cents=cents)

    async with service(SHOP) as address, grpc.aio.insecure_channel(address) as channel:
        stub = ShopStub(channel)
        places = [position.place async for position in stub.Track(TrackRequest(cart_id="c-6"))]
        summary = await stub.Import(lines())
        answers = [answer.text async for answer in stub.Chat(questions())]
    assert places == ["warehouse", "road", "door"]
    assert (summary.lines, summary.total_cents) == (3, 6)
    assert answers == ["ONE", "TWO"]
