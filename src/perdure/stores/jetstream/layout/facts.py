"""Facts: what the header of every message tells about its invocation."""

from __future__ import annotations

from typing import Any, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.core.journal import Start, Status
from perdure.core.journal.reading import TAG_LENGTH_LIMIT
from perdure.core.journal.status import STATUSES
from perdure.core.tags import Tags
from perdure.stores.waits import Wait


class Facts(Struct, frozen=True, omit_defaults=True):
    """The header of a frame, reservation or queued start, which spares reading its payload.

    Times are seconds since the epoch. `kind` is "frame", "reserved" (the id is taken by a start that has not begun),
    "closing" (a purge is in progress) or "gone" (a tombstone). `parent` is the invocation that started this one, as a
    child or by a send. `number` counts frames from 1; in a wake, it is that of the frame that set it. `sum` is the
    running checksum of the journal. `owner` is the store whose worker holds the claim, `epoch` that of the claim.
    `blob` names the pieces that hold the payload, as `<blob>:<count>`, and `has_blobs` says that some payload of the
    invocation is in pieces. `identity` tells starts of one id apart. `quiet` says that its row in the index stays as it
    is. `wake` is the last time at which the invocation asked to be woken. `packed` counts the frames that are in
    segments (`packs`). `python` is the minor version of the last claim. `asks` says whether it ever had an open
    awakeable: not known before its first release, nor of one that a release before 2026-12-01 wrote. `open` are those
    that are open now, by generation and command. `tags` are those of the start. `wait` is what it waits for, as told
    with the last change of its row. `revision`: the frame was written anew, with other values in the same journal, and
    this is the revision of the journal as before.
    """

    id: str = ""
    handler: str = ""
    status: Status = "pending"
    key: str | None = None
    parent: str | None = None
    created_at: float = 0.0
    due: float = 0.0
    at: float = 0.0
    kind: str = "frame"
    number: int = 0
    sum: int = 0
    epoch: int = 0
    owner: str = ""
    blob: str = ""
    identity: str = ""
    quiet: bool = False
    wake: float = 0.0
    has_blobs: bool = False
    packed: int = 0
    python: str = ""
    asks: bool | None = None
    open: tuple[tuple[int, int], ...] = ()
    tags: Tags = ()
    wait: Wait | None = None
    revision: int = 0

    @property
    def is_pack(self) -> bool:
        """Report whether this frame packs all those before it."""
        return self.packed > 0 and self.number == self.packed + 1


FACTS = b"Perdure: "
ROLLUP = b"Nats-Rollup: sub\r\n"
"""A message with this header replaces all before it on its subject."""
_encode_facts = msgspec.json.Encoder().encode
_decode_facts = msgspec.json.Decoder(Facts).decode


def lines_of(facts: Facts) -> bytes:
    """Return the header line for facts."""
    return b"%s%s\r\n" % (FACTS, _encode_facts(facts))


UNREADABLE = Facts(kind="unreadable")
"""The facts of a message that has none, or whose facts do not decode."""


def facts_of(headers: bytes) -> Facts:
    """Return the facts in raw headers. It never raises: facts that do not decode are `UNREADABLE`.

    A status that this release does not know is kept: see `problem_of`.
    """
    at = headers.find(b"\r\n" + FACTS)
    if at < 0:
        return UNREADABLE
    at += 2 + len(FACTS)
    data = headers[at : headers.find(b"\r\n", at)]
    try:
        return _decode_facts(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _facts_of_newer(data)


def _facts_of_newer(data: bytes) -> Facts:
    """Return facts whose status this release does not know."""
    try:
        raw = cast("dict[str, Any]", msgspec.json.decode(data))
        status = raw.pop("status")
        facts = msgspec.convert(raw, Facts)
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        return UNREADABLE
    is_word = isinstance(status, str) and status.isprintable() and 0 < len(status) <= TAG_LENGTH_LIMIT
    return replace(facts, status=status) if is_word else UNREADABLE


JOURNAL_KINDS = frozenset({"frame", "reserved", "closing", "gone"})
"""The kinds of messages on the subject of a journal."""


def problem_of(facts: Facts) -> str:
    """Return why this release must not act on an invocation whose journal ends with these facts; empty if it may."""
    if facts.kind == UNREADABLE.kind:
        return "the header of the last message of its journal does not decode: remove that message, or restore a backup"
    if facts.kind not in JOURNAL_KINDS:
        return f"its journal ends with a {facts.kind!r}: a newer release wrote this; upgrade this worker"
    if facts.status not in STATUSES:
        return f"its status is {facts.status!r}: a newer release wrote this; upgrade this worker"
    return ""


def facts_of_start(start: Start, status: Status, at: float, *, kind: str = "reserved", identity: str = "") -> Facts:
    """Return the facts of a start."""
    parent = start.sender if start.parent is None else start.parent.id
    times = (start.at, start.due, at)
    return Facts(start.id, start.handler, status, start.key, parent, *times, kind, identity=identity, tags=start.tags)
