"""What a seed stands for: programs, processes, what clients ask, and faults, as plain data that can be made smaller."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Literal, get_args

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.testing.programs import Author, Program, all_of
from perdure.testing.programs.program import Again, started_by, walk

MOST_PROGRAMS = 6
MOST_WORKERS = 3
MOST_CLIENTS = 2
MOST_FAULTS = 10
MOST_FAULT_NUMBER = 45
MOST_CLIENT_FAULT_NUMBER = 12
"""Faults hit one of the first so many writes, or reads, of a process."""
LARGE = 0.02
"""The share of seeds whose programs may have large results, which cost time."""
OLDER = 0.2
"""The share of seeds whose journals are read as older releases would have written them."""
UNREADABLE = 0.3
"""The share of seeds in which a journal cannot be read for a while."""
START_SECONDS = 0.6
"""Clients start their programs within so many seconds."""
MOST_WITHIN = 8
"""A crash within a commit is before one of its first so many writes."""

WriteFault = Literal[
    "crash before",  # the process ends, and its write never reaches the store
    "crash within",  # ... after some of the commit's writes
    "crash after",  # ... after all of them, and before it hears so
    "refused",  # the store does not take it: it is full
    "answer lost",  # it is written, and the process is told that the store is away
    "unforeseen",  # the store raises what no store should
    "slow",  # it reaches the store later
    "late answer",  # the process hears of it later
    "fenced",  # the lease ends before the write reaches the store
    "stand still",  # the process stops for a while after it has asked
    "redelivery",  # all that is held is delivered once more
    "clock",  # the clock of the process jumps ahead
    "stop",  # the process is asked to end, and hands over
    "outage",  # every process and the store end, and begin again with what was written
]
ReadFault = Literal[
    "read fails",  # the store is away
    "read raises",  # the store raises what no store should
    "newer",  # the journal has entries that this process does not know
]
JournalFault = Literal[
    "later release",  # right after the write, a worker of a later release claims the invocation, and is gone
    "unknown",  # right after the write, a frame appears that no release would write
]
"""For `amount` seconds no worker can read the journal then."""
FaultKind = WriteFault | ReadFault | JournalFault
OFTEN: tuple[WriteFault, ...] = ("crash within",) * 4
WRITE_FAULTS: tuple[WriteFault, ...] = (*get_args(WriteFault), *OFTEN)
"""What a write may meet. A crash within a commit has many places, and most commits have few."""
READ_FAULTS: tuple[ReadFault, ...] = get_args(ReadFault)
JOURNAL_FAULTS: tuple[JournalFault, ...] = get_args(JournalFault)
ONLY_WORKERS = ("fenced", "stop", "redelivery", "newer")
Verb = Literal[
    "start",
    "cancel",
    "force",
    "force parent",  # as soon as a child of it runs
    "pause",
    "resume",
    "retry",
    "purge",
    "purge children",  # all that have ended by then
    "describe",
    "watch",
    "watch all",
]
REQUESTS: tuple[Verb, ...] = (
    "cancel",
    "cancel",
    "force",
    "pause",
    "pause",
    "resume",
    "retry",
    "retry",
    "purge",
    "describe",
)


WATCHES: tuple[Verb, ...] = ("watch", "watch all")


class Fault(Struct, frozen=True):
    """One fault: it hits write or read number `number` of a process, counted over its restarts.

    `amount` is in seconds, or the number of the write within a commit.
    """

    process: str
    number: int
    kind: FaultKind
    amount: float = 0.0


class Act(Struct, frozen=True):
    """What a client asks, and when. For "watch all", the tag is the status that is watched for, if there is one."""

    at: float
    client: int
    verb: Verb
    tag: str


class Noise(Struct, frozen=True):
    """How often something happens that may happen at any time: chances from 0 to 1, and the longest delay in seconds.

    Deliveries and answers are late, deliveries come twice, time hurries while something is ready, making a turn raises,
    the callbacks of a worker and the loops of watchers raise, bodies that are replayed ask for something else than they
    did, and what a store pushes is lost.
    """

    late: float = 0.0
    twice: float = 0.0
    hurry: float = 0.0
    delay: float = 0.0
    raises: float = 0.0
    callbacks: float = 0.0
    strays: float = 0.0
    lost: float = 0.0


class Plan(Struct, frozen=True):
    """One run. Everything else is drawn from `seed` on the way."""

    seed: int
    programs: list[Program]
    acts: list[Act]
    faults: list[Fault]
    noise: Noise = Noise()
    workers: int = 2
    clients: int = 1
    max_concurrent: int = 100
    cache: int = 1_000
    always_replay: bool = False
    retention: float | None = None
    older: bool = False
    """Journals are read as older releases would have written them."""
    ahead: list[float] = []
    """By how much the clock of each process is ahead, workers first."""


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Plan).decode


def plan_of(seed: int) -> Plan:
    """Draw the plan of a seed. A third of all seeds have no requests beside starts, and some no faults."""
    plan = _plan_of(seed)
    chance = Random(f"more {seed}")  # noqa: S311  repeatable on purpose
    noise = replace(
        plan.noise,
        callbacks=chance.choice((0.0, 0.0, 0.0, 0.05)),
        strays=chance.choice((0.0,) * 6 + (0.03,)),
        lost=chance.choice((0.0, 0.0, 0.1, 0.5)),
    )
    acts = [*plan.acts, *_watches(chance, plan), *_on_children(chance, plan), *_cancels_again(chance, plan)]
    faults = [*plan.faults, *_unreadable(chance, plan)]
    older = chance.random() < OLDER
    # A child of a chosen id that was purged runs again when it is awaited again: nothing else is promised.
    retention = None if any(map(_awaits_again, plan.programs)) else plan.retention
    return replace(plan, noise=noise, acts=acts, faults=faults, older=older, retention=retention)


def _awaits_again(root: Program) -> bool:
    return any(isinstance(each, Again) for program in all_of(root) for each in walk(program.operations))


def _unreadable(chance: Random, plan: Plan) -> Iterator[Fault]:
    """Draw which journal cannot be read for a while, if any."""
    if chance.random() < UNREADABLE:
        number = 1 + int(chance.random() * MOST_FAULT_NUMBER / 2)
        seconds = chance.choice((2.0, 200.0, 3_000.0, 3_000.0))
        worker = f"worker{chance.randrange(plan.workers)}"
        yield Fault(worker, number, chance.choice(JOURNAL_FAULTS), seconds)


def _cancels_again(chance: Random, plan: Plan) -> Iterator[Act]:
    """Draw which of those that a client cancels it cancels once more, a little later: cleanup may run by then."""
    for act in plan.acts:
        if act.verb == "cancel" and chance.random() < 0.5:
            yield replace(act, at=round(act.at + chance.random() * chance.choice((0.0, 0.05, 1.0)), 4))


def _on_children(chance: Random, plan: Plan) -> Iterator[Act]:
    """Draw what is asked while children run, or have ended."""
    parents = [each.tag for each in plan.programs if any(map(started_by, each.operations))]
    if parents and chance.random() < 0.15:
        yield Act(0.0, chance.randrange(plan.clients), "force parent", chance.choice(parents))
    if parents and chance.random() < 0.2:
        for _ in range(3):
            at = chance.random() * chance.choice((START_SECONDS, 5.0))
            yield Act(round(at, 4), chance.randrange(plan.clients), "purge children", parents[0])


def _watches(chance: Random, plan: Plan) -> Iterator[Act]:
    """Draw who watches a program, or all of them."""
    for _ in range(chance.choice((0, 0, 1, 3))):
        verb = chance.choice(WATCHES)
        tag = chance.choice(plan.programs).tag if verb == "watch" else chance.choice(("", "failed", "suspended"))
        yield Act(round(chance.random() * START_SECONDS, 4), chance.randrange(plan.clients), verb, tag)


def _plan_of(seed: int) -> Plan:
    chance = Random(f"plan {seed}")  # noqa: S311  repeatable on purpose
    large = chance.random() < LARGE
    author = Author(Random(f"programs {seed}"), large=large)  # noqa: S311  repeatable on purpose
    programs = author.programs(chance.randint(1, MOST_PROGRAMS))
    workers, clients = chance.randint(1, MOST_WORKERS), chance.randint(1, MOST_CLIENTS)
    names = [*(f"worker{n}" for n in range(workers)), *(f"client{n}" for n in range(clients))]
    skewed = chance.random() < 0.25
    return Plan(
        seed,
        programs,
        _acts(chance, programs, clients),
        _faults(chance, names, workers),
        Noise(
            late=chance.choice((0.0, 0.0, 0.1, 0.3)),
            twice=chance.choice((0.0, 0.0, 0.02, 0.2)),
            hurry=chance.choice((0.0, 0.0, 0.01, 0.1)),
            delay=chance.choice((0.001, 0.05, 2.0)),
            raises=chance.choice((0.0, 0.0, 0.0, 0.0, 0.03)),
        ),
        workers,
        clients,
        max_concurrent=chance.choice((1, 2, 3, 100, 100)),
        cache=chance.choice((0, 1, 1_000, 1_000)),
        always_replay=chance.random() < 0.2,
        retention=chance.choice((None, None, None, 300.0)),
        ahead=[round(chance.uniform(-20, 20), 3) if skewed else 0.0 for _ in names],
    )


def _acts(chance: Random, programs: list[Program], clients: int) -> list[Act]:
    at = 0.0
    acts: list[Act] = []
    starter = chance.randrange(clients)  # one client starts all, one after the other: the model counts on the order
    for program in programs:
        at += chance.random() * START_SECONDS / len(programs)
        acts.append(Act(round(at, 4), starter, "start", program.tag))
    if chance.random() < 0.6:
        for _ in range(chance.randint(1, 5)):
            tag = chance.choice(programs).tag
            moment = chance.random() * chance.choice((START_SECONDS, START_SECONDS, 30.0))
            acts.append(Act(round(moment, 4), chance.randrange(clients), chance.choice(REQUESTS), tag))
    return acts


def _faults(chance: Random, names: list[str], workers: int) -> list[Fault]:
    found: list[Fault] = []
    hardest = chance.choice((0, 2, 5, MOST_FAULTS, MOST_FAULTS))
    for _ in range(chance.randint(0, hardest)):
        name = chance.choice((*names[:workers], *names))
        kinds = WRITE_FAULTS if chance.random() < 0.85 else READ_FAULTS
        kind: FaultKind = chance.choice(kinds)
        if name.startswith("client") and kind in ONLY_WORKERS:
            kind = "crash before"
        most = MOST_CLIENT_FAULT_NUMBER if name.startswith("client") else MOST_FAULT_NUMBER
        number = 1 + int(chance.random() ** 1.5 * most)
        found.append(Fault(name, number, kind, _amount(chance, kind)))
    return found


def _amount(chance: Random, kind: FaultKind) -> float:
    if kind == "crash within":
        return float(1 + int(chance.random() ** 2 * MOST_WITHIN))
    return round(chance.choice((0.02, 1.0, 30.0)) * chance.random(), 4)
