"""`perdure schedule`: makes, changes and shows schedules. Only the process that serves a file can change it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, get_args

import click

from perdure.cli.arguments import Arguments
from perdure.cli.look import opened_to_look
from perdure.cli.operate import opened_to_change
from perdure.cli.options import duration_of, json_option, moment, tag_option, url_option
from perdure.cli.process import in_loop
from perdure.cli.reporting import reporting
from perdure.cli.tables import print_json, print_schedule, print_schedules, time_text
from perdure.cli.target import load
from perdure.client import Client
from perdure.core.schedule import CATCH_UP_SECONDS, Overlap
from perdure.operations.schedules import NEXT_LIMIT
from perdure.schedules import Schedule, ScheduleHandle

NEXT_SHOWN = 5
"""Default number of times that `next` prints."""


def _duration(_: click.Context, parameter: click.Parameter, text: str | None) -> timedelta | None:
    if text is None:
        return None
    try:
        found = duration_of(text if text[-1:].isalpha() else f"{text}s")
    except OverflowError:
        found = None
    if found is None:
        raise click.BadParameter(f"{text!r} is not a duration: give 90, 90s, 15m, 2h, 7d or 1w", param=parameter)
    return found


name_argument = click.argument("name")


@click.group()
def schedule() -> None:
    """Start workflows at certain times."""


@schedule.command()
@name_argument
@click.argument("target")
@click.argument("arguments", metavar="[ARG]...", nargs=-1)
@click.option("--cron", metavar="TEXT", help="When: five fields, as in '30 3 * * MON-FRI'; six have seconds in front.")
@click.option("--every", callback=_duration, metavar="TIME", help="Or how often: 90s, 15m, 2h, 7d, counted in UTC.")
@click.option("--timezone", default="UTC", show_default=True, help="Whose clock --cron means, as in Europe/Berlin.")
@click.option(
    "--overlap",
    type=click.Choice(get_args(Overlap)),
    default="skip",
    show_default=True,
    help="What becomes of a tick while an earlier run has not ended.",
)
@click.option(
    "--catch-up",
    callback=_duration,
    metavar="TIME",
    help=f"How late a tick may be started.  [default: {CATCH_UP_SECONDS / 60:g}m]",
)
@click.option("--jitter", callback=_duration, metavar="TIME", help="Start each up to so much later, at random.")
@click.option("--key", help="Runs of one key go one at a time, in order, and share state.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Limit of each run.")
@tag_option("A tag of the runs, to find them by; repeat it for more.")
@url_option
@reporting
def add(
    *,
    name: str,
    target: str,
    arguments: tuple[str, ...],
    key: str | None,
    timeout: float | None,
    tags: dict[str, str] | None,
    url: str | None,
    **options: Any,
) -> int:
    """Make the schedule NAME, or change it from now on. The same again changes nothing.

    TARGET and ARG are those of `perdure run`: app.py:workflow, and its arguments as JSON.
    """
    workflow = load(target).workflow
    args, kwargs = Arguments(workflow, arguments).of_run(1)
    call = workflow.using(key=key, timeout=timeout, tags=tags).bind(*args, **kwargs)
    given = Schedule(call, **{option: value for option, value in options.items() if value is not None})

    async def put() -> int:
        async with opened_to_change(url, new=True) as client:
            handle = client.schedule(name)
            changed = await handle.put(given)
            (first,) = await handle.next()
        click.echo(f"{name}: {'is set' if changed else 'unchanged'}; next at {time_text(first)}")
        return 0

    return in_loop(put())


@schedule.command("list")
@json_option("Print one JSON object per line.")
@url_option
@reporting
def list_(as_json: bool, url: str | None) -> int:
    """List schedules, by name."""

    async def listed(client: Client) -> None:
        found = [each async for each in client.schedules()]
        if as_json:
            for each in found:
                print_json(each)
        elif found:
            print_schedules(found)

    return _look(url, listed)


@schedule.command()
@name_argument
@json_option("Print one JSON object.")
@url_option
@reporting
def show(name: str, as_json: bool, url: str | None) -> int:
    """Show one schedule: what it starts and when, what runs, and what became of its ticks."""

    async def shown(client: Client) -> None:
        found = await client.schedule(name).describe()
        if as_json:
            print_json(found)
        else:
            print_schedule(found)

    return _look(url, shown)


@schedule.command("next")
@name_argument
@click.option("--count", type=click.IntRange(1, NEXT_LIMIT), default=NEXT_SHOWN, show_default=True, help="How many.")
@url_option
@reporting
def next_(name: str, count: int, url: str | None) -> int:
    """Print the next times of a schedule, in UTC, as if it were not paused."""

    async def times(client: Client) -> None:
        for each in await client.schedule(name).next(count):
            click.echo(time_text(each))

    return _look(url, times)


@schedule.command()
@name_argument
@click.argument("note", required=False, default="")
@url_option
@reporting
def pause(name: str, note: str, url: str | None) -> int:
    """Start nothing until the schedule is resumed. NOTE says why."""
    return _tell(url, name, lambda handle: handle.pause(note), "paused")


@schedule.command()
@name_argument
@url_option
@reporting
def resume(name: str, url: str | None) -> int:
    """Go on from now; `backfill` runs what came meanwhile."""
    return _tell(url, name, lambda handle: handle.resume(), "resumed")


@schedule.command()
@name_argument
@url_option
@reporting
def trigger(name: str, url: str | None) -> int:
    """Start a run now, by the overlap rule, and print its id."""

    async def triggered(handle: ScheduleHandle[Any]) -> None:
        click.echo((await handle.trigger()).id)

    return _tell(url, name, triggered)


@schedule.command()
@name_argument
@click.argument("start", callback=moment)
@click.argument("end", callback=moment)
@url_option
@reporting
def backfill(name: str, start: datetime, end: datetime, url: str | None) -> int:
    """Run the ticks from START to END, both included, one after another, and print their ids.

    A time is 2026-11-20, 2026-11-20T12:00:00Z, or how long ago: 90s, 15m, 2h, 7d, 1w. What has run is not run again.
    """

    async def backfilled(handle: ScheduleHandle[Any]) -> None:
        for each in await handle.backfill(start, end):
            click.echo(each.id)

    return _tell(url, name, backfilled)


@schedule.command()
@name_argument
@url_option
@reporting
def remove(name: str, url: str | None) -> int:
    """Remove a schedule; what it has started goes on."""

    async def removed(handle: ScheduleHandle[Any]) -> None:
        await handle.describe()  # that there is one
        await handle.delete()

    return _tell(url, name, removed, "removed")


def _look(url: str | None, look: Callable[[Client], Awaitable[None]]) -> int:
    async def looked() -> int:
        async with opened_to_look(url) as client:
            await look(client)
        return 0

    return in_loop(looked())


def _tell(
    url: str | None, name: str, tell: Callable[[ScheduleHandle[Any]], Awaitable[object]], became: str | None = None
) -> int:
    async def told() -> int:
        async with opened_to_change(url) as client:
            await tell(client.schedule(name))
        if became is not None:
            click.echo(f"{name}: {became}")
        return 0

    return in_loop(told())
