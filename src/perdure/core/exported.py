"""An invocation's history as text, for tests that replay it against changed code.

The frames have the format of journals, so that an exported history is readable for as long as journals are. They are
encoded anew: fields that a later release has added appear with their defaults, and the bytes may differ. The ids
of awakeables come along, since the secret that signs them does not leave the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from perdure.core.ids import awakeable_id
from perdure.core.journal import (
    Frame,
    OpenAwakeable,
    Retried,
    Start,
    decode_frame,
    decode_start,
    encode_frame,
    encode_start,
)
from perdure.errors import NewerJournal, StoreDamaged, Undecodable

VERSION = 1
"""Version of the format. New fields need no new version: a reader skips unknown ones."""


class AwakeableName(Struct, frozen=True):
    """The id of awakeable `n` of a generation, as the outside knew it."""

    generation: int
    n: int
    id: str


class Exported(Struct, frozen=True):
    """The wire format: `start` and `frames` are msgpack, in base64. `id` and `handler` are for people.

    If values are sealed, `sealed_in` is the id of their store.
    """

    format: Literal["perdure history"]
    version: int
    id: str = ""
    handler: str = ""
    start: bytes = b""
    frames: tuple[bytes, ...] = ()
    awakeables: tuple[AwakeableName, ...] = ()
    sealed_in: bytes = b""


class Loaded(Struct, frozen=True):
    """An exported history, read."""

    start: Start
    frames: tuple[Frame, ...]
    awakeables: dict[tuple[int, int], str]
    """Ids by generation and number."""
    sealed_in: bytes = b""
    """The id of the store in which its values were sealed, if they were."""


def export(frames: Sequence[Frame], start: Start, secret: bytes, sealed_in: bytes = b"", /) -> bytes:
    """Return a history as JSON text; `sealed_in` names the store if its values are sealed."""
    generations = [0, *(each.generation for frame in frames for each in frame.entries if isinstance(each, Retried))]
    opened = {command.n for frame in frames for command in frame.commands if isinstance(command, OpenAwakeable)}
    exported = Exported(
        "perdure history",
        VERSION,
        start.id,
        start.handler,
        encode_start(start),
        tuple(encode_frame(frame) for frame in frames),
        tuple(
            AwakeableName(generation, n, awakeable_id(start.id, generation, n, secret))
            for n in sorted(opened)
            for generation in generations
        ),
        sealed_in,
    )
    return msgspec.json.format(msgspec.json.encode(exported), indent=1)


def load(text: bytes | str, /) -> Loaded:
    """Read the output of `export`; `Undecodable` for other text, or for that of a later release."""
    try:
        exported = _read(text)
        if exported.version > VERSION:
            raise _unreadable(f"it has version {exported.version}, and this release reads up to {VERSION}: upgrade")
        return Loaded(
            decode_start(exported.start),
            tuple(decode_frame(frame, exported.id) for frame in exported.frames),
            {(each.generation, each.n): each.id for each in exported.awakeables},
            exported.sealed_in,
        )
    except NewerJournal as error:
        raise _unreadable(str(error)) from error
    except (msgspec.DecodeError, StoreDamaged, UnicodeDecodeError) as error:
        raise _unreadable(f"it is damaged, or something else ({error})") from error


_read = msgspec.json.Decoder(Exported).decode


def _unreadable(reason: str) -> Undecodable:
    return Undecodable(f"this exported history cannot be read: {reason}", annotation="a history", reason=reason)
