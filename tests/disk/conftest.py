"""A store whose disk is watched."""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.stores.sqlite.file import connect
from tests.disk.layer import Layer, library

CHECKPOINT_PAGES = 12
"""Pages after which the log is written back: a short program comes to several checkpoints."""


@pytest.fixture(scope="session")
def layer() -> Layer:
    sqlite = library()
    if sqlite is None:
        pytest.skip("the SQLite of this Python cannot be reached: it is linked into the interpreter")
    return Layer(sqlite)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory if there is one: the layer knows what is synced."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        yield Path(name)


@pytest.fixture
def often_checkpointed(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect_and_checkpoint_often(path: str) -> sqlite3.Connection:
        db = connect(path)
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        return db

    monkeypatch.setattr("perdure.stores.sqlite.writer.connect", connect_and_checkpoint_often)


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("PERDURE_SEED") or random.randrange(2**32))
