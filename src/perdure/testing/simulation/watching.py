"""What watchers see, compared with the changes that were made: in their order, up to the last, and every end.

A slow reader gets only the latest state of each invocation. So some states are not seen, and never an earlier one after
a later one; what a feed tells is what was the newest when it was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

from msgspec import Struct, field

from perdure.core.lifecycle import SETTLED
from perdure.operations.describe import Invocation, from_row
from perdure.stores.port import Filter, Row, matches

Breach = Callable[[int, str], None]


class Seen(Struct, eq=False):
    """What one watcher has seen: the last change of each invocation, by its place among all changes."""

    name: str
    filter: Filter
    began: int | None = None
    """The changes that had been made when the store began to push."""
    last: dict[str, int] = field(default_factory=dict[str, int])


watching: ContextVar[Seen | None] = ContextVar("watching", default=None)
"""The watcher in whose task a feed is asked for."""


def note(seen: Seen, told: Invocation, changes: Sequence[Row], breach: Breach, *, anew: bool = False) -> None:
    """Note what a watcher is told; `anew`: it may be told again what it has seen."""
    since = seen.last.get(told.id, -1)
    for place in range(max(since, 0), len(changes)):
        row = changes[place]
        if row.id == told.id and (place > since or anew) and from_row(row) == told:
            seen.last[told.id] = place
            return
    breach(20, f"{seen.name} sees {told.id} {told.status} of {told.updated_at}: no change after what it saw before")


def unseen(seen: Seen, changes: Sequence[Row], gone: Callable[[str], bool]) -> Iterator[str]:
    """Name what a watcher of all invocations should have seen by now: the last change of each, if it matches."""
    if seen.began is None:
        return
    newest = {row.id: (place, row) for place, row in enumerate(changes)}
    for id, (place, row) in newest.items():
        last = changes[seen.last[id]] if id in seen.last else None
        if place >= seen.began and matches(row, seen.filter) and row != last and not gone(id):
            yield f"{seen.name} has not seen {row}; the last that it has seen is {last}"


def pushed(changes: Sequence[Row], since: int, filter: Filter) -> list[Row]:
    """Return what a feed must tell: the newest row of each invocation that changed, the latest change last."""
    newest: dict[str, Row] = {}
    for row in changes[since:]:
        if matches(row, filter):
            newest.pop(row.id, None)
            newest[row.id] = row
    return [*newest.values()]


def is_end(told: Invocation | None) -> bool:
    """Report whether the last that a watcher of one invocation saw is its end."""
    return told is not None and told.status in SETTLED
