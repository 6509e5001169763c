"""The operations on a store and its invocations, as a protocol in terms of invocations and values.

The client, its handles and the command line know this protocol and nothing behind it: no store, no journal, no secret.
`local` implements it over a store that this process opens. A value is bytes, encoded by `perdure.core`; the caller
knows its type.

Every operation opens the store if it is not open yet, raises `StoreClosed` after `aclose`, and `UnknownInvocation` for
an id that the store does not know.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from perdure.authoring.workflow import Delay
from perdure.core.failures import Failure
from perdure.core.journal import Status
from perdure.core.retry import Duration
from perdure.core.schedule import Plan
from perdure.core.tags import Tags
from perdure.operations.access import Access, Token
from perdure.operations.audit import Link
from perdure.operations.bulk import BulkPage, BulkPreview, BulkProgress, BulkRequest, BulkVerb
from perdure.operations.capabilities import Capability, Purpose
from perdure.operations.describe import Invocation
from perdure.operations.documents import Document, DocumentKey, Fence, Scan, Write
from perdure.operations.following import StreamPart
from perdure.operations.listing import AwakeableFilters, AwakeablePage, Filters, Page
from perdure.operations.rekey import RekeyProgress, SealedPart
from perdure.operations.schedules import Change, ScheduleInfo

ANSWER_WAIT_SECONDS = 30.0
"""How long `pause`, `resume`, `cancel`, `retry`, `resolve` and `reject` wait until they are applied.

The message is durable before they wait."""


# --- what is started, and how it ends ---------------------------------------------------------------------------------
class Submission(Struct, frozen=True):
    """One workflow to start: the encoded arguments and how to run them.

    `is_chosen`: the caller chose the id, so it may exist already. `digest` identifies the input, and `interface` is the
    hash of what the handler takes, as the caller knows it. `flow` is how a flow is to be executed. `when_busy` is what
    it does if its key is held (`core.busy`).
    """

    id: str
    handler: str
    input: bytes
    digest: bytes
    is_chosen: bool = False
    key: str | None = None
    delay: Duration | datetime | None = None
    timeout: float | None = None
    tags: Tags = ()
    interface: bytes = b""
    flow: bytes = b""
    when_busy: str = "enqueue"


class Value(Struct, frozen=True):
    """The invocation completed with this value."""

    data: bytes


class WasCancelled(Struct, frozen=True):
    """The invocation was cancelled."""


Outcome = Value | Failure | WasCancelled
"""How an invocation ended: with a value, with a failure, or cancelled."""


class Stats(Struct, frozen=True, omit_defaults=True):
    """How many invocations there are.

    `is_current` is false while a remote store cannot be reached: these are the last known numbers then, and at least
    `behind` changes are missing. `pending_seconds` tells how long the oldest start that waits for a worker has waited,
    by handler.
    """

    total: int
    by_status: Mapping[Status, int]
    by_handler: Mapping[str, int]
    is_current: bool = True
    behind: int = 0
    pending_seconds: Mapping[str, float] = {}


class Minute(Struct, frozen=True):
    """How many invocations of a handler ended with a status in the minute that begins at `at`.

    `seconds` is how long they took together, from when they were due; `longest` how long the longest took.
    """

    at: datetime
    handler: str
    status: Status
    count: int
    seconds: float
    longest: float


def nothing() -> None:
    """Do nothing: for a caller that does not need to hear when its start is durable."""


# --- the operations ---------------------------------------------------------------------------------------------------
class Operations(Protocol):
    """The operations of the client, its handles and the command line on a store."""

    # --- life ---------------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        """Open the store, or raise a `StoreError` that says what is wrong."""
        ...

    async def aclose(self) -> None:
        """Close the store for good."""
        ...

    # --- running ------------------------------------------------------------------------------------------------------
    async def run(self, submission: Submission, accepted: Callable[[], object] = nothing, /) -> Outcome:
        """Start an invocation and wait for its outcome; `accepted` is called once the start is durable."""
        ...

    async def start(self, submission: Submission, /) -> None:
        """Start an invocation; return when the start is durable."""
        ...

    async def start_all(self, submissions: Sequence[Submission], /) -> None:
        """Start invocations; return when all starts are durable. `IdConflict` starts none."""
        ...

    async def result(self, id: str, /, *, timeout: float | None = None) -> Outcome:
        """Wait for the outcome of an invocation; `WaitTimeout` after `timeout` seconds."""
        ...

    async def restart(
        self, id: str, call: Submission | None, /, *, new_id: str | None, handlers: Collection[str] = ()
    ) -> str:
        """Start an invocation at rest anew under another id, and return that id; `call` has other input.

        `handlers` are the names of the workflow that is called: the invocation must be of one of them.
        """
        ...

    # --- talking ------------------------------------------------------------------------------------------------------
    # Each is durable at once and returns when it is applied. `MessageRefused` says why it was not; `WaitTimeout`, that
    # it was not within `timeout` seconds.
    async def pause(self, id: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None: ...
    async def resume(self, id: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None: ...
    async def cancel(self, id: str, /, *, force: bool = False, timeout: Duration = ANSWER_WAIT_SECONDS) -> None: ...
    async def retry(self, id: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None: ...
    async def resolve(self, awakeable_id: str, value: bytes, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None: ...
    async def reject(self, awakeable_id: str, reason: str, /, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None: ...

    async def awakeable(self, awakeable_id: str, /) -> tuple[str, int]:
        """Return the invocation of an awakeable and the number of its command; `BadId` for one of another store."""
        ...

    async def make_capability(self, purpose: Purpose, awakeable_id: str, expires: Delay, /) -> Capability:
        """Sign a text that lets anyone who has it answer an awakeable; `BadId` for an awakeable of another store.

        `expires`: in how many seconds, or when.
        """
        ...

    async def check_capability(self, purpose: Purpose, text: str, /) -> Capability:
        """Return what a capability is for; `CapabilityRefused` if it is not valid for this purpose, or expired."""
        ...

    # --- looking ------------------------------------------------------------------------------------------------------
    async def look(self, id: str, /) -> Invocation:
        """Return what the index knows of an invocation."""
        ...

    async def describe(self, id: str, /) -> Invocation:
        """Return what the index and the journal know of an invocation."""
        ...

    async def page(
        self, filters: Filters, /, *, limit: int, cursor: str | None = None, within: float | None = None
    ) -> Page:
        """Return at most `limit` invocations, newest first, and the cursor of the page after them.

        A query of the index that takes longer than `within` seconds stops with `QueryTooSlow`. A server has its own
        limit.
        """
        ...

    async def awakeables(
        self, filters: AwakeableFilters, /, *, limit: int, cursor: str | None = None, within: float | None = None
    ) -> AwakeablePage:
        """Return at most `limit` awakeables, oldest first, and the cursor of the page after them; `within` as above."""
        ...

    def watch(self, id: str, /) -> AsyncGenerator[Invocation, None]:
        """Push the statuses of an invocation: the present one first, the settled one last."""
        ...

    def stream(self, id: str, name: str, start: int, /, *, follow: bool = True) -> AsyncGenerator[StreamPart, None]:
        """Yield the items of a stream of an invocation from number `start` on, in order, without gap or repetition.

        With `follow`, also those that come, until the invocation has settled; else those that there are.
        """
        ...

    def watch_all(self, filters: Filters, /, *, gone: bool = False) -> AsyncGenerator[Invocation, None]:
        """Push every invocation that passes the filters after a change, without end.

        With `gone`, also every one that is purged, which is `gone` then and has nothing but its id. Where changes were
        missed, one without id comes in place of them: list the invocations again.
        """
        ...

    async def stats(self) -> Stats:
        """Count invocations."""
        ...

    async def minutes(self, *, since: datetime, handler: str | None = None) -> list[Minute]:
        """Count what ended since a time, by minute, handler and status: at most of the last 24 hours.

        It is a query of the index that stops with `QueryTooSlow` as one over HTTP does.
        """
        ...

    async def state(self, key: str, /) -> Mapping[str, bytes]:
        """Return the state of a key, as the last invocation to end left it."""
        ...

    async def serves(self, handler: str, /) -> bool | None:
        """Report whether a worker serves a handler; None where that cannot be known from here."""
        ...

    # --- bulk jobs ----------------------------------------------------------------------------------------------------
    # `by` is who asks; None: whoever has the store.
    async def preview_bulk(self, request: BulkRequest, /, *, by: Access | None = None) -> BulkPreview:
        """Count the invocations that a request is for, and return a token that begins the job."""
        ...

    async def begin_bulk(self, verb: BulkVerb, token: str, /, *, by: Access | None = None) -> BulkProgress:
        """Begin the job of a token, and return when it is durable. The same token does not begin two.

        `InvalidOption` for a token that is old, forged, of another verb, or of somebody else.
        """
        ...

    async def bulk_job(self, id: str, /) -> BulkProgress:
        """Return how far a job is; `UnknownJob` if there is none."""
        ...

    async def bulk_jobs(self, *, limit: int, cursor: str | None = None) -> BulkPage:
        """Return at most `limit` jobs, newest first, and the cursor of the page after them."""
        ...

    async def stop_bulk(self, id: str, /) -> BulkProgress:
        """Let a job begin nothing new. What it has in hand, up to a batch, is done."""
        ...

    # --- documents ----------------------------------------------------------------------------------------------------
    # Collections, keys and writes are checked by the caller.
    async def read_documents(self, collection: str, keys: Sequence[DocumentKey], /) -> list[Document | None]:
        """Read documents."""
        ...

    async def write_documents(
        self, collection: str, writes: Sequence[Write], fence: Fence | None = None, /
    ) -> list[int]:
        """Make these writes, all or none, and return their revisions.

        `RevisionConflict` if one may not be made; `Fenced` if a later owner of what the fence names has written there.
        """
        ...

    async def scan_documents(self, collection: str, which: Scan, /) -> list[Document]:
        """Read documents in the order of their keys."""
        ...

    async def delete_documents(self, collection: str, prefix: str, /) -> int:
        """Remove the documents whose joined keys begin with a prefix; return how many there were."""
        ...

    # --- schedules ----------------------------------------------------------------------------------------------------
    # `UnknownSchedule` for a name that no schedule has, but for `put_schedule` and `delete_schedule`.
    async def put_schedule(self, name: str, plan: Plan, /) -> bool:
        """Make a schedule, or change it from now on; return false if it is the same already."""
        ...

    async def change_schedule(self, name: str, change: Change, /) -> list[str]:
        """Tell a schedule something; return the ids of the runs that are started for it, now or later.

        `ScheduleBusy` for a trigger that it skips; `LimitExceeded` if too many runs would wait.
        """
        ...

    async def delete_schedule(self, name: str, /) -> bool:
        """Remove a schedule; what it has started goes on. Return whether there was one."""
        ...

    async def describe_schedule(self, name: str, /) -> ScheduleInfo:
        """Return a schedule, with what runs of it."""
        ...

    async def schedules(self, *, limit: int, after: str | None = None) -> list[ScheduleInfo]:
        """Return at most `limit` schedules, by name, beyond the name `after`."""
        ...

    async def schedule_times(self, name: str, count: int, /) -> list[float]:
        """Return the next times of a schedule, in seconds since the Unix epoch, as if it were not paused."""
        ...

    # --- access -------------------------------------------------------------------------------------------------------
    async def add_token(self, access: Access, /, *, expires: datetime | None = None) -> str:
        """Make a token, which servers of this store accept, and return its text. It is not kept."""
        ...

    async def revoke_token(self, id: str, /) -> None:
        """Make a token invalid; servers hear of it within 5 s. `InvalidOption` if there is none of this id."""
        ...

    async def tokens(self) -> list[Token]:
        """Return all tokens, the oldest first, those that were revoked too."""
        ...

    async def audit(self, after: int = 0, /) -> list[Link]:
        """Return pieces of the audit after a number, the oldest first; none at the end."""
        ...

    # --- keys of a sealed store ---------------------------------------------------------------------------------------
    # `InvalidOption` if the store is not sealed.
    async def count_sealed(self, after: str = "", /) -> SealedPart:
        """Count values by the keys under which they are sealed, in a part of the store, from where another ended."""
        ...

    async def begin_rekey(self) -> RekeyProgress:
        """Begin to seal all values under the key that seals now, or go on with it; `KeyMissing` without keys."""
        ...

    async def rekey(self) -> RekeyProgress | None:
        """Return how far that is, or how it ended last."""
        ...

    # --- keeping ------------------------------------------------------------------------------------------------------
    async def export(self, id: str, /, *, plain: bool = False) -> bytes:
        """Return the history of an invocation, for `perdure.testing.replay`.

        Its values are sealed if the store seals them, unless `plain`.
        """
        ...

    async def purge(self, id: str, /) -> None:
        """Remove a settled invocation for ever."""
        ...

    async def backup(self, target: str, /) -> None:
        """Copy the store to a new file `target` while it is served."""
        ...
