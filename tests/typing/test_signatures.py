"""What users' type checkers see of the installed package.

The samples beside this file hold code that must be fine and mistakes that must be found. A line that must be reported
ends in `# error`, or in `# error[pyright]` or `# error[mypy]` when only that checker can know.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SAMPLES = tuple(HERE / name for name in ("good.py", "bad.py", "edge.py", "good_flows.py", "bad_flows.py"))
LEAST_MISTAKES = 60
"""How many mistakes bad.py held when it was last added to: none may get lost."""

Reports = dict[int, list[str]]
"""What a checker says, by line from 1."""

pytestmark = pytest.mark.slow


def output_of(command: Sequence[str]) -> str:
    """What a checker prints. Exit code 1 means that it found mistakes, as it should; above that, it broke."""
    run = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode not in (0, 1):
        pytest.fail(f"{' '.join(command)}\nexit code {run.returncode}\n{run.stdout}\n{run.stderr}")
    return run.stdout


@cache
def pyright() -> dict[Path, Reports]:
    reports: defaultdict[Path, Reports] = defaultdict(lambda: defaultdict(list))
    output = output_of(["pyright", "--pythonpath", sys.executable, "--project", str(HERE), "--outputjson"])
    result: dict[str, Any] = json.loads(output)
    assert result["summary"]["filesAnalyzed"] >= len(SAMPLES)
    for found in result["generalDiagnostics"]:
        if found["severity"] != "information":
            reports[Path(found["file"])][found["range"]["start"]["line"] + 1].append(found["message"])
    return reports


@cache
def mypy() -> dict[Path, Reports]:
    reports: defaultdict[Path, Reports] = defaultdict(lambda: defaultdict(list))
    output = output_of(["mypy", "--config-file", "pyproject.toml", "--output", "json", *map(str, SAMPLES)])
    for line in output.splitlines():
        found: dict[str, Any] = json.loads(line)
        if found["severity"] == "error":
            reports[ROOT / found["file"]][found["line"]].append(found["message"])
    return reports


def marked(sample: Path, checker: str) -> set[int]:
    """The lines of a sample that a checker must report."""
    mark = re.compile(rf"#\s*error(\[{checker}\])?$")
    return {number for number, line in enumerate(sample.read_text().splitlines(), 1) if mark.search(line)}


def explained(reports: Reports, lines: set[int]) -> str:
    return "\n".join(f"  line {line}: {message}" for line in sorted(lines) for message in reports[line])


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
@pytest.mark.parametrize("checker", [pyright, mypy], ids=["pyright", "mypy"])
def test_checker_reports_the_marked_lines_and_no_others(
    checker: Callable[[], dict[Path, Reports]], sample: Path
) -> None:
    reports = checker().get(sample, {})
    expected = marked(sample, checker.__name__)
    missed, unexpected = expected - reports.keys(), reports.keys() - expected
    assert not unexpected, f"{sample.name}, not marked:\n{explained(reports, unexpected)}"
    assert not missed, f"{sample.name}: no mistake found on lines {sorted(missed)}"


@pytest.mark.parametrize("checker", [pyright, mypy], ids=["pyright", "mypy"])
def test_checker_has_nothing_to_say_about_any_other_file(checker: Callable[[], dict[Path, Reports]]) -> None:
    elsewhere = {path: dict(lines) for path, lines in checker().items() if path not in SAMPLES}
    assert not elsewhere


@pytest.mark.parametrize("checker", ["pyright", "mypy"])
def test_samples_still_hold_their_mistakes(checker: str) -> None:
    good, bad, edge, *_ = (len(marked(sample, checker)) for sample in SAMPLES)
    assert good == 0
    assert bad >= LEAST_MISTAKES
    assert edge >= 3
