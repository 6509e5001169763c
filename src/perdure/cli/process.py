"""The process of a command: its hash seed, its event loop, the signals that end it, and its end.

Knows nothing of workflows.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

HASH_SEED = "0"
END_OF_THREADS_SECONDS = 0.5
"""How long threads may take to notice that they are not needed any more, when the process ends."""


def fix_hash_seed() -> None:
    """Start this process anew, as the same one, with a fixed hash seed unless the environment chooses one.

    The order of a set of strings depends on the seed. A body that goes through one, against the rules, then does so in
    the same order in every worker.
    """
    if "PYTHONHASHSEED" in os.environ or sys.platform == "win32":  # there, exec leaves the console to the shell
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONHASHSEED": HASH_SEED})


def in_loop(work: Coroutine[Any, Any, int]) -> int:
    """Run `work` in a loop of uvloop, where it is installed, and return its exit code, or that of the signal.

    SIGINT and SIGTERM cancel `work`. A second SIGINT does not wait for what it then still does.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        got: list[signal.Signals] = []
        try:
            return runner.run(_until_terminated(work, got))
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except asyncio.CancelledError:
            return 128 + got[0] if got else 1


async def _until_terminated(work: Coroutine[Any, Any, int], got: list[signal.Signals]) -> int:
    here = asyncio.current_task()
    assert here is not None

    def cancel() -> None:
        got.append(signal.SIGTERM)
        here.cancel()

    if sys.platform != "win32":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, cancel)
    return await work


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop  # noqa: PLC0415  it is not there on every system

    return uvloop.new_event_loop


def ended(code: int) -> int:
    """Return `code`, or end the process with it at once if a step keeps a thread busy, which Python would wait for."""
    end = time.monotonic() + END_OF_THREADS_SECONDS
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
    return code
