"""The verbs that only read: `list`, `show`, `stream` and others. Also of a file that another process serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, TypeVar, cast

import click

from perdure.cli.options import filter_options, index_file, json_option, url_option
from perdure.cli.process import in_loop
from perdure.cli.reporting import reporting
from perdure.cli.tables import (
    ROWS_LIMIT,
    indexed,
    print_awakeables,
    print_counts,
    print_description,
    print_invocations,
    print_json,
    print_steps,
)
from perdure.cli.values import to_text
from perdure.client import Client
from perdure.connect import connect
from perdure.operations.describe import AwakeableInfo, Invocation
from perdure.operations.listing import AwakeableFilters, Filters

T = TypeVar("T", Invocation, AwakeableInfo)

LIST_LIMIT = 50
"""Default number of invocations in the table of `list`."""


def opened_to_look(url: str | None) -> Client:
    """Return a client that changes nothing. It may look at a file that another process serves."""
    return connect(url, read_only=True, index=index_file(url))


def _printing(
    print_rows: Callable[[Sequence[T]], None], as_object: Callable[[T], object], *, quiet: bool, as_json: bool
) -> Callable[[Sequence[T]], None]:
    """Return what prints a page of a list: as a table, as ids with --quiet, or as objects with --json."""
    if quiet and as_json:
        raise click.UsageError("--quiet and --json exclude each other")

    def print_page(found: Sequence[T]) -> None:
        if quiet or as_json:
            for each in found:
                print_json(as_object(each)) if as_json else click.echo(each.id)
        elif found:
            print_rows(found)

    return print_page


@click.command("list")
@filter_options
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"How many at most.  [default: {LIST_LIMIT} in a table, else all]",
)
@click.option("--all", "everything", is_flag=True, help="All of them, also in a table.")
@click.option("--cursor", help="Continue an earlier list, with the cursor that it printed.")
@click.option("--quiet", "-q", is_flag=True, help="Print only ids, one per line.")
@json_option("Print one JSON object per line.")
@url_option
@reporting
def list_(
    *,
    limit: int | None,
    everything: bool,
    cursor: str | None,
    quiet: bool,
    as_json: bool,
    url: str | None,
    **filters: Any,
) -> int:
    """List invocations, newest first.

    TIME is 2026-11-20, 2026-11-20T12:00:00Z, or how long ago: 90s, 15m, 2h, 7d, 1w.
    """
    if limit is not None and everything:
        raise click.UsageError("--limit and --all exclude each other")
    print_page = _printing(print_invocations, indexed, quiet=quiet, as_json=as_json)
    if limit is None and not (everything or quiet or as_json):
        limit = LIST_LIMIT

    return in_loop(_list(url, limit, cursor, cast("Filters", filters), print_page))


async def _list(
    url: str | None,
    limit: int | None,
    cursor: str | None,
    filters: Filters,
    print_page: Callable[[Sequence[Invocation]], None],
) -> int:
    left = limit
    async with opened_to_look(url) as client:
        while True:
            page = await client.page(limit=min(ROWS_LIMIT, left or ROWS_LIMIT), cursor=cursor, **filters)
            print_page(page.invocations)
            cursor = page.next
            left = None if left is None else left - len(page.invocations)
            if cursor is None:
                return 0
            if left == 0:
                times = "".join(
                    f" --{name.replace('_', '-')} {at.isoformat()}"  # the same ones: a cursor is of these filters
                    for name, at in filters.items()
                    if isinstance(at, datetime)
                )
                click.echo(f"There are more: --cursor {cursor}{times} goes on, --all lists all.", err=True)
                return 0


@click.command()
@click.option("--handler", metavar="NAME", help="Only those of this workflow.")
@click.option("--assignee", metavar="NAME", help="Only those that name this assignee.")
@click.option("--all", "everything", is_flag=True, help="Those that were answered or have expired, too.")
@click.option("--quiet", "-q", is_flag=True, help="Print only ids, one per line.")
@json_option("Print one JSON object per line.")
@url_option
@reporting
def awakeables(
    *, handler: str | None, assignee: str | None, everything: bool, quiet: bool, as_json: bool, url: str | None
) -> int:
    """List what waits for an answer, oldest first.

    Answer one with `perdure resolve ID VALUE` or `perdure reject ID REASON`.
    """
    print_some = _printing(print_awakeables, lambda each: each, quiet=quiet, as_json=as_json)
    filters = AwakeableFilters(open=None if everything else True, handler=handler, assignee=assignee)
    return in_loop(_awakeables(url, filters, print_some))


async def _awakeables(
    url: str | None, filters: AwakeableFilters, print_some: Callable[[Sequence[AwakeableInfo]], None]
) -> int:
    async with opened_to_look(url) as client:
        some: list[AwakeableInfo] = []
        async for each in client.awakeables(**filters):
            some.append(each)
            if len(some) == ROWS_LIMIT:
                print_some(some)
                some = []
        print_some(some)
    return 0


@click.command()
@click.argument("id")
@json_option("Print one JSON object: values whole, and the journal.")
@url_option
@reporting
def show(id: str, as_json: bool, url: str | None) -> int:
    """Show one invocation: status, what it waits for, times, input, state, awakeables, and outcome."""
    return in_loop(_describe(url, id, print_json if as_json else print_description))


@click.command()
@click.argument("id")
@json_option("Print one JSON object per command and line, values whole.")
@url_option
@reporting
def journal(id: str, as_json: bool, url: str | None) -> int:
    """Show the steps, timers, children, sends and awakeables of one invocation, and their outcomes."""

    def print_journal(invocation: Invocation) -> None:
        steps = invocation.journal
        if as_json:
            for step in steps:
                print_json(step)
        else:
            for first in range(0, len(steps), ROWS_LIMIT):
                print_steps(steps[first : first + ROWS_LIMIT])

    return in_loop(_describe(url, id, print_journal))


async def _describe(url: str | None, id: str, show: Callable[[Invocation], None]) -> int:
    async with opened_to_look(url) as client:
        show(await client.handle(id).describe())
    return 0


@click.command()
@click.argument("id")
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Print what comes, too, until the invocation has ended.")
@click.option("--from", "start", type=click.IntRange(min=0), default=0, help="The number of the first item.")
@json_option("Print one JSON object per line: value, offset, step and attempt.")
@url_option
@reporting
def stream(id: str, name: str, follow: bool, start: int, as_json: bool, url: str | None) -> int:
    """Print the items of a stream of an invocation, one per line.

    What an earlier attempt of a step wrote is printed too: its number is in the output of --json.
    """
    return in_loop(_stream(url, id, name, start, follow, as_json))


async def _stream(url: str | None, id: str, name: str, start: int, follow: bool, as_json: bool) -> int:
    async with (
        opened_to_look(url) as client,
        aclosing(client.handle(id).stream(name, start=start, follow=follow)) as items,
    ):
        async for item in items:
            print_json(item) if as_json else click.echo(to_text(item.value))
    return 0


@click.command()
@json_option("Print one JSON object.")
@url_option
@reporting
def stats(as_json: bool, url: str | None) -> int:
    """Count invocations, by status and by workflow."""
    return in_loop(_stats(url, as_json))


async def _stats(url: str | None, as_json: bool) -> int:
    async with opened_to_look(url) as client:
        counted = await client.stats()
    if as_json:
        print_json(counted)
        return 0
    for title, counts in (("status", counted.by_status), ("handler", counted.by_handler)):
        print_counts(title, counts)
        click.echo()
    click.echo(f"{counted.total:,} in all")
    if not counted.is_current:
        missing = f", and at least {counted.behind:,} changes are missing" if counted.behind else ""
        click.echo(f"warning: the store cannot be reached: these are the last known numbers{missing}", err=True)
    return 0


COMMANDS = (list_, awakeables, show, journal, stream, stats)
