"""Makes a plan smaller that finds something, as long as it finds a breach of the same invariant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from perdure.testing.programs import smaller
from perdure.testing.simulation.plan import Noise, Plan
from perdure.testing.simulation.run import Result, run

MOST_RUNS = 1_500
"""The most runs for one plan."""


def shrink(found: Result, *, runs: int = MOST_RUNS) -> Result:
    """Return the result of the smallest plan that was found, or `found` itself."""
    violation = found.violation
    if violation is None:
        return found
    while runs > 0:
        for plan in smaller_plans(found.plan):
            runs -= 1
            result = run(plan)
            if result.violation is not None and result.violation.number == violation.number:
                found = result
                break
            if runs <= 0:
                break
        else:
            break
    return found


def smaller_plans(plan: Plan) -> Iterator[Plan]:
    """Return plans that lack something of this one, the greatest first."""
    for n in range(len(plan.programs)):
        yield _without_program(plan, n)
    if len(plan.faults) > 3:
        half = len(plan.faults) // 2
        yield replace(plan, faults=plan.faults[:half])
        yield replace(plan, faults=plan.faults[half:])
    for n in range(len(plan.faults)):
        yield replace(plan, faults=[*plan.faults[:n], *plan.faults[n + 1 :]])
    for n, act in enumerate(plan.acts):
        if act.verb != "start":
            yield replace(plan, acts=[*plan.acts[:n], *plan.acts[n + 1 :]])
    yield from _plainer(plan)
    for n, program in enumerate(plan.programs):
        for less in smaller(program):
            yield replace(plan, programs=[*plan.programs[:n], less, *plan.programs[n + 1 :]])


def _without_program(plan: Plan, n: int) -> Plan:
    tag = plan.programs[n].tag
    programs = [program for program in plan.programs if program.tag != tag]
    return replace(plan, programs=programs, acts=[act for act in plan.acts if act.tag != tag])


def _plainer(plan: Plan) -> Iterator[Plan]:
    """Return plans that are plainer in one respect."""
    if plan.workers > 1:
        yield replace(plan, workers=plan.workers - 1)
    if plan.clients > 1:
        clients = plan.clients - 1
        yield replace(
            plan, clients=clients, acts=[replace(act, client=min(act.client, clients - 1)) for act in plan.acts]
        )
    plain: dict[str, Any] = {
        "max_concurrent": 100,
        "cache": 1_000,
        "always_replay": False,
        "retention": None,
        "older": False,
        "ahead": [0.0] * len(plan.ahead),
    }
    for name, value in plain.items():
        if getattr(plan, name) != value:
            yield replace(plan, **{name: value})
    for name in Noise.__struct_fields__:
        if getattr(plan.noise, name):
            yield replace(plan, noise=replace(plan.noise, **{name: 0.0}))
