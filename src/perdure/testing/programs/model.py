"""What must come of programs. It knows nothing of the engine.

The model is told in which order the invocations of each key ran, as the state of the key itself tells it, and answers:

* `disorder`: whether that order may be: each key's invocations in the order in which they were accepted, as far as that
  is certain (what one client or one invocation asked for, one after the other);
* `states`, `outcomes`: what every key's state and every result must then be: the fold of what each does to the state.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from perdure.testing.programs.program import (
    KEYS,
    AnyOperation,
    Call,
    Drop,
    Get,
    GiveUp,
    Program,
    Put,
    Send,
    Together,
    failure_of,
    result_of,
    told_of,
)

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
