"""The processes of a run, which end and begin again: workers, and clients with what they have left to ask."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from random import Random
from typing import Any, ParamSpec, Protocol, TypeVar

from perdure.authoring.step import StepHost, StepInfo, Work
from perdure.client import Client
from perdure.core.journal import Start
from perdure.core.turn import Turn
from perdure.operations.local import Local
from perdure.runtime.slots import Slots
from perdure.runtime.worker import Worker
from perdure.stores.port import Delivery
from perdure.testing.programs import Interpreter
from perdure.testing.simulation.clock import ProcessClock
from perdure.testing.simulation.face import UNFORESEEN, Face
from perdure.testing.simulation.faults import Faults
from perdure.testing.simulation.loop import Process, World
from perdure.testing.simulation.observer import Observer
from perdure.testing.simulation.plan import Plan
from perdure.testing.simulation.server import Server
from perdure.testing.simulation.shared import LEASE_SECONDS
from perdure.testing.simulation.silent import Silence
from perdure.testing.simulation.trace import Trace

P = ParamSpec("P")
T = TypeVar("T")

THREAD_SECONDS = 0.02
"""A step in a thread takes as long, at most."""

RESTART_SECONDS = 3.0
"""A process begins again within so many seconds."""


class Scene(Protocol):
    """What all processes of a run share."""

    world: World
    server: Server
    observer: Observer
    trace: Trace
    plan: Plan
    chance: Random
    interpreter: Interpreter
    machines: list[Machine]

    def fault_outage(self) -> None: ...


class Machine:
    """Runs one process after another, each with the same name and a number. A subclass says what they do."""

    def __init__(self, scene: Scene, name: str, ahead: float) -> None:
        self.scene = scene
        self.name = name
        self._ahead = ahead
        self._faults = Faults(name, scene.plan.faults)
        self._lives = 0
        self.process: Process | None = None
        self.face: Face | None = None
        self.chance = Random()  # noqa: S311

    def start(self) -> None:
        """Begin a new process, unless one runs."""
        scene = self.scene
        if self.process is not None and not self.process.is_ended:
            return
        self._lives += 1
        self.process = process = Process(scene.world, f"{self.name}.{self._lives}")
        self.chance = Random(f"{scene.plan.seed} {process.name}")  # noqa: S311  repeatable on purpose
        self.face = Face(scene.server, process, ProcessClock(process, self._ahead), self._faults, self)
        scene.trace.note("begins", process=process.name)
        process.receive(lambda: process.create_task(self.main(process)))

    async def main(self, process: Process) -> None:
        raise NotImplementedError

    # --- what becomes of it -------------------------------------------------------------------------------------------
    def crash(self) -> None:
        """End the process at once, and begin another a little later."""
        if self._end("crashes"):
            self.scene.world.hand.call_later(self.scene.chance.random() * RESTART_SECONDS, self.start)

    def stop(self, grace: float) -> None:
        """Ask the process to end."""
        self.crash()

    def outage(self) -> None:
        self.scene.fault_outage()

    def go_down(self) -> None:
        """End with all others; `start` comes from outside."""
        self._end("goes down")

    def _end(self, how: str) -> bool:
        process, face = self.process, self.face
        if process is None or process.is_ended or face is None:
            return False
        self.scene.trace.note(how, process=process.name)
        process.end()
        self.scene.server.ended(face, self.scene.chance.choice((0.0, 0.0, LEASE_SECONDS)))
        return True


# --- workers ----------------------------------------------------------------------------------------------------------
class NoWatch:
    """No thread looks for bodies that block."""

    count = 0
    current: Any = None

    def stop(self) -> None:
        pass


class Threads(concurrent.futures.Executor):
    """Runs functions a little later in the process itself, in place of threads: a cancelled wait does not end them."""

    def __init__(self, process: Process, chance: Random) -> None:
        self._process = process
        self._chance = chance

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[T]:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                future.set_result(fn(*args, **kwargs))  # what `Attempt` submits raises nothing

        self._process.call_later(self._chance.random() * THREAD_SECONDS, work)
        return future


class OddSlots(Slots[Any]):
    """Slots that raise, as `oddly` says, when a delivery is taken or an invocation goes to another worker."""

    def __init__(self, limit: int, oddly: Callable[[str], None]) -> None:
        super().__init__(limit)
        self._oddly = oddly

    def keep_waiting(self, delivery: Delivery, *, is_start: bool) -> bool:
        self._oddly("delivery")
        return super().keep_waiting(delivery, is_start=is_start)

    def drop(self, id: str) -> None:
        self._oddly("notice of a take-over")
        super().drop(id)


class CountedWorker(Worker):
    """A worker that tells what it has in hand. With a chance of `raises`, making a turn fails as nobody foresaw."""

    simulated_threads: Threads
    silence: Silence
    raises: float = 0.0

    def let_callbacks_raise(self, share: float, trace: Trace) -> None:
        """Let some of what the store calls raise within the worker."""

        def oddly(what: str) -> None:
            if self.chance.random() < share:
                trace.count(f"callback raises: {what}")
                raise RuntimeError(UNFORESEEN)

        self._slots = OddSlots(self.max_concurrent, oddly)

    def threads(self) -> Any:
        return self.simulated_threads

    def make_turn(self, start: Start, /) -> Turn:
        if self.raises and self.chance.random() < self.raises:
            raise RuntimeError(UNFORESEEN)
        return self.silence.watch(super().make_turn(start))

    def leaks(self) -> Iterator[str]:
        """Name what an idle worker should have given back."""
        slots = self._slots
        if slots.taken or slots.wanting or slots.starts:
            yield f"{slots.taken} slots are taken, {len(slots.wanting)} runners and {len(slots.starts)} starts wait"
        if slots.ask():
            yield "it has room for starts that it did not ask for"


class WorkerMachine(Machine):
    """Runs workers."""

    worker: CountedWorker | None = None
    _entered: Process | None = None  # the last one whose worker serves

    async def main(self, process: Process) -> None:
        face, plan = self.face, self.scene.plan
        assert face is not None
        operations = Local(lambda: face, chance=self.chance)
        self._running: dict[str, int] = {}  # attempts in progress, by invocation
        self.worker = CountedWorker(
            operations.opened,
            [self.scene.interpreter.workflow],
            max_concurrent=plan.max_concurrent,
            cache=plan.cache,
            always_replay=plan.always_replay,
            retention=plan.retention,
            chance=self.chance,
            watch=NoWatch,
            replace=lambda work: _SeenWork(work, self, process),
        )
        self.worker.simulated_threads = Threads(process, self.chance)
        self.worker.silence = Silence(self.scene.observer.breach, self.scene.trace.count)
        self.worker.raises = plan.noise.raises
        if plan.noise.callbacks:
            self.worker.let_callbacks_raise(plan.noise.callbacks, self.scene.trace)
        process.at_drop.append(self.worker.halt)
        await self.worker.__aenter__()
        self._entered = process

    def stop(self, grace: float) -> None:
        process, worker = self.process, self.worker
        if process is None or worker is None or process.is_ended:
            return
        if self._entered is not process:
            self.crash()
            return
        process.receive(lambda: process.create_task(self._stop(process, worker, grace)))

    async def _stop(self, process: Process, worker: CountedWorker, grace: float) -> None:
        self.scene.trace.note("stops", process=process.name)
        await worker.stop(grace)
        process.call_soon(self.crash)

    def step_begins(self, process: Process, info: StepInfo, name: str) -> None:
        face = self.face
        id = info.invocation_id
        running = self._running
        running[id] = running.get(id, 0) + 1
        observer = self.scene.observer
        if len(running) > self.scene.plan.max_concurrent:
            observer.breach(12, f"{process.name} has steps of {len(running)} invocations in progress: {[*running]}")
        is_owner = face is not None and face.owns(id)
        observer.step_begins(process.name, id, info.idempotency_key, name, info.attempt, is_owner=is_owner)

    def step_ends(self, info: StepInfo) -> None:
        left = self._running[info.invocation_id] = self._running[info.invocation_id] - 1
        if not left:
            del self._running[info.invocation_id]


class _SeenWork:
    """A step's call that the observer sees begin."""

    def __init__(self, work: Work, machine: WorkerMachine, process: Process) -> None:
        self._work = work
        self._machine = machine
        self._process = process
        self.name = work.name
        self.retry = work.retry
        self.timeout = work.timeout

    async def run(self, host: StepHost, info: StepInfo, /) -> bytes:
        self._machine.step_begins(self._process, info, self.name)
        try:
            return await self._work.run(host, info)
        finally:
            if not self._process.is_ended:
                self._machine.step_ends(info)


# --- clients ----------------------------------------------------------------------------------------------------------
Script = Callable[[Client, "ClientMachine"], Coroutine[Any, Any, None]]


class ClientMachine(Machine):
    """Runs clients; each goes on with the script where the one before has ended."""

    def __init__(self, scene: Scene, name: str, ahead: float, script: Script) -> None:
        super().__init__(scene, name, ahead)
        self._script = script

    async def main(self, process: Process) -> None:
        face = self.face
        assert face is not None
        operations = Local(lambda: face, chance=self.chance)
        client = Client(operations, _no_worker)
        with suppress(asyncio.CancelledError):
            await self._script(client, self)


def _no_worker(*_: Any, **__: Any) -> Worker:
    raise AssertionError("a simulated client makes no worker")
