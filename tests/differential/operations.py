"""What a random sequence is made of: uses of the store port, as data. The repr of a sequence is code that repeats it.

An operation names invocations and messages, and never what one store answered: any of them can be left out of a
sequence, and the others still mean something. One that cannot be done at its place is skipped on every store.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from perdure.core.journal import Status

HANDLERS = ("h", "g")

Due = Literal["now", "soon", "far"]
"""`soon` is due when the operation ends, `far` only after `Later`."""


class New(Struct, frozen=True):
    """A start to submit. Two of one id with another `value` or handler conflict; `limit` is its time limit.

    `tag` is the value of the one tag that it may have.
    """

    id: str
    value: int = 0
    key: str | None = None
    due: Due = "now"
    limit: Due | None = None
    handler: str = "h"
    chosen: bool = True
    tag: str | None = None


class Submit(Struct, frozen=True):
    """Submit starts in one call."""

    starts: tuple[New, ...]


RequestKind = Literal["pause", "resume", "cancel", "force", "resolve", "reject", "settled", "retry", "join"]


class Post(Struct, frozen=True):
    """Post a message."""

    id: str
    to: str
    request: RequestKind


Move = Literal[
    "begin",  # the first frame, which claims
    "begin and complete",  # the only frame
    "step",  # a result
    "claim",
    "suspend",
    "pause",
    "complete",
    "fail",
    "cancel",
    "effects again",  # no frame: redo the effects of the last one
    "enlist",  # no frame: a failed invocation queues for its key again
    "leave key",  # no frame: it lets go of the key that it was given for that
]


class Commit(Struct, frozen=True):
    """Commit a transition of an invocation that a worker has in hand.

    `late` names an earlier revision, which conflicts. `more` are commands in the same frame: a step, a child, a send,
    an awakeable. `answers` says that the messages in hand are answered and acknowledged.
    """

    id: str
    move: Move
    late: Literal["", "zero", "one", "ahead"] = ""
    more: tuple[New | Literal["step", "awakeable"], ...] = ()
    ends: bool = False  # the body asks its open children to end
    answers: bool = True
    wake: Literal["past", "soon", "far"] | None = None
    state: tuple[tuple[str, int | None], ...] = ()


class Acknowledge(Struct, frozen=True):
    """Acknowledge all deliveries of an invocation that need no commit."""

    id: str


class HandBack(Struct, frozen=True):
    """Give back a start that has not begun."""

    id: str


class Decline(Struct, frozen=True):
    """Decline an invocation."""

    id: str


class Open(Struct, frozen=True):
    """Subscribe to a handler, with room for so many starts."""

    handler: str
    room: int = 1000


class More(Struct, frozen=True):
    """Ask for more starts."""

    handler: str
    room: int


class Close(Struct, frozen=True):
    """Close the subscription to a handler."""

    handler: str


class Reopen(Struct, frozen=True):
    """Close the store, and open it again as another process would."""


class Later(Struct, frozen=True):
    """Let time pass until all that is far is due. Only where the clock is ours."""


ReadWhat = Literal["journal", "revision", "outcome", "mail", "start", "row"]


class Read(Struct, frozen=True):
    """Read one invocation."""

    what: ReadWhat
    id: str


class ReadKey(Struct, frozen=True):
    key: str


class Search(Struct, frozen=True):
    """List invocations. `after` and `until` count the starts made so far; `page` continues at the middle of a list."""

    status: Status | None = None
    handler: str | None = None
    key: str | None = None
    prefix: str | None = None
    id: str | None = None
    after: int | None = None
    until: int | None = None
    page: bool = False
    limit: int = 100
    tag: str | None = None


class Awaiting(Struct, frozen=True):
    """List awakeables; `page` continues at the middle of a list."""

    is_open: bool | None = True
    handler: str | None = None
    assignee: str | None = None
    page: bool = False
    limit: int = 100


class Count(Struct, frozen=True):
    pass


class Served(Struct, frozen=True):
    pass


class Answered(Struct, frozen=True):
    """Wait for the answer to a message, from now on or as it was given before."""

    message: str


class Watch(Struct, frozen=True):
    """Wait for the outcome of an invocation."""

    id: str


class Purge(Struct, frozen=True):
    """Purge what has settled: one invocation, or the oldest ones; or, with `nothing`, what settled long ago."""

    id: str | None = None
    limit: int = 100
    nothing: bool = False


Change = Submit | Post | Commit | Acknowledge | HandBack | Decline | Open | More | Close | Reopen | Later | Purge
Operation = Change | Read | ReadKey | Search | Awaiting | Count | Served | Answered | Watch


def code_of(operations: list[Operation]) -> str:
    """Return the sequence as code."""
    return "[\n" + "".join(f"    {shown(each)},\n" for each in operations) + "]"


def shown(value: object) -> str:
    """Return code for an operation, without the fields that are at their defaults."""
    if isinstance(value, tuple):
        inner = ", ".join(map(shown, value))  # pyright: ignore[reportUnknownArgumentType]
        return f"({inner},)" if len(value) == 1 else f"({inner})"  # pyright: ignore[reportUnknownArgumentType]
    if not isinstance(value, Struct):
        return repr(value)
    names = value.__struct_fields__
    defaults = dict(zip(names[len(names) - len(value.__struct_defaults__) :], value.__struct_defaults__, strict=True))
    given = [(name, getattr(value, name)) for name in names]
    fields = [f"{name}={shown(each)}" for name, each in given if name not in defaults or defaults[name] != each]
    return f"{type(value).__name__}({', '.join(fields)})"
