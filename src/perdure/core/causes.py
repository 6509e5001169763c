"""Finds the command whose failure an exception is, or was caused by: a retry begins there."""

from __future__ import annotations

import sys

SWEPT_AT = 64
"""Failures that are kept before unreferenced ones are dropped."""

KEPT_LIMIT = 10_000
"""Failures kept at most. The oldest are forgotten then, and a retry does not begin at them."""


# As Python keeps them: a class may define its own attributes, which may be anything, or raise.
_cause_of = vars(BaseException)["__cause__"].__get__
_context_of = vars(BaseException)["__context__"].__get__
_members_of = vars(BaseExceptionGroup)["exceptions"].__get__


class Causes:
    """Remembers the exceptions that were raised into a body, for as long as the body can raise them again."""

    __slots__ = ("_known", "_sweep_at")

    def __init__(self) -> None:
        self._known: dict[int, tuple[BaseException, int]] = {}  # by id, valid while the exception is kept
        self._sweep_at = SWEPT_AT

    def __len__(self) -> int:
        return len(self._known)

    def add(self, error: BaseException, n: int, /) -> None:
        """Remember that an exception is the failure of command `n`."""
        if len(self._known) >= self._sweep_at:
            self._sweep()
        self._known[id(error)] = (error, n)

    def of(self, error: BaseException, /) -> list[int]:
        """Return the command whose failure `error` is, or was caused by; all of them for a group of failures."""
        return self._of(error, set())

    def clear(self) -> None:
        self._known.clear()

    def _of(self, error: BaseException, seen: set[int]) -> list[int]:
        todo: list[BaseException | None] = [error]
        while todo:
            one = todo.pop(0)
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            if id(one) in self._known:
                return [self._known[id(one)][1]]
            if BaseExceptionGroup in type(one).__mro__:
                if causes := [n for member in _members_of(one) for n in self._of(member, seen)]:
                    return causes
            todo += [_cause_of(one), _context_of(one)]
        return []

    def _sweep(self) -> None:
        """Drop exceptions that only this object refers to: the body cannot raise them again."""
        held = [*self._known.values()]
        self._known.clear()
        while held:
            error, n = held.pop()
            if sys.getrefcount(error) > _OURS and len(self._known) < KEPT_LIMIT:
                self._known[id(error)] = (error, n)
        self._known = dict(reversed(self._known.items()))
        self._sweep_at = 2 * len(self._known) + SWEPT_AT


def _references() -> int:
    """Count the references to an exception that `_sweep` alone refers to."""
    held = [(BaseException(), 0)]
    while held:
        error, _ = held.pop()
    return sys.getrefcount(error)  # pyright: ignore[reportPossiblyUnboundVariable]


_OURS = _references()
