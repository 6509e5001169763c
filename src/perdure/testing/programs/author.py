"""Writes programs at random. The same chance gives the same programs, in every process."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import get_args

from perdure.testing.programs.program import (
    KEYS,
    NAMES,
    NAP_SECONDS,
    SHORTEST_SECONDS,
    Again,
    AnyOperation,
    Ask,
    Branch,
    Break,
    Call,
    Draw,
    Drop,
    Generate,
    Get,
    GiveUp,
    Group,
    Guard,
    Limit,
    Mend,
    Nap,
    Pass,
    Program,
    Put,
    Race,
    Send,
    Shield,
    Together,
    Undo,
    WaysToDecide,
    WaysTogether,
    WaysToGiveUp,
    WaysToGuard,
    Work,
)

DEEPEST = 3
MOST_OPERATIONS = 5
NESTED_SHARE = 0.3
"""How many operations start others or have branches, where there may be any."""
LARGE_BYTES = 1_500_000
"""More than a message of NATS can hold."""


class Author:
    """Writes programs at random, which use these keys.

    `threads`: steps may be plain functions, which need a thread. `large`: results may be larger than a message.
    """

    def __init__(
        self, chance: random.Random, *, keys: Sequence[str] = KEYS, threads: bool = True, large: bool = True
    ) -> None:
        self._chance = chance
        self._keys = sorted(keys)
        self._threads = threads
        self._large = large
        self._tags = 0

    def programs(self, count: int) -> list[Program]:
        """Return what a client starts, one after the other."""
        return [self._program(self._key(()), (), chosen=True) for _ in range(count)]

    # --- programs -----------------------------------------------------------------------------------------------------
    def _tag(self) -> str:
        self._tags += 1
        return f"p{self._tags}"

    def _value(self) -> str:
        return f"v{self._chance.randrange(1_000)}"

    def _values(self, least: int, most: int) -> list[str]:
        return [self._value() for _ in range(self._chance.randint(least, most))]

    def _seconds(self) -> float:
        """Draw a time that is not 0: `wait_for(…, 0)` does not begin what it is to wait for."""
        return round(max(SHORTEST_SECONDS, self._chance.random() * NAP_SECONDS), 4)

    def _free(self, held: Sequence[str]) -> list[str]:
        return [key for key in self._keys if not held or key > max(held)]

    def _key(self, held: Sequence[str], *, refused: float = 0.1) -> str | None:
        chance = self._chance
        if held and chance.random() < refused:
            return chance.choice(held)
        free = self._free(held)
        return chance.choice(free) if free and chance.random() < 0.6 else None

    def _program(
        self,
        key: str | None,
        held: Sequence[str],
        *,
        alone: bool = False,
        chosen: bool | None = None,
        mends: float = 0.08,
    ) -> Program:
        """Write a program; `held` are the keys of its ancestors, and their number how deep it is.

        `mends` is the chance that it fails until it is mended.
        """
        chance = self._chance
        tag = self._tag()
        operations: list[AnyOperation] = []
        below = (*held, key or "")
        if key is None or key not in held:
            operations += (self._operation(below, alone) for _ in range(chance.randint(0, MOST_OPERATIONS)))
            if not alone and chance.random() < mends:
                operations.insert(chance.randint(0, len(operations)), Mend(chance.choice((0, 0, 1, 3))))
            if chance.random() < 0.15:
                operations.append(Break(caught=False))
        return Program(
            tag,
            operations,
            key,
            chosen=chance.random() < 0.5 if chosen is None else chosen,
            delay=self._seconds() if not alone and chance.random() < 0.1 else 0.0,
            cleanup=chance.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, 3)),
        )

    # --- operations ---------------------------------------------------------------------------------------------------
    def _operation(self, held: tuple[str, ...], alone: bool) -> AnyOperation:
        """Write an operation; one that is `alone` runs beside others, and must not touch the state or need a key."""
        chance = self._chance
        if len(held) < DEEPEST and chance.random() < NESTED_SHARE:
            return Call(self._program(None, held, alone=True)) if alone else self._nested(held)
        if not alone and chance.random() < 0.4:
            return self._shared()
        return self._simple()

    def _shared(self) -> AnyOperation:
        chance = self._chance
        name = chance.choice(NAMES)
        return chance.choice((Put(name, self._value()), Put(name, self._value()), Drop(name), Get(name), Get(name)))

    def _simple(self) -> AnyOperation:
        chance = self._chance
        match chance.choice(("work", "work", "work", "break", "nap", "nap", "ask", "ask", "draw", "generate", "undo")):
            case "work":
                return self._work()
            case "break":
                return Break(caught=True)
            case "nap":
                return Nap(self._seconds())
            case "ask":
                return Ask(self._value(), rejected=chance.random() < 0.3, impatient=chance.random() < 0.3)
            case "draw":
                return Draw()
            case "undo":
                return Undo(chance.randint(1, 3))
            case _:
                values = self._values(1, 3)
                return Generate(values, taken=chance.randint(1, len(values)))

    def _work(self) -> Work:
        chance, value = self._chance, self._value()
        match chance.choice(("plain", "plain", "fails", "fails", "own policy", "policy", "slow", "threaded", "large")):
            case "fails":
                return Work(value, failures=chance.randint(1, 2))
            case "own policy":
                return Work(value, failures=chance.randint(0, 3), attempts=chance.randint(1, 3))
            case "policy":
                return Work(value, failures=chance.randint(0, 2), policy=chance.choice(get_args(WaysToDecide)))
            case "slow" if chance.random() < 0.3:
                return Work(value, slow=True)
            case "threaded" if self._threads:
                return Work(value, failures=chance.choice((0, 1)), threaded=True)
            case "large" if self._large and chance.random() < 0.1:
                return Work(value, size=LARGE_BYTES)
            case _:
                return Work(value)

    def _nested(self, held: tuple[str, ...]) -> AnyOperation:
        chance = self._chance
        keys = [*filter(None, held)]
        match chance.choice(
            ("call", "call", "again", "send", "send", "give up", "group", "beside", "beside", "beside")
        ):
            case "call":
                return Call(self._program(self._key(keys), held))
            case "again":
                return Again(self._program(self._key(keys), held, chosen=True, mends=0.6))
            case "send":  # the keys of a sender mean nothing to what it sends
                return Send(self._program(self._key(()), ("",) * len(held)))
            case "give up":
                return self._give_up(keys)
            case "group":
                count = chance.randint(1, 4)
                members = [self._program(self._key(keys, refused=0.0), held) for _ in range(count)]
                quota = chance.randint(1, count) if chance.random() < 0.3 else None
                return Group(members, concurrency=chance.randint(1, count), quota=quota)
            case _:
                return self._beside(held)

    def _give_up(self, keys: list[str]) -> GiveUp:
        chance = self._chance
        child = Program(
            self._tag(),
            [],
            chance.choice([None, *self._free(keys)]),
            chosen=True,
            endless=True,
            cleanup=chance.randint(1, 3),
        )
        ways: list[WaysToGiveUp] = [*get_args(WaysToGiveUp)]
        if chance.random() < 0.3:
            ways.remove("limit")
            return GiveUp(self._seconds(), None, chance.choice(ways))
        way = chance.choice(ways)
        return GiveUp(self._seconds() + 0.001 * (way == "limit"), child, way)

    def _beside(self, held: tuple[str, ...]) -> AnyOperation:
        chance = self._chance
        deeper = (*held, "")
        match chance.choice(("together", "together", "race", "limit", "shield", "pass", "guard")):
            case "together":
                ways: tuple[WaysTogether, ...] = get_args(WaysTogether)
                return Together(self._branches(deeper, breaking=0.2), chance.choice(ways))
            case "race":
                return Race(self._branches(deeper))
            case "limit":
                return Limit(self._seconds(), self._branch(deeper), chance.choice(("timeout", "wait_for")))
            case "shield":
                return Shield(self._seconds(), self._branch(deeper))
            case "pass":
                return Pass(self._values(1, 4), tasks=chance.randint(1, 3), room=chance.randint(0, 2))
            case _:
                guards: tuple[WaysToGuard, ...] = get_args(WaysToGuard)
                return Guard(self._values(1, 4), chance.choice(guards))

    def _branches(self, held: tuple[str, ...], *, breaking: float = 0.0) -> list[Branch]:
        return [self._branch(held, breaking=breaking) for _ in range(self._chance.randint(2, 3))]

    def _branch(self, held: tuple[str, ...], *, breaking: float = 0.0) -> Branch:
        chance = self._chance
        branch = [self._operation(held, True) for _ in range(chance.randint(1, 3))]
        if chance.random() < breaking:
            branch.append(Break(caught=False))
        return branch
