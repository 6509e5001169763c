"""`perdure worker`, as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.command import perdure, started

pytestmark = pytest.mark.slow


@contextmanager
def serving(*arguments: str, cwd: Path) -> Generator[tuple[subprocess.Popen[str], str]]:
    """A worker that has said that it serves, with the line in which it did."""
    with started("worker", *arguments, cwd=cwd) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("url", ["memory:", "sqlite:runs.db"])
def test_signal_ends_it_cleanly(folder: Path, url: str, number: signal.Signals) -> None:
    with serving("app.py:hello", "app.py:twice", "--url", url, "--max-concurrent", "7", cwd=folder) as (worker, line):
        assert line == f"Serving hello, twice on {url}, at most 7 at a time. Ctrl-C stops.\n"
        worker.send_signal(number)
        out, err = worker.communicate(timeout=60)
    assert (worker.returncode, out) == (0, "")
    assert f"INFO perdure.cli: {number.name}: stopping; steps in progress have 10 s to end\n" in err
    assert err.endswith("INFO perdure.cli: stopped\n")


def test_target_without_a_name_serves_all_workflows_of_its_module(folder: Path) -> None:
    with serving("app.py", "--url", "memory:", cwd=folder) as (_, line):
        assert line.startswith(
            "Serving checkout, forever, hello, keyed, odd, retried, seed, twice on memory:, at most 100 "
        )


def test_retention_removes_what_settled_before_and_none_keeps_it(folder: Path) -> None:
    kept = ("--url", "sqlite:runs.db")
    assert perdure("run", "app.py:hello", "World", *kept, cwd=folder).returncode == 0
    for retention, purged in (("0", False), ("604800", False), ("0.01", True)):
        with serving("app.py:hello", *kept, "--retention", retention, cwd=folder) as (worker, _):
            said = ""
            if purged:
                assert worker.stderr is not None
                said = worker.stderr.readline()
            else:
                time.sleep(0.3)  # for what must not happen
            worker.send_signal(signal.SIGTERM)
            said += worker.communicate(timeout=60)[1]
        assert ("invocations purged: 1, settled more than 0.01 s ago" in said) == purged, said


SLOW = """
import asyncio, pathlib, time
from perdure import step, workflow

@step
def block(seconds: float) -> None:
    pathlib.Path("began").touch()
    time.sleep(seconds)
    pathlib.Path("ended").touch()

@workflow
async def slow(seconds: float) -> None:
    await block(seconds)
"""


def in_the_middle_of_a_step(folder: Path, seconds: float) -> None:
    """Leave a store in which `slow` has begun its step and nobody runs it."""
    (folder / "slow.py").write_text(SLOW)
    with started("run", "slow.py", str(seconds), "--url", "sqlite:runs.db", cwd=folder):
        wait_for(folder / "began")
    (folder / "began").unlink()


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.01)


def test_step_in_progress_may_end_before_the_worker_does(folder: Path) -> None:
    in_the_middle_of_a_step(folder, 1.0)
    with serving("slow.py", "--url", "sqlite:runs.db", cwd=folder) as (worker, _):
        wait_for(folder / "began")
        worker.terminate()
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    assert (folder / "ended").exists()


def test_step_that_takes_longer_than_the_drain_timeout_does_not_hold_the_worker(folder: Path) -> None:
    in_the_middle_of_a_step(folder, 60)
    with serving("slow.py", "--url", "sqlite:runs.db", "--drain-timeout", "0.2", cwd=folder) as (worker, _):
        wait_for(folder / "began")
        worker.terminate()
        _, err = worker.communicate(timeout=50)  # less than the step would take
    assert worker.returncode == 0
    assert "steps in progress have 0.2 s to end" in err
    assert not (folder / "ended").exists()


def test_second_signal_ends_it_at_once(folder: Path) -> None:
    in_the_middle_of_a_step(folder, 60)
    with serving("slow.py", "--url", "sqlite:runs.db", "--drain-timeout", "60", cwd=folder) as (worker, _):
        wait_for(folder / "began")
        worker.terminate()
        assert worker.stderr is not None
        assert "stopping" in worker.stderr.readline()
        worker.terminate()
        worker.communicate(timeout=60)
    assert worker.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'TARGET"),
        (["nope.py"], "nope.py does not exist"),
        (["app.py:note"], "note in app.py is a step"),
        (["app.py", "--max-concurrent", "0"], "Invalid value for '--max-concurrent'"),
        (["app.py", "--url", "memory:x"], "memory:x"),
        (["app.py", "--url", "memory:", "--drain-timeout", "nan"], "--drain-timeout is nan seconds: give"),
        (["app.py", "--url", "memory:", "--drain-timeout", "inf"], "--drain-timeout is inf seconds: give"),
        (["app.py", "--partitions", "5-2"], "'5-2' names no partitions: give numbers from 0 to 63, as in 0,2-3"),
        (["app.py", "--partitions", "0,64"], "'0,64' names no partitions"),
        (["app.py", "--partitions", "1-"], "'1-' names no partitions"),
        (["app.py:hello", "other.py"], "hello"),
    ],
)
def test_wrong_use_is_explained_with_exit_code_two(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "other.py").write_text("from perdure import workflow\n\n@workflow\nasync def hello() -> None: ...\n")
    run = perdure("worker", *arguments, cwd=folder)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ")
    assert message in run.stderr
    assert "Traceback" not in run.stderr
