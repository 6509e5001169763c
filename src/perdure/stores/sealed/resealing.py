"""Counts under which keys the values of a store are sealed, and seals them under the present one.

Both are a `Rewriting`: the store goes through what it keeps. Only the sealed bytes are replaced, wherever they are. The
digest of a start stays, since its key does. What does not open stays as it is, and is named.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from perdure.core.failures import Failure
from perdure.core.journal import Answer, CallStep, Frame, Message, Start
from perdure.core.streams import Batch
from perdure.errors import Unopened
from perdure.stores.awakeables import Awakeable
from perdure.stores.documents import Document
from perdure.stores.port import Key
from perdure.stores.rewriting import Left
from perdure.stores.sealed.documents import document_with
from perdure.stores.sealed.fields import TEXT, Opening, Sealing, State, about, name_in
from perdure.stores.sealed.walk import (
    answer_with,
    awakeable_with,
    batch_with,
    frame_with,
    key_with,
    message_with,
    start_with,
)


class Counting:
    """Counts how many values are sealed `under` each key, by its name, and changes nothing. It needs no key."""

    def __init__(self) -> None:
        self.under: Counter[str] = Counter()
        self._fields = _EachSealed(self._became)

    def _became(self, data: bytes, name: str, scope: bytes, place: bytes) -> bytes:
        """Return what becomes of a value that is sealed under a key."""
        self.under[name] += 1
        return data

    def start(self, start: Start, /) -> Start:
        return start_with(self._fields, start)

    def message(self, message: Message, /) -> Message:
        return message_with(self._fields, message)

    def answer(self, answer: Answer, /) -> Answer:
        return answer_with(self._fields, answer)

    def frame(self, id: str, frame: Frame, /) -> Frame:
        return frame_with(self._fields, id, frame)

    def key(self, name: str, key: Key, /) -> Key:
        return key_with(self._fields, name, key)

    def awakeable(self, awakeable: Awakeable, /) -> Awakeable:
        return awakeable_with(self._fields, awakeable)

    def document(self, collection: str, document: Document, /) -> Document:
        return document_with(self._fields, collection, document)

    def batch(self, id: str, batch: Batch, /) -> Batch:
        return batch_with(self._fields, id, batch)


class Resealing(Counting):
    """Seals anew what is sealed under another key than the present one. `left` has what does not open, and why."""

    def __init__(self, sealing: Sealing, opening: Opening, key: str) -> None:
        super().__init__()
        self.left: dict[str, Left] = {}
        self._sealing = sealing
        self._opening = opening
        self._key = key

    def _became(self, data: bytes, name: str, scope: bytes, place: bytes) -> bytes:
        if name != self._key:
            try:
                data, name = self._sealing.value(self._opening.value(data, scope, place), scope, place), self._key
            except Unopened as error:
                what = about(scope)
                self.left[what] = Left(what, str(error))
        return super()._became(data, name, scope, place)


class _EachSealed:
    """`Fields` that replaces the sealed bytes of each field, by what `became` returns for them."""

    def __init__(self, became: Callable[[bytes, str, bytes, bytes], bytes]) -> None:
        self._became = became

    def value(self, data: bytes, scope: bytes, place: bytes, /) -> bytes:
        name = name_in(data)
        return data if name is None else self._became(data, name, scope, place)

    def text(self, text: str, scope: bytes, place: bytes, /) -> str:
        if not text.startswith(TEXT):
            return text
        try:
            data = base64.b64decode(text[len(TEXT) :], validate=True)
        except binascii.Error:  # it was changed, as is told by whoever opens it
            return text
        return TEXT + base64.b64encode(self.value(data, scope, place)).decode()

    def failure(self, failure: Failure, scope: bytes, place: bytes, /) -> Failure:
        match failure.args:
            case [bytes(data)]:
                return replace(failure, args=[self.value(data, scope, place)])
            case _:
                return failure

    def state(self, state: State, scope: bytes, place: bytes, /) -> dict[str, Any]:
        return {name: None if data is None else self.value(data, scope, place) for name, data in state.items()}

    def step(self, step: CallStep, scope: bytes, place: bytes, /) -> CallStep:
        return replace(step, digest=self.value(step.digest, scope, place))

    def start(self, start: Start, scope: bytes, place: bytes, /) -> Start:
        return replace(start, input=self.value(start.input, scope, place))
