"""The Store protocol: where journals, deliveries, wakes and the index live.

Everything the runtime knows of a store is in this module, and `perdure.testing.contract` tests every store against it.
The main rules:

* `submit` and `post` are durable when their future ends, `commit` when it calls back.
* `commit` writes the frame first, guarded by the revision, then the effects, each idempotent, acknowledgements last.
  After a crash in between, a redo (a commit without a frame) finishes the work.
* A delivery goes to one subscriber at a time and comes again until it is acknowledged.
* Starts of one key wait in its queue, in the order of acceptance. A start is delivered when the key names it the
  holder; the holder's `Release` passes the key on. An invocation that queued by `Enlist` gets a wake instead.
* `purge` removes nothing that could then run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from msgspec import Struct

from perdure.core.effects import NO_EFFECTS, Effects
from perdure.core.journal import Answer, Frame, Message, Outcome, Start, Status
from perdure.core.tags import Tags
from perdure.core.values import digest
from perdure.counters import StoreCounters
from perdure.errors import Conflict, IdConflict, InvalidOption, LimitExceeded
from perdure.stores.awakeables import Awakeable, AwakeableFilter
from perdure.stores.documents import DocumentStore
from perdure.stores.streams import StreamStore
from perdure.stores.waits import Wait

if TYPE_CHECKING:
    from perdure.stores.rewriting import CountsKeys, Part, Reseals, Rewriting

PAYLOAD_LIMIT_BYTES = 64 * 1024 * 1024
"""The most bytes that one encoded value may take, unless `connect` is told otherwise."""

LEASE_SECONDS = 15.0
"""How long a process on a shared store may be silent before others take over what it holds."""

KEY_QUEUE_LIMIT = 1_000_000
"""Invocations that may wait for one key before a client's start is refused. Sends of workflows are always accepted."""


# --- time -------------------------------------------------------------------------------------------------------------
class Timer(Protocol):
    """A scheduled callback."""

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

    `attempt` counts from 1; above 1 a worker may have begun on it. `fresh` means that there is no journal yet, which
    saves the read. `token` is the store's own.
    """

    id: str
    handler: str
    item: Start | Message | Wake
    attempt: int = 1
    fresh: bool = False
    token: Any = None


class Subscription(Protocol):
    """What a worker asks of the store."""

    def request(self, starts: int, /) -> None:
        """Allow `starts` more starts to be delivered."""
        ...

    def acknowledge(self, delivery: Delivery, /) -> None:
        """Acknowledge a delivery without a commit."""
        ...

    def hand_back(self, delivery: Delivery, /) -> None:
        """Give a delivery back untouched, for another worker."""
        ...

    def decline(self, delivery: Delivery, reason: str, /) -> None:
        """Give back a delivery, and all else that this worker holds of an invocation that it cannot run.

        For example because a newer release wrote its journal. The invocation is delivered to another worker that serves
        it, if there is one. While no worker can run it, its deliveries wait, and the store logs that with the `reason`,
        rate-limited.
        """
        ...

    def close(self) -> None:
        """End the claims of this worker: what it held is delivered to others at once."""
        ...


# --- what a store writes ----------------------------------------------------------------------------------------------
class Transition(Struct):
    """One commit of an invocation: a frame guarded by the revision that it extends, and its effects.

    Without a frame it redoes the effects of the last one. `status`, `wait` and `awakeables` are for the index. The
    status is given when it or the wait changes and with every release, None otherwise. With it, the wait is what the
    invocation waits for from now on, if that is known. The awakeables are all that are open now, or of what has settled
    all, and None if they are those of the commit before. One that is not among them any more stays in the index, and is
    not open. `released` ends the claim: the next delivery may go to any worker.
    """

    id: str
    expected: int
    frame: Frame | None
    effects: Effects = NO_EFFECTS
    status: Status | None = None
    released: bool = False
    acknowledge: Sequence[Delivery] = ()
    awakeables: Sequence[Awakeable] | None = None
    wait: Wait | None = None

    @property
    def outcome(self) -> Outcome | None:
        """The outcome in the frame, if it settles the invocation."""
        return None if self.frame is None else self.frame.outcome


Committed = Callable[[int, Exception | None], object]
"""Called once with the result of a commit: the journal's new revision, or the error."""


class Journal(Struct, frozen=True):
    """All frames of an invocation, in order, and the revision of the last (0: none).

    `done`: the effects of the last frame are known to be done, and need no redo.
    """

    frames: tuple[Frame, ...] = ()
    revision: int = 0
    done: bool = False


class Row(Struct, frozen=True):
    """What the index knows of an invocation. `wait` is what a commit told last that it waits for.

    If it is `gone`, it was purged, and nothing but the id is known: see `gone_row`.
    """

    id: str
    handler: str
    status: Status
    key: str | None
    created_at: float
    updated_at: float
    due: float
    tags: Tags = ()
    wait: Wait | None = None
    gone: bool = False


def gone_row(id: str) -> Row:
    """Return the row that tells a reader of changes that an invocation was purged."""
    return Row(id, "", "completed", None, 0.0, 0.0, 0.0, gone=True)


class Key(Struct, frozen=True):
    """A key: the invocation that holds it, in which generation, and its state as the last holder left it.

    `grant` is the number of the grant, greater than that of every earlier one of this key; 0 if nobody holds it, or if
    an earlier release granted it.
    """

    holder: str | None = None
    generation: int = 0
    state: dict[str, bytes] = {}
    grant: int = 0

    def granted_to(self, id: str, generation: int, /) -> bool:
        """Report whether an invocation holds it."""
        return self.holder == id and self.generation == generation


class Filter(Struct, frozen=True):
    """Which invocations to list: every field that is set must match. Newest first; `before` continues a page.

    They have all of `tags`, and perhaps more. They were created at `created_after` or later, and earlier than
    `created_before`. A search in SQL stops `within` so many seconds, and raises `QueryTooSlow`. Neither `before` nor
    `limit` nor `within` means anything to `events`, which with `gone` tell of every purged invocation too.
    """

    status: Status | None = None
    handler: str | None = None
    key: str | None = None
    id_prefix: str | None = None
    before: tuple[float, str] | None = None
    limit: int = 100
    id: str | None = None
    created_after: float | None = None
    created_before: float | None = None
    tags: Tags = ()
    within: float | None = None
    gone: bool = False


def matches(row: Row, filter: Filter) -> bool:
    """Report whether a row passes a filter."""
    return (
        (filter.id is None or row.id == filter.id)
        and (filter.status is None or row.status == filter.status)
        and (filter.handler is None or row.handler == filter.handler)
        and (filter.key is None or row.key == filter.key)
        and (filter.id_prefix is None or row.id.startswith(filter.id_prefix))
        and (filter.created_after is None or row.created_at >= filter.created_after)
        and (filter.created_before is None or row.created_at < filter.created_before)
        and (not filter.tags or {*filter.tags} <= {*row.tags})
        and (filter.before is None or (row.created_at, row.id) < filter.before)
    )


class Events(Protocol):
    """The changes of the index that pass a filter, pushed to one reader."""

    async def next(self) -> list[Row] | None:
        """Wait for changes, and return the newest row of each changed invocation, the latest change last.

        None means that more changed than is kept for a slow reader: read the index. After the store is closed and the
        kept rows are read, this raises the error that ended it.
        """
        ...

    def close(self) -> None:
        """Stop: nothing is kept any more."""
        ...


class Counts(Struct, frozen=True):
    """How many invocations there are, by status and by handler.

    `is_current` is false when the store could not read the latest changes; at least `behind` changes are missing then.
    `due_since` tells since when the oldest start that waits for a worker has been due, by handler. One that waits for
    its key may count as well.
    """

    by_status: dict[Status, int] = {}
    by_handler: dict[str, int] = {}
    is_current: bool = True
    behind: int = 0
    due_since: dict[str, float] = {}


class Minute(Struct, frozen=True):
    """How many invocations of a handler ended with a status in a minute, given by the time at which it begins.

    `seconds` is how long they took together, from when they were due; `longest` how long the longest took.
    """

    at: float
    handler: str
    status: Status
    count: int
    seconds: float
    longest: float


MINUTE_SECONDS = 60


def id_conflict(id: str) -> IdConflict:
    """Return the error for an id that exists with another start."""
    text = f"invocation {id!r} exists with another workflow or input: use another id, or client.handle({id!r})"
    return IdConflict(text, invocation_id=id)


def conflict(id: str, expected: int) -> Conflict:
    """Return the error for a commit whose journal has moved on from the revision that it extends."""
    text = f"the journal of invocation {id!r} is not at revision {expected}: another worker has written to it"
    return Conflict(text, invocation_id=id)


def key_queue_full(key: str, waiting: int) -> LimitExceeded:
    """Return the error for a start whose key has too many waiting."""
    text = (
        f"{waiting:,} invocations wait for key {key!r}, which is the limit: start it again when some of them have ended"
    )
    return LimitExceeded(text, size=waiting, limit=waiting)


def no_partitions(partitions: Collection[int], count: int | None) -> InvalidOption:
    """Return the error for partitions that a store with `count` of them (None: not known yet) does not have."""
    have = "name at least one" if count is None else f"this store has the partitions 0 to {count - 1}"
    if count == 1:
        have = "this store has the one partition 0"
    return InvalidOption(f"worker(partitions={sorted(partitions)}): {have}")


def identity_of(start: Start) -> bytes:
    """Return a digest of a start's handler and arguments, by which a repeated id is told from a conflict."""
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
    def clocks_apart(self) -> float:
        """How many seconds the clocks of two processes that share it may differ; 0 where there is one clock."""
        ...

    @property
    def payload_limit(self) -> int:
        """The most bytes that one value may take, encoded."""
        ...

    @property
    def counters(self) -> StoreCounters:
        """What this store did in this process."""
        ...

    @property
    def documents(self) -> DocumentStore:
        """What the store keeps beside invocations."""
        ...

    @property
    def streams(self) -> StreamStore:
        """What invocations write for readers that follow them."""
        ...

    async def open(self) -> None:
        """Make ready, or raise a `StoreError` that says what is wrong."""
        ...

    async def aclose(self) -> None:
        """Write what waits, and release everything."""
        ...

    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        """Accept starts durably; for each, true if it is new, false if its id exists with the same start.

        An id that exists with another handler or input ends the future with `IdConflict`, and accepts none.
        """
        ...

    def post(self, message: Message, /) -> asyncio.Future[None]:
        """Accept a message durably; a second one of the same id changes nothing.

        Raises `UnknownInvocation` if there is no invocation with the id that it is addressed to.
        """
        ...

    async def answer(self, message_id: str, /) -> Answer:
        """Wait for the answer to a message."""
        ...

    def subscribe(
        self,
        handlers: Collection[str],
        deliver: Callable[[Delivery], None],
        *,
        partitions: Collection[int] | None = None,
        lost: Callable[[str], None] | None = None,
        lease: float = LEASE_SECONDS,
    ) -> Subscription:
        """Deliver starts of these handlers, as many as requested, and messages and wakes of their invocations.

        Where processes share a store: only starts of `partitions` come (None: of all). What this worker holds goes to
        others once it has been silent for `lease` seconds. `lost` is called with the id of an invocation that another
        worker has claimed, before a commit of it reports the conflict. Neither callback raises anything but an exit or
        interrupt.
        """
        ...

    def commit(self, transition: Transition, told: Committed, /) -> None:
        """Write a transition durably, then call `told` with the new revision: on the loop, never before this returns.

        If the revision moved, the error is `Conflict` and nothing is written. Revisions grow; their numbers mean
        nothing else. Commits are most of a store's work, and a callback costs less than a future. To await a commit,
        see `committed`.
        """
        ...

    async def journal(self, id: str, /) -> Journal:
        """Read a journal; an unknown id has none."""
        ...

    async def revision(self, id: str, /) -> int:
        """Read the revision of a journal; 0 if there is none."""
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

    async def key(self, name: str, /) -> Key:
        """Read a key; one that was never used has no holder and no state."""
        ...

    def events(self, filter: Filter, /) -> Events:
        """Push the row of every invocation that passes the filter after a change. Register first, then read."""
        ...

    async def mail(self, id: str, /) -> list[Message]:
        """Read the accepted messages for an invocation that are not yet applied or refused, oldest first."""
        ...

    def serves(self, handler: str, /) -> bool | None:
        """Report whether a worker known to this store serves a handler; None where that cannot be known."""
        ...

    def served(self) -> Collection[str]:
        """Return the handlers that workers known to this store serve."""
        ...

    async def row(self, id: str, /) -> Row | None:
        """Read what the index knows of an invocation."""
        ...

    async def search(self, filter: Filter, /) -> list[Row]:
        """List invocations, newest first."""
        ...

    async def awakeables(self, filter: AwakeableFilter, /) -> list[Awakeable]:
        """List awakeables, oldest first."""
        ...

    async def counts(self) -> Counts:
        """Count invocations."""
        ...

    async def minutes(
        self, since: float, /, *, handler: str | None = None, within: float | None = None
    ) -> list[Minute]:
        """Count what ended since a time, by minute, handler and status, in order. What was purged is not counted.

        An invocation that is retried counts when it ends for the last time. `within` as in `Filter`.
        """
        ...

    async def purge(self, before: float, /, *, limit: int, id: str | None = None) -> int:
        """Remove settled invocations that last changed by `before`, oldest first, and return how many it removed.

        At most `limit`, fewer if their journals are long; only `id`, if given. Journal, start, messages, answers and
        streams are gone then. An invocation stays while anything for it is held, queued or unanswered, while the
        effects of its last frame may not be done yet, and while a frame that starts it may be redone.
        """
        ...

    async def rewrite(self, rewriting: Rewriting, after: str = "", /) -> Part:
        """Go through a part of all that is kept, from where an earlier part ended, and change it as `rewriting` says.

        Revisions stay, and so does what a worker has written since it was read. After a crash, go on from any earlier
        part. Once every part was gone through and nothing changed, nothing is left to change but what is `left`.
        """
        ...


@runtime_checkable
class SealsValues(Protocol):
    """A store that encrypts values on their way to another."""

    inner: Store
    """The other one, which has sealed values only."""
    store_id: bytes
    """Names it to the codec."""

    @property
    def sealed_under(self) -> str | None:
        """The name of the key that seals; None if this process has no keys."""
        ...

    def counting(self) -> CountsKeys:
        """Return a rewriting that changes nothing, and counts values by the names of their keys."""
        ...

    def resealing(self) -> Reseals:
        """Return a rewriting that seals anew what is sealed under another key; `KeyMissing` without keys."""
        ...

    async def retire(self) -> None:
        """Forget all keys but the one that seals: nothing is sealed under the others any more."""
        ...

    @property
    def shown(self) -> Store:
        """The store for people: in place of a value that this process cannot open, it says so."""
        ...


def shown(store: Store) -> Store:
    """Return a store as it is shown to people, whether this process can open all values or not."""
    return store.shown if isinstance(store, SealsValues) else store


def loggable(store: Store, text: object) -> object:
    """Return text for a log: where values are sealed, what may hold one stays out of logs."""
    return "(sealed: see `perdure show`)" if isinstance(store, SealsValues) else text


def committed(store: Store, transition: Transition) -> asyncio.Future[int]:
    """Commit, and return a future of the journal's new revision, for callers that await it."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def told(revision: int, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(revision)

    store.commit(transition, told)
    return future
