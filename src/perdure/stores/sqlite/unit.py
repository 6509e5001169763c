"""The unit of writing: it is committed whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from perdure.core.journal import Message, Start, Status, settles_before_begin
from perdure.core.streams import Batch
from perdure.stores.documents import Fence, Write
from perdure.stores.port import Committed, Transition


class Accept(Struct):
    """A start with the status and position to store it with.

    The position is in the queue of its handler or key. While it is scheduled, it tells the order of acceptance among
    those that are due together; it gets another position when it is due.
    """

    start: Start
    data: bytes
    status: Status
    sequence: int
    new: bool = True


class Route(Struct):
    """Where a message goes: it waits for its start, unless it `may_go` to a worker at once.

    `has_begun` says that a worker has had the start, so that only a worker can apply the message.
    """

    message: Message
    handler: str
    has_begun: bool
    may_go: bool

    @classmethod
    def of(cls, message: Message, handler: str, status: Status, sequence: int | None) -> Route:
        has_begun = status not in ("pending", "scheduled")
        is_put_off = status == "scheduled" or (status == "pending" and sequence is None)
        return cls(message, handler, has_begun, has_begun or (is_put_off and settles_before_begin(message)))


class DocumentWrites(Struct):
    """Writes of documents that are made together. The writer fills in `revisions`."""

    collection: str
    writes: Sequence[Write]
    fence: Fence | None = None
    revisions: list[int] = []


class StepItems(Struct):
    """What a step of an invocation writes to a stream, under the claim `epoch`."""

    id: str
    epoch: int
    batch: Batch


def _ignore(revision: int, error: Exception | None) -> None:
    pass


class Unit(Struct, eq=False):
    """A submit, a post, a commit, or the store's own housekeeping.

    `strict` makes an id that exists with another input an error; `must_exist`, a message to an unknown id. `position`
    is for an invocation that enlists for a key. A commit calls `told`, the others resolve `future`. `ended` says that
    the transition ends the claim. The writer fills in `routes`, `granted` (sequence, id, start, checksum: starts that
    now hold their key), `woken` (id and handler of invocations that began earlier and now hold their key) and
    `called_for` (messages for which starts call whose keys are busy).
    """

    accepts: Sequence[Accept] = ()
    strict: bool = False
    transition: Transition | None = None
    ended: bool = False
    told: Committed = _ignore
    frame: bytes | None = None
    messages: Sequence[Message] = ()
    must_exist: bool = False
    done_messages: Sequence[str] = ()
    done_wakes: Sequence[tuple[str, float]] = ()  # ids, and the times for which they were set
    promoted: Sequence[tuple[int, Start]] = ()
    purge: Sequence[tuple[str, float]] = ()  # ids, and the time after which they must not have changed
    purged: int = 0
    rewrites: Sequence[tuple[str, tuple[Any, ...]]] = ()  # statements and their values, see `rewriting`
    checkpoint: bool = False
    position: int = 0
    documents: DocumentWrites | None = None
    items: StepItems | None = None
    future: asyncio.Future[Any] | None = None
    routes: list[Route] = []
    granted: list[tuple[int, str, bytes, int]] = []
    woken: list[tuple[str, str]] = []
    called_for: list[Message] = []
    error: Exception | None = None

    @property
    def size(self) -> int:
        """How many bytes of frames, starts and items of steps it writes."""
        size = 0 if self.frame is None else len(self.frame)
        size += 0 if self.items is None else len(self.items.batch.data)
        for accept in self.accepts:
            size += len(accept.data) if accept.new else 0
        return size

    def about(self) -> str:
        """Describe the unit, for the log."""
        if self.transition is not None:
            return f"a commit to invocation {self.transition.id!r}"
        if self.items is not None:
            return f"stream {self.items.batch.name!r} of invocation {self.items.id!r}"
        if self.documents is not None:
            return f"documents of collection {self.documents.collection!r}"
        if self.rewrites:
            return "values that are rewritten"
        ids = [*(accept.start.id for accept in self.accepts), *(message.to for message in self.messages)]
        ids += [start.id for _, start in self.promoted]
        return f"requests for {', '.join(map(repr, ids[:3]))}" if ids else "the store's own housekeeping"

    def forget_reports(self) -> None:
        """Forget the results of a transaction that was rolled back."""
        self.routes.clear()
        self.granted.clear()
        self.woken.clear()
        self.called_for.clear()
