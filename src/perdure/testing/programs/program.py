"""A program: what one invocation is to do, as data.

It is a list of operations, perhaps with a key. What programs may do is chosen so that nothing else matters: who wins a
race never changes a result. A child's key comes behind those that its ancestors hold, so that no two wait for each
other; one that an ancestor holds is refused.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

KEYS = ("k0", "k1", "k2", "k3")
NAMES = ("a", "b")
LOG = "log"
"""Each invocation begins by adding its tag to this part of the state."""
NAP_SECONDS = 0.04
"""Naps, waits that are given up, and delays are no longer."""


class Operation(Struct, frozen=True, tag=True):
    """What a program does, one after the other."""


class Work(Operation, frozen=True):
    """A step that fails some times, and then gives a value, padded to a size."""

    value: str
    failures: int = 0
    size: int = 0


class Break(Operation, frozen=True):
    """A step that fails for good. If nobody catches that, it is the last operation."""

    caught: bool


class Nap(Operation, frozen=True):
    """Sleep."""

    seconds: float


class Ask(Operation, frozen=True):
    """Wait for the outside, which answers with the value or rejects with it."""

    value: str
    rejected: bool


class Put(Operation, frozen=True):
    """Set a value of the state."""

    name: str
    value: str


class Drop(Operation, frozen=True):
    """Delete a value of the state."""

    name: str


class Get(Operation, frozen=True):
    """Read a value of the state."""

    name: str


class Call(Operation, frozen=True):
    """Await a child, and catch its failure."""

    program: Program


class Send(Operation, frozen=True):
    """Start another, and do not wait for it."""

    program: Program


class GiveUp(Operation, frozen=True):
    """Wait for what never comes, for a while: an answer, or a child that waits for one."""

    seconds: float
    child: Program | None


class Together(Operation, frozen=True):
    """Branches side by side. They share nothing, and nothing in them has an order."""

    branches: list[list[AnyOperation]]


class Program(Struct, frozen=True):
    """What one invocation is to do. `tag` is its own; with `chosen`, it is the invocation's id too."""

    tag: str
    operations: list[AnyOperation]
    key: str | None = None
    chosen: bool = False
    delay: float = 0.0
    endless: bool = False
    """It never ends by itself: whoever calls it gives it up."""

    @property
    def fails(self) -> bool:
        last = self.operations[-1] if self.operations else None
        return isinstance(last, Break) and not last.caught


AnyOperation = Work | Break | Nap | Ask | Put | Drop | Get | Call | Send | GiveUp | Together


def result_of(operation: Operation) -> str:
    """Return what an operation whose result needs no one else gives."""
    match operation:
        case Work(value, _, size):
            return f"{value} {max(size, len(value))}"
        case Break():
            return "caught"
        case Nap():
            return "slept"
        case Ask(value, rejected):
            return f"rejected {value}" if rejected else value
        case Send():
            return "sent"
        case GiveUp():
            return "gave up"
        case _:
            return ""


def failure_of(program: Program) -> str:
    """Return the text with which a program fails."""
    return f"{program.tag} fails"


def told_of(outcome: list[str] | str | None) -> str:
    """Return what a parent makes of a child's outcome."""
    return f"child {outcome}"


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Program).decode
