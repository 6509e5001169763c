"""What handlers take and return, as their workers have published it: for whoever has only the operations."""

from __future__ import annotations

import time
from collections import OrderedDict

import msgspec
from msgspec import Struct

from perdure.core.interface import Interface, decode_interface
from perdure.operations.documents import whole
from perdure.operations.port import Operations
from perdure.runtime.publishing import HANDLERS, INTERFACES, Published, published

FRESH_SECONDS = 1.0
"""How long the present interface of a handler is remembered."""
INTERFACES_LIMIT = 1_000
"""Interfaces, and handlers, that are remembered."""


class Handler(Struct, frozen=True):
    """A handler and its present interface. It was `asked` for by its `name` or by an older one."""

    name: str
    hash: str
    interface: Interface
    asked: str


class Interfaces:
    """Reads what workers have published. Interfaces never change, so they are kept."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._interfaces: OrderedDict[str, Interface] = OrderedDict()
        self._handlers: OrderedDict[str, tuple[float, Handler]] = OrderedDict()

    async def handler(self, name: str, /) -> Handler | None:
        """Return a handler; None if no worker has published it, or none that this release can read."""
        known = self._handlers.get(name)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        (document,) = await self._operations.read_documents(HANDLERS, [(name,)])
        found = None if document is None else published(document.value)
        handler = None if found is None else await self._handler_of(name, found)
        if handler is not None:
            self._handlers[name] = time.monotonic() + FRESH_SECONDS, handler
            if len(self._handlers) > INTERFACES_LIMIT:
                self._handlers.popitem(last=False)
        return handler

    async def handlers(self) -> list[Handler]:
        """Return all handlers by name, without aliases."""
        found: list[Handler] = []
        async for document in whole(self._operations.scan_documents, HANDLERS):
            of = published(document.value)
            if of is not None and of.name is None:
                handler = await self._handler_of(document.key[0], of)
                found += [] if handler is None else [handler]
        return found

    async def _handler_of(self, name: str, of: Published) -> Handler | None:
        interface = await self.interface(of.interface)
        return None if interface is None else Handler(of.name or name, of.interface, interface, name)

    async def interface(self, hash: str | None, /) -> Interface | None:
        """Return an interface by its hash; None if it was never published, or a newer release did."""
        if not hash:
            return None
        if (known := self._interfaces.get(hash)) is not None:
            return known
        (document,) = await self._operations.read_documents(INTERFACES, [(hash,)])
        if document is None:
            return None
        try:
            interface = decode_interface(document.value)
        except msgspec.MsgspecError:
            return None
        self._interfaces[hash] = interface
        if len(self._interfaces) > INTERFACES_LIMIT:
            self._interfaces.popitem(last=False)
        return interface

    async def of_invocation(self, handler: str, hash: str | None, /) -> Interface | None:
        """Return the interface by which an invocation was started, or else the present one of its handler."""
        named = await self.interface(hash)
        if named is not None:
            return named
        found = await self.handler(handler)
        return None if found is None else found.interface
