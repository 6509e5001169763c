"""The last line of defence against numbers that are not finite: NaN cannot be ordered among times.

Earlier checks refuse them where they are made. Every store asks these functions in `submit`, `post` and `commit`,
before it writes anything: a frame whose effects could not be written would leave its owner busy for ever.
`perdure.testing.contract.numbers` puts one in every float of the journal's types.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import cast

from msgspec import Struct

from perdure.core.effects import Effects
from perdure.core.journal import Message, Start, encode_message, encode_start
from perdure.errors import InvalidOption

SEARCH_LIMIT_BYTES = 65_536
"""Longer data is not searched. It holds large values of users, and few fields: walking them costs less."""

_may_be_not_finite = re.compile(rb"\xcb[\x7f\xff]").search
# A float64 of msgpack whose exponent is all ones begins so. Other bytes may, too: then the fields are walked. A pattern
# takes half as long as `in` does for two pieces of bytes: `in` takes each for a number first, and formats an error.


def check_finite(data: bytes, value: Struct) -> None:
    """Refuse `value`, encoded as `data`, if a field of it is NaN or infinite. Values of users are bytes, and pass."""
    if len(data) > SEARCH_LIMIT_BYTES or _may_be_not_finite(data):
        for field in _not_finite(value, type(value).__name__):
            raise InvalidOption(f"{field} is not a finite number: nothing was recorded; pass a finite one")


def check_starts(starts: Iterable[Start]) -> None:
    for start in starts:
        check_finite(encode_start(start), start)


def check_message(message: Message) -> None:
    check_finite(encode_message(message), message)


def check_effects(id: str, effects: Effects) -> None:
    """Refuse a transition of invocation `id` by what follows from its frame."""
    wake = effects.wake
    if wake is not None and not math.isfinite(wake):
        raise InvalidOption(f"the wake of invocation {id!r} is {wake}, not a finite number: nothing was recorded")
    check_starts(effects.starts)
    for message in effects.messages:
        check_message(message)


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
