"""Workers in processes of their own, around any command:

python -m examples.services.workers COUNT TARGET [OPTION ...] -- COMMAND [ARGUMENT ...]

runs COUNT times `perdure worker TARGET [OPTION ...]`, the command once all of them serve, and stops them when it ends.
They end with this process too, however it ends.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence

from examples.services.nats_server import Guard, end_on_sigterm, end_with_this_process

STOP_S = 30.0
"""How long a worker may take to end after SIGTERM, before it is killed."""


@contextlib.contextmanager
def workers(count: int, arguments: Sequence[str]) -> Generator[list[subprocess.Popen[str]]]:
    """Run `perdure worker ARGUMENTS` in `count` processes for the time of the block; all of them serve when it begins.

    Raises RuntimeError when one ends before.
    """
    command = (sys.executable, "-m", "perdure", "worker", *arguments)
    found: list[subprocess.Popen[str]] = []
    guards: list[Guard] = []
    try:
        for _ in range(count):
            found.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True))
            guards.append(end_with_this_process(found[-1].pid))
        for each in found:
            assert each.stdout is not None
            if not any(line.startswith("Serving ") for line in each.stdout):
                raise RuntimeError(f"a worker ended with exit code {each.wait()} before it served: see its stderr")
            threading.Thread(target=each.stdout.read, daemon=True).start()  # a full pipe would stop it
        yield found
    finally:
        for each in found:
            each.terminate()
        for each, guard in zip(found, guards, strict=False):
            _wait(each)
            guard.release()


def _wait(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(arguments: Sequence[str]) -> int:
    own, dashes, command = list(arguments), "--" in arguments, list[str]()
    if dashes:
        at = own.index("--")
        own, command = own[:at], own[at + 1 :]
    if len(own) < 2 or not own[0].isdecimal() or not command:
        print(f"usage: {(__doc__ or '').splitlines()[2]}", file=sys.stderr)
        return 2
    end_on_sigterm()
    try:
        with workers(int(own[0]), own[1:]):
            return subprocess.run(command, check=False).returncode
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
