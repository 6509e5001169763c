"""A service in a process of its own, for as long as it is needed.

In a program or a test:

    async with service("examples.services.hello") as address: ...

On the command line, around any command; `{address}` in it becomes the service's `host:port`:

    python -m examples.services.process examples.services.hello -- COMMAND --service HelloService={address}
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_S = 30.0
"""How long a service may take to say that it listens."""
STOP_S = 10.0
"""How long a service may take to end after SIGTERM, before it is killed."""


@contextlib.asynccontextmanager
async def service(module: str, *options: str) -> AsyncGenerator[str, None]:
    """Run `python -m MODULE` on a free port, yield its `host:port`, and stop it at the end.

    `options` are the service's own (`--delay`, …). It ends with this process too, however this process ends. Raises
    RuntimeError when the service ends before it listens; TimeoutError when it has not said so after `START_S`.
    """
    command = (sys.executable, "-m", module, "--port", "0", "--until-stdin-closes", *options)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=PIPE, stdout=PIPE)
    try:
        async with asyncio.timeout(START_S):
            address = await _address(process, module)
        yield address
    finally:
        await _stop(process)


async def _address(process: Process, module: str) -> str:
    assert process.stdout is not None
    async for line in process.stdout:
        if ready := re.search(r" listening on (\S+)$", line.decode().rstrip()):
            return ready[1]
    raise RuntimeError(f"{module} ended with exit code {await process.wait()} before it listened: see its stderr")


async def _stop(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        process.terminate()
    try:
        await asyncio.wait_for(process.communicate(), STOP_S)
    except TimeoutError:
        process.kill()
        await process.communicate()
    if process.stdin is not None:  # its end of the pipe may outlive the process by a turn of the loop
        process.stdin.close()
        with contextlib.suppress(ConnectionError):
            await process.stdin.wait_closed()


async def _around(module: str, command: Sequence[str]) -> int:
    """Run `command` while the service is up; its exit code."""
    here = asyncio.current_task()
    assert here is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, here.cancel)
    async with service(module) as address:
        process = await asyncio.create_subprocess_exec(*(part.replace("{address}", address) for part in command))
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                await _stop(process)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 3 or arguments[1] != "--":
        print("usage: python -m examples.services.process MODULE -- COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    module, _, *command = arguments
    try:
        return asyncio.run(_around(module, command))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
