"""How far a batch is: a bar on a terminal, now and then a line elsewhere; and, beside it, the warnings of its worker.

The worker warns of each attempt of a step that fails. A batch may have thousands of these, so only the last is shown,
with their number: below the bar, or as a line that is written at most once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Generator

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from perdure.cli.summary import Tally
from perdure.cli.terminal import say, stderr

BAR_SECONDS = 0.1
"""How often the bar moves."""
LINE_SECONDS = 5.0
"""How often a line says how far it is, where stderr is no terminal."""
WARNING_SECONDS = 1.0
"""How often a warning is written, where stderr is no terminal."""

WORKER_LOG = "perdure.worker"


@contextlib.asynccontextmanager
async def progress(tally: Tally) -> AsyncGenerator[None]:
    """Show how far a batch is while the block runs."""
    with Warnings().gathered() as warnings:
        show = _move_bar(tally, warnings) if stderr.is_terminal else _write_lines(tally, warnings)
        following = asyncio.create_task(show)
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait([following])


class Warnings(logging.Handler):
    """Takes the worker's warnings from the log: counts them, and keeps the last."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        if self.takes(record):
            self.count += 1
            self.last = " ".join(record.getMessage().split())

    def takes(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is a plain warning. Errors and tracebacks are not: they are written out."""
        return record.name == WORKER_LOG and record.levelno == logging.WARNING and not record.exc_info

    @contextlib.contextmanager
    def gathered(self) -> Generator[Warnings]:
        """Take the warnings, and keep them from the handlers of the root logger, while the block runs."""

        def passes(record: logging.LogRecord) -> bool:
            return not self.takes(record)

        logger, others = logging.getLogger(WORKER_LOG), [*logging.getLogger().handlers]
        logger.addHandler(self)
        for each in others:
            each.addFilter(passes)
        try:
            yield self
        finally:
            logger.removeHandler(self)
            for each in others:
                each.removeFilter(passes)


async def _move_bar(tally: Tally, warnings: Warnings) -> None:
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failures]}", style="red"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=stderr,
    )
    task = bar.add_task("", total=tally.total, failures="")
    with Live(bar, console=stderr, transient=True, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(BAR_SECONDS)
            bar.update(task, completed=tally.ended, failures=_failures(tally))
            shown = [Text(_warned(warnings.count, warnings.last), style="yellow", no_wrap=True, overflow="ellipsis")]
            live.update(Group(bar, *(shown if warnings.count else ())), refresh=True)


async def _write_lines(tally: Tally, warnings: Warnings) -> None:
    began = time.perf_counter()
    next_line, next_warning, said = began + LINE_SECONDS, began, 0
    try:
        while True:
            await asyncio.sleep(BAR_SECONDS)
            now = time.perf_counter()
            if warnings.count > said and now >= next_warning:
                say(_warned(warnings.count - said, warnings.last))
                said, next_warning = warnings.count, now + WARNING_SECONDS
            if now >= next_line:
                rate, failures = tally.ended / (now - began), _failures(tally)
                text = f"{tally.ended:,} of {tally.total:,} ended, {rate:,.0f} per second"
                say(f"{text}, {failures}" if failures else text)
                next_line = now + LINE_SECONDS
    finally:
        if warnings.count > said:
            say(_warned(warnings.count - said, warnings.last))


def _warned(count: int, last: str) -> str:
    return f"warning: {last}" if count == 1 else f"{count:,} warnings, the last: {last}"


def _failures(tally: Tally) -> str:
    return f"{tally.failed:,} failed" if tally.failed else ""
