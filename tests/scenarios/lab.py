"""Two labs behind one interface: real processes on a SQLite file, killed by SIGKILL; and the same in memory.

A test starts workflows, reads what their steps noted, kills, and starts again. `Lab` is all that it knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from perdure.authoring.workflow import Workflow
from perdure.errors import StoreClosed
from perdure.stores.clock import VirtualClock
from perdure.stores.memory import Crashed, MemoryStore
from tests.scenarios.engine import Effort, Engine, Options, Problem, log_into, problem_of
from tests.scenarios.notes import close_notes, die_by, gate_of, open_notes

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.01
ASK_SECONDS = 150.0
"""No answer by then is a failure with a stack, rather than a test that hangs."""
LINE_LIMIT_BYTES = 64 * 1024 * 1024


class GoneError(Exception):
    """The process that should answer was killed."""


class Refusal(Exception):
    """What an operation raised, as it crossed the process boundary."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.type}: {problem.text}")
        self.type = problem.type
        self.text = problem.text
        self.fields = problem.fields


class Lab(ABC):
    """Workers and a client that can be killed, and the notes that their steps leave."""

    store: str

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder = folder
        self.options = options
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gates").mkdir(exist_ok=True)
        (folder / "notes").touch()

    # --- life and death -----------------------------------------------------------------------------------------------
    @abstractmethod
    async def up(self, *, hash_seed: int | None = None, **changes: Any) -> None:
        """Start on what is stored, perhaps with other options."""

    @abstractmethod
    async def kill(self) -> None:
        """End it as SIGKILL does."""

    @abstractmethod
    async def died(self) -> None:
        """Wait until it has killed itself."""

    @abstractmethod
    async def stop(self, grace: float | None = None) -> None:
        """End it gracefully."""

    @abstractmethod
    async def close(self) -> None:
        """End it for good."""

    async def restart(self, **changes: Any) -> None:
        await self.kill()
        await self.up(**changes)

    # --- operations ---------------------------------------------------------------------------------------------------
    @abstractmethod
    async def ask(self, operation: str, **arguments: Any) -> Any:
        """Execute an operation of the engine; `Refusal` when it raises."""

    async def start(self, workflow: Workflow[..., Any], *args: Any, **options: Any) -> str:
        return await self.ask("start", handler=workflow.name, args=args, options=options)

    async def start_many(
        self, workflow: Workflow[..., Any], many: Sequence[Sequence[Any]], **options: Any
    ) -> list[str]:
        return await self.ask("start_many", handler=workflow.name, many=many, options=options)

    async def run(self, workflow: Workflow[..., Any], *args: Any, **options: Any) -> Any:
        return await self.ask("run", handler=workflow.name, args=args, options=options)

    async def result(self, id: str, timeout: float = WAIT_SECONDS) -> Any:
        return await self.ask("result", id=id, timeout=timeout)

    async def results(self, ids: Sequence[str], timeout: float = WAIT_SECONDS) -> list[Any]:
        return await self.ask("results", ids=ids, timeout=timeout)

    async def state(self, key: str) -> dict[str, Any]:
        return await self.ask("state", key=key)

    async def describe(self, id: str) -> dict[str, Any]:
        return await self.ask("describe", id=id)

    async def status(self, id: str) -> str:
        return (await self.describe(id))["status"]

    async def awakeables(self, id: str) -> list[str]:
        return [each["id"] for each in (await self.describe(id))["awakeables"]]

    async def awakeable(self, id: str, number: int = 0) -> str:
        """Wait until an invocation has so many awakeables, and return the id of one."""

        async def opened() -> str | None:
            found = await self.awakeables(id)
            return found[number] if len(found) > number else None

        return await until(opened)

    async def has_status(self, id: str, status: str) -> None:
        async def has() -> bool:
            return await self.status(id) == status

        await until(has)

    async def waits_for(self, id: str, what: str) -> None:
        """Wait until `describe` tells that an invocation waits for something."""

        async def does() -> bool:
            return (await self.describe(id))["waiting_for"] == what

        await until(does)

    async def work(self) -> Effort:
        """Return what the workers of the running process did so far, all together."""
        efforts = msgspec.convert(await self.ask("work"), list[Effort])
        total = Effort()
        for each in efforts:
            total.turns += each.turns
            total.entries += each.entries
            total.began += each.began
            total.peak = max(total.peak, each.peak)
        return total

    # --- notes, gates and the report ----------------------------------------------------------------------------------
    def notes(self) -> list[str]:
        return (self.folder / "notes").read_text().splitlines()

    def count(self, text: str) -> int:
        return self.notes().count(text)

    async def noted(self, text: str, times: int = 1, wait: float = WAIT_SECONDS) -> None:
        """Wait for a note to be there so many times."""

        async def there() -> bool:
            return self.count(text) >= times

        try:
            await until(there, wait)
        except TimeoutError:
            raise AssertionError(f"no {text!r} x {times} in {self.notes()}; the report:\n{self.report()}") from None

    def close_gate(self, point: str) -> None:
        gate_of(self.folder, point).touch()

    def open_gate(self, point: str) -> None:
        gate_of(self.folder, point).unlink()

    def report(self) -> str:
        """Return what the engine has logged."""
        path = self.folder / "report"
        return path.read_text() if path.exists() else ""


async def until(there: Any, wait: float = WAIT_SECONDS) -> Any:
    """Ask again and again until the answer is true, and return it."""
    deadline = time.monotonic() + wait
    while True:
        if answer := await there():
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {wait} s")
        await asyncio.sleep(POLL_SECONDS)


class MemoryLab(Lab):
    """In this process, on a memory store that forgets what a process would hold."""

    store = "memory"

    def __init__(self, folder: Path, options: Options, clock: VirtualClock | None = None) -> None:
        super().__init__(folder, options)
        self.memory = MemoryStore(clock)
        self._engine: Engine | None = None
        self._dead = asyncio.Event()
        self._reaper: asyncio.Task[None] | None = None
        open_notes(folder)
        self._log = log_into(folder / "report")

    async def up(self, *, hash_seed: int | None = None, **changes: Any) -> None:
        self._loop = asyncio.get_running_loop()
        die_by(self._die)
        self._dead.clear()
        self.memory.hook = None
        self.memory.restart()
        self._engine = Engine(lambda: self.memory, msgspec.structs.replace(self.options, **changes))
        await self._engine.open()

    @property
    def engine(self) -> Engine:
        assert self._engine is not None, "it is not up"
        return self._engine

    def _die(self) -> None:
        def dead(_kind: str, _id: str) -> None:
            raise Crashed

        def reap() -> None:
            self._reaper = self._loop.create_task(self.kill())

        self.memory.hook = dead
        self._loop.call_soon(reap)

    async def kill(self) -> None:
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await engine.crash()
            self.memory.hook = None
            self.memory.restart()
            await self.memory.aclose()
            await asyncio.sleep(0)
            self._dead.set()

    async def died(self) -> None:
        await asyncio.wait_for(self._dead.wait(), WAIT_SECONDS)

    async def stop(self, grace: float | None = None) -> None:
        engine, self._engine = self.engine, None
        await engine.stop(grace)

    async def close(self) -> None:
        if self._reaper is not None:
            await asyncio.wait([self._reaper])
        await self.kill()
        die_by(None)
        close_notes()
        self._log.close()
        logging.getLogger("perdure").removeHandler(self._log)

    async def ask(self, operation: str, **arguments: Any) -> Any:
        if self._engine is None:
            raise GoneError
        # Both ways through JSON, as in the other lab.
        arguments = msgspec.json.decode(msgspec.json.encode(arguments))
        try:
            value = await asyncio.wait_for(getattr(self._engine, operation)(**arguments), ASK_SECONDS)
        except StoreClosed:
            raise GoneError from None
        except Exception as error:
            raise Refusal(problem_of(error)) from error
        return msgspec.json.decode(msgspec.json.encode(value))


class ProcessLab(Lab):
    """In a process of its own."""

    place: str
    module = "tests.scenarios.host"
    sources: Path | None = None
    """Where the process finds another release of the package."""

    def __init__(self, folder: Path, options: Options) -> None:
        super().__init__(folder, options)
        self._process: Process | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._reader: asyncio.Task[None] | None = None

    async def up(self, *, hash_seed: int | None = None, **changes: Any) -> None:
        options = msgspec.structs.replace(self.options, **changes)
        environment = dict(os.environ)
        environment.pop("PYTHONHASHSEED", None)
        if self.sources is not None:
            environment["PYTHONPATH"] = str(self.sources)
        if hash_seed is not None:
            environment["PYTHONHASHSEED"] = str(hash_seed)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", self.module, self.place, str(self.folder)),
            msgspec.json.encode(options).decode(),
            cwd=ROOT,
            env=environment,
            stdin=PIPE,
            stdout=PIPE,
            limit=LINE_LIMIT_BYTES,
        )
        started = self._answers[-1] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(self._process))
        await asyncio.wait_for(started, WAIT_SECONDS)

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            told = msgspec.json.decode(line)
            answer = self._answers.pop(told["number"], None)
            if answer is None or answer.done():
                continue
            if told["problem"] is not None:
                answer.set_exception(Refusal(msgspec.convert(told["problem"], Problem)))
            else:
                answer.set_result(told["value"])
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(GoneError())

    async def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._ended()

    async def _ended(self) -> None:
        process, reader = self._process, self._reader
        assert process is not None
        assert reader is not None
        await asyncio.wait_for(process.wait(), WAIT_SECONDS)
        await asyncio.wait_for(reader, WAIT_SECONDS)
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await asyncio.wait_for(process.stdin.wait_closed(), WAIT_SECONDS)
        self._process = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        assert self._process is not None
        self._process.send_signal(number)

    async def died(self) -> None:
        await self._ended()

    async def stop(self, grace: float | None = None) -> None:
        await self.ask("stop", grace=grace)
        await self._ended()

    async def close(self) -> None:
        await self.kill()

    async def ask(self, operation: str, **arguments: Any) -> Any:
        if self._process is None or self._process.stdin is None or self._reader is None or self._reader.done():
            raise GoneError
        self._number += 1
        number = self._number
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        line = msgspec.json.encode({"number": number, "operation": operation, "arguments": arguments})
        self._process.stdin.write(line + b"\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await self._process.stdin.drain()
        return await asyncio.wait_for(answer, ASK_SECONDS)


class SqliteLab(ProcessLab):
    """On a SQLite file."""

    store = "sqlite"

    def __init__(self, folder: Path, options: Options) -> None:
        super().__init__(folder, options)
        self.place = str(folder / "db")


class JetStreamLab(ProcessLab):
    """On a NATS server, or on three with as many replicas; in a namespace of its own."""

    store = "jetstream"

    def __init__(self, folder: Path, options: Options, url: str, namespace: str, *, replicas: int = 1) -> None:
        super().__init__(folder, options)
        self.namespace = namespace
        self.replicas = replicas
        self.place = f"{url}/{namespace}?replicas={replicas}"

    def beside(self, url: str | None = None, **changes: Any) -> JetStreamLab:
        """Return a lab for one more process on the same store, with the same notes; perhaps by another way there."""
        options = msgspec.structs.replace(self.options, **changes)
        here = self.place.rpartition("/")[0]
        return JetStreamLab(self.folder, options, url or here, self.namespace, replicas=self.replicas)

    async def up(self, *, hash_seed: int | None = None, **changes: Any) -> None:
        await super().up(hash_seed=hash_seed, **changes)
        with contextlib.suppress(GoneError):  # what it finds may kill it at once: `died` tells
            await self.ask("ready")
