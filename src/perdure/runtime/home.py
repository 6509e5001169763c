"""What a runner needs of its worker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from typing import Any, Protocol

from perdure.authoring.step import StepInfo, Work
from perdure.core.failures import Failure
from perdure.core.journal import Start
from perdure.core.turn import Turn
from perdure.counters import Counters
from perdure.runtime.attempt import Attempt
from perdure.runtime.record import Writer
from perdure.stores.port import Clock, Delivery, Store, Subscription


class Watch(Protocol):
    """Looks now and then which runner's body runs. `count` is raised whenever one begins to; None when it waits."""

    count: int
    current: Any

    def stop(self) -> None: ...


class Home(Protocol):
    """What a runner needs of its worker."""

    store: Store
    clock: Clock
    subscription: Subscription
    loop: asyncio.AbstractEventLoop
    reads: asyncio.Semaphore
    always_replay: bool

    @property
    def writer(self) -> Writer: ...
    @property
    def counters(self) -> Counters: ...
    @property
    def watch(self) -> Watch: ...
    def schedule(self, runner: Any, /) -> None: ...
    def hold_first_frame(self, runner: Any, /) -> None: ...
    def acquire_slot(self, runner: Any, /) -> bool: ...
    def release_slot(self, runner: Any, /) -> None: ...
    def became_idle(self, runner: Any, /) -> None: ...
    def started(self, starts: Sequence[Start], /) -> None: ...
    def ended(self, runner: Any, /) -> None: ...
    def deliver_again(self, delivery: Delivery, /) -> None: ...
    def pause_by_new_runner(self, deliveries: Sequence[Delivery], reason: str, /) -> None: ...
    def commit_failed(self, runner: Any, error: BaseException, /) -> None: ...
    def make_turn(self, start: Start, /) -> Turn: ...
    def failure_of(self, error: BaseException, /) -> Failure: ...
    def begin_attempt(self, work: Work, info: StepInfo, runner: Any, variables: Context | None, /) -> Attempt: ...
