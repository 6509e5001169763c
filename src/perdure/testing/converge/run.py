"""A run from its start to its verdict."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from perdure.client import Client
from perdure.connect import connect, make_streams
from perdure.errors import PerdureError
from perdure.testing.converge.driver import Driver
from perdure.testing.converge.fleet import Failed, Fleet
from perdure.testing.converge.folder import LOG, OVER, SETTLED, STARTED, Folder, FolderOutside
from perdure.testing.converge.options import BadOption, Options, parse
from perdure.testing.converge.plan import Plan, plan
from perdure.testing.converge.stuck import what_is_left
from perdure.testing.converge.verdict import differences, shown
from perdure.testing.nats_server import server
from perdure.testing.programs import Interpreter

LOOK_SECONDS = 0.2
SAY_SECONDS = 5.0
SHOWN = 5
"""So many differences are shown in full; the others are counted."""
LOG_LINES = 20
INTERRUPTED = 130
"""The exit code after SIGINT."""


def main(arguments: Sequence[str]) -> int:
    """Run by the command line; return the exit code."""
    options = parse(arguments)
    path = Path(tempfile.mkdtemp(prefix="perdure-converge-"))
    try:
        with place(options, path) as url:
            code = asyncio.run(Run(options, url, Folder(path)).run())
    except (BadOption, PerdureError, OSError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        code = 2
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code in (1, INTERRUPTED):
        say(f"what was noted and logged is in {path}")
    else:
        shutil.rmtree(path, ignore_errors=True)
    return code


@contextlib.contextmanager
def place(options: Options, folder: Path) -> Generator[str]:
    """Give the URL of the store, with a server of its own if need be."""
    if options.url is not None:
        yield options.url
    elif options.store == "sqlite":
        yield f"sqlite:{folder / 'store.db'}"
    else:
        with server(folder / "nats") as node:
            yield node.url


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Stuck(Exception):
    """Nothing ends any more."""


class Run:
    """One run."""

    def __init__(self, options: Options, url: str, folder: Folder) -> None:
        self._options = options
        self._url = url
        self._folder = folder
        self._plan: Plan = plan(options.seed, options.programs)
        self._interpreter = Interpreter(FolderOutside(folder))
        self._is_file = options.store == "sqlite"

    async def run(self) -> int:
        """Run to the verdict; return the exit code."""
        options = self._options
        say(
            f"{options.programs} programs on {options.store}, seed {options.seed}, "
            f"a kill every {options.kill_every:g} s"
        )
        await self._prepare()
        fleet = Fleet(self._folder, self._url, options)
        try:
            await fleet.start()
            await self._until_over(fleet)
        except (Stuck, Failed) as error:
            say(f"seed {options.seed}: {error}")
            fleet.end()
            await fleet.ended()
            say("\n".join(["the log ends:", *self._folder.lines(LOG)[-LOG_LINES:]]))
            async with connect(self._url) as client:
                say(await what_is_left(client))
                await self._compare(client, fleet.kills)
            return 1
        finally:
            fleet.end()
            await fleet.ended()
        return await self._verdict(fleet.kills)

    async def _prepare(self) -> None:
        if self._is_file and not Path(self._url.removeprefix("sqlite:")).exists():
            return
        if not self._is_file:
            await make_streams(self._url)
        async with connect(self._url) as client:
            if total := (await client.stats()).total:
                raise BadOption(f"--url {self._url}: there are {total} invocations; give a store of its own")

    async def _until_over(self, fleet: Fleet) -> None:
        tasks = [
            asyncio.ensure_future(fleet.kill_now_and_then(self._has_ended)),
            asyncio.ensure_future(self._watch(fleet)),
        ]
        if not self._is_file:
            tasks.append(asyncio.ensure_future(self._drive()))
        try:
            while self._folder.last(OVER) is None:
                done, _ = await asyncio.wait(tasks, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    await each
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _has_ended(self) -> bool:
        """Report whether everything seems to have ended: then there is a last look, which takes a while."""
        settled = self._folder.last(SETTLED)
        return self._folder.last(STARTED) == str(self._options.programs) and (settled or "").endswith(" 0")

    async def _drive(self) -> None:
        async with connect(self._url) as client:
            await Driver(client, self._interpreter, self._folder, self._plan).drive()

    async def _watch(self, fleet: Fleet) -> None:
        """Say how far it is; raise `Stuck` when nothing ends any more."""
        settled, since, said = "", time.monotonic(), time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now, last = time.monotonic(), (self._folder.last(SETTLED) or "0 0").split()
            if last[0] != settled:
                settled, since = last[0], now
            if now - since > self._options.stuck_after:
                raise Stuck(f"nothing has ended for {self._options.stuck_after:g} s")
            if now - said > SAY_SECONDS:
                said = now
                say(
                    f"{self._folder.last(STARTED) or 0} programs started, {last[0]} invocations ended, {last[1]} have "
                    f"not, {fleet.kills} kills"
                )

    async def _verdict(self, kills: int) -> int:
        async with connect(self._url) as client:
            found = await self._compare(client, kills)
        say(f"{self._options.programs} programs, {kills} kills, difference {found}")
        return 1 if found else 0

    async def _compare(self, client: Client, kills: int) -> int:
        """Show some differences, and return how many there are."""
        found = await differences(client, self._interpreter, self._folder, self._plan, kills)
        for each in found[:SHOWN]:
            say(await shown(each, client, self._plan, self._options.seed))
        return len(found)
