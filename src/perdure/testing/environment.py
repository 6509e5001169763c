"""The test environment: the real engine on a memory store, with a clock that jumps.

Every turn is replayed from its journal after every commit, so a body that is not deterministic diverges in its first
test. Time stands still while anything happens. It moves by `advance`; and while a test waits for a result that nothing
but time can bring, it jumps to whatever is due next.

What can go wrong in production goes wrong here on demand: workers die, before and after a commit; the store does not
take a commit; deliveries come twice.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, ParamSpec, Protocol, Self, TypeVar, cast, overload, runtime_checkable

from perdure.authoring.step import Step, StepHost, StepInfo, StepWork, Work
from perdure.authoring.workflow import Workflow
from perdure.client import Client
from perdure.connect import make_stub, translators_in_use, worker_of
from perdure.core.retry import Duration, seconds
from perdure.core.values import is_alike, type_name
from perdure.errors import InvalidOption, PerdureError, StoreClosed, StoreFull, Unencodable
from perdure.handle import Handle
from perdure.operations.carrying import Carrier
from perdure.operations.local import Local
from perdure.runtime.worker import Worker
from perdure.stores.clock import VirtualClock
from perdure.stores.memory import MemoryStore

P = ParamSpec("P")
R = TypeVar("R")

QUIET_ROUNDS = 10
"""Rounds of the loop without anything happening before the environment takes it that only time is missing."""

STUCK_ROUNDS = 100
"""Looks without any change, a poll apart, before a fake that has not ended is taken to wait for time."""

POLL_SECONDS = 0.001
"""Real seconds between two looks at steps that run in threads or do real I/O."""


class Environment:
    """Serves workflows from memory, on a virtual clock. Use it as an async context manager.

    `client` is an ordinary client. `replay=False` keeps turns alive between events, as in production::

        async def test_approved_after_days_and_a_crash():
            async with Environment(expense_approval) as env:
                env.fake(notify_manager, lambda request, id: None)
                handle = await env.client.start(expense_approval, Expense("E1", 12.5))
                await env.advance(timedelta(days=3))
                await env.crash()
                await env.client.resolve(await env.awakeable(handle), Approval(True))
                assert await handle.result() == "approved"

    `commits` counts the frames written so far, `crashes` the workers that died.
    """

    def __init__(self, *workflows: Workflow[..., Any], max_concurrent: int = 100, replay: bool = True) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore(self.clock)
        self.store.hook = self._before_write
        self._operations = Local(lambda: self.store, name="the test environment")
        self._duties = (self._operations.scheduling.on_duty, Carrier(self._operations).run)
        make_worker = functools.partial(worker_of, self._operations.opened, duties=self._duties)
        self.client = Client(self._operations, make_worker, translators_in_use)
        self.commits = 0
        self.crashes = 0
        self._workflows = workflows
        self._max_concurrent = max_concurrent
        self._replay = replay
        self._fakes: dict[str, Callable[..., Any]] = {}
        self._faked: set[_Fake] = set()  # attempts of fakes that run now
        self._compared: set[tuple[str, type]] = set()  # steps and the types of their results that came back equal
        self._faults: dict[int, Callable[[], None]] = {}  # by the number of the commit
        self._restart: asyncio.Task[None] | None = None
        self._stack = AsyncExitStack()
        self._advancing = False
        self.worker = self._make_worker()

    def _make_worker(self) -> Worker:
        return Worker(
            self._operations.opened,
            self._workflows,
            max_concurrent=self._max_concurrent,
            always_replay=self._replay,
            translators=translators_in_use,
            stubs=make_stub,
            replace=self._replace,
            duties=self._duties,
        )

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.client)
        await self.worker.__aenter__()
        self._jumper = asyncio.create_task(self._jump_when_stuck())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._faults.clear()
        self._jumper.cancel()
        await asyncio.wait([self._jumper])
        if self._restart is not None:
            await self._restart
        await self.worker.stop(grace=0)
        await self._stack.aclose()

    # --- fakes --------------------------------------------------------------------------------------------------------
    @overload
    def fake(self, step: Step[P, R], function: Callable[P, R | Awaitable[R]], /) -> None: ...
    @overload
    def fake(self, step: str, function: Callable[[Any], Any], /) -> None: ...
    def fake(self, step: Any, function: Callable[..., Any], /) -> None:
        """Run `function`, plain or async, in place of a step; its result must fit the step's annotation.

        A gRPC method is named as in the journal, `env.fake("TicketService.Reserve", reserve)`: the function gets the
        request and returns the reply. What a fake raises is a failure like any other, tried again by the policy.
        """
        if isinstance(step, str):
            if not all(part.isidentifier() for part in step.split(".")) or step.count(".") != 1:
                raise InvalidOption(f"fake({step!r}): name a gRPC method as 'Service.Method', or give the step itself")
            self._fakes[step] = function
        elif isinstance(step, Step):
            self._fakes[cast("Step[..., Any]", step).name] = function
        else:
            raise InvalidOption(f"fake() takes a step, or a gRPC method's name, not {step!r}")

    # --- faults -------------------------------------------------------------------------------------------------------
    async def crash(self) -> None:
        """End the worker as SIGKILL would, and let another take over at once. Handles and waits go on.

        What it had not committed is lost: steps that ran run again.
        """
        self._halt()
        if self._restart is not None:
            await self._restart

    def crash_before_commit(self, number: int = 1) -> None:
        """Let the worker die right before it commits for the `number`-th time from now: that commit is lost."""

        def die() -> None:
            self._halt()
            raise StoreClosed("the worker dies here, as the test asked")

        self._at_commit(number, die)

    def crash_after_commit(self, number: int = 1) -> None:
        """Let the worker die right after its `number`-th commit from now, before it acts on it or tells anybody."""

        def die() -> None:
            asyncio.get_running_loop().call_soon(self._halt)

        self._at_commit(number, die)

    def fail_commits(self, times: int = 1) -> None:
        """Let the next `times` commits fail, as on a full disk. They are tried again, a second later each."""

        def fail() -> None:
            raise StoreFull("the store is full, as the test asked")

        for number in range(1, times + 1):
            self._at_commit(number, fail)

    def redeliver(self) -> None:
        """Deliver everything that is in a worker's hands once more, as a store may whose acknowledgements were late."""
        self.store.redeliver()

    def _at_commit(self, number: int, fault: Callable[[], None]) -> None:
        if number < 1:
            raise InvalidOption(f"the {number}. commit from now: give at least 1")
        self._faults[self.commits + number] = fault

    def _before_write(self, kind: str, _: str) -> None:
        if kind == "frame":
            self.commits += 1
            if (fault := self._faults.pop(self.commits, None)) is not None:
                fault()

    def _halt(self) -> None:
        if self._restart is None:
            self.crashes += 1
            self.worker.halt()
            self._restart = asyncio.ensure_future(self._take_over())

    async def _take_over(self) -> None:
        await self.worker.crash()
        self.worker = self._make_worker()
        await self.worker.__aenter__()
        self._restart = None

    # --- time ---------------------------------------------------------------------------------------------------------
    async def advance(self, by: Duration, /) -> None:
        """Move time forward; timers, retries and limits that become due take effect in order."""
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
        """Wait until nothing more can happen without time passing.

        A fake that does not end is not waited for: what can happen then is that its time limit passes, or a timeout
        around it.
        """
        calm = 0
        stuck, seen = 0, self._seen
        while calm < QUIET_ROUNDS and stuck < STUCK_ROUNDS:
            calm = calm + 1 if self._quiet else 0
            await asyncio.sleep(0 if calm else POLL_SECONDS)
            before, seen = seen, self._seen
            only_fakes = self._restart is None and 0 < len(self._faked) == len(self.worker.steps_in_progress)
            stuck = stuck + 1 if only_fakes and seen == before else 0

    @property
    def _seen(self) -> tuple[object, ...]:
        """What changes when anything happens, as long as only fakes run."""
        return self.commits, self.crashes, *((id(fake), id(fake.waits_for)) for fake in self._faked)

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

    @property
    def _quiet(self) -> bool:
        return self._restart is None and self.worker.quiet and self._operations.scheduling.quiet

    def _replace(self, work: Work) -> Work:
        function = self._fakes.get(work.name)
        if function is None:
            return _Compared(work, self._compared) if isinstance(work, StepWork) else work
        if isinstance(work, StepWork):
            return _FakeStep(work, function, self._faked, self._compared)
        return _FakeCall(work, function, self._faked) if isinstance(work, Answerable) else work

    async def _jump_when_stuck(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._advancing or not self.store.awaited or not self._quiet:
                continue
            await self.settle()
            due = self.clock.next_due()
            if due is not None and not self._advancing and self.store.awaited and self._quiet:
                self.clock.move_to(due)


@runtime_checkable
class Answerable(Work, Protocol):
    """A call of a service that a function can answer in its place."""

    async def answer_with(self, function: Callable[[Any], Any], /) -> bytes: ...


def encoded(step: Step[..., Any], value: Any, compared: set[tuple[str, type]], /) -> bytes:
    """Encode the result of a step, after proving once for each type that it comes back equal."""
    payload = step.encode_result(value)
    kind = cast("object", value).__class__
    known = (step.name, kind)
    if known not in compared:
        returned = step.decode_result(payload)
        if not is_alike(value, returned):
            raise Unencodable(
                f"the result of step {step.name!r} would not come back as it is: it is {value!r}, and comes back as "
                f"{returned!r}: look for a hook or a serializer that changes it",
                type=type_name(kind),
            )
        compared.add(known)
    return payload


class _Compared:
    """A step's call whose result is proved to come back equal."""

    def __init__(self, work: StepWork, compared: set[tuple[str, type]]) -> None:
        self._work = work
        self._compared = compared
        self.name = work.name
        self.retry = work.retry
        self.timeout = work.timeout

    async def run(self, host: StepHost, info: StepInfo, /) -> bytes:
        return encoded(self._work.step, await self._work.call(host), self._compared)


class _Fake:
    """A step's call that runs another function. It is in `running` while it does."""

    def __init__(self, work: Work, function: Callable[..., Any], running: set[_Fake]) -> None:
        self._function = function
        self._running = running
        self._task: asyncio.Task[Any] | None = None
        self.name = work.name
        self.retry = work.retry
        self.timeout = work.timeout

    @property
    def waits_for(self) -> object:
        """What its task waits for: another object whenever it gets a step further."""
        return getattr(self._task, "_fut_waiter", None)

    async def run(self, host: StepHost, info: StepInfo, /) -> bytes:
        self._task = asyncio.current_task()
        self._running.add(self)
        try:
            return await self._call()
        finally:
            self._running.discard(self)

    async def _call(self) -> bytes:
        raise NotImplementedError


class _FakeStep(_Fake):
    def __init__(
        self, work: StepWork, function: Callable[..., Any], running: set[_Fake], compared: set[tuple[str, type]]
    ) -> None:
        super().__init__(work, function, running)
        self._work = work
        self._compared = compared

    async def _call(self) -> bytes:
        value = self._function(*self._work.args, **self._work.kwargs)
        if inspect.isawaitable(value):
            value = await value
        return encoded(self._work.step, value, self._compared)


class _FakeCall(_Fake):
    def __init__(self, work: Answerable, function: Callable[..., Any], running: set[_Fake]) -> None:
        super().__init__(work, function, running)
        self._work = work

    async def _call(self) -> bytes:
        return await self._work.answer_with(self._function)


def crash_everywhere(
    *workflows: Workflow[..., Any], max_concurrent: int = 100, replay: bool = True
) -> Iterator[Environment]:
    """Give one environment after another, each with a worker that dies at another commit, before or after it.

    The last one is left in peace, since its test commits no further. So a test in the loop shows that a workflow
    survives a death at any moment::

        async def test_checkout_survives_a_crash_at_any_moment():
            for env in crash_everywhere(checkout):
                async with env:
                    assert await env.client.run(checkout, cart) == receipt
    """
    for number in itertools.count(1):
        for written in (False, True):
            environment = Environment(*workflows, max_concurrent=max_concurrent, replay=replay)
            if written:
                environment.crash_after_commit(number)
            else:
                environment.crash_before_commit(number)
            yield environment
            if not environment.crashes:
                return
