"""The test environment: the real engine on a memory store, with a clock that jumps.

Every turn is replayed from its journal after every commit, so a body that is not deterministic diverges in its first
test. Time stands still while anything happens. It moves by `advance`; and while a test waits for a result that nothing
but time can bring, it jumps to whatever is due next.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Self, TypeVar

from perdure.client import Client, Handle
from perdure.connect import channels_for, make_stub, translators_in_use
from perdure.core.retry import Duration, seconds
from perdure.errors import InvalidOption, PerdureError
from perdure.runtime.worker import Worker
from perdure.stores.clock import VirtualClock
from perdure.stores.memory import MemoryStore
from perdure.workflow import Step, StepHost, StepInfo, StepWork, Work, Workflow

T = TypeVar("T")

QUIET_ROUNDS = 10
"""Rounds of the loop without anything happening before the environment takes it that only time is missing."""

POLL_SECONDS = 0.001
"""Real seconds between two looks at steps that run in threads or do real I/O."""


class Environment:
    """Serves workflows from memory, on a virtual clock. Use it as an async context manager.

    `client` is an ordinary client. `replay=False` keeps turns alive between events, as in production.
    """

    def __init__(self, *workflows: Workflow[..., Any], max_concurrent: int = 100, replay: bool = True) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore(self.clock)
        self.client = Client(lambda: self.store, channels_for, translators_in_use, make_stub)
        self._fakes: dict[str, Callable[..., Any]] = {}
        self.worker = Worker(
            self.client.opened,
            workflows,
            max_concurrent=max_concurrent,
            always_replay=replay,
            translators=translators_in_use,
            stubs=make_stub,
            replace=self._replace,
        )
        self._stack = AsyncExitStack()
        self._advancing = False

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.client)
        await self._stack.enter_async_context(self.worker)
        self._jumper = asyncio.create_task(self._jump_when_stuck())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._jumper.cancel()
        await asyncio.wait([self._jumper])
        await self.worker.stop(grace=0)
        await self._stack.aclose()

    def fake(self, step: Step[..., Any], function: Callable[..., Any], /) -> None:
        """Run `function`, plain or async, in place of a step; its result must fit the step's annotation."""
        if not isinstance(step, Step):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidOption(f"fake() takes a step, not {step!r}")
        self._fakes[step.name] = function

    async def advance(self, by: Duration, /) -> None:
        """Move time on, letting what is due on the way happen in order."""
        target = self.clock.now() + seconds("advance", by)
        self._advancing = True
        try:
            await self.settle()
            while (due := self.clock.next_due()) is not None and due <= target:
                self.clock.move_to(due)
                await self.settle()
            self.clock.move_to(target)
            await self.settle()
        finally:
            self._advancing = False

    async def settle(self) -> None:
        """Wait until nothing more can happen without time passing."""
        calm = 0
        while calm < QUIET_ROUNDS:
            calm = calm + 1 if self.worker.quiet else 0
            await asyncio.sleep(0 if calm else POLL_SECONDS)

    async def awakeable(self, handle: Handle[Any] | str, /, *, number: int = 0) -> str:
        """Return the id of the `number`-th open awakeable of an invocation, once it is open."""
        handle = self.client.handle(handle) if isinstance(handle, str) else handle
        await self.settle()
        opened = [each.id for each in (await handle.describe()).awakeables if not each.resolved]
        if len(opened) <= number:
            raise PerdureError(
                f"invocation {handle.id!r} has {len(opened)} open awakeables, and number {number} was asked for"
            )
        return opened[number]

    def _replace(self, work: Work) -> Work:
        function = self._fakes.get(work.name)
        return work if function is None or not isinstance(work, StepWork) else _Fake(work, function)

    async def _jump_when_stuck(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._advancing or not self.store.awaited or not self.worker.quiet:
                continue
            await self.settle()
            due = self.clock.next_due()
            if due is not None and not self._advancing and self.store.awaited and self.worker.quiet:
                self.clock.move_to(due)


class _Fake:
    """A step's call that runs another function."""

    def __init__(self, work: StepWork, function: Callable[..., Any]) -> None:
        self._work = work
        self._function = function
        self.name = work.name
        self.retry = work.retry
        self.timeout = work.timeout

    async def run(self, host: StepHost, info: StepInfo, /) -> bytes:
        value = self._function(*self._work.args, **self._work.kwargs)
        if inspect.isawaitable(value):
            value = await value
        return self._work.step.encode_result(value)
