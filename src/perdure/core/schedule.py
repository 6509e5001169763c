"""Schedules: what is started at which times, and what becomes of a run while an earlier one has not ended.

It only decides. When a schedule ticks follows from its timing (`operations.ticks`); what is decided is carried out, and
kept, by `operations.scheduling`.

An instant is in whole seconds since the Unix epoch, so a tick has one name however often its time is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.core.ids import check_name
from perdure.core.tags import Tags
from perdure.errors import BadId

NAME_LENGTH_LIMIT = 160
"""Characters in the name of a schedule: the ids of its invocations begin with it."""
CATCH_UP_SECONDS = 600.0
"""How late a tick may be started, unless its schedule says otherwise: a deployment or a reboot loses none."""
CATCH_UP_LEAST_SECONDS = 10.0
"""The shortest such time: a worker needs some to get to a tick."""
WAITING_LIMIT = 1_000
"""Runs of one schedule that wait for an earlier one to end."""
RUNS_KEPT = 10
"""The last runs of a schedule that it remembers."""
RESERVED_NAMES = frozenset({".", ".."})
"""Names that no schedule may have: in the path of a URL they mean something else."""

Overlap = Literal["skip", "queue", "cancel", "allow"]
"""What becomes of a tick while an earlier run has not ended: it is skipped, it waits, the earlier one is cancelled, or
both run."""

Cause = Literal["tick", "trigger", "backfill"]
"""What a run was started for."""


# --- what is kept -----------------------------------------------------------------------------------------------------
class Timing(Struct, frozen=True, omit_defaults=True):
    """When a schedule ticks: by a cron expression in a time zone, or every so many seconds of UTC; one of the two."""

    cron: str | None = None
    every: int | None = None
    timezone: str = "UTC"


class Plan(Struct, frozen=True, omit_defaults=True):
    """What a schedule starts, when, and how. Times are in seconds; `handler` to `interface` are those of each start."""

    timing: Timing
    handler: str
    input: bytes
    digest: bytes
    key: str | None = None
    timeout: float | None = None
    tags: Tags = ()
    interface: bytes = b""
    overlap: Overlap = "skip"
    catch_up: float = CATCH_UP_SECONDS
    jitter: float = 0.0


class Run(Struct, frozen=True, array_like=True):
    """An invocation that is to be started: its id, and the instant that it is for."""

    id: str
    instant: int
    cause: Cause = "tick"


class Record(Struct, frozen=True, omit_defaults=True):
    """A schedule and how far it has got. Times are in seconds since the Unix epoch.

    All ticks up to `cursor` are decided. `starting` are the runs that must be started before anything else is decided,
    since `starting_since`; `waiting` are those that follow when the earlier ones have ended, the next one first. `runs`
    are the last that were started, the newest one last.
    """

    plan: Plan
    created_at: float
    changed_at: float
    cursor: int
    paused_at: float | None = None
    note: str = ""
    starting: tuple[Run, ...] = ()
    starting_since: float = 0.0
    waiting: tuple[Run, ...] = ()
    runs: tuple[str, ...] = ()
    started: int = 0
    skipped: int = 0
    missed: int = 0
    refused: int = 0


encode_record = msgspec.json.Encoder().encode
decode_record = msgspec.json.Decoder(Record).decode


def is_same_plan(one: Plan, other: Plan) -> bool:
    """Report whether two plans do the same. Equal inputs may be encoded in different ways; their digests are equal."""
    if not one.digest:
        return one == other
    return replace(one, input=b"") == replace(other, input=b"")


# --- names ------------------------------------------------------------------------------------------------------------
def check_schedule_name(name: str) -> str:
    """Return the name of a schedule, or raise `BadId`."""
    check_name("a schedule's name", name)
    if name in RESERVED_NAMES:
        raise BadId(f"a schedule cannot have the name {name!r}: in a URL it means something else")
    if len(name) > NAME_LENGTH_LIMIT:
        raise BadId(f"a schedule's name has {len(name)} characters where the limit is {NAME_LENGTH_LIMIT}")
    return name


def tick_id(name: str, instant: int) -> str:
    """Return the id of the invocation of a tick. It stands in the path of a URL as it is."""
    return f"{name}@{datetime.fromtimestamp(instant, UTC):%Y-%m-%dT%H:%M:%SZ}"


def trigger_id(name: str, now: float, random: bytes) -> str:
    """Return an id for a run that is triggered now: the same form, and a random end."""
    return f"{tick_id(name, int(now))}-{random.hex()}"


def delay_of(name: str, instant: int, jitter: float) -> float:
    """Return by how many seconds a tick is late on purpose: at random, and the same whenever it is computed."""
    if not jitter:
        return 0.0
    found = hashlib.blake2b(f"{name}\n{instant}".encode(), digest_size=6, person=b"perdure-jitter").digest()
    return jitter * int.from_bytes(found, "big") / 2**48


# --- decisions --------------------------------------------------------------------------------------------------------
def arrange(record: Record, runs: Iterable[Run], now: float, *, busy: bool) -> tuple[Record, list[Run]]:
    """Return the record with these runs placed by its overlap rule, and the runs that are skipped.

    `busy`: a run of it has not ended. What waits, and may begin, goes first.
    """
    overlap = record.plan.overlap
    starting, waiting = [*record.starting], [*record.waiting]
    skipped: list[Run] = []
    busy = busy or bool(starting)
    if may_begin(record):
        if overlap == "allow":
            starting, waiting = starting + waiting, []
        elif not busy:
            starting.append(waiting.pop(0))
            busy = True
    for run in runs:
        if overlap == "allow" or not (busy or waiting):
            starting.append(run)
            busy = True
        elif overlap == "cancel":
            skipped += [each for each in waiting if each.cause != "backfill"]
            waiting = [run, *(each for each in waiting if each.cause == "backfill")]
        elif overlap == "queue" and len(waiting) < WAITING_LIMIT:
            waiting.append(run)
        else:
            skipped.append(run)
    since = record.starting_since if record.starting else now
    placed = replace(
        record,
        starting=tuple(starting),
        starting_since=since if starting else 0.0,
        waiting=tuple(waiting),
        skipped=record.skipped + len(skipped),
    )
    return placed, skipped


def may_begin(record: Record) -> bool:
    """Report whether a run waits that begins as soon as none goes on: while paused, only one that was triggered."""
    return bool(record.waiting) and (record.paused_at is None or record.waiting[0].cause == "trigger")


def must_cancel(record: Record) -> bool:
    """Report whether what runs is to be cancelled, since a newer run waits for its end."""
    return record.plan.overlap == "cancel" and may_begin(record) and record.waiting[0].cause != "backfill"


def carried_out(record: Record, refused: Sequence[str]) -> Record:
    """Return the record after its runs were started, but for those that were refused."""
    started = tuple(each.id for each in record.starting if each.id not in refused)
    return replace(
        record,
        starting=(),
        starting_since=0.0,
        runs=(*record.runs, *started)[-RUNS_KEPT:],
        started=record.started + len(started),
        refused=record.refused + len(refused),
    )


def carried_over(name: str, record: Record, instants: Sequence[int], missed: int, now: float) -> Record:
    """Return the record as of now: ticks that came before, and that no worker has got to yet, wait."""
    room = max(0, WAITING_LIMIT - len(record.waiting))
    over = tuple(Run(tick_id(name, each), each) for each in instants[:room])
    return replace(
        record,
        cursor=max(record.cursor, int(now)),
        waiting=record.waiting + over,
        missed=record.missed + missed + len(instants) - len(over),
    )
