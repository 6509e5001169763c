"""The sync door: one small bridge that runs any coroutine of a client on a loop in a thread. No twin of the API."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import Any, TypeVar

from perdure.errors import InvalidOption

T = TypeVar("T")


class Blocking:
    """Runs a client's coroutines on one background loop, and waits for them. Thread-safe."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self, work: Coroutine[Any, Any, T], /) -> T:
        """Run `work` to its end, and return its value or raise what it raised. Ctrl-C cancels it."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            work.close()
            raise InvalidOption("this thread runs an event loop: `await` the call instead of blocking the loop")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def each(self, items: AsyncIterator[T], /) -> Iterable[T]:
        """Iterate over what an async iterator gives."""

        async def following() -> list[T]:
            try:
                return [await anext(items)]
            except StopAsyncIteration:
                return []

        def iterate() -> Iterator[T]:
            while got := self(following()):
                yield got[0]

        return iterate()


@contextmanager
def blocking(
    client: AbstractAsyncContextManager[Any], workers: Sequence[AbstractAsyncContextManager[Any]]
) -> Generator[Blocking]:
    """Run a loop in a thread, with the client open and the workers running on it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="perdure-blocking", daemon=True)
    thread.start()
    wait = Blocking(loop)
    stack = AsyncExitStack()

    async def enter() -> None:
        await stack.enter_async_context(client)
        for worker in workers:
            await stack.enter_async_context(worker)

    try:
        try:
            wait(enter())
            yield wait
        finally:
            wait(stack.aclose())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
