"""The vocabulary of a journal: what is remembered of one invocation, for ever.

A journal is a sequence of *frames*. A frame holds the *entries* that were committed together (facts: a step returned,
a timer fired) and the *commands* that the workflow body issued in answer to them. These types are the wire types:
they are what the stores write, byte for byte. Fields may be added at the end with a default; nothing is ever
repurposed or removed, because journals of every release must replay on the current code.

All times are seconds since the Unix epoch, as floats.
"""

from __future__ import annotations

from typing import Literal, assert_never

import msgspec
from msgspec import Struct

from perdure.core.failures import Failure

Status = Literal["scheduled", "pending", "running", "suspended", "paused", "completed", "failed", "cancelled"]


# --- starts -----------------------------------------------------------------------------------------------------------
class Parent(Struct, frozen=True, array_like=True, gc=False):
    """Who waits for an invocation: command `n` of generation `generation` of invocation `id`."""

    id: str
    generation: int
    n: int


class Start(Struct, frozen=True, array_like=True, gc=False):
    """The request that an invocation exist.

    `input` is the msgpack map of the arguments by parameter name. `seed` makes randomness and derived ids a function
    of the start, so that a rerun before the first frame sees the same. `due` is the earliest time to begin.
    `chosen` is true when the caller chose the id, so that it may exist already. `digest` tells inputs apart: it is the
    same for equal arguments, whatever the order of their sets and mappings; empty if whoever made the start had none.
    """

    id: str
    handler: str
    input: bytes
    at: float
    due: float
    seed: int
    key: str | None = None
    timeout: float | None = None
    parent: Parent | None = None
    chosen: bool = False
    held: tuple[str, ...] = ()  # keys held by the ancestors
    digest: bytes = b""
    sender: str | None = None  # the invocation that sent it, and does not wait for it


# --- commands: what the body asked for, numbered in the order issued --------------------------------------------------
class CallStep(Struct, frozen=True, array_like=True, gc=False, tag="step"):
    """Run a function and journal its outcome. `digest` covers the arguments by name."""

    n: int
    name: str
    digest: bytes


class SetTimer(Struct, frozen=True, array_like=True, gc=False, tag="timer"):
    """Wake the body at `due`."""

    n: int
    due: float


class CallChild(Struct, frozen=True, array_like=True, gc=False, tag="child"):
    """Start another workflow and wait for its outcome."""

    n: int
    start: Start


class SendStart(Struct, frozen=True, array_like=True, gc=False, tag="send"):
    """Start another workflow and do not wait."""

    n: int
    start: Start


class OpenAwakeable(Struct, frozen=True, array_like=True, gc=False, tag="awakeable"):
    """Promise that somebody outside will answer. The id is derived, so the journal does not hold it."""

    n: int


class MarkPatch(Struct, frozen=True, array_like=True, gc=False, tag="patch"):
    """The body passed a `ctx.patched(name)` that the code already had."""

    n: int
    name: str


Command = CallStep | SetTimer | CallChild | SendStart | OpenAwakeable | MarkPatch


def repeats(issued: Command, recorded: Command, /) -> bool:
    """Tell whether a command that the body issues on replay is the one it issued then."""
    if isinstance(issued, (CallChild, SendStart)) and isinstance(recorded, (CallChild, SendStart)):
        now, then = issued.start, recorded.start
        # By digest: the input itself may be in another order where it has a set, as under another hash seed.
        if now.digest and then.digest and now.digest != then.digest:
            return False
        return (type(issued), issued.n, *_identity(now)) == (type(recorded), recorded.n, *_identity(then))
    return issued == recorded


def _identity(start: Start) -> tuple[object, ...]:
    return start.handler, start.id, start.key, start.due


def describe(command: Command | None, /) -> str:
    """Name a command in one line, for people."""
    match command:
        case None:
            return "nothing"
        case CallStep(n=n, name=name, digest=of):
            return f"#{n} step {name!r} (arguments {of.hex()})"
        case SetTimer(n=n, due=due):
            return f"#{n} timer due at {due:.3f}"
        case CallChild(n=n, start=start):
            return f"#{n} child {_describe_start(start)}"
        case SendStart(n=n, start=start):
            return f"#{n} send {_describe_start(start)}"
        case OpenAwakeable(n=n):
            return f"#{n} awakeable"
        case MarkPatch(n=n, name=name):
            return f"#{n} patch {name!r}"
        case _:
            assert_never(command)


def _describe_start(start: Start) -> str:
    told = [f"id {start.id}"]
    if start.digest:
        told.append(f"arguments {start.digest.hex()}")
    if start.key is not None:
        told.append(f"key {start.key!r}")
    if start.due != start.at:
        told.append(f"due at {start.due:.3f}")
    return f"{start.handler!r} ({', '.join(told)})"


# --- entries: facts ---------------------------------------------------------------------------------------------------
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
    """The invocation holds its key, and its body may run. `state` is that of the key: replay sees it, not the present.

    The key is released when the invocation settles; a retry, in `generation` 1 and up, has to be granted it again.
    """

    at: float
    generation: int
    state: dict[str, bytes] = {}


class Released(Struct, frozen=True, array_like=True, gc=False, tag="released"):
    """The owner let go: nothing is in progress, whoever receives the next message may claim.

    `wake` is the earliest time at which something is due of itself: a timer, the next attempt, the time limit.
    """

    at: float
    wake: float | None = None


class Returned(Struct, frozen=True, array_like=True, gc=False, tag="returned"):
    """Command `n` gave a value: a step or child returned, an awakeable was resolved."""

    n: int
    at: float
    value: bytes
    message: str | None = None


class Raised(Struct, frozen=True, array_like=True, gc=False, tag="raised"):
    """Command `n` failed for good: a step or child raised, an awakeable was rejected."""

    n: int
    at: float
    failure: Failure
    message: str | None = None


class Attempted(Struct, frozen=True, array_like=True, gc=False, tag="attempted"):
    """Attempt `attempt` (from 1) of step `n` failed; the next is due at `due`."""

    n: int
    at: float
    attempt: int
    failure: Failure
    due: float


class Fired(Struct, frozen=True, array_like=True, gc=False, tag="fired"):
    """Timer `n` was due."""

    n: int
    at: float


class Interrupted(Struct, frozen=True, array_like=True, gc=False, tag="interrupted"):
    """Command `n` ended because the body asked for its cancellation."""

    n: int
    at: float


class CancelRequested(Struct, frozen=True, array_like=True, gc=False, tag="cancel"):
    """Somebody asked for the invocation's cancellation, or its time limit passed."""

    at: float
    timed_out: bool = False
    message: str | None = None


class Paused(Struct, frozen=True, array_like=True, gc=False, tag="paused"):
    """Nothing new is started or delivered to the body until `Resumed`."""

    at: float
    reason: str
    message: str | None = None


class Resumed(Struct, frozen=True, array_like=True, gc=False, tag="resumed"):
    """The pause is over."""

    at: float
    message: str | None = None


class Refused(Struct, frozen=True, array_like=True, gc=False, tag="refused"):
    """A message was refused; kept so that its redelivery is refused too."""

    at: float
    message: str
    reason: str


class Joined(Struct, frozen=True, array_like=True, gc=False, tag="joined"):
    """Another invocation awaits this one, as a child whose id existed: it is told the outcome too."""

    at: float
    parent: Parent
    message: str


class Retried(Struct, frozen=True, array_like=True, gc=False, tag="retried"):
    """A failed invocation runs again, as generation `generation`: part of its journal is superseded.

    Kept are `frames` whole frames of those that were current until now, and `entries` entries of the next one, without
    the failure of command `cause` if it is among them (it arrived during a pause). Kept are also the commands numbered
    below `issued`, with their ids. Outcomes of such commands that came later and stay are repeated after this entry, so
    that nothing else of the superseded part is needed. Commands of this frame numbered below `issued` are those of
    `again`: they are issued once more, in this generation, as are all commands from `issued` on. `rested` is the time
    since the failure, in seconds: it does not count for timers.
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
    """The body raised. `cause` is the command whose failure it raised, if it was one. The last entry until a retry.

    `causes` are all such commands, when it raised a group with failures of several.
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


# --- frames -----------------------------------------------------------------------------------------------------------
class Frame(Struct, frozen=True, array_like=True, gc=False):
    """What one commit added to a journal: entries, the commands issued in answer, and changes of state.

    `writer` names the worker that wrote it: after an ambiguous failure it tells our frame from a rival's.
    A state change maps a name to its encoded value, or to None when it was deleted. `cancels` are the commands whose
    end the body asked for. `at` is when it was written.
    """

    writer: str
    at: float
    entries: list[Entry]
    commands: list[Command] = []
    state: dict[str, bytes | None] = {}
    cancels: list[int] = []

    @property
    def outcome(self) -> Outcome | None:
        """The outcome, if this frame settles its invocation."""
        last = self.entries[-1] if self.entries else None
        return last if type(last) is Completed or type(last) is Failed or type(last) is Cancelled else None


# --- messages ---------------------------------------------------------------------------------------------------------
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
    """Cancel, with cleanup unless forced."""

    force: bool = False


class Pause(Struct, frozen=True, array_like=True, gc=False, tag="pause"):
    """Start nothing new until resumed."""


class Resume(Struct, frozen=True, array_like=True, gc=False, tag="resume"):
    """End a pause."""


class Join(Struct, frozen=True, array_like=True, gc=False, tag="join"):
    """Tell `start.parent` the outcome too: it asked for this child by an id that was chosen, and may have existed."""

    start: Start


class TryAgain(Struct, frozen=True, array_like=True, gc=False, tag="retry"):
    """Run a failed invocation again, from what made it fail."""


Request = Resolve | Reject | Settled | Cancel | Pause | Resume | TryAgain | Join


class Message(Struct, frozen=True, array_like=True, gc=False):
    """Something from outside addressed to an invocation. The store drops a second one of the same id."""

    id: str
    to: str
    at: float
    request: Request


def settles_before_begin(message: Message, /) -> bool:
    """Tell whether a message ends an invocation that is not due yet, so that it need not wait until it is."""
    return isinstance(message.request, Cancel)


class Answer(Struct, frozen=True, array_like=True, gc=False):
    """What became of a message: applied, or refused with a reason."""

    message: str
    refused: str | None = None


# --- bytes ------------------------------------------------------------------------------------------------------------
encode_frame = msgspec.msgpack.Encoder().encode
decode_frame = msgspec.msgpack.Decoder(Frame).decode
encode_start = msgspec.msgpack.Encoder().encode
decode_start = msgspec.msgpack.Decoder(Start).decode
encode_message = msgspec.msgpack.Encoder().encode
decode_message = msgspec.msgpack.Decoder(Message).decode
