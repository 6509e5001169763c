"""Messages to an invocation from outside, and their answers."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from perdure.core.journal.entries import Outcome
from perdure.core.journal.starts import Start


class Resolve(Struct, frozen=True, array_like=True, gc=False, tag="resolve"):
    """Give awakeable `n` of generation `generation` its value."""

    n: int
    value: bytes
    generation: int = 0


class Reject(Struct, frozen=True, array_like=True, gc=False, tag="reject"):
    """Fail awakeable `n` of generation `generation`."""

    n: int
    reason: str
    generation: int = 0


class Settled(Struct, frozen=True, array_like=True, gc=False, tag="settled"):
    """Child `child`, which is command `n` of generation `generation`, has an outcome."""

    generation: int
    n: int
    child: str
    outcome: Outcome


class Cancel(Struct, frozen=True, array_like=True, gc=False, tag="cancel"):
    """Cancel, with cleanup unless forced. After a `rollback` its key gets back the state that it was granted with."""

    force: bool = False
    rollback: bool = False


class Pause(Struct, frozen=True, array_like=True, gc=False, tag="pause"):
    """Start nothing new until resumed."""


class Resume(Struct, frozen=True, array_like=True, gc=False, tag="resume"):
    """End a pause."""


class Join(Struct, frozen=True, array_like=True, gc=False, tag="join"):
    """Tell `start.parent` the outcome too: it asked for this child by a chosen id that may have existed."""

    start: Start


class RetryInvocation(Struct, frozen=True, array_like=True, gc=False, tag="retry"):
    """Run a failed invocation again, from the cause of its failure."""


class Busy(Struct, frozen=True, array_like=True, gc=False, tag="busy"):
    """Fail a start that is not to wait for its key, which `holder` has, unless its body has begun."""

    holder: str


Request = Resolve | Reject | Settled | Cancel | Pause | Resume | RetryInvocation | Join | Busy


class Message(Struct, frozen=True, array_like=True, gc=False):
    """A request to an invocation from outside. The store drops a second one with the same id.

    `trace` is the `traceparent` of what sent it, as in `Start`.
    """

    id: str
    to: str
    at: float
    request: Request
    trace: str = ""


def settles_before_begin(message: Message, /) -> bool:
    """Report whether a message ends an invocation that is not due yet: it is delivered at once."""
    return isinstance(message.request, (Cancel, Busy))


class Answer(Struct, frozen=True, array_like=True, gc=False):
    """The answer to a message: applied, or refused with a reason."""

    message: str
    refused: str | None = None


encode_message = msgspec.msgpack.Encoder().encode
