"""Streams: what an invocation writes while it runs, for readers that follow it. Items are written in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

from perdure.core.ids import check_name
from perdure.errors import LimitExceeded, StoreDamaged

ITEM_LIMIT_BYTES = 1_000_000
"""The largest item, encoded. With what is around it, a chunk has less than 1 MiB, the most that a NATS server takes."""
BATCH_BYTES = 64 * 1024
"""Items are written once there are so many bytes of them; a larger item is written alone."""
STREAM_LIMIT_BYTES = 64 * 1024 * 1024
"""What steps write to one stream of an invocation at most, encoded; and as much again what its body writes."""
ITEM_BYTES = 5
"""What an item takes beside its own bytes."""


class Batch(Struct, frozen=True, array_like=True, gc=False):
    """Items that a body or a step writes to a stream together.

    Their writer has written `first` before them: the body to this stream, a step in this attempt. `step` is the number
    of the step's command, None for the body. `attempt` counts from 1; that of a body, its generations. `data` holds the
    items.
    """

    name: str
    first: int
    count: int
    data: bytes
    attempt: int = 1
    step: int | None = None


encode_items = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[bytes]).decode


def batches(
    name: str, items: Sequence[bytes], /, *, first: int, attempt: int, step: int | None = None
) -> Iterator[Batch]:
    """Yield items as batches, each of about `BATCH_BYTES` at most, or of one item."""
    begin, size = 0, 0
    for end, item in enumerate([*items, None]):
        if item is None or (size and size + len(item) + ITEM_BYTES > BATCH_BYTES):
            if begin < end:
                yield Batch(name, first + begin, end - begin, encode_items(items[begin:end]), attempt, step)
            begin, size = end, 0
        size += 0 if item is None else len(item) + ITEM_BYTES


def items_of(batch: Batch, /) -> list[bytes]:
    """Return the items of a batch, or raise `StoreDamaged`."""
    try:
        items = _decode(batch.data)
    except msgspec.DecodeError as error:
        raise StoreDamaged(f"items of stream {batch.name!r} do not decode ({error}): restore a backup") from error
    return items


def check_stream(name: str, /) -> str:
    """Return the name of a stream, or raise `BadId`."""
    return check_name("the name of a stream", name)


def check_item(name: str, size: int, /) -> None:
    """Raise `LimitExceeded` for an item that is too large."""
    if size > ITEM_LIMIT_BYTES:
        raise LimitExceeded(
            f"an item of stream {name!r} takes {size:,} bytes, and the limit is {ITEM_LIMIT_BYTES:,}: write smaller "
            "ones, or store it elsewhere and write a reference to it",
            size=size,
            limit=ITEM_LIMIT_BYTES,
        )


def stream_full(name: str, size: int, /) -> LimitExceeded:
    """Return the error for an item that a stream has no room for any more."""
    return LimitExceeded(
        f"stream {name!r} has {size:,} bytes with what is written now, and the limit is {STREAM_LIMIT_BYTES:,}: write "
        "less, or continue in another stream",
        size=size,
        limit=STREAM_LIMIT_BYTES,
    )
