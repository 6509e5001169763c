"""The progress of a batch: a bar on a terminal, a line every few seconds elsewhere; and the attempts that failed.

The worker logs a warning for each attempt of a step that fails. A batch may have thousands of these, so only their
number and the last are shown: below the bar, or as a line that is written at most once a second.
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

from perdure.cli.summary import Tally, one_line
from perdure.cli.terminal import say, stderr

BAR_SECONDS = 0.1
"""How often the bar moves."""
LINE_SECONDS = 5.0
"""How often a line says how far it is, where stderr is no terminal."""
ATTEMPTS_SECONDS = 1.0
"""How often a line about failed attempts is written, where stderr is no terminal."""

WORKER_LOG = "perdure.worker"


@contextlib.asynccontextmanager
async def progress(tally: Tally) -> AsyncGenerator[None]:
    """Show how far a batch is while the block runs."""
    with FailedAttempts().gathered() as attempts:
        show = _move_bar(tally, attempts) if stderr.is_terminal else _write_lines(tally, attempts)
        following = asyncio.create_task(show)
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait([following])


class FailedAttempts(logging.Handler):
    """Takes the warnings about failed attempts from the log: counts them, and keeps the last."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        if self.takes(record):
            self.count += 1
            self.last = one_line(record.getMessage())

    def takes(self, record: logging.LogRecord) -> bool:
        """Report whether a record is one of these. All others are written as they come."""
        return record.name == WORKER_LOG and record.levelno == logging.WARNING and hasattr(record, "attempt")

    @contextlib.contextmanager
    def gathered(self) -> Generator[FailedAttempts]:
        """Take them, and keep them from the handlers of the root logger, while the block runs."""

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


async def _move_bar(tally: Tally, attempts: FailedAttempts) -> None:
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
            shown = [Text(_failed(attempts.count, attempts.last), style="yellow", no_wrap=True, overflow="ellipsis")]
            live.update(Group(bar, *(shown if attempts.count else ())), refresh=True)


async def _write_lines(tally: Tally, attempts: FailedAttempts) -> None:
    began = time.perf_counter()
    next_line, next_look, said = began + LINE_SECONDS, began, 0
    try:
        while True:
            await asyncio.sleep(BAR_SECONDS)
            now = time.perf_counter()
            if attempts.count > said and now >= next_look:
                say(_failed(attempts.count - said, attempts.last))
                said, next_look = attempts.count, now + ATTEMPTS_SECONDS
            if now >= next_line:
                rate, failures = tally.ended / (now - began), _failures(tally)
                text = f"{tally.ended:,} of {tally.total:,} ended, {rate:,.0f} per second"
                say(f"{text}, {failures}" if failures else text)
                next_line = now + LINE_SECONDS
    finally:
        if attempts.count > said:
            say(_failed(attempts.count - said, attempts.last))


def _failed(count: int, last: str) -> str:
    return last if count == 1 else f"{count:,} attempts failed, the last: {last}"


def _failures(tally: Tally) -> str:
    return f"{tally.failed:,} failed" if tally.failed else ""
