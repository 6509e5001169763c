"""Atomic batches: several guarded puts to one stream, all stored or none.

The server gathers the messages of a batch by its id, and stores them when the last one commits it. What it lost of a
batch, it does not store. If no answer comes, as on a slow line or one that breaks, and the batch is not there, it is
sent again under another id; then its guards tell that it, or another message, was stored the first time:
`PerhapsStored`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from perdure.errors import StoreError, StoreUnavailable
from perdure.stores.jetstream.wire.checks import no_room
from perdure.stores.jetstream.wire.link import RETRY_SECONDS
from perdure.stores.jetstream.wire.protocol import (
    BATCH_AGAIN,
    BATCHES_DISABLED,
    FULL,
    NOT_NOW,
    TOO_MANY,
    UNAVAILABLE,
    WRONG_SEQUENCE,
    PerhapsStored,
    WrongSequence,
    decode_ack,
    raise_error,
    status_of,
)
from perdure.stores.jetstream.wire.wire import PUT_NAME, Guarded, Wire

BATCHES_AT_A_TIME = 8
"""Batches that this process has in flight: the server takes 50 for each stream, from all processes."""


class Batches:
    """Puts several messages at once. A stream that an earlier release made is changed to take batches."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._room = asyncio.Semaphore(BATCHES_AT_A_TIME)

    async def store(self, stream: str, messages: Sequence[Guarded]) -> int:
        """Put all messages or none; return the sequence of the first, which those of the others follow.

        `WrongSequence` if a guard does not hold.
        """
        name = self._wire.new_name()
        async with self._room:
            sent = 0
            while True:
                sent += 1
                answer = await self._wire.send_batch(name, b"%s.%d" % (name, sent), messages)
                if answer is None or status_of(answer[1]) == UNAVAILABLE:
                    self._wire.check_open()
                    await asyncio.sleep(RETRY_SECONDS)
                    if answer is None and (stored := await self._was_stored(stream, name, messages)) is not None:
                        return stored
                    continue
                ack = decode_ack(answer[0])
                if ack.error is None:
                    return ack.seq - len(messages) + 1
                code, text = ack.error.err_code, f"jetstream: {messages[0].subject}: {ack.error.description}"
                if code in FULL:
                    raise no_room(messages[0].subject, ack.error.description)
                if code == WRONG_SEQUENCE:
                    if sent == 1:
                        raise WrongSequence(text)
                    return await self._look_for(stream, name, messages)
                if code == BATCHES_DISABLED:
                    await self._enable(stream)
                elif code in NOT_NOW or code in BATCH_AGAIN or ack.error.code in (TOO_MANY, UNAVAILABLE):
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    raise StoreError(f"{text} ({code})")

    async def _was_stored(self, stream: str, name: bytes, messages: Sequence[Guarded]) -> int | None:
        """Return the sequence of the first message if the last one is there, before all is sent again."""
        try:
            return await self._place_of(len(messages) - 1, stream, name, messages)
        except StoreUnavailable:
            return None

    async def _look_for(self, stream: str, name: bytes, messages: Sequence[Guarded]) -> int:
        """Return the sequence of the first message if an attempt before the last was stored."""
        for position in range(len(messages)):
            if (first := await self._place_of(position, stream, name, messages)) is not None:
                return first
        raise PerhapsStored(f"jetstream: {messages[0].subject}: another message was stored first")

    async def _place_of(self, position: int, stream: str, name: bytes, messages: Sequence[Guarded]) -> int | None:
        """Return the sequence of the first message if the one at `position` is there."""
        found = await self._wire.last(stream, messages[position].subject)
        return found.sequence - position if found is not None and found.header(PUT_NAME) == name else None

    async def _enable(self, stream: str) -> None:
        info = await self._wire.api(f"STREAM.INFO.{stream}")
        raise_error(info, stream)
        config: dict[str, Any] = info["config"]
        raise_error(await self._wire.api(f"STREAM.UPDATE.{stream}", {**config, "allow_atomic": True}), stream)
