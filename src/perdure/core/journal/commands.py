"""Commands: requests of a body, numbered in the order issued."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, assert_never

from msgspec import Struct

from perdure.core.journal.starts import Start


class CallStep(Struct, frozen=True, array_like=True, gc=False, tag="step"):
    """Run a function and journal its outcome. `digest` covers the arguments by name.

    `checks` are four bytes for each of several arguments: they show which ones changed. `undo`: it is a compensation,
    which command number `undo` tried first, perhaps this one. Its idempotency key is that of the first try.
    """

    n: int
    name: str
    digest: bytes
    checks: bytes = b""
    undo: int | None = None


class SetTimer(Struct, frozen=True, array_like=True, gc=False, tag="timer"):
    """Wake the body at `due`. A `rest` is a timer that the turn set, see core.resting."""

    n: int
    due: float
    rest: bool = False


class CallChild(Struct, frozen=True, array_like=True, gc=False, tag="child"):
    """Start another workflow and wait for its outcome. `undo` as for steps."""

    n: int
    start: Start
    undo: int | None = None


class SendStart(Struct, frozen=True, array_like=True, gc=False, tag="send"):
    """Start another workflow and do not wait."""

    n: int
    start: Start


class Asked(Struct, frozen=True, omit_defaults=True, gc=False):
    """What people are told of an awakeable, and when it expires, in seconds since the Unix epoch.

    `schema` is that of the answer, encoded; empty where it is not known (see `core.schema.answer_schema`).
    """

    title: str | None = None
    description: str | None = None
    assignees: tuple[str, ...] = ()
    expires_at: float | None = None
    schema: bytes = b""


NOT_ASKED = Asked()


class OpenAwakeable(Struct, frozen=True, array_like=True, gc=False, tag="awakeable"):
    """Promise an answer from outside. The id is derived, so the journal does not hold it."""

    n: int
    asked: Asked = NOT_ASKED


class MarkPatch(Struct, frozen=True, array_like=True, gc=False, tag="patch"):
    """The body passed a `ctx.patched(name)` that the code already had."""

    n: int
    name: str


class Keep(Struct, frozen=True, array_like=True, gc=False, tag="keep"):
    """The body recorded a value, which a replay gives it again, whatever its code would record now."""

    n: int
    value: bytes


Command = CallStep | SetTimer | CallChild | SendStart | OpenAwakeable | MarkPatch | Keep


class Arguments(Protocol):
    """The arguments of a command that is being issued, to be compared with recorded ones."""

    def repeat(self, recorded: CallStep | Start, /) -> bool:
        """Report whether they are the recorded ones, although the digests differ.

        They are if they differ only by fields that were added to their classes and have their defaults.
        """
        ...

    def changed(self, recorded: CallStep | Start, /) -> Sequence[str]:
        """Name the arguments that differ from the recorded ones, as far as their checks show."""
        ...


def repeats(issued: Command, recorded: Command, /, given: Arguments | None = None) -> bool:
    """Report whether a command issued on replay is the recorded one."""
    if isinstance(issued, (CallChild, SendStart)) and isinstance(recorded, (CallChild, SendStart)):
        now, then = issued.start, recorded.start
        if (type(issued), issued.n, undo_of(issued), *_identity(now)) != (
            *(type(recorded), recorded.n, undo_of(recorded)),
            *_identity(then),
        ):
            return False
        # By digest: a set in the input may have another order, as under another hash seed.
        if not now.digest or not then.digest or now.digest == then.digest:
            return True
        return given is not None and given.repeat(then)
    if type(issued) is CallStep and type(recorded) is CallStep:
        if (issued.n, issued.name, issued.undo) != (recorded.n, recorded.name, recorded.undo):
            return False
        return issued.digest == recorded.digest or (given is not None and given.repeat(recorded))
    for stands in (OpenAwakeable, Keep):  # what people were told, or the body has kept
        if type(issued) is stands and type(recorded) is stands:
            return issued.n == recorded.n
    return issued == recorded


def changed_arguments(issued: Command, recorded: Command | None, given: Arguments | None, /) -> str:
    """Name the arguments that differ from the recorded ones; nothing if it is another command altogether."""
    names: Sequence[str] = ()
    if given is None:
        return ""
    if isinstance(issued, CallStep) and isinstance(recorded, CallStep) and issued.name == recorded.name:
        names = given.changed(recorded)
    elif isinstance(issued, (CallChild, SendStart)) and isinstance(recorded, (CallChild, SendStart)):
        names = given.changed(recorded.start) if issued.start.handler == recorded.start.handler else ()
    return f", with another value of {' and '.join(map(repr, names))}" if names else ""


def undo_of(command: Command, /) -> int | None:
    """Return the number of the command that tried this compensation first; None if it is no compensation."""
    return command.undo if isinstance(command, (CallStep, CallChild)) else None


def key_number(command: Command, /) -> int:
    """Return the number in the idempotency key of a step: that of the first try, if it is a compensation."""
    return command.undo if isinstance(command, CallStep) and command.undo is not None else command.n


def _identity(start: Start) -> tuple[object, ...]:
    return start.handler, start.id, start.key, start.due


def step_type(command: Command, /) -> str:
    """Name the type of a command, for people: a step by its name, the others in capitals."""
    match command:
        case CallStep(name=name):
            return name
        case SetTimer(rest=rest):
            return "REST" if rest else "SLEEP"
        case CallChild(start=start):
            return f"CHILD:{start.handler}"
        case SendStart(start=start):
            return f"SEND:{start.handler}"
        case OpenAwakeable():
            return "AWAKEABLE"
        case MarkPatch(name=name):
            return f"PATCH:{name}"
        case Keep():
            return "KEEP"
        case _:
            assert_never(command)


def describe(command: Command | None, /) -> str:
    """Name a command in one line, for people."""
    match command:
        case None:
            return "nothing"
        case CallStep(n=n, name=name, digest=of):
            return f"#{n} step {name!r} (arguments {of.hex()})"
        case SetTimer(n=n, due=due, rest=True):
            return f"#{n} rest until {due:.3f}"
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
        case Keep(n=n):
            return f"#{n} kept value"
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
