"""Random programs as data, and a model that says what must come of them. Knows nothing of the engine.

A program is a list of operations, perhaps with a key. `tests/scenarios/interpreter.py` is the workflow that runs one.
The model is told in which order the invocations of each key ran, as the state of the key itself tells it, and answers:

* `disorder`: whether that order may be: each key's invocations in the order in which they were accepted, as far as that
  is certain (what one client or one invocation asked for, one after the other);
* `states`, `outcomes`: what every key's state and every result must then be: the fold of what each does to the state.

What programs may do is chosen so that nothing else matters: who wins a race never changes a result. A child's key comes
behind those that its ancestors hold, so that no two wait for each other; one that an ancestor holds is refused.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct

KEYS = ("k0", "k1", "k2", "k3")
NAMES = ("a", "b")
LOG = "log"
"""Each invocation begins by adding its tag to this part of the state."""
DEPTH_LIMIT = 3
OPERATIONS_LIMIT = 5
NAP_SECONDS = 0.04
"""Naps, waits that are given up, and delays are no longer."""
LARGE_BYTES = 1_500_000
"""More than a message of NATS can hold."""


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
    seconds: float


class Ask(Operation, frozen=True):
    """Wait for the outside, which answers with the value or rejects with it."""

    value: str
    rejected: bool


class Put(Operation, frozen=True):
    name: str
    value: str


class Drop(Operation, frozen=True):
    name: str


class Get(Operation, frozen=True):
    name: str


class Call(Operation, frozen=True):
    """Await a child, and catch its failure."""

    program: Program


class Send(Operation, frozen=True):
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


# --- making them ------------------------------------------------------------------------------------------------------
class Author:
    """Writes programs at random."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._tags = 0

    def programs(self, count: int) -> list[Program]:
        """Return what a client starts, one after the other."""
        return [self._program(self._key(()), (), chosen=True) for _ in range(count)]

    def _key(self, held: Sequence[str]) -> str | None:
        chance = self._chance
        if held and chance.random() < 0.1:
            return chance.choice(held)
        free = [key for key in KEYS if not held or key > max(held)]
        return chance.choice(free) if free and chance.random() < 0.6 else None

    def _program(
        self, key: str | None, held: Sequence[str], *, alone: bool = False, chosen: bool | None = None
    ) -> Program:
        """Write a program; `held` are the keys of its ancestors, and their number how deep it is."""
        chance = self._chance
        self._tags += 1
        tag = f"p{self._tags}"
        operations: list[AnyOperation] = []
        below = (*held, key or "")
        if key is None or key not in held:
            operations += (self._operation(below, alone) for _ in range(chance.randint(0, OPERATIONS_LIMIT)))
            if chance.random() < 0.15:
                operations.append(Break(caught=False))
        return Program(
            tag,
            operations,
            key,
            chosen=chance.random() < 0.5 if chosen is None else chosen,
            delay=chance.random() * NAP_SECONDS if not alone and chance.random() < 0.1 else 0.0,
        )

    def _operation(self, held: tuple[str, ...], alone: bool) -> AnyOperation:
        chance = self._chance
        value = f"v{chance.randrange(1_000)}"
        simple = (
            Work(value, failures=chance.choice((0, 0, 0, 1, 2))),
            Work(value, size=LARGE_BYTES) if chance.random() < 0.03 else Work(value),
            Break(caught=True),
            Nap(chance.random() * NAP_SECONDS),
            Ask(value, rejected=chance.random() < 0.3),
        )
        name = chance.choice(NAMES)
        shared = (Put(name, value), Put(name, value), Drop(name), Get(name), Get(name))
        if len(held) >= DEPTH_LIMIT or chance.random() < 0.7:
            return chance.choice(simple if alone else simple + shared)
        if alone:
            return Call(self._program(None, held, alone=True))
        return self._nested(held)

    def _nested(self, held: tuple[str, ...]) -> AnyOperation:
        chance = self._chance
        keys = [*filter(None, held)]
        match chance.choice(("call", "call", "send", "send", "give up", "together")):
            case "call":
                return Call(self._program(self._key(keys), held))
            case "send":  # the keys of a sender mean nothing to what it sends
                return Send(self._program(self._key(()), ("",) * len(held)))
            case "give up":
                self._tags += 1
                key = chance.choice([None, *(key for key in KEYS if not keys or key > max(keys))])
                child = Program(f"p{self._tags}", [], key, chosen=True, endless=True)
                return GiveUp(chance.random() * NAP_SECONDS, child if chance.random() < 0.7 else None)
            case _:
                deeper = (*held, "")
                branches = range(chance.randint(2, 3))
                return Together(
                    [[self._operation(deeper, True) for _ in range(chance.randint(1, 3))] for _ in branches]
                )


# --- the model --------------------------------------------------------------------------------------------------------
Orders = Mapping[str, Sequence[str]]
"""The tags of the invocations of each key, in the order in which they ran."""
State = dict[str, str]


class Model:
    """What must come of programs that a client starts one after the other."""

    def __init__(self, roots: Sequence[Program]) -> None:
        self._programs: dict[str, Program] = {}
        self._held: dict[str, tuple[str, ...]] = {}
        self._chains: list[list[str]] = [[root.tag for root in roots if not root.delay]]
        for root in roots:
            self._chains.append(self._enter(root, ()))

    @property
    def tags(self) -> list[str]:
        """Who is started, in the end."""
        return [*self._programs]

    def _enter(self, program: Program, held: tuple[str, ...]) -> list[str]:
        """Take in a program and all that it starts; return whom it starts for certain before it ends, in order."""
        self._programs[program.tag] = program
        self._held[program.tag] = held if program.key is None else (*held, program.key)
        return [tag for operation in program.operations for tag in self._enter_operation(operation, program)]

    def _enter_operation(self, operation: AnyOperation, program: Program) -> list[str]:
        held = self._held[program.tag]
        match operation:
            case Call(child) if child.key not in held:
                inner = self._enter(child, held)
                return inner if child.delay else [child.tag, *inner]
            case Send(sent):
                self._chains.append(self._enter(sent, ()))
                return [] if sent.delay else [sent.tag]
            case GiveUp(_, Program() as child):
                self._enter(child, held)
                return [child.tag]
            case Together(branches):
                for branch in branches:
                    for each in branch:
                        self._enter_operation(each, program)
            case _:
                pass
        return []

    # --- order --------------------------------------------------------------------------------------------------------
    def disorder(self, orders: Orders) -> list[str]:
        """Say what is wrong with the orders: who is missing, was there twice, or was overtaken."""
        found: list[str] = []
        for key in KEYS:
            order = orders.get(key, ())
            mine = {tag: program for tag, program in self._programs.items() if program.key == key}
            found += (f"{tag} ran {order.count(tag)} times with {key}" for tag in {*order} if order.count(tag) > 1)
            found += (f"{tag} has nothing to do with {key}" for tag in order if tag not in mine)
            found += (f"{tag} never ran with {key}" for tag in mine if tag not in order and not mine[tag].endless)
            places = {tag: place for place, tag in enumerate(order)}
            for chain in self._chains:
                ran = [tag for tag in chain if tag in places and tag in mine]
                pairs = itertools.pairwise(ran)
                found += (f"{two} overtook {one} at {key}" for one, two in pairs if places[one] > places[two])
        return found

    # --- state and results --------------------------------------------------------------------------------------------
    def states(self, orders: Orders) -> dict[str, State]:
        """Return what the state of each key must be, but for the log."""
        return {key: self._fold(orders.get(key, ()))[0] for key in KEYS}

    def outcomes(self, orders: Orders) -> dict[str, list[str] | str | None]:
        """Return what each must come to: a result, the text of a failure, or None for cancelled."""
        seen: dict[str, list[str]] = {}
        for key in KEYS:
            seen |= self._fold(orders.get(key, ()))[1]
        for tag in self._programs:
            if tag not in seen:
                seen |= self._fold([tag])[1]
        return {tag: self._outcome(tag, seen) for tag in self._programs}

    def _fold(self, order: Iterable[str]) -> tuple[State, dict[str, list[str]]]:
        """Return the state after all, and what each has seen of it."""
        state: State = {}
        seen: dict[str, list[str]] = {}
        for tag in order:
            mine = seen[tag] = []
            for operation in self._programs[tag].operations:
                match operation:
                    case Put(name, value):
                        state[name] = value
                    case Drop(name):
                        state.pop(name, None)
                    case Get(name):
                        mine.append(state.get(name, "nothing"))
                    case _:
                        pass
        return state, seen

    def _outcome(self, tag: str, seen: dict[str, list[str]]) -> list[str] | str | None:
        program = self._programs[tag]
        if program.endless:
            return None
        if program.fails:
            return failure_of(program)
        states = iter(seen[tag])
        return [tag, *(self._result(each, program, states, seen) for each in program.operations)]

    def _result(
        self, operation: AnyOperation, program: Program, states: Iterator[str], seen: dict[str, list[str]]
    ) -> str:
        match operation:
            case Get():
                return next(states)
            case Call(child):
                if child.key in self._held[program.tag]:
                    return f"refused {child.key}"
                return told_of(self._outcome(child.tag, seen))
            case Together(branches):
                found = [[self._result(each, program, states, seen) for each in branch] for branch in branches]
                return str(found)
            case _:
                return result_of(operation)


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
