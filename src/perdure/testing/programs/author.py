"""Writes programs at random. The same chance gives the same programs, in every process."""

from __future__ import annotations

import random
from collections.abc import Sequence

from perdure.testing.programs.program import (
    KEYS,
    NAMES,
    NAP_SECONDS,
    AnyOperation,
    Ask,
    Break,
    Call,
    Drop,
    Get,
    GiveUp,
    Nap,
    Program,
    Put,
    Send,
    Together,
    Work,
)

DEEPEST = 3
MOST_OPERATIONS = 5
LARGE_BYTES = 1_500_000
"""More than a message of NATS can hold."""


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
            operations += (self._operation(below, alone) for _ in range(chance.randint(0, MOST_OPERATIONS)))
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
        if len(held) >= DEEPEST or chance.random() < 0.7:
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
