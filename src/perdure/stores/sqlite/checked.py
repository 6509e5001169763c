"""Verifies rows against their checksums. Damage raises `StoreDamaged`, which names the invocation and the row."""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from perdure.core.journal import Frame, Message, Start, decode_frame, decode_message, decode_start
from perdure.errors import StoreDamaged
from perdure.stores.port import Row, identity_of
from perdure.stores.sql import index
from perdure.stores.sql.index import COLUMNS
from perdure.stores.sqlite.faults import about
from perdure.stores.sqlite.schema import answer_checksum, frame_checksum, state_checksum

ROW = f"{COLUMNS}, sequence, wake, revision, state_checksum"
"""The columns of a `Row`, and those that its checksum covers."""
_OF_ANOTHER_TYPE = (TypeError, ValueError, OverflowError, struct.error)
"""Raised by the computation of a checksum if a column holds a value of another type, as SQLite permits."""
RESTORE = "restore it from a backup to go on with it"


def has_table(db: sqlite3.Connection, name: str) -> bool:
    """Report whether the file has a table: one of an earlier release may lack it."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone() is not None


def damaged(path: str, what: str) -> StoreDamaged:
    """Return the error for damage to one invocation."""
    return StoreDamaged(about(path, f"{what}: {RESTORE}"))


def damaged_awakeable(path: str, invocation: str) -> StoreDamaged:
    """Return the error for a row of the index of awakeables."""
    return damaged(path, f"an awakeable of invocation {invocation!r} was changed in the index")


def start_of(path: str, id: str, data: bytes, checksum: int) -> Start:
    with suppress(*_OF_ANOTHER_TYPE):
        if zlib.crc32(data) == checksum and (start := decode_start(data)).id == id:
            return start
    raise damaged(path, f"the start of invocation {id!r} was changed")


def message_of(path: str, to: str, data: bytes, checksum: int) -> Message:
    with suppress(*_OF_ANOTHER_TYPE):
        if zlib.crc32(data) == checksum and (message := decode_message(data)).to == to:
            return message
    raise damaged(path, f"a message to invocation {to!r} was changed")


def row_of(path: str, found: Sequence[Any]) -> Row:
    """Return the `Row` of columns selected by `ROW`."""
    *described, sequence, wake, revision, checksum = found
    try:
        row = index.row_of(described)
    except (msgspec.DecodeError, *_OF_ANOTHER_TYPE) as error:
        raise damaged(path, f"the tags or the wait of invocation {found[0]!r} were changed") from error
    check_state(path, row.id, row.status, sequence, row.updated_at, wake, revision, described[-1], checksum)
    return row


def check_state(
    path: str,
    id: str,
    status: str,
    sequence: int | None,
    updated_at: float,
    wake: float | None,
    revision: int,
    wait: str | None,
    checksum: int,
) -> None:
    with suppress(*_OF_ANOTHER_TYPE, AttributeError):
        if state_checksum(id, status, sequence, updated_at, wake, revision, wait) == checksum:
            return
    raise damaged(path, f"the row of invocation {id!r} was changed")


def check_described(path: str, start: Start, described: Sequence[Any]) -> None:
    """Check the columns that repeat fields of the start: handler, key, created_at, due, identity and tags."""
    tags = index.tags_text(start.tags) or None
    if [*described] != [start.handler, start.key, start.at, start.due, identity_of(start), tags]:
        raise damaged(path, f"the row of invocation {start.id!r} was changed")


def check_frames(path: str, id: str, revision: int, frames: Sequence[tuple[int, bytes, int]]) -> None:
    """Check that a journal has all its frames, in order and unchanged."""
    for number, (at, data, checksum) in enumerate(frames, 1):
        if at != number or not _is_frame(id, at, data, checksum):
            raise damaged(path, f"frame {number} of the journal of invocation {id!r} is missing or was changed")
    if len(frames) < revision:
        raise damaged(path, f"the journal of invocation {id!r} ends at frame {len(frames)} of {revision}")


def check_frame(path: str, id: str, revision: int, data: bytes, checksum: int) -> None:
    if not _is_frame(id, revision, data, checksum):
        raise damaged(path, f"frame {revision} of the journal of invocation {id!r} was changed")


def last_frame_of(path: str, id: str, found: tuple[int, bytes, int] | None) -> Frame:
    """Return the last frame of a settled invocation."""
    if found is None or not _is_frame(id, *found):
        raise damaged(path, f"the last frame of the journal of invocation {id!r} is missing or was changed")
    return decode_frame(found[1], id)


def _is_frame(id: str, revision: int, data: bytes, checksum: int) -> bool:
    with suppress(*_OF_ANOTHER_TYPE):
        return frame_checksum(id, revision, data) == checksum
    return False


def check_answer(path: str, to: str, id: str, answer: str | None, answered: int, checksum: int) -> None:
    if checksum != (answer_checksum(id, answer) if answered else 0):
        raise damaged(path, f"the answer to message {id!r} to invocation {to!r} was changed")
