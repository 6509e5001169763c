"""Scenarios on a sealed store on a real server: several processes with the same keys, killed and frozen."""

from __future__ import annotations

from tests.scenarios.test_random_programs import *  # noqa: F403
from tests.scenarios.test_sealed import make_lab  # noqa: F401  # pyright: ignore[reportUnusedImport]  a fixture
