"""Payloads above the server's limit: stored in pieces on a stream of their own, under the id of their invocation.

The pieces are written before the message that names them, so a reader of the message finds them. Pieces whose message
was never written are removed with the invocation. A start stores its own copy, under the id that it starts.
"""

from __future__ import annotations

import asyncio
import secrets

from msgspec.structs import replace

from perdure.errors import StoreDamaged
from perdure.stores.jetstream.layout.facts import Facts
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.wire.wire import Wire

PIECE_BYTES = 512 * 1024
PIECES_AT_A_TIME = 8
"""Pieces that are written or read concurrently."""


class Blobs:
    """Stores large payloads."""

    _what = "invocation"

    def __init__(self, wire: Wire, layout: Layout) -> None:
        self._wire = wire
        self._layout = layout

    def _subject(self, id: str, blob: str, piece: int | str) -> str:
        return self._layout.blob(id, blob, piece)

    def is_large(self, data: bytes) -> bool:
        """Report whether a payload is too large for a message."""
        return len(data) > self._wire.payload_limit

    async def save(self, id: str, facts: Facts, data: bytes) -> tuple[Facts, bytes]:
        """Write a payload in pieces if it is large; return the facts and the payload of the message."""
        if not self.is_large(data):
            return facts, data
        return replace(facts, blob=await self.keep(id, data)), b""

    async def keep(self, id: str, data: bytes) -> str:
        """Write data in pieces, whatever its size; return the name to fetch it by."""
        blob = self.new_name(data)
        await self.write(id, blob, data)
        return blob

    def new_name(self, data: bytes) -> str:
        """Return a unique name for data, which tells how many pieces it has."""
        return f"{secrets.token_hex(8)}:{-(-len(data) // self._piece_bytes)}"

    @property
    def _piece_bytes(self) -> int:
        return min(PIECE_BYTES, self._wire.payload_limit)

    async def write(self, id: str, blob: str, data: bytes) -> None:
        """Write data in pieces under the name that `new_name` gave it."""
        name, size = blob.partition(":")[0], self._piece_bytes
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        for n in range(0, len(pieces), PIECES_AT_A_TIME):
            some = (
                self._wire.store(self._subject(id, name, m), piece)
                for m, piece in enumerate(pieces[n : n + PIECES_AT_A_TIME], start=n)
            )
            for outcome in await asyncio.gather(*some, return_exceptions=True):  # none is in flight after a failure
                if isinstance(outcome, BaseException):
                    raise outcome

    async def remove(self, id: str, blob: str) -> None:
        """Remove the pieces of one blob."""
        subject = self._subject(id, blob.partition(":")[0], "*")
        await self._wire.purge(self._layout.stream_of(subject), subject)

    async def load(self, id: str, facts: Facts, data: bytes) -> bytes:
        """Return the payload of a message."""
        return await self.fetch(id, facts.blob) if facts.blob else data

    async def fetch(self, id: str, blob: str) -> bytes:
        """Read the data that `keep` wrote."""
        name, _, number = blob.partition(":")
        count = int(number)
        stream = self._layout.stream_of(self._subject(id, name, 0))
        pieces: dict[int, bytes] = {}
        sequence = 1
        while len(pieces) < count and (
            found := await self._wire.batch(stream, self._subject(id, name, "*"), sequence, PIECES_AT_A_TIME)
        ):
            for each in found:
                pieces[int(each.subject.rpartition(".")[2])] = each.data
            sequence = found[-1].sequence + 1
        for n in range(count):
            if n not in pieces:  # the replica that answered may lag: ask the leader
                piece = await self._wire.last(stream, self._subject(id, name, n))
                if piece is None:
                    raise StoreDamaged(
                        f"jetstream: piece {n} of {count} of a large payload of {self._what} {id!r} is missing: "
                        "restore a backup"
                    )
                pieces[n] = piece.data
        return b"".join(pieces[n] for n in range(count))
