"""Interfaces: inputs from JSON as a typed caller records them, with the digest that a typed caller gives them."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import attrs
import jsonschema
import msgspec
import pydantic
import pytest

from perdure.authoring.by_name import named
from perdure.core.interface import (
    MISSING,
    Interface,
    classes_of,
    decode_interface,
    identity,
    input_from_json,
    input_schema,
    input_to_json,
    interface_of,
)
from perdure.core.signature import Signature
from perdure.core.values import decode_any
from perdure.errors import ValueRefused


class Color(enum.Enum):
    RED = "red"


@dataclass
class Item:
    name: str
    price: Decimal = Decimal("1.5")
    tags: set[str] = field(default_factory=lambda: {"b", "a"})
    color: Color = Color.RED


class Renamed(msgspec.Struct, rename="camel"):
    the_item: Item
    a_count: int = 3


class Cat(msgspec.Struct, tag=True):
    name: str
    lives: int = 9


class Dog(msgspec.Struct, tag=True):
    name: str


class Point(msgspec.Struct, array_like=True):
    y: int
    x: int = 0


class TaggedPoint(msgspec.Struct, array_like=True, tag=True):
    y: int
    x: int = 0


class Pair(NamedTuple):
    one: str
    two: int = 2


class Wants(TypedDict, total=False):
    color: str
    size: int


@attrs.define
class Box:
    items: list[Item]
    label: str | None = None


class Model(pydantic.BaseModel):
    when: datetime
    took: timedelta = timedelta(seconds=2)


@dataclass
class Random:
    id: str
    made: UUID = field(default_factory=lambda: UUID(int=0))
    fresh: list[object] = field(default_factory=lambda: [object()])


async def one(item: Item) -> None: ...
async def renamed(it: Renamed) -> None: ...
async def animal(it: Cat | Dog) -> None: ...
async def point(it: Point) -> None: ...
async def tagged(it: TaggedPoint) -> None: ...
async def pair(it: Pair) -> None: ...
async def wants(it: Wants) -> None: ...
async def box(it: Box | None) -> None: ...
async def model(it: Model) -> None: ...
async def mapping(it: dict[str, set[int]]) -> None: ...
async def keyed(it: dict[int, Item]) -> None: ...
async def pairs(it: tuple[Item, float]) -> None: ...
async def anything(it: Any) -> None: ...
async def untyped(it) -> None: ...  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
async def plain_list(it: list) -> None: ...  # pyright: ignore[reportUnknownParameterType, reportMissingTypeArgument]
async def nothing() -> None: ...
async def several(a: int, b: str = "x", *, c: float = 1.0) -> None: ...
async def many(first: int, *rest: Item, last: str = "") -> None: ...
async def open_(first: int, **others: Item) -> None: ...
async def all_open(*args: Any, **kwargs: Any) -> None: ...


def made(fn: Callable[..., Any]) -> tuple[Signature, Interface]:
    signature = Signature.of(fn)
    found = interface_of(signature, signature.returns)
    assert decode_interface(found.encode()) == found
    assert decode_interface(found.encode()).hash == found.hash
    return signature, found


CASES: list[tuple[Any, ...]] = [
    (one, (Item("a"),), {}, {"name": "a"}),
    (one, (Item("a", Decimal(2), {"z", "y", "x"}),), {}, {"name": "a", "price": "2", "tags": ["y", "x", "z"]}),
    (renamed, (Renamed(Item("a")),), {}, {"theItem": {"name": "a"}}),
    (renamed, (Renamed(Item("a"), 4),), {}, {"theItem": {"name": "a"}, "aCount": 4}),
    (animal, (Cat("Tom"),), {}, {"type": "Cat", "name": "Tom"}),
    (animal, (Dog("Rex"),), {}, {"type": "Dog", "name": "Rex"}),
    (point, (Point(1),), {}, [1]),
    (point, (Point(1, 2),), {}, [1, 2]),
    (tagged, (TaggedPoint(1),), {}, ["TaggedPoint", 1]),
    (pair, (Pair("a"),), {}, ["a"]),
    (pair, (Pair("a", 7),), {}, ["a", 7]),
    (wants, ({"size": 3},), {}, {"size": 3}),
    (box, (Box([Item("a"), Item("b")]),), {}, {"items": [{"name": "a"}, {"name": "b"}]}),
    (box, (None,), {}, None),
    (model, (Model(when=datetime(2026, 11, 30, tzinfo=UTC)),), {}, {"when": "2026-11-30T00:00:00Z"}),
    (mapping, ({"b": {2, 1}, "a": {3}},), {}, {"a": [3], "b": [1, 2]}),
    (keyed, ({2: Item("a"), 1: Item("b")},), {}, {"1": {"name": "b"}, "2": {"name": "a"}}),
    (pairs, ((Item("a"), 1.5),), {}, [{"name": "a"}, 1.5]),
    (anything, ({"b": [1, "x"], "a": None},), {}, {"a": None, "b": [1, "x"]}),
    (untyped, (["x"],), {}, ["x"]),
    (plain_list, ([1, [2]],), {}, [1, [2]]),
    (nothing, (), {}, {}),
    (nothing, (), {}, None),
    (nothing, (), {}, MISSING),
    (several, (1,), {}, {"a": 1}),
    (several, (1, "y"), {"c": 2.5}, {"c": 2.5, "b": "y", "a": 1}),
    (several, (1,), {"c": 2.5}, {"c": 2.5, "a": 1}),
    (many, (1, Item("a"), Item("b")), {}, {"first": 1, "rest": [{"name": "a"}, {"name": "b"}]}),
    (many, (1,), {"last": "z"}, {"first": 1, "last": "z"}),
    (open_, (1,), {"x": Item("a"), "others": Item("b")}, {"first": 1, "x": {"name": "a"}, "others": {"name": "b"}}),
    (open_, (1,), {}, {"first": 1}),
    (all_open, (1, 2), {"b": 1, "a": 2}, {"args": [1, 2], "a": 2, "b": 1}),
]


@pytest.mark.parametrize(("fn", "args", "kwargs", "as_json"), CASES)
def test_input_from_json_is_that_of_a_typed_caller(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], as_json: Any
) -> None:
    signature, interface = made(fn)
    recorded = signature.encode(args, kwargs, "the input")
    ours = input_from_json(interface, as_json)
    assert signature.decode(named(ours, signature), validated=False) == signature.decode(recorded)
    assert identity(interface, ours) == identity(interface, recorded) == signature.identity(args, kwargs)
    if as_json is not MISSING and as_json is not None:
        check(interface, as_json)


def check(interface: Interface, value: Any) -> None:
    """The description takes what the reader takes."""
    classes, _ = classes_of(interface, where="#/$defs/")
    described = {**input_schema(interface, where="#/$defs/"), "$defs": classes}
    jsonschema.Draft202012Validator.check_schema(described)
    jsonschema.validate(value, described)


def test_recorded_input_is_shown_by_name() -> None:
    signature, interface = made(several)
    assert input_to_json(interface, signature.encode((1,), {"c": 2.5}, "the input")) == {"a": 1, "c": 2.5}


@pytest.mark.parametrize(
    ("fn", "value", "at", "text"),
    [
        (one, MISSING, "", "missing"),
        (one, {"name": 3}, "/name", "expected a string"),
        (one, [], "", "expected an object"),
        (several, {"a": 1, "d": 2}, "/d", "no such field"),
        (several, [1], "", "expected an object"),
        (several, MISSING, "", "'a' is missing"),
        (open_, {"first": 1, "x": 3}, "/x", "expected an object"),
        (open_, [], "", "expected an object"),
        (nothing, {"a": 1}, "/a", "no such field"),
    ],
)
def test_wrong_input_is_refused_with_a_pointer(fn: Callable[..., Any], value: Any, at: str, text: str) -> None:
    _, interface = made(fn)
    with pytest.raises(ValueRefused) as caught:
        input_from_json(interface, value)
    assert caught.value.errors[0][0] == at
    assert text in caught.value.errors[0][1]


def test_one_optional_parameter_may_be_left_out() -> None:
    async def greet(name: str = "you") -> str: ...

    signature, interface = made(greet)
    assert decode_any(input_from_json(interface, MISSING)) == {"*": []}
    assert decode_any(input_from_json(interface, "ada")) == {"*": [], "name": "ada"}
    assert input_schema(interface, where="#") == {"type": "string", "default": "you"}
    assert identity(interface, input_from_json(interface, MISSING)) == signature.identity((), {})


def test_field_whose_default_is_made_anew_is_left_to_the_worker() -> None:
    async def make(it: Random) -> None: ...

    _, interface = made(make)
    ours = input_from_json(interface, {"id": "a"})
    assert identity(interface, ours) == identity(interface, ours)


def test_default_that_cannot_be_recorded_is_not_described() -> None:
    async def odd(it: Any = object()) -> None: ...  # noqa: B008

    _, interface = made(odd)
    assert interface.defaults == {}
    assert not interface.input.root.fields[0].required


def test_value_of_no_certain_type_is_digested_as_it_is_recorded() -> None:
    async def either(it: list[int] | dict[str, Item] | set[str]) -> None: ...

    signature, interface = made(either)
    assert identity(interface, input_from_json(interface, [2, 1])) == signature.identity(([2, 1],), {})
    assert json.loads(interface.encode())["positional"] == ["it"]
