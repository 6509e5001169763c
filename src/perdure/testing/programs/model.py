"""What must come of programs. It knows nothing of the engine.

The model is told what the state of every key is in the end, and how every invocation ended; it says what is wrong with
that. The state of a key holds a log: who had the key in which order, and what each did to the state. So the model does
not guess an order: it asks whether that order may be, and folds it.

* The invocations of a key ran in the order of acceptance, as far as that is certain (what one client or one invocation
  asked for, one after the other), and none in the middle of another.
* The state, and what each saw of it, is the fold of the log.
* Every result is the only one that there can be, or one of those that a race may have.
* Every invocation ended once. Those of the losers of a race, and all below what a client cancelled, may have been
  cancelled, or never have been started.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from perdure.testing.programs.program import (
    LOG,
    LOST,
    TIMED_OUT,
    Again,
    AnyOperation,
    Branch,
    Break,
    Call,
    Drop,
    Get,
    GiveUp,
    Group,
    Limit,
    Mend,
    Outcome,
    Program,
    Put,
    Race,
    Send,
    Shield,
    Together,
    Undo,
    Work,
    branches_of,
    breaks,
    failure_of,
    from_noted,
    must_be_mended,
    result_of,
    started_by,
    told_of,
    walk,
)


class Choice(Struct, frozen=True):
    """One of several results, and no other."""

    options: list[Any]


Expected = list[Any] | str | Choice | None
"""A result, in which there may be choices; None is the outcome of what was cancelled."""


def fits(expected: Expected, actual: object) -> bool:
    """Report whether a result is one that is expected."""
    match expected:
        case Choice(options):
            return any(fits(each, actual) for each in options)
        case list():
            return (
                isinstance(actual, list)
                and len(actual) == len(expected)  # pyright: ignore[reportUnknownArgumentType]
                and all(map(fits, expected, actual))  # pyright: ignore[reportUnknownArgumentType]
            )
        case _:
            return expected == actual


class Model:
    """What must come of programs that a client starts one after the other.

    `cancels` are those that a client asked to cancel, by tag: True if that is known to have been accepted.
    """

    def __init__(self, roots: Sequence[Program], cancels: Mapping[str, bool] | None = None) -> None:
        self.programs: dict[str, Program] = {}
        """All programs by tag, whether they must run or may."""
        self._cancels = cancels or {}
        self._held: dict[str, tuple[str, ...]] = {}
        self._maybe: set[str] = set()  # they may be cancelled, or never be started
        self._limited: set[str] = set()  # they run out of their own time
        self._chains: list[list[str]] = [[root.tag for root in roots if not root.delay]]
        for root in roots:
            self._chains.append(self._enter(root, (), maybe=False))

    def must_end(self) -> set[str]:
        """Return the tags of those that are started whatever happens."""
        return self.programs.keys() - self._maybe

    # --- who there is -------------------------------------------------------------------------------------------------
    def _enter(self, program: Program, held: tuple[str, ...], *, maybe: bool) -> list[str]:
        """Take in a program and all that it starts; return whom it starts for certain before it ends, in order."""
        self.programs[program.tag] = program
        self._held[program.tag] = held if program.key is None else (*held, program.key)
        if maybe:
            self._maybe.add(program.tag)
        below = maybe or program.tag in self._cancels
        started = [(each, self._enter_operation(each, program, below)) for each in program.operations]
        before_it_failed = itertools.takewhile(lambda each: not isinstance(each[0], Mend), started)
        return [tag for _, tags in before_it_failed for tag in tags]

    def _enter_operation(self, operation: AnyOperation, program: Program, maybe: bool) -> list[str]:
        held = self._held[program.tag]
        match operation:
            case Call(child) | Again(child):
                return [] if child.key in held else _first(child, self._enter(child, held, maybe=maybe))
            case Send(sent):
                self._chains.append(self._enter(sent, (), maybe=maybe))
                return _first(sent, [])
            case Group(members, _, quota):
                for each in members:
                    self._enter(each, held, maybe=maybe or quota is not None)
                return [each.tag for each in members if not each.delay]
            case GiveUp(child=Program() as child, way=way):
                self._enter(child, held, maybe=maybe)
                if way == "limit":
                    self._limited.add(child.tag)
                return [child.tag]
            case Together(branches, way):
                stops = way in ("gather", "group") and any(map(breaks, branches))
                return self._enter_branches(branches, program, maybe or stops)
            case Race(branches):
                return self._enter_branches(branches, program, True)
            case Limit(_, branch):
                return self._enter_branches([branch], program, True)
            case Shield(_, branch):
                return self._enter_branches([branch], program, maybe)
            case _:
                return []

    def _enter_branches(self, branches: Sequence[Branch], program: Program, maybe: bool) -> list[str]:
        for each in itertools.chain(*branches):
            self._enter_operation(each, program, maybe)
        return []

    # --- what is wrong ------------------------------------------------------------------------------------------------
    def differences(self, states: Mapping[str, Mapping[str, Any]], outcomes: Mapping[str, Outcome]) -> list[str]:
        """Say what is wrong with the states of the keys, their log included, and with the outcomes by tag."""
        found: list[str] = []
        seen: dict[str, list[str]] = {}
        keys = {each.key for each in self.programs.values() if each.key is not None}
        for key in sorted({*keys, *states}):
            state = dict(states.get(key, {}))
            log = [from_noted(each) for each in state.pop(LOG, [])]
            found += (f"key {key}: {each}" for each in self._disorder(key, log, outcomes))
            expected, looked = self._fold(log)
            seen |= looked
            if state != expected:
                found.append(f"key {key}: the state is {state}, and the log comes to {expected}")
        return [*found, *self._wrong_outcomes(outcomes, seen)]

    def _wrong_outcomes(self, outcomes: Mapping[str, Outcome], seen: dict[str, list[str]]) -> Iterator[str]:
        for tag in outcomes.keys() - self.programs.keys():
            yield f"{tag} ran, and nobody knows of it"
        for tag, program in self.programs.items():
            if tag not in outcomes:
                if tag not in self._maybe:
                    yield f"{tag} never ran"
                continue
            if program.key is None or tag not in seen:
                seen[tag] = self._fold([(tag, None), *((tag, n) for n in range(len(_uses(program))))])[1][tag]
            expected = self._expected(program, seen[tag], outcomes)
            if not fits(expected, outcomes[tag]):
                yield f"{tag} came to {outcomes[tag]}, and should to {shown(expected)}"
            yield from self._wrong_groups(program, outcomes)

    def _wrong_groups(self, program: Program, outcomes: Mapping[str, Outcome]) -> Iterator[str]:
        if not isinstance(outcomes[program.tag], list):
            return
        for each in program.operations:
            if isinstance(each, Group) and each.quota is not None:
                able = [member.tag for member in each.programs if not (member.fails or member.needs_mending)]
                ended = [isinstance(outcomes.get(tag), list) for tag in able].count(True)
                if ended < min(each.quota, len(able)):
                    yield f"{program.tag}: only {ended} of a group completed, and its quota is {each.quota}"

    # --- order and state ----------------------------------------------------------------------------------------------
    def _disorder(self, key: str, log: Sequence[tuple[str, int | None]], outcomes: Mapping[str, Outcome]) -> list[str]:
        found: list[str] = []
        order = [tag for tag, number in log if number is None]
        mine = {tag: each for tag, each in self.programs.items() if each.key == key}
        found += (f"{tag} has nothing to do with it" for tag in dict(log).keys() - mine.keys())
        found += (f"{tag} began {order.count(tag)} times" for tag in {*order} if order.count(tag) > 1)
        found += (f"{tag} ended without it" for tag in mine if tag not in order and self._ran(tag, outcomes))
        places = {tag: place for place, tag in enumerate(order)}
        for chain in self._chains:
            for one, two in itertools.pairwise(tag for tag in chain if tag in places):
                if places[one] > places[two]:
                    found.append(f"{two} overtook {one}")
        turns = [tag for tag, _ in itertools.groupby(tag for tag, _ in log)]
        for tag in {*turns}:
            if turns.count(tag) > 1 + (tag in mine and mine[tag].needs_mending):
                found.append(f"others had it while {tag} did")
        for tag, program in mine.items():
            uses = [number for each, number in log if each == tag and number is not None]
            whole = self._ran(tag, outcomes)
            if uses != [*range(len(_uses(program)) if whole else len(uses))]:
                found.append(f"{tag} used its state {len(_uses(program))} times, and the log has {uses}")
        return found

    def _ran(self, tag: str, outcomes: Mapping[str, Outcome]) -> bool:
        """Report whether one ran to the end of its program, as far as that goes."""
        return tag in outcomes and outcomes[tag] is not None and not self.programs[tag].endless

    def _fold(self, log: Sequence[tuple[str, int | None]]) -> tuple[dict[str, str], dict[str, list[str]]]:
        """Return the state after all, and what each has seen of it."""
        state: dict[str, str] = {}
        seen: dict[str, list[str]] = {}
        for tag, number in log:
            mine = seen.setdefault(tag, [])
            uses = _uses(self.programs[tag]) if tag in self.programs else []
            match uses[number] if number is not None and number < len(uses) else None:
                case Put(name, value):
                    state[name] = value
                case Drop(name):
                    state.pop(name, None)
                case Get(name):
                    mine.append(state.get(name, "nothing"))
                case _:
                    pass
        return state, seen

    # --- results ------------------------------------------------------------------------------------------------------
    def _expected(self, program: Program, seen: Sequence[str], outcomes: Mapping[str, Outcome]) -> Expected:
        tag = program.tag
        if program.endless:
            options: list[Any] = [TIMED_OUT if tag in self._limited else None]
        elif program.fails:
            options = [failure_of(program)]
        else:
            states = iter(seen)
            options = [[tag, *(self._result(each, program, states, outcomes) for each in program.operations)]]
        if self._cancels.get(tag) and not _may_swallow(program):
            return None
        if tag in self._maybe or tag in self._cancels:
            options.append(None)
        return options[0] if len(options) == 1 else Choice(options)

    def _result(
        self, operation: AnyOperation, program: Program, states: Iterator[str], outcomes: Mapping[str, Outcome]
    ) -> Expected:
        match operation:
            case Get():
                return next(states, "nothing")
            case Call(child) | Again(child) if child.key in self._held[program.tag]:
                return f"refused {child.key}"
            case Call(child):
                return self._told_of(child, outcomes)
            case Again(child):
                return Choice([self._told_of(child, outcomes), told_of(outcomes.get(child.tag))])
            case Group(members, _, None):
                return [self._told_of(each, outcomes) for each in members]
            case Group(members):
                return [_told_in_group(each, outcomes.get(each.tag)) for each in members]
            case Together(branches, "gather" | "group") if any(map(breaks, branches)):
                return failure_of(program)
            case _:
                pass
        results = [
            failure_of(program)
            if breaks(branch)
            else [self._result(each, program, states, outcomes) for each in branch]
            for branch in branches_of(operation)
        ]
        match operation:
            case Together():
                return [*results]
            case Race():
                return Choice([*map(list, _ways_to_end(results))])
            case Limit():
                return Choice([*results, TIMED_OUT])
            case Shield():
                return results[0]
            case _:
                return result_of(operation)

    def _told_of(self, child: Program, outcomes: Mapping[str, Outcome]) -> Expected:
        """Return what a parent is told of a child that it waited for."""
        if child.needs_mending:
            told: Expected = told_of(must_be_mended(child))
        elif child.fails:
            told = told_of(failure_of(child))
        else:
            told = ["child", outcomes.get(child.tag)]  # which is looked at by itself
        return Choice([told, told_of(None)]) if child.tag in self._cancels else told


def _first(program: Program, rest: list[str]) -> list[str]:
    return rest if program.delay else [program.tag, *rest]


def _uses(program: Program) -> list[AnyOperation]:
    """Return the operations on the state."""
    return [each for each in program.operations if isinstance(each, Put | Drop | Get)]


def _told_in_group(member: Program, outcome: Outcome) -> Expected:
    """Return what came of a member when its group was told: a retry comes later, and may end as cancelled."""
    if not member.needs_mending:
        return told_of(outcome)
    broken = told_of(must_be_mended(member))
    return broken if outcome is not None else Choice([broken, told_of(None)])


def _ways_to_end(results: Sequence[Expected]) -> Iterator[tuple[Expected, ...]]:
    """Iterate over what a race may give: any of its branches have won, at least one."""
    for each in itertools.product(*((result, LOST) for result in results)):
        if any(one is not LOST for one in each):
            yield each


def _may_swallow(program: Program) -> bool:
    """Report whether a cancellation may get lost in the body, as asyncio has it.

    Code that catches the failure of a step or child takes a cancellation with it that came while it ended. In Python
    3.11, `wait_for` loses one that comes together with the result, and a TaskGroup one that comes while it ends its
    tasks after a failure.
    """
    return any(
        isinstance(each, Break | Mend | Undo)
        or (isinstance(each, Work) and each.fails)
        or (isinstance(each, Limit) and each.way == "wait_for")
        or (isinstance(each, GiveUp) and each.way == "limit")  # the time limit of a child is its failure
        or any(child.fails or child.needs_mending for child in started_by(each))
        for each in walk(program.operations)
    )


def shown(expected: Expected) -> str:
    """Return what is expected as text."""
    match expected:
        case Choice(options):
            return " or ".join(map(shown, options))
        case list():
            return f"[{', '.join(map(shown, expected))}]"
        case _:
            return repr(expected)
