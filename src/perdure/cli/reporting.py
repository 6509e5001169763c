"""Reports an error as one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import traceback
from collections.abc import Callable
from typing import ParamSpec

import click

from perdure.errors import (
    AnnotationUnresolved,
    BadId,
    BadUrl,
    InputRefused,
    InvalidOption,
    NameTaken,
    NotAWorkflow,
    PerdureError,
)

P = ParamSpec("P")

UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Errors of an output that is full or gone. Click itself ends a command that writes to a closed pipe."""

FAILURE = 1
WRONG_USE = 2

_USERS = (AnnotationUnresolved, BadId, BadUrl, InputRefused, InvalidOption, NameTaken, NotAWorkflow)


def reporting(command: Callable[P, int]) -> Callable[..., int]:
    """Give a command `--debug`, and print the `PerdureError` that it raises instead of a traceback."""

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(command)
    def reported(*args: P.args, **kwargs: P.kwargs) -> int:
        debug = bool(kwargs.pop("debug"))
        try:
            return command(*args, **kwargs)
        except (PerdureError, click.ClickException) as error:
            if debug:
                traceback.print_exception(error)
            return report(error)

    return reported


def report(error: PerdureError | click.ClickException) -> int:
    """Print an error, and return the exit code."""
    if not isinstance(error, click.ClickException):
        click.echo(f"error: {error}", err=True)
        return WRONG_USE if isinstance(error, _USERS) else FAILURE
    click.echo(f"error: {error.format_message()}", err=True)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"Try `{error.ctx.command_path} --help`.", err=True)
    return error.exit_code


def report_unwritable(error: OSError) -> int:
    """Print that an output cannot be written, drop the rest of it, and return the exit code."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    with contextlib.suppress(OSError):
        click.echo(f"error: cannot write the output: {error.strerror}", err=True)
    return FAILURE
