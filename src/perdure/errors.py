"""All exceptions of Perdure, in one tree. Imports nothing from the package.

::

    PerdureError
    │
    ├── raised by an awaited invocation or step ──────────────────────────────────────────────────
    │   ├── InvocationCancelled           it was cancelled (never asyncio.CancelledError)
    │   │   └── ChildCancelled            ... and it was a child of this workflow
    │   ├── InvocationTimedOut            it exceeded its own timeout        (also a TimeoutError)
    │   ├── WaitTimeout                   only the waiting timed out         (also a TimeoutError)
    │   ├── AwakeableRejected             it was rejected from outside, with a reason
    │   ├── AwakeableExpired              nobody answered it in its time    (also a TimeoutError)
    │   ├── CompensationFailed            compensations of a saga failed    (also an ExceptionGroup)
    │   ├── RemoteError                   it raised a class that is not loaded here
    │   ├── NotRecorded                   an attribute of an exception that could not be recorded
    │   └── NonRetryable                  for users to raise and derive from: no further attempt
    │
    ├── errors of the user: change the code or the call ──────────────────────────────────────────
    │   ├── Unencodable                   a value that cannot be recorded
    │   ├── Undecodable                   recorded bytes that the annotation does not accept
    │   ├── AnnotationUnresolved          an annotation that cannot be resolved or decoded
    │   ├── InputRefused                  wrong arguments at submit          (also a TypeError)
    │   ├── NameTaken                     two workflows with one name in a worker
    │   ├── NotAWorkflow                  something else was given           (also a TypeError)
    │   │   └── NotAsync                  a workflow must be `async def`
    │   ├── CalledOutsideWorkflow         a workflow was called as a plain function
    │   ├── IoInWorkflow                  asyncio I/O in the body of a workflow
    │   ├── NotRepeatable                 a body whose order a replay cannot repeat
    │   ├── NodeHasNoValue                a node of a flow was used as its value     (also a TypeError)
    │   ├── NodeSkipped                   the result of a flow needs a node that was skipped
    │   ├── InvalidOption                 an option out of its range         (also a ValueError)
    │   ├── Diverged                      the code does something else than its journal says
    │   ├── LimitExceeded                 a named limit was exceeded
    │   │   └── PayloadTooLarge           ... by the size of a value
    │   ├── BadId, BadUrl                 malformed text                     (also ValueErrors)
    │   ├── AccessDenied                  a server refuses: no valid token, or it does not permit this
    │   ├── IdConflict                    this id was started with another workflow or input
    │   ├── ValueRefused                  a JSON value that does not fit its schema   (also a ValueError)
    │   ├── RevisionConflict              a document is at another revision than a write expects
    │   ├── Fenced                        a document was written by a process that lost the invocation
    │   ├── UnknownInvocation             there is no invocation with this id
    │   ├── UnknownJob                    there is no bulk job with this id
    │   ├── CapabilityRefused             a link to an awakeable that is not valid, or has expired
    │   ├── UnknownSchedule               there is no schedule with this name
    │   ├── ScheduleBusy                  a run of it goes on, and it skips what comes meanwhile
    │   ├── MessageRefused                resolved twice, rejected after resolve, wrong shape ...
    │   │   └── IllegalTransition         the status does not allow this verb
    │   ├── KeyDeadlock                   a child needs a key that an ancestor holds
    │   ├── KeyBusy                       its key was held, and it was not to wait
    │   └── ServiceUnknown                no address was given for a gRPC service
    │
    ├── errors of the environment: repair it, then continue ──────────────────────────────────────
    │   └── StoreError
    │       ├── StoreClosed               used after it was closed
    │       ├── StoreDamaged              bytes are missing or were changed
    │       ├── StoreLocked               another process serves the file
    │       ├── StoreReadOnly             the file or folder is not writable
    │       ├── StoreFull                 no space left
    │       ├── StoreUnavailable          no server answers, or it refuses the credentials
    │       ├── QueryTooSlow              a query of the index took too long, and was stopped
    │       ├── StoreUnfit                a server that is too old, streams with wrong settings, missing permissions
    │       ├── StoreTooNew               written by a later release
    │       ├── Unopened                  a value of a sealed store that does not open here
    │       │   ├── KeyMissing            ... sealed under a key that this process does not have
    │       │   ├── Tampered              ... changed, or moved from another place
    │       │   └── Unsealed              ... not sealed, where all must be
    │       └── NewerJournal              one journal or message that only a later release can read
    │
    └── internal: if one leaves Perdure, that is a bug ───────────────────────────────────────────
        └── Conflict                      another owner extended the journal before this commit

    BaseException
    └── TurnClosed                        internal: ends a body whose turn was dropped

The first argument of each is its text: what happened, to what, and what to do. Values for programs are attributes,
given by keyword. So an exception is complete after `cls(*args)` with `__dict__` restored (pickle, copy), and after
`cls.__new__` with both restored, as the journal rebuilds it (see core.failures).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class PerdureError(Exception):
    """The base of all of Perdure's exceptions."""


# --- raised by an awaited invocation or step --------------------------------------------------------------------------


class InvocationCancelled(PerdureError):
    """The awaited invocation was cancelled. Awaiting it again raises the same."""

    def __init__(self, text: str = "", *, invocation_id: str = "") -> None:
        super().__init__(text)
        self.invocation_id = invocation_id


class ChildCancelled(InvocationCancelled):
    """A child of this workflow was cancelled, from outside or by an `asyncio.timeout` around it."""


class InvocationTimedOut(PerdureError, TimeoutError):
    """The invocation ran longer than its `timeout` (seconds): it was cancelled, cleaned up, and failed."""

    def __init__(self, text: str = "", *, invocation_id: str = "", timeout: float = 0.0) -> None:
        super().__init__(text)
        self.invocation_id = invocation_id
        self.timeout = timeout


class WaitTimeout(PerdureError, TimeoutError):
    """`result(timeout=)` (seconds) ended. Only the waiting has ended: the invocation continues."""

    def __init__(self, text: str = "", *, invocation_id: str = "", timeout: float = 0.0) -> None:
        super().__init__(text)
        self.invocation_id = invocation_id
        self.timeout = timeout


class AwakeableExpired(PerdureError, TimeoutError):
    """Nobody answered the awakeable before it expired."""

    def __init__(self, text: str = "", *, awakeable_id: str = "") -> None:
        super().__init__(text)
        self.awakeable_id = awakeable_id


class AwakeableRejected(PerdureError):
    """The awakeable was rejected from outside, for the `reason` given."""

    def __init__(self, text: str = "", *, awakeable_id: str = "", reason: str = "") -> None:
        super().__init__(text)
        self.awakeable_id = awakeable_id
        self.reason = reason


class CompensationFailed(PerdureError, ExceptionGroup[Exception]):
    """Compensations of a saga failed, after all had been tried: `exceptions` has one for each.

    The cause is what made the saga undo. A retry of the invocation runs those that failed again, and no others.
    """

    def derive(self, excs: Sequence[Any], /) -> CompensationFailed:
        return CompensationFailed(self.message, excs)


class RemoteError(PerdureError):
    """The body raised a class that is not loaded in this process, or that cannot be rebuilt here.

    `type` is its full name (``module.QualName``), `message` its text, `traceback` its traceback as text.
    """

    def __init__(self, type: str = "", message: str = "", traceback: str = "") -> None:
        super().__init__(type, message, traceback)
        self.type = type
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class NotRecorded(PerdureError, AttributeError):
    """An attribute of an exception from another process could not be recorded. Raised when it is read."""


class NonRetryable(PerdureError):
    """For users to raise in a step, or to derive from: no further attempt is made."""


# --- errors of the user: change the code or the call ------------------------------------------------------------------


class Unencodable(PerdureError):
    """A value cannot be recorded: at `path` in it is an object of `type`."""

    def __init__(self, text: str = "", *, path: str = "", type: str = "") -> None:
        super().__init__(text)
        self.path = path
        self.type = type


class Undecodable(PerdureError):
    """The `annotation` does not accept recorded bytes, for the `reason` given. Such a journal is paused."""

    def __init__(self, text: str = "", *, annotation: str = "", reason: str = "") -> None:
        super().__init__(text)
        self.annotation = annotation
        self.reason = reason


class AnnotationUnresolved(PerdureError):
    """An `annotation` has a name that cannot be resolved, or a type that cannot be decoded."""

    def __init__(self, text: str = "", *, annotation: str = "", reason: str = "") -> None:
        super().__init__(text)
        self.annotation = annotation
        self.reason = reason


class InputRefused(PerdureError, TypeError):
    """The arguments do not fit the parameters; nothing was submitted. `parameter` is "" if they do not even match."""

    def __init__(self, text: str = "", *, parameter: str = "") -> None:
        super().__init__(text)
        self.parameter = parameter


class NameTaken(PerdureError):
    """One worker was given two workflows named `name`."""

    def __init__(self, text: str = "", *, name: str = "") -> None:
        super().__init__(text)
        self.name = name


class NotAWorkflow(PerdureError, TypeError):
    """Something else was given where a workflow is expected."""


class NotAsync(NotAWorkflow):
    """A workflow must be an `async def`."""


class CalledOutsideWorkflow(PerdureError):
    """A call that works only in the body of a workflow: use `client.run`, or `.fn` for the plain function."""


class IoInWorkflow(PerdureError):
    """The body of a workflow used asyncio I/O, which a replay cannot repeat: put it in a step."""


class NodeHasNoValue(PerdureError, TypeError):
    """A node was used as if it had its value already, while its graph is built."""


class NodeSkipped(PerdureError):
    """The result of a flow needs node `node`, which was skipped, and may not be None."""

    def __init__(self, text: str = "", *, node: str = "") -> None:
        super().__init__(text)
        self.node = node


class NotRepeatable(PerdureError):
    """The body of a workflow used something whose order a replay cannot repeat."""


class InvalidOption(PerdureError, ValueError):
    """An option has an invalid value."""


class Diverged(PerdureError):
    """The code does something else than its journal says. Nothing was executed; the invocation is paused.

    `journal` and `code` are the two sides, `n` the number of the first command that differs.
    """

    def __init__(
        self, text: str = "", *, invocation_id: str = "", n: int | None = None, journal: str = "", code: str = ""
    ) -> None:
        super().__init__(text)
        self.invocation_id = invocation_id
        self.n = n
        self.journal = journal
        self.code = code


class LimitExceeded(PerdureError):
    """A named limit was exceeded: `size` is more than `limit`."""

    def __init__(self, text: str = "", *, size: int = 0, limit: int = 0) -> None:
        super().__init__(text)
        self.size = size
        self.limit = limit


class PayloadTooLarge(LimitExceeded):
    """A value has too many bytes: store it elsewhere and pass a reference to it."""


def too_large(what: str, size: int, limit: int) -> PayloadTooLarge:
    """Return the error for a value above the payload limit."""
    text = f"{what} takes {size:,} bytes where the limit is {limit:,}: store it elsewhere and pass a reference to it"
    return PayloadTooLarge(text, size=size, limit=limit)


class BadId(PerdureError, ValueError):
    """Text that is not a valid id, key or name."""


class BadUrl(PerdureError, ValueError):
    """Not the URL of a store: memory:, sqlite:PATH, nats://HOST:PORT or http://HOST:PORT."""


class IdConflict(PerdureError):
    """This id was started before with another workflow or input. The earlier invocation is not affected."""

    def __init__(self, text: str = "", *, invocation_id: str = "") -> None:
        super().__init__(text)
        self.invocation_id = invocation_id


class AccessDenied(PerdureError):
    """A server refuses: the token is missing, unknown, expired or revoked, or does not permit this."""


class RevisionConflict(PerdureError):
    """A document is not at the revision that a write expects; `revision` is the one that it is at, 0 if there is none.

    Nothing was written.
    """

    def __init__(self, text: str = "", *, key: str = "", revision: int = 0) -> None:
        super().__init__(text)
        self.key = key
        self.revision = revision


class Fenced(PerdureError):
    """A document was written for an invocation or key by a process that has lost it. Nothing was written."""


class ValueRefused(PerdureError, ValueError):
    """A JSON value does not fit its schema. `errors` says where, as JSON pointers, and why."""

    def __init__(self, text: str = "", *, errors: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(text)
        self.errors = errors


class UnknownInvocation(PerdureError):
    """No invocation has this id: it was never started in this store, or its retention has ended."""

    def __init__(self, text: str = "", *, invocation_id: str = "") -> None:
        super().__init__(text)
        self.invocation_id = invocation_id


class UnknownSchedule(PerdureError):
    """No schedule has this `name`: it was never put in this store, or it was deleted."""

    def __init__(self, text: str = "", *, name: str = "") -> None:
        super().__init__(text)
        self.name = name


class ScheduleBusy(PerdureError):
    """A run of the schedule has not ended, and its overlap rule skips what comes meanwhile. Nothing was started."""

    def __init__(self, text: str = "", *, name: str = "", invocation_id: str = "") -> None:
        super().__init__(text)
        self.name = name
        self.invocation_id = invocation_id


def unknown_schedule(name: str) -> UnknownSchedule:
    """Return the error for the name of no schedule."""
    text = f"no schedule {name!r} here: it was never put in this store, or it was deleted"
    return UnknownSchedule(text, name=name)


def unknown(id: str) -> UnknownInvocation:
    """Return the error for an id that a store does not know."""
    text = f"no invocation {id!r} here: it was never started in this store, or its retention has ended"
    return UnknownInvocation(text, invocation_id=id)


class UnknownJob(PerdureError):
    """No bulk job has this id: it never began in this store, or has ended long ago and was removed."""

    def __init__(self, text: str = "", *, job_id: str = "") -> None:
        super().__init__(text)
        self.job_id = job_id


def unknown_job(id: str) -> UnknownJob:
    """Return the error for an id that no job has."""
    return UnknownJob(f"no bulk job {id!r} here: it never began in this store, or was removed since", job_id=id)


class CapabilityRefused(PerdureError):
    """A link that lets people or systems answer an awakeable is not valid. `expired`: it was, until its time."""

    def __init__(self, text: str = "", *, expired: bool = False) -> None:
        super().__init__(text)
        self.expired = expired


class MessageRefused(PerdureError):
    """The message was recorded, but its invocation refused it, for the `reason` given. Nothing was changed."""

    def __init__(self, text: str = "", *, invocation_id: str = "", reason: str = "") -> None:
        super().__init__(text)
        self.invocation_id = invocation_id
        self.reason = reason


class IllegalTransition(MessageRefused):
    """The `status` of the invocation does not allow this. Nothing was changed."""

    def __init__(self, text: str = "", *, invocation_id: str = "", reason: str = "", status: str = "") -> None:
        super().__init__(text, invocation_id=invocation_id, reason=reason)
        self.status = status


class KeyDeadlock(PerdureError):
    """A child needs a `key` that its parent or an ancestor holds, and would wait for ever."""

    def __init__(self, text: str = "", *, key: str = "") -> None:
        super().__init__(text)
        self.key = key


class KeyBusy(PerdureError):
    """`when_busy="reject"`: `holder` had the `key`, or was about to get it. The invocation failed, and never ran."""

    def __init__(self, text: str = "", *, key: str = "", holder: str = "") -> None:
        super().__init__(text)
        self.key = key
        self.holder = holder


class ServiceUnknown(PerdureError):
    """The worker was given no address for the gRPC `service`."""

    def __init__(self, text: str = "", *, service: str = "") -> None:
        super().__init__(text)
        self.service = service


# --- errors of the environment: repair it, then continue --------------------------------------------------------------


class StoreError(PerdureError):
    """The store could not do what was asked."""


class StoreClosed(StoreError):
    """The store was used after it was closed: connect again."""


class StoreDamaged(StoreError):
    """Bytes are missing or were changed: of the store, which is then not served, or of the one invocation named."""


class StoreLocked(StoreError):
    """Another process serves this file. `pid` is 0 when it is not known."""

    def __init__(self, text: str = "", *, pid: int = 0) -> None:
        super().__init__(text)
        self.pid = pid


class StoreReadOnly(StoreError):
    """The file or its folder is not writable."""


class StoreFull(StoreError):
    """No space is left. Acknowledged writes are safe; the others were not recorded."""


class StoreUnavailable(StoreError):
    """No server answers, or it refuses the credentials."""


class QueryTooSlow(StoreError):
    """A query of the index took longer than `seconds` and was stopped: narrow its filter."""

    def __init__(self, text: str = "", *, seconds: float = 0.0) -> None:
        super().__init__(text)
        self.seconds = seconds


class StoreUnfit(StoreError):
    """The server is too old, its streams are missing or have wrong settings, or permission is denied."""


class StoreTooNew(StoreError):
    """A later release of Perdure wrote it, with version `schema` of its layout: upgrade."""

    def __init__(self, text: str = "", *, schema: int = 0) -> None:
        super().__init__(text)
        self.schema = schema


class NewerJournal(StoreError):
    """A newer release wrote this journal or message. It is not damaged, and a worker of that release can read it.

    `tag` is the name that this release does not know, `kind` what it names: an entry, command, request, outcome or
    status. Only this invocation is affected; all others are served.
    """

    def __init__(self, text: str = "", *, invocation_id: str = "", kind: str = "", tag: str = "") -> None:
        super().__init__(text)
        self.invocation_id = invocation_id
        self.kind = kind
        self.tag = tag

    @classmethod
    def of(cls, kind: str, tag: str, invocation_id: str, /) -> NewerJournal:
        """Return the error for a tag of a newer release."""
        of = f"invocation {invocation_id!r}" if invocation_id else "an invocation"
        text = f"{of}: this release does not know the {kind} {tag!r}; a newer release wrote this: upgrade this worker"
        return cls(text, invocation_id=invocation_id, kind=kind, tag=tag)


class Unopened(StoreError):
    """A value of a sealed store does not open in this process. Only what has the value is affected."""


class KeyMissing(Unopened):
    """A value is sealed under a `key` that this process does not have ("": it has none at all)."""

    def __init__(self, text: str = "", *, key: str = "") -> None:
        super().__init__(text)
        self.key = key


class Tampered(Unopened):
    """A sealed value was changed, or moved from another place."""


class Unsealed(Unopened):
    """A value is not sealed, in a store whose values must be."""


# --- internal ---------------------------------------------------------------------------------------------------------


class Conflict(PerdureError):
    """Internal: a commit was refused, because the revision of the journal has changed.

    Stores raise it. The runtime then checks whether the write is its own, and drops the invocation if it is not.
    """

    def __init__(self, text: str = "", *, invocation_id: str = "") -> None:
        super().__init__(text)
        self.invocation_id = invocation_id


class TurnClosed(BaseException):
    """Internal: raised at every await of a body whose turn was dropped (evicted, fenced off, worker stopping).

    Deliberately not an `Exception`: it only unwinds the body, and an `except Exception` around a step must neither take
    it for a failed step nor compensate for it. It never leaves the private loop: no caller or journal gets it.
    """
