"""A client and its workers behind operations whose arguments and results are JSON, in this process or another."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec

from perdure.authoring.step import StepInfo, Work
from perdure.authoring.workflow import Workflow
from perdure.connect import client_from, translators_in_use
from perdure.core.journal import Entry, Start
from perdure.core.turn import Turn
from perdure.encryption import Encrypted
from perdure.operations.local import store_behind
from perdure.operations.port import ANSWER_WAIT_SECONDS
from perdure.runtime.attempt import Attempt
from perdure.runtime.runner import Runner
from perdure.runtime.worker import Worker
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.care.janitor import PERIOD_SECONDS
from perdure.stores.jetstream.store import PYTHON
from perdure.stores.port import Delivery, Store
from perdure.stores.sealed import Sealed, sealed
from perdure.testing.programs import Endings
from perdure.testing.programs.journals import flaws
from tests.scenarios import bodies, interpreter, keyed


class Options(msgspec.Struct, frozen=True):
    """How many workers there are, and what they are like."""

    workers: int = 1
    max_concurrent: int = 100
    cache: int = 1_000
    always_replay: bool = False
    max_grace: float = 10.0
    delay: float = 0.0
    """Seconds by which deliveries to a worker are late, at most."""
    retention: float | None = None
    lease: float = 15.0
    python: str = PYTHON
    """What the workers say their minor version of Python is."""
    janitor: float = PERIOD_SECONDS
    """How often there is a look for what should not happen, where there is one."""
    serves: tuple[str, ...] = ()
    """Handlers, where all of them would cost too much: on JetStream each has its consumers."""
    sealed: bool = False
    """Whether the store is sealed."""


CODEC = Encrypted({"scenarios": b"s" * 32})


class Problem(msgspec.Struct, frozen=True):
    """What an operation raised."""

    type: str
    text: str
    fields: dict[str, Any]


class Ended(msgspec.Struct):
    """How programs have ended, by tag; the tags of those that wait to be mended, and statuses of the others, by id."""

    outcomes: dict[str, list[Any] | str | None]
    flaws: list[str]
    broken: dict[str, str]
    left: dict[str, str]


class Effort(msgspec.Struct):
    """How much work the workers of an engine did."""

    turns: int = 0
    entries: int = 0
    peak: int = 0
    began: int = 0


class CountedTurn(Turn):
    """A turn that counts what it is given."""

    __slots__ = ()
    delivered: ClassVar[Effort] = Effort()

    def deliver(self, entry: Entry, /) -> None:
        CountedTurn.delivered.entries += 1
        super().deliver(entry)


class CountedWorker(Worker):
    """A worker that counts the turns it builds, and how many steps run at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts = Effort()
        self.delay = 0.0
        self._steps_now = 0

    def _deliver(self, delivery: Delivery) -> None:
        if self.delay:
            asyncio.get_running_loop().call_later(random.random() * self.delay, super()._deliver, delivery)
        else:
            super()._deliver(delivery)

    def make_turn(self, start: Start, /) -> Turn:
        turn = super().make_turn(start)
        self.counts.turns += 1
        turn.__class__ = CountedTurn
        return turn

    def begin_attempt(
        self, work: Work, info: StepInfo, runner: Runner, variables: Context | None, trace: str, /
    ) -> Attempt:
        attempt = super().begin_attempt(work, info, runner, variables, trace)
        self._steps_now += 1
        self.counts.began += 1
        self.counts.peak = max(self.counts.peak, self._steps_now)
        attempt.task.add_done_callback(self._one_less)
        return attempt

    def _one_less(self, _: object) -> None:
        self._steps_now -= 1

    @property
    def slots_taken(self) -> int:
        return self._slots.taken

    @property
    def runners(self) -> int:
        return len(self._runners)


class Engine:
    """A client and its workers. Every public coroutine is an operation."""

    def __init__(self, make_store: Callable[[], Store], options: Options) -> None:
        self._options = options
        self._client = client_from(make_store, seal=partial(sealed, codec=CODEC) if options.sealed else None)
        self._workflows = {
            each.name: each
            for module in (bodies, keyed, interpreter)
            for each in cast("list[Workflow[..., Any]]", vars(module).values())
            if isinstance(each, Workflow)  # pyright: ignore[reportUnnecessaryIsInstance]
        }
        self._workers: list[CountedWorker] = []
        self._endings = Endings(self._client)
        CountedTurn.delivered = Effort()

    # --- life ---------------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        await self._client.operations.open()
        for _ in range(self._options.workers):
            await self.start_worker()

    async def start_worker(self) -> int:
        options = self._options
        worker = CountedWorker(
            lambda: store_behind(self._client.operations),
            [each for each in self._workflows.values() if not options.serves or each.name in options.serves],
            max_concurrent=options.max_concurrent,
            cache=options.cache,
            always_replay=options.always_replay,
            stop_grace=options.max_grace,
            translators=translators_in_use,
            retention=options.retention,
            lease=options.lease,
        )
        worker.delay = options.delay
        worker.writer = msgspec.structs.replace(worker.writer, python=options.python)
        await worker.__aenter__()
        self._workers.append(worker)
        return len(self._workers) - 1

    async def crash_worker(self, number: int) -> None:
        await self._workers[number].crash()

    async def stop_worker(self, number: int, grace: float | None = None) -> None:
        await self._workers[number].stop(grace)

    async def stop(self, grace: float | None = None) -> None:
        await asyncio.gather(*(worker.stop(grace) for worker in self._workers))
        await self._client.aclose()

    async def crash(self) -> None:
        for worker in self._workers:
            await worker.crash()

    async def ready(self) -> None:
        """Wait until a worker's place at a server is made, where there is one."""
        store = await store_behind(self._client.operations)
        if isinstance(store, Sealed):
            store = store.inner
        if isinstance(store, JetStreamStore):
            await store.ready()

    # --- the client ---------------------------------------------------------------------------------------------------
    async def start(self, handler: str, args: Sequence[Any], options: dict[str, Any]) -> str:
        return (await self._client.start(self._workflows[handler].using(**options), *args)).id

    async def start_many(self, handler: str, many: Sequence[Sequence[Any]], options: dict[str, Any]) -> list[str]:
        workflow = self._workflows[handler].using(**options)
        handles = await asyncio.gather(*(self._client.start(workflow, *args) for args in many))
        return [handle.id for handle in handles]

    async def start_each(self, handler: str, many: Sequence[tuple[Sequence[Any], dict[str, Any]]]) -> None:
        """Start several with options of their own, all at once; they are accepted in this order."""
        workflow = self._workflows[handler]
        await asyncio.gather(*(self._client.start(workflow.using(**options), *args) for args, options in many))

    async def result(self, id: str, timeout: float) -> Any:
        return await self._client.handle(id).result(timeout=timeout)

    async def results(self, ids: Sequence[str], timeout: float) -> list[Any]:
        return await asyncio.gather(*(self.result(id, timeout) for id in ids))

    async def run(self, handler: str, args: Sequence[Any], options: dict[str, Any]) -> Any:
        return await self._client.run(self._workflows[handler].using(**options), *args)

    async def describe(self, id: str) -> dict[str, Any]:
        return msgspec.to_builtins(await self._client.handle(id).describe())

    async def resolve(self, awakeable: str, value: Any) -> None:
        await self._client.resolve(awakeable, value)

    async def reject(self, awakeable: str, reason: str) -> None:
        await self._client.reject(awakeable, reason)

    async def pause(self, id: str) -> None:
        await self._client.handle(id).pause()

    async def resume(self, id: str) -> None:
        await self._client.handle(id).resume()

    async def cancel(self, id: str, force: bool = False) -> None:
        await self._client.handle(id).cancel(force=force)

    async def retry(self, id: str, timeout: float = ANSWER_WAIT_SECONDS) -> None:
        await self._client.handle(id).retry(timeout=timeout)

    async def items(self, id: str, name: str, start: int = 0, count: int | None = None) -> list[list[Any]]:
        """Follow a stream from an item on: to its end, or so many items. Each as offset, value, step and attempt."""
        found: list[list[Any]] = []
        async with aclosing(self._client.handle(id).stream(name, start=start)) as items:
            async for item in items:
                found.append([item.offset, item.value, item.step, item.attempt])
                if len(found) == count:
                    break
        return found

    async def state(self, key: str) -> dict[str, Any]:
        return dict(await self._client.state(key))

    async def purge(self, id: str) -> None:
        await self._client.handle(id).purge()

    async def stats(self) -> dict[str, Any]:
        return msgspec.to_builtins(await self._client.stats())

    async def list(self, status: Any = None, handler: str | None = None) -> list[str]:
        return [each.id async for each in self._client.list(status=status, handler=handler)]

    async def endings(self) -> Ended:
        """Tell how programs have ended so far."""
        found = self._endings
        await found.look()
        return Ended(found.outcomes, found.flaws, {id: each.tag for id, each in found.broken.items()}, found.left)

    # --- looking inside -----------------------------------------------------------------------------------------------
    async def frames(self, id: str) -> int:
        return len((await (await store_behind(self._client.operations)).journal(id)).frames)

    async def flaws(self, ids: Sequence[str]) -> list[str]:
        """Read the journals themselves, and say what is wrong with those of invocations that have ended."""
        store = await store_behind(self._client.operations)
        return [f"{id}: {flaw}" for id in ids for flaw in flaws((await store.journal(id)).frames)]

    async def work(self) -> list[Effort]:
        return [CountedTurn.delivered, *(worker.counts for worker in self._workers)]

    async def slots(self) -> list[int]:
        return [worker.slots_taken for worker in self._workers]

    async def runners(self) -> list[int]:
        return [worker.runners for worker in self._workers]


def problem_of(error: Exception) -> Problem:
    """Return what crosses the process boundary of an error: its class's name, its text, its fields."""
    fields: dict[str, Any] = {
        name: value
        for name, value in vars(error).items()
        if not name.startswith("_") and isinstance(value, (str, int, float, type(None)))
    }
    return Problem(type(error).__name__, str(error), fields)


def log_into(path: Path) -> logging.Handler:
    """Write what the engine logs into a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    logging.getLogger("perdure").addHandler(handler)
    return handler
