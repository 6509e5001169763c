"""The workflow that runs a program, and its steps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from perdure.authoring.context import Context
from perdure.authoring.step import step, step_info
from perdure.authoring.workflow import Workflow, workflow
from perdure.core.retry import Retry
from perdure.errors import AwakeableRejected, KeyDeadlock
from perdure.testing.programs.program import (
    LOG,
    AnyOperation,
    Ask,
    Break,
    Call,
    Drop,
    Get,
    GiveUp,
    Nap,
    Program,
    Put,
    Send,
    Together,
    Work,
    decode,
    encode,
    failure_of,
    result_of,
    told_of,
)

QUICK = Retry(max_attempts=4, initial=0.01, factor=1, jitter=0)


class BrokenError(Exception):
    """What programs fail with."""


class Outside(Protocol):
    """What programs touch beside the engine. Steps call it, and may call it again after a crash."""

    def ran(self, key: str, attempt: int, /) -> None:
        """Take note that an attempt of a step begins. `key` is the step's idempotency key."""
        ...

    def asked(self, awakeable: str, value: str, rejected: bool, /) -> None:
        """Have an awakeable resolved with a value, or rejected with it. It may be later; once is enough."""
        ...


class Interpreter:
    """Runs programs. A worker serves its `workflow`, whose name is the same for each."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside
        self.workflow: Workflow[[str], list[str]] = workflow(name="interpret")(self.interpret)

    def started(self, program: Program) -> Workflow[[str], list[str]]:
        """Return the workflow with the options that a program names."""
        found = self.workflow
        if program.key is not None:
            found = found.using(key=program.key)
        if program.chosen:
            found = found.using(id=program.tag)
        if program.delay:
            found = found.using(delay=program.delay)
        return found

    # --- steps --------------------------------------------------------------------------------------------------------
    @step(retry=QUICK)
    async def work(self, tag: str, value: str, failures: int, size: int) -> str:
        self._begin()
        if step_info().attempt <= failures:
            raise ConnectionError(f"attempt {step_info().attempt} of {tag}")
        return value.ljust(size)

    @step(retry=Retry(max_attempts=2, initial=0.01))
    async def break_down(self, text: str) -> None:
        self._begin()
        raise BrokenError(text)

    @step
    async def hand_out(self, awakeable: str, value: str, rejected: bool) -> None:
        self._begin()
        self._outside.asked(awakeable, value, rejected)

    @step
    async def tidy_up(self, tag: str) -> None:
        self._begin()

    def _begin(self) -> None:
        info = step_info()
        self._outside.ran(info.idempotency_key, info.attempt)

    # --- the body -----------------------------------------------------------------------------------------------------
    async def interpret(self, ctx: Context, text: str) -> list[str]:
        """Do what a program says, and return what each of its operations gave."""
        program = decode(text)
        ctx.set(LOG, [*ctx.get(LOG, list[str], default=[]), program.tag])
        if program.endless:
            try:
                await ctx.awakeable(str)
            finally:
                await self.tidy_up(program.tag)
        return [program.tag, *await self._each(ctx, program, program.operations)]

    async def _each(self, ctx: Context, program: Program, operations: Sequence[AnyOperation]) -> list[str]:
        return [await self._one(ctx, program, each) for each in operations]

    async def _one(self, ctx: Context, program: Program, operation: AnyOperation) -> str:
        match operation:
            case Work(value, failures, size):
                found = await self.work(program.tag, value, failures, size)
                return f"{found.strip()} {len(found)}"
            case Break(caught):
                return await self._break(program, caught)
            case Nap(seconds):
                return await _nap(seconds)
            case Ask(value, rejected):
                return await self._ask(ctx, value, rejected)
            case Put(name, value):
                ctx.set(name, value)
            case Drop(name):
                ctx.delete(name)
            case Get(name):
                return ctx.get(name, str, default="nothing")
            case Call(child):
                return await self._call(child)
            case Send(sent):
                ctx.send(self.started(sent), encode(sent).decode())
            case GiveUp(seconds, child):
                return await self._give_up(ctx, seconds, child)
            case Together(branches):
                return str(await asyncio.gather(*(self._each(ctx, program, branch) for branch in branches)))
        return result_of(operation)

    async def _break(self, program: Program, caught: bool) -> str:
        try:
            await self.break_down(failure_of(program))
        except BrokenError:
            if not caught:
                raise
        return "caught"

    async def _ask(self, ctx: Context, value: str, rejected: bool) -> str:
        awakeable = ctx.awakeable(str)
        await self.hand_out(awakeable.id, value, rejected)
        try:
            return await awakeable
        except AwakeableRejected as error:
            return f"rejected {error.reason}"

    async def _call(self, child: Program) -> str:
        try:
            return told_of(await self.started(child)(encode(child).decode()))
        except BrokenError as error:
            return told_of(str(error))
        except KeyDeadlock as error:
            return f"refused {error.key}"

    async def _give_up(self, ctx: Context, seconds: float, child: Program | None) -> str:
        try:
            async with asyncio.timeout(seconds):
                if child is None:
                    await ctx.awakeable(str)
                else:
                    await self.started(child)(encode(child).decode())
        except TimeoutError:
            return "gave up"
        return "got what never comes"


async def _nap(seconds: float) -> str:
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    await asyncio.sleep(seconds)
    return "slept" if loop.time() >= due else f"woken {due - loop.time()} s early"
