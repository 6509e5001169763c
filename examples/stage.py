"""What the examples run on: a gRPC service, in a process of its own unless one runs already, and a store.

Each example that calls a service takes `--service NAME=HOST:PORT` to use one that runs already. The store is the one
that PERDURE_URL names, or else a new SQLite file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

from examples.services.process import service


def parser(description: str | None, service: str = "HelloService") -> argparse.ArgumentParser:
    """Make a parser of `--service`, for an example to add its own options to."""

    def address(text: str) -> dict[str, str]:
        name, _, address = text.partition("=")
        if name != service or ":" not in address:
            raise argparse.ArgumentTypeError(f"{text!r} is not {service}=HOST:PORT")
        return {name: address}

    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--service", type=address, metavar=f"{service}=HOST:PORT", help="use a service that runs already")
    return made


@contextlib.asynccontextmanager
async def hello_service(running: dict[str, str] | None) -> AsyncGenerator[dict[str, str], None]:
    """Yield the address of HelloService by its name, as `services=` of a worker takes it."""
    if running is not None:
        yield running
        return
    async with service("examples.services.hello") as address:
        yield {"HelloService": address}


@contextlib.asynccontextmanager
async def ticket_service(running: dict[str, str] | None) -> AsyncGenerator[dict[str, str], None]:
    """Yield the address of TicketService by its name, as `services=` of a worker takes it."""
    if running is not None:
        yield running
        return
    async with service("examples.services.ticket") as address:
        yield {"TicketService": address}


@contextlib.contextmanager
def store() -> Generator[str]:
    """Yield the URL of the store: PERDURE_URL, or else that of a new SQLite file, which is gone afterwards."""
    if url := os.environ.get("PERDURE_URL"):
        yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:{Path(folder) / 'example.db'}"
