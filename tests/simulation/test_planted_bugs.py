"""Planted bugs: each is caught, as the violation that it is, and without it the same seed shows none."""

from __future__ import annotations

import os

import pytest

from perdure.testing.simulation import plan_of, run
from tests.simulation.planted import BUGS, SEEDS_LIMIT, Bug, hunt
from tests.simulation.planted.__main__ import main

FIRST = int(os.environ.get("PERDURE_SEED") or 7)
"""Where every hunt begins: the same seeds each time, since some bugs take a hundred. `PERDURE_SEED` names others."""


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.plant.__name__)
def test_planted_bug_is_reported_and_the_engine_without_it_passes_the_same_seed(bug: Bug) -> None:
    caught = hunt(bug, range(FIRST, FIRST + SEEDS_LIMIT))
    assert caught is not None, f"no seed of {SEEDS_LIMIT} from {FIRST} reports that {bug.name}"
    assert run(plan_of(caught.seed)).violation is None, f"seed {caught.seed}"


def test_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", str(FIRST), "timers twice"]) == 0
    assert "| fires timers twice | 6: a timer never fires early, and fires once |" in capsys.readouterr().out


def test_command_fails_if_a_bug_is_not_caught(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", str(FIRST), "--seeds", "0", "timers twice"]) == 1
    assert "none" in capsys.readouterr().out
