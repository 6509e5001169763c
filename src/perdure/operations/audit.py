"""The audit: who did what to what, from where, and with what result. A log in documents, whose pieces are chained.

Each piece holds entries, and the SHA-256 of the piece before it; so a piece that was changed or removed later is found,
unless all that follow it were made anew. Whoever notes the hash of the last piece finds that too. Several servers write
one log: a piece is written under the next number, if there is none of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from perdure.errors import RevisionConflict, StoreDamaged
from perdure.operations.documents import Delete, Document, Put, Scan

if TYPE_CHECKING:
    from perdure.operations.port import Operations

AUDIT = "perdure.audit"
"""The collection of `Piece`, as JSON, under one first part and the number of the piece."""
PART = "log"
DIGITS = 16
"""Of a number in a key: as text, the keys are in the order of the numbers."""
ENTRIES_LIMIT = 200
"""Entries in one piece."""
RETENTION_DAYS = 365
"""How long the audit is kept, unless a server is told otherwise."""
REMOVED_AT_A_TIME = 100
"""Pieces that are removed together when they are too old."""


class Entry(Struct, frozen=True, omit_defaults=True):
    """One request: who made it, what it asked for, of what, the HTTP status it got, and from where it came."""

    at: datetime
    principal: str
    action: str
    target: str
    status: int
    source: str


class Piece(Struct, frozen=True):
    """Some entries, and the hash of the piece before, in hexadecimal; empty for the first."""

    number: int
    before: str
    entries: tuple[Entry, ...]


class Link(Struct, frozen=True):
    """A piece as it is kept, and the hash of its bytes, by which the next one names it."""

    piece: Piece
    hash: str


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Piece).decode


async def append(operations: Operations, entries: Sequence[Entry]) -> None:
    """Make entries durable, in this order, at the end of the log."""
    for begin in range(0, len(entries), ENTRIES_LIMIT):
        await _append(operations, tuple(entries[begin : begin + ENTRIES_LIMIT]))


async def _append(operations: Operations, entries: tuple[Entry, ...]) -> None:
    while True:
        last = await operations.scan_documents(AUDIT, Scan(reverse=True, limit=1))
        number, before = (_link(last[0]).piece.number + 1, _link(last[0]).hash) if last else (1, "")
        data = _encode(Piece(number, before, entries))
        try:
            await operations.write_documents(AUDIT, [Put(_key(number), data, if_revision=0)])
        except RevisionConflict:  # another server was faster
            continue
        return


async def read(operations: Operations, after: int) -> list[Link]:
    """Return pieces after a number, the oldest first."""
    found = await operations.scan_documents(AUDIT, Scan(after=_key(after)))
    return [_link(each) for each in found]


async def read_all(operations: Operations) -> AsyncGenerator[Link, None]:
    """Iterate over all pieces; `StoreDamaged` where one does not follow the one before it."""
    last: Link | None = None
    while some := await operations.audit(0 if last is None else last.piece.number):
        for link in some:
            if last is not None and (link.piece.number, link.piece.before) != (last.piece.number + 1, last.hash):
                raise StoreDamaged(
                    f"the audit was changed: its piece {link.piece.number} does not follow piece {last.piece.number} "
                    "as it is now"
                )
            last = link
            yield link


async def remove_before(operations: Operations, at: datetime) -> int:
    """Remove the oldest pieces whose entries are all older than `at`; return how many there were."""
    removed = 0
    while True:
        found = await operations.scan_documents(AUDIT, Scan(limit=REMOVED_AT_A_TIME))
        old = [
            each for each in found[:-1] if _link(each).piece.entries[-1].at < at
        ]  # the last one is named by the next
        if not old:
            return removed
        await operations.write_documents(AUDIT, [Delete(each.key) for each in old])
        removed += len(old)


def _key(number: int) -> tuple[str, str]:
    return PART, f"{number:0{DIGITS}d}"


def _link(document: Document) -> Link:
    try:
        return Link(_decode(document.value), hashlib.sha256(document.value).hexdigest())
    except msgspec.MsgspecError as error:
        raise StoreDamaged(f"the audit was changed: its piece {document.key[1]} cannot be read: {error}") from error
