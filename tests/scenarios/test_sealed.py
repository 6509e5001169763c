"""Scenarios on sealed stores: whatever runs on a store runs on a sealed one, and comes to the same."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scenarios.conftest import MakeLab
from tests.scenarios.lab import Lab
from tests.scenarios.test_messages import *  # noqa: F403
from tests.scenarios.test_random_programs import *  # noqa: F403


@pytest.fixture
def make_lab(make_lab: MakeLab) -> MakeLab:
    """Make a lab on a sealed store."""

    async def make(**options: Any) -> Lab:
        return await make_lab(sealed=True, **options)

    return make
