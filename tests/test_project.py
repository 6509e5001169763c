"""What is true of the project as a whole: its extras, its targets, and what an index shows of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = {
    "grpcio": "grpc",
    "protobuf": "google.protobuf",
    "nats-py": "nats",
    "opentelemetry-api": "opentelemetry",
}
FOR_USERS = {"encryption", "grpc", "nats", "telemetry", "all"}
FOR_A_CHECKOUT = {"demo", "site", "test", "dev"}


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]  # type: ignore[index]


def test_every_extra_for_users_is_imported_by_the_code() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras.keys() == FOR_USERS | FOR_A_CHECKOUT
    code = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    for extra in FOR_USERS - {"all"}:
        for requirement in extras[extra]:
            module = MODULES.get(name_of(requirement), name_of(requirement).replace("-", "_"))
            assert re.search(rf"^\s*(import|from) {module}\b", code, re.MULTILINE), requirement


def test_demo_needs_no_tools_of_development() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    tools = {"pyright", "mypy", "ruff", "pytest", "grpcio-tools"}
    assert not tools & {name_of(each) for extra in ("grpc", "nats", "demo") for each in extras[extra]}
    made = subprocess.run(
        ["make", "--dry-run", "demo", "VENV=nowhere"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--editable '.[grpc]'" in made.stdout


def test_index_shows_the_readme_without_links_into_the_repository() -> None:
    shown = (ROOT / "README.md").read_text()
    for each in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        shown = re.sub(each["pattern"], each["replacement"], shown)
    targets = re.findall(r"\]\(([^)]+)\)", shown)
    assert [each for each in targets if not each.startswith(("https://", "http://"))] == []


def words_of(line: str) -> set[str]:
    """What follows a word at the beginning of a line of the Makefile, continued lines included."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    return set(next(each for each in text.splitlines() if each.startswith(line)).removeprefix(line).split())


def test_help_lists_every_target_in_one_column() -> None:
    apart = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # as in no other make
    shown = subprocess.run(["make", "help"], cwd=ROOT, env=apart, capture_output=True, text=True, check=True).stdout
    listed = {name for line in shown.splitlines() for name in line[:22].split()}
    hidden = {"format-check", "lint", "types", "$(EXAMPLES:%=run-%)"}
    assert words_of(".PHONY:") - hidden == listed - {"run-EXAMPLE"}
    assert all(re.match(r"  \S.{19} \S|\s{23}\S", line) for line in shown.splitlines()), shown
    assert max(map(len, shown.splitlines())) <= 110


@pytest.mark.slow
def test_machine_is_busy_while_a_command_runs_and_idle_afterwards() -> None:
    script = (
        "import os, subprocess, sys; "
        "sys.exit(7 if len(subprocess.run(['ps', '-o', 'pid=', '--ppid', str(os.getppid())],"
        " capture_output=True).stdout.split()) > 2 else 1)"
    )
    command = [sys.executable, "-m", "tests.load", "1", "--", sys.executable, "-c", script]
    assert subprocess.run(command, cwd=ROOT, env=os.environ, check=False).returncode == 7
