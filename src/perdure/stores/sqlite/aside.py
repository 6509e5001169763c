"""Invocations that this process sets aside: they are damaged, or only a newer release can read them.

Such an invocation is not delivered, changed or purged here, and a request for it raises the reason; all others are
served. Nothing is recorded: each opening of the file checks again, so the invocation continues once the file is
repaired or a release that can read it serves the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from perdure.errors import NewerJournal, StoreError

log = logging.getLogger("perdure.sqlite")


class Aside:
    """The ids that are set aside, each with the error that says why."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._reasons: dict[str, StoreError] = {}

    def __contains__(self, id: str) -> bool:
        return id in self._reasons

    def __iter__(self) -> Iterator[str]:
        return iter([*self._reasons])

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, id: str, why: StoreError) -> None:
        """Set an invocation aside, and log why, once."""
        if id not in self._reasons:
            self._reasons[id] = why
            level = logging.WARNING if isinstance(why, NewerJournal) else logging.ERROR
            log.log(level, "invocation %s is set aside, and all others are served: %s", id, why)

    def check(self, id: str) -> None:
        """Raise the reason if an invocation is set aside."""
        if (why := self._reasons.get(id)) is not None:
            raise type(why)(str(why)) from why
