"""Every verb with standard streams that are closed, full or have no reader, and with a poor terminal."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import clean_environment, perdure

pytestmark = pytest.mark.slow

STORE = "--url sqlite:app.db"
VERBS = [
    (f"stats {STORE}", 0),
    (f"list {STORE}", 0),
    (f"show done {STORE}", 0),
    (f"journal done {STORE} --json", 0),
    (f"pause ask-1 {STORE}", 0),
    (f"resume paused {STORE}", 0),
    (f"cancel ask-1 {STORE}", 0),
    (f"retry broken {STORE}", 0),
    (f"resolve nobody 1 {STORE}", 2),
    (f"reject nobody no {STORE}", 2),
    ("run app.py:hello x --url memory:", 0),
    ("run app.py:hello x --count 3 --url memory:", 0),
    ("worker missing.py", 2),
    ("nats init --url nats://127.0.0.1:1", 1),
    ("--help", 0),
    ("nope", 2),
]
CLOSED = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"]
HELLO = "from perdure import workflow\n\n\n@workflow\nasync def hello(name: str) -> str:\n    return name\n"


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command.replace("perdure ", f"{sys.executable} -m perdure ")],
        cwd=folder,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(("verb", "code"), VERBS, ids=[verb for verb, _ in VERBS])
def test_verb_works_with_standard_streams_closed(place: Path, verb: str, code: int) -> None:
    (place / "app.py").write_text(HELLO)
    for closed in CLOSED if verb.startswith(("stats", "run")) else CLOSED[-1:]:
        done = shell(f"perdure {verb} {closed}", place)
        assert done.returncode == code, (closed, done.stderr)
        assert "Traceback" not in done.stderr
    assert (place / "app.db").read_bytes().startswith(b"SQLite format 3\0"), "it was written into"


def test_output_that_is_not_closed_gets_all_of_it(place: Path) -> None:
    whole = shell(f"perdure stats {STORE}", place)
    assert "in all" in whole.stdout
    assert shell(f"perdure stats {STORE} <&- 2>&-", place).stdout == whole.stdout
    assert shell("perdure nope >&- <&-", place).stderr.startswith("error: No such command 'nope'")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize(
    "verb", ["--help", f"list {STORE}", f"stats {STORE} --json", "run app.py:hello x --url memory:"]
)
def test_output_that_is_full_is_one_clear_line(place: Path, verb: str) -> None:
    (place / "app.py").write_text(HELLO)
    done = shell(f"perdure {verb} >/dev/full", place)
    assert (done.returncode, done.stderr) == (1, "error: cannot write the output: No space left on device\n")
    assert shell(f"perdure {verb} >/dev/full 2>/dev/full", place).returncode == 1


@pytest.mark.parametrize("verb", [f"list {STORE}", f"list {STORE} --json", "run app.py:hello {i} --count 9"])
def test_reader_that_has_gone_ends_it_without_a_word(place: Path, verb: str) -> None:
    (place / "app.py").write_text(HELLO)
    done = shell(f"perdure {verb} | true", place, PERDURE_URL="memory:")
    assert done.stderr == ""


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"COLUMNS": "20"},
        {"NO_COLOR": "1"},
        {"TERM": "dumb"},
        {"TERM": ""},
    ],
    ids=str,
)
def test_odd_surroundings_change_nothing_that_goes_to_a_pipe(place: Path, environment: dict[str, str]) -> None:
    (place / "app.py").write_text(HELLO)
    listed = perdure("list", "--status", "failed", "--url", "sqlite:app.db", cwd=place, **environment)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert {line.split()[0] for line in listed.stdout.splitlines()} == {"id", "broken", "broken-2"}
    ran = perdure("run", "app.py:hello", "Zoë", "--url", "memory:", cwd=place, **environment, PYTHONHASHSEED="0")
    assert (ran.returncode, ran.stderr) == (0, "")
    many = perdure("run", "app.py:hello", "x", "--count", "2", "--url", "memory:", cwd=place, **environment)
    assert (many.returncode, many.stderr) == (0, "")
    assert "Success: 2" in many.stdout


def test_streams_that_were_closed_are_open_for_what_it_starts(tmp_path: Path) -> None:
    """`perdure run` starts itself anew for its hash seed: what it opened in place of the streams stays open."""
    (tmp_path / "app.py").write_text(
        "import os\nfrom perdure import workflow\n\n\n@workflow\nasync def numbers() -> int:\n"
        "    with open('seen', 'w') as file:\n        file.write(str([os.fstat(n).st_rdev for n in range(3)]))\n"
        "    return 1\n"
    )
    done = shell("perdure run app.py --url sqlite:app.db <&- >&- 2>&-", tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "seen").read_text() == str([os.stat(os.devnull).st_rdev] * 3)


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("list", "'sqlite:perdure.db': the current folder was removed: name an absolute path"),
        ("run app.py:hello x", "the current folder was removed: change to another one"),
        ("worker app", "the current folder was removed: change to another one"),
        ("backup copy.db --url sqlite:{place}/app.db", "copy.db: it, or its folder, does not exist"),
    ],
)
def test_current_folder_that_was_removed_is_one_line(place: Path, tmp_path: Path, verb: str, told: str) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = shlex.join([sys.executable, "-P", "-m", "perdure", *verb.format(place=place).split()])
    ran = subprocess.run(
        ["sh", "-c", f"rmdir {gone} && {command}"],
        cwd=gone,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode in (1, 2)
    assert told in ran.stderr
    assert "Traceback" not in ran.stderr
