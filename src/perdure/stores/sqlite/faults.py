"""What SQLite and the system report, as errors of the store."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

from perdure.errors import (
    PerdureError,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreReadOnly,
)

log = logging.getLogger("perdure.sqlite")


def about(path: str, what: str) -> str:
    return f"store {path}: {what}"


def explain(path: str, error: Exception) -> Exception:
    """Return the store's error for one of SQLite's or the system's."""
    if isinstance(error, PerdureError):
        return error
    text = str(error)
    kind: type[StoreError] = StoreError
    if "disk is full" in text or getattr(error, "errno", None) == 28:
        kind = StoreFull
    elif "readonly" in text or "read-only" in text or isinstance(error, PermissionError):
        kind = StoreReadOnly
    elif any(each in text for each in ("malformed", "not a database", "corrupt", "decode to UTF-8")):
        kind = StoreDamaged
    wrapped = kind(about(path, text))
    wrapped.__cause__ = error
    return wrapped


@contextmanager
def explained(path: str) -> Generator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise explain(path, error) from error


@contextmanager
def quietly() -> Generator[None]:
    """For letting go of something that may be broken already."""
    try:
        yield
    except sqlite3.Error as error:
        log.debug("while letting go of the file: %s", error)


class Mismatch(Exception):
    """A unit does not fit what is stored."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
