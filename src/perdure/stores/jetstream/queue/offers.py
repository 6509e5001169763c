"""Offers: a delivery passed to the process that owns its invocation, or to one that serves its handler."""

from __future__ import annotations

import asyncio

import msgspec
from msgspec import Struct

from perdure.core.journal import Message
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.ownership.holdings import Token
from perdure.stores.jetstream.wire.protocol import UNAVAILABLE, status_of
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Delivery

OFFER_TIMEOUT_SECONDS = 0.5


TAKEN, NOT_MINE, NO_RESPONDERS = b"taken", b"not mine", b"no responders"
"""The answers to an offer. The server gives the last one, if no process subscribes."""


class Offer(Struct, frozen=True, array_like=True):
    """A delivery that one process offers to another, which then acknowledges it."""

    id: str
    message: bytes | None
    attempt: int
    reply: str
    sequence: int
    urgent: bool
    number: int = 0


_encode_offer = msgspec.msgpack.Encoder().encode
decode_offer = msgspec.msgpack.Decoder(Offer).decode


class Offers:
    """Makes offers."""

    def __init__(self, wire: Wire, blobs: Blobs) -> None:
        self._wire = wire
        self._blobs = blobs

    async def ask(self, subject: str, delivery: Delivery) -> bytes | None:
        """Offer a delivery, and return the answer; None if there was none in time. TAKEN: it is acknowledged there."""
        item, token = delivery.item, delivery.token
        message = msgspec.msgpack.encode(item) if isinstance(item, Message) else None
        if message is not None and self._blobs.is_large(message):
            message = b""
        offer = Offer(delivery.id, message, delivery.attempt, token.reply, token.sequence, token.urgent, token.number)
        answer = await self.make(subject, offer)
        if answer == TAKEN:
            token.done = True
        return answer

    async def make(self, subject: str, offer: Offer) -> bytes | None:
        """Make an offer, and return the answer, as `ask` does."""
        try:
            async with asyncio.timeout(OFFER_TIMEOUT_SECONDS):
                answer = await self._wire.request(subject, _encode_offer(offer))
        except TimeoutError:
            return None
        if answer is None:
            return None
        if status_of(answer[1]) == UNAVAILABLE:
            return NO_RESPONDERS
        return answer[0]


def token_of(offer: Offer, now: float) -> Token:
    """Return the token of an offered delivery."""
    return Token(offer.reply, offer.sequence, now, urgent=offer.urgent, number=offer.number)
