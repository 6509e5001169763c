"""The helper that runs workers around a command: all serve when it begins, none is left when it has ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import APP, clean_environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def workers(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.services.workers", *arguments],
        cwd=folder,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_worker_serves_while_the_command_runs_and_its_exit_code_is_handed_on(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    command = ("-c", "import sys, pathlib; print(pathlib.Path('app.db-lock').exists()); sys.exit(7)")
    run = workers(tmp_path, "1", "app.py", "--url", "sqlite:app.db", "--", sys.executable, *command)
    assert (run.returncode, run.stdout) == (7, "True\n")
    assert "stopped" in run.stderr  # in good order


def test_worker_that_ends_before_it_serves_is_an_error(tmp_path: Path) -> None:
    run = workers(tmp_path, "2", "missing.py", "--", sys.executable, "-c", "print('began')")
    assert run.returncode == 1
    assert run.stdout == ""
    assert "a worker ended with exit code 2 before it served: see its stderr" in run.stderr


@pytest.mark.parametrize("arguments", [(), ("2", "app.py"), ("two", "app.py", "--", "true"), ("2", "--", "true")])
def test_wrong_use_of_workers_is_explained(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    run = workers(tmp_path, *arguments)
    assert run.returncode == 2
    assert (
        run.stderr == "usage: python -m examples.services.workers COUNT TARGET [OPTION ...] -- COMMAND [ARGUMENT ...]\n"
    )
