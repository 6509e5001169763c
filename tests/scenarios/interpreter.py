"""The workflow that runs a program of tests/scenarios/programs.py, and its steps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from perdure import Context, KeyDeadlock, Retry, Workflow, step, step_info, workflow
from perdure.errors import AwakeableRejected
from tests.scenarios.notes import note
from tests.scenarios.programs import (
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


@step(retry=QUICK)
async def work(tag: str, value: str, failures: int, size: int) -> str:
    if step_info().attempt <= failures:
        raise ConnectionError(f"attempt {step_info().attempt} of {tag}")
    return value.ljust(size)


@step(retry=Retry(max_attempts=2, initial=0.01))
async def break_down(text: str) -> None:
    raise BrokenError(text)


@step
async def hand_out(awakeable: str, value: str, rejected: bool) -> None:
    note(f"ask {awakeable} {value} {int(rejected)}")


@step
async def tidy_up(tag: str) -> None:
    note(f"tidy {tag}")


@workflow
async def interpret(ctx: Context, text: str) -> list[str]:
    """Do what a program says, and return what each of its operations gave."""
    program = decode(text)
    ctx.set(LOG, [*ctx.get(LOG, list[str], default=[]), program.tag])
    if program.endless:
        try:
            await ctx.awakeable(str)
        finally:
            await tidy_up(program.tag)
    return [program.tag, *await _each(ctx, program, program.operations)]


def started(program: Program) -> Workflow[[str], list[str]]:
    """Return the workflow with the options that a program names."""
    found: Workflow[[str], list[str]] = interpret
    if program.key is not None:
        found = found.using(key=program.key)
    if program.chosen:
        found = found.using(id=program.tag)
    if program.delay:
        found = found.using(delay=program.delay)
    return found


async def _each(ctx: Context, program: Program, operations: Sequence[AnyOperation]) -> list[str]:
    return [await _one(ctx, program, each) for each in operations]


async def _one(ctx: Context, program: Program, operation: AnyOperation) -> str:
    match operation:
        case Work(value, failures, size):
            found = await work(program.tag, value, failures, size)
            return f"{found.strip()} {len(found)}"
        case Break(caught):
            return await _break(program, caught)
        case Nap(seconds):
            return await _nap(seconds)
        case Ask(value, rejected):
            return await _ask(ctx, value, rejected)
        case Put(name, value):
            ctx.set(name, value)
        case Drop(name):
            ctx.delete(name)
        case Get(name):
            return ctx.get(name, str, default="nothing")
        case Call(child):
            return await _call(child)
        case Send(sent):
            ctx.send(started(sent), encode(sent).decode())
        case GiveUp(seconds, child):
            return await _give_up(ctx, seconds, child)
        case Together(branches):
            return str(await asyncio.gather(*(_each(ctx, program, branch) for branch in branches)))
    return result_of(operation)


async def _break(program: Program, caught: bool) -> str:
    try:
        await break_down(failure_of(program))
    except BrokenError:
        if not caught:
            raise
    return "caught"


async def _nap(seconds: float) -> str:
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    await asyncio.sleep(seconds)
    return "slept" if loop.time() >= due else f"woken {due - loop.time()} s early"


async def _ask(ctx: Context, value: str, rejected: bool) -> str:
    awakeable = ctx.awakeable(str)
    await hand_out(awakeable.id, value, rejected)
    try:
        return await awakeable
    except AwakeableRejected as error:
        return f"rejected {error.reason}"


async def _call(child: Program) -> str:
    try:
        return told_of(await started(child)(encode(child).decode()))
    except BrokenError as error:
        return told_of(str(error))
    except KeyDeadlock as error:
        return f"refused {error.key}"


async def _give_up(ctx: Context, seconds: float, child: Program | None) -> str:
    try:
        async with asyncio.timeout(seconds):
            if child is None:
                await ctx.awakeable(str)
            else:
                await started(child)(encode(child).decode())
    except TimeoutError:
        return "gave up"
    return "got what never comes"
