"""`perdure bulk` and `perdure jobs`: a verb for all invocations that pass filters, as a durable job.

The command shows what matches, asks, begins the job, and shows how far it is. Workers carry it out: it goes on without
the command.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from perdure.bulk import BulkJob
from perdure.cli.look import opened_to_look
from perdure.cli.operate import WAIT_SECONDS, is_alone, opened_to_change
from perdure.cli.options import filter_options, json_option, shown_url, url_option
from perdure.cli.process import in_loop
from perdure.cli.progress import LINE_SECONDS
from perdure.cli.reporting import FAILURE, reporting
from perdure.cli.tables import FIELD_LIMIT, filters_text, print_jobs, print_json, shown
from perdure.cli.terminal import say, stderr
from perdure.operations.bulk import BULK_VERBS, BulkPreview, BulkProgress, BulkVerb
from perdure.operations.listing import Filters

LOOK_SECONDS = 0.5
"""How often the command looks how far a job is."""
REFUSALS_LIMIT = 10
"""Refusals that are printed; a job keeps some more."""


@click.command()
@click.argument("verb", type=click.Choice(BULK_VERBS))
@filter_options
@click.option("--force", is_flag=True, help="With cancel: skip cleanup.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option("Print the job as one JSON object.")
@url_option
@reporting
def bulk(*, verb: BulkVerb, force: bool, yes: bool, as_json: bool, url: str | None, **filters: Any) -> int:
    """Apply a verb to all invocations that pass the filters.

    It shows how many match, asks, and shows how far it is. The job is durable, and goes on if this command ends:
    `perdure jobs` lists the jobs. TIME is as in `perdure list`.
    """
    preview: BulkPreview | None = None

    async def look() -> int:
        nonlocal preview
        async with opened_to_look(url) as client:
            preview = await client.bulk_preview(verb, force=force, **cast("Filters", filters))
        return 0

    code = in_loop(look())  # its own loop: nobody waits for a connection while somebody thinks
    if code or preview is None:
        return code
    if not preview.count and preview.is_exact:
        say("No invocation matches: there is nothing to do.")
        return 0
    count = f"{preview.count:,}" if preview.is_exact else f"More than {preview.count:,}"
    say(f"{count} {'invocation matches' if preview.count == 1 else 'invocations match'}.")
    if not yes:
        click.confirm(f"{verb} all of them?".capitalize(), abort=True, err=True)
    return in_loop(_begin(preview, as_json, url))


async def _begin(preview: BulkPreview, as_json: bool, url: str | None) -> int:
    async with opened_to_change(url) as client:
        job = await client.bulk(preview)
        if is_alone(url):  # this process has the store, and is no worker
            found, why = await job.progress(), "no worker serves this store"
        else:
            found = await _follow(job)
            why = f"within {WAIT_SECONDS:g} s no worker has begun it"
    if as_json:
        print_json(found)
    elif found.ended_at is None:
        next_worker = f"The next worker carries it out: perdure worker APP.py --url {shown_url(url)}"
        click.echo(f"bulk job {job.id}: accepted, not yet begun: {why}. {next_worker}")
    else:
        _print_state(found)
    return FAILURE if found.refused or found.errors else 0


async def _follow(job: BulkJob) -> BulkProgress:
    """Show how far a job is until it has ended, or no worker begins it."""
    say(f"bulk job {job.id}: it goes on if this command ends")
    began = last = time.monotonic()
    bar = Progress(
        *(BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[refused]}", style="red"), TimeElapsedColumn()),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=job.preview.count, refused="")
        while True:
            found, now = await job.progress(), time.monotonic()
            if found.ended_at is not None or (not found.matched and now > began + WAIT_SECONDS):
                return found
            left_out = found.refused + found.errors
            bar.update(task, completed=found.matched, refused=f"{left_out:,} refused" if left_out else "")
            if not stderr.is_terminal and now > last + LINE_SECONDS:
                say(f"{found.matched:,} of {found.expected:,}: {_counts(found)}")
                last = now
            await asyncio.sleep(LOOK_SECONDS)


def _print_state(job: BulkProgress) -> None:
    expected = f"{job.expected:,}" if job.is_exact else f"more than {job.expected:,}"
    click.echo(f"{job.verb} is {job.state}: {job.matched:,} of {expected} invocations, {_counts(job)}")
    for each in job.refusals[:REFUSALS_LIMIT]:
        say(f"  {each.invocation_id}: {shown(each.reason, FIELD_LIMIT)}")
    if (more := job.refused + job.errors - REFUSALS_LIMIT) > 0:
        say(f"  and {more:,} more")


def _counts(job: BulkProgress) -> str:
    counts = {"applied": job.applied, "accepted": job.accepted, "refused": job.refused, "errors": job.errors}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name == "applied")


@click.command()
@click.argument("id", required=False)
@click.option("--stop", is_flag=True, help="Stop the job: it begins nothing new.")
@json_option("Print one JSON object per line.")
@url_option
@reporting
def jobs(id: str | None, stop: bool, as_json: bool, url: str | None) -> int:
    """List bulk jobs, newest first, or show one of them, with the reasons of the first refusals."""
    if stop and id is None:
        raise click.UsageError("--stop needs the id of a job")
    return in_loop(_jobs(url, as_json) if id is None else _job(id, stop, url, as_json))


async def _jobs(url: str | None, as_json: bool) -> int:
    async with opened_to_look(url) as client:
        found = [each async for each in client.bulk_jobs()]
    if as_json:
        for each in found:
            print_json(each)
    elif found:
        print_jobs(found)
    return 0


async def _job(id: str, stop: bool, url: str | None, as_json: bool) -> int:
    opened = opened_to_change(url) if stop else opened_to_look(url)
    async with opened as client:
        job = await client.bulk_job(id)
        found = await (job.stop() if stop else job.progress())
    if as_json:
        print_json(found)
    else:
        click.echo(f"filters: {filters_text(found.filters)}")
        _print_state(found)
    return 0


COMMANDS = (bulk, jobs)
