"""TicketService in a process of its own: `python -m examples.services.ticket --port 9091`.

A caller that repeats a call, since an answer was lost or a worker died, gets the answer of the first one: the metadata
`perdure-idempotency-key` says that it is the same call. Without a key every call counts.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio

from examples.services import server
from examples.services.ticket_pb2 import ReleaseRequest, ReleaseResponse, ReserveRequest, ReserveResponse
from examples.services.ticket_pb2_grpc import TicketServiceServicer, add_TicketServiceServicer_to_server

IDEMPOTENCY_KEY = "perdure-idempotency-key"
MAX_ANSWERS = 100_000
"""Answers kept for repeated calls; beyond that the oldest is forgotten."""


class Call(NamedTuple):
    """One call, however often it is made."""

    method: str
    ticket: str
    idempotency_key: str


class Tickets(TicketServiceServicer):
    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._reserved: set[str] = set()
        self._answers: dict[Call, bool] = {}

    async def Reserve(
        self, request: ReserveRequest, context: grpc.aio.ServicerContext[ReserveRequest, ReserveResponse]
    ) -> ReserveResponse:
        return ReserveResponse(success=await self._once("Reserve", request.ticket_id, context, self._reserve))

    async def Release(
        self, request: ReleaseRequest, context: grpc.aio.ServicerContext[ReleaseRequest, ReleaseResponse]
    ) -> ReleaseResponse:
        return ReleaseResponse(success=await self._once("Release", request.ticket_id, context, self._release))

    async def _once(
        self, method: str, ticket: str, context: grpc.aio.ServicerContext[Any, Any], act: Callable[[str], bool]
    ) -> bool:
        """What `act` says about the ticket, or said when this call came before."""
        if not ticket:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "ticket_id is empty: say which ticket is meant")
        key = _idempotency_key(context)
        # Decided before anything is awaited: a repeated call may come while the first still waits for its answer.
        answer = act(ticket) if key is None else self._remembered(Call(method, ticket, key), act)
        await asyncio.sleep(self._delay)
        return answer

    def _remembered(self, call: Call, act: Callable[[str], bool]) -> bool:
        if call not in self._answers:
            if len(self._answers) == MAX_ANSWERS:
                del self._answers[next(iter(self._answers))]
            self._answers[call] = act(call.ticket)
        return self._answers[call]

    def _reserve(self, ticket: str) -> bool:
        if ticket in self._reserved:
            return False
        self._reserved.add(ticket)
        return True

    def _release(self, ticket: str) -> bool:
        if ticket not in self._reserved:
            return False
        self._reserved.remove(ticket)
        return True


def _idempotency_key(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    for name, value in context.invocation_metadata() or ():
        if name == IDEMPOTENCY_KEY:
            return str(value)
    return None


def register(to: grpc.aio.Server, delay: float) -> None:
    add_TicketServiceServicer_to_server(Tickets(delay), to)


if __name__ == "__main__":
    sys.exit(server.main("TicketService", register, port=9091))
