"""Programs that are a little simpler than a given one: what a shrinker tries.

Every operation can be left out, and what it starts or holds can be simplified. What is left has a model as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from perdure.testing.programs.program import (
    Again,
    AnyOperation,
    Ask,
    Branch,
    Call,
    Generate,
    GiveUp,
    Group,
    Guard,
    Limit,
    Mend,
    Pass,
    Program,
    Race,
    Send,
    Shield,
    Together,
    Undo,
    Work,
)

T = TypeVar("T")


def smaller_lists(programs: Sequence[Program]) -> Iterator[list[Program]]:
    """Iterate over simpler lists: without a half, without one, with one that is smaller. Boldest first."""
    yield from _without(programs)
    yield from _with_one_changed(programs, smaller)


def smaller(program: Program) -> Iterator[Program]:
    """Iterate over simpler programs: fewer operations, simpler ones, no key, no delay. The tag stays. Boldest first."""
    for operations in _without(program.operations):
        yield replace(program, operations=operations)
    if program.key is not None:
        yield replace(program, key=None)
    if program.cleanup > program.endless:
        yield replace(program, cleanup=int(program.endless))
    if program.delay:
        yield replace(program, delay=0.0)
    for operations in _with_one_changed(program.operations, _simpler):
        yield replace(program, operations=operations)


def _without(items: Sequence[T]) -> Iterator[list[T]]:
    """Iterate over a list without one of its parts, which are halves first, then quarters, down to single items."""
    size = len(items)
    while size:
        size = (size + 1) // 2 if size > 1 else 0
        if size == len(items):
            continue
        for at in range(0, len(items), size or 1):
            yield [*items[:at], *items[at + (size or 1) :]]
        if size == 1:
            return


def _with_one_changed(items: Sequence[T], change: Callable[[T], Iterator[T]]) -> Iterator[list[T]]:
    for at, item in enumerate(items):
        for other in change(item):
            yield [*items[:at], other, *items[at + 1 :]]


def _simpler(operation: AnyOperation) -> Iterator[AnyOperation]:
    """Iterate over simpler operations of the same kind, or what is within."""
    match operation:
        case Work() if operation != (plain := Work(operation.value)):
            yield plain
        case Ask(value, rejected, impatient) if rejected or impatient:
            yield Ask(value, rejected=False)
        case Mend(undone) if undone:
            yield Mend()
        case Undo(parts) if parts > 1:
            yield Undo(1)
        case Call(program) | Again(program) | Send(program):
            yield from map(type(operation), smaller(program))
        case Group():
            yield from _simpler_groups(operation)
        case GiveUp(child=Program()) if operation.way != "limit":
            yield replace(operation, child=None)
        case Together(branches) | Race(branches):
            changed = _some_of(branches, _smaller_branches)
            yield from (replace(operation, branches=each) for each in changed)
        case Limit(_, branch) | Shield(_, branch):
            yield from (replace(operation, branch=each) for each in _smaller_branches(branch))
        case Pass(values) | Generate(values) | Guard(values):
            yield from _simpler_values(operation, values)
        case _:
            pass


def _simpler_groups(group: Group) -> Iterator[Group]:
    for members in _some_of(group.programs, smaller):
        quota = None if group.quota is None else min(group.quota, len(members))
        yield replace(group, programs=members, quota=quota)
    if group.quota is not None:
        yield replace(group, quota=None)


def _simpler_values(operation: Any, values: list[str]) -> Iterator[AnyOperation]:
    if len(values) > 1:
        fewer = replace(operation, values=values[:-1])
        yield replace(fewer, taken=min(fewer.taken, len(fewer.values))) if isinstance(fewer, Generate) else fewer


def _some_of(items: Sequence[T], change: Callable[[T], Iterator[T]]) -> Iterator[list[T]]:
    """Iterate over shorter or simpler lists that are not empty."""
    yield from filter(None, _without(items))
    yield from _with_one_changed(items, change)


def _smaller_branches(branch: Branch) -> Iterator[Branch]:
    yield from filter(None, _without(branch))
    yield from _with_one_changed(branch, _simpler)
