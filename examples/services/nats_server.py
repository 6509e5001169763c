"""Leaves a nats-server, or a cluster of three, running on this machine, or runs one around any command.

    python -m examples.services.nats_server up [--nodes 3] [--port 4322] [--sync always]
    python -m examples.services.nats_server down
    python -m examples.services.nats_server run [--nodes 3] -- COMMAND --url {url}

`{url}` in the command becomes the URL. What programs and tests need is in `perdure.testing.nats_server`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from perdure.testing.nats_server import (
    HOST,
    STOP_S,
    Cluster,
    Guard,
    Options,
    Server,
    Tls,
    cluster,
    end_on_sigterm,
    end_with_this_process,
    free_ports,
    nodes_in,
    program,
    server,
)

__all__ = [
    "HOST",
    "Cluster",
    "Guard",
    "Options",
    "Server",
    "Tls",
    "cluster",
    "detached",
    "down",
    "end_on_sigterm",
    "end_with_this_process",
    "free_ports",
    "program",
    "server",
    "up",
]

PORT = 4322
"""The first port that `up` takes unless told otherwise; the nodes of a cluster take this and those that follow."""
FOLDER = Path(".nats")
"""Where `up` keeps configuration, data and logs."""


# --- on the command line ----------------------------------------------------------------------------------------------
def up(folder: Path, port: int, nodes: int, sync_interval: str) -> str:
    """Run one node or three that outlive this process, and return their URL. RuntimeError when some run already."""
    if found := detached(folder):
        raise RuntimeError(f"{len(found)} nats-server of {folder} run already: `make nats-down` ends them")
    ports = [port + n for n in range(nodes)]
    made = nodes_in(
        folder / f"{nodes}-nodes",
        [*ports, *(each + 4000 for each in ports), *(each + 2000 for each in ports)],
        Options(sync_interval=sync_interval),
    )
    for each in made:
        each.start_detached()
    try:
        for each in made:
            each.wait_ready()
    except RuntimeError:
        down(folder)
        raise
    return Cluster(made).url


def down(folder: Path) -> int:
    """End what `up` left running in `folder`, and return how many there were. The data stays."""
    found = detached(folder)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOP_S
    while left := detached(folder):
        if time.monotonic() > end:
            raise RuntimeError(f"nats-server with the process ids {left} do not end: look at the logs in {folder}")
        time.sleep(0.05)
    return len(found)


def detached(folder: Path) -> list[int]:
    """Return the process ids of servers that run from `folder`."""
    found: list[int] = []
    for path in sorted(folder.glob("*/*/server.pid")):
        pid = int(path.read_text())
        asked = subprocess.run(
            ["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        if str(path.with_name("server.conf").resolve()) in asked.stdout:  # else the number is another's by now
            found.append(pid)
    return found


def _around(nodes: int, sync_interval: str, command: Sequence[str]) -> int:
    """Run `command` while a server or a cluster is up; its exit code."""
    end_on_sigterm()
    options = Options(sync_interval=sync_interval)
    with cluster(options=options) if nodes > 1 else server(options=options) as nats:
        process = subprocess.Popen([part.replace("{url}", nats.url) for part in command])
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.services.nats_server", description="A nats-server, or three."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, help in (
        ("up", "leave one running"),
        ("run", "run a command beside one"),
        ("down", "end what `up` left"),
    ):
        each = verbs.add_parser(verb, help=help)
        if verb != "down":
            each.add_argument("--nodes", type=int, choices=(1, 3), default=1)
            each.add_argument(
                "--sync", default="2m", help="sync_interval: `always`, or a duration (default: %(default)s)"
            )
        if verb != "run":
            each.add_argument("--folder", type=Path, default=FOLDER, help="configuration, data and logs")
        if verb == "up":
            each.add_argument("--port", type=int, default=PORT, help="that of the first node (default: %(default)s)")
    own, command = list(arguments), list[str]()
    if "--" in own:
        at = own.index("--")
        own, command = own[:at], own[at + 1 :]
    options = parser.parse_args(own)
    if (options.verb == "run") is not bool(command):
        parser.error("`run` needs a command after --, and the others take none")
    try:
        match options.verb:
            case "up":
                url = up(options.folder, options.port, options.nodes, options.sync)
                print(f"NATS runs on {url}, with its data in {options.folder}. `make nats-down` ends it.")
            case "down":
                print(f"{down(options.folder)} nats-server of {options.folder} ended. The data is still there.")
            case _:
                return _around(options.nodes, options.sync, command)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
