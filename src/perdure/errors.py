"""Everything Perdure raises, in one tree. Knows nothing of the rest of the package.

::

    PerdureError
    │
    ├── what an awaited invocation or step can raise ─────────────────────────────────────────────
    │   ├── InvocationCancelled           it was cancelled (never asyncio.CancelledError)
    │   │   └── ChildCancelled            ... and it was a child of this workflow
    │   ├── InvocationTimedOut            it passed its own timeout          (also a TimeoutError)
    │   ├── WaitTimeout                   only the waiting ended             (also a TimeoutError)
    │   ├── AwakeableRejected             somebody outside rejected it, with a reason
    │   ├── RemoteError                   it raised a class that is not loaded here
    │   ├── NotRecorded                   an attribute of an exception that no journal could keep
    │   └── NonRetryable                  for users to raise and derive from: no further attempt
    │
    ├── the user's fault: change the code or the call ────────────────────────────────────────────
    │   ├── Unencodable                   a value that cannot be recorded
    │   ├── Undecodable                   recorded bytes that the annotation does not accept
    │   ├── AnnotationUnresolved          an annotation that names nothing, or that nothing decodes
    │   ├── InputRefused                  wrong arguments at submit          (also a TypeError)
    │   ├── NameTaken                     two workflows of one name in a worker
    │   ├── NotAWorkflow                  something else was given           (also a TypeError)
    │   │   └── NotAsync                  a workflow must be `async def`
    │   ├── CalledOutsideWorkflow         a workflow was called as a plain function
    │   ├── IoInWorkflow                  asyncio I/O in the body of a workflow
    │   ├── NotRepeatable                 a body whose order no replay could repeat
    │   ├── InvalidOption                 an option out of its range         (also a ValueError)
    │   ├── Diverged                      the code asks for something else than its journal says
    │   ├── LimitExceeded                 a named limit was passed
    │   │   └── PayloadTooLarge           ... by the size of a value
    │   ├── BadId, BadUrl                 text of the wrong shape            (also ValueErrors)
    │   ├── IdConflict                    this id was started with another workflow or input
    │   ├── UnknownInvocation             nothing has this id
    │   ├── MessageRefused                resolved twice, rejected after resolve, wrong shape ...
    │   │   └── IllegalTransition         the status does not allow this verb
    │   ├── KeyDeadlock                   a child needs a key that an ancestor holds
    │   └── ServiceUnknown                no address was given for a gRPC service
    │
    ├── the world's fault: repair it, then go on ─────────────────────────────────────────────────
    │   └── StoreError
    │       ├── StoreClosed               used after it was closed
    │       ├── StoreDamaged              bytes are missing or flipped
    │       ├── StoreLocked               another process serves the file
    │       ├── StoreReadOnly             the file or folder cannot be written
    │       ├── StoreFull                 no space left
    │       ├── StoreUnavailable          no server answers, or it lets nobody in
    │       ├── StoreUnfit                the server is too old, or its streams are not as they must be, or not for us
    │       ├── StoreTooNew               written by a later release
    │       └── NewerJournal              one journal or message that only a later release can read
    │
    └── internal: outside Perdure, seeing one is our bug ─────────────────────────────────────────
        └── Conflict                      the revision moved under a commit: another owner writes

    BaseException
    └── TurnClosed                        internal: ends a body whose turn was dropped

The first argument of each is its text, which says what happened, to what, and what to do; what a program may want to
read is an attribute, given by keyword. So an exception is whole again after `cls(*args)` with `__dict__` restored
(pickle, copy) and after `cls.__new__` with both restored (how the journal rebuilds one, see core.failures).
"""

from __future__ import annotations


class PerdureError(Exception):
    """What all of Perdure's exceptions derive from."""


# --- what an awaited invocation or step can raise ---------------------------------------------------------------------


class InvocationCancelled(PerdureError):
    """The awaited invocation was cancelled. Awaiting it again raises the same."""

    def __init__(self, text: str = "", *, invocation_id: str = "") -> None:
        super().__init__(text)
        self.invocation_id = invocation_id


class ChildCancelled(InvocationCancelled):
    """A child of this workflow was cancelled: by somebody, or by `asyncio.timeout` around it."""


class InvocationTimedOut(PerdureError, TimeoutError):
    """The invocation ran longer than its `timeout` (seconds): it was cancelled, cleaned up, and failed."""

    def __init__(self, text: str = "", *, invocation_id: str = "", timeout: float = 0.0) -> None:
        super().__init__(text)
        self.invocation_id = invocation_id
        self.timeout = timeout


class WaitTimeout(PerdureError, TimeoutError):
    """`result(timeout=)` (seconds) ended. Only the waiting did: the invocation goes on."""

    def __init__(self, text: str = "", *, invocation_id: str = "", timeout: float = 0.0) -> None:
        super().__init__(text)
        self.invocation_id = invocation_id
        self.timeout = timeout


class AwakeableRejected(PerdureError):
    """Somebody outside rejected the awakeable, for the `reason` given."""

    def __init__(self, text: str = "", *, awakeable_id: str = "", reason: str = "") -> None:
        super().__init__(text)
        self.awakeable_id = awakeable_id
        self.reason = reason


class RemoteError(PerdureError):
    """The body raised a class that is not loaded in this process, or that cannot be rebuilt here.

    `type` is its full name (``module.QualName``), `message` its text, `traceback` where it was raised.
    """

    def __init__(self, type: str = "", message: str = "", traceback: str = "") -> None:
        super().__init__(type, message, traceback)
        self.type = type
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class NotRecorded(PerdureError, AttributeError):
    """An attribute of an exception that was raised elsewhere could not be recorded. Raised where it is read."""


class NonRetryable(PerdureError):
    """For users to raise in a step, or to derive from: no further attempt is made."""


# --- the user's fault: change the code or the call --------------------------------------------------------------------


class Unencodable(PerdureError):
    """A value that cannot be recorded: what was found at `path` in it is of the `type` named."""

    def __init__(self, text: str = "", *, path: str = "", type: str = "") -> None:
        super().__init__(text)
        self.path = path
        self.type = type


class Undecodable(PerdureError):
    """Recorded bytes that the `annotation` does not accept, for the `reason` given. In a journal: it is paused."""

    def __init__(self, text: str = "", *, annotation: str = "", reason: str = "") -> None:
        super().__init__(text)
        self.annotation = annotation
        self.reason = reason


class AnnotationUnresolved(PerdureError):
    """An `annotation` that names nothing that can be found, or a type that nothing here can decode."""

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
    """One worker was given two workflows called `name`."""

    def __init__(self, text: str = "", *, name: str = "") -> None:
        super().__init__(text)
        self.name = name


class NotAWorkflow(PerdureError, TypeError):
    """Something else was given where a workflow is expected."""


class NotAsync(NotAWorkflow):
    """A workflow must be an `async def`."""


class CalledOutsideWorkflow(PerdureError):
    """What only the body of a workflow can do was done elsewhere: use `client.run`, or `.fn` for the plain function."""


class IoInWorkflow(PerdureError):
    """The body of a workflow used asyncio I/O, which replay could not repeat: put it in a step."""


class NotRepeatable(PerdureError):
    """The body of a workflow used something whose order replay could not repeat."""


class InvalidOption(PerdureError, ValueError):
    """An option has a value that makes no sense."""


class Diverged(PerdureError):
    """The code asks for something else than its journal says. Nothing was done; the invocation is paused.

    `journal` and `code` are the two sides, `n` the number of the command where they part.
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
    """A named limit was passed: `size` where `limit` is allowed."""

    def __init__(self, text: str = "", *, size: int = 0, limit: int = 0) -> None:
        super().__init__(text)
        self.size = size
        self.limit = limit


class PayloadTooLarge(LimitExceeded):
    """A value takes too many bytes: store it elsewhere and pass a reference to it."""


def too_large(what: str, size: int, limit: int) -> PayloadTooLarge:
    """Return the error for a value above the payload limit."""
    text = f"{what} takes {size:,} bytes where the limit is {limit:,}: store it elsewhere and pass a reference to it"
    return PayloadTooLarge(text, size=size, limit=limit)


class BadId(PerdureError, ValueError):
    """Text that cannot be an id, a key or a name."""


class BadUrl(PerdureError, ValueError):
    """Not the URL of a store: memory:, sqlite:PATH, nats://HOST:PORT or http(s)://HOST:PORT."""


class IdConflict(PerdureError):
    """This id was started before with another workflow or other input. The earlier one is untouched."""

    def __init__(self, text: str = "", *, invocation_id: str = "") -> None:
        super().__init__(text)
        self.invocation_id = invocation_id


class UnknownInvocation(PerdureError):
    """No invocation has this id: it was never started in this store, or its retention has ended."""

    def __init__(self, text: str = "", *, invocation_id: str = "") -> None:
        super().__init__(text)
        self.invocation_id = invocation_id


class MessageRefused(PerdureError):
    """The message was recorded and its invocation refused it, for the `reason` given. Nothing was changed."""

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


class ServiceUnknown(PerdureError):
    """The worker was given no address for the gRPC `service`."""

    def __init__(self, text: str = "", *, service: str = "") -> None:
        super().__init__(text)
        self.service = service


# --- the world's fault: repair it, then go on -------------------------------------------------------------------------


class StoreError(PerdureError):
    """The store could not do what was asked."""


class StoreClosed(StoreError):
    """The store was used after it was closed: connect again."""


class StoreDamaged(StoreError):
    """Bytes are missing or flipped: of the store, which is then not served, or of the one invocation that it names."""


class StoreLocked(StoreError):
    """Another process serves this file. `pid` is 0 when it is not known."""

    def __init__(self, text: str = "", *, pid: int = 0) -> None:
        super().__init__(text)
        self.pid = pid


class StoreReadOnly(StoreError):
    """The file or its folder cannot be written."""


class StoreFull(StoreError):
    """No space is left. What was acknowledged is safe; the rest was not recorded."""


class StoreUnavailable(StoreError):
    """No server answers there, or it does not let this client in."""


class StoreUnfit(StoreError):
    """The server is too old, its streams are missing or not as they must be, or this client may not use them."""


class StoreTooNew(StoreError):
    """A later release of Perdure wrote it, with version `schema` of its layout: upgrade."""

    def __init__(self, text: str = "", *, schema: int = 0) -> None:
        super().__init__(text)
        self.schema = schema


class NewerJournal(StoreError):
    """A newer release wrote this journal or message; nothing is damaged, and a worker of that release can read it.

    `tag` names what this release does not know, `kind` what that is: an entry, command, request, outcome or status.
    Only this one invocation is affected: others are served as ever.
    """

    def __init__(self, text: str = "", *, invocation_id: str = "", kind: str = "", tag: str = "") -> None:
        super().__init__(text)
        self.invocation_id = invocation_id
        self.kind = kind
        self.tag = tag

    @classmethod
    def of(cls, kind: str, tag: str, invocation_id: str, /) -> NewerJournal:
        """Return the error for something of a newer release."""
        of = f"invocation {invocation_id!r}" if invocation_id else "an invocation"
        text = f"{of}: this release does not know the {kind} {tag!r}; a newer release wrote this: upgrade this worker"
        return cls(text, invocation_id=invocation_id, kind=kind, tag=tag)


# --- internal ---------------------------------------------------------------------------------------------------------


class Conflict(PerdureError):
    """Internal: nothing of a commit happened, because the revision of the journal has moved.

    Stores raise it; the runtime looks for its own write, and gives the invocation up if another owner's is there.
    """

    def __init__(self, text: str = "", *, invocation_id: str = "") -> None:
        super().__init__(text)
        self.invocation_id = invocation_id


class TurnClosed(BaseException):
    """Internal: raised at every await of a body whose turn was dropped (evicted, fenced off, worker stopping).

    Not a `PerdureError`, and not even an `Exception`, on purpose: the body is unwound, not told of anything, and an
    `except Exception` around a step must neither take this for a failed step nor go on to compensate for it.
    It ends inside the private loop: no caller, journal or user sees it.
    """
