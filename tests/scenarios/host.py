"""A process that hosts a client and workers: `python -m tests.scenarios.host PLACE FOLDER OPTIONS`.

The place is a SQLite file, or servers and a namespace on them: `nats://HOST:PORT[,HOST:PORT…]/NAMESPACE?replicas=N`.

Operations come on stdin and answers go to stdout, one JSON object a line; it ends when stdin does, or is killed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import msgspec

from perdure.stores.jetstream import JetStreamStore
from perdure.stores.port import Store, Transition
from perdure.stores.sqlite import SqliteStore
from tests.scenarios.engine import Engine, Options, Problem, log_into, problem_of
from tests.scenarios.notes import closed, gate, open_notes

DEFAULTS = Options()


class Ask(msgspec.Struct):
    """One operation."""

    number: int
    operation: str
    arguments: dict[str, Any]


class Told(msgspec.Struct):
    """What became of it. `number` -1 says that the process is up."""

    number: int
    value: Any = None
    problem: Problem | None = None


def tell(told: Told) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    sys.stdout.buffer.flush()


class GatedStore(JetStreamStore):
    """A store that a test can hold, and kill, between a frame that is durable and what follows from it."""

    def __init__(self, servers: Sequence[str], **options: Any) -> None:
        super().__init__(servers, **options)
        try_effects = self.commits.try_effects

        async def gated(transition: Transition) -> None:
            point = f"effects of {transition.id}"
            if closed(point):
                await gate(point)
            await try_effects(transition)

        self.commits.try_effects = gated


def store_at(place: str, options: Options) -> Store:
    if not place.startswith("nats:"):
        return SqliteStore(place)
    return jetstream_at(place, options, GatedStore)


def jetstream_at(
    place: str, options: Options = DEFAULTS, kind: type[JetStreamStore] = JetStreamStore
) -> JetStreamStore:
    parts = urlsplit(place)
    servers = [f"nats://{each}" for each in parts.netloc.split(",")]
    replicas = int(parts.query.removeprefix("replicas="))
    return kind(
        servers,
        namespace=parts.path[1:],
        shards=2,
        replicas=replicas,
        python=options.python,
        janitor_seconds=options.janitor,
    )


async def serve(path: str, folder: Path, options: Options, kind: type[Engine] = Engine) -> None:
    engine = kind(lambda: store_at(path, options), options)
    await engine.open()
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    tasks: set[asyncio.Task[None]] = set()

    async def execute(ask: Ask) -> None:
        try:
            value = await getattr(engine, ask.operation)(**ask.arguments)
        except Exception as error:  # noqa: BLE001  it is the caller's
            tell(Told(ask.number, problem=problem_of(error)))
        else:
            tell(Told(ask.number, value))
        if ask.operation == "stop" and not over.done():
            over.set_result(None)

    def take(line: bytes) -> None:
        task = asyncio.ensure_future(execute(msgspec.json.decode(line, type=Ask)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def read(source: BinaryIO) -> None:
        for line in source:
            loop.call_soon_threadsafe(take, line)
        os._exit(0)  # whoever started this is gone

    threading.Thread(target=read, args=(sys.stdin.buffer,), daemon=True).start()
    tell(Told(-1, os.getpid()))
    await over


def main(kind: type[Engine] = Engine) -> None:
    path, folder, options = sys.argv[1:]
    open_notes(Path(folder))
    log_into(Path(folder) / "report")
    asyncio.run(serve(path, Path(folder), msgspec.json.decode(options, type=Options), kind))
    sys.stdout.flush()
    os._exit(0)  # the thread that reads stdin does not end by itself


if __name__ == "__main__":
    main()
