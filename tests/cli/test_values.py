from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import pytest

from examples.services.hello_pb2 import HelloRequest
from perdure.cli.values import reader, sample, to_json, to_text


class Color(enum.Enum):
    RED = "red"


@dataclass
class Line:
    sku: str
    count: int


@dataclass
class Cart:
    user: str
    lines: list[Line]
    note: str = ""
    tags: dict[str, int] = field(default_factory=dict[str, int])


class Point(NamedTuple):
    x: float
    y: float


class Options(TypedDict):
    fast: bool


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (str, "World", "World"),
        (str, '"World"', "World"),
        (str, "5", "5"),
        (str, '"5"', "5"),
        (str, "null", "null"),
        (str, "{", "{"),
        (str, '{"a": 1}', '{"a": 1}'),
        (str, '"', '"'),
        (str, "", ""),
        (str, "naïve 🚀", "naïve 🚀"),
        (str | None, "null", None),
        (str | None, "none", "none"),
        (str | int, "5", 5),
        (int, "-5", -5),
        (float, "5", 5.0),
        (bool, "true", True),
        (list[str], '["a"]', ["a"]),
        (Cart, '{"user": "u", "lines": [{"sku": "a", "count": 2}]}', Cart("u", [Line("a", 2)])),
        (Color, "red", Color.RED),
        (Literal["a", "b"], "b", "b"),
        (datetime, "2026-11-20T12:00:00Z", datetime(2026, 11, 20, 12, tzinfo=UTC)),
        (UUID, "0190163d-8694-739b-aea5-966c26f8ad91", UUID("0190163d-8694-739b-aea5-966c26f8ad91")),
        (Decimal, "1.50", Decimal("1.50")),
        (bytes, '"Ynl0ZXM="', b"bytes"),
        (Any, "World", "World"),
        (Any, "5", 5),
        (Any, '{"a": 1}', {"a": 1}),
        (HelloRequest, '{"name": "x"}', HelloRequest(name="x")),
    ],
)
def test_text_is_read_by_the_type(annotation: Any, text: str, value: Any) -> None:
    read = reader(annotation)(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text", "reason"),
    [
        (int, "five", "it is not JSON"),
        (int, "", "it is not JSON"),
        (int, "1.5", r"it does not fit: Expected `int`, got `float`"),
        (int, '"5"', r"it does not fit: Expected `int`, got `str`"),
        (bool, "yes", "it is not JSON"),
        (Cart, "{", "it is not JSON"),
        (Cart, '{"user": 1, "lines": []}', r"at `\$\.user`"),
        (Color, "blue", "it does not fit: Invalid enum value 'blue'"),
        (datetime, "2026-11-20", "it does not fit: Invalid RFC3339"),
        (datetime, "noon", "it does not fit: Invalid RFC3339"),
        (UUID, "abc", "it does not fit: Invalid UUID"),
        (bytes, "abcd", "it is not JSON"),
        (Any, '{"a": 1', "it is not JSON"),
        (str | list[str], '["a"', "it is not JSON"),
        (HelloRequest, '{"nam": "x"}', "it does not fit"),
        (HelloRequest, "x", "it does not fit"),
    ],
)
def test_text_that_does_not_fit_is_refused_with_the_reason(annotation: Any, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        reader(annotation)(text)


@pytest.mark.parametrize(
    "annotation",
    [
        *(str, int, float, bool, None, Any, bytes, datetime, UUID, Decimal),
        *(list[int], set[str], tuple[int, str], tuple[int, ...], dict[str, float], str | None, Literal["a"]),
        *(Color, Cart, Point, Options, list[Cart]),
    ],
)
def test_sample_is_what_the_type_accepts(annotation: Any) -> None:
    text = sample(annotation)
    assert text is not None
    reader(annotation)(text)


def test_sample_shows_the_fields_that_are_needed() -> None:
    assert sample(Cart) == '{"user": "text", "lines": [{"sku": "text", "count": 1}]}'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("World", "World"),
        ("", ""),
        (None, "null"),
        (5, "5"),
        (True, "true"),
        ([1, "é"], '[1, "é"]'),
        ([math.inf, {"a": -math.inf}, math.nan], '["inf", {"a": "-inf"}, "nan"]'),
        (math.nan, '"nan"'),
        (Cart("u", [Line("a", 2)]), '{"user": "u", "lines": [{"sku": "a", "count": 2}], "note": "", "tags": {}}'),
        (datetime(2026, 11, 20, 12, tzinfo=UTC), '"2026-11-20T12:00:00Z"'),
        (b"bytes", '"Ynl0ZXM="'),
        ({1: "a"}, '{"1": "a"}'),
        ({(1, 2): "a"}, "\"{(1, 2): 'a'}\""),
        (HelloRequest(name="x"), '{"name": "x"}'),
    ],
)
def test_result_is_text_or_json(value: Any, text: str) -> None:
    assert to_text(value) == text


def test_json_quotes_text() -> None:
    assert to_json("World") == '"World"'
