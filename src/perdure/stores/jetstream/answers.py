"""What became of messages: one record for each that a client sent, told to who waits for it, and kept for some days."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec

from perdure.core.journal import Answer
from perdure.stores.jetstream.layout.layout import ANSWER_KEPT_SECONDS, Layout
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.notices import Notices

TOLD_BY_WORKFLOWS = ("settled:", "cancel:")
"""How the ids of messages begin that follow from frames: nobody asks what became of those."""

POLLED_LIMIT = 100
"""Answers that are looked for at a time, in case their push was lost."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Answer).decode


class Answers:
    """Gives answers, and waits for them."""

    def __init__(self, wire: Wire, layout: Layout, notices: Notices) -> None:
        self._wire = wire
        self._layout = layout
        self._notices = notices
        self._listened: dict[str, int] = {}

    async def give(self, _id: str, answer: Answer) -> None:
        """Record an answer; the server tells who listens."""
        if answer.message.startswith(TOLD_BY_WORKFLOWS):
            return
        await self._wire.store(
            self._layout.answer(answer.message), _encode(answer), headers=b"Nats-TTL: %ds\r\n" % ANSWER_KEPT_SECONDS
        )
        self._told(answer)

    def _told(self, answer: Answer) -> None:
        asyncio.get_running_loop().call_soon(self._notices.answered, answer)

    async def read(self, message_id: str) -> Answer | None:
        subject = self._layout.answer(message_id)
        stored = await self._wire.last(self._layout.stream_of(subject), subject)
        return None if stored is None else _decode(stored.data)

    async def wait(self, message_id: str) -> Answer:
        """Wait for an answer: listen first, then read."""
        if message_id not in self._listened:
            subject = self._layout.told(self._layout.answer(message_id))
            self._listened[message_id] = self._wire.subscribe(subject, partial(self._came))
        future = self._notices.await_answer(message_id)
        try:
            known = await self.read(message_id)
            return known if known is not None else await future
        finally:
            if not future.done():
                future.cancel()
            if not self._notices.is_awaited(message_id) and (sid := self._listened.pop(message_id, None)) is not None:
                self._wire.unsubscribe(sid)
                self._wire.forget(sid)

    def _came(self, _subject: str, _reply: str, data: bytes, _headers: bytes) -> None:
        self._notices.answered(_decode(data))

    async def poll(self) -> None:
        """Read the answers that are waited for, in case a push was lost."""
        for message_id in [*self._listened][:POLLED_LIMIT]:
            if (sid := self._listened.pop(message_id, None)) is not None:  # others come first the next time
                self._listened[message_id] = sid
            if (answer := await self.read(message_id)) is not None:
                self._notices.answered(answer)
