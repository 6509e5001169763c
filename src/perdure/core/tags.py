"""Tags: names and values by which invocations are found. They mean nothing to the engine."""

from __future__ import annotations

from collections.abc import Mapping

from perdure.core.ids import check_name
from perdure.errors import InvalidOption

TAGS_LIMIT = 20
"""Tags of one invocation."""

Tags = tuple[tuple[str, str], ...]
"""Names and values, in the order of the names; each name once."""


def check_tags(tags: Mapping[str, str]) -> Tags:
    """Return tags as they are recorded, or raise `InvalidOption` or `BadId` for what cannot be one."""
    if not isinstance(tags, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  a checker may not be watching
        raise InvalidOption(f"tags={tags!r}: give a mapping of names to values, as in tags={{'tenant': 'acme'}}")
    if len(tags) > TAGS_LIMIT:
        raise InvalidOption(f"tags: there are {len(tags)}, and the limit is {TAGS_LIMIT}")
    for name, value in tags.items():
        if ":" in check_name("the name of a tag", name):
            raise InvalidOption(f"tags: the name {name!r} has a colon, which separates a name from its value")
        check_name(f"the value of tag {name!r}", value)
    return tuple(sorted(tags.items()))
