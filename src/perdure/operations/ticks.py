"""When a schedule ticks: cron expressions in time zones, by the library cronsim, and intervals of UTC.

The rules for daylight saving time are those of Debian's cron, which cronsim has. An expression whose minutes and hours
both are fixed ("30 2 * * *") means the clock on the wall: a time that is skipped comes right after the gap, and a time
that comes twice counts the first time only. Any other ("*/15 * * * *", "30 * * * *", with seconds in front) means the
time that passes: it has no ticks in the hour that is skipped, and ticks in both of the hours that come twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, get_args

from perdure.core.ids import check_name
from perdure.core.retry import DURATION_LIMIT_SECONDS, Duration, seconds
from perdure.core.schedule import CATCH_UP_LEAST_SECONDS, Overlap, Plan, Timing
from perdure.core.tags import check_tags
from perdure.errors import InvalidOption, too_large

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

CRON_LENGTH_LIMIT = 200
"""Characters of a cron expression."""
INPUT_LIMIT_BYTES = 65_536
"""The encoded input of a schedule: every worker reads all schedules each second."""
ZONES_LIMIT = 256
"""Time zones that are remembered."""
MISSED_LIMIT = 1_000
"""Ticks of one downtime that are counted as missed; beyond it, they are passed over."""
DECIDED_LIMIT = 100
"""Ticks of a schedule that are decided together, before other schedules come."""
EXAMPLE = "give five fields, as in '30 3 * * MON-FRI': minute, hour, day of the month, month, day of the week"


def check_plan(plan: Plan) -> Plan:
    """Return a plan that can be kept, or raise `InvalidOption` or `BadId` for what is wrong with it."""
    check_timing(plan.timing)
    check_name("a workflow's name", plan.handler)
    if len(plan.input) > INPUT_LIMIT_BYTES:
        raise too_large("the input of a schedule", len(plan.input), INPUT_LIMIT_BYTES)
    if plan.key is not None:
        check_name("a key", plan.key)
    if plan.timeout is not None:
        seconds("timeout", plan.timeout, positive=True)
    if check_tags(dict(plan.tags)) != plan.tags:
        raise InvalidOption("tags: they are given twice, or not in order")
    check_options(plan.overlap, plan.catch_up, plan.jitter)
    return plan


def check_options(overlap: str, catch_up: Duration, jitter: Duration) -> None:
    """Raise `InvalidOption` for an option of a schedule that is out of its range."""
    if overlap not in get_args(Overlap):
        raise InvalidOption(f"overlap={overlap!r}: it is one of {', '.join(get_args(Overlap))}")
    if (given := seconds("catch_up", catch_up)) < CATCH_UP_LEAST_SECONDS:
        raise InvalidOption(f"catch_up={given:g}: give at least {CATCH_UP_LEAST_SECONDS:g} seconds")
    seconds("jitter", jitter)


def whole_seconds(every: Duration) -> int:
    """Return an interval in seconds, or raise `InvalidOption`."""
    found = seconds("every", every, positive=True)
    if found != int(found):
        raise InvalidOption(f"every={found:g}: give whole seconds, at least 1")
    return int(found)


def check_timing(timing: Timing) -> None:
    """Raise `InvalidOption` for a timing that never comes, or cannot be understood."""
    if (timing.cron is None) == (timing.every is None):
        raise InvalidOption("a schedule has cron=… or every=…: give one of the two")
    if not isinstance(timing.timezone, str) or not isinstance(timing.cron, str | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOption(f"cron={timing.cron!r}, timezone={timing.timezone!r}: give them as str")
    if timing.every is not None:
        if timing.timezone != "UTC":
            raise InvalidOption(f"timezone={timing.timezone!r}: every=… counts in UTC; a time zone is for cron=…")
        if not 1 <= timing.every <= DURATION_LIMIT_SECONDS:
            raise InvalidOption(f"every={timing.every}: give whole seconds, at least 1")
        return
    if next(ticks_after(timing, 0), None) is None:
        raise InvalidOption(f"cron={timing.cron!r}: that never comes")


def ticks_after(timing: Timing, instant: int) -> Iterator[int]:
    """Yield the instants after one, in order, without end where the expression has none."""
    if timing.cron is None:
        every = timing.every or 1
        first = (instant // every + 1) * every
        return iter(range(first, int(datetime.max.replace(tzinfo=UTC).timestamp()), every))
    return _cron_after(timing.cron, zone(timing.timezone), instant)


def _cron_after(cron: str, zone: ZoneInfo, instant: int) -> Iterator[int]:
    from cronsim import CronSim, CronSimError  # noqa: PLC0415  only who has schedules imports it

    if not cron.isascii() or len(cron) > CRON_LENGTH_LIMIT:
        raise InvalidOption(f"cron={cron[:40]!r}: at most {CRON_LENGTH_LIMIT} ASCII characters; {EXAMPLE}")
    try:
        found = CronSim(cron, datetime.fromtimestamp(instant, zone))
    except (CronSimError, ValueError, AssertionError) as error:
        raise InvalidOption(f"cron={cron!r}: {str(error).lower() or 'it cannot be read'}; {EXAMPLE}") from error
    return _growing(found, instant)


def _growing(found: Iterator[datetime], last: int) -> Iterator[int]:
    """Yield the times after `last`, each once: several times that do not exist are one time after the gap."""
    try:
        for each in found:
            instant = int(each.timestamp())
            if instant > last:
                last = instant
                yield instant
    except OverflowError:  # the end of the calendar
        return


@lru_cache(maxsize=ZONES_LIMIT)
def zone(name: str) -> ZoneInfo:
    """Return a time zone by its name in the IANA database, or raise `InvalidOption`."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415  only who has schedules imports it

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError) as error:
        text = f"timezone={str(name)[:60]!r}: this machine knows no time zone of that name; give one such as"
        raise InvalidOption(f"{text} 'Europe/Berlin', or install the package tzdata") from error


def due(timing: Timing, cursor: int, until: int, oldest: float) -> tuple[list[int], int, int]:
    """Return the ticks after `cursor` up to `until`, the cursor after them, and how many came before `oldest`.

    Those before `oldest` are only counted. They are some of the ticks only if there are very many: then the cursor is
    not `until` yet.
    """
    missed = 0
    if cursor < oldest:
        for instant in islice(ticks_after(timing, cursor), MISSED_LIMIT):
            if instant >= oldest or instant > until:
                break
            missed += 1
        cursor = min(until, max(cursor, ceil(oldest) - 1))  # the last instant that is too old
    found: list[int] = []
    for instant in ticks_after(timing, cursor):
        if instant > until:
            break
        if len(found) == DECIDED_LIMIT:
            return found, found[-1], missed
        found.append(instant)
    return found, max(cursor, until), missed
