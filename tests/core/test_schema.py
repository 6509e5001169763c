"""Values as JSON by their schema: what goes out comes back, what does not fit is refused, and with a pointer."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NoReturn, TypedDict, TypeVar
from uuid import UUID

import attrs
import jsonschema
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.services.hello_pb2 import HelloRequest
from perdure.core.json_schema import json_schema, without_defaults
from perdure.core.json_values import DEPTH_LIMIT, from_json, to_json
from perdure.core.schema import (
    ANSWER_SCHEMA_LIMIT_BYTES,
    Schema,
    answer_schema,
    decode_schema,
    schema_of,
    schema_of_fields,
)
from perdure.core.types import decoder, validator
from perdure.core.values import encode
from perdure.errors import Undecodable, ValueRefused

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Item:
    name: str
    price: Decimal
    tags: set[str] = field(default_factory=set[str])
    notes: tuple[str, ...] = ()
    color: Color = Color.RED


@dataclass
class Tree:
    value: int
    children: list[Tree] = field(default_factory=list["Tree"])


class Cat(msgspec.Struct, tag="cat"):
    name: str
    lives: int = 9


class Dog(msgspec.Struct, tag="dog"):
    name: str


class Strict(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    first_name: str
    is_old: bool = False


class Point(msgspec.Struct, array_like=True):
    x: int
    y: int = 0


class Tagged(msgspec.Struct, array_like=True, tag="t"):
    x: int


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Options(TypedDict, total=False):
    size: int
    name: str


@attrs.define
class Car:
    wheels: int
    owner: str | None = None


class Names(pydantic.RootModel[list[str]]):
    pass


@dataclass
class One:
    a: int


@dataclass
class Other:
    b: str


class Ask(pydantic.BaseModel):
    """With `Offer`, a union that holds itself, and whose members cannot be told apart by their first fields."""

    n: int
    next: Ask | Offer | None = None


class Offer(pydantic.BaseModel):
    n: int
    price: int = 0
    next: Ask | Offer | None = None


class Early(pydantic.BaseModel):
    late: Late


class Late(pydantic.BaseModel):
    n: int


class User(pydantic.BaseModel):
    name: str
    age: int = 0
    item: One | None = None
    friends: list[User] = []


NOW = datetime(2026, 11, 30, 12, 30, 15, 250_000, UTC)
SAMPLES: list[tuple[Any, Any, Any]] = [
    (None, None, None),
    (bool, True, True),
    (int, 7, 7),
    (int, 2**53, 2**53),
    (int, 2**53 + 1, {"$perdure": {"int": "9007199254740993"}}),
    (int, -(2**63), {"$perdure": {"int": "-9223372036854775808"}}),
    (int, 2**64 - 1, {"$perdure": {"int": "18446744073709551615"}}),
    (float, 1.5, 1.5),
    (float, 7, 7),
    (float, math.inf, {"$perdure": {"float": "inf"}}),
    (float, -math.inf, {"$perdure": {"float": "-inf"}}),
    (str, "é漢🎈\0", "é漢🎈\0"),
    (bytes, b"\0\xff", "AP8="),
    (bytearray, bytearray(b"x"), "eA=="),
    (datetime, NOW, "2026-11-30T12:30:15.250000Z"),
    (datetime, NOW.replace(tzinfo=None), "2026-11-30T12:30:15.250000"),
    (date, NOW.date(), "2026-11-30"),
    (time, time(12, 30), "12:30:00"),
    (timedelta, timedelta(days=3, seconds=1.5), "P3DT1.5S"),
    (Decimal, Decimal("1.50"), "1.50"),
    (UUID, UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (Path, Path("a/b"), "a/b"),
    (Color, Color.GREEN, "green"),
    (Level, Level.HIGH, 2),
    (Right, Right.READ | Right.WRITE, 3),
    (Literal["a", 1, None], 1, 1),
    (list[int], [1, 2], [1, 2]),
    (Sequence[bytes], [b"x"], ["eA=="]),
    (Iterable[int], [1], [1]),
    (set[int], {1}, [1]),
    (frozenset[str], frozenset({"a"}), ["a"]),
    (tuple[int, str], (1, "a"), [1, "a"]),
    (tuple[int, ...], (1, 2, 3), [1, 2, 3]),
    (dict[str, int], {"a": 1}, {"a": 1}),
    (dict[Color, int], {Color.RED: 1}, {"red": 1}),
    (dict[int, str], {1: "a", -2: "b"}, {"$perdure": {"map": [[1, "a"], [-2, "b"]]}}),
    (dict[date, int], {NOW.date(): 1}, {"2026-11-30": 1}),
    (Mapping[str, bytes], {"a": b"x"}, {"a": "eA=="}),
    (dict[str, int], {"$perdure": 1}, {"$perdure": {"map": [["$perdure", 1]]}}),
    (
        Item,
        Item("x", Decimal("1.5"), {"t"}, ("n",), Color.GREEN),
        {"name": "x", "price": "1.5", "tags": ["t"], "notes": ["n"], "color": "green"},
    ),
    (
        Tree,
        Tree(1, [Tree(2)]),
        {"value": 1, "children": [{"value": 2, "children": []}]},
    ),
    (Cat, Cat("Tom"), {"type": "cat", "name": "Tom", "lives": 9}),
    (Cat | Dog, Dog("Rex"), {"type": "dog", "name": "Rex"}),
    (Cat | Dog | None, None, None),
    (list[Cat | Dog], [Cat("a"), Dog("b")], [{"type": "cat", "name": "a", "lives": 9}, {"type": "dog", "name": "b"}]),
    (Strict, Strict("Ada"), {"firstName": "Ada", "isOld": False}),
    (Point, Point(1, 2), [1, 2]),
    (Tagged, Tagged(1), ["t", 1]),
    (Pair, Pair(1), [1, "r"]),
    (Options, {"size": 1}, {"size": 1}),
    (Car, Car(4), {"wheels": 4, "owner": None}),
    (
        User,
        User(name="Ada", friends=[User(name="Bob")], item=One(1)),
        {
            "name": "Ada",
            "age": 0,
            "item": {"a": 1},
            "friends": [{"name": "Bob", "age": 0, "item": None, "friends": []}],
        },
    ),
    (Names, Names(["a"]), ["a"]),
    (One | Other, Other("x"), {"b": "x"}),
    (list[One | Other | None], [One(1), None], [{"a": 1}, None]),
    (str | bytes, b"x", {"$perdure": {"bytes": "eA=="}}),
    (str | bytes, "x", "x"),
    (bytes | None, b"x", "eA=="),
    (int | str | None, "x", "x"),
    (Annotated[int, msgspec.Meta(ge=0, le=9)], 3, 3),
    (Annotated[str, msgspec.Meta(min_length=1, pattern="^a")], "ab", "ab"),
    (Any, [1, {"a": None}, "x", 1.5, True], [1, {"a": None}, "x", 1.5, True]),
    (Any, b"x", {"$perdure": {"bytes": "eA=="}}),
    (Any, NOW, {"$perdure": {"datetime": "2026-11-30T12:30:15.250000Z"}}),
    (Any, {1: {"$perdure": 2}}, {"$perdure": {"map": [[1, {"$perdure": {"map": [["$perdure", 2]]}}]]}}),
    (object, {"a": [b"x"]}, {"a": [{"$perdure": {"bytes": "eA=="}}]}),
    (list[Any], [b"x"], [{"$perdure": {"bytes": "eA=="}}]),
]


def sent(value: Any) -> Any:
    """Return a JSON value as it arrives."""
    return msgspec.json.decode(json.dumps(value, allow_nan=False).encode())


@pytest.mark.parametrize(("annotation", "value", "shown"), SAMPLES, ids=lambda each: str(each)[:40])
def test_value_goes_out_as_json_and_comes_back_equal(annotation: Any, value: Any, shown: Any) -> None:
    schema, data = schema_of(annotation), encode(value)
    assert to_json(schema, data) == shown
    again = from_json(schema, sent(shown))
    assert again == data or isinstance(value, dict | Car)  # those may have another order
    assert decoder(annotation)(again) == decoder(annotation)(data)
    assert from_json(schema_of(Any), to_json(schema_of(Any), data)) == data  # also where nothing is known of it


@pytest.mark.parametrize(("annotation", "value", "shown"), SAMPLES, ids=lambda each: str(each)[:40])
def test_schema_survives_its_encoding_and_describes_what_goes_out(annotation: Any, value: Any, shown: Any) -> None:
    schema = schema_of(annotation)
    assert decode_schema(schema.encode()) == schema
    assert schema_of(annotation).hash == schema.hash
    described = json_schema(schema)
    jsonschema.Draft202012Validator.check_schema(described)
    if "$perdure" not in str(shown) or annotation == dict[int, str]:
        jsonschema.validate(sent(shown), described)


def test_not_a_number_comes_back() -> None:
    (found,) = decoder(list[float])(from_json(schema_of(list[float]), [{"$perdure": {"float": "nan"}}]))
    assert math.isnan(found)


WRONG: list[tuple[Any, Any, list[tuple[str, str]]]] = [
    (int, "7", [("", "expected an integer, got a string")]),
    (int, True, [("", "expected an integer, got true")]),
    (int, 1.5, [("", "expected an integer, got the number 1.5")]),
    (int, 2**70, [("", "the integer is too large: at most 64 bits")]),
    (float, "nan", [("", "expected a number, got a string")]),
    (bool, 1, [("", "expected true or false, got the number 1")]),
    (None, 0, [("", "expected null, got the number 0")]),
    (str, None, [("", "expected a string, got null")]),
    (str, "\ud800", [("", "the string has half of a surrogate pair, which is no character")]),
    (Color, "\ud800", [("", 'expected one of "red", "green", got "\\ud800"')]),
    (UUID, "\ud800", [("", 'expected a UUID, got "\\ud800"')]),
    (dict[str, int], {"\ud800": 1}, [(r"/\ud800", "the string has half of a surrogate pair, which is no character")]),
    (bytes, "a", [("", "expected bytes as base64, got a string that is no base64")]),
    (datetime, "yesterday", [("", "expected a time such as '2026-11-30T12:00:00Z', got \"yesterday\"")]),
    (
        datetime,
        "0001-01-01T00:00:00+14:00",
        [("", "expected a time such as '2026-11-30T12:00:00Z', got \"0001-01-01T00:00:00+14:00\"")],
    ),
    (date, "2026-13-01", [("", "expected a date such as '2026-11-30', got \"2026-13-01\"")]),
    (Decimal, 1.5, [("", "expected a decimal number as a string, such as '1.50', got the number 1.5")]),
    (UUID, "x", [("", 'expected a UUID, got "x"')]),
    (Color, "blue", [("", 'expected one of "red", "green", got "blue"')]),
    (Level, True, [("", "expected one of 1, 2, got true")]),
    (
        list[int],
        [1, "a", 2, None],
        [("/1", "expected an integer, got a string"), ("/3", "expected an integer, got null")],
    ),
    (tuple[int, str], [1], [("", "expected a list of 2, got one of 1")]),
    (dict[str, int], {"a/b~": "x"}, [("/a~1b~0", "expected an integer, got a string")]),
    (dict[int, str], {"x": "a"}, [("/x", "expected an integer, got a string")]),
    (Item, {"name": 1}, [("/name", "expected a string, got the number 1"), ("", "the field 'price' is missing")]),
    (Tree, {"value": 1, "children": [{"value": "x"}]}, [("/children/0/value", "expected an integer, got a string")]),
    (Cat | Dog, {"type": "cow"}, [("/type", 'expected one of "cat", "dog"')]),
    (Cat | Dog, {"type": "cat"}, [("", "the field 'name' is missing")]),
    (Cat | Dog, 7, [("", "expected a Cat or a Dog, got the number 7")]),
    (int | str, [], [("", "expected an integer or a string, got a list")]),
    (int | list[int], ["a"], [("/0", "expected an integer, got a string")]),
    (Strict, {"firstName": "A", "age": 1}, [("/age", "there is no such field: the fields are 'firstName', 'isOld'")]),
    (Point, [], [("", "expected a list of 1 or more, got one of 0")]),
    (Tagged, ["u", 1], [("/0", 'expected "t"')]),
    (One | Other, {"c": 1}, [("", "expected a One or a Other, got an object")]),
    (Annotated[int, msgspec.Meta(ge=0)], -1, [("", "expected a number that is at least 0, got -1")]),
    (Annotated[str, msgspec.Meta(max_length=2)], "abc", [("", "expected a length of at most 2, got 3")]),
    (Annotated[str, msgspec.Meta(pattern="^a")], "b", [("", "expected a string that matches '^a'")]),
    (Annotated[datetime, msgspec.Meta(tz=True)], "2026-11-30T12:00:00", [("", "expected a time with a time zone")]),
    (
        int,
        {"$perdure": {"bytes": "eA=="}},
        [("", '{"$perdure": {"bytes": …}} does not say a value, and an integer is expected')],
    ),
    (Any, {"$perdure": {"\ud800": 1}}, [("", r'{"$perdure": {"\ud800": …}} does not say a value')]),
    (Any, {"$perdure": 1}, [("", '{"$perdure": {"?": …}} does not say a value')]),
    (Any, {"a": [{"$perdure": {"int": "1e5"}}]}, [("/a/0", '{"$perdure": {"int": …}} does not say a value')]),
    (Cat, {"type": "dog", "name": "x"}, [("/type", 'expected "cat", got "dog"')]),
    (Annotated[list[int], msgspec.Meta(min_length=2)], [1], [("", "expected a length of at least 2, got 1")]),
    (Annotated[float, msgspec.Meta(multiple_of=2)], 3, [("", "expected a number that is a multiple of 2, got 3")]),
    (Right, 4, [("", "expected a number that is made of the bits of 3, got 4")]),
    (dict[str, int], [], [("", "expected an object, got a list")]),
    (One, "x", [("", "expected an object, got a string")]),
    (
        dict[int, int],
        {"$perdure": {"map": [[1]]}},
        [("", '{"$perdure": {"map": …}} does not say a value, and an object is expected')],
    ),
    (Any, {"$perdure": {"map": [[[1], 2]]}}, [("/$perdure/map/0", "a list or an object cannot be a key")]),
]


@pytest.mark.parametrize(("annotation", "value", "errors"), WRONG, ids=lambda each: str(each)[:40])
def test_what_does_not_fit_is_refused_with_where_and_why(annotation: Any, value: Any, errors: Any) -> None:
    with pytest.raises(ValueRefused) as caught:
        from_json(schema_of(annotation), value, what="the input")
    assert [*caught.value.errors] == errors
    assert str(caught.value).startswith("the input does not fit its type: ")


def test_errors_are_all_reported_up_to_a_limit() -> None:
    with pytest.raises(ValueRefused, match=r"^the value does not fit its type: /0: .* \(and 19 more\)$") as caught:
        from_json(schema_of(list[int]), ["x"] * 100)
    assert len(caught.value.errors) == 20


def test_keys_that_are_integers_are_taken_as_text_too() -> None:
    assert msgspec.msgpack.decode(from_json(schema_of(dict[int, str]), {"1": "a", "-2": "b"})) == {1: "a", -2: "b"}


def test_depth_is_bounded_before_anything_is_read() -> None:
    deep: Any = 1
    for _ in range(DEPTH_LIMIT):
        deep = [deep]
    assert from_json(schema_of(Any), deep)
    with pytest.raises(ValueRefused, match="nested more than 64 levels deep"):
        from_json(schema_of(Any), [deep])


def test_union_that_holds_itself_is_read_in_time_that_does_not_double_with_each_level() -> None:
    deep: Any = {"n": "x"}
    for _ in range(DEPTH_LIMIT - 1):
        deep = {"n": 1, "next": deep}
    with pytest.raises(ValueRefused, match="expected a Ask or a Offer"):
        from_json(schema_of(Ask | Offer), deep)


def test_model_whose_annotations_name_later_classes_has_one_schema_before_and_after_it_is_used() -> None:
    before = schema_of(Early)
    Early(late=Late(n=1))
    assert before == schema_of(Early)
    with pytest.raises(ValueRefused, match="/late/n: expected an integer"):
        from_json(before, {"late": {"n": "x"}})


def test_input_of_a_handler_is_an_object_of_its_parameters() -> None:
    schema = schema_of_fields([("order", Item, True), ("times", int, False)])
    data = from_json(schema, {"order": {"name": "x", "price": "1"}})
    filled: dict[str, Any] = {"name": "x", "price": "1", "tags": [], "notes": [], "color": "red"}
    assert msgspec.msgpack.decode(data) == {"order": filled}
    with pytest.raises(ValueRefused) as caught:
        from_json(schema, {"times": "x", "more": 1})
    assert [at for at, _ in caught.value.errors] == ["", "/times", "/more"]
    assert json_schema(schema)["properties"]["times"] == {"type": "integer"}


def test_value_that_may_be_several_members_of_a_union_is_refused() -> None:
    """As the worker does, and before anything is recorded."""

    @dataclass
    class One:
        x: int
        y: int = 1

    @dataclass
    class Other:
        x: int
        z: str = "q"

    for annotation, value in ((str | datetime, "2024-01-01T00:00:00"), (Color | str, "red"), (One | Other, {"x": 1})):
        with pytest.raises(ValueRefused, match="it may be"):
            from_json(schema_of(annotation), value)
    read = from_json(schema_of(One | Other), {"x": 1, "z": "p"})
    assert msgspec.msgpack.decode(read) == {"x": 1, "z": "p"}
    with pytest.raises(ValueRefused, match="it may be"):
        from_json(schema_of(One | dict[str, int]), {"x": 1, "y": 2})


def test_model_that_takes_other_fields_keeps_them() -> None:
    class Open(pydantic.BaseModel, extra="allow"):
        a: int

    schema = schema_of(Open)
    assert msgspec.msgpack.decode(from_json(schema, {"a": 1, "b": [b"x".decode()]})) == {"a": 1, "b": ["x"]}
    assert json_schema(schema)["$defs"]["Open"]["additionalProperties"] == {}


def test_named_alias_that_holds_itself_is_described() -> None:
    schema = schema_of(pydantic.JsonValue)
    assert msgspec.msgpack.decode(from_json(schema, {"a": [1, {"b": None}]})) == {"a": [1, {"b": None}]}
    jsonschema.validate({"a": [1]}, json_schema(schema))


def test_class_whose_name_is_no_part_of_a_uri_is_described() -> None:
    class Page(pydantic.BaseModel, Generic[T]):
        item: T

    schema = schema_of(Page[Literal["a/b"]])
    jsonschema.validate({"item": "a/b"}, json_schema(schema))


def test_times_are_checked_for_their_zone() -> None:
    aware, naive = (schema_of(Annotated[time, msgspec.Meta(tz=tz)]) for tz in (True, False))
    assert from_json(aware, "12:00:00Z")
    assert from_json(naive, "12:00:00")
    for schema, text in ((aware, "12:00:00"), (naive, "12:00:00Z")):
        with pytest.raises(ValueRefused, match="a time with"):
            from_json(schema, text)


def test_integer_that_is_a_large_float_is_one() -> None:
    assert msgspec.msgpack.decode(from_json(schema_of(float), 10**20)) == 1e20
    with pytest.raises(ValueRefused, match="too large"):
        from_json(schema_of(float), 10**400)


def test_list_without_a_required_field_in_its_middle_is_refused() -> None:
    class Late(msgspec.Struct, array_like=True, kw_only=True):
        a: int = 1
        b: int

    schema = schema_of(Late)
    for value in ([5], [1, 2, 3, 4][:1]):
        with pytest.raises(ValueRefused):
            from_json(schema, value)
    assert json_schema(schema)["$defs"]["Late"]["minItems"] == 2


def test_what_is_nested_too_deep_is_written_as_far_as_it_goes() -> None:
    value: Any = 1
    for _ in range(300):
        value = [value]
    shown = json.dumps(to_json(schema_of(Any), encode(value)))
    assert shown.count("[") == 200
    assert "levels deep" in shown


def test_classes_of_one_name_are_kept_apart() -> None:
    def make(annotation: Any) -> type[Any]:
        return msgspec.defstruct("Same", [("x", annotation)])

    schema = schema_of(tuple[make(int), make(str)])
    assert sorted(schema.classes) == ["Same", "Same2"]
    assert from_json(schema, [{"x": 1}, {"x": "a"}])


def test_schema_holds_no_default_that_is_made_anew() -> None:
    @dataclass
    class Event:
        at: float = field(default_factory=iter(map(float, range(100))).__next__)
        names: list[str] = field(default_factory=list[str])

    event = schema_of(Event).classes["Event"]
    assert [(each.required, each.default) for each in event.fields] == [(False, None), (False, encode([]))]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.sampled_from(["red", "cat", "2026-11-30", "2026-11-30T12:00:00Z", "1.5", "eA==", "PT1S", "a", "t"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["name", "type", "price", "a", "b", "x", "value", "children", "$perdure", "map", "int", "1"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
TYPES = list({repr(annotation): annotation for annotation, _, _ in SAMPLES}.values())


@settings(max_examples=1_500, deadline=None)
@given(annotation=st.sampled_from(TYPES), value=JSON)
def test_what_is_taken_decodes_in_the_worker_and_is_stable(annotation: Any, value: Any) -> None:
    schema = schema_of(annotation)
    try:
        data = from_json(schema, value)
    except ValueRefused as refused:
        assert refused.errors  # noqa: PT017
        return
    try:
        validator(annotation)(data)
    except Undecodable as error:
        assert "fits" in str(error)  # noqa: PT017  a union of classes that only the author can tell apart
    again = to_json(schema, data)
    assert to_json(schema, from_json(schema, sent(again))) == again


@dataclass
class Loose:
    what: object
    made: Any = field(default_factory=object)


class Shown(pydantic.BaseModel):
    price: Decimal

    @pydantic.field_serializer("price")
    def show(self, price: Decimal) -> str:
        return f"{price} EUR"


class Opaque:
    pass


class Odd(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True, extra="forbid")
    size: Annotated[int, pydantic.Field(gt=3)]
    what: Opaque | None = None


ODD = (
    '{"kind":"object","fields":[["size",{"kind":"int"},true,null,""],["what",{"kind":"any"},false,"wA==",""]],'
    '"is_strict":true}'
)


@pytest.mark.parametrize(
    ("annotation", "node"),
    [
        (NoReturn, '{"kind":"null"}'),
        (Annotated[User, "a note"], '{"kind":"class","name":"User"}'),
        (Annotated[int, msgspec.Meta(title="an age")], '{"kind":"int"}'),
        (Any, '{"kind":"any"}'),
        (HelloRequest, '{"kind":"bytes"}'),
        (Shown, '{"kind":"any"}'),
        (
            Loose,
            '{"kind":"object","fields":[["what",{"kind":"any"},true,null,""],["made",{"kind":"any"},false,null,""]]}',
        ),
        (
            Odd,
            ODD,
        ),
    ],
    ids=str,
)
def test_types_that_say_little_are_described_by_what_is_recorded(annotation: Any, node: str) -> None:
    schema = schema_of(annotation)
    found = schema.root if schema.root.name in ("User", "") else schema.classes[schema.root.name]
    assert msgspec.json.encode(found).decode() == node


def test_classes_beyond_the_limit_are_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.core.schema.CLASSES_LIMIT", 1)
    schema = schema_of(tuple[One, Other, One])
    assert [*schema.classes] == ["One"]
    assert [each.kind for each in schema.root.items] == ["class", "any", "class"]


def test_extension_type_is_shown_and_not_taken() -> None:
    shown = to_json(schema_of(Any), msgspec.msgpack.encode(msgspec.msgpack.Ext(5, b"x")))
    assert [*shown["$perdure"]] == ["other"]
    with pytest.raises(ValueRefused):
        from_json(schema_of(Any), shown)


def test_lists_are_written_by_place_and_what_does_not_fit_as_if_nothing_were_known() -> None:
    assert to_json(schema_of(tuple[bytes, int]), encode([b"x", b"y", b"z"])) == [
        "eA==",
        {"$perdure": {"bytes": "eQ=="}},
        {"$perdure": {"bytes": "eg=="}},
    ]
    assert to_json(schema_of(int), encode({"a": b"x"})) == {"a": {"$perdure": {"bytes": "eA=="}}}
    assert to_json(schema_of(Cat | Dog), encode({"type": "cow", "name": b"x"})) == {
        "type": "cow",
        "name": {"$perdure": {"bytes": "eA=="}},
    }


def test_encoded_schema_is_compact_and_readable() -> None:
    assert schema_of(Cat | None).encode() == (
        b'{"root":{"kind":"union","items":[{"kind":"class","name":"Cat"},{"kind":"null"}]},"classes":{"Cat":{"kind":'
        b'"object","fields":[["name",{"kind":"str"},true,null,""],["lives",{"kind":"int"},false,"CQ==",""]],"tag":["type",'
        b'"cat"]}}}'
    )
    assert isinstance(decode_schema(b'{"root":{"kind":"any"}}'), Schema)


def test_schema_of_an_answer_is_recorded_where_it_says_something_and_is_short() -> None:
    assert answer_schema(Item) == schema_of(Item).encode()
    assert answer_schema(Annotated[int, []]) == schema_of(int).encode()  # not hashable
    assert answer_schema(Any) == b""
    assert answer_schema("no such name") == b""  # nothing can decode it, which the body is told elsewhere
    wide = msgspec.defstruct("Wide", [(f"field_{n}", int) for n in range(200)])
    assert len(schema_of(wide).encode()) > ANSWER_SCHEMA_LIMIT_BYTES
    assert answer_schema(wide) == b""


@dataclass
class HasDefault:
    default: str = "planted"  # a field of this name stays


@dataclass
class HasDefaults:
    one: HasDefault
    many: list[HasDefault] = field(default_factory=list[HasDefault])
    named: dict[str, int | str] | None = None
    both: tuple[int, str] = (1, "planted")


def test_json_schema_without_defaults_has_no_values_in_it() -> None:
    described = json_schema(schema_of(HasDefaults))
    assert "planted" in str(described)
    found = without_defaults(described)
    assert "planted" not in str(found)
    assert found["$defs"]["HasDefault"]["properties"] == {"default": {"type": "string"}}
    jsonschema.validate({"one": {"default": "x"}, "named": {"b": 1}, "both": [1, "x"]}, found)
