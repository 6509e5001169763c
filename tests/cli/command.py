"""The command line as a process of its own, and the program that it is given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

APP = """
import asyncio
import os
import sys
from dataclasses import dataclass

from perdure import Context, Retry, step, step_info, workflow


class Broken(Exception):
    pass


@dataclass
class Cart:
    user: str
    cents: int = 0


@step
async def note(text: str) -> str:
    await asyncio.sleep(0.005)
    with open("steps.log", "a") as log:
        log.write(text + "\\n")
    return text


@workflow
async def hello(name: str) -> str:
    return f"Hello, {name}!"


@workflow
async def checkout(ctx: Context, cart: Cart, *, twice: bool = False) -> Cart:
    return Cart(cart.user, cart.cents * (2 if twice else 1))


@workflow
async def odd(n: int) -> int:
    if n % 2 == 0:
        raise Broken("even")
    return n


@workflow
async def twice(ctx: Context) -> str:
    await note(f"{ctx.invocation_id} first")
    await note(f"{ctx.invocation_id} second")
    return ctx.invocation_id


@step(retry=Retry(max_attempts=3, initial=0.01))
async def flaky(n: int) -> int:
    if step_info().attempt < 3:
        raise Broken(f"out of order\\nfor {n}")
    return n


@workflow
async def retried(n: int) -> int:
    return await flaky(n)


@workflow
async def forever() -> None:
    await asyncio.sleep(1_000_000)


@workflow
async def keyed(ctx: Context) -> str | None:
    return ctx.key


@workflow
async def seed() -> str | None:
    return f"{os.environ.get('PYTHONHASHSEED')} {sys.flags.hash_randomization}"


def plain() -> None: ...


elsewhere = workflow.ref("elsewhere")
"""


def perdure(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `perdure ARGUMENTS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "perdure", *arguments],
        cwd=cwd,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@contextmanager
def started(*arguments: str, cwd: Path, interrupts: bool = True) -> Generator[subprocess.Popen[str]]:
    """Start `perdure ARGUMENTS`, and kill it at the end if it still runs. Without `interrupts` it ignores SIGINT."""
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure", *arguments],
        cwd=cwd,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts if interrupts else _ignore_interrupts,  # nothing else runs in a thread here
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def hear_interrupts() -> None:
    """Undo what a shell does to what it runs in the background: a child that ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def clean_environment() -> dict[str, str]:
    """Our environment without what the command line reads."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONHASHSEED", "PERDURE_URL")}
