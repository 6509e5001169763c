"""`python -m perdure.testing.simulation`: runs seeds, and tells of the first that fails all that helps to mend it."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec

from perdure.testing.simulation.plan import Plan, decode, encode, plan_of
from perdure.testing.simulation.run import Result, run
from perdure.testing.simulation.shrink import shrink

CHUNK = 50
"""Seeds that one process runs at a time."""

INTERRUPTED = 130
"""The exit code after SIGINT."""

MOST_FAILURES = 10
"""Failing seeds that are named; the first is explained."""


class Chunk(msgspec.Struct):
    """What came of some seeds."""

    failed: dict[int, str] = {}
    rare: Counter[str] = msgspec.field(default_factory=Counter[str])
    events: int = 0
    seconds: float = 0.0
    """The processor's time."""


def run_chunk(first: int, count: int) -> Chunk:
    """Run seeds one after the other."""
    chunk, began = Chunk(), time.process_time()
    for seed in range(first, first + count):
        result = run(plan_of(seed))
        chunk.rare.update(result.rare)
        chunk.events += result.events
        if result.violation is not None:
            chunk.failed[seed] = str(result.violation)
    chunk.seconds = time.process_time() - began
    return chunk


def run_seeds(first: int, count: int, jobs: int) -> Iterator[Chunk]:
    """Run seeds, in several processes if asked to."""
    chunks = [(at, min(CHUNK, first + count - at)) for at in range(first, first + count, CHUNK)]
    if jobs == 1:
        yield from (run_chunk(*chunk) for chunk in chunks)
        return
    with ProcessPoolExecutor(min(jobs, len(chunks))) as pool:  # it may start all its processes at once
        yield from pool.map(run_chunk, *zip(*chunks, strict=True))


def explain(found: Result, *, shrinks: bool, last: int) -> str:
    """Return what is known of a run that found something: the breach, the plan, the trace, and how to see it again."""
    seed = found.plan.seed
    result = run(shrink(found).plan, last=last) if shrinks else found
    plan = result.plan
    kept = "" if plan == found.plan else f" (of {len(found.plan.programs)} and {len(found.plan.faults)})"
    lines = [
        f"seed {seed}: {result.violation}",
        f"{len(plan.programs)} programs, {len(plan.faults)} faults{kept}; {_settings(plan)}",
        *(f"  program {encode(program).decode()}" for program in plan.programs),
        *(f"  {act.at:8.4f} s  client{act.client} asks: {act.verb} {act.tag}" for act in plan.acts),
        *(f"  {fault.process}, number {fault.number}: {fault.kind} {fault.amount:g}" for fault in plan.faults),
        f"the last {len(result.trace)} events:",
        *result.trace,
        f"again:  python -m perdure.testing.simulation --seed {seed}",
        f"made smaller, for --plan FILE:  {encode(plan).decode()}",
    ]
    return "\n".join(lines)


def _settings(plan: Plan) -> str:
    named = ("workers", "clients", "max_concurrent", "cache", "always_replay", "retention", "older", "ahead", "noise")
    return ", ".join(f"{name}={getattr(plan, name)}" for name in named)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments say; return 1 if a seed fails."""
    parser = argparse.ArgumentParser(prog="python -m perdure.testing.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="the first seed; alone, the only one")
    parser.add_argument("--seeds", type=int, help="how many seeds to run")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run them")
    parser.add_argument("--plan", type=Path, help="run a plan from a JSON file instead")
    parser.add_argument("--trace", type=int, default=60, help="events to print of a seed that fails")
    parser.add_argument("--no-shrink", action="store_true", help="print the plan as it is")
    given = parser.parse_args(arguments)
    for name in ("seeds", "jobs", "trace"):
        if (number := getattr(given, name)) is not None and number < 1:
            parser.error(f"--{name} {number}: give at least 1")
    if given.plan is None and given.seed is None and given.seeds is None:
        parser.error("give --seed, --seeds or --plan")
    if given.plan is not None and (given.seed is not None or given.seeds is not None):
        parser.error("a plan has its seed: give --plan alone, or --seed and --seeds")
    try:
        return _run(parser, given)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    if given.plan is not None:
        return _one(_read(parser, given.plan), given)
    if given.seeds is not None:
        return _many(given)
    return _one(plan_of(given.seed or 0), given)


def _read(parser: argparse.ArgumentParser, path: Path) -> Plan:
    try:
        return decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        parser.error(f"--plan {path}: {error}")


def _one(plan: Plan, given: argparse.Namespace) -> int:
    result = run(plan, last=given.trace)
    if result.violation is None:
        print(f"seed {plan.seed}: all invariants hold; {result.events} events, digest {result.digest}")
        return 0
    print(explain(result, shrinks=not given.no_shrink, last=given.trace))
    return 1


def _many(given: argparse.Namespace) -> int:
    began = time.monotonic()
    first: int = given.seed or 0
    total = Chunk()
    for chunk in run_seeds(first, given.seeds, given.jobs):
        total.failed |= chunk.failed
        total.rare.update(chunk.rare)
        total.events += chunk.events
        total.seconds += chunk.seconds
        for seed, text in chunk.failed.items():
            print(f"seed {seed}: {text}", file=sys.stderr, flush=True)  # a long run need not end first
    took = time.monotonic() - began
    for path, count in sorted(total.rare.items()):
        print(f"{count:10,} {path}")
    print(
        f"{given.seeds:,} seeds from {first}, {total.events:,} events, {len(total.failed)} violations, "
        f"{took:.0f} s, {given.seeds / total.seconds:.0f} seeds in a second of a processor"
    )
    for seed, text in [*total.failed.items()][:MOST_FAILURES]:
        print(f"seed {seed}: {text}")
    if not total.failed:
        return 0
    result = run(plan_of(next(iter(total.failed))), last=given.trace)
    print(explain(result, shrinks=not given.no_shrink, last=given.trace))
    return 1


if __name__ == "__main__":
    sys.exit(main())
