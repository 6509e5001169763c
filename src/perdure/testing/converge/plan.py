"""What a run does, by its seed: its programs, and whom a client pauses, cancels, ends by force and purges."""

from __future__ import annotations

import random

from msgspec import Struct

from perdure.testing.programs import Author, Program

PROGRAMS_PER_KEY = 40
LEAST_KEYS = 4
DISTURBED_SHARE = 0.05
"""How many of the programs are paused, how many cancelled, and how many ended by force."""
PURGED_SHARE = 0.1
"""How many of the programs are purged once they have ended."""


class Plan(Struct, frozen=True):
    """The programs that a client starts, and those of them that it pauses, cancels, ends by force and purges."""

    keys: list[str]
    roots: list[Program]
    paused: set[str] = set()
    cancelled: set[str] = set()
    forced: set[str] = set()
    purged: set[str] = set()


def plan(seed: int, count: int) -> Plan:
    """Return what the run with this seed does."""
    chance = random.Random(seed)  # noqa: S311  it must be repeatable
    keys = [f"k{n:03}" for n in range(max(LEAST_KEYS, count // PROGRAMS_PER_KEY))]
    roots = Author(chance, keys=keys).programs(count)
    tags = [each.tag for each in roots]
    some = round(DISTURBED_SHARE * count)
    paused, cancelled, forced = ({*chance.sample(tags, some)} for _ in range(3))
    return Plan(keys, roots, paused, cancelled, forced, {*chance.sample(tags, round(PURGED_SHARE * count))})
