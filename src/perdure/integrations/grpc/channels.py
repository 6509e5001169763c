"""Connections to gRPC services, by the name of the service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio

from perdure.errors import InvalidOption, ServiceUnknown

RECEIVE_LIMIT_BYTES = 64 * 1024 * 1024
"""The largest reply that is received (gRPC's default is 4 MiB). The payload limit of the store may be lower."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # Detects a dead peer while calls wait for it. By default, servers close connections with pings less than five
    # minutes apart: https://github.com/grpc/grpc/blob/master/doc/keepalive.md
    ("grpc.keepalive_time_ms", 6 * 60 * 1000),
    ("grpc.keepalive_timeout_ms", 20 * 1000),
    # By default gRPC waits up to two minutes before it reconnects, and fails every call meanwhile: ten attempts in 50
    # seconds could all fail although the service is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", RECEIVE_LIMIT_BYTES),
)


class Connection:
    """A channel to one address, with cached multicallables."""

    __slots__ = ("_methods", "channel")

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._methods: dict[str, Any] = {}

    def method(self, path: str, /) -> Any:
        """Return the multicallable of a method, from bytes to bytes."""
        try:
            return self._methods[path]
        except KeyError:
            channel: Any = self.channel  # its type stubs require serializers, which bytes do not need
            return self._methods.setdefault(path, channel.unary_unary(path))


class Channels:
    """Connections to services by name, one per address, opened on first use (a `runtime.worker.Channels`).

    `services` maps the name of a service, short or full (`TicketService`, `ticket.TicketService`; the full name has
    precedence), to `host:port`, or to `tls://host:port` for a server with a certificate of a public authority.
    `InvalidOption` for anything else.
    """

    def __init__(self, services: Mapping[str, str]) -> None:
        self._services = {_service(name): _address(name, address) for name, address in services.items()}
        self._open: dict[str, Connection] = {}  # by address
        self._by_name: dict[str, Connection] = {}  # by full name of a service

    def channel(self, service: str, /) -> Connection:
        """Return the connection to a service by its full name; `ServiceUnknown` if it has no address."""
        connection = self._by_name.get(service)
        return connection if connection is not None else self._find(service)

    async def aclose(self) -> None:
        """Close all connections. They are reopened when they are needed again."""
        connections = [*self._open.values()]
        self._open.clear()
        self._by_name.clear()
        for connection in connections:
            await connection.channel.close()

    def _find(self, service: str) -> Connection:
        address = self._services.get(service) or self._services.get(service.rpartition(".")[2])
        if address is None:
            raise ServiceUnknown(unknown(service, self._services), service=service)
        connection = self._open.get(address)
        if connection is None:
            connection = self._open[address] = Connection(_channel(address))
        self._by_name[service] = connection
        return connection


def unknown(service: str, services: Mapping[str, str]) -> str:
    """Return the error text for a service without an address."""
    short = service.rpartition(".")[2]
    known = f"this worker has {', '.join(sorted(services))}" if services else "this worker has none"
    return f"no address for the gRPC service {service}: {known}; pass services={{{short!r}: 'host:port'}} to the worker"


def _service(name: object) -> str:
    if not isinstance(name, str) or not name or name != name.strip() or "/" in name:
        raise InvalidOption(f"services: {name!r} names no gRPC service; write TicketService or ticket.TicketService")
    return name


def _address(name: str, address: object) -> str:
    """Return a checked address. The host is a DNS name or an IP address, IPv6 in brackets."""
    example = "give host:port, or tls://host:port"
    if not isinstance(address, str):
        raise InvalidOption(f"services[{name!r}] is {address!r}: {example}")
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise InvalidOption(f"services[{name!r}] is {address!r}: {example}")
    if not 0 < int(match["port"]) < 65_536:
        raise InvalidOption(f"services[{name!r}] is {address!r}: a port is between 1 and 65535")
    return address


_ADDRESS = re.compile(r"(tls://)?(?:[^\s:/\[\]@]+|\[[0-9A-Fa-f:.%\w]+\]):(?P<port>[0-9]{1,5})")


def _channel(address: str) -> grpc.aio.Channel:
    if address.startswith("tls://"):
        credentials = grpc.ssl_channel_credentials()
        return grpc.aio.secure_channel(address.removeprefix("tls://"), credentials, options=CHANNEL_OPTIONS)
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
