"""What came of a run, compared with the model of its programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from perdure.core.failures import rebuild
from perdure.core.journal import Completed, Failed, Outcome
from perdure.testing.programs import Model, Program, decode, outcome_of
from perdure.testing.programs import Outcome as Told
from perdure.testing.simulation.observer import Life


def program_of(life: Life) -> Program | None:
    """Return the program that an invocation runs, if its journal has begun."""
    if life.program is None and life.start is not None:
        life.program = decode(msgspec.msgpack.decode(life.start.input)["text"])
    return life.program


def told_of(outcome: Outcome | None) -> Told:
    """Return what a client is told of an outcome: a result, the text of a failure, or None for cancelled."""
    match outcome:
        case Completed(value=value):
            return msgspec.msgpack.decode(value)
        case Failed(failure=failure):
            return outcome_of(rebuild(failure))
        case _:
            return None


def differences(
    programs: list[Program],
    lives: list[Life],
    states: Mapping[str, Mapping[str, Any]],
    cancels: Mapping[str, bool],
) -> Iterator[str]:
    """Name what differs from the model: order and state of the keys, results, what ran twice or never."""
    outcomes: dict[str, Told] = {}
    for life in lives:
        program = program_of(life)
        if program is None:
            continue
        if program.tag in outcomes:
            yield f"{program.tag} ran as two invocations"
        outcomes[program.tag] = told_of(life.outcome)
    yield from Model(programs, cancels).differences(states, outcomes)
