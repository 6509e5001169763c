"""Tags: what may be one, and how they are recorded."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.core.tags import TAGS_LIMIT, check_tags
from perdure.errors import BadId, InvalidOption


def test_tags_are_recorded_in_the_order_of_their_names():
    assert check_tags({}) == ()
    assert check_tags({"tenant": "acme", "from": "web: shop"}) == (("from", "web: shop"), ("tenant", "acme"))
    most = {f"n{n:02}": "v" for n in range(TAGS_LIMIT)}
    assert check_tags(most) == tuple(most.items())


@pytest.mark.parametrize(
    ("tags", "error", "text"),
    [
        ([("a", "b")], InvalidOption, "give a mapping of names to values"),
        ({f"n{n}": "v" for n in range(TAGS_LIMIT + 1)}, InvalidOption, "there are 21, and the limit is 20"),
        ({"a:b": "c"}, InvalidOption, "the name 'a:b' has a colon"),
        ({"": "c"}, BadId, "the name of a tag"),
        ({"a": 1}, BadId, "the value of tag 'a' must be a str"),
    ],
)
def test_what_cannot_be_a_tag_is_named(tags: Any, error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        check_tags(tags)
