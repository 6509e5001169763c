from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.core.driver import close_all

# The wall clock says nothing about the code on a loaded machine.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def turns_are_closed() -> Iterator[None]:
    yield
    close_all()
