"""The workflows of the scenarios: plain asyncio, module level. Their steps note what they do."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from datetime import timedelta

from perdure import ChildCancelled, Context, NonRetryable, Retry, Workflow, step, step_info, stream, workflow
from perdure.errors import AwakeableRejected
from tests.scenarios.notes import closed, die, gate, note

QUICK = Retry(max_attempts=5, initial=0.05, factor=1, jitter=0)


# --- steps ------------------------------------------------------------------------------------------------------------
@step
async def stage(name: str, seconds: float = 0.0) -> str:
    """Note that it ran, with a gate before and after; return its name in capitals."""
    await gate(f"before {name}")
    note(f"ran {name}")
    if seconds:
        await asyncio.sleep(seconds)
    await gate(f"after {name}")
    return name.upper()


@step
async def nap(name: str, seconds: float) -> str:
    """Take some time, and note that it did."""
    await asyncio.sleep(seconds)
    note(f"ran {name}")
    return name


@step
async def remember(text: str) -> None:
    note(text)


# --- steps and recovery -----------------------------------------------------------------------------------------------
@workflow
async def three(tag: str) -> list[str]:
    return [await stage(f"{tag}-a"), await stage(f"{tag}-b"), await stage(f"{tag}-c")]


@workflow
async def climbs(tag: str, steps: int) -> int:
    for number in range(steps):
        await stage(f"{tag}-{number}")
    return steps


@step(retry=QUICK)
async def works_at_third(tag: str) -> int:
    note(f"{tag} {step_info().attempt} {time.time():.3f}")
    if step_info().attempt < 3:
        raise ConnectionError(f"attempt {step_info().attempt} of {tag}")
    return step_info().attempt


@workflow
async def patient(tag: str) -> int:
    return await works_at_third(tag)


@workflow
async def very_patient(tag: str, wait: float) -> int:
    retry = Retry(max_attempts=5, initial=wait, factor=1, jitter=0)
    return await works_at_third.using(retry=retry)(tag)


class OutOfPaperError(Exception):
    pass


@step(retry=Retry(max_attempts=3, initial=0.01, factor=1))
async def never_works(tag: str) -> None:
    note(f"tried {tag}")
    raise OutOfPaperError(f"tray of {tag} is empty")


@workflow
async def hopeless(tag: str) -> None:
    await never_works(tag)


@workflow
async def forgiving(tag: str) -> str:
    try:
        await never_works(tag)
    except OutOfPaperError as error:
        return f"caught {error}"
    return "nothing to catch"


class SoldOutError(NonRetryable):
    def __init__(self, sku: str, left: int) -> None:
        super().__init__(f"{sku}: {left} left")
        self.sku = sku
        self.left = left


@step
async def sell(sku: str) -> None:
    note(f"sold {sku}")
    raise SoldOutError(sku, 2)


@workflow
async def selling(sku: str) -> None:
    await sell(sku)


@workflow
async def careful_selling(ctx: Context, sku: str) -> list[str | int]:
    try:
        await sell(sku)
    except SoldOutError as error:
        await ctx.awakeable(int)
        return [type(error).__name__, str(error), error.sku, error.left]
    return []


@step
async def gives_object(tag: str) -> object:
    note(f"gave {tag}")
    return object()


@workflow
async def unencodable(tag: str) -> None:
    await gives_object(tag)


# --- deadly ones ------------------------------------------------------------------------------------------------------
@step
async def deadly(tag: str) -> str:
    note(f"deadly {tag}")
    if closed(f"deadly {tag}"):
        die()
    return f"{tag} lives"


@workflow
async def deadly_step(tag: str) -> str:
    return await deadly(tag)


@workflow
async def deadly_second_step(tag: str) -> str:
    await stage(f"{tag}-first")
    return await deadly(tag)


@workflow
async def deadly_body(tag: str) -> str:
    await stage(f"{tag}-first")
    note(f"deadly {tag}")
    if closed(f"deadly {tag}"):
        die()
    return f"{tag} lives"


@workflow
async def deadly_at_once(tag: str) -> str:
    note(f"deadly {tag}")
    if closed(f"deadly {tag}"):
        die()
    return await stage(f"{tag}-last")


# --- asyncio: what `Lab` runs in every mode ---------------------------------------------------------------------------
@step
async def take(name: str, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return name


@workflow
async def gathered(ctx: Context, naps: list[list[float]]) -> list[list[str]]:
    async def branch(number: int, waits: list[float]) -> list[str]:
        return [await take(f"{number}-{at}", wait) for at, wait in enumerate(waits)]

    found = await asyncio.gather(*(branch(number, waits) for number, waits in enumerate(naps)))
    await confirm(ctx, str(found))
    return found


async def confirm(ctx: Context, trace: str) -> None:
    """Note what came out, then wait twice for the outside, so that it must come out the same again."""
    await remember(f"trace {ctx.invocation_id} {trace}")
    for _ in range(2):
        await ctx.awakeable(int)


@workflow
async def first_completed(ctx: Context, naps: list[float]) -> str:
    tasks = [asyncio.create_task(take(str(at), wait), name=str(at)) for at, wait in enumerate(naps)]
    done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    trace = f"{[task.get_name() for task in done]} {[task.get_name() for task in left]}"
    for task in left:
        task.cancel()
    done, _ = await asyncio.wait(tasks)
    trace += f" {[task.get_name() for task in done]} {[task.cancelled() for task in tasks]}"
    await confirm(ctx, trace)
    return trace


@workflow
async def as_they_complete(ctx: Context, naps: list[float]) -> str:
    trace = [await each for each in asyncio.as_completed([take(str(at), wait) for at, wait in enumerate(naps)])]
    tasks = {asyncio.create_task(take(f"t{at}", wait)) for at, wait in enumerate(naps)}
    trace += [await each for each in asyncio.as_completed(tasks)]
    await confirm(ctx, " ".join(trace))
    return " ".join(trace)


@step(retry=Retry(max_attempts=1))
async def fail_after(name: str, seconds: float) -> str:
    await asyncio.sleep(seconds)
    raise OutOfPaperError(name)


@workflow
async def group_that_fails(ctx: Context, naps: list[float]) -> str:
    trace: list[str] = []

    async def member(name: str, wait: float) -> None:
        try:
            trace.append(await take(name, wait))
        except asyncio.CancelledError:
            trace.append(f"{name} cancelled")
            raise

    try:
        async with asyncio.TaskGroup() as group:
            for at, wait in enumerate(naps):
                group.create_task(member(str(at), wait))
            group.create_task(fail_after("bad", sorted(naps)[len(naps) // 2]))
    except* OutOfPaperError as caught:
        trace += [str(each) for each in caught.exceptions]
    await confirm(ctx, " ".join(trace))
    return " ".join(trace)


@workflow
async def timed(ctx: Context, naps: list[float], limit: float = 0.05) -> str:
    trace: list[str] = []
    for at, wait in enumerate(naps):
        try:
            async with asyncio.timeout(limit):
                trace.append(await take(str(at), wait))
        except TimeoutError:
            trace.append("late")
        try:
            trace.append(await asyncio.wait_for(asyncio.sleep(wait, "slept"), limit))
        except TimeoutError:
            trace.append("overslept")
    await confirm(ctx, " ".join(trace))
    return " ".join(trace)


@workflow
async def locked(ctx: Context, naps: list[float]) -> str:
    lock, semaphore, trace = asyncio.Lock(), asyncio.Semaphore(2), list[str]()

    async def one(at: int, wait: float) -> None:
        await take(f"{at}", wait)
        async with lock:
            trace.append(f"l{at}")
            await take(f"in {at}", wait / 4)
        async with semaphore:
            trace.append(f"s{at}")
            await asyncio.sleep(wait / 4)
        trace.append(f"e{at}")

    await asyncio.gather(*(one(at, wait) for at, wait in enumerate(naps)))
    await confirm(ctx, " ".join(trace))
    return " ".join(trace)


@workflow
async def queued(ctx: Context, naps: list[float]) -> str:
    queue, done, trace = asyncio.Queue[str](2), asyncio.Event(), list[str]()

    async def produce(at: int, wait: float) -> None:
        await queue.put(await take(str(at), wait))

    async def consume(name: str) -> None:
        while True:
            got = await queue.get()
            trace.append(f"{name}{got}")
            await take(f"{name} {got}", 0.002)
            queue.task_done()
            if len(trace) == len(naps):
                done.set()

    consumers = [asyncio.create_task(consume(name)) for name in "xy"]
    await asyncio.gather(*(produce(at, wait) for at, wait in enumerate(naps)))
    await done.wait()
    await queue.join()
    for each in consumers:
        each.cancel()
    await asyncio.gather(*consumers, return_exceptions=True)
    await confirm(ctx, " ".join(trace))
    return " ".join(trace)


word: ContextVar[str] = ContextVar("word", default="none")


@workflow
async def generated(ctx: Context, naps: list[float]) -> str:
    async def numbers() -> AsyncIterator[str]:
        for at, wait in enumerate(naps):
            yield await take(f"g{at}", wait)

    async def speak(at: int, wait: float) -> str:
        word.set(f"w{at}")
        await asyncio.sleep(wait)
        return word.get()

    trace = [each async for each in numbers()]
    trace += await asyncio.gather(*(speak(at, wait) for at, wait in enumerate(naps)))
    trace += [word.get(), f"{ctx.random.random():.6f}", str(ctx.uuid4()), ctx.now().isoformat()]
    await confirm(ctx, " ".join(trace))
    return " ".join(trace)


ORDERED = [
    first_completed,
    as_they_complete,
    group_that_fails,
    timed,
    locked,
    queued,
    generated,
]
"""Bodies whose result tells who won and in which order."""


# --- bodies that are dropped in the middle ----------------------------------------------------------------------------
@workflow
async def tidy(ctx: Context, tag: str) -> str:
    try:
        await stage(f"{tag}-work")
        first = await ctx.awakeable(str)
        second = await ctx.awakeable(str)
        return first + second
    finally:
        await stage(f"{tag}-cleanup")


@workflow
async def blocks(tag: str) -> str:
    await stage(f"{tag}-first")
    if not closed(f"{tag} blocked"):
        note(f"blocking {tag}")
        this_is_the_blocking_line()
    return await stage(f"{tag}-last")


def this_is_the_blocking_line() -> None:
    time.sleep(1.6)


# --- timers -----------------------------------------------------------------------------------------------------------
@workflow
async def sleeps(tag: str, seconds: float) -> list[float]:
    """Return when it began and when it went on, by the body's own clock."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await remember(f"began {tag}")
    await asyncio.sleep(began + seconds - loop.time())
    ended = loop.time()
    await remember(f"ended {tag}")
    return [began, ended]


@workflow
async def many_sleeps(milliseconds: list[float]) -> list[float]:
    """Return how late each sleep ended, in seconds."""
    loop = asyncio.get_running_loop()

    async def one(wait: float) -> float:
        due = loop.time() + wait
        await asyncio.sleep(wait)
        return loop.time() - due

    return await asyncio.gather(*(one(each / 1000) for each in milliseconds))


@workflow
async def sleeps_until(at: float, count: int) -> list[float]:
    """Sleep so many times until one instant; return how late each sleep ended."""
    loop = asyncio.get_running_loop()

    async def one() -> float:
        await asyncio.sleep(at - loop.time())
        return loop.time() - at

    return await asyncio.gather(*(one() for _ in range(count)))


@workflow
async def impatient(tag: str, limit: float) -> str:
    """Give a step less time than it wants."""
    try:
        async with asyncio.timeout(limit):
            return await stage(tag)
    except TimeoutError:
        return "gave up"


@workflow
async def sender(ctx: Context, tag: str, delay: float) -> str:
    return ctx.send(three.using(delay=timedelta(seconds=delay)), tag)


@workflow
async def noting(text: str) -> str:
    await remember(text)
    return text


@workflow
async def sends_at_last(ctx: Context, tag: str, waits: bool) -> None:
    """Send something in the frame that settles it, or in one behind which it waits for somebody."""
    await stage(f"{tag}-before")
    ctx.send(noting, f"sent by {tag}")
    if waits:
        await ctx.awakeable(int)


@workflow
async def ticks(ctx: Context, tag: str, times: int, seconds: float) -> list[str]:
    sent: list[str] = []
    for n in range(times):
        sent.append(ctx.send(noting, f"{tag} {n}"))
        await asyncio.sleep(seconds)
    return sent


@workflow
async def asks_a_child(tag: str) -> list[str]:
    await stage(f"{tag}-before")
    return [await noting(f"{tag} child"), await noting(f"{tag} other")]


# --- messages ---------------------------------------------------------------------------------------------------------
@workflow
async def asks(ctx: Context, tag: str) -> str:
    awakeable = ctx.awakeable(str)
    await stage(f"{tag}-asked")
    answer = await awakeable
    await stage(f"{tag}-answered")
    return answer


@workflow
async def asks_and_goes_on(ctx: Context, tag: str) -> str:
    try:
        answer = await ctx.awakeable(str)
    except AwakeableRejected:
        answer = "rejected"
    await stage(f"{tag}-answered")
    return answer


@workflow
async def asks_then_sleeps(ctx: Context, tag: str, seconds: float) -> str:
    answer = await ctx.awakeable(str)
    await remember(f"answered {tag}")
    await asyncio.sleep(seconds)
    return answer


@workflow
async def asks_only(ctx: Context) -> int:
    return await ctx.awakeable(int)


@workflow
async def asks_often(ctx: Context, tag: str, times: int, steps: int) -> list[int]:
    """Hand out many awakeables while many steps run."""
    awakeables = [ctx.awakeable(int) for _ in range(times)]
    running = [asyncio.create_task(stage(f"{tag}-{at}")) for at in range(steps)]
    answers = [await each for each in awakeables]
    await asyncio.gather(*running)
    return answers


# --- children, cancellation -------------------------------------------------------------------------------------------
@workflow
async def parent(tag: str) -> list[str]:
    return ["parent", *await three(f"{tag}-child")]


@workflow
async def calls_often(tag: str, times: int) -> list[str]:
    """Wait for one child after the other."""
    return [await noting(f"{tag} {n}") for n in range(times)]


@workflow
async def grandparent(ctx: Context, tag: str) -> list[str]:
    ctx.send(three, f"{tag}-sent")
    try:
        return ["grandparent", *await parent_with_cleanup(tag)]
    finally:
        await remember(f"cleanup {tag}-grandparent")


@workflow
async def parent_with_cleanup(tag: str) -> list[str]:
    try:
        return ["parent", *await leaf(tag)]
    except ChildCancelled:
        await remember(f"child cancelled {tag}-parent")
        raise
    finally:
        await remember(f"cleanup {tag}-parent")


@workflow
async def leaf(tag: str) -> list[str]:
    try:
        return [await stage(f"{tag}-leaf")]
    finally:
        await remember(f"cleanup {tag}-leaf")


@workflow
async def waits_on(ctx: Context, tag: str, what: str) -> str:
    """Wait for one kind of thing, with a durable cleanup."""
    try:
        match what:
            case "step":
                await stage(f"{tag}-step")
            case "sleep":
                await remember(f"at {tag}-sleep")
                await asyncio.sleep(3600)
            case "awakeable":
                await remember(f"at {tag}-awakeable")
                await ctx.awakeable(int)
            case "child":
                await leaf(tag)
            case _:
                raise ValueError(what)
    except asyncio.CancelledError:
        await stage(f"{tag}-undo-1")
        await stage(f"{tag}-undo-2")
        raise
    return "not cancelled"


@step
async def beats(tag: str) -> None:
    """Do something again and again until it is stopped."""
    note(f"at {tag}-ticks")
    while True:
        note(f"tick {tag}")
        await asyncio.sleep(0.005)


@step
def holds_a_thread(tag: str) -> str:
    """Sit in a thread, which nothing can stop, until a gate opens."""
    note(f"at {tag}-thread")
    while closed(f"thread {tag}"):
        time.sleep(0.005)
    note(f"ran {tag}-thread")
    return tag


@workflow
async def stops_step(tag: str, threaded: bool) -> str:
    """Run a step that would not end, give it up, and go on."""
    try:
        async with asyncio.timeout(0.2):
            await (holds_a_thread(tag) if threaded else beats(tag))
    except TimeoutError:
        return await stage(f"{tag}-after")
    return "it ended"


@step(retry=Retry(max_attempts=3, initial=0.01))
async def breaks_when_stopped(tag: str) -> None:
    """Fail in its own way while it is asked to end."""
    note(f"at {tag}-stubborn")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        raise OutOfPaperError(f"jammed: {tag}") from None


@workflow
async def shrugs_off(tag: str) -> str:
    """Take the failure of the step that was to end for what it is, and go on, as asyncio lets it."""
    try:
        await breaks_when_stopped(tag)
    except OutOfPaperError as error:
        note(f"saw {error}")
        try:
            await stage(f"{tag}-next")
            await beats(tag)
        finally:
            await remember(f"cleanup {tag}")
    return "never here"


@workflow
async def first_step_then_cleanup(tag: str) -> str:
    try:
        return await stage(f"{tag}-first")
    finally:
        await stage(f"{tag}-undo")


@workflow
async def sends_and_waits(ctx: Context, tag: str, delay: float) -> str:
    id = ctx.send(three.using(delay=delay), f"{tag}-sent")
    await remember(f"sent {id}")
    await ctx.awakeable(int)
    return id


@step
async def hand_out_or_die(id: str, tag: str) -> None:
    note(f"handed out {id}")
    if closed(f"deadly {tag}"):
        die()


@workflow
async def hands_out_first(ctx: Context, tag: str) -> int:
    answer = ctx.awakeable(int)
    await hand_out_or_die(answer.id, tag)
    return await answer


@workflow
async def count_tags(tags: set[str], by_tag: dict[str, set[str]]) -> int:
    return len(await stage(f"{len(tags)}-{len(by_tag)}-counted"))


@workflow
async def sends_sets(ctx: Context, words: str) -> int:
    """Give sets to a child and to a send: their bytes come in another order under another hash seed."""
    tags = set(words.split())
    ctx.send(count_tags.using(delay=3600), tags, {"a": tags})
    counted = await count_tags(tags, {"b": tags, "a": tags})
    return counted + len(await ctx.awakeable(str))


# --- load -------------------------------------------------------------------------------------------------------------
@workflow
async def busy(tag: str, naps: list[float]) -> int:
    for at, wait in enumerate(naps):
        await nap(f"{tag}-{at}", wait)
    return len(naps)


@step
async def count_up(at: int) -> int:
    return at + 1


@workflow
async def many_steps(ctx: Context, count: int, width: int) -> int:
    """So many steps, some at a time, then a word from outside."""
    total = 0
    for at in range(0, count, width):
        total += len(await asyncio.gather(*(count_up(at + each) for each in range(width))))
    await ctx.awakeable(int)
    return total


@workflow
async def whoami(ctx: Context) -> list[str | int]:
    await ctx.awakeable(int)
    return [ctx.invocation_id, os.getpid()]


Deadly = Workflow[[str], str]


# --- releases ---------------------------------------------------------------------------------------------------------
@workflow
async def remarks(ctx: Context, tag: str) -> str:
    """Issue a command that only the next release has, where this is one (see tests/upgrade)."""
    remark: Callable[[str], None] | None = getattr(ctx, "remark", None)
    if remark is not None:
        remark(tag)
    return await ctx.awakeable(str)


# --- streams ----------------------------------------------------------------------------------------------------------
@step(retry=QUICK)
async def says(tag: str, count: int, seconds: float, fail: int = 0) -> int:
    """Write so many words, `seconds` apart, with a gate after each; its first attempts fail at the end."""
    words = stream("words", str)
    for n in range(count):
        words.write(f"{tag} {n}")
        await words.drain()
        await asyncio.sleep(seconds)
        if closed(f"{tag} after {n}"):
            await gate(f"{tag} after {n}")
    note(f"said {tag}")
    if step_info().attempt <= fail:
        raise ConnectionError(tag)
    return count


@workflow
async def speaks(ctx: Context, tag: str, speeches: int, count: int, seconds: float = 0.0) -> int:
    """Let steps write words, one after the other, and write itself what it is about to do."""
    plans = ctx.stream("plans", str)
    for number in range(speeches):
        plans.write(f"speech {number}")
        ctx.stream("words", str).write(f"{tag} announces {number}")
        await says(f"{tag}-{number}", count, seconds)
        await asyncio.sleep(0.01)
    plans.write("silence")
    return speeches


@workflow
async def stammers(tag: str, count: int) -> int:
    return await says(tag, count, 0.0, fail=2)


@workflow
async def breaks_off(ctx: Context, tag: str) -> str:
    """Fail until the gate is open; what is written before is written once."""
    ctx.stream("plans", str).write("before")
    await sells_out(tag)
    ctx.stream("plans", str).write("after")
    return tag


@step(retry=Retry(max_attempts=1))
async def sells_out(tag: str) -> None:
    stream("words", str).write(tag)
    if closed(f"sold out {tag}"):
        raise SoldOutError(tag, 0)


@step(retry=Retry(max_attempts=1))
async def lingers(tag: str) -> str:
    """While the gate is closed, write without end; once it is open, no more but a few words."""
    words = stream("words", str)
    while closed(f"lingers {tag}"):
        words.write("waiting")
        note(f"wrote {tag}")
        await asyncio.sleep(0.01)
    if step_info().epoch < 2:
        for _ in range(5):
            words.write("late")
            await words.drain()
            await asyncio.sleep(0.05)
        note(f"lingered {tag}")
    return tag


@workflow
async def waits_in_a_step(tag: str) -> str:
    return await lingers(tag)


@workflow
async def says_goodbye(ctx: Context, tag: str) -> str:
    ctx.stream("plans", str).write("goodbye")
    return tag
