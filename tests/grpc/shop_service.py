"""The service of `shop.proto` in a process of its own: `python -m tests.grpc.shop_service --port 0`.

It does as it is told, failures too (`Trouble` in the cart), and remembers what every call of `Checkout` carried.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator
from typing import NoReturn, cast

import grpc
import grpc.aio
from google.rpc import code_pb2, error_details_pb2, status_pb2  # pyright: ignore[reportMissingTypeStubs]

from examples.services import server
from tests.grpc.shop_pb2 import (
    Answer,
    AuditReport,
    AuditRequest,
    Cart,
    ImportSummary,
    Line,
    Position,
    Question,
    Receipt,
    TrackRequest,
)
from tests.grpc.shop_pb2_grpc import ShopServicer, add_ShopServicer_to_server

PLACES = ("warehouse", "road", "door")
CODES = {int(code.value[0]): code for code in grpc.StatusCode}


class Shop(ShopServicer):
    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._calls: defaultdict[str, list[AuditReport.Call]] = defaultdict(list)

    async def Checkout(self, request: Cart, context: grpc.aio.ServicerContext[Cart, Receipt]) -> Receipt:
        call = _carried(context)
        calls = self._calls[request.id]
        calls.append(call)
        number = len(calls)
        try:
            await asyncio.sleep(self._delay + request.trouble.delay_s)
        except asyncio.CancelledError:
            call.cancelled = True
            raise
        if number <= request.trouble.times:
            await context.abort(CODES[request.trouble.code], f"told to fail, call {number}")
        if not request.lines:
            await _refuse_empty(context)
        return Receipt(
            cart_id=request.id,
            total_cents=sum(line.cents for line in request.lines),
            paid_by=request.WhichOneof("payment") or "",
            calls=number,
            cart=request,
        )

    async def Audit(
        self, request: AuditRequest, context: grpc.aio.ServicerContext[AuditRequest, AuditReport]
    ) -> AuditReport:
        return AuditReport(calls=self._calls.get(request.cart_id, []))

    async def Track(
        self, request: TrackRequest, context: grpc.aio.ServicerContext[TrackRequest, Position]
    ) -> AsyncIterator[Position]:
        for step, place in enumerate(PLACES):
            await asyncio.sleep(self._delay)
            yield Position(step=step, place=place)

    async def Import(
        self, request_iterator: AsyncIterable[Line], context: grpc.aio.ServicerContext[Line, ImportSummary]
    ) -> ImportSummary:
        summary = ImportSummary()
        async for line in request_iterator:
            summary.lines += 1
            summary.total_cents += line.cents
        return summary

    async def Chat(
        self, request_iterator: AsyncIterable[Question], context: grpc.aio.ServicerContext[Question, Answer]
    ) -> AsyncIterator[Answer]:
        async for question in request_iterator:
            yield Answer(text=question.text.upper())


def _carried(context: grpc.aio.ServicerContext[Cart, Receipt]) -> AuditReport.Call:
    metadata = {name: str(value) for name, value in context.invocation_metadata() or ()}
    call = AuditReport.Call(metadata=metadata)
    remaining = cast("float | None", context.time_remaining())  # the stubs forget that a caller may set no deadline
    if remaining is not None:
        call.time_remaining_s = remaining
    return call


async def _refuse_empty(context: grpc.aio.ServicerContext[Cart, Receipt]) -> NoReturn:
    """Abort with what Google's services call rich details: a google.rpc.Status in the trailing metadata."""
    message = "the cart is empty"
    violation = error_details_pb2.BadRequest.FieldViolation(field="lines", description=message)
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=message)
    status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    await context.abort(
        grpc.StatusCode.INVALID_ARGUMENT,
        message,
        trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()), ("shop-reason", "empty-cart")),
    )


def register(to: grpc.aio.Server, delay: float) -> None:
    add_ShopServicer_to_server(Shop(delay), to)


if __name__ == "__main__":
    sys.exit(server.main("Shop", register, port=9092))
