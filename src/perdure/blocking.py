"""The bridge for sync code: runs any coroutine of a client on an event loop in a thread. No second copy of the API."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Self, TypeVar

from perdure.core.turn import current_turn
from perdure.errors import InvalidOption, IoInWorkflow, StoreClosed

T = TypeVar("T")


class Blocking:
    """Runs a client's coroutines on one background loop, and waits for them. Thread-safe.

    Use it in a `with`, or keep it for the life of the process: it opens the client and starts the workers on the first
    call, and closes them at exit. It belongs to the process that opened it: a forked child must create its own.
    """

    def __init__(
        self, client: AbstractAsyncContextManager[Any], workers: Sequence[AbstractAsyncContextManager[Any]]
    ) -> None:
        self._inner = [client, *workers]
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stack = AsyncExitStack()
        self._pid = os.getpid()
        self._closed = False

    def __enter__(self) -> Self:
        self._check_process()
        self._opened()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, work: Coroutine[Any, Any, T], /) -> T:
        """Run `work` to its end, and return its value or raise its exception. Ctrl-C cancels it."""
        try:
            self._check_caller()
            self._check_process()
            loop = self._opened()
        except BaseException:
            work.close()
            raise
        return self._wait(work, loop)

    def each(self, items: AsyncIterator[T], /) -> Iterable[T]:
        """Iterate over an async iterator."""

        async def following() -> list[T]:
            try:
                return [await anext(items)]
            except StopAsyncIteration:
                return []

        def iterate() -> Iterator[T]:
            while got := self(following()):
                yield got[0]

        return iterate()

    def close(self) -> None:
        """Stop the workers, close the client and end the loop. Later calls raise `StoreClosed`."""
        if os.getpid() != self._pid:
            return  # the loop and its thread are the parent's
        with self._lock:
            loop, self._loop = self._loop, None
            self._closed = True
        if loop is None:
            return
        _open_bridges.discard(self)
        try:
            self._wait(self._stack.aclose(), loop)
        finally:
            self._end(loop)

    def _wait(self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _check_caller(self) -> None:
        if (turn := current_turn()) is not None:
            where = f"client.blocking() was called in the body of workflow {turn.start.handler!r}"
            raise IoInWorkflow(f"{where}: await a child there, or do it in a step")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise InvalidOption("this thread runs an event loop: `await` the call instead of blocking the loop")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            text = f"client.blocking() belongs to process {self._pid}, and this is its fork, process {os.getpid()}"
            raise StoreClosed(f"{text}: connect in the child, after the fork")

    def _opened(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise StoreClosed("client.blocking() is closed, or the process is ending: connect again")
            if self._loop is None:
                self._loop = self._open()
            return self._loop

    def _open(self) -> asyncio.AbstractEventLoop:
        try:
            _close_at_exit()
        except RuntimeError as error:
            raise StoreClosed(f"client.blocking() cannot open: the process is ending ({error})") from error
        loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="perdure-blocking", daemon=True)
        self._thread.start()
        try:
            self._wait(self._enter(), loop)
        except BaseException:
            self._closed = True
            with contextlib.suppress(Exception):
                self._wait(self._stack.aclose(), loop)
            self._end(loop)
            raise
        _open_bridges.add(self)
        return loop

    async def _enter(self) -> None:
        for each in self._inner:
            await self._stack.enter_async_context(each)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(loop.stop)
        assert self._thread is not None
        self._thread.join()
        loop.close()


_open_bridges: set[Blocking] = set()
"""The bridges to close when the process ends."""


@functools.cache
def _close_at_exit() -> None:
    """Close bridges at exit, before the executors of `concurrent.futures`, which closing a store still needs.

    `atexit` would run after them. `concurrent.futures` itself relies on this hook of `threading`.
    """
    importlib.import_module("concurrent.futures.thread")  # registers its hook first, and the last one runs first
    threading._register_atexit(_close_all)  # type: ignore[attr-defined]  # noqa: SLF001


def _close_all() -> None:
    for bridge in [*_open_bridges]:
        bridge.close()
