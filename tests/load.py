"""A busy machine, for as long as a command runs:

python -m tests.load PER_CORE -- COMMAND [ARGUMENT ...]

runs PER_CORE processes per core that do nothing but compute, and hands the command's exit code on. They end when this
process does, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence

ROUND = 100_000
"""Additions between two looks at whether this process still lives."""


def compute(parent: int) -> None:
    while os.getppid() == parent:
        sum(range(ROUND))


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 3 or not arguments[0].isdecimal() or arguments[1] != "--":
        print(f"usage: {(__doc__ or '').splitlines()[2]}", file=sys.stderr)
        return 2
    per_core, _, *command = arguments
    spawn = multiprocessing.get_context("spawn")
    busy = [
        spawn.Process(target=compute, args=(os.getpid(),), daemon=True)
        for _ in range(int(per_core) * (os.cpu_count() or 1))
    ]
    for each in busy:
        each.start()
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        for each in busy:
            each.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
