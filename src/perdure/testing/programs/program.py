"""A program: what one invocation is to do, as data.

It is a list of operations, perhaps with a key. A branch is a list of operations that run beside others; it shares
nothing with them, and may fail by its last operation. What programs may do is chosen so that hardly anything else
matters: who wins a race changes no result but that of the race. A child's key comes behind those that its ancestors
hold, so that no two wait for each other; one that an ancestor holds is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

KEYS = ("k0", "k1", "k2", "k3")
NAMES = ("a", "b")
LOG = "log"
"""The part of the state in which invocations write down what they do to it: see `noted`."""
NAP_SECONDS = 0.04
"""Naps, waits that are given up, and delays are no longer."""
SHORTEST_SECONDS = 0.0001
"""They are no shorter."""

Result = list[Any] | str
"""What an operation gives: text, or a list of results."""


class Operation(Struct, frozen=True, tag=True):
    """What a program does, one after the other."""


# --- alone ------------------------------------------------------------------------------------------------------------
WaysToDecide = Literal["waits", "raises", "exits", "nonsense", "below zero", "on"]


class Work(Operation, frozen=True):
    """A step that fails some times, and then gives a value, padded to a size.

    `attempts` is its own retry policy, or it has a `policy` that decides by code of its own, which is broken but for
    "waits". If it is `slow`, its first attempt outlasts its time limit. `threaded`: it is a plain function.
    """

    value: str
    failures: int = 0
    size: int = 0
    attempts: int | None = None
    slow: bool = False
    threaded: bool = False
    policy: WaysToDecide | None = None

    @property
    def fails(self) -> bool:
        """Whether it has failures for all its attempts, or its policy breaks at the first of them."""
        if self.policy is not None:
            return self.failures > 0 and self.policy != "waits"
        return self.attempts is not None and self.failures >= self.attempts


class Break(Operation, frozen=True):
    """A step that fails for good. If nobody catches that, it is the last operation."""

    caught: bool


class Mend(Operation, frozen=True):
    """A step that fails, and the program with it, until the outside has mended it; then the client retries it.

    With `undone`, it is a compensation of a saga, among so many others.
    """

    undone: int = 0


class Undo(Operation, frozen=True):
    """A saga whose block fails, with so many compensations. The program catches the failure."""

    parts: int


class Draw(Operation, frozen=True):
    """Draw a random number, an id and the time, which a replay must draw again."""


class Nap(Operation, frozen=True):
    """Sleep."""

    seconds: float


class Ask(Operation, frozen=True):
    """Wait for the outside, which answers with the value or rejects with it; perhaps wait in vain for a while first."""

    value: str
    rejected: bool
    impatient: bool = False


class Generate(Operation, frozen=True):
    """Take at least one of what an async generator yields, a step each, and close it, which is a step too."""

    values: list[str]
    taken: int


# --- the state of a key -----------------------------------------------------------------------------------------------
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


# --- others -----------------------------------------------------------------------------------------------------------
class Call(Operation, frozen=True):
    """Await a child, and catch its failure."""

    program: Program


class Again(Operation, frozen=True):
    """Await a child whose id is chosen; after a failure await it again under the same id, a few times.

    Meanwhile a client may have retried it.
    """

    program: Program


class Send(Operation, frozen=True):
    """Start another, and do not wait for it."""

    program: Program


class Group(Operation, frozen=True):
    """Run children as a group, so many at a time; with a quota, the others are cancelled once it is reached."""

    programs: list[Program]
    concurrency: int
    quota: int | None = None


WaysToGiveUp = Literal["timeout", "wait_for", "wait", "cancel", "limit"]


class GiveUp(Operation, frozen=True):
    """Wait for what never comes, for a while: an answer, or a child that waits for one. Cleanup is a step.

    The way is that of asyncio, or the child's own time limit.
    """

    seconds: float
    child: Program | None
    way: WaysToGiveUp = "timeout"


# --- side by side -----------------------------------------------------------------------------------------------------
Branch = list["AnyOperation"]

WaysTogether = Literal["gather", "gather all", "group", "as_completed", "wait"]


class Together(Operation, frozen=True):
    """Branches side by side, waited for with `gather` (with `return_exceptions` for all), a TaskGroup and so on."""

    branches: list[Branch]
    way: WaysTogether = "gather"


class Race(Operation, frozen=True):
    """Branches side by side, until the first has ended; the others are cancelled."""

    branches: list[Branch]


class Limit(Operation, frozen=True):
    """A branch that may run out of time."""

    seconds: float
    branch: Branch
    way: Literal["timeout", "wait_for"] = "timeout"


class Shield(Operation, frozen=True):
    """A branch, waited for with a time limit that does not touch it, and then without."""

    seconds: float
    branch: Branch


class Pass(Operation, frozen=True):
    """Pass values through a queue with so much room to so many tasks, which do a step for each."""

    values: list[str]
    tasks: int
    room: int


WaysToGuard = Literal["lock", "semaphore", "condition", "event", "barrier"]


class Guard(Operation, frozen=True):
    """Tasks that do a step each and meet at one of asyncio's primitives."""

    values: list[str]
    way: WaysToGuard


SEMAPHORE = 2
"""How many `Guard` lets in at a time."""

AnyOperation = (
    Work
    | Break
    | Mend
    | Undo
    | Draw
    | Nap
    | Ask
    | Generate
    | Put
    | Drop
    | Get
    | Call
    | Again
    | Send
    | Group
    | GiveUp
    | Together
    | Race
    | Limit
    | Shield
    | Pass
    | Guard
)

ALL_OPERATIONS: tuple[type[Operation], ...] = AnyOperation.__args__


class Program(Struct, frozen=True):
    """What one invocation is to do. `tag` is its own; with `chosen`, it is the invocation's id too."""

    tag: str
    operations: list[AnyOperation]
    key: str | None = None
    chosen: bool = False
    delay: float = 0.0
    endless: bool = False
    """It never ends by itself: whoever calls it gives it up."""
    cleanup: int = 0
    """However it ends, it does so many steps then, which it does again if they are cancelled."""

    @property
    def fails(self) -> bool:
        """Whether it fails in the end."""
        return breaks(self.operations)

    @property
    def needs_mending(self) -> bool:
        """Whether it fails until it is mended."""
        return any(isinstance(each, Mend) for each in self.operations)


# --- looking at them --------------------------------------------------------------------------------------------------
def breaks(branch: Branch) -> bool:
    """Report whether operations end with a failure."""
    return bool(branch) and isinstance(last := branch[-1], Break) and not last.caught


def branches_of(operation: AnyOperation) -> list[Branch]:
    """Return the branches of an operation."""
    match operation:
        case Together(branches) | Race(branches):
            return branches
        case Limit(_, branch) | Shield(_, branch):
            return [branch]
        case _:
            return []


def started_by(operation: AnyOperation) -> list[Program]:
    """Return what an operation itself starts, without its branches."""
    match operation:
        case Call(program) | Again(program) | Send(program) | GiveUp(child=Program() as program):
            return [program]
        case Group(programs):
            return programs
        case _:
            return []


def all_of(program: Program) -> Iterator[Program]:
    """Iterate over a program and all that it may start."""
    yield program
    for operation in walk(program.operations):
        for each in started_by(operation):
            yield from all_of(each)


def walk(operations: Branch) -> Iterator[AnyOperation]:
    """Iterate over operations and those of their branches."""
    for operation in operations:
        yield operation
        for branch in branches_of(operation):
            yield from walk(branch)


# --- what they give ---------------------------------------------------------------------------------------------------
TIMED_OUT = "timed out"
CANCELLED = "cancelled"
LOST = "lost"
"""The result of a branch that did not win its race."""

Outcome = list[Any] | str | None
"""How an invocation ended: with a result, with the text of a failure, or cancelled."""


_ALWAYS: dict[type[Operation], str] = {Break: "caught", Mend: "mended", Draw: "drawn", Nap: "slept"}


def result_of(operation: Operation) -> Result:
    """Return what an operation gives whose result needs no one else."""
    match operation:
        case Work(value, _, size):
            return f"failed {value}" if operation.fails else f"{value} {max(size, len(value))}"
        case Break() | Mend() | Draw() | Nap():
            return _ALWAYS[type(operation)]
        case Undo(parts):
            return f"undone {parts}"
        case Ask(value, rejected):
            return f"rejected {value}" if rejected else value
        case Generate(values, taken):
            return [*values[:taken], "closed"]
        case Send():
            return "sent"
        case GiveUp():
            return "gave up, tidied up"
        case Pass(values):
            return sorted(values)
        case Guard(values, way):
            return guarded(values, way)
        case _:
            return ""


def guarded(values: list[str], way: WaysToGuard) -> Result:
    """Return what tasks that meet give: who was let in, in order where there is one, and how many at a time."""
    match way:
        case "lock":
            return [*values, "1 at a time"]
        case "semaphore":
            return [*values, f"{min(SEMAPHORE, len(values))} at a time"]
        case "event":
            return [*values[:1], *sorted(values[1:])]
        case "condition":
            return sorted(values)
        case "barrier":
            return [*sorted(values), *map(str, range(len(values)))]


def failure_of(program: Program) -> str:
    """Return the text with which a program fails."""
    return f"{program.tag} fails"


def must_be_mended(program: Program) -> str:
    """Return the text with which a program fails that has not been mended."""
    return f"{program.tag} must be mended"


def waits_to_be_mended(program: Program, outcome: Outcome) -> bool:
    """Report whether a program ended so that it can be mended and retried."""
    return program.needs_mending and outcome == must_be_mended(program)


def told_of(outcome: Outcome) -> Result:
    """Return what a parent makes of a child's outcome."""
    return f"child {CANCELLED}" if outcome is None else ["child", outcome]


def has_failed(told: Result) -> bool:
    """Report whether what a parent makes of a child's outcome is a failure."""
    return isinstance(told, list) and isinstance(told[1], str)


def noted(tag: str, number: int | None = None) -> str:
    """Return what the log says of the beginning of an invocation, or of its `number`-th use of the state."""
    return tag if number is None else f"{tag}/{number}"


def from_noted(text: str) -> tuple[str, int | None]:
    """Return the tag and number in an entry of the log."""
    tag, slash, number = text.partition("/")
    return tag, int(number) if slash else None


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Program).decode


def decode(text: str | bytes) -> Program:
    """Return the program that was encoded."""
    return _decode(text)


def program_in(arguments: Mapping[str, Any]) -> Program:
    """Return the program that an invocation was started with, from its arguments by name."""
    return decode(arguments["text"])
