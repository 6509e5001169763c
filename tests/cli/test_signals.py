"""Signals end a command: the first in good order, and it says what is waited for; the second at once, whatever runs."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.command import clean_environment, perdure, started

pytestmark = pytest.mark.slow

BOTH = [signal.SIGINT, signal.SIGTERM]
APP = """
import asyncio
import time

from perdure import step, workflow


def tell(text):
    print(text, flush=True)


@workflow
async def spins() -> None:
    tell("began")
    while True:
        pass


@workflow
async def blocks() -> None:
    tell("began")
    time.sleep(3600)


@workflow
async def never_lets_go() -> None:
    tell("began")
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            pass


@step
async def fetch(seconds: float) -> None:
    tell("began")
    await asyncio.sleep(seconds)


@step
def stubborn() -> None:
    tell("began")
    time.sleep(3600)


@step
async def blocking_step() -> None:
    tell("began")
    while True:
        pass


@workflow
async def fetches(seconds: float = 3600) -> str:
    await fetch(seconds)
    return "fetched"


@workflow
async def stubbornly() -> None:
    await stubborn()


@workflow
async def blocked_by_a_step() -> None:
    await blocking_step()


@workflow
async def cleans_up() -> None:
    try:
        tell("began")
        await asyncio.sleep(3600)
    finally:
        while True:
            pass


@workflow
async def sleeps() -> None:
    tell("began")
    await asyncio.sleep(3600)
"""


@contextmanager
def began(folder: Path, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """`perdure ARGUMENTS`, once the workflow or its step has said so."""
    (folder / "busy.py").write_text(APP)
    with started(*arguments, cwd=folder) as process:
        assert process.stdout is not None
        assert any(line == "began\n" for line in process.stdout), process.communicate()
        yield process


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("body", ["spins", "blocks", "never_lets_go", "blocked_by_a_step"])
def test_second_signal_ends_a_run_whose_body_blocks_and_says_where(
    tmp_path: Path, body: str, number: signal.Signals
) -> None:
    with began(tmp_path, "run", f"busy.py:{body}", "--url", "memory:") as run:
        run.send_signal(number)
        assert_goes_on(run)
        run.send_signal(number)
        _, err = run.communicate(timeout=60)
    assert run.returncode == -number
    place = "blocking_step" if body == "blocked_by_a_step" else body
    assert re.search(rf"{number.name} again: .*blocked at \S+busy.py:\d+, in {place}\.\n$", err), err


@pytest.mark.parametrize("second", BOTH)
@pytest.mark.parametrize("body", ["spins", "never_lets_go"])
def test_second_signal_ends_a_worker_whose_body_blocks(tmp_path: Path, body: str, second: signal.Signals) -> None:
    with began(tmp_path, "run", f"busy.py:{body}", "--url", "sqlite:runs.db") as run:
        run.kill()
    with began(tmp_path, "worker", "busy.py", "--url", "sqlite:runs.db") as worker:
        worker.terminate()
        assert_goes_on(worker)
        worker.send_signal(second)
        worker.communicate(timeout=60)
    assert worker.returncode == -second


def assert_goes_on(process: subprocess.Popen[str]) -> None:
    """The first signal alone does not end it. Two that come at one instant may count as one, so they are sent apart."""
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)


@pytest.mark.parametrize("number", BOTH)
def test_first_signal_says_what_is_waited_for_and_that_the_run_stays(tmp_path: Path, number: signal.Signals) -> None:
    with began(tmp_path, "run", "busy.py:fetches", "--url", "sqlite:runs.db", "--id", "r-1") as run:
        run.send_signal(number)
        assert run.stderr is not None
        said = run.stderr.readline()
        assert said == (
            f"{number.name}: waiting up to 10 s for steps in progress: fetch; a second signal ends at once. Run r-1"
            " stays in sqlite:runs.db and goes on with the next worker: perdure worker busy.py --url sqlite:runs.db,"
            " or this command again.\n"
        )
        run.send_signal(number)
        _, err = run.communicate(timeout=60)
    assert (run.returncode, err) == (-number, f"{number.name} again: ended at once.\n")
    shown = perdure("show", "r-1", "--url", "sqlite:runs.db", cwd=tmp_path)
    assert shown.returncode == 0


def test_first_signal_of_a_run_in_memory_says_that_it_is_lost(tmp_path: Path) -> None:
    with began(tmp_path, "run", "busy.py:sleeps", "--url", "memory:") as run:
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGINT
    assert err == "SIGINT: stopping. The store is in memory: what has not ended is lost.\n"


def test_step_that_ends_within_its_grace_is_kept_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = ("run", "busy.py:fetches", "2", "--url", "sqlite:runs.db", "--id", "r-1")
    with began(tmp_path, *command) as run:
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGINT
    assert "waiting up to 10 s for steps in progress: fetch;" in err
    again = perdure(*command, cwd=tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (0, "fetched\n", "")  # the step does not begin again


def test_step_in_progress_is_kept_when_the_terminal_is_closed(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(APP)
    command = ("run", "busy.py:fetches", "1", "--url", "sqlite:runs.db", "--id", "r-1")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-m", "perdure", *command], clean_environment())
    printed = b""
    while b"began\r\n" not in printed:  # all of it: a step whose output fails has failed
        printed += os.read(terminal, 1000)
    os.close(terminal)
    os.kill(pid, signal.SIGHUP)  # its shell says so too
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    again = perdure(*command, cwd=tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (0, "fetched\n", "")


def test_many_steps_in_progress_are_counted(tmp_path: Path) -> None:
    with began(tmp_path, "run", "busy.py:fetches", "--count", "7", "--url", "sqlite:runs.db", "--timeout", "0") as run:
        assert run.stdout is not None
        for _ in range(6):
            run.stdout.readline()
        run.send_signal(signal.SIGINT)
        assert run.stderr is not None
        assert "for steps in progress: fetch (7); a second signal ends at once. What has not ended stays in sqlite" in (
            run.stderr.readline()
        )


def test_step_in_a_thread_that_does_not_end_is_named_and_a_second_signal_does_not_wait_for_it(tmp_path: Path) -> None:
    with began(tmp_path, "run", "busy.py:stubbornly", "--url", "memory:") as run:
        run.send_signal(signal.SIGINT)
        assert run.stderr is not None
        assert "for steps in progress: stubborn;" in run.stderr.readline()
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize("verb", [("run", "busy.py:sleeps"), ("worker", "busy.py")])
def test_signal_that_a_shell_has_it_ignore_stays_ignored(tmp_path: Path, verb: tuple[str, ...]) -> None:
    (tmp_path / "busy.py").write_text(APP)
    with started(*verb, "--url", "sqlite:runs.db", cwd=tmp_path, interrupts=False) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            assert_goes_on(process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == (0 if verb[0] == "worker" else 128 + signal.SIGTERM)


def test_signal_before_the_store_is_open_ends_it(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(f"{APP}\ntell('imported')\n")
    for verb in (("run", "busy.py:sleeps"), ("worker", "busy.py")):
        with started(*verb, "--url", "nats://127.0.0.1:1", cwd=tmp_path) as process:
            assert process.stdout is not None
            assert any(line == "imported\n" for line in process.stdout)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
