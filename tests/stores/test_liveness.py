"""The liveness check itself names what it cannot find, instead of failing."""

from __future__ import annotations

from perdure.stores.liveness import Contents, breaches
from perdure.stores.port import Key


def test_key_whose_holder_does_not_exist_is_named() -> None:
    contents = Contents({}, {}, (), (), {}, {}, keys={"k": Key("gone")}, purged=("gone",))
    assert [*breaches(contents, 0.0)] == ["key k is held by gone, which does not exist"]
