from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.core.driver import close_all


@pytest.fixture(autouse=True)
def turns_are_closed() -> Iterator[None]:
    yield
    close_all()
