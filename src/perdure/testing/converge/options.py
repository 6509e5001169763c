"""The options of a run, and what is wrong with them."""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence

from msgspec import Struct

from perdure.connect import without_secrets

PROGRAMS = 100
KILL_EVERY_SECONDS = 2.0
WORKERS = 3
STUCK_SECONDS = 60.0
"""When nothing has ended for so long, nothing will."""


class Options(Struct, frozen=True):
    """A run: its store, its programs, its kills. `kill_every` and `stuck_after` are in seconds."""

    store: str
    programs: int
    seed: int
    kill_every: float
    workers: int
    stuck_after: float
    url: str | None = None
    serve: bool = True
    """Whether the programs are served at all; for tests of what is shown if not."""


class BadOption(ValueError):
    """An option that cannot be."""


def check(options: Options) -> Options:
    """Return options as they are, or raise `BadOption`."""
    if options.store not in ("sqlite", "nats"):
        raise BadOption(f"--store {options.store}: give sqlite or nats")
    for name, value in (
        ("--programs", options.programs),
        ("--workers", options.workers),
        ("--kill-every", options.kill_every),
        ("--stuck-after", options.stuck_after),
    ):
        if not 0 < value < math.inf:
            raise BadOption(f"{name} {value:g}: give more than 0, and a finite number")
    if options.seed < 0:
        raise BadOption(f"--seed {options.seed}: give 0 or more")
    schemes = {"sqlite": ("sqlite:",), "nats": ("nats:", "tls:")}[options.store]
    if options.url is not None and not options.url.startswith(schemes):
        raise BadOption(
            f"--url {without_secrets(options.url)}: with --store {options.store}, give one that begins with "
            f"{' or '.join(schemes)}"
        )
    return options


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line. Ends the process with code 2, and says what is wrong, if it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m perdure.testing.converge",
        description="Run random programs while their workers are killed, and compare with a model what comes of them.",
    )
    parser.add_argument("--store", required=True, help="sqlite or nats")
    parser.add_argument("--programs", type=int, default=PROGRAMS, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of programs and kills (default: a random one, which is printed)")
    parser.add_argument(
        "--kill-every", type=float, default=KILL_EVERY_SECONDS, help="seconds between kills (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help="in one process on sqlite, else a process each (%(default)s)"
    )
    parser.add_argument(
        "--stuck-after",
        type=float,
        default=STUCK_SECONDS,
        help="seconds without an end after which the run is stuck (default: %(default)s)",
    )
    parser.add_argument("--url", help="of an empty store (default: one of its own in a temporary folder)")
    found = parser.parse_args(arguments)
    seed = random.randrange(2**32) if found.seed is None else found.seed  # noqa: S311  it is printed
    try:
        return check(
            Options(
                found.store, found.programs, seed, found.kill_every, found.workers, found.stuck_after, url=found.url
            )
        )
    except BadOption as error:
        parser.error(str(error))
