"""`perdure dev`: a worker with the HTTP API, which begins anew whenever the code changes.

The worker is a process of its own. It stops as by SIGTERM, so that steps in progress end; invocations go on in the next
one, by the new code.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from perdure.cli.options import PORT_LIMIT, services_option, url_option
from perdure.cli.process import Stopping, in_loop
from perdure.cli.reporting import reporting
from perdure.cli.serving import DEFAULT_PORT, public_url_option

LOOK_SECONDS = 0.5
"""How often it is looked whether a file has changed."""
DRAIN_SECONDS = 2.0
"""How long steps in progress may take to end before the next worker begins."""
_NOT_OURS = {"__pycache__", "node_modules", "site-packages", "venv"}

Seen = Mapping[str, tuple[int, int]]
"""Of each file, when it was changed and how long it is."""


@click.command()
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@url_option
@click.option(
    "--http-port",
    type=click.IntRange(0, PORT_LIMIT),
    default=DEFAULT_PORT,
    show_default=True,
    metavar="PORT",
    help="Serve the HTTP API on this port of 127.0.0.1; 0 chooses a free one each time.",
)
@public_url_option
@services_option
@reporting
def dev(
    targets: tuple[str, ...], url: str | None, http_port: int, public_url: str | None, services: dict[str, str]
) -> int:
    """Serve workflows and the HTTP API, and begin anew when a Python file in this folder changes.

    TARGET is as in `perdure worker`. For work on workflows; in production, use `perdure worker`.
    """
    command = [sys.executable, "-m", "perdure", "worker", *targets, "--http-port", str(http_port)]
    command += ["--drain-timeout", str(DRAIN_SECONDS), *(() if url is None else ("--url", url))]
    command += () if public_url is None else ("--public-url", public_url)
    for name, address in services.items():
        command += ["--service", f"{name}={address}"]
    stopping = Stopping()
    return in_loop(_supervise(command, Path.cwd(), stopping), stopping.begin)


async def _supervise(command: list[str], folder: Path, stopping: Stopping) -> int:
    came = stopping.expected()
    seen = files_in(folder)
    while True:
        worker = await asyncio.create_subprocess_exec(*command)
        ending = asyncio.ensure_future(worker.wait())
        try:
            changed = asyncio.ensure_future(_changed(folder, seen))
            await asyncio.wait([ending, changed, came], return_when=asyncio.FIRST_COMPLETED)
            if ending.done() and not came.done():
                click.echo("The worker has ended. It begins anew when a file changes.", err=True)
                await asyncio.wait([changed, came], return_when=asyncio.FIRST_COMPLETED)
            if came.done():
                changed.cancel()
                return 0
            names, seen = changed.result()
            click.echo(f"{', '.join(names)} changed: beginning anew.", err=True)
        finally:
            await _end(worker, ending)


async def _end(worker: asyncio.subprocess.Process, ending: asyncio.Future[int]) -> None:
    """Stop a worker, if it runs. A terminal may have sent it the signal too, and a second one would end it at once."""
    if not ending.done():
        await asyncio.wait([ending], timeout=0.1)
    if not ending.done():
        with contextlib.suppress(ProcessLookupError):
            worker.send_signal(signal.SIGTERM)
    await asyncio.shield(ending)


async def _changed(folder: Path, before: Seen) -> tuple[list[str], Seen]:
    """Wait until files change; return their names, and what is there then."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = await asyncio.to_thread(files_in, folder)
        if now != before:
            names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
            return names, now


def files_in(folder: Path) -> Seen:
    """Return the Python files below a folder, without those of environments and hidden folders."""
    found: dict[str, tuple[int, int]] = {}
    for path in _python_files(folder):
        with contextlib.suppress(OSError):  # removed meanwhile
            about = path.stat()
            found[str(path.relative_to(folder))] = about.st_mtime_ns, about.st_size
    return found


def _python_files(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith(".") and each not in _NOT_OURS]
        if "pyvenv.cfg" in names:
            folders.clear()
            continue
        yield from (Path(where) / name for name in names if name.endswith(".py"))
