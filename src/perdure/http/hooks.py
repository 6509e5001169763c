"""Which handlers have a hook, and how its requests are verified: as the application was told, or as the store says.

A hook is a verifier for a handler. Those in the store are documents, with their secrets, in a collection that users
cannot name and that no route gives away.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from perdure.background import RateLimitedLog
from perdure.core.ids import check_name
from perdure.http.verifiers import NotVerified, Verifier, check_verifier
from perdure.operations.documents import Delete, Document, Put, whole
from perdure.operations.port import Operations

HOOKS = "perdure.hooks"
"""The collection of verifiers by handler, as JSON."""
FRESH_SECONDS = 1.0
"""How long the hook of a handler is remembered, and that there is none."""
HOOKS_LIMIT = 1_000
"""Handlers whose hooks, or lack of one, are remembered."""

log = logging.getLogger("perdure.http")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder[Verifier](Verifier).decode


class Hooks:
    """The hooks of an application. Those that it was given count before those of the store."""

    def __init__(self, operations: Operations, given: Mapping[str, Verifier]) -> None:
        self._operations = operations
        self._given = {check_name("a handler's name", name): check_verifier(name, each) for name, each in given.items()}
        self._known: OrderedDict[str, tuple[float, Verifier | None]] = OrderedDict()
        self._log = RateLimitedLog(log)

    async def verifier(self, handler: str) -> Verifier | None:
        """Return what verifies requests for a handler; None if it has no hook."""
        if (given := self._given.get(handler)) is not None:
            return given
        until, known = self._known.get(handler, (0.0, None))
        if until > time.monotonic():
            return known
        (document,) = await self._operations.read_documents(HOOKS, [(handler,)])
        found = None if document is None else verifier_in(document)
        if document is not None and found is None:
            self._log(("unreadable", handler), "the hook of %r cannot be read: a newer release wrote it", handler)
        self._known[handler] = time.monotonic() + FRESH_SECONDS, found
        self._known.move_to_end(handler)
        if len(self._known) > HOOKS_LIMIT:
            self._known.popitem(last=False)
        return found

    def note_refusal(self, handler: str, error: NotVerified) -> None:
        """Log that a request was refused, now and then."""
        self._log(
            ("refused", handler), "a request to the hook of %r was refused: %s", handler, error, level=logging.WARNING
        )


# --- the documents ----------------------------------------------------------------------------------------------------
async def put_hook(operations: Operations, handler: str, verifier: Verifier) -> None:
    """Give a handler a hook, in place of the one that it may have."""
    await operations.write_documents(HOOKS, [Put((check_name("a handler's name", handler),), _encode(verifier))])


async def remove_hook(operations: Operations, handler: str) -> bool:
    """Take the hook of a handler away; return whether there was one."""
    (revision,) = await operations.write_documents(HOOKS, [Delete((check_name("a handler's name", handler),))])
    return revision > 0


async def hooks_of(operations: Operations) -> dict[str, Verifier | None]:
    """Return the hooks of a store by handler; None for one that this release cannot read."""
    return {each.key[0]: verifier_in(each) async for each in whole(operations.scan_documents, HOOKS)}


def verifier_in(document: Document) -> Verifier | None:
    """Decode a hook; None if this release cannot read it."""
    try:
        return _decode(document.value)
    except msgspec.MsgspecError:
        return None
