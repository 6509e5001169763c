"""Prints the table of planted bugs: what each breaks, and how many seeds it takes to catch it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from perdure.testing.simulation import INVARIANTS
from tests.simulation.planted import BUGS, SEEDS_LIMIT, hunt


def main(arguments: Sequence[str] | None = None) -> int:
    """Hunt each bug; return 1 if one is not caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.planted", description=__doc__)
    parser.add_argument("--seed", type=int, help="the first seed; drawn if it is not given")
    parser.add_argument("--seeds", type=int, default=SEEDS_LIMIT, help="how many seeds to run for each")
    parser.add_argument("names", nargs="*", help="parts of the names of the bugs to plant; all of them without")
    given = parser.parse_args(arguments)
    first: int = int.from_bytes(os.urandom(4), "big") if given.seed is None else given.seed
    chosen = [bug for bug in BUGS if not given.names or any(name in bug.name for name in given.names)]
    print(f"| bug | violation that is reported | seeds from {first} |\n|---|---|---|")
    began, missed = time.process_time(), 0
    for bug in chosen:
        caught = hunt(bug, range(first, first + given.seeds))
        missed += caught is None
        broken = f"{bug.invariant}: {INVARIANTS[bug.invariant]}"
        print(f"| {bug.name} | {broken} | {'none' if caught is None else caught.seeds} |", flush=True)
    print(f"{len(chosen)} bugs, {missed} not caught, {time.process_time() - began:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
