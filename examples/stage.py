"""What the examples run on: HelloService, in a process of its own unless one runs already, and a SQLite file.

Each example takes `--service HelloService=HOST:PORT` to use a service that runs already.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

from examples.services.process import service


def parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser of `--service`, for an example to add its own options to."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--service", type=_service, metavar="HelloService=HOST:PORT", help="use a service that runs already"
    )
    return made


def _service(text: str) -> dict[str, str]:
    name, _, address = text.partition("=")
    if name != "HelloService" or ":" not in address:
        raise argparse.ArgumentTypeError(f"{text!r} is not HelloService=HOST:PORT")
    return {name: address}


@contextlib.asynccontextmanager
async def hello_service(running: dict[str, str] | None) -> AsyncGenerator[dict[str, str], None]:
    """Yield the address of HelloService by its name, as `services=` of a worker takes it."""
    if running is not None:
        yield running
        return
    async with service("examples.services.hello") as address:
        yield {"HelloService": address}


@contextlib.contextmanager
def sqlite_file() -> Generator[str]:
    """Yield the URL of a store in a new SQLite file, which is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:{Path(folder) / 'example.db'}"
