"""One random sequence of uses of the store port gives the same answers on every store, step by step.

Compared are values, errors and their texts, what is delivered and in which order, lists and journals. What may differ
is in `normal`, in `Side.compared` and where `World` says so, each with its reason. A failure prints the shortest
sequence found that still fails, as code and as a table of answers, and the command that repeats it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import pytest

from perdure.core.journal import Message
from perdure.stores.memory import MemoryStore
from tests.differential.generate import Draw, Profile
from tests.differential.operations import (
    Acknowledge,
    Close,
    Commit,
    Count,
    New,
    Open,
    Operation,
    Post,
    Purge,
    Read,
    Reopen,
    Search,
    Served,
    Submit,
)
from tests.differential.running import MakeSides, Patience, check
from tests.differential.sides import Side, memory

EMBEDDED = [Profile(), Profile(), Profile(keys=False, counted=True)]
ALL = [
    Profile(later=False, ages=False, batches=False),
    Profile(later=False, ages=False, keys=False, counted=True, batches=False, again=False),
]
EMBEDDED_SEQUENCES = 150
ALL_SEQUENCES = 12
"""How many sequences the suite runs, unless a number of them is asked for."""
ALL_SEED = 9001
"""Where the suite begins with all stores, the same each time: a server takes real time, and on a machine with much else
to do the comparison itself takes one of some hundred fresh sequences for a difference that is none."""
COMMAND = "PERDURE_SEED={seed} PERDURE_SEQUENCES=1 python -m pytest tests/differential -k {name}"


def seeds(first: int, count: int) -> Iterator[int]:
    """Give seeds: the first one as it is, so that it can be repeated."""
    rng = random.Random(first)
    for number in range(count):
        yield first if number == 0 else rng.randrange(2**32)


def sequence(seed: int, profiles: Sequence[Profile]) -> list[Operation]:
    return Draw(seed, profiles[seed % len(profiles)]).sequence()


async def test_embedded_stores_answer_the_same(embedded: MakeSides, seed: int, count: int | None) -> None:
    for each in seeds(seed, count or EMBEDDED_SEQUENCES):
        await check(embedded, sequence(each, EMBEDDED), COMMAND.format(seed=each, name="embedded"))


async def test_all_stores_answer_the_same(all_three: MakeSides, seed: int, count: int | None) -> None:
    first = seed if count is not None or "PERDURE_SEED" in os.environ else ALL_SEED
    for each in seeds(first, count or ALL_SEQUENCES):
        await check(all_three, sequence(each, ALL), COMMAND.format(seed=each, name="all_stores"))


# --- sequences that found something -----------------------------------------------------------------------------------
FOUND: dict[str, list[Operation]] = {
    "a limit that has passed when its start is accepted": [
        Open("h"),
        Submit((New("a0", key="l", handler="g", chosen=False),)),
        Submit((New("b1", key="l", limit="now"),)),
    ],
    "a cancellation of what has begun, before a worker is there": [
        Open("h"),
        Submit((New("b0"),)),
        Commit("b0", "begin"),
        Reopen(),
        Post("m3", "b0", "cancel"),
        Open("h"),
    ],
    "the revision of a journal whose status has not changed": [
        Open("h"),
        Submit((New("b0"),)),
        Commit("b0", "begin", more=("step",)),
        Commit("b0", "step"),
        Read("revision", "b0"),
    ],
    "a repeated start with another time or key": [
        Submit((New("b0", due="far"), New("b1"), New("b2", key="k"))),
        Submit((New("b0"), New("b1", due="far"), New("b2", key="l"), New("b2"))),
        Open("h"),
    ],
    "a child with a key that is joined": [
        Open("h"),
        Submit((New("b5"),)),
        Commit("b5", "step", more=(New("b7", key="k"),), state=(("x", 0),)),
        Commit("b7", "begin"),
    ],
    "a wake that was acknowledged, and another worker": [
        Open("h"),
        Submit((New("b0"),)),
        Commit("b0", "begin"),
        Commit("b0", "suspend", wake="past"),
        Acknowledge("b0"),
        Close("h"),
        Open("h"),
    ],
    "a failed invocation that has its key again": [
        Open("h"),
        Submit((New("b0", key="l"),)),
        Commit("b0", "fail"),
        Post("m0", "b0", "resolve"),
        Commit("b0", "enlist"),
        Read("outcome", "b0"),
    ],
    "what is due while no worker is there": [
        Submit((New("b0", due="soon"), New("b1", key="k", due="soon"))),
        Reopen(),
        Open("h"),
        Close("h"),
        Purge(),
    ],
}


@pytest.mark.parametrize("name", FOUND)
async def test_stores_agree_where_they_once_differed(name: str, embedded: MakeSides, all_three: MakeSides) -> None:
    for make in (embedded, all_three):
        await check(make, FOUND[name], f"python -m pytest tests/differential -k {name!r}")


# --- the test itself --------------------------------------------------------------------------------------------------
class Forgetful(MemoryStore):
    """Loses the second message of an invocation."""

    def _put(self, message: Message) -> None:
        if len(self._mail.get(message.to, ())) != 1:
            super()._put(message)


async def test_a_store_with_a_fault_is_found_and_the_sequence_is_shrunk() -> None:
    @contextmanager
    def sides() -> Generator[list[Side]]:
        yield [memory(None), Side("forgetful", lambda before: before or Forgetful())]

    noise = [Read("mail", "b0"), Count(), Served(), Search(), Submit((New("b1"),)), Post("x", "b1", "pause")]
    operations = [*noise, Open("h"), Submit((New("b0"),)), *noise, Post("m0", "b0", "pause"), *noise]
    operations += [Post("m1", "b0", "resume"), *noise]
    patience = Patience(0.05, 0.05)
    with pytest.raises(AssertionError, match="PERDURE_SEED=7") as failed:
        await check(sides, operations, "PERDURE_SEED=7", patience)
    said = str(failed.value)
    assert "forgetful" in said
    code = "[\n    Submit(starts=(New(id='b0'),)),\n"
    code += "    Post(id='m0', to='b0', request='pause'),\n    Post(id='m1', to='b0', request='resume'),\n]"
    assert code in said, said
