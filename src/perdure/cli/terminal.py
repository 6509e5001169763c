"""Where output goes: results to stdout, logs and progress to stderr."""

from __future__ import annotations

import logging

import click
from rich.console import Console, RenderableType
from rich.logging import RichHandler

from perdure.logs import JsonFormatter, TextFormatter

log = logging.getLogger("perdure.cli")

stderr = Console(stderr=True)
"""One console for logs and progress, so that a log line does not tear the bar."""


def say(text: str) -> None:
    """Write a line to stderr: above the bar, where there is one."""
    if stderr.is_terminal:
        stderr.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
    else:
        click.echo(text, err=True)


PIPE_WIDTH = 10_000
"""Columns of a table that goes to a file or a pipe, where nothing is wrapped to fit."""


def print_rich(what: RenderableType) -> None:
    """Print a table or text to stdout, without markup. A file or pipe gets no padding at the ends of lines."""
    console = Console(markup=False, highlight=False, emoji=False)
    if console.is_terminal:
        console.print(what)
        return
    console.width = PIPE_WIDTH
    with console.capture() as captured:
        console.print(what)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def show_logs(level: int, log_format: str) -> None:
    """Write logs from `level` up to stderr, as `text` or `json`, unless the program has set logging up."""
    root = logging.getLogger()
    if root.handlers:
        if log_format == "json":
            log.warning("--log json has no effect: the program has set logging up")
        return
    handler: logging.Handler = logging.StreamHandler()
    formatter: logging.Formatter = TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    if log_format == "json":
        formatter = JsonFormatter()
        logging.captureWarnings(True)  # so that these are lines of JSON too
    elif stderr.is_terminal:
        handler = RichHandler(console=stderr, show_path=False, log_time_format="%H:%M:%S")
        formatter = TextFormatter()
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.setLevel(level)
