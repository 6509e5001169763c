"""Long journals, packed. One thin journal that is spread over a large stream reads slowly: a block for each frame.

Now and then a new frame takes all those before it along: they go into a segment, which is kept as large payloads are,
and the message of the new frame says which segments there are, and replaces all others on its subject. Guard, number
and checksum are those of any frame, so a reader is either before or behind it, and nothing is written twice. An index
that is made anew may find nothing else of an invocation than such a message.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct

PACK_FRAMES = 256
"""Frames of a journal that are messages of their own, before the next one takes them along."""


class Pack(Struct, frozen=True, array_like=True):
    """What the message of a frame holds that has taken others along: their segments and checksum, and the frame."""

    segments: list[str]
    sum: int
    frame: bytes


class Segment(Struct, frozen=True, array_like=True):
    """Frames in order. One that is kept as a large payload is empty here, and `large` has the name of that by place."""

    frames: list[bytes] = []
    large: dict[int, str] = {}


encode_pack: Callable[[Pack], bytes] = msgspec.msgpack.Encoder().encode
decode_pack = msgspec.msgpack.Decoder(Pack).decode
encode_segment: Callable[[Segment], bytes] = msgspec.msgpack.Encoder().encode
decode_segment = msgspec.msgpack.Decoder(Segment).decode
