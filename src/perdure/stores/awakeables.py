"""What the index knows of awakeables, and which of them pass a filter. Shared by all stores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from perdure.core.history import History
from perdure.core.journal import NOT_ASKED, Asked, Start

Place = tuple[float, str, int, int]
"""A position in the order of creation: time, invocation, generation, command."""


class Awakeable(Struct, frozen=True):
    """An awakeable of an invocation, as the index knows it: command `n` of a generation, made at `at`."""

    invocation: str
    handler: str
    generation: int
    n: int
    at: float
    asked: Asked = NOT_ASKED
    is_open: bool = True

    @property
    def place(self) -> Place:
        """Its position in the order of creation."""
        return self.at, self.invocation, self.generation, self.n


class AwakeableFilter(Struct, frozen=True):
    """Which awakeables to list: every field that is set must match. Oldest first; `after` continues a page.

    One is open until it is answered, its invocation ends, or it expires, by the time `now`. A search in SQL stops
    `within` so many seconds, and raises `QueryTooSlow`.
    """

    now: float
    is_open: bool | None = True
    handler: str | None = None
    assignee: str | None = None
    after: Place | None = None
    limit: int = 100
    within: float | None = None


def is_open(awakeable: Awakeable, now: float) -> bool:
    """Report whether an awakeable can be answered at a time."""
    expires_at = awakeable.asked.expires_at
    return awakeable.is_open and (expires_at is None or expires_at > now)


def passes(awakeable: Awakeable, filter: AwakeableFilter) -> bool:
    """Report whether an awakeable passes a filter."""
    return (
        (filter.is_open is None or is_open(awakeable, filter.now) == filter.is_open)
        and (filter.handler is None or awakeable.handler == filter.handler)
        and (filter.assignee is None or filter.assignee in awakeable.asked.assignees)
        and (filter.after is None or awakeable.place > filter.after)
    )


def merged(known: Iterable[Awakeable], told: Sequence[Awakeable]) -> list[Awakeable]:
    """Return the awakeables of an invocation after a commit that told of these: others that were known are not open."""
    found = {(each.generation, each.n): replace(each, is_open=False) for each in known}
    found.update(((each.generation, each.n), each) for each in told)
    return [*found.values()]


def made_by(start: Start, history: History, open: Iterable[tuple[int, int]] | None = None) -> list[Awakeable]:
    """Return the awakeables that a journal has, of which those of these generations and commands are open.

    Without `open`, those without an answer are, if the invocation has not settled.
    """
    if open is not None:
        are_open = {*open}
    else:
        left = history.awakeables.items() if history.outcome is None else ()
        are_open = {(made.generation, n) for n, made in left if n not in history.answers}
    found: list[Awakeable] = []
    for n, made in history.awakeables.items():
        is_open = (made.generation, n) in are_open
        found.append(Awakeable(start.id, start.handler, made.generation, n, made.at, made.asked, is_open))
    return found
