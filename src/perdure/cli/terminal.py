"""What goes to stderr beside the result: logs, and how far a batch is."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.logging import RichHandler

stderr = Console(stderr=True)
"""One for logs and progress, so that a line of the log does not tear the bar."""


def show_logs(level: int) -> None:
    """Write logs from `level` up to stderr, unless the program has set logging up."""
    root = logging.getLogger()
    if root.handlers:
        return
    if stderr.is_terminal:
        handler: logging.Handler = RichHandler(console=stderr, show_path=False, log_time_format="%H:%M:%S")
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(level)
