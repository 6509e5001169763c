"""Entries: the facts of a journal."""

from __future__ import annotations

from msgspec import Struct

from perdure.core.failures import Failure
from perdure.core.journal.starts import Parent, Start


class Accepted(Struct, frozen=True, array_like=True, gc=False, tag="accepted"):
    """The invocation exists. Always the first entry."""

    start: Start
    sequence: int = 0


class Claimed(Struct, frozen=True, array_like=True, gc=False, tag="claimed"):
    """A worker took the invocation. `python` is the minor version that runs the body."""

    at: float
    epoch: int
    worker: str
    python: str
    hash_seed: str


class Granted(Struct, frozen=True, array_like=True, gc=False, tag="granted"):
    """The invocation holds its key, and its body may run. `state` is the key's state: replay reads it here.

    The key is released when the invocation settles; a retry, in `generation` 1 and up, has to be granted it again.
    `grant` is the number of the grant, greater than that of every earlier one of the key.
    """

    at: float
    generation: int
    state: dict[str, bytes] = {}
    grant: int = 0


class Waited(Struct, frozen=True, array_like=True, gc=False, tag="waited"):
    """The body had to wait for a worker, a key, the end of a pause or a retry: from here on its time is at least `at`.

    If `issued` is given, that holds from the moment within the frame at which the body has issued so many commands: 0
    where it begins, which is when `at` takes the place of the time at which it was due; what is kept where it is
    retried. Written only if the body looked at the time before another fact told it. Journals of earlier releases have
    none: there a body begins at the time at which it was due.
    """

    at: float
    issued: int | None = None


class Released(Struct, frozen=True, array_like=True, gc=False, tag="released"):
    """The owner let go: nothing is in progress, and any worker that receives the next message may claim.

    `wake` is the earliest due time: of a timer, the next attempt, the time limit. `stuck_at` is where the body waits,
    if nothing pending could let it go on.
    """

    at: float
    wake: float | None = None
    stuck_at: str | None = None


class Returned(Struct, frozen=True, array_like=True, gc=False, tag="returned"):
    """Command `n` gave a value: a step or child returned, an awakeable was resolved.

    Here and below, `took` is the duration of the step's attempt in seconds; None in journals of older releases.
    """

    n: int
    at: float
    value: bytes
    message: str | None = None
    took: float | None = None


class Raised(Struct, frozen=True, array_like=True, gc=False, tag="raised"):
    """Command `n` failed for good: a step or child raised, an awakeable was rejected."""

    n: int
    at: float
    failure: Failure
    message: str | None = None
    took: float | None = None


class Attempted(Struct, frozen=True, array_like=True, gc=False, tag="attempted"):
    """Attempt `attempt` (from 1) of step `n` failed; the next is due at `due`."""

    n: int
    at: float
    attempt: int
    failure: Failure
    due: float
    took: float | None = None


class Fired(Struct, frozen=True, array_like=True, gc=False, tag="fired"):
    """Timer `n` was due."""

    n: int
    at: float


class Interrupted(Struct, frozen=True, array_like=True, gc=False, tag="interrupted"):
    """Command `n` ended because the body asked for its cancellation."""

    n: int
    at: float
    took: float | None = None


class CancelRequested(Struct, frozen=True, array_like=True, gc=False, tag="cancel"):
    """A cancellation was requested, or the time limit passed. A `rollback` drops what was set in the key's state."""

    at: float
    timed_out: bool = False
    message: str | None = None
    rollback: bool = False


class Paused(Struct, frozen=True, array_like=True, gc=False, tag="paused"):
    """Nothing new starts, and the body gets nothing, until `Resumed`."""

    at: float
    reason: str
    message: str | None = None


class Resumed(Struct, frozen=True, array_like=True, gc=False, tag="resumed"):
    """The pause is over."""

    at: float
    message: str | None = None


class Refused(Struct, frozen=True, array_like=True, gc=False, tag="refused"):
    """A message was refused. Recorded so that its redelivery is refused too."""

    at: float
    message: str
    reason: str


class Joined(Struct, frozen=True, array_like=True, gc=False, tag="joined"):
    """Another invocation awaits this one as a child whose id existed: it gets the outcome too."""

    at: float
    parent: Parent
    message: str


class Retried(Struct, frozen=True, array_like=True, gc=False, tag="retried"):
    """A failed invocation runs again, as generation `generation`: part of its journal is superseded.

    Of the frames that were current, `frames` whole ones are kept, and `entries` entries of the next one, without the
    failure of command `cause` if it is among them (it arrived during a pause). Commands numbered below `issued` are
    kept too, with their ids. Their later outcomes that are kept are repeated after this entry, so that nothing else of
    the superseded part is needed. The commands of this frame below `issued` are those of `again`: they are issued anew
    in this generation, as are all commands from `issued` on. `rested` is the time since the failure in seconds, which
    does not count for timers.
    """

    at: float
    generation: int
    cause: int | None
    issued: int
    message: str
    frames: int
    entries: int
    again: list[int] = []
    rested: float = 0.0


class Completed(Struct, frozen=True, array_like=True, gc=False, tag="completed"):
    """The body returned. The last entry."""

    at: float
    value: bytes


class Failed(Struct, frozen=True, array_like=True, gc=False, tag="failed"):
    """The body raised. `cause` is the command whose failure it raised, if any. The last entry until a retry.

    `causes` are all such commands, if it raised a group.
    """

    at: float
    failure: Failure
    cause: int | None = None
    causes: list[int] = []


class Cancelled(Struct, frozen=True, array_like=True, gc=False, tag="cancelled"):
    """The invocation was cancelled. The last entry."""

    at: float
    forced: bool = False
    message: str | None = None


Outcome = Completed | Failed | Cancelled
Answering = Returned | Raised | Attempted | Fired | Interrupted
"""Entries that answer a command."""

Entry = (
    Accepted
    | Claimed
    | Granted
    | Waited
    | Released
    | Returned
    | Raised
    | Attempted
    | Fired
    | Interrupted
    | CancelRequested
    | Paused
    | Resumed
    | Refused
    | Joined
    | Retried
    | Completed
    | Failed
    | Cancelled
)
