"""What a run does, by its seed: its programs, and whom a client pauses and cancels."""

from __future__ import annotations

import random

from msgspec import Struct

from perdure.testing.programs import Author, Program

PROGRAMS_PER_KEY = 40
LEAST_KEYS = 4
DISTURBED_SHARE = 0.05
"""How many of the programs are paused, and how many cancelled."""


class Plan(Struct, frozen=True):
    """The programs that a client starts, and those of them that it pauses and cancels."""

    keys: list[str]
    roots: list[Program]
    paused: set[str]
    cancelled: set[str]


def plan(seed: int, count: int) -> Plan:
    """Return what the run with this seed does."""
    chance = random.Random(seed)  # noqa: S311  it must be repeatable
    keys = [f"k{n:03}" for n in range(max(LEAST_KEYS, count // PROGRAMS_PER_KEY))]
    roots = Author(chance, keys=keys).programs(count)
    tags = [each.tag for each in roots]
    some = round(DISTURBED_SHARE * count)
    return Plan(keys, roots, {*chance.sample(tags, some)}, {*chance.sample(tags, some)})
