"""Packs long journals. A journal that is spread over a large stream reads slowly: the server reads a block per frame.

Every `PACK_FRAMES` frames, the new frame packs all those before it. They go into a segment, stored as a large payload;
the message of the new frame lists all segments and replaces all others on its subject. It has the guard, number and
checksum of any frame, so a reader gets the journal either before or after it, and nothing is written twice. When an
index is rebuilt, this may be the only message of an invocation.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct

PACK_FRAMES = 256
"""How many frames are separate messages before the next frame packs them."""


class Pack(Struct, frozen=True, array_like=True):
    """The payload of a frame that packs others: their segments and running checksum, and the frame."""

    segments: list[str]
    sum: int
    frame: bytes


class Segment(Struct, frozen=True, array_like=True):
    """Frames in order. One that is stored as a large payload is empty here; `large` maps its index to its name."""

    frames: list[bytes] = []
    large: dict[int, str] = {}


encode_pack: Callable[[Pack], bytes] = msgspec.msgpack.Encoder().encode
decode_pack = msgspec.msgpack.Decoder(Pack).decode
encode_segment: Callable[[Segment], bytes] = msgspec.msgpack.Encoder().encode
decode_segment = msgspec.msgpack.Decoder(Segment).decode
