"""The private loop alone, with a host that only notes what it is told."""

from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
import sys
from asyncio import events
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, cast

import pytest

from perdure.core import loop as loop_module
from perdure.core.loop import CLOSE_ATTEMPTS, Future, Loop, Task
from perdure.errors import CalledOutsideWorkflow, IoInWorkflow, NotRepeatable, TurnClosed
from tests.core.driver import nothing_happens


class Notes:
    """A host that writes down what it hears."""

    def __init__(self) -> None:
        self.timers: list[asyncio.TimerHandle] = []
        self.cancelled: list[asyncio.TimerHandle] = []
        self.unseen: list[dict[str, Any]] = []

    def timer_set(self, timer: asyncio.TimerHandle, /) -> None:
        self.timers.append(timer)

    def timer_cancelled(self, timer: asyncio.TimerHandle, /) -> None:
        self.cancelled.append(timer)

    def task_failed_unseen(self, context: dict[str, Any], /) -> None:
        self.unseen.append(context)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def loop(notes: Notes) -> Iterator[Loop]:
    made = Loop(notes, 100.0)
    yield made
    made.close()


def run(loop: Loop, coro: Coroutine[Any, Any, Any]) -> Any:
    task = loop.create_task(coro)
    loop.drain()
    return task.result()


# --- running ----------------------------------------------------------------------------------------------------------
def test_a_drain_runs_what_is_ready_and_what_that_makes_ready(loop: Loop):
    async def main() -> int:
        return sum(await asyncio.gather(*(asyncio.sleep(0, i) for i in range(4))))

    assert run(loop, main()) == 6


def test_a_drain_leaves_the_thread_as_it_was(loop: Loop):
    hooks = sys.get_asyncgen_hooks()
    inside: list[Any] = []

    async def main() -> None:
        inside.extend((asyncio.get_running_loop(), gc.isenabled()))

    run(loop, main())
    assert inside == [loop, False]
    assert gc.isenabled()
    assert sys.get_asyncgen_hooks() == hooks
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


def test_a_drain_does_not_turn_on_a_collector_that_was_off(loop: Loop):
    gc.disable()
    try:
        run(loop, asyncio.sleep(0))
        assert not gc.isenabled()
    finally:
        gc.enable()


async def test_a_drain_inside_another_loop_gives_it_back(loop: Loop):
    outer = asyncio.get_running_loop()
    assert loop.create_task(asyncio.sleep(0))
    done = asyncio.Event()

    def drain() -> None:
        loop.drain()
        assert asyncio.get_running_loop() is outer
        done.set()

    outer.call_soon(drain)
    await done.wait()


def test_a_stopped_loop_runs_nothing_more(loop: Loop):
    ran: list[int] = []

    def stop() -> None:
        ran.append(1)
        loop.stopped = True

    loop.call_soon(stop)
    loop.call_soon(ran.append, 2)
    loop.drain()
    loop.drain()
    assert ran == [1]


def test_what_a_callback_raises_reaches_the_host(loop: Loop, notes: Notes):
    loop.call_soon(lambda: 1 / 0)
    loop.drain()
    assert isinstance(notes.unseen[0]["exception"], ZeroDivisionError)


def test_a_callback_that_is_cancelled_before_its_turn_does_not_run(loop: Loop, notes: Notes):
    ran: list[str] = []
    loop.call_soon(lambda: cancelled.cancel())
    cancelled = loop.call_soon(ran.append, "cancelled")
    loop.call_soon(ran.append, "kept")
    loop.drain()
    assert (ran, notes.unseen) == (["kept"], [])


def test_a_task_that_fails_unseen_reaches_the_host(loop: Loop, notes: Notes):
    async def fail() -> None:
        raise ValueError("unseen")

    async def main() -> None:
        await asyncio.sleep(0)

    loop.create_task(fail())
    run(loop, main())
    assert [task for task in loop.live_tasks()] == []  # noqa: C416
    assert [str(context["exception"]) for context in notes.unseen] == ["unseen"]


def test_it_says_what_a_running_loop_says(loop: Loop):
    assert loop.is_running()
    assert not loop.is_closed()
    assert not loop.get_debug()
    assert loop.time() == 100.0
    loop.close()
    assert loop.is_closed()


# --- time -------------------------------------------------------------------------------------------------------------
def test_timers_are_the_hosts_and_fire_when_it_says(loop: Loop, notes: Notes):
    rung: list[str] = []
    soon, late = loop.call_later(5, rung.append, "soon"), loop.call_at(200.0, rung.append, "late")
    assert [timer.when() for timer in notes.timers] == [105.0, 200.0]
    loop.drain()
    assert rung == []
    loop.fire(late)
    loop.drain()
    assert rung == ["late"]
    soon.cancel()
    assert notes.cancelled == [soon]


# --- order ------------------------------------------------------------------------------------------------------------
def test_tasks_and_futures_hash_by_serial_and_are_equal_only_to_themselves(loop: Loop):
    one, two = Task(asyncio.sleep(0), loop=loop, name=None, context=None), loop.create_task(asyncio.sleep(0))
    first, second = loop.create_future(), Future[int](loop=loop)
    assert [hash(each) for each in (one, two, second, first, second)] == [1, 2, 3, 4, 3]
    assert len({one, two, first, second, one, first}) == 4
    assert [each.get_name() for each in (one, two)] == ["task-1", "task-2"]
    loop.drain()


def test_serials_of_other_loops_begin_elsewhere(notes: Notes):
    loop = Loop(notes, 0.0, salt=1 << 31)
    task = loop.create_task(asyncio.sleep(0))
    assert hash(task) == (1 << 31) + 1
    assert task.get_name() == "task-1"
    loop.close()


def test_a_set_of_tasks_iterates_in_the_same_order_every_time(notes: Notes):
    def order() -> list[str]:
        junk = [bytearray(size) for size in range(1, 5000, 7)]
        loop = Loop(notes, 0.0)
        tasks = {loop.create_task(asyncio.sleep(0)) for _ in range(50)}
        del junk
        loop.close()
        return [task.get_name() for task in tasks]

    assert order() == order()
    assert order() == [f"task-{n}" for n in range(1, 51)]


def test_ended_tasks_are_let_go(loop: Loop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop_module, "TASKS_SWEPT_AT", 10)
    loop = Loop(loop.host, 0.0)

    async def main() -> None:
        for _ in range(200):
            await asyncio.create_task(asyncio.sleep(0))

    run(loop, main())
    assert len(loop._tasks) < 50  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    assert loop.live_tasks() == []


def test_as_completed_elsewhere_is_left_alone_during_a_drain(loop: Loop):
    """Another loop may be running in another thread while this one drains."""
    order: list[str] = []

    async def elsewhere() -> None:
        order.extend([await one for one in asyncio.as_completed([asyncio.sleep(0, "x")])])

    def nested() -> None:
        events._set_running_loop(None)  # noqa: SLF001
        asyncio.run(elsewhere())
        events._set_running_loop(loop)  # noqa: SLF001

    loop.call_soon(nested)
    loop.drain()
    assert order == ["x"]


# --- what a body cannot do --------------------------------------------------------------------------------------------
async def opens_a_connection() -> None:
    await asyncio.open_connection("localhost", 1)


async def goes_to_a_thread() -> None:
    await asyncio.to_thread(print)


async def uses_an_executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, print)


async def starts_a_process() -> None:
    await asyncio.create_subprocess_exec("true")


async def starts_a_shell() -> None:
    await asyncio.create_subprocess_shell("true")


async def looks_up_an_address() -> None:
    await asyncio.get_running_loop().getaddrinfo("localhost", 1)


async def serves() -> None:
    await asyncio.start_server(print, "localhost", 1)


async def handles_signals() -> None:
    asyncio.get_running_loop().add_signal_handler(2, print)


async def calls_from_a_thread() -> None:
    asyncio.get_running_loop().call_soon_threadsafe(print)


async def stops_the_loop() -> None:
    asyncio.get_running_loop().stop()


@pytest.mark.parametrize(
    ("body", "call"),
    [
        (opens_a_connection, "create_connection"),
        (goes_to_a_thread, "run_in_executor"),
        (uses_an_executor, "run_in_executor"),
        (starts_a_process, "subprocess_exec"),
        (starts_a_shell, "subprocess_shell"),
        (looks_up_an_address, "getaddrinfo"),
        (serves, "create_server"),
        (handles_signals, "add_signal_handler"),
        (calls_from_a_thread, "call_soon_threadsafe"),
        (stops_the_loop, "stop"),
    ],
)
def test_io_in_a_body_names_the_call(loop: Loop, body: Callable[[], Coroutine[Any, Any, None]], call: str):
    with pytest.raises(IoInWorkflow, match=rf"loop\.{call}\(\)"):
        run(loop, body())


async def call(loop: asyncio.AbstractEventLoop, name: str) -> object:
    method = getattr(loop, name)
    needed = [
        parameter
        for parameter in inspect.signature(getattr(asyncio.AbstractEventLoop, name)).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
    ]
    arguments = [print for parameter in needed[1:] if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    result = method(*arguments)
    return await result if inspect.iscoroutine(result) else result


SUPPORTED = {
    *("call_at", "call_exception_handler", "call_later", "call_soon", "create_future", "create_task", "get_debug"),
    *("default_exception_handler", "get_exception_handler", "get_task_factory", "is_closed", "is_running", "set_debug"),
    *("set_exception_handler", "set_task_factory", "time"),
}


@pytest.mark.parametrize("name", [name for name in dir(asyncio.AbstractEventLoop) if not name.startswith("_")])
def test_every_method_of_a_loop_is_supported_or_refused_in_words(loop: Loop, name: str):
    if name in SUPPORTED:
        assert getattr(Loop, name) is not getattr(asyncio.AbstractEventLoop, name)
        return

    async def body() -> None:
        await call(asyncio.get_running_loop(), name)

    if name == "close":
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            run(loop, body())
        return
    with pytest.raises(IoInWorkflow, match=rf"loop\.{name}\(\) .*, which the body of a workflow cannot do: put it in"):
        run(loop, body())


def test_a_loop_makes_its_tasks_itself(loop: Loop):
    assert loop.get_task_factory() is None
    loop.set_task_factory(None)
    with pytest.raises(NotRepeatable, match="set_task_factory"):
        loop.set_task_factory(asyncio.Task)


def test_debugging_is_left_to_other_loops(loop: Loop):
    loop.set_debug(True)
    assert loop.get_debug() is False
    assert loop.slow_callback_duration > 0


async def leaves_a_failure() -> None:
    def fails() -> None:
        raise ValueError("nobody looks")

    asyncio.get_running_loop().call_soon(fails)
    await asyncio.sleep(0)


def test_a_body_may_handle_what_nobody_looked_at(loop: Loop, notes: Notes):
    seen: list[Any] = []

    async def body() -> None:
        own = asyncio.get_running_loop()
        own.set_exception_handler(lambda loop, context: seen.append((loop, context["exception"])))
        assert own.get_exception_handler() is not None
        await leaves_a_failure()

    run(loop, body())
    [(told, error)] = seen
    assert told is loop
    assert str(error) == "nobody looks"
    assert notes.unseen == []


def test_a_handler_that_fails_is_reported(loop: Loop, notes: Notes):
    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        raise KeyError("handler")

    async def body() -> None:
        asyncio.get_running_loop().set_exception_handler(handler)
        await leaves_a_failure()

    run(loop, body())
    assert [context["message"] for context in notes.unseen] == ["Unhandled error in exception handler"]


def test_a_handler_is_not_run_when_no_body_runs(loop: Loop, notes: Notes):
    loop.set_exception_handler(lambda loop, context: pytest.fail("run outside a drain"))
    loop.call_exception_handler({"message": "collected"})
    assert [context["message"] for context in notes.unseen] == ["collected"]
    loop.set_exception_handler(None)
    with pytest.raises(TypeError):
        loop.set_exception_handler(cast("Any", 7))


# --- async generators -------------------------------------------------------------------------------------------------
async def counting(log: list[str], name: str, awaits: int = 0) -> AsyncIterator[int]:
    try:
        for i in range(9):
            yield i
    finally:
        for _ in range(awaits):
            await asyncio.sleep(0)
        log.append(name)


def test_a_generator_dropped_during_a_drain_is_closed_at_once(loop: Loop):
    log: list[str] = []

    async def main() -> None:
        async for _ in counting(log, "closed", awaits=2):
            break
        assert log == []
        for _ in range(5):
            await asyncio.sleep(0)
        assert log == ["closed"]

    run(loop, main())
    assert loop.finish_generators() is False


def test_generators_left_open_are_finished_in_the_order_they_were_started_whenever_collected(loop: Loop):
    log: list[str] = []
    cycles: dict[str, list[Any]] = {}

    async def main() -> None:
        for name in ("one", "two", "three", "four"):
            generator = counting(log, name)
            await anext(generator)
            cycles[name] = [generator]
            cycles[name].append(cycles[name])

    run(loop, main())
    cycles.pop("three").clear()  # dropped while the loop rests
    cycles.pop("one").clear()
    assert log == []
    assert loop.finish_generators() is True
    loop.drain()
    assert log == ["one", "two", "three", "four"]
    assert loop.finish_generators() is False
    for cycle in cycles.values():
        cycle.clear()


def test_a_generator_that_lies_where_another_one_did_has_its_own_place(loop: Loop):
    log: list[str] = []
    left_open: list[Any] = []

    async def main() -> None:
        ended = [counting([], "ended") for _ in range(20)]
        for i in range(20):
            async for _ in ended[i]:
                pass
        while ended:  # these addresses are free again, and were known; the last one freed is taken first
            del ended[0]
        for i in range(20):
            left_open.append(counting(log, f"{i}"))
            await anext(left_open[-1])

    run(loop, main())
    assert loop.finish_generators()
    loop.drain()
    assert log == [f"{i}" for i in range(20)]


def test_closing_ends_open_generators_and_those_dropped_by_that(loop: Loop):
    log: list[str] = []

    async def main() -> None:
        kept, dropped = counting(log, "kept"), counting(log, "dropped", awaits=3)
        stubborn = counting(log, "stubborn", awaits=CLOSE_ATTEMPTS // 2)
        for each in (kept, dropped, stubborn):
            await anext(each)
        outer.append(kept)
        await asyncio.Event().wait()

    outer: list[Any] = []
    loop.create_task(main())
    loop.drain()
    with nothing_happens():
        loop.close()
    assert "kept" in log
    assert len(log) <= 3


# --- close ------------------------------------------------------------------------------------------------------------
def test_a_closed_loop_starts_nothing(loop: Loop):
    loop.close()
    with pytest.raises(CalledOutsideWorkflow):
        loop.call_soon(print)
    with pytest.raises(CalledOutsideWorkflow):
        loop.call_later(1, print)
    with pytest.raises(CalledOutsideWorkflow):
        loop.create_future()
    with nothing_happens(), pytest.raises(CalledOutsideWorkflow):
        loop.create_task(asyncio.sleep(0))
    with pytest.raises(TurnClosed):
        loop.host.timer_set(asyncio.TimerHandle(1.0, print, (), loop))


@pytest.mark.parametrize("asks", ["sleep", "queue", "sleep(0)"])
def test_a_body_that_swallows_everything_for_ever_neither_spins_nor_goes_on_elsewhere(loop: Loop, asks: str):
    rounds: list[int] = []

    async def stubborn() -> None:
        while True:
            try:
                rounds.append(1)
                await {"sleep": lambda: asyncio.sleep(5), "queue": lambda: asyncio.Queue[int]().get()}.get(
                    asks, lambda: asyncio.sleep(0)
                )()
            except BaseException:  # noqa: BLE001
                continue

    async def stop() -> None:
        await asyncio.sleep(0)
        loop.stopped = True

    loop.create_task(stubborn())
    loop.create_task(stop())
    loop.drain()
    with nothing_happens():
        loop.close()
    told = len(rounds)
    assert CLOSE_ATTEMPTS < told < 1000
    gc.collect()
    assert len(rounds) == told


def test_what_happens_after_the_close_reaches_nobody(loop: Loop, notes: Notes):
    timer = loop.call_later(1, print)
    loop.close()
    timer.cancel()
    loop.call_exception_handler({"message": "late"})
    assert notes.cancelled == []
    assert notes.unseen == []


def test_a_generator_dropped_after_the_close_is_closed_where_it_is(loop: Loop):
    log: list[str] = []
    cycle: list[Any] = []

    async def main() -> None:
        for name, awaits in (("one", 0), ("two", 3)):
            cycle.append(counting(log, name, awaits))
            await anext(cycle[-1])

    run(loop, main())
    loop.closed = True
    with nothing_happens():
        cycle.clear()
    assert log == ["one"]  # the other one awaited in its cleanup, which nothing can answer any more


def test_as_completed_is_the_original_on_any_other_loop(loop: Loop):
    async def main() -> list[int]:
        return [await each for each in asyncio.as_completed([asyncio.sleep(0.01, 1), asyncio.sleep(0, 0)])]

    assert asyncio.run(main()) == [0, 1]


def test_closing_runs_cleanup_inside_the_loop_and_its_own_context(loop: Loop):
    seen: list[Any] = []

    async def branch(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append((name, asyncio.get_running_loop()))

    for name in "ab":
        loop.create_task(branch(name))
    loop.create_task(branch("never begun"), context=None)
    loop.drain()
    loop.create_task(branch("not begun"))
    with nothing_happens():
        loop.close()
    assert seen == [("a", loop), ("b", loop), ("never begun", loop)]


def test_closing_asks_again_while_cleanup_awaits_and_gives_up_at_last(loop: Loop):
    awaits: list[int] = []

    async def cleans_up(count: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for i in range(count):
                try:
                    await asyncio.sleep(0)
                except GeneratorExit:
                    awaits.append(i)

    task = loop.create_task(cleans_up(3))
    loop.drain()
    loop.close()
    assert awaits == [0, 1, 2]
    assert inspect.getcoroutinestate(cast("Any", task.get_coro())) == "CORO_CLOSED"


def test_a_body_that_nothing_ends_does_not_keep_its_process_from_ending():
    code = """
import asyncio
from perdure.core.loop import Loop

async def stubborn():
    while True:
        try:
            await asyncio.sleep(0)
        except BaseException:
            continue

loop = Loop(None, 0.0)
task = loop.create_task(stubborn())
loop.call_soon(setattr, loop, "stopped", True)
loop.drain()
loop.close()
print("closed")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert (ended.stdout, ended.stderr) == ("closed\n", "")


def test_a_failing_cleanup_does_not_keep_others_from_theirs(loop: Loop):
    ended: list[str] = []

    async def branch(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)
            raise SystemExit(name)

    for name in "ab":
        loop.create_task(branch(name))
    loop.drain()
    loop.close()
    assert ended == ["a", "b"]
