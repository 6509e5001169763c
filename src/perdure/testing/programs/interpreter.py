"""The workflow that runs a program, and its steps."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from perdure.authoring.context import Context
from perdure.authoring.group import Completed, Failed, WaitForQuota
from perdure.authoring.step import step, step_info
from perdure.authoring.workflow import Workflow, workflow
from perdure.core.retry import Retry
from perdure.errors import (
    AwakeableRejected,
    CompensationFailed,
    InvocationCancelled,
    InvocationTimedOut,
    KeyDeadlock,
)
from perdure.testing.programs import tools
from perdure.testing.programs.policies import BROKEN_BY, policy_of
from perdure.testing.programs.program import (
    LOG,
    NAP_SECONDS,
    TIMED_OUT,
    Again,
    AnyOperation,
    Ask,
    Branch,
    Break,
    Call,
    Draw,
    Drop,
    Generate,
    Get,
    GiveUp,
    Group,
    Guard,
    Limit,
    Mend,
    Nap,
    Outcome,
    Pass,
    Program,
    Put,
    Race,
    Result,
    Send,
    Shield,
    Together,
    Undo,
    Work,
    decode,
    encode,
    failure_of,
    has_failed,
    must_be_mended,
    noted,
    result_of,
    told_of,
)
from perdure.testing.programs.tools import BrokenError

QUICK = Retry(max_attempts=4, initial=0.01, factor=1, jitter=0)
TWICE = Retry(max_attempts=2, initial=0.01)
LASTING = Retry(max_attempts=1_000, initial=0.01, factor=1, jitter=0)
"""For a step with a time limit: on a slow machine many an attempt may be too late."""
SLOW_SECONDS = 0.1
"""The time limit of a step that is slow at first."""
CLEANUP = "clean_up"
"""The name of the steps that a program does however it ends."""
CANCELLED_TWICE = "its cleanup was cancelled once more"
TIMES_AGAIN = 3
AGAIN_SECONDS = 0.3
"""How often, and how long after a failure, a child is awaited again."""
EVER_SECONDS = 86_400.0
"""How long a slow step would take, and how long a group may take to settle."""


class Outside(Protocol):
    """What programs touch beside the engine. Steps call it, and may call it again after a crash."""

    def ran(self, key: str, attempt: int, /) -> None:
        """Take note that an attempt of a step begins. `key` is the step's idempotency key."""
        ...

    def asked(self, awakeable: str, value: str, rejected: bool, /) -> None:
        """Have an awakeable resolved with a value, or rejected with it. It may be later; once is enough."""
        ...

    def mended(self, tag: str, /) -> bool:
        """Report whether the program of this tag, which had failed, has been mended."""
        ...


class Interpreter:
    """Runs programs. A worker serves its `workflow`, whose name is the same for each.

    `strays` is asked by a body before each operation whether it is to ask for something that its program does not say.
    """

    def __init__(self, outside: Outside, strays: Callable[[], bool] | None = None) -> None:
        self._outside = outside
        self._strays = strays
        self.workflow: Workflow[[str], list[Any]] = workflow(name="interpret")(self.interpret)

    def started(self, program: Program) -> Workflow[[str], list[Any]]:
        """Return the workflow with the options that a program names."""
        found = self.workflow
        if program.key is not None:
            found = found.using(key=program.key)
        if program.chosen:
            found = found.using(id=program.tag)
        if program.delay:
            found = found.using(delay=program.delay)
        return found

    async def interpret(self, ctx: Context, text: str) -> list[Any]:
        """Do what a program says, and return what each of its operations gave."""
        return await _Body(self, ctx, decode(text)).run()

    # --- steps --------------------------------------------------------------------------------------------------------
    @step(retry=QUICK)
    async def work(self, tag: str, value: str, failures: int, size: int) -> str:
        """Fail so often, then return the value, padded to the size."""
        self._begin()
        return _worked(tag, value, failures, size)

    @step(retry=QUICK)
    def work_in_thread(self, tag: str, value: str, failures: int, size: int) -> str:
        """Do the same as a plain function."""
        self._begin()
        return _worked(tag, value, failures, size)

    @step(retry=LASTING, timeout=SLOW_SECONDS)
    async def work_slowly(self, tag: str, value: str, size: int) -> str:
        """Outlast the time limit the first time."""
        self._begin()
        if step_info().attempt == 1:
            await asyncio.sleep(EVER_SECONDS)
        return _worked(tag, value, 0, size)

    @step(retry=TWICE)
    async def break_down(self, text: str) -> None:
        """Fail."""
        self._begin()
        raise BrokenError(text)

    @step(retry=QUICK)
    async def undo(self, tag: str, number: int) -> None:
        """Undo a part; the first attempt fails."""
        self._begin()
        if step_info().attempt == 1:
            raise ConnectionError(f"attempt 1 of {tag}")

    @step(retry=TWICE)
    async def mend(self, tag: str, text: str) -> None:
        """Fail until it is mended."""
        self._begin()
        if not self._outside.mended(tag):
            raise BrokenError(text)

    @step
    async def hand_out(self, awakeable: str, value: str, rejected: bool) -> None:
        """Give an awakeable to the outside."""
        self._begin()
        self._outside.asked(awakeable, value, rejected)

    @step
    async def tidy_up(self, tag: str) -> str:
        """Clean up."""
        self._begin()
        return "tidied up"

    @step
    async def clean_up(self, tag: str, number: int) -> None:
        """Do a part of the cleanup, however the program ended."""
        self._begin()

    @step
    async def stray(self, tag: str) -> None:
        """Do what no program asks for."""

    @property
    def strays(self) -> bool:
        """Whether a body is to ask for something else now."""
        return self._strays is not None and self._strays()

    def _begin(self) -> None:
        info = step_info()
        self._outside.ran(info.idempotency_key, info.attempt)


def _worked(tag: str, value: str, failures: int, size: int) -> str:
    if step_info().attempt <= failures:
        raise ConnectionError(f"attempt {step_info().attempt} of {tag}")
    return value.ljust(size)


class _Body:
    """One invocation."""

    def __init__(self, steps: Interpreter, ctx: Context, program: Program) -> None:
        self._steps = steps
        self._ctx = ctx
        self._program = program
        self._tag = program.tag
        self._uses = 0  # of the state

    async def run(self) -> list[Any]:
        self._note()
        if not self._program.cleanup:
            return await self._do()
        cancelled: asyncio.CancelledError | None = None
        try:
            return await self._do()
        except asyncio.CancelledError as error:
            cancelled = error
            raise
        finally:
            await self._clean_up(self._program.cleanup, cancelled)

    async def _do(self) -> list[Any]:
        if self._program.endless:
            await self._ctx.awakeable(str)
        return [self._tag, *await self._each(self._program.operations)]

    async def _clean_up(self, parts: int, cancelled: asyncio.CancelledError | None) -> None:
        """Do all parts, also if the cancellation comes meanwhile; end as cancelled then. It may come once."""
        done = 0
        while done < parts:
            try:
                await self._steps.clean_up(self._tag, done)
                done += 1
            except asyncio.CancelledError as error:
                if cancelled is not None:
                    raise RuntimeError(CANCELLED_TWICE) from error
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _note(self, number: int | None = None) -> None:
        log = self._ctx.get(LOG, list[str], default=[])
        self._ctx.set(LOG, [*log, noted(self._tag, number)])

    async def _each(self, operations: Branch) -> list[Any]:
        return [await self._one(each) for each in operations]

    async def _one(self, operation: AnyOperation) -> Result:
        if self._steps.strays:
            await self._steps.stray(self._tag)
        match operation:
            case Put() | Drop() | Get():
                return self._use_state(operation)
            case Together() | Race() | Limit() | Shield() | Pass() | Guard():
                return await self._beside(operation)
            case Call() | Again() | Send() | Group() | GiveUp():
                return await self._others(operation)
            case _:
                return await self._alone(operation)

    async def _alone(self, operation: Work | Break | Mend | Undo | Draw | Nap | Ask | Generate) -> Result:
        steps, tag = self._steps, self._tag
        match operation:
            case Work():
                return await self._work(operation)
            case Break(caught):
                return await self._break(caught)
            case Mend(undone=0):
                await steps.mend(tag, must_be_mended(self._program))
                return result_of(operation)
            case Mend(parts) | Undo(parts):
                await self._undo(parts, mends=isinstance(operation, Mend))
                return result_of(operation)
            case Draw():
                return await self._draw()
            case Nap(seconds):
                return await _nap(seconds)
            case Ask():
                return await self._ask(operation)
            case Generate(values, taken):
                return await tools.take(values, taken, self._act, lambda: steps.tidy_up(tag))

    async def _work(self, operation: Work) -> str:
        steps, value = self._steps, operation.value
        if operation.slow:
            found = await steps.work_slowly(self._tag, value, operation.size)
            return f"{found.strip()} {len(found)}"
        step = steps.work_in_thread if operation.threaded else steps.work
        if operation.attempts is not None:
            step = step.using(retry=Retry(max_attempts=operation.attempts, initial=0.02, factor=2, jitter=0.5))
        if operation.policy is not None:
            step = step.using(retry=policy_of(operation.policy))
        try:
            found = await step(self._tag, value, operation.failures, operation.size)
        except (ConnectionError, *BROKEN_BY):
            return f"failed {value}"
        return f"{found.strip()} {len(found)}"

    async def _act(self, value: str) -> str:
        return await self._steps.work(self._tag, value, 0, 0)

    async def _break(self, caught: bool) -> str:
        try:
            await self._steps.break_down(failure_of(self._program))
        except BrokenError:
            if not caught:
                raise
        return "caught"

    async def _undo(self, parts: int, *, mends: bool) -> None:
        steps, tag = self._steps, self._tag
        try:
            async with self._ctx.saga() as saga:
                for number in range(parts):
                    if mends and number == parts // 2:
                        saga.add_compensation(steps.mend, tag, must_be_mended(self._program))
                    saga.add_compensation(steps.undo, tag, number)
                await steps.break_down(failure_of(self._program))
        except BrokenError:
            pass
        except CompensationFailed as error:
            raise BrokenError(must_be_mended(self._program)) from error

    async def _draw(self) -> str:
        ctx = self._ctx
        drawn = f"{ctx.uuid4()} {ctx.random.random()} {ctx.now()}"
        return "drawn" if await self._act(drawn) == drawn else f"drew {drawn}, and got something else"

    async def _ask(self, operation: Ask) -> str:
        awakeable = self._ctx.awakeable(str)
        try:
            if operation.impatient:
                await tools.limit(NAP_SECONDS / 4, functools.partial(_wait_for, awakeable), "timeout")
            await self._steps.hand_out(awakeable.id, operation.value, operation.rejected)
            return await awakeable
        except AwakeableRejected as error:
            return f"rejected {error.reason}"

    # --- the state ----------------------------------------------------------------------------------------------------
    def _use_state(self, operation: Put | Drop | Get) -> Result:
        ctx = self._ctx
        self._note(self._uses)
        self._uses += 1
        match operation:
            case Put(name, value):
                ctx.set(name, value)
                return result_of(operation)
            case Drop(name):
                ctx.delete(name)
                return result_of(operation)
            case Get(name):
                return ctx.get(name, str, default="nothing")

    # --- others -------------------------------------------------------------------------------------------------------
    async def _others(self, operation: Call | Again | Send | Group | GiveUp) -> Result:
        match operation:
            case Call(child):
                return await self._call(child)
            case Again(child):
                for _ in range(TIMES_AGAIN - 1):
                    told = await self._call(child)
                    if not has_failed(told):
                        return told
                    await asyncio.sleep(AGAIN_SECONDS)
                return await self._call(child)
            case Send(sent):
                self._ctx.send(self._steps.started(sent), _text(sent))
                return result_of(operation)
            case Group(members, concurrency, quota):
                return await self._group(members, concurrency, quota)
            case GiveUp():
                return await self._give_up(operation)

    async def _call(self, child: Program) -> Result:
        try:
            return told_of(await self._steps.started(child)(_text(child)))
        except KeyDeadlock as error:
            return f"refused {error.key}"
        except (BrokenError, InvocationCancelled) as error:
            return told_of(outcome_of(error))

    async def _group(self, members: Sequence[Program], concurrency: int, quota: int | None) -> Result:
        group = await self._ctx.run_all(
            [self._steps.started(each).bind(_text(each)) for each in members],
            wait=None if quota is None else WaitForQuota(quota),
            concurrency=concurrency,
            settle=EVER_SECONDS,
        )
        return [
            told_of(each.value if isinstance(each, Completed) else outcome_of(each.error))
            if isinstance(each, Completed | Failed)
            else told_of(None)
            for each in group.results
        ]

    async def _give_up(self, operation: GiveUp) -> str:
        tidied = "not tidied up"

        async def wait() -> None:
            nonlocal tidied
            try:
                if (child := operation.child) is None:
                    await self._ctx.awakeable(str)
                else:
                    workflow = self._steps.started(child)
                    if operation.way == "limit":
                        workflow = workflow.using(timeout=operation.seconds)
                    await workflow(_text(child))
            finally:
                tidied = await self._steps.tidy_up(self._tag)

        gave_up = await tools.give_up(operation.seconds, wait, operation.way)
        return f"gave up, {tidied}" if gave_up else "got what never comes"

    # --- side by side -------------------------------------------------------------------------------------------------
    async def _beside(self, operation: Together | Race | Limit | Shield | Pass | Guard) -> Result:
        match operation:
            case Together(branches, way):
                return await tools.together([*map(self._made, branches)], way)
            case Race(branches):
                return await tools.race([*map(self._made, branches)])
            case Limit(seconds, branch, way):
                return await tools.limit(seconds, self._made(branch), way)
            case Shield(seconds, branch):
                return await tools.shield(seconds, self._made(branch))
            case Pass(values, tasks, room):
                return await tools.through_queue(values, tasks, room, self._act)
            case Guard(values, way):
                return await tools.guarded(values, way, self._act)

    def _made(self, branch: Branch) -> tools.Make:
        def make() -> Coroutine[Any, Any, Result]:
            return self._each(branch)

        return make


async def _nap(seconds: float) -> str:
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    await asyncio.sleep(seconds)
    return "slept" if loop.time() >= due else f"woken {due - loop.time()} s early"


async def _wait_for(awakeable: Any) -> Result:
    return await awakeable


def _text(program: Program) -> str:
    return encode(program).decode()


def outcome_of(error: BaseException) -> Outcome:
    """Return what the model calls the end of an invocation that raised. What no program can raise is told in full."""
    match error:
        case InvocationCancelled():
            return None
        case InvocationTimedOut():
            return TIMED_OUT
        case BrokenError():
            return str(error)
        case _:
            return f"{type(error).__name__}: {error}"
