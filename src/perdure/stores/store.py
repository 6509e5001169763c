"""The Store protocol: where journals, deliveries, wakes and the index live.

Everything the runtime knows of a store is in this module, and `stores.contract` in the tests holds every store to it.
The rules that matter most:

* `submit`, `post` and `commit` are durable when their future ends.
* `commit` writes the frame first, guarded by the revision, then the effects, each idempotent, acknowledgements last.
  A store that crashes in between leaves a state from which `redo` (a commit without a frame) finishes the work.
* A delivery goes to one subscriber at a time and comes again until it is acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from msgspec import Struct

from perdure.core.codec import digest
from perdure.core.effects import NO_EFFECTS, Effects
from perdure.core.journal import Answer, Frame, Message, Outcome, Start, Status
from perdure.errors import IdConflict, UnknownInvocation

PAYLOAD_LIMIT_BYTES = 64 * 1024 * 1024
"""The most bytes that one encoded value may take, unless `connect` is told otherwise."""


# --- time -------------------------------------------------------------------------------------------------------------
class Timer(Protocol):
    """A callback to come."""

    def cancel(self) -> object: ...


class Clock(Protocol):
    """The one source of time of a store and of the workers on it."""

    def now(self) -> float:
        """Return seconds since the Unix epoch; never goes back."""
        ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        """Call back at `when` or a little later, never earlier."""
        ...


# --- what a store delivers --------------------------------------------------------------------------------------------
class Wake(Struct, frozen=True):
    """A hint: something of this invocation may be due."""


class Delivery(Struct, eq=False):
    """A start, message or wake handed to one subscriber until it acknowledges.

    `attempt` counts from 1; above 1 somebody may have begun on it. `fresh` means that there is no journal yet, which
    saves the read. `token` is the store's own.
    """

    id: str
    handler: str
    item: Start | Message | Wake
    attempt: int = 1
    fresh: bool = False
    token: Any = None


class Subscription(Protocol):
    """A worker's place at the store."""

    def request(self, starts: int, /) -> None:
        """Allow `starts` more starts to be delivered."""
        ...

    def acknowledge(self, delivery: Delivery, /) -> None:
        """Say that a delivery needs nothing more, without a commit."""
        ...

    def hand_back(self, delivery: Delivery, /) -> None:
        """Give a delivery back untouched, for somebody else."""
        ...

    def close(self) -> None:
        """End the claims of this worker: what it held is delivered to others at once."""
        ...


# --- what a store writes ----------------------------------------------------------------------------------------------
class Transition(Struct):
    """One step in the life of an invocation: a frame guarded by the revision it extends, and what follows from it.

    Without a frame it redoes the effects of the last one. `status` is for the index: given when it changes and with
    every release, None otherwise. `released` ends the claim: the next delivery may go to any worker.
    """

    id: str
    expected: int
    frame: Frame | None
    effects: Effects = NO_EFFECTS
    status: Status | None = None
    released: bool = False
    acknowledge: Sequence[Delivery] = ()

    @property
    def outcome(self) -> Outcome | None:
        """The outcome that the frame brings, if it settles the invocation."""
        return None if self.frame is None else self.frame.outcome


class Journal(Struct, frozen=True):
    """All frames of an invocation, in order, and the revision of the last (0: none)."""

    frames: tuple[Frame, ...] = ()
    revision: int = 0


class Row(Struct, frozen=True):
    """What the index knows of an invocation."""

    id: str
    handler: str
    status: Status
    key: str | None
    created_at: float
    updated_at: float
    due: float


class Filter(Struct, frozen=True):
    """Which invocations to list: every field that is set must match. Newest first; `before` continues a page."""

    status: Status | None = None
    handler: str | None = None
    key: str | None = None
    id_prefix: str | None = None
    before: tuple[float, str] | None = None
    limit: int = 100


class Counts(Struct, frozen=True):
    """How many invocations there are, by status and by handler."""

    by_status: dict[Status, int] = {}
    by_handler: dict[str, int] = {}


def unknown(id: str) -> UnknownInvocation:
    """Return the error for an id that a store does not know."""
    text = f"no invocation {id!r} here: it was never started in this store, or its retention has ended"
    return UnknownInvocation(text, invocation_id=id)


def id_conflict(id: str) -> IdConflict:
    """Return the error for an id that exists with another start."""
    text = f"invocation {id!r} exists with another workflow or input: use another id, or client.handle({id!r})"
    return IdConflict(text, invocation_id=id)


def identity_of(start: Start) -> bytes:
    """Return what tells two starts of one id apart: the same for the same handler and equal arguments."""
    return digest(start.handler.encode() + (b"\1" + start.digest if start.digest else b"\0" + start.input))


class Store(Protocol):
    """What the runtime and the client need. See the module for the rules."""

    @property
    def clock(self) -> Clock: ...
    @property
    def secret(self) -> bytes:
        """Signs the ids of awakeables; the same for the store's whole life."""
        ...

    @property
    def payload_limit(self) -> int:
        """The most bytes that one value may take, encoded."""
        ...

    async def open(self) -> None:
        """Make ready, or raise a `StoreError` that says what is wrong."""
        ...

    async def aclose(self) -> None:
        """Write what waits, and let go of everything."""
        ...

    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        """Accept starts durably; for each, true if it is new, false if its id exists with the same start.

        An id that exists with another handler or input ends the future with `IdConflict`, and accepts none.
        """
        ...

    def post(self, message: Message, /) -> asyncio.Future[None]:
        """Accept a message durably; a second one of the same id changes nothing.

        `UnknownInvocation` when nobody has the id that it is addressed to.
        """
        ...

    async def answer(self, message_id: str, /) -> Answer:
        """Wait for what becomes of a message."""
        ...

    def subscribe(
        self,
        handlers: Collection[str],
        deliver: Callable[[Delivery], None],
        *,
        partitions: Collection[int] | None = None,
    ) -> Subscription:
        """Deliver starts of these handlers, within what is requested, and messages and wakes of their invocations."""
        ...

    def commit(self, transition: Transition, /) -> asyncio.Future[int]:
        """Write a transition durably and give the journal's new revision.

        The future fails with `Conflict`, and nothing happened, if the revision moved. Revisions grow; nothing else can
        be concluded from their numbers.
        """
        ...

    async def journal(self, id: str, /) -> Journal:
        """Read a journal; an unknown id has none."""
        ...

    async def outcome(self, id: str, /) -> Outcome | None:
        """Read how an invocation ended, if it has."""
        ...

    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        """Push the next outcome of an invocation. Register first, then read: a push may be lost, a read not."""
        ...

    async def start(self, id: str, /) -> Start | None:
        """Read the start of an invocation, queued or begun; None when there is no such invocation."""
        ...

    def serves(self, handler: str, /) -> bool:
        """Tell whether a worker known to this store serves a handler."""
        ...

    async def row(self, id: str, /) -> Row | None:
        """Read what the index knows of an invocation."""
        ...

    async def search(self, filter: Filter, /) -> list[Row]:
        """List invocations, newest first."""
        ...

    async def counts(self) -> Counts:
        """Count invocations."""
        ...
