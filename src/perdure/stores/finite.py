"""The last line of defence against numbers that are not finite: NaN has no place in an order of times.

What comes before refuses them where they are made. Here nothing that is encoded with one reaches a store.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

from msgspec import Struct

from perdure.errors import InvalidOption

SEARCH_LIMIT_BYTES = 4_096
"""Longer data is not searched, and the fields are walked at once."""


def check_finite(data: bytes, value: Struct) -> None:
    """Refuse what was encoded as `data` if a field of it is NaN or infinite. Values of users are bytes, and pass."""
    # A float64 of msgpack whose exponent is all ones begins so. Other bytes may, too: then the fields are walked.
    if b"\xcb\x7f" in data or b"\xcb\xff" in data or len(data) > SEARCH_LIMIT_BYTES:
        for field in _not_finite(value, type(value).__name__):
            raise InvalidOption(f"{field} is not a finite number: nothing was recorded; pass a finite one")


def check_wake(id: str, wake: float | None) -> None:
    """Refuse a wake at no time."""
    if wake is not None and not math.isfinite(wake):
        raise InvalidOption(f"the wake of invocation {id!r} is {wake}, not a finite number: nothing was recorded")


def _not_finite(value: object, name: str) -> Iterator[str]:
    """Name the fields that hold such a number. Plain numbers in lists are users': arguments of errors."""
    if isinstance(value, Struct):
        for field in value.__struct_fields__:
            inner: object = getattr(value, field)
            if isinstance(inner, float) and not math.isfinite(inner):
                yield f"{name}.{field} = {inner}"
            yield from _not_finite(inner, f"{name}.{field}")
    elif isinstance(value, (list, tuple)):
        for n, each in enumerate(cast("list[object]", value)):
            yield from _not_finite(each, f"{name}[{n}]")
