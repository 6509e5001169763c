"""A planted bug: how it is planted, and what the simulation must say of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, NamedTuple

import pytest

from perdure.testing.simulation import Result, plan_of, run

SEEDS_LIMIT = 2_000
"""Seeds within which every bug must be caught."""

Plant = Callable[[pytest.MonkeyPatch], None]
"""Patches the engine or a store. Its name and docstring say what is wrong with them then."""


class Bug(NamedTuple):
    """A fault of the engine, planted at run time."""

    plant: Plant
    invariant: int
    """The number of the invariant whose violation must be reported."""
    says: str
    """A pattern of its text."""

    @property
    def name(self) -> str:
        return self.plant.__name__.replace("_", " ")

    def is_reported_by(self, result: Result) -> bool:
        found = result.violation
        return found is not None and found.number == self.invariant and re.search(self.says, found.text) is not None


class Caught(NamedTuple):
    """A seed whose run reports a bug, and how many were run until then."""

    seed: int
    seeds: int
    result: Result


def hunt(bug: Bug, seeds: Iterable[int]) -> Caught | None:
    """Run seeds on an engine with a bug until one reports it; None if none does."""
    with pytest.MonkeyPatch.context() as patch:
        bug.plant(patch)
        for count, seed in enumerate(seeds, start=1):
            result = run(plan_of(seed))
            if bug.is_reported_by(result):
                return Caught(seed, count, result)
    return None


def instead(patch: pytest.MonkeyPatch, owner: object, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put the decorated function in place of `owner.name`; it gets what was there as its first argument."""
    original = getattr(owner, name)

    def put(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def patched(*args: Any, **kwargs: Any) -> Any:
            return function(original, *args, **kwargs)

        patch.setattr(owner, name, patched)
        return function

    return put
