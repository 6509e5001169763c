"""One bad thing never stops good ones: what one invocation, step, policy or callback raises stays with it."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from perdure import Client, Context, RemoteError, Retry, Workflow, connect, step, workflow
from perdure.connect import client_from, make_stub, translators_in_use
from perdure.core.journal import Raised
from perdure.errors import CalledOutsideWorkflow, InvalidOption, StoreUnavailable
from perdure.runtime import exchange, retention, runner
from perdure.runtime import worker as worker_module
from perdure.runtime.retention import Sweep
from perdure.runtime.worker import Worker
from perdure.stores import custody
from perdure.stores.clock import VirtualClock
from perdure.stores.memory import MemoryStore
from perdure.stores.port import Committed, Delivery, Journal, Store, Transition

GOOD = 40
SOON = 30.0


@step
async def shout(word: str) -> str:
    return word.upper()


@workflow
async def good(word: str) -> str:
    return await shout(word)


async def paused(handle: Any) -> str:
    """Wait until an invocation is paused or has failed; return why."""
    async with asyncio.timeout(SOON):
        while (described := await handle.describe()).status not in ("paused", "failed"):
            await asyncio.sleep(0)
    return str(described.paused_because or described.error)


def in_worker(store: Any, *workflows: Workflow[..., Any], **options: Any) -> Worker:
    async def opened() -> Store:
        return cast("Store", store)

    return Worker(opened, workflows, translators=translators_in_use, stubs=make_stub, **options)


def client_of(store: MemoryStore) -> Client:
    return client_from(lambda: store)


# --- invocations ------------------------------------------------------------------------------------------------------
def raising(error: BaseException) -> Callable[..., Any]:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    return raises


def _raises_when_called(_: Any) -> Callable[..., Any]:
    return raising(RuntimeError("boom"))


def _gives_no_coroutine(_: Any) -> Callable[..., str]:
    def body(_: Any) -> str:
        return "boom"

    return body


def bad_workflow(kind: str) -> Workflow[..., Any]:
    """Make a workflow that fails where the runtime does not expect it."""

    @workflow(name="bad")
    async def bad(word: str) -> str:
        return await shout(word)

    broken: Any = bad
    match kind:
        case "making the body":
            broken.body = raising(RuntimeError("boom"))
        case "calling the body":
            broken.body = _raises_when_called
        case "a body that is no coroutine":
            broken.body = _gives_no_coroutine
        case "a group":
            broken.body = raising(BaseExceptionGroup("boom", [GeneratorExit(), KeyboardInterrupt()]))
        case "a cancellation":
            broken.body = raising(asyncio.CancelledError("boom"))
        case "no memory":
            broken.body = raising(MemoryError("boom"))
        case _:
            raise AssertionError(kind)
    return bad


KINDS = ["making the body", "calling the body", "a body that is no coroutine", "a group", "a cancellation", "no memory"]


@pytest.mark.parametrize("slots", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
async def test_unexpected_exception_in_one_invocation_is_contained_there(
    kind: str, slots: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad = bad_workflow(kind)
    async with connect("memory:") as client, client.worker(good, bad, max_concurrent=slots) as worker:
        before = [await client.start(good, f"a{n}") for n in range(GOOD // 2)]
        stuck = await client.start(bad, "x")
        after = [await client.start(good, f"b{n}") for n in range(GOOD // 2)]
        async with asyncio.timeout(SOON):
            assert [await each.result() for each in before + after] == [
                f"{letter}{n}" for letter in "AB" for n in range(GOOD // 2)
            ]
        assert "Error" in (reason := await paused(stuck)) or "Exception" in reason
        async with asyncio.timeout(SOON):
            while worker._slots.taken:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
                await asyncio.sleep(0)


async def test_contained_invocation_runs_on_once_its_code_is_mended_and_it_is_resumed() -> None:
    bad = bad_workflow("making the body")
    async with connect("memory:") as client, client.worker(good, bad):
        stuck = await client.start(bad, "x")
        assert "boom" in await paused(stuck)
        with pytest.raises(Exception, match="boom"):
            await stuck.resume()
        del cast("Any", bad).body
        await stuck.resume()
        assert await asyncio.wait_for(stuck.result(), SOON) == "X"


async def test_contained_invocation_can_be_cancelled_by_force() -> None:
    bad = bad_workflow("making the body")
    async with connect("memory:") as client, client.worker(bad):
        stuck = await client.start(bad, "x")
        await paused(stuck)
        await stuck.cancel(force=True)
        assert (await stuck.describe()).status == "cancelled"


async def test_decorator_that_claims_more_arguments_than_it_takes_is_contained() -> None:
    def careless(fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        async def inner(word: str) -> Any:
            return await fn(word, 1)

        return inner

    @careless
    async def two(word: str, times: int) -> str:
        return word * times

    try:
        bad = workflow(name="two")(two)
    except Exception:  # noqa: BLE001  refused when it is decorated: better still
        return
    async with connect("memory:") as client, client.worker(good, bad, max_concurrent=1):
        stuck = await client.start(bad, "x", 2)
        assert await asyncio.wait_for(client.run(good, "y"), SOON) == "Y"
        while (await stuck.describe()).status not in ("paused", "failed"):
            await asyncio.sleep(0)


async def test_interrupt_in_one_invocation_leaves_the_rest_of_its_batch_scheduled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal handler that raises may hit anywhere: what it hits is lost for now, and nothing else."""
    struck: list[str] = []
    original = runner.Runner.advance

    def advance(self: Any) -> None:
        if self.handler == "bad" and not struck:
            struck.append(self.id)
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(runner.Runner, "advance", advance)

    @workflow(name="bad")
    async def bad() -> None: ...

    async with connect("memory:") as client, client.worker(good, bad) as worker:
        escaped: list[bool] = []
        run_once = cast("Any", worker)._advance  # noqa: SLF001

        def advance_all() -> None:
            try:
                run_once()
            except KeyboardInterrupt:
                escaped.append(True)

        monkeypatch.setattr(worker, "_advance", advance_all)
        await client.start(bad)
        results = await asyncio.wait_for(asyncio.gather(*(client.run(good, f"a{n}") for n in range(GOOD))), SOON)
        assert results == [f"A{n}" for n in range(GOOD)]
        assert escaped
        assert struck


# --- steps ------------------------------------------------------------------------------------------------------------
class Odd(BaseException):
    pass


ESCAPING: list[BaseException] = [
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration("over"),
    StopAsyncIteration(),
    asyncio.CancelledError("no"),
    Odd("odd"),
    BaseExceptionGroup("both", [SystemExit(1), ValueError()]),
]


@pytest.mark.parametrize("error", ESCAPING, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", ["async", "thread", "in time"])
async def test_whatever_a_step_raises_is_a_failure_of_that_step(kind: str, error: BaseException) -> None:
    if kind == "thread":

        @step(retry=Retry(max_attempts=1), name="raises")
        def raises_in_thread() -> None:
            raise error

        raises: Any = raises_in_thread
    else:

        @step(retry=Retry(max_attempts=1), name="raises", timeout=60 if kind == "in time" else None)
        async def raises_in_task() -> None:
            raise error

        raises = raises_in_task

    @workflow(name="calls")
    async def calls() -> str:
        try:
            await raises()
        except BaseException as raised:  # noqa: BLE001
            return f"{type(raised).__name__}: {raised}"
        return "nothing raised"

    async with connect("memory:") as client, client.worker(good, calls, max_concurrent=1) as worker:
        handle = await client.start(calls)
        told = await asyncio.wait_for(handle.result(), SOON)
        assert told != "nothing raised"
        described = (await handle.describe()).journal[0]
        assert described.status == "failed"
        assert (described.error or "").split(":")[0].split(".")[-1] in (type(error).__name__, "RuntimeError")
        assert await asyncio.wait_for(client.run(good, "on"), SOON) == "ON"
        assert worker.quiet


async def test_next_over_nothing_in_a_thread_is_a_failure_and_gives_the_slot_back() -> None:
    @step(retry=Retry(max_attempts=1))
    def first(rows: list[int]) -> int:
        return next(row for row in rows if row > 2)

    @workflow
    async def looks() -> int:
        return await first([1, 2])

    async with connect("memory:") as client, client.worker(good, looks, max_concurrent=1):
        with pytest.raises(RuntimeError):
            await asyncio.wait_for(client.run(looks), SOON)
        assert await asyncio.wait_for(client.run(good, "on"), SOON) == "ON"


async def test_step_that_exits_is_told_to_the_caller_with_its_name() -> None:
    @step
    async def leaves() -> None:
        sys.exit(3)

    @workflow
    async def calls() -> None:
        await leaves()

    async with connect("memory:") as client, client.worker(good, calls):
        with pytest.raises(RemoteError, match="SystemExit"):
            await asyncio.wait_for(client.run(calls), SOON)
        assert await asyncio.wait_for(client.run(good, "on"), SOON) == "ON"


def forked(end: Callable[[], object]) -> int:
    """Fork a process that does `end`, and return its exit code."""
    pid = os.fork()
    if pid == 0:
        end()
        return 0
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda: sys.exit(3), 3),
        (lambda: sys.exit(), 0),
        (lambda: sys.exit("text"), 1),
        (lambda: 1 / 0, 1),
        (lambda: None, 1),
        (lambda: os._exit(5), 5),
    ],
)
async def test_process_that_a_step_forks_ends_with_the_step(
    end: Callable[[], object], code: int, in_thread: bool, tmp_path: Path
) -> None:
    def forks() -> int:
        return forked(end)

    async def forks_in_task() -> int:
        return forked(end)

    forking: Any = step(forks if in_thread else forks_in_task, retry=Retry(max_attempts=1))

    @workflow
    async def calls() -> int:
        return await forking()

    async with connect(f"sqlite:{tmp_path}/a.db") as client, client.worker(good, calls):
        assert await asyncio.wait_for(client.run(calls), SOON) == code
        assert await asyncio.wait_for(client.run(good, "on"), SOON) == "ON"


class False_(Exception):
    """An exception with a length, as one has that holds many errors: without any, it is false."""

    def __len__(self) -> int:
        return 0


class Undecided(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError("neither")


class Delegating(Exception):
    def __getattr__(self, name: str) -> Any:
        return {"status": 404}[name]


@pytest.mark.parametrize("where", ["step", "body", "callback", "task"])
@pytest.mark.parametrize("kind", [False_, Undecided, Delegating])
async def test_an_exception_with_odd_methods_is_one_of_its_place_and_logged(
    kind: type[Exception], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    def raises() -> None:
        raise kind("odd")

    async def raises_in_task() -> None:
        raises()

    failing = step(retry=Retry(max_attempts=1))(raises)

    @workflow(name="meets")
    async def meets() -> str:
        if where == "step":
            await failing()
        elif where == "body":
            raises()
        elif where == "callback":
            asyncio.get_running_loop().call_soon(raises)
        else:
            asyncio.get_running_loop().create_task(raises_in_task())
        await asyncio.sleep(0.001)
        gc.collect()
        return "went on"

    async with connect("memory:") as client, client.worker(good, meets, max_concurrent=1):
        handle = await client.start(meets)
        if where in ("step", "body"):
            with pytest.raises(kind, match="odd"):
                await asyncio.wait_for(handle.result(), SOON)
        else:
            assert await asyncio.wait_for(handle.result(), SOON) == "went on"
            *_, record = (each for each in caplog.records if handle.id in each.getMessage())
            assert "raise kind" in (record.exc_text or record.getMessage())
        assert await asyncio.wait_for(client.run(good, "on"), SOON) == "ON"


# --- policies ---------------------------------------------------------------------------------------------------------
class Custom(Retry):
    answer: Any = None

    def delay(self, error: BaseException, attempt: int, chance: float) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer(attempt) if callable(self.answer) else self.answer


async def coroutine(_: int) -> float:
    return 0.0


ANSWERS: dict[str, Any] = {
    "str": "1",
    "timedelta": timedelta(seconds=1),
    "nan": float("nan"),
    "inf": float("inf"),
    "negative": -1.0,
    "too long": 1e300,
    "bool": True,
    "a list": [1],
    "a coroutine": coroutine,
    "raises": ZeroDivisionError("policy"),
    "complex": 1j,
    "exits": SystemExit(1),
}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_what_a_policy_raises_or_returns_is_the_failure_of_its_step(kind: str) -> None:
    policy = type(
        "Policy", (Custom,), {"answer": staticmethod(ANSWERS[kind]) if kind == "a coroutine" else ANSWERS[kind]}
    )

    @step(retry=cast("Any", policy)())
    async def fails() -> None:
        raise ConnectionError("the service is away")

    @workflow
    async def calls() -> None:
        await fails()

    store = MemoryStore()
    async with client_of(store) as client, client.worker(good, calls, max_concurrent=1):
        handle = await client.start(calls)
        with pytest.raises(Exception) as caught:  # noqa: PT011
            await asyncio.wait_for(handle.result(), SOON)
        assert not isinstance(caught.value, TimeoutError)
        frames = (await store.journal(handle.id)).frames
        assert [type(entry).__name__ for entry in frames[0].entries][-2:] == ["Raised", "Failed"], "the first frame"
        assert "ConnectionError" in next(e for e in frames[0].entries if isinstance(e, Raised)).failure.traceback
        assert await asyncio.wait_for(client.run(good, "on"), SOON) == "ON"


@pytest.mark.parametrize("wait", [0, 0.001, 1e-9])
async def test_numbers_of_a_policy_of_ones_own_are_waited(wait: float) -> None:
    seen: list[int] = []

    def answer(attempt: int) -> float | None:
        return wait if attempt < 3 else None

    policy: Any = type("Policy", (Custom,), {"answer": staticmethod(answer)})

    @step(retry=policy())
    async def fails() -> None:
        seen.append(1)
        raise ConnectionError("the service is away")

    @workflow
    async def calls() -> None:
        await fails()

    async with connect("memory:") as client, client.worker(calls):
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(client.run(calls), SOON)
    assert len(seen) == 3


async def test_exception_of_a_translator_is_the_failure_of_its_step_alone() -> None:
    class Broken:
        def describe(self, *_: Any) -> Any:
            raise ZeroDivisionError("translator")

        restore = describe

        def __getattr__(self, name: str) -> Any:
            return self.describe

    @step(retry=Retry(max_attempts=1))
    async def fails() -> None:
        raise ConnectionError("away")

    @workflow
    async def calls() -> str:
        try:
            await fails()
        except Exception as error:  # noqa: BLE001
            return str(error)
        return ""

    store = MemoryStore()

    async def opened() -> Store:
        return cast("Store", store)

    def broken() -> list[Any]:
        return [Broken()]

    async with client_of(store) as client, Worker(opened, [calls, good], translators=broken):
        handle = await client.start(calls)
        async with asyncio.timeout(SOON):
            assert await client.run(good, "on") == "ON"
            while (await handle.describe()).status not in ("completed", "failed", "paused"):
                await asyncio.sleep(0)


async def test_exception_of_what_replaces_a_step_is_contained() -> None:
    store = MemoryStore()
    async with client_of(store) as client:

        def replace(work: Any) -> Any:
            if work.name == "shout":
                raise ZeroDivisionError("replacing")
            return work

        async with in_worker(store, good, quiet, replace=replace):
            stuck = await client.start(good, "x")
            assert await asyncio.wait_for(client.run(quiet), SOON) == "quiet"
            assert "replacing" in await paused(stuck)


@workflow
async def quiet() -> str:
    return "quiet"


# --- mistakes of the program ------------------------------------------------------------------------------------------
def needs_two(left: int, right: int) -> int:
    return left + right


def tried_by_name() -> list[int]:
    return []


def mistakes() -> dict[str, Callable[[], Any]]:
    wrong: Any = needs_two
    return {
        "a workflow called outside": lambda: good("x"),
        "too few arguments": lambda: wrong(1),
        "too many arguments": lambda: wrong(1, 2, 3),
        "an unknown keyword": lambda: wrong(1, 2, other=3),
        "an argument twice": lambda: wrong(1, left=2),
        "a builtin with too many": lambda: cast("Any", len)([], []),
        "a builtin method with too few": lambda: cast("Any", tried_by_name().append)(),
        "a class with too many": lambda: cast("Any", object)(1),
        "an unknown name": lambda: eval("undefined_name"),
        "not written yet": lambda: (_ for _ in ()).throw(NotImplementedError),
        "a bad option": lambda: Retry(max_attempts=0),
    }


@pytest.mark.parametrize("kind", mistakes())
async def test_mistake_of_the_program_is_not_retried(kind: str) -> None:
    tried: list[int] = []

    @step(retry=Retry(initial=0.001))
    async def errs() -> None:
        tried.append(1)
        await asyncio.sleep(0)
        mistakes()[kind]()

    @workflow
    async def calls() -> None:
        await errs()

    async with connect("memory:") as client, client.worker(calls):
        with pytest.raises(Exception):  # noqa: B017, PT011
            await asyncio.wait_for(client.run(calls), SOON)
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("act", "on"),
    [
        (lambda: cast("Any", None)["x"], (Exception,)),
        (lambda: cast("Any", None) + cast("Any", 1), (Exception,)),
        (lambda: cast("Any", needs_two)(1), (TypeError,)),
        (lambda: raising(CalledOutsideWorkflow("x"))(), (CalledOutsideWorkflow,)),
        (lambda: dict[str, int]()["x"], (Exception,)),
    ],
)
async def test_what_data_may_cause_or_the_policy_names_is_retried(act: Callable[[], Any], on: Any) -> None:
    tried: list[int] = []

    @step(retry=Retry(initial=0, max_attempts=2, on=on))
    async def errs() -> None:
        tried.append(1)
        act()

    @workflow
    async def calls() -> None:
        await errs()

    async with connect("memory:") as client, client.worker(calls):
        with pytest.raises(Exception):  # noqa: B017, PT011
            await asyncio.wait_for(client.run(calls), SOON)
    assert len(tried) == 2


# --- what the log says ------------------------------------------------------------------------------------------------
async def test_every_failed_attempt_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    @step(retry=Retry(max_attempts=3, initial=0))
    async def flaky() -> None:
        raise ConnectionError("the service is away")

    @workflow
    async def calls() -> None:
        await flaky()

    caplog.set_level(logging.WARNING, "perdure.worker")
    async with connect("memory:") as client, client.worker(calls):
        handle = await client.start(calls)
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(handle.result(), SOON)
    said = [each.getMessage() for each in caplog.records if "flaky" in each.getMessage()]
    assert len(said) == 3
    for number, text in enumerate(said, 1):
        assert handle.id in text
        assert f"attempt {number} of 3" in text
        assert "ConnectionError: the service is away" in text
    assert "next attempt" in said[0]
    assert "no further attempt" in said[2]
    assert {each.levelname for each in caplog.records if "flaky" in each.getMessage()} == {"WARNING"}


# --- the store --------------------------------------------------------------------------------------------------------
class Unforeseen(MemoryStore):
    """Raises what no store should."""

    def __init__(self, clock: Any = None) -> None:
        super().__init__(clock)
        self.reads: dict[str, int] = {}  # failures to come, by operation
        self.commits = 0
        self.for_ever: set[str] = set()
        self.raises_at_once = False

    def fail(self, what: str) -> None:
        if self.reads.get(what, 0):
            self.reads[what] -= 1
            raise ZeroDivisionError(what)

    async def journal(self, id: str, /) -> Journal:
        self.fail("journal")
        return await super().journal(id)

    async def revision(self, id: str, /) -> int:
        self.fail("revision")
        return await super().revision(id)

    async def purge(self, before: float, /, *, limit: int, id: str | None = None) -> int:
        self.fail("purge")
        return await super().purge(before, limit=limit, id=id)

    def commit(self, transition: Transition, told: Committed, /) -> None:
        if self.commits > 0 or transition.id in self.for_ever:
            self.commits -= 1
            if self.raises_at_once:
                raise ZeroDivisionError("commit")
            asyncio.get_running_loop().call_soon(told, 0, ZeroDivisionError("commit"))
            return
        super().commit(transition, told)


@workflow
async def asks(ctx: Context) -> str:
    return await shout(await ctx.awakeable(str))


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "STORE_RETRY_SECONDS", 0.001)


@pytest.mark.parametrize("at_once", [False, True])
async def test_unforeseen_exception_of_a_commit_is_tried_again_and_logged_with_its_traceback(
    at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = Unforeseen()
    store.raises_at_once = at_once
    async with client_of(store) as client, client.worker(good):
        store.commits = 2
        assert await asyncio.wait_for(client.run(good, "x"), SOON) == "X"
    assert any(each.exc_info and "commit" in each.getMessage() for each in caplog.records)


async def test_invocation_whose_commits_always_raise_is_given_up_and_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Unforeseen()
    async with client_of(store) as client, client.worker(good, max_concurrent=1):
        store.for_ever.add("bad")
        await client.start(good.using(id="bad"), "x")
        assert await asyncio.wait_for(client.run(good, "y"), SOON) == "Y"
        async with asyncio.timeout(SOON):
            while "is handed back" not in caplog.text:
                await asyncio.sleep(0)
        store.for_ever.clear()
        async with client.worker(good):
            assert await asyncio.wait_for(client.handle("bad").result(), SOON) == "X"


@pytest.mark.parametrize("times", [1, 3])
async def test_unforeseen_exception_of_a_read_is_tried_again_and_logged_with_its_traceback(
    times: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = Unforeseen()
    async with client_of(store) as client, client.worker(asks, cache=0):
        handle = await client.start(asks)
        async with asyncio.timeout(SOON):
            while not (opened := (await handle.describe()).awakeables):
                await asyncio.sleep(0)
        store.reads = {"journal": times}
        await client.resolve(opened[0].id, "x")
        assert await asyncio.wait_for(handle.result(), SOON) == "X"
    assert any(each.exc_info for each in caplog.records)


async def test_sweep_that_meets_any_exception_is_logged_and_sweeps_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = VirtualClock()
    store = Unforeseen(clock)
    async with client_of(store) as client, client.worker(good):
        await client.run(good, "x")
        store.reads = {"purge": 3}
        sweep = Sweep(cast("Store", store), 1.0)
        for _ in range(5):
            for _ in range(5):
                await asyncio.sleep(0)
            clock.move_to(clock.now() + retention.SWEEP_PERIOD_SECONDS)
        assert (await client.stats()).by_status == {}
        await sweep.stop()
    assert sum(bool(each.exc_info) for each in caplog.records) == 3


# --- callbacks of the store -------------------------------------------------------------------------------------------
def raising_for(id: str, inside: Any, name: str, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    """Let a method raise as often as it is called for one invocation."""
    original, left = getattr(inside, name), [times]

    def method(delivery: Any, *args: Any, **options: Any) -> Any:
        if id in (delivery, getattr(delivery, "id", "")) and left[0]:
            left[0] -= 1
            raise ZeroDivisionError("nobody foresaw this")
        return original(delivery, *args, **options)

    monkeypatch.setattr(inside, name, method)


@pytest.mark.parametrize("url", ["memory:", "sqlite:"])
@pytest.mark.parametrize("concurrency", [1, 100])
async def test_delivery_that_cannot_be_taken_is_handed_back_and_the_others_go_on(
    url: str,
    concurrency: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(custody, "DECLINED_SECONDS", 0.01)
    async with connect(f"{url}{tmp_path / 'store.db'}" if url == "sqlite:" else url) as client:
        handles = await asyncio.gather(*(client.start(good.using(id=f"good{n}"), f"w{n}") for n in range(GOOD)))
        worker = client.worker(good, max_concurrent=concurrency)
        raising_for("good3", cast("Any", worker)._slots, "keep_waiting", monkeypatch, times=2)  # noqa: SLF001
        async with worker:
            results = await asyncio.wait_for(asyncio.gather(*(handle.result() for handle in handles)), SOON)
            inside: Any = worker
            while inside._slots.taken:  # noqa: SLF001
                await asyncio.sleep(0)
    assert results == [f"W{n}" for n in range(GOOD)]
    told = [each for each in caplog.records if "good3" in each.getMessage() and each.exc_info]
    assert len(told) == 2, "logged with its traceback, each time"


async def test_invocation_that_another_worker_took_is_closed_whatever_is_raised_meanwhile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    async with client_of(store) as client, client.worker(asks, good) as worker:
        handle = await client.start(asks.using(id="taken"))
        while (await handle.describe()).status != "suspended":
            await asyncio.sleep(0)
        inside: Any = worker
        runner_of_it = inside._runners["taken"]  # noqa: SLF001
        raising_for("taken", inside._slots, "drop", monkeypatch)  # noqa: SLF001
        inside._lost("taken")  # noqa: SLF001
        assert runner_of_it.closed
        assert await asyncio.wait_for(client.run(good, "x"), SOON) == "X"
    assert any("taken" in each.getMessage() and each.exc_info for each in caplog.records)


async def test_runner_that_pauses_after_a_fault_and_cannot_be_made_hands_the_invocation_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(custody, "DECLINED_SECONDS", 0.01)
    made = runner.Runner.__init__
    failed: list[str] = []

    def make(self: Any, home: Any, delivery: Delivery, fault: str | None = None) -> None:
        if fault is not None and not failed:
            failed.append(fault)
            raise ZeroDivisionError("nobody foresaw this")
        made(self, home, delivery, fault)

    monkeypatch.setattr(runner.Runner, "__init__", make)
    async with client_of(MemoryStore()) as client, client.worker(good) as worker:
        raising_for("bad", worker, "make_turn", monkeypatch)
        handle = await client.start(good.using(id="bad"), "x")
        assert await asyncio.wait_for(client.run(good, "y"), SOON) == "Y"
        assert await asyncio.wait_for(handle.result(), SOON) == "X"
    assert failed
    assert "is handed back" in caplog.text


# --- one runner for each invocation -----------------------------------------------------------------------------------
async def test_start_redelivered_while_it_waits_for_a_slot_has_one_runner_and_its_step_runs_once() -> None:
    gate = asyncio.Event()
    running: list[str] = []

    @step
    async def holds(word: str) -> str:
        running.append(word)
        await gate.wait()
        return word

    @workflow
    async def slow(word: str) -> str:
        return await holds(word)

    store = MemoryStore()
    async with client_of(store) as client, client.worker(slow, max_concurrent=1) as worker:
        first = await client.start(slow, "first")
        while not running:
            await asyncio.sleep(0)
        second = await client.start(slow, "second")
        inside: Any = worker
        start = await store.start(second.id)
        assert start is not None
        for attempt in range(1, 4):
            inside._deliver(Delivery(second.id, "slow", start, attempt, token=2))  # noqa: SLF001
        gate.set()
        assert await asyncio.wait_for(asyncio.gather(first.result(), second.result()), SOON) == ["first", "second"]
        assert running == ["first", "second"]
        while inside._slots.taken:  # noqa: SLF001
            await asyncio.sleep(0)


# --- entering a worker ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("where", ["open", "subscribe", "sweep", "request"])
async def test_worker_whose_entering_fails_leaves_nothing_behind_and_can_be_entered_again(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    failing = True

    async def opened() -> Store:
        if where == "open" and failing:
            raise StoreUnavailable("not now")
        return cast("Store", store)

    subscribe = store.subscribe

    def subscribing(*args: Any, **options: Any) -> Any:
        if where == "subscribe" and failing:
            raise InvalidOption("no such partitions")
        made: Any = subscribe(*args, **options)
        if where == "request" and failing:
            made.request = raising(ZeroDivisionError("request"))
        return made

    monkeypatch.setattr(store, "subscribe", subscribing)
    if where == "sweep":
        original = worker_module.Sweep

        def sweep(store: Store, period: float) -> Sweep:
            return original(store, period) if not failing else raising(ZeroDivisionError())()

        monkeypatch.setattr(worker_module, "Sweep", sweep)
    threads, threshold = threading.active_count(), gc.get_threshold()
    async with client_of(store) as client:
        worker = Worker(opened, [good], retention=3600.0)
        for _ in range(2):
            with pytest.raises(Exception):  # noqa: B017, PT011
                await worker.__aenter__()
            assert threading.active_count() == threads
            assert gc.get_threshold() == threshold
            assert not cast("Any", store)._dispatcher.members  # noqa: SLF001
        failing = False
        async with worker:
            assert await asyncio.wait_for(client.run(good, "x"), SOON) == "X"
        assert gc.get_threshold() == threshold


async def test_worker_leaves_everything_even_when_parts_of_it_fail_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    class Channels:
        def channel(self, service: str, /) -> Any: ...
        async def aclose(self) -> None:
            raise ZeroDivisionError("channels")

    store = MemoryStore()
    threads = threading.active_count()
    async with client_of(store):
        worker = in_worker(store, good, channels=Channels())
        await worker.__aenter__()
        with pytest.raises(ZeroDivisionError):
            await worker.stop()
        assert threading.active_count() == threads
        assert not cast("Any", store)._dispatcher.members  # noqa: SLF001
