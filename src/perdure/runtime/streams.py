"""What one attempt of a step writes to streams: kept for a moment, and stored in batches, one after the other.

An attempt writes from its task or from threads. Nothing is stored before the claim of the invocation is durable: by the
epoch of that claim, the store refuses the batches of a worker that has lost the invocation.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Protocol

from perdure.background import log_error
from perdure.core.streams import BATCH_BYTES, ITEM_BYTES, Batch, batches, check_item
from perdure.errors import Fenced, LimitExceeded, StoreClosed, StoreError
from perdure.stores.port import Store

BATCH_SECONDS = 0.02
"""How long an item waits for others to be stored with it, unless there are `BATCH_BYTES` of them before."""
ROOM_BYTES = 1024 * 1024
"""Bytes of one attempt that may wait to be stored, before it has to wait for room."""
RETRY_SECONDS = 1.0
"""Back-off before a batch that the store did not take is stored again."""
APPENDS_LIMIT = 5
"""Retries of a batch that raises an unexpected exception, before the step fails with it."""

log = logging.getLogger("perdure.worker")


class Owner(Protocol):
    """The runner whose step writes."""

    id: str

    @property
    def about(self) -> dict[str, str]: ...
    async def durable_epoch(self) -> int | None: ...
    def attempt_of(self, n: int, failed: int, /) -> int: ...


class Tap:
    """What one attempt of step `n` writes, before which `failed` attempts failed. Made on any thread."""

    def __init__(self, owner: Owner, store: Store, loop: asyncio.AbstractEventLoop, n: int, failed: int) -> None:
        self._owner = owner
        self._store = store
        self._loop = loop
        self._n = n
        self._attempt = owner.attempt_of(n, failed)
        self._changed = threading.Condition()  # guards what follows; notified when there is room, and at the end
        self._items: list[tuple[str, bytes]] = []
        self._size = 0  # bytes that are not stored, those in hand among them
        self._error: Exception | None = None
        self._is_open = True
        # For the loop alone:
        self._counts: dict[str, int] = {}  # items of each stream that are stored
        self._storing: asyncio.Task[None] | None = None
        self._is_due = asyncio.Event()
        self._is_failing = False  # the store does not take batches
        self._draining: set[asyncio.Future[None]] = set()

    # --- for the step, on any thread ----------------------------------------------------------------------------------
    def write(self, name: str, item: bytes, /) -> None:
        with self._changed:
            self._check(name, item)
            if asyncio._get_running_loop() is None:  # noqa: SLF001  a thread without a loop may wait
                self._changed.wait_for(lambda: self._has_room)
                self._check(name, item)
            self._take(name, item)

    def offer(self, name: str, item: bytes, /) -> bool:
        with self._changed:
            self._check(name, item)
            if not self._is_open or not self._has_room:
                return False
            self._take(name, item)
            return True

    @property
    def _has_room(self) -> bool:
        return self._size < ROOM_BYTES or not self._is_open or self._error is not None

    def _check(self, name: str, item: bytes) -> None:
        check_item(name, len(item))
        if self._error is not None:
            raise self._error

    def _take(self, name: str, item: bytes) -> None:
        if not self._is_open:
            return
        is_first = not self._items
        was_due = self._size >= BATCH_BYTES
        self._items.append((name, item))
        self._size += len(item) + ITEM_BYTES
        if is_first or (self._size >= BATCH_BYTES and not was_due):
            if asyncio._get_running_loop() is self._loop:  # noqa: SLF001
                self._wake()
            else:
                self._loop.call_soon_threadsafe(self._wake)

    async def drain(self) -> None:
        """Wait for room; raise why the items cannot be stored."""
        while True:
            with self._changed:
                if self._error is not None:
                    raise self._error
                if self._has_room:
                    return
            waiting: asyncio.Future[None] = self._loop.create_future()
            self._draining.add(waiting)
            try:
                await waiting
            finally:
                self._draining.discard(waiting)

    # --- for the worker, on its loop ----------------------------------------------------------------------------------
    async def end(self) -> None:
        """Take nothing more, and return when what was taken is stored, or cannot be."""
        self._close()
        self._is_due.set()
        if self._items:
            self._wake()
        if self._storing is not None:
            await asyncio.shield(self._storing)

    def check(self) -> None:
        """Raise why items could not be stored."""
        if self._error is not None:
            raise self._error

    def drop(self) -> None:
        """Take nothing more, and store nothing more but what is in hand."""
        self._close()
        with self._changed:
            self._items.clear()

    def _close(self) -> None:
        with self._changed:
            self._is_open = False
        self._tell()

    def _wake(self) -> None:
        if self._size >= BATCH_BYTES:
            self._is_due.set()
        if self._storing is None:
            self._storing = self._loop.create_task(self._store_all(), name=f"streams of {self._owner.id}")

    async def _store_all(self) -> None:
        """Store batches until there are no more items."""
        try:
            while self._items:
                if self._is_open and self._size < BATCH_BYTES:
                    await self._wait_for_more()
                self._is_due.clear()
                with self._changed:
                    items, self._items = self._items, []
                for batch in self._batches(items):
                    await self._store_one(batch)
                self._free(sum(len(item) + ITEM_BYTES for _, item in items))
        except Exception as error:  # noqa: BLE001  the step gets it
            with self._changed:
                self._error = error
                self._items.clear()
            self._free(self._size)
        finally:
            self._storing = None

    async def _wait_for_more(self) -> None:
        try:
            async with asyncio.timeout(BATCH_SECONDS):
                await self._is_due.wait()
        except TimeoutError:
            pass

    def _batches(self, items: list[tuple[str, bytes]]) -> Iterator[Batch]:
        by_name: dict[str, list[bytes]] = {}
        for name, item in items:
            by_name.setdefault(name, []).append(item)
        for name, some in by_name.items():
            first = self._counts.get(name, 0)
            self._counts[name] = first + len(some)
            yield from batches(name, some, first=first, attempt=self._attempt, step=self._n)

    async def _store_one(self, batch: Batch) -> None:
        """Store a batch, whenever the store can; drop it if the invocation is not here any more."""
        failures = 0
        while True:
            epoch = await self._owner.durable_epoch()
            if epoch is None:
                self.drop()
                return
            try:
                await self._store.streams.append(self._owner.id, epoch, batch)
            except (Fenced, StoreClosed):
                self.drop()
                return
            except LimitExceeded:
                raise
            except StoreError as error:
                if not self._is_failing:
                    text = "stream %s of invocation %s cannot be written, and is tried again until it can: %s"
                    log.warning(text, batch.name, self._owner.id, error, extra=self._owner.about)
                failures, self._is_failing = 0, True
            except Exception as error:
                failures += 1
                if failures > APPENDS_LIMIT:
                    raise
                text = "stream %s of invocation %s cannot be written, trying again"
                log_error(log, text, batch.name, self._owner.id, error=error, extra=self._owner.about)
            else:
                self._is_failing = False
                return
            await asyncio.sleep(RETRY_SECONDS)

    def _free(self, size: int) -> None:
        with self._changed:
            self._size -= size
        self._tell()

    def _tell(self) -> None:
        """Let those go on that wait for room, if there is some."""
        with self._changed:
            self._changed.notify_all()
        for waiting in self._draining:
            if not waiting.done():
                waiting.set_result(None)
