"""Many runs: lanes that each take the next number, the progress meanwhile, the banner and the summary around them.

Memory does not grow with the number of runs but for what `Tally` keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from perdure.cli.summary import Tally, banner_text, summary_object, summary_text
from perdure.cli.terminal import stderr
from perdure.errors import InvocationCancelled, StoreError

BAR_SECONDS = 0.1
"""How often the bar moves."""
LINE_SECONDS = 5.0
"""How often a line says how far it is, where stderr is no terminal."""

Run = Callable[[int], Awaitable[Any]]
"""Does the run of a number, counted from 1; returns its result or raises what it raised."""


async def run_batch(run: Run, *, count: int, concurrency: int, timeout: float | None, as_json: bool = False) -> Tally:
    """Do `count` runs, at most `concurrency` at a time, and print how they went. `timeout` is only shown.

    Ended early by a cancellation, it prints what there is. A `StoreError` ends it: no run could go on.
    """
    if not as_json:
        click.echo(banner_text(count, timeout))
    tally = Tally(count)
    began = time.perf_counter()
    try:
        async with _progress(tally, began):
            await run_lanes(run, tally, min(count, concurrency))
    finally:
        tally.seconds = time.perf_counter() - began
        click.echo(json.dumps(summary_object(tally), ensure_ascii=False) if as_json else summary_text(tally))
    return tally


async def run_lanes(run: Run, tally: Tally, lanes: int) -> None:
    """Do all runs of a tally in this many lanes."""
    numbers = iter(range(1, tally.total + 1))
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(lanes):
                group.create_task(_lane(run, numbers, tally))
    except* StoreError as errors:
        raise errors.exceptions[0] from None


async def _lane(run: Run, numbers: Iterator[int], tally: Tally) -> None:
    for number in numbers:
        began = time.perf_counter()
        try:
            value = await run(number)
        except StoreError:
            raise
        except InvocationCancelled:
            tally.cancel()
        except Exception as error:  # noqa: BLE001  it is this run's outcome
            tally.fail(error)
        else:
            tally.complete(value, time.perf_counter() - began)


# --- progress ---------------------------------------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def _progress(tally: Tally, began: float) -> AsyncGenerator[None]:
    following = asyncio.create_task(_move_bar(tally) if stderr.is_terminal else _write_lines(tally, began))
    try:
        yield
    finally:
        following.cancel()
        await asyncio.wait([following])


async def _move_bar(tally: Tally) -> None:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failures]}", style="red"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=stderr, transient=True) as progress:
        task = progress.add_task("", total=tally.total, failures="")
        while True:
            await asyncio.sleep(BAR_SECONDS)
            progress.update(task, completed=tally.ended, failures=_failures(tally))


async def _write_lines(tally: Tally, began: float) -> None:
    while True:
        await asyncio.sleep(LINE_SECONDS)
        rate = tally.ended / (time.perf_counter() - began)
        failures = _failures(tally)
        text = f"{tally.ended:,} of {tally.total:,} ended, {rate:,.0f} per second"
        click.echo(f"{text}, {failures}" if failures else text, err=True)


def _failures(tally: Tally) -> str:
    return f"{tally.failed:,} failed" if tally.failed else ""
