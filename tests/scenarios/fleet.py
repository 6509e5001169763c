"""Workers of which one dies now and then, while a client goes on: what a test needs to know of them on any store."""

from __future__ import annotations

import asyncio
import random
import signal
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from tests.scenarios.lab import GoneError, JetStreamLab, Lab

GONE_SECONDS = 0.02
FROZEN_SHARE = 0.3
FROZEN_LEASES = 1.5


class Fleet(ABC):
    """A lab with a client, and workers beside it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @abstractmethod
    async def kill_one(self, chance: random.Random) -> None:
        """Kill a worker and start another in its place."""

    async def ask(self, operation: str, **arguments: Any) -> Any:
        """Execute an operation; again if the client's process was killed meanwhile."""
        while True:
            try:
                return await self.lab.ask(operation, **arguments)
            except GoneError:
                await asyncio.sleep(GONE_SECONDS)


class OneProcess(Fleet):
    """Client and workers live in one process: they die together, or a worker by itself."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._alive = [*range(lab.options.workers)]

    async def kill_one(self, chance: random.Random) -> None:
        if chance.random() < 0.5:
            await self.lab.restart()
            self._alive = [*range(self.lab.options.workers)]
        else:
            await self.lab.ask("crash_worker", number=self._alive.pop(chance.randrange(len(self._alive))))
            self._alive.append(await self.lab.ask("start_worker"))


class ManyProcesses(Fleet):
    """The client has a process of its own, without workers; each worker has one, and dies with it.

    Or it is only frozen for longer than its lease, and comes back when others have gone on without it.
    """

    def __init__(
        self, client: Lab, workers: list[JetStreamLab], one_more: Callable[[], Awaitable[JetStreamLab]]
    ) -> None:
        super().__init__(client)
        self.workers = workers
        self._one_more = one_more

    async def kill_one(self, chance: random.Random) -> None:
        victim = self.workers.pop(chance.randrange(len(self.workers)))
        if chance.random() < FROZEN_SHARE:
            victim.signal(signal.SIGSTOP)
            asyncio.get_running_loop().call_later(FROZEN_LEASES * victim.options.lease, self._thaw, victim)
        else:
            await victim.kill()
        self.workers.append(await self._one_more())

    def _thaw(self, worker: JetStreamLab) -> None:
        if worker.runs:
            worker.signal(signal.SIGCONT)
