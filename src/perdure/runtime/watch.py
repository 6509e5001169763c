"""Reports a body that blocks the event loop, with its stack, from a thread of its own."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback

from perdure.runtime.runner import Runner

DRAIN_LIMIT_SECONDS = 1.0
"""How long a body may run without awaiting before the worker reports it as blocking."""

log = logging.getLogger("perdure.worker")


class DrainWatch:
    """Reports a body that blocks the loop, with its stack, from a thread of its own.

    The loop only counts; the thread compares the count periodically, and an unchanged one means a blocked loop.
    """

    def __init__(self, limit: float = DRAIN_LIMIT_SECONDS) -> None:
        self._limit = limit
        self._loop_thread = threading.get_ident()
        self.count = 0  # set by the runners, without a call: it is done for every fact
        self.current: Runner | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="perdure-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        seen, since, reported = 0, time.monotonic(), 0
        while not self._stop.wait(self._limit / 4):
            runner, count = self.current, self.count
            if runner is None or count != seen:
                seen, since = count, time.monotonic()
            elif count != reported and time.monotonic() - since >= self._limit:
                reported = count
                try:
                    self._report(runner)
                except Exception:
                    log.exception("a body that blocks could not be reported")

    def _report(self, runner: Runner) -> None:
        frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]  no other way to it
        log.error(
            "the body of invocation %s (%s) blocks the worker for more than %.1f s: make what it does a step, or "
            "await it. It is here:\n%s",
            runner.id,
            runner.handler,
            self._limit,
            "".join(traceback.format_stack(frame)) if frame is not None else "(no stack)",
            extra=runner.about,
        )
