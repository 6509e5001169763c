"""`perdure run`, as a process of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from perdure import connect
from tests.cli.command import clean_environment, perdure, started

pytestmark = pytest.mark.slow

URLS = ["memory:", "sqlite:runs.db"]


@pytest.mark.parametrize("url", URLS)
def test_one_run_prints_its_result(folder: Path, url: str) -> None:
    run = perdure("run", "app.py:hello", "World", "--url", url, cwd=folder)
    assert (run.returncode, run.stdout, run.stderr) == (0, "Hello, World!\n", "")


@pytest.mark.parametrize("url", URLS)
def test_result_that_is_no_text_is_printed_as_json(folder: Path, url: str) -> None:
    run = perdure("run", "app:checkout", '{"user": "u", "cents": 5}', "twice=true", "--url", url, cwd=folder)
    assert (run.returncode, json.loads(run.stdout), run.stderr) == (0, {"user": "u", "cents": 10}, "")


@pytest.mark.parametrize("url", URLS)
def test_fifty_runs_print_banner_and_summary(folder: Path, url: str) -> None:
    run = perdure("run", "app.py:hello", "user-{i}", "--count", "50", "--timeout", "60", "--url", url, cwd=folder)
    assert (run.returncode, run.stderr) == (0, "")
    assert "Concurrent Workflow Invocations (N=50)\nTimeout: 1m0s per workflow\n" in run.stdout
    assert re.search(r"^Hello, user-0\d\d!$", run.stdout, re.MULTILINE)
    assert "... (47 more results) ...\n\nTotal Invocations: 50\n✅ Success: 50\n❌ Failed: 0\n" in run.stdout
    for label in ("Total Time", "Avg Time per Workflow", "Throughput", "Latency: p50"):
        assert label in run.stdout


def test_default_url_is_that_of_connect(folder: Path) -> None:
    perdure("run", "app.py:hello", "World", cwd=folder)
    assert (folder / "perdure.db").exists()
    perdure("run", "app.py:hello", "World", cwd=folder, PERDURE_URL="sqlite:other.db")
    assert (folder / "other.db").exists()


def test_failures_are_grouped_and_make_the_exit_code_one(folder: Path) -> None:
    run = perdure("run", "app.py:odd", "{i}", "--count", "10", "--url", "memory:", cwd=folder)
    assert run.returncode == 1
    assert "Failures:\n       5x Broken: even\n" in run.stdout
    assert "✅ Success: 5\n❌ Failed: 5\n" in run.stdout


def test_one_failure_is_an_error_naming_the_run(folder: Path) -> None:
    run = perdure("run", "app.py:odd", "2", "--url", "memory:", "--id", "two", cwd=folder)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "error: workflow odd (two) failed: Broken: even\n"


def test_json_is_one_object(folder: Path) -> None:
    run = perdure("run", "app.py:hello", "World", "--url", "memory:", "--id", "one", "--json", cwd=folder)
    one = json.loads(run.stdout)
    assert one.pop("seconds") > 0
    assert one == {"id": "one", "status": "completed", "result": "Hello, World!"}

    run = perdure("run", "app.py:odd", "2", "--url", "memory:", "--json", cwd=folder)
    assert (run.returncode, run.stderr) == (1, "")
    assert {**json.loads(run.stdout), "id": "", "seconds": 0} == {
        "id": "",
        "status": "failed",
        "error": "Broken: even",
        "seconds": 0,
    }

    run = perdure("run", "app.py:odd", "{i}", "--count", "10", "--url", "memory:", "--json", cwd=folder)
    many = json.loads(run.stdout)
    assert (many["total"], many["completed"], many["failed"]) == (10, 5, 5)
    assert many["errors"] == [{"message": "Broken: even", "count": 5}]


def test_timeout_fails_the_run(folder: Path) -> None:
    run = perdure("run", "app.py:forever", "--timeout", "0.2", "--url", "memory:", cwd=folder)
    assert run.returncode == 1
    assert "InvocationTimedOut" in run.stderr


def test_key_reaches_the_workflow(folder: Path) -> None:
    run = perdure("run", "app.py:keyed", "--key", "k-1", "--url", "memory:", cwd=folder)
    assert (run.returncode, run.stdout) == (0, "k-1\n")


def test_worker_has_a_fixed_hash_seed_unless_the_environment_chooses_one(folder: Path) -> None:
    assert perdure("run", "app.py:seed", "--url", "memory:", cwd=folder).stdout.startswith("0 0")
    chosen = perdure("run", "app.py:seed", "--url", "memory:", cwd=folder, PYTHONHASHSEED="7")
    assert chosen.stdout.startswith("7 ")


def test_console_script_is_the_same_command(folder: Path) -> None:
    script = Path(sys.executable).parent / "perdure"
    run = subprocess.run(
        [script, "run", "app.py:seed", "--url", "memory:"],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("0 0")


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["app.py:nope"], "error: app.py has no workflow 'nope'. Its workflows: hello"),
        (["app.py:hello"], "missing a required argument: 'name'"),
        (["app.py:checkout", "{"], "argument 'cart' of checkout takes app.Cart as JSON, not '{'"),
        (["app.py:hello", "x", "--service", "Hello"], "'Hello' is not NAME=HOST:PORT, as in HelloService=127.0.0.1:9"),
        (["app.py:hello", "x", "--service", "A=h:0"], "'A=h:0' is not NAME=HOST:PORT"),
        (["app.py:hello", "x", "--service", "A=h:1", "--service", "A=h:2"], "A is given twice, as h:1 and h:2"),
        (["app.py:hello", "x", "--count", "0"], "Invalid value for '--count'"),
        (["app.py:hello", "x", "--id", "j-{i}"], "--id takes no {i}"),
        (["app.py:hello", "x", "--id", "x" * 201], "201 characters where the limit is 200"),
        (["app.py:hello", "x", "--url", "carrier-pigeon:"], "carrier-pigeon:"),
        (["app.py:hello", "x", "--nope"], "No such option"),
        (["app.py:hello", "x", "--timeout", "1e300"], "timeout of workflow 'hello' is 1e+300 seconds"),
        ([], "Missing argument 'TARGET'"),
    ],
)
def test_wrong_use_is_explained_with_exit_code_two(folder: Path, arguments: list[str], message: str) -> None:
    run = perdure("run", *arguments, cwd=folder)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ")
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_debug_shows_the_traceback(folder: Path) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    run = perdure("run", "broken.py", "--debug", cwd=folder)
    assert run.returncode == 1
    assert "Traceback" in run.stderr
    assert "error: importing broken.py failed: ZeroDivisionError" in run.stderr


def test_store_that_cannot_be_opened_is_a_failure(folder: Path) -> None:
    (folder / "text.db").write_text("this is no database\n" * 1000)
    run = perdure("run", "app.py:hello", "x", "--url", "sqlite:text.db", cwd=folder)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("error: ")
    assert "text.db" in run.stderr
    assert "Traceback" not in run.stderr


def test_store_that_another_process_serves_is_a_failure(folder: Path) -> None:
    with started("worker", "app.py", "--url", "sqlite:runs.db", cwd=folder) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        run = perdure("run", "app.py:hello", "x", "--url", "sqlite:runs.db", cwd=folder)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert str(worker.pid) in run.stderr


def test_same_id_with_other_input_is_a_failure(folder: Path) -> None:
    for name, code in (("a", 0), ("a", 0), ("b", 1)):
        run = perdure("run", "app.py:hello", name, "--id", "one", "--url", "sqlite:runs.db", cwd=folder)
        assert run.returncode == code
    assert run.stderr.startswith("error: ")
    assert "one" in run.stderr


# --- being ended ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_it_with_what_there_is(folder: Path, number: signal.Signals, code: int) -> None:
    with started("run", "app.py:twice", "--count", "100000", "--url", "memory:", cwd=folder) as run:
        wait_for_steps(folder, 100)
        run.send_signal(number)
        out, err = run.communicate(timeout=60)
    assert run.returncode == code
    assert err.startswith(f"{number.name}: ")
    assert err.endswith(" The store is in memory: what has not ended is lost.\n")
    assert "Not ended: " in out


async def test_killed_batch_is_completed_by_the_same_command_and_no_recorded_step_runs_again(folder: Path) -> None:
    command = (
        "run",
        "app.py:twice",
        "--count",
        "300",
        "--concurrency",
        "20",
        "--id",
        "batch",
        "--url",
        "sqlite:runs.db",
    )
    with started(*command, cwd=folder):
        wait_for_steps(folder, 200)

    recorded: set[str] = set()
    async with connect(f"sqlite:{folder / 'runs.db'}") as client:
        async for invocation in client.list():
            journal = (await client.handle(invocation.id).describe()).journal
            recorded |= {step.result for step in journal if step.status == "completed"}
    assert 0 < len(recorded) < 600

    again = perdure(*command, cwd=folder)
    assert (again.returncode, again.stderr) == (0, "")
    assert "✅ Success: 300\n❌ Failed: 0\n" in again.stdout
    steps = Counter((folder / "steps.log").read_text().splitlines())
    assert set(steps) == {f"batch-{n:06d} {which}" for n in range(1, 301) for which in ("first", "second")}
    assert [step for step in recorded if steps[step] != 1] == []

    third = perdure(*command, cwd=folder)
    assert "✅ Success: 300\n" in third.stdout
    assert Counter((folder / "steps.log").read_text().splitlines()) == steps


def wait_for_steps(folder: Path, count: int) -> None:
    log = folder / "steps.log"
    end = time.monotonic() + 60
    while not log.exists() or log.read_text().count("\n") < count:
        assert time.monotonic() < end, "no steps"
        time.sleep(0.01)


# --- on a terminal ----------------------------------------------------------------------------------------------------


def on_a_terminal(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run `perdure ARGUMENTS` with stderr on a terminal: exit code, stdout, what the terminal got."""
    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-m", "perdure", *arguments],
        cwd=folder,
        env=clean_environment() | {"TERM": "xterm", "COLUMNS": "200"} | environment,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    shown = b""
    while chunk := read_some(ours):
        shown += chunk
    os.close(ours)
    out, _ = run.communicate(timeout=60)
    return run.returncode, out, shown.decode()


def test_terminal_shows_a_bar(folder: Path) -> None:
    code, out, shown = on_a_terminal(folder, "run", "app.py:twice", "--count", "500", "--url", "memory:")
    assert code == 0
    assert "Success: 500" in out
    assert "━" in shown
    assert "/500" in shown


# --- failed attempts --------------------------------------------------------------------------------------------------
FAILED = r"invocation \S+ \(retried\): attempt 1 of 3 of step flaky failed: \S*Broken: out of order"


def test_single_run_tells_of_each_failed_attempt(folder: Path) -> None:
    run = perdure("run", "app.py:retried", "7", "--url", "memory:", cwd=folder)
    assert (run.returncode, run.stdout) == (0, "7\n")
    assert (
        len(re.findall(r"WARNING perdure\.worker: invocation .*attempt \d of 3 of step flaky failed", run.stderr)) == 2
    )
    assert re.search(rf"WARNING perdure\.worker: {FAILED}.*next attempt at", run.stderr, re.DOTALL)


def test_batch_tells_of_failed_attempts_in_few_lines(folder: Path) -> None:
    run = perdure("run", "app.py:retried", "{i}", "--count", "300", "--url", "memory:", cwd=folder)
    assert run.returncode == 0
    assert "Success: 300" in run.stdout
    lines = run.stderr.splitlines()
    assert 1 <= len(lines) < 60
    told = [
        re.search(r"^([\d,]+) attempts failed, the last: invocation \S+ \(retried\): attempt", line) for line in lines
    ]
    assert sum(int(found[1].replace(",", "")) for found in told if found) in (
        599,
        600,
    )  # one alone is a line of its own


def test_terminal_shows_failed_attempts_below_the_bar(folder: Path) -> None:
    code, _, shown = on_a_terminal(folder, "run", "app.py:retried", "{i}", "--count", "300", "--url", "memory:")
    assert code == 0
    below = re.search(r"/300\S*.*?\r\n(\S*)([\d,]+) attempts failed, the last: invocation", shown)
    assert below is not None, shown
    assert "WARNING" not in shown


def test_narrow_terminal_without_colour_cuts_the_line_instead_of_wrapping_it(folder: Path) -> None:
    narrow = {"COLUMNS": "20", "NO_COLOR": "1"}
    command = ("run", "app.py:retried", "{i}", "--count", "300", "--url", "memory:")
    code, _, shown = on_a_terminal(folder, *command, **narrow)
    assert code == 0
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)
    assert max(len(line) for line in re.split(r"[\r\n]+", plain)) <= 20


def read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--url", "memory:"), "--no-worker: memory: is served by the process that opens it: leave the option out"),
        (("--url", "sqlite:runs.db"), "--no-worker: sqlite:runs.db is served by the process that opens it"),
        (("--url", "nats://n1", "--max-concurrent", "5"), "--service and --max-concurrent are for the worker"),
    ],
)
def test_run_without_a_worker_needs_a_store_that_others_can_serve(
    folder: Path, options: tuple[str, ...], why: str
) -> None:
    run = perdure("run", "app.py:hello", "World", "--no-worker", *options, cwd=folder)
    assert run.returncode == 2
    assert why in run.stderr
    assert not (folder / "runs.db").exists()
