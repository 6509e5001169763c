"""What the model says of a run in which clients interfere: it is silent on all that a request may have changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from perdure.testing.programs import KEYS, Model, Program
from perdure.testing.programs.program import AnyOperation, Call, GiveUp, Send, Together
from perdure.testing.simulation.plan import Plan

CHANGING = ("cancel", "force", "retry")
"""What a client may ask for that changes results."""

Outcomes = Mapping[str, list[str] | str | None]


class Expected:
    """Compares what the engine came to with the model."""

    def __init__(self, plan: Plan) -> None:
        self._model = Model(plan.programs)
        victims = {act.tag for act in plan.acts if act.verb in CHANGING}
        started = {act.tag for act in plan.acts if act.verb == "start"}
        trees = [program for program in plan.programs if program.tag in victims or program.tag not in started]
        self._unsure = {program.tag for root in trees for program in family(root)}
        self._unsure_keys = {program.key for root in trees for program in family(root) if program.key is not None}
        for root in plan.programs:
            self._spread(root)

    def _spread(self, program: Program) -> bool:
        """Mark what depends on what is not sure; tell whether this does."""
        unsure = program.tag in self._unsure or program.key in self._unsure_keys
        for child in children(program.operations):
            unsure = self._spread(child) or unsure
        if unsure:
            self._unsure.add(program.tag)
        return unsure

    def differences(
        self, orders: Mapping[str, Sequence[str]], states: Mapping[str, Mapping[str, str]], outcomes: Outcomes
    ) -> Iterator[str]:
        """Name what differs: of each key the order and the state, of each program the outcome."""
        for text in self._model.disorder({key: orders.get(key, ()) for key in KEYS}):
            if not any(key in text for key in self._unsure_keys):
                yield text
        for key, state in self._model.states(orders).items():
            if key not in self._unsure_keys and states.get(key, {}) != state:
                yield f"the state of {key}: model {state}, engine {states.get(key, {})}"
        for tag, outcome in self._model.outcomes(orders).items():
            if tag in self._unsure:
                continue
            if tag not in outcomes:
                yield f"{tag}: model {outcome}, and the engine never ran it"
            elif outcomes[tag] != outcome:
                yield f"{tag}: model {outcome}, engine {outcomes[tag]}"


def children(operations: Sequence[AnyOperation]) -> Iterator[Program]:
    """Return the programs that operations start."""
    for operation in operations:
        match operation:
            case Call(program) | Send(program) | GiveUp(_, Program() as program):
                yield program
            case Together(branches):
                for branch in branches:
                    yield from children(branch)
            case _:
                pass


def family(program: Program) -> Iterator[Program]:
    """Return a program and all that it starts."""
    yield program
    for child in children(program.operations):
        yield from family(child)
