"""HelloService in a process of its own: `python -m examples.services.hello --port 9090`."""

from __future__ import annotations

import asyncio
import sys

import grpc.aio

from examples.services import server
from examples.services.hello_pb2 import HelloRequest, HelloResponse
from examples.services.hello_pb2_grpc import HelloServiceServicer, add_HelloServiceServicer_to_server


class Hello(HelloServiceServicer):
    def __init__(self, delay: float) -> None:
        self._delay = delay

    async def SayHello(
        self, request: HelloRequest, context: grpc.aio.ServicerContext[HelloRequest, HelloResponse]
    ) -> HelloResponse:
        await asyncio.sleep(self._delay)
        return HelloResponse(message=f"Hello, {request.name}! Welcome to Durable Execution on NATS JetStream.")


def register(to: grpc.aio.Server, delay: float) -> None:
    add_HelloServiceServicer_to_server(Hello(delay), to)


if __name__ == "__main__":
    sys.exit(server.main("HelloService", register, port=9090))
