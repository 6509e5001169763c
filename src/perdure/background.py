"""Work that no caller awaits: tasks that log how they fail, and log messages that do not repeat every second.

Knows nothing of who uses it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any

LOG_AGAIN_SECONDS = 60.0
"""How long a message that was logged is not logged again."""

CANCEL_AGAIN_SECONDS = 1.0
"""How long a cancelled task may take to end before it is cancelled again."""

MESSAGES_LIMIT = 100
"""Different messages that a rate-limited log remembers; it forgets the oldest first."""


async def end(tasks: Iterable[asyncio.Task[Any]], /) -> None:
    """Cancel tasks, and wait until they have ended.

    One that goes on is cancelled again: until Python 3.12, `asyncio.wait_for` loses a cancellation that comes together
    with what it waits for, and libraries take some for errors of their own.
    """
    left = {*tasks}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_SECONDS)


def log_error(
    log: logging.Logger,
    text: str,
    *values: object,
    error: BaseException,
    extra: Mapping[str, object] | None = None,
) -> None:
    """Log an exception with its traceback, also one of an author's class that is false, or cannot be shown."""
    at = _traceback_of(error)
    try:
        log.error(text, *values, exc_info=(type(error), error, at), extra=extra)
    except Exception:  # noqa: BLE001  its methods raise, or a handler of the program does
        frames = "".join(traceback.format_tb(at))
        log.error("%s: %s\n%s", text % values, type(error).__name__, frames, extra=extra)


_traceback_of = vars(BaseException)["__traceback__"].__get__


class Tasks:
    """A set of tasks that no caller awaits. One that fails is logged with its traceback; the others go on."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return iter([*self._tasks])

    def spawn(self, coroutine: Coroutine[Any, Any, Any], /, *, name: str | None = None) -> asyncio.Task[Any]:
        """Run a coroutine in the background, and keep its task until it ends."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        await end(self._tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log_error(self._log, "background task %s failed", task.get_name(), error=error)


class RateLimitedLog:
    """Logs each kind of message once, and then not again for a while."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._logged: OrderedDict[object, tuple[float, int]] = OrderedDict()  # when, and how often held back since

    def __call__(
        self,
        kind: object,
        text: str,
        *values: object,
        level: int = logging.ERROR,
        exc_info: BaseException | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Log a message, unless one of this kind was logged a while ago. The next one tells how many were held back."""
        now = self._clock()
        at, held_back = self._logged.get(kind, (0.0, 0))
        if kind in self._logged and now < at + LOG_AGAIN_SECONDS:
            self._logged[kind] = at, held_back + 1
            return
        if held_back:
            text, values = text + " (and %d times since this was last logged)", (*values, held_back)
        self._log.log(level, text, *values, exc_info=exc_info, extra=extra)
        self._logged[kind] = now, 0
        self._logged.move_to_end(kind)
        if len(self._logged) > MESSAGES_LIMIT:
            self._logged.popitem(last=False)
