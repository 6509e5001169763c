"""What the operations on schedules take and give."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from perdure.core.retry import whole_number
from perdure.core.schedule import Overlap, Record
from perdure.errors import InvalidOption
from perdure.operations.describe import input_of
from perdure.operations.ticks import ticks_after

NEXT_LIMIT = 100
"""Next times of a schedule that are computed at once."""
SCHEDULES_PAGE = 200
"""Schedules that are listed at a time."""


class ScheduleInfo(Struct, frozen=True, kw_only=True):
    """A schedule. Times are in UTC, durations in seconds.

    `next_at` is its next tick: None while it is paused. `runs` are the ids of the last that were started, the newest
    one last; `running` are those of them that have not ended, which only `describe` tells, as it does `served`: whether
    a worker serves the workflow, None where that cannot be known. `waiting` are the ids that follow. `missed` ticks
    were too late to be caught up with, `skipped` ones came while an earlier run went on, `refused` ones could not be
    started, as the log says.
    """

    name: str
    handler: str
    input: Mapping[str, Any]
    cron: str | None
    every: int | None
    timezone: str
    overlap: Overlap
    catch_up: float
    jitter: float
    key: str | None
    timeout: float | None
    tags: Mapping[str, str]
    created_at: datetime
    changed_at: datetime
    paused_at: datetime | None
    note: str
    next_at: datetime | None
    runs: tuple[str, ...]
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    started: int
    skipped: int
    missed: int
    refused: int
    served: bool | None = None
    interface: str | None = None


class PauseSchedule(Struct, frozen=True, tag="pause"):
    """Start nothing until it is resumed. `note` says why."""

    note: str = ""


class ResumeSchedule(Struct, frozen=True, tag="resume"):
    """Go on from now: what came while it was paused is passed over."""


class Trigger(Struct, frozen=True, tag="trigger"):
    """Start a run now, by the overlap rule. With an `id` it is one run, however often it is asked for."""

    id: str | None = None


class Backfill(Struct, frozen=True, tag="backfill"):
    """Run the ticks from `start` to `end`, both included, one after another. One that has run is not run again."""

    start: datetime
    end: datetime


Change = PauseSchedule | ResumeSchedule | Trigger | Backfill
"""What a schedule can be told."""


def info_of(
    name: str, record: Record, now: float, *, running: tuple[str, ...] = (), served: bool | None = None
) -> ScheduleInfo:
    """Return what is told of a schedule."""
    plan, timing = record.plan, record.plan.timing
    coming = [] if record.paused_at is not None else next_instants(record, now, 1)
    return ScheduleInfo(
        name=name,
        handler=plan.handler,
        input=input_of(plan.input),
        cron=timing.cron,
        every=timing.every,
        timezone=timing.timezone,
        overlap=plan.overlap,
        catch_up=plan.catch_up,
        jitter=plan.jitter,
        key=plan.key,
        timeout=plan.timeout,
        tags=dict(plan.tags),
        created_at=time_of(record.created_at),
        changed_at=time_of(record.changed_at),
        paused_at=None if record.paused_at is None else time_of(record.paused_at),
        note=record.note,
        next_at=coming[0] if coming else None,
        runs=record.runs,
        running=running,
        waiting=tuple(each.id for each in (*record.starting, *record.waiting)),
        started=record.started,
        skipped=record.skipped,
        missed=record.missed,
        refused=record.refused,
        served=served,
        interface=plan.interface.hex() or None,
    )


def time_of(at: float) -> datetime:
    """Return a time in seconds since the Unix epoch as a datetime in UTC."""
    return datetime.fromtimestamp(at, UTC)


def next_instants(record: Record, now: float, count: int) -> list[datetime]:
    """Return the next times of a schedule, as if it were not paused."""
    found: list[datetime] = []
    for instant in ticks_after(record.plan.timing, max(record.cursor, int(now))):
        found.append(time_of(instant))
        if len(found) == count:
            break
    return found


def check_count(count: int) -> int:
    """Return how many next times are asked for, or raise `InvalidOption`."""
    if whole_number("count", count) > NEXT_LIMIT:
        raise InvalidOption(f"count={count}: give at most {NEXT_LIMIT:,}")
    return count
