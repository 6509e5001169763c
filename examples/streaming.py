"""Streams: a step writes the tokens of a model as they come, and a reader follows them over a kill.

python -m examples.streaming [--interval SECONDS]

The model is a fake one. The reader is a client of the HTTP API of the worker; it goes away with the worker that is
killed, and another one goes on from the number of the next item. What the first attempt wrote is superseded.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing

from examples import stage
from perdure import Context, StreamItem, connect, step, stream, workflow

POEM = "Because I could not stop for Death, He kindly stopped for me."
BEFORE_KILL = 5
"""Tokens that are read before the worker is killed."""


async def model(prompt: str, interval: float) -> AsyncIterator[str]:
    for token in prompt.split():
        await asyncio.sleep(interval)
        yield token


@step
async def recite(poem: str, interval: float) -> int:
    tokens, count = stream("tokens", str), 0
    async for token in model(poem, interval):
        tokens.write(token)
        await tokens.drain()
        count += 1
    return count


@workflow
async def chat(ctx: Context, poem: str, interval: float) -> int:
    status = ctx.stream("status", str)
    status.write("thinking")
    count = await recite(poem, interval)
    status.write("done")
    return count


class Worker:
    """`perdure worker` with its HTTP API, in a process of its own."""

    def __init__(self, store: str) -> None:
        command = ["-m", "perdure", "worker", __file__, "--url", store, "--http-port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        found = re.search(r"http://\S+:\d+", self.process.stdout.readline())
        assert found is not None, "the worker does not serve"
        self.url = found[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Printer:
    """Prints items, each attempt on a line of its own. `next` is the number of the item to go on from."""

    def __init__(self) -> None:
        self.next = 0
        self._attempt = 0  # of the line that is being printed

    def show(self, item: StreamItem[str]) -> None:
        if item.attempt != self._attempt:
            self.end_line()
            self._attempt = item.attempt
            print(f"🗣️  attempt {item.attempt}:", end="")
        print(f" {item.value}", end="", flush=True)
        self.next = item.offset + 1

    def end_line(self) -> None:
        if self._attempt:
            print()
        self._attempt = 0


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interval", type=float, default=0.1, metavar="SECONDS", help="(default: %(default)s)")
    interval = parser.parse_args().interval
    printer = Printer()
    with stage.store() as store:
        worker = await asyncio.to_thread(Worker, store)
        try:
            async with connect(worker.url) as client:
                id = (await client.start(chat, POEM, interval)).id
                async with aclosing(client.handle(id).stream("tokens", str)) as items:
                    async for item in items:
                        printer.show(item)
                        if printer.next == BEFORE_KILL:
                            break
            worker.kill()
            printer.end_line()
            print(f"💥 kill -9 {worker.process.pid}; another worker, and another reader from item {printer.next} on")
            worker = await asyncio.to_thread(Worker, store)
            async with connect(worker.url) as client:
                handle = client.handle(id, chat)
                async for item in handle.stream("tokens", str, start=printer.next):
                    printer.show(item)
                printer.end_line()
                print(f"✅ {await handle.result()} tokens")
                print("📈", ", ".join([item.value async for item in handle.stream("status", str)]))
        finally:
            worker.kill()


if __name__ == "__main__":
    asyncio.run(main())
