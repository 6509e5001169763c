"""Many runs: lanes that each take the next number, between the banner and the summary.

Memory does not grow with the number of runs, except for what `Tally` keeps.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import click

from perdure.cli.progress import progress
from perdure.cli.summary import Tally, banner_text, summary_object, summary_text
from perdure.errors import InvocationCancelled, StoreError

Run = Callable[[int], Awaitable[Any]]
"""Does the run of a number, counted from 1; returns its result or raises what it raised."""


async def run_batch(run: Run, *, count: int, concurrency: int, timeout: float | None, as_json: bool = False) -> Tally:
    """Do `count` runs, at most `concurrency` at a time, and print a summary. `timeout` is only shown.

    If it is cancelled, it prints the summary so far. A `StoreError` ends it: no run could go on.
    """
    if not as_json:
        click.echo(banner_text(count, timeout))
    tally = Tally(count)
    began = time.perf_counter()
    try:
        async with progress(tally):
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
