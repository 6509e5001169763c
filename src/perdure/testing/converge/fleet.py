"""The processes of a run: started, killed with SIGKILL, and started again."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from perdure.testing.converge.folder import LOG, Folder
from perdure.testing.converge.options import BadOption, Options

UP_SECONDS = 120.0
"""How long a process may take until it serves."""
LEAST_SHARE = 0.25
"""The time between a start and a kill, as a share of what the start takes: with less, hardly anything would end."""


class Failed(Exception):
    """A process ended by itself."""


class Fleet:
    """The processes that serve, of which one dies every so often."""

    def __init__(self, folder: Folder, url: str, options: Options) -> None:
        self.kills = 0
        self._folder = folder
        self._url = url
        self._options = options
        self._count = options.workers if options.store == "nats" else 1
        self._processes: list[Process] = []
        self._log: BinaryIO = (folder.path / LOG).open("ab")

    async def start(self) -> None:
        """Start all. Raises `BadOption` if a start takes far longer than there is between two kills."""
        began = time.monotonic()
        self._processes.append(await self._start_one())
        took = time.monotonic() - began
        if self._options.kill_every < LEAST_SHARE * took:
            self.end()
            raise BadOption(
                f"--kill-every {self._options.kill_every:g}: a process takes {took:.1f} s until it serves; give at "
                f"least {LEAST_SHARE * took:.1f}"
            )
        for _ in range(self._count - 1):
            self._processes.append(await self._start_one())

    async def kill_now_and_then(self, is_over: Callable[[], bool]) -> None:
        """Kill one after the other, each some time after the one before has been replaced, until all is over."""
        chance = random.Random(self._options.seed + 1)  # noqa: S311  it must be repeatable
        while True:
            await asyncio.sleep(self._options.kill_every)
            if is_over():
                continue
            victim = self._processes.pop(chance.randrange(len(self._processes)))
            if victim.returncode is not None:
                raise Failed(f"a process ended by itself, with exit code {victim.returncode}: see the end of its log")
            victim.kill()
            await victim.wait()
            self.kills += 1
            self._processes.append(await self._start_one())

    def end(self) -> None:
        """Kill all for good."""
        for each in self._processes:
            if each.returncode is None:
                each.kill()

    async def ended(self) -> None:
        """Wait until all have ended."""
        for each in self._processes:
            await each.wait()
        self._log.close()

    async def _start_one(self) -> Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "perdure.testing.converge.process", str(self._folder.path), self._url),
            msgspec.json.encode(self._options).decode(),
            stdin=PIPE,
            stdout=PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONHASHSEED": "random"},
        )
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), UP_SECONDS)
        if not line:
            raise Failed(f"a process ended with exit code {await process.wait()} before it served: see its log")
        return process
