"""Queries that stop: after some time, or after some work. SQLite only."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any

from perdure.errors import QueryTooSlow

CHECK_STEPS = 50_000
"""Steps of SQLite's virtual machine, about five milliseconds, between two looks at the clock."""

Values = Sequence[Any]


class Bounded:
    """Runs queries on a connection. Together they stop after `seconds`; None: never.

    A query that was stopped leaves the connection as it was. Its caller has the connection to itself meanwhile.
    """

    def __init__(self, db: sqlite3.Connection, seconds: float | None = None) -> None:
        self._db = db
        self._seconds = seconds
        self._until = None if seconds is None else time.monotonic() + seconds

    def rows(self, query: str, values: Values = ()) -> list[Any]:
        """Return what a query finds, or raise `QueryTooSlow`."""
        until, seconds = self._until, self._seconds
        if until is None or seconds is None:
            return self._db.execute(query, values).fetchall()
        found = self._rows(query, values, lambda: time.monotonic() > until, CHECK_STEPS)
        if found is None:
            text = (
                f"the query of the index was stopped after {seconds * 1000:g} ms: narrow the filter, for example by "
                "handler, key or time of creation"
            )
            raise QueryTooSlow(text, seconds=seconds)
        return found

    def rows_within(self, steps: int, query: str, values: Values = ()) -> list[Any] | None:
        """Return what a query finds; None if that takes more than about `steps` of SQLite's virtual machine."""
        calls = itertools.count()  # the first call may come early: SQLite goes on counting where the last use ended
        return self._rows(query, values, lambda: next(calls) > 0, max(1, steps // 2))

    def _rows(self, query: str, values: Values, is_over: Callable[[], bool], steps: int) -> list[Any] | None:
        self._db.set_progress_handler(is_over, steps)
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            return None
        finally:
            self._db.set_progress_handler(None, 0)
