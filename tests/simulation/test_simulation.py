"""Fresh seeds at every run, and what a simulation promises of itself: the same seed, the same trace.

PERDURE_SEEDS=20000 pytest tests/simulation                     more of them
PERDURE_SEED=123 pytest tests/simulation                        from this one on
python -m perdure.testing.simulation --seed 123                 one, made smaller if it fails
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from perdure.runtime.slots import Slots
from perdure.testing.simulation import __main__ as command
from perdure.testing.simulation import plan_of, run
from perdure.testing.simulation.__main__ import CHUNK, explain, main, run_seeds
from perdure.testing.simulation.plan import decode

SEEDS = int(os.environ.get("PERDURE_SEEDS") or 300)
PARTS = 6
"""Seeds are run in so many tests, so that several processes share them."""
FIRST = int(os.environ.get("PERDURE_SEED") or int.from_bytes(os.urandom(4), "big"))
BUDGET_SECONDS = float(os.environ.get("PERDURE_SIMULATION_SECONDS") or 20)
"""Processor time for the seeds of one part: a machine that is slow runs fewer of them."""
FEWEST = 10
"""Seeds that every part runs, however slow the machine is."""


@pytest.mark.parametrize("part", range(PARTS))
def test_all_invariants_hold_on_fresh_seeds(part: int) -> None:
    began = time.process_time()
    count = SEEDS // PARTS
    for done, seed in enumerate(range(FIRST + part * count, FIRST + (part + 1) * count)):
        if done >= FEWEST and time.process_time() - began > BUDGET_SECONDS and "PERDURE_SEEDS" not in os.environ:
            print(f"{done} of {count} seeds were run in {BUDGET_SECONDS:g} s")
            break
        result = run(plan_of(seed))
        if result.violation is not None:
            pytest.fail(explain(result, shrinks=True, last=60), pytrace=False)


FOUND = sorted((Path(__file__).parent / "found").glob("*.json"))


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_plans_that_found_a_fault_hold_now(path: Path) -> None:
    assert run(decode(path.read_bytes())).violation is None


def test_seed_that_fails_is_made_smaller_and_tells_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaks(self: Slots[Any], holder: Any) -> None:
        """Give nothing back."""

    monkeypatch.setattr(Slots, "release", leaks)
    results = (run(plan_of(seed)) for seed in range(100) if len(plan_of(seed).programs) > 2)
    found = next(each for each in results if each.violation is not None and each.violation.number == 12)
    told = explain(found, shrinks=True, last=5)
    seed = found.plan.seed
    assert f"seed {seed}: invariant 12 (limits are never exceeded and slots never leak)" in told
    assert f"1 programs, 0 faults (of {len(found.plan.programs)} and {len(found.plan.faults)})" in told
    assert "the last 5 events:" in told
    assert f"again:  python -m perdure.testing.simulation --seed {seed}" in told


# --- the same seed, the same trace ------------------------------------------------------------------------------------
SAMPLE = range(8)


def test_same_seed_gives_the_same_trace_in_a_fresh_process_with_another_hash_seed() -> None:
    program = "from perdure.testing.simulation import *\n"
    program += f"print([run(plan_of(seed)).digest for seed in range({len(SAMPLE)})])"
    mine = [run(plan_of(seed)).digest for seed in SAMPLE]
    assert mine == [run(plan_of(seed)).digest for seed in SAMPLE]
    for hash_seed in ("0", "4711"):
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
        found = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == str(mine)


def test_other_seeds_give_other_traces() -> None:
    assert len({run(plan_of(seed)).digest for seed in SAMPLE}) == len(SAMPLE)


# --- rare paths -------------------------------------------------------------------------------------------------------
RARE = (
    "crash between append and acknowledgement",
    "write of a former owner fenced",
    "take-over of a claimed invocation",
    "compensation tried again",
    "process told that it was taken over",
    "lease of a living process ended",
    "delivery duplicated",
    "answer lost",
    "refused",
    "outage",
    "retry accepted",
    "cancel accepted",
    "force accepted",
    "pause accepted",
    "purge accepted",
    "newer",
    "unforeseen",
    "stand still",
    "policy that is broken",
    "callback raises: delivery",
    "callback raises: notice of a take-over",
    "watcher raises",
    "watched to its end",
    "push lost",
    "change lost",
    "wake lost",
    "wake of a retry that has its key lost",
    "notice of a take-over lost",
    "journal that cannot be read: later release",
    "journal that cannot be read: unknown",
    "journal that a worker cannot read",
    "divergence",
    "deployed after a divergence",
    "cleanup after a cancellation",
    "forced end of one whose child runs",
    "child awaited again under its id",
    "purge of a child",
)
REACHED_WITHIN = 300


def test_rare_paths_are_reached() -> None:
    rare = Counter[str]()
    for seed in range(REACHED_WITHIN):
        rare.update(run(plan_of(seed)).rare)
        if all(rare[path] for path in RARE):
            return
    raise AssertionError([path for path in RARE if not rare[path]])


# --- the command ------------------------------------------------------------------------------------------------------
def test_command_runs_one_seed_or_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "0"]) == 0
    assert "seed 0: all invariants hold" in capsys.readouterr().out
    assert main(["--seed", "3", "--seeds", "4"]) == 0
    assert "4 seeds from 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give --seed, --seeds or --plan"),
        (["--seeds", "0"], "--seeds 0: give at least 1"),
        (["--seed", "x"], "invalid int value"),
        (["--plan", "/nowhere"], "/nowhere"),
        (["--plan", "/nowhere", "--seed", "1"], "give --plan alone"),
    ],
)
def test_command_says_what_is_wrong_with_its_options(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert told in capsys.readouterr().err


def test_no_more_processes_start_than_there_is_work_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, count: int) -> None:
            started.append(count)
            super().__init__(1)

    monkeypatch.setattr(command, "ProcessPoolExecutor", Pool)
    assert sum(each.events for each in run_seeds(0, CHUNK + 1, jobs=1_000_000)) > 0
    assert started == [2]
