"""Publishes what a worker serves, for programs that start it without having its code.

Two collections of documents that users cannot name: interfaces under the hash of their contents, which never change and
stay, since recorded starts name them; and handlers by name, each with the hash of its present interface.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from perdure.authoring.workflow import Workflow
from perdure.background import log_error
from perdure.errors import PerdureError
from perdure.stores.documents import DocumentKey, Put
from perdure.stores.port import Store

HANDLERS = "perdure.handlers"
"""The collection of `Published` by name, as JSON."""
INTERFACES = "perdure.interfaces"
"""The collection of `core.interface.Interface` by hash, as JSON."""
READ_BATCH = 100
"""Documents that are read or looked for at a time."""

log = logging.getLogger("perdure.worker")


class Published(Struct, frozen=True, omit_defaults=True):
    """A handler: the hash of its interface (hexadecimal), and since when it has that, in seconds since the Unix epoch.

    `name` is the present name of the workflow, where this is an older one.
    """

    interface: str
    since: float
    name: str | None = None


_decode = msgspec.json.Decoder(Published).decode
_encode = msgspec.json.encode


async def publish(store: Store, workflows: Iterable[Workflow[..., Any]]) -> None:
    """Publish the interfaces of workflows. What fails is logged: no worker stops because of it."""
    interfaces: dict[str, bytes] = {}
    handlers: dict[str, Published] = {}
    now = store.clock.now()
    for workflow in {id(each): each for each in workflows}.values():
        try:
            interface = workflow.interface
        except Exception as error:  # noqa: BLE001  annotations may be anything
            _failed(f"the parameters of workflow {workflow.name!r} cannot be described", error)
            continue
        if interface is None:
            continue
        hash = interface.hash.hex()
        interfaces[hash] = interface.encode()
        handlers[workflow.name] = Published(hash, now)
        for alias in workflow.aliases:
            handlers.setdefault(alias, Published(hash, now, workflow.name))
    try:
        await _write_missing(store, interfaces)  # first: whoever reads a handler finds its interface
        await _write_changed(store, handlers)
    except Exception as error:  # noqa: BLE001  it concerns callers over HTTP only
        _failed("what this worker serves cannot be published: callers over HTTP may not find it", error)


def _failed(what: str, error: Exception) -> None:
    if isinstance(error, PerdureError):
        log.warning("%s: %s", what, error)
    else:
        log_error(log, "%s", what, error=error)


async def _write_missing(store: Store, interfaces: Mapping[str, bytes]) -> None:
    for batch in _batches(interfaces):
        found = await store.documents.read(INTERFACES, [(hash,) for hash in batch])
        for hash, document in zip(batch, found, strict=True):
            if document is None:
                await store.documents.write(INTERFACES, [Put((hash,), interfaces[hash])])


async def _write_changed(store: Store, handlers: Mapping[str, Published]) -> None:
    for batch in _batches(handlers):
        keys: list[DocumentKey] = [(name,) for name in batch]
        for name, document in zip(batch, await store.documents.read(HANDLERS, keys), strict=True):
            new = handlers[name]
            old = None if document is None else published(document.value)
            if old is None or (old.interface, old.name) != (new.interface, new.name):
                await store.documents.write(HANDLERS, [Put((name,), _encode(new))])


def published(data: bytes) -> Published | None:
    """Decode a handler that was published; None if this release cannot read it."""
    try:
        return _decode(data)
    except msgspec.MsgspecError:
        return None


def _batches(names: Iterable[str]) -> Iterable[list[str]]:
    every = sorted(names)
    return (every[begin : begin + READ_BATCH] for begin in range(0, len(every), READ_BATCH))
