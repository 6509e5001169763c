"""A worker: takes deliveries, keeps a runner for each invocation that it holds, and bounds what runs at the same time.

Slots: `max_concurrent` bounds the invocations that have a step in progress. A new start is requested only when a slot
is free. An invocation that waits has no slot; its next steps queue for one ahead of new starts. So a parent that waits
for its child never blocks it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from random import Random, SystemRandom
from typing import Any, Protocol, Self

from perdure.authoring.context import Context
from perdure.authoring.step import StepInfo, Work
from perdure.authoring.workflow import Workflow
from perdure.background import RateLimitedLog, end, log_error
from perdure.core.failures import Failure, FailureTranslator, failure_of
from perdure.core.journal import Frame, Start
from perdure.core.retry import whole_number
from perdure.core.turn import StubMaker, Turn
from perdure.counters import Counters, Load
from perdure.errors import InvalidOption, NameTaken, ServiceUnknown, StoreClosed, StoreError, too_large
from perdure.runtime.attempt import THREADS_LIMIT, Attempt
from perdure.runtime.home import Watch
from perdure.runtime.record import Writer
from perdure.runtime.retention import Sweep
from perdure.runtime.runner import Runner
from perdure.runtime.slots import Slots
from perdure.runtime.trail import Trail
from perdure.runtime.unserved import Unserved
from perdure.runtime.watch import DrainWatch
from perdure.stores.port import LEASE_SECONDS, Delivery, Store
from perdure.tracing import Span, TracerInUse, here, no_tracer

CACHE_LIMIT = 1_000
"""Suspended invocations whose turn is cached, so that the next event needs no replay."""

READS_LIMIT = 50
"""Journals that are read at a time: thousands of timers due at once must not delay other deliveries."""

FIRST_FRAME_SECONDS = 0.1
"""How long the first frame of an invocation may be held back while its first steps run."""

COLLECTOR_THRESHOLD = 10_000
"""Allocations between two young garbage collections while a worker runs, unless the program has set more. With
CPython's own 700 the collector scans a busy worker's objects over and over, for a tenth of its time."""

STOP_GRACE_SECONDS = 10.0
"""How long running steps may take to end when a worker stops."""

log = logging.getLogger("perdure.worker")


class Channels(Protocol):
    """Connections to the services that steps call."""

    def channel(self, service: str, /) -> Any: ...
    async def aclose(self) -> None: ...


Translators = Callable[[], Sequence[FailureTranslator]]
"""Gives the translators of exceptions that are not plain Python, such as gRPC's."""


Publish = Callable[[Store, Collection[Workflow[..., Any]]], Coroutine[Any, Any, None]]
"""Tells programs without the code what the workflows take and return. It logs what fails, and raises nothing."""

Duty = Callable[[], Coroutine[Any, Any, None]]
"""What workers do beside their invocations, such as starting what is scheduled. Several workers of a store may do it at
a time. It runs until it is cancelled; one that fails begins anew."""

DUTY_AGAIN_SECONDS = 5.0
"""How long a duty rests after it has failed."""


class Worker:
    """Serves workflows from a store until it is stopped. Use it as an async context manager, or `await serve()`."""

    def __init__(
        self,
        open_store: Callable[[], Awaitable[Store]],
        workflows: Sequence[Workflow[..., Any]],
        *,
        max_concurrent: int = 100,
        channels: Channels | None = None,
        cache: int = CACHE_LIMIT,
        always_replay: bool = False,
        stop_grace: float = STOP_GRACE_SECONDS,
        translators: Translators = tuple,
        stubs: StubMaker | None = None,
        replace: Callable[[Work], Work] | None = None,
        retention: float | None = None,
        partitions: Collection[int] | None = None,
        lease: float = LEASE_SECONDS,
        chance: Random | None = None,
        watch: Callable[[], Watch] = DrainWatch,
        publish: Publish | None = None,
        duties: Sequence[Duty] = (),
        counters: Counters | None = None,
        tracer: TracerInUse = no_tracer,
    ) -> None:
        whole_number("worker(max_concurrent=…)", max_concurrent)
        whole_number("worker(cache=…)", cache, least=0)
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        self.chance = chance or SystemRandom()  # for its name, and the jitter of retries
        self.writer = Writer(self.chance.randbytes(6).hex(), python, os.environ.get("PYTHONHASHSEED", "random"))
        self.counters = counters or Counters()
        self._tracer = tracer
        self.always_replay = always_replay
        self.workflows = by_name(workflows)
        self.max_concurrent = max_concurrent
        self._open_store = open_store
        self._channels = channels
        self._cache_limit = cache
        self._stop_grace = stop_grace
        self._translators = translators
        self._stubs = stubs
        self._replace = replace
        self._retention = retention
        self._partitions = partitions
        self._lease = lease
        self._make_watch = watch
        self._publish = publish
        self._duties = duties
        self.beside: list[Worker] = []  # its client's running workers: none serves other code under the same name
        self._runners: dict[str, Runner] = {}
        self._cached: OrderedDict[str, Runner] = OrderedDict()
        self._scheduled: list[Runner] = []
        self._young: list[Runner] = []  # runners whose first frame is held back
        self._aging: list[Runner] = []  # ... since before the last check
        self._slots: Slots[Runner] = Slots(max_concurrent)
        self._log = RateLimitedLog(log)
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self.reads = asyncio.Semaphore(READS_LIMIT)
        self._running = False

    # --- life ---------------------------------------------------------------------------------------------------------
    async def __aenter__(self) -> Self:
        if self._running:
            raise InvalidOption("this worker is running already: make another with client.worker(...)")
        self._running = True
        self._parts = parts = AsyncExitStack()  # undone in reverse by `stop`, or when entering fails half way
        try:
            await self._enter(parts)
            if not self._running:
                raise InvalidOption("this worker was stopped while it began to serve")
        except BaseException:
            self._running = False
            await parts.aclose()
            raise
        return self

    def serves(self, workflow: Workflow[..., Any]) -> Workflow[..., Any] | None:
        """Return the workflow that this worker serves under a name, if it runs."""
        served = self.workflows.get(workflow.name) if self._running else None
        return served if served is not None and served.name == workflow.name else None

    async def _enter(self, parts: AsyncExitStack) -> None:
        for worker in self.beside:
            for workflow in self.workflows.values():
                if (served := worker.serves(workflow)) is not None:
                    workflow.check_beside(served)
        self.beside.append(self)
        parts.callback(self.beside.remove, self)
        self.store = await self._open_store()
        self.clock = self.store.clock
        self._unserved = Unserved(self.store)
        parts.callback(self._unserved.close)
        self.loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self._variables = contextvars.copy_context()  # for what the worker logs: not those of a caller of the client
        self._raise_threshold(parts)
        self.watch = self._make_watch()
        parts.callback(self.watch.stop)
        if self._channels is not None:
            parts.push_async_callback(self._channels.aclose)
        parts.callback(self._end_pool)
        self.subscription = self.store.subscribe(
            self.workflows, self._deliver, partitions=self._partitions, lost=self._lost, lease=self._lease
        )
        parts.callback(self.subscription.close)
        parts.callback(self._forget_all)
        self.counters.loads.append(self.load)
        parts.callback(self.counters.loads.remove, self.load)
        self._ask()
        if self._publish is not None:
            publishing = self.loop.create_task(self._publish(self.store, self.workflows.values()))
            parts.push_async_callback(end, [publishing])
        if self._duties:
            parts.push_async_callback(end, [self.loop.create_task(_on_duty(duty)) for duty in self._duties])
        if self._retention is not None:
            parts.push_async_callback(Sweep(self.store, self._retention).stop)

    def _raise_threshold(self, parts: AsyncExitStack) -> None:
        found = gc.get_threshold()
        if 0 < found[0] < COLLECTOR_THRESHOLD:  # a worker that finds it raised leaves it
            gc.set_threshold(COLLECTOR_THRESHOLD, *found[1:])
            parts.callback(gc.set_threshold, *found)

    def _end_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _forget_all(self) -> None:
        self._runners.clear()
        self._cached.clear()
        self._scheduled.clear()
        self._slots.forget()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def serve(self) -> None:
        """Serve until cancelled."""
        async with self:
            await asyncio.get_running_loop().create_future()

    async def stop(self, grace: float | None = None) -> None:
        """Take nothing new, let running steps end within `grace` seconds, and hand everything over."""
        if not self._running:
            return
        self._running = False
        runners = [*self._runners.values()]
        grace = self._stop_grace if grace is None else grace
        stopped = await asyncio.gather(*(runner.stop(grace) for runner in runners), return_exceptions=True)
        for runner, error in zip(runners, stopped, strict=True):
            if error is not None:
                text = "invocation %s could not be handed over: it is redelivered instead"
                log_error(log, text, runner.id, error=error, extra=runner.about)
        await self._parts.aclose()

    def halt(self) -> None:
        """Stop at once, as a killed process does: nothing more is journaled or acknowledged. For tests."""
        self._running = False
        for runner in [*self._runners.values()]:
            runner.close()

    async def crash(self) -> None:
        """Halt, and end the claims. For tests."""
        self.halt()
        await self._parts.aclose()

    @property
    def quiet(self) -> bool:
        """Report whether no runner has anything in progress."""
        return not self._scheduled and not any(runner.in_progress for runner in self._runners.values())

    @property
    def steps_in_progress(self) -> list[str]:
        """The names of the steps that run now, one for each attempt."""
        return [name for runner in self._runners.values() for name in runner.steps_in_progress]

    def load(self) -> Load:
        """Return how busy this worker is."""
        used = self._slots.taken
        return Load(used, max(0, self.max_concurrent - used), len(self._runners), len(self._cached))

    # --- deliveries ---------------------------------------------------------------------------------------------------
    def _deliver(self, delivery: Delivery) -> None:
        """Take a delivery from the store. Every start counts as one that was asked for, as it does there."""
        if type(delivery.item) is not Start:
            self._take(delivery)
            return
        self._slots.start_came()
        self._take(delivery)
        self._ask()  # for another, if it took no slot: it came again, or after a message

    def _take(self, delivery: Delivery) -> None:
        try:
            is_start = type(delivery.item) is Start
            if not self._running:
                return
            runner = self._runners.get(delivery.id)
            if runner is not None:
                self._cached.pop(delivery.id, None)
                runner.take(delivery)
            elif not self._slots.keep_waiting(delivery, is_start=is_start):
                self._admit(delivery)
        except BaseException as error:  # noqa: BLE001  the store's callbacks raise nothing
            self._decline(delivery, error)

    def _decline(self, delivery: Delivery, error: BaseException) -> None:
        """Hand back all that this worker holds of an invocation, after an exception that nobody foresaw."""
        self._forget(delivery.id)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error
        about = {"invocation_id": delivery.id, "handler": delivery.handler}
        log.error(
            "invocation %s (%s): unexpected exception", delivery.id, delivery.handler, exc_info=error, extra=about
        )
        reason = f"it cannot be taken: {type(error).__name__}: {error}"
        self.loop.call_soon(self._hand_back, delivery, reason)  # the store may be in the middle of handing it over

    def _hand_back(self, delivery: Delivery, reason: str) -> None:
        if self._running:
            self._forget(delivery.id)  # one that was made meanwhile does not know of this delivery
            self.subscription.decline(delivery, reason)

    def _lost(self, id: str) -> None:
        """Close an invocation that another process has taken over: its steps are interrupted, unjournaled."""
        self._forget(id)
        self._ask()  # a start that waited for a slot leaves room for another

    def _forget(self, id: str) -> None:
        """Close the runner of an invocation without a trace, whatever is raised meanwhile."""
        runner = self._runners.pop(id, None)
        self._cached.pop(id, None)
        for let_go in (partial(self._slots.drop, id), *(() if runner is None else (runner.close,))):
            try:
                let_go()
            except Exception:
                text = "invocation %s: unexpected exception when this worker lets go of it"
                log.exception(text, id, extra={"invocation_id": id})

    def _admit(self, delivery: Delivery) -> None:
        runner = self._runners[delivery.id] = Runner(self, delivery)
        if type(delivery.item) is Start:
            self._slots.take(runner)
        runner.take(delivery)

    def _ask(self) -> None:
        """Request as many starts from the store as there are slots."""
        if self._running and (room := self._slots.ask()) > 0:
            self.subscription.request(room)

    # --- what runners ask ---------------------------------------------------------------------------------------------
    def schedule(self, runner: Runner, /) -> None:
        """Advance a runner in the next round of the host's loop."""
        if not runner.scheduled and not runner.closed:
            runner.scheduled = True
            if not self._scheduled:
                self.loop.call_soon(self._advance, context=self._variables)
            self._scheduled.append(runner)

    def _advance(self) -> None:
        scheduled, self._scheduled = self._scheduled, []
        batch = iter(scheduled)
        try:
            for runner in batch:
                runner.scheduled = False
                if not runner.closed:
                    self._cached.pop(runner.id, None)  # it may not be idle now: one that is must not be evicted
                    runner.advance()
        finally:
            for runner in batch:  # an interrupt hit one of them: the rest run in the next round
                runner.scheduled = False
                self.schedule(runner)

    def hold_first_frame(self, runner: Runner, /) -> None:
        """Bound how long a first frame is held back. One timer serves all."""
        if not self._young and not self._aging:
            self.loop.call_later(FIRST_FRAME_SECONDS / 2, self._write_first_frames)
        self._young.append(runner)

    def _write_first_frames(self) -> None:
        """Write the first frames that were held back before this ran last."""
        for runner in self._aging:
            if runner.first_frame_held:
                runner.write_first_frame()
        self._aging, self._young = self._young, []
        if self._aging:
            self.loop.call_later(FIRST_FRAME_SECONDS / 2, self._write_first_frames)

    def acquire_slot(self, runner: Runner, /) -> bool:
        """Give a slot if one is free; otherwise `slot_granted` is called when one is."""
        return self._slots.acquire(runner)

    def release_slot(self, runner: Runner, /) -> None:
        self._slots.release(runner)
        while self._slots.wanting and self._running and (waiting := self._slots.next_runner()) is not None:
            waiting.slot_granted()
        while self._slots.starts and self._running and (deliveries := self._slots.next_start()) is not None:
            for delivery in deliveries:
                self._take(delivery)
        self._ask()

    def became_idle(self, runner: Runner, /) -> None:
        """Keep a suspended runner for its next event, up to the limit of the cache."""
        self._cached[runner.id] = runner
        self._cached.move_to_end(runner.id)
        while len(self._cached) > self._cache_limit:
            self._evict(self._cached.popitem(last=False)[1])

    def _evict(self, runner: Runner) -> None:
        self._runners.pop(runner.id, None)
        runner.close()

    def started(self, starts: Sequence[Start], /) -> None:
        """Note children and sends that are durable, to see whether a worker serves them."""
        for start in starts if self._running else ():
            self._unserved.note(start)

    def ended(self, runner: Runner, /) -> None:
        """Forget a runner whose invocation has settled or moved to another worker."""
        if self._runners.get(runner.id) is runner:
            del self._runners[runner.id]
        self._cached.pop(runner.id, None)

    def deliver_again(self, delivery: Delivery, /) -> None:
        """Give deliveries that came while an invocation settled to a new runner, which answers from the journal."""
        self._take(delivery)

    def pause_by_new_runner(self, deliveries: Sequence[Delivery], reason: str, /) -> None:
        """After an unexpected exception, give the deliveries to a new runner, which pauses the invocation."""
        if not self._running:
            return
        first = deliveries[0]
        try:
            runner = self._runners[first.id] = Runner(self, first, reason)
            for delivery in deliveries:
                runner.take(delivery)
        except BaseException as error:  # noqa: BLE001  nothing else would hand them back
            self._decline(first, error)

    def commit_failed(self, runner: Runner, error: BaseException, /) -> None:
        """Count and log that the store does not take commits, rate-limited: each is retried every second."""
        self.counters.commits_failed += 1
        self._log(
            type(error),
            "commit for invocation %s failed: %s; this and others are retried until they succeed",
            *(runner.id, error),
            exc_info=None if isinstance(error, StoreError) else error,
            extra=runner.about,
        )

    def make_turn(self, start: Start, /) -> Turn:
        """Make the turn of an invocation."""
        workflow = self.workflows[start.handler]
        limit = self.store.payload_limit

        def encode_result(value: Any) -> bytes:
            data = workflow.encode_result(value)
            if len(data) > limit:
                raise too_large(f"the result of workflow {workflow.name!r}", len(data), limit)
            return data

        return Turn(
            start,
            workflow.body(start),
            encode_result,
            secret=self.store.secret,
            translators=self._translators,
            stubs=self._stubs,
            context=Context,
            payload_limit=self.store.payload_limit,
        )

    def failure_of(self, error: BaseException, /) -> Failure:
        """Return an exception as the journal keeps it."""
        return failure_of(error, translators=self._translators())

    def begin_attempt(
        self, work: Work, info: StepInfo, runner: Runner, variables: contextvars.Context | None, trace: str, /
    ) -> Attempt:
        """Begin one attempt of a step, with the context variables that its call had."""
        return Attempt(work if self._replace is None else self._replace(work), info, self, runner, variables, trace)

    # --- traces -------------------------------------------------------------------------------------------------------
    def trail_of(self, start: Start, frames: Sequence[Frame] = (), /) -> Trail | None:
        """Return where an invocation is in its traces; None if nothing emits spans."""
        tracer = self._tracer()
        return None if tracer is None else Trail.of(start, frames, tracer.samples)

    def emit(self, spans: Sequence[Span], /) -> None:
        if (tracer := self._tracer()) is not None:
            for span in spans:
                tracer.emit(span)

    def attach(self, trace: str, /) -> None:
        """Make the context of an attempt the current one, for what its step calls."""
        here.set(trace)
        if (tracer := self._tracer()) is not None:
            tracer.attach(trace)

    def threads(self) -> concurrent.futures.ThreadPoolExecutor:
        """Return the pool in which sync steps run."""
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(
                min(THREADS_LIMIT, self.max_concurrent), thread_name_prefix="perdure-step"
            )
        return self._pool

    def channel(self, service: str, /) -> Any:
        """Return the gRPC channel to a service."""
        if self._channels is None:
            raise ServiceUnknown(
                f"no address for service {service!r}: give it to the worker, services={{{service!r}: 'host:port'}}",
                service=service,
            )
        return self._channels.channel(service)


async def _on_duty(duty: Duty) -> None:
    """Do a duty until the worker stops. What it raises is logged, and stops nothing else."""
    while True:
        try:
            await duty()
        except StoreClosed:
            return
        except StoreError as error:
            log.warning("a duty of this worker rests for %g s: %s", DUTY_AGAIN_SECONDS, error)
        except Exception as error:  # noqa: BLE001  the invocations go on
            text = "a duty of this worker has failed, and begins anew in %g s"
            log_error(log, text, DUTY_AGAIN_SECONDS, error=error)
        await asyncio.sleep(DUTY_AGAIN_SECONDS)


def by_name(workflows: Sequence[Workflow[..., Any]]) -> dict[str, Workflow[..., Any]]:
    """Return workflows by their handler names and aliases, or raise `NameTaken`."""
    named: dict[str, Workflow[..., Any]] = {}
    for workflow in workflows:
        for name in (workflow.name, *workflow.aliases):
            other = named.get(name)
            if other is not None and other is not workflow:
                both = f"{other.where} and {workflow.where}"
                text = f"two workflows are called {name!r}: {both}; name one with @workflow(name=...)"
                raise NameTaken(text, name=name)
            named[name] = workflow
    return named
