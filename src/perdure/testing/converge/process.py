"""A process of a run: `python -m perdure.testing.converge.process FOLDER URL OPTIONS`. It ends when its stdin does.

It serves programs. A file is opened by one process, so there it is the client too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from pathlib import Path

import msgspec

from perdure.connect import connect
from perdure.testing.converge.driver import Driver
from perdure.testing.converge.folder import Folder, FolderOutside
from perdure.testing.converge.options import Options
from perdure.testing.converge.plan import plan
from perdure.testing.programs import Interpreter

LEASE_SECONDS = 2.0
MAX_CONCURRENT = 20
UP = b"up\n"


async def serve(folder: Folder, url: str, options: Options) -> None:
    """Serve programs until the process ends; drive the run too, on a file."""
    interpreter = Interpreter(FolderOutside(folder))
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(connect(url))
        is_file = options.store == "sqlite"
        for _ in range((options.workers if is_file else 1) * options.serve):
            worker = client.worker(interpreter.workflow, max_concurrent=MAX_CONCURRENT, lease=LEASE_SECONDS)
            await stack.enter_async_context(worker)
        os.write(sys.stdout.fileno(), UP)
        if is_file:
            await Driver(client, interpreter, folder, plan(options.seed, options.programs)).drive()
        await asyncio.get_running_loop().create_future()


def end_with_stdin() -> None:
    """End this process when whoever started it has ended."""
    stdin = sys.stdin.fileno()

    def read() -> None:
        # Not through `sys.stdin`: its lock, held by this thread, would abort an interpreter that shuts down.
        while os.read(stdin, 4096):
            pass
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()


def main() -> None:
    """Run it by the command line's arguments."""
    folder, url, options = sys.argv[1:]
    end_with_stdin()
    form = f"%(asctime)s {os.getpid()} %(levelname)s %(name)s %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=form)
    asyncio.run(serve(Folder(Path(folder)), url, msgspec.json.decode(options, type=Options)))


if __name__ == "__main__":
    main()
