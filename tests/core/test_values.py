"""Values come back as their annotation says, or it is said at once what stands in the way."""

from __future__ import annotations

import enum
import ipaddress
import os
import pathlib
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, Never, NoReturn, TypedDict, TypeVar, Union
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from google.protobuf.struct_pb2 import Struct as ProtobufStruct
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from perdure.core.recording import encode_as
from perdure.core.types import decoder, validator
from perdure.core.values import PATH_LIMIT, agrees, digest, encode, encode_for_digest, is_alike, map_header, type_name
from perdure.errors import AnnotationUnresolved, Undecodable, Unencodable

T = TypeVar("T")
Bounded = TypeVar("Bounded", bound="Card")


class Colour(enum.Enum):
    RED = "red"


class Pair(enum.Enum):
    ONE = (1, 2)


@dataclass
class Card:
    number: str
    cents: int = 0


@dataclass
class Cash:
    cents: int
    coins: list[int] = field(default_factory=list[int])


@dataclass
class Voucher:
    kind: Literal["voucher"]
    tags: set[str]


@dataclass
class Coupon:
    kind: Literal["coupon"]
    tags: set[str]


@dataclass
class Twin:
    number: str
    cents: int = 0


@dataclass
class Box(Generic[T]):
    content: T


@dataclass
class Holder:
    anything: object


@dataclass
class Broken:
    content: Nowhere  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


@dataclass
class Either:
    content: Card | Cash


@attrs.define
class Address:
    street: str


class Point(NamedTuple):
    x: int
    y: int = 0


class Options(TypedDict):
    deep: bool


class Node(msgspec.Struct):
    name: str
    next: Node | None = None
    extra: int | msgspec.UnsetType = msgspec.UNSET


class Name(str):
    __slots__ = ()


class Count(int):
    pass


class Share(float):
    pass


class Plain:
    pass


class Inner(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    when: datetime
    tags: frozenset[str] = frozenset()


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    inner: Inner = pydantic.Field(alias="In")
    price: Decimal
    sizes: tuple[int, ...] = ()
    path: pathlib.Path = pathlib.Path()
    raw: bytes = b""
    site: pydantic.HttpUrl | None = None
    host: ipaddress.IPv4Address | None = None
    hidden: int = pydantic.Field(default=1, exclude=True)


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Custom(pydantic.BaseModel):
    n: Annotated[int, pydantic.PlainSerializer(lambda n: str(n))]


class Decorated(pydantic.BaseModel):
    n: int

    @pydantic.field_serializer("n")
    def as_text(self, n: int) -> str:
        return str(n)


class Whole(pydantic.BaseModel):
    n: int

    @pydantic.model_serializer
    def as_map(self) -> dict[str, int]:
        return {"n": self.n}


class Secretive(pydantic.BaseModel):
    password: pydantic.SecretStr


class Erratic(pydantic.BaseModel):
    n: int

    @pydantic.field_validator("n")
    @classmethod
    def check(cls, n: int) -> int:
        raise KeyError(n)


WHEN = datetime(2026, 11, 20, 12, tzinfo=UTC)

SURVIVORS: list[tuple[object, Any]] = [
    ("text", str),
    (7, int),
    (2**64 - 1, int),
    (-(2**63), int),
    (1.5, float),
    (float("inf"), float),
    (True, bool),
    (b"\x00\xff", bytes),
    (bytearray(b"a"), bytearray),
    (None, None),
    (None, type(None)),
    (None, NoReturn),
    (None, Never),
    ([1, "a", None], Any),
    ([1, "a", None], object),
    ([1, "a", None], T),
    ({"number": "1", "cents": 2}, Bounded),
    ({(1, 2): 3}, dict[tuple[int, int], int]),
    ({1: "a"}, dict[int, str]),
    ({1, 2}, set[int]),
    (frozenset({"a"}), frozenset[str]),
    ((1, "a"), tuple[int, str]),
    ([1, 2], Iterable[int]),
    ([1, 2], Iterable),
    ([1, 2], Sequence[int]),
    ([{"a": 1}], list[object]),
    (WHEN, datetime),
    (datetime(2026, 1, 1), datetime),  # noqa: DTZ001  naive on purpose
    (date(2026, 1, 1), date),
    (timedelta(seconds=90), timedelta),
    (UUID(int=5), UUID),
    (Decimal("1.50"), Decimal),
    (Colour.RED, Colour),
    (Card("4242", 5), Card),
    (Box(3), Box[int]),
    (Box([Cash(1)]), Box[list[Cash]]),
    (Box(3), Box),
    (Holder({"a": [1]}), Holder),
    (Address("Main"), Address),
    (Point(1, 2), Point),
    (Options(deep=True), Options),
    (Node("a", Node("b")), Node),
    ("a", Literal["a", "b"]),
    (3, Annotated[int, msgspec.Meta(ge=1)]),
    (3, Annotated[int, []]),  # not hashable
    ([3], Annotated[list[object], "note"]),
    (pathlib.PurePosixPath("/a/b"), pathlib.PurePosixPath),
    (pathlib.Path("a"), pathlib.Path | None),
    (ipaddress.IPv4Address("10.0.0.1"), ipaddress.IPv4Address),
    (StringValue(value="a"), StringValue),
    ([StringValue(value="a")], list[StringValue]),
    (Numbers([1, 2]), Numbers),
    (Decorated(n=1), Decorated),
    (Custom(n=1), Custom),
    (Whole(n=1), Whole),
    # unions that msgspec refuses
    (Card("4242"), Card | Cash),
    (Cash(4), Card | Cash),
    (Cash(4), int | Card | Cash),
    (3, int | Card | Cash),
    (None, Card | Cash | None),
    ([Cash(1), Card("1")], list[Card | Cash]),
    ({"a": Cash(1)}, dict[str, Card | Cash]),
    (Coupon("coupon", {"b", "a", "c"}), Voucher | Coupon),
    (Numbers([1]), int | Numbers),
    (4, Decorated | int),
    ("plain text", str | UUID),
    (b"a", str | bytes),
    (Box(Cash(1)), Box[Card | Cash]),
    (Cash(1), Annotated[Card | Cash, "note"]),
]


@pytest.mark.parametrize(("value", "annotation"), SURVIVORS)
def test_a_value_comes_back_as_its_annotation_says(value: object, annotation: Any):
    back = decoder(annotation)(encode_as(value, annotation, "the result"))
    assert back == value
    assert type(back) is type(value)


def test_a_pydantic_model_comes_back_equal_whatever_its_aliases_strictness_and_excluded_fields():
    model = Model.model_validate(
        {
            "In": Inner(when=datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2))), tags=frozenset({"b", "a"})),
            "price": Decimal("1.50"),
            "sizes": (1, 2),
            "path": pathlib.Path("/tmp"),
            "raw": b"\xff\x00",
            "site": "https://example.org/",
            "host": ipaddress.IPv4Address("10.0.0.1"),
            "hidden": 5,
            "other": "extra",
        }
    )
    back = decoder(Model)(encode_as(model, Model, "it"))
    assert back == model
    assert back.hidden == 5
    assert back.model_extra == {"other": "extra"}
    assert decoder(list[Model | None])(encode([model, None])) == [model, None]


def test_protobuf_maps_are_written_in_one_order():
    one, two = ProtobufStruct(), ProtobufStruct()
    one.update({"a": 1, "b": 2, "c": 3})
    two.update({"c": 3, "b": 2, "a": 1})
    assert encode(one) == encode(two)
    assert encode_for_digest(one) == encode_for_digest(two)
    assert decoder(ProtobufStruct)(encode(one)) == one


class Incomparable(msgspec.Struct, eq=False):
    n: int

    def __eq__(self, other: object) -> bool:
        raise TypeError("cannot be compared")


@pytest.mark.parametrize(
    ("value", "other", "same"),
    [
        (Decimal("sNaN"), Decimal("sNaN"), True),
        ([Decimal("sNaN")], [Decimal(1)], False),
        (Incomparable(1), Incomparable(1), True),
        (Incomparable(1), Incomparable(2), False),
    ],
)
def test_values_that_cannot_be_compared_are_alike_if_they_are_recorded_alike(value: Any, other: Any, same: bool):
    assert is_alike(value, other) is same


def test_nan_survives():
    assert str(decoder(float)(encode_as(float("nan"), float, "it"))) == "nan"


def test_a_memoryview_comes_back_as_bytes():
    assert decoder(bytes)(encode_as(memoryview(b"ab"), bytes, "it")) == b"ab"


@pytest.mark.parametrize("value", [Name("a"), Count(3), Share(0.5)])
def test_a_subclass_of_a_builtin_is_recorded_as_the_builtin(value: object):
    back = decoder(Any)(encode(value))
    assert back == value
    assert type(back) is type(value).__base__


def test_without_an_annotation_builtin_types_come_back():
    assert decoder(Any)(encode([Card("1"), (1,), {2}, UUID(int=1), pathlib.PurePosixPath("/a")])) == [
        {"number": "1", "cents": 0},
        [1],
        [2],
        "00000000-0000-0000-0000-000000000001",
        "/a",
    ]


def test_an_integer_is_accepted_where_a_float_is_annotated():
    assert decoder(float)(encode_as(1, float, "it")) == 1.0


def cyclic() -> list[object]:
    ring: list[object] = [1]
    ring.append({"again": ring})
    return ring


def deep(levels: int) -> list[Any]:
    nest: list[Any] = []
    for _ in range(levels):
        nest = [nest]
    return nest


CONNECTION = sqlite3.connect(":memory:")
CONNECTION.close()

REFUSED: list[tuple[object, str, str]] = [
    (CONNECTION, "", "sqlite3.Connection"),
    ({"conn": CONNECTION}, "['conn']", "sqlite3.Connection"),
    ([1, {"a": (2, CONNECTION)}], "[1]['a'][1]", "sqlite3.Connection"),
    ({2j: 1}, " key 2j", "complex"),
    (Box(Box(Plain())), ".content.content", "Plain"),
    (Address(Plain()), ".street", "Plain"),  # pyright: ignore[reportArgumentType]
    (Node("a", Plain()), ".next", "Plain"),  # pyright: ignore[reportArgumentType]
    ({1, 2j}, " item 2j", "complex"),
    ([1, 2**64], "[1]", "int"),
    ([-(2**63) - 1], "[0]", "int"),
    ([Count(2**70)], "[0]", "Count"),
    ({"a": "\ud800"}, "['a']", "str"),
    (cyclic(), "[1]['again']", "list"),
    (deep(100_000), "[0]" * PATH_LIMIT, "list"),
    (Plain, "", "type"),
    (lambda: 1, "", "function"),
    (range(3), "", "range"),
    (Secretive(password=pydantic.SecretStr("s")), ".password", "SecretStr"),
    ([Secretive(password=pydantic.SecretStr("s"))], "[0].password", "SecretStr"),
    (Inner.model_construct(), "", "Inner"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_cannot_be_encoded_is_named_with_its_path(case: int):
    value, path, kind = REFUSED[case]
    writers: list[Callable[[object, str], bytes]] = [encode, lambda value, where: encode_as(value, Any, where)]
    for write in writers:
        with pytest.raises(Unencodable, match=r"^the result of step 'greet' cannot be recorded: ") as caught:
            write(value, "the result of step 'greet'")
        assert caught.value.path == path
        assert caught.value.type.endswith(kind)
        assert f"is a {caught.value.type}; " in str(caught.value)
        assert caught.value.__cause__ is not None


def test_the_text_for_what_cannot_be_encoded_says_where_what_and_what_to_do():
    with pytest.raises(Unencodable) as caught:
        encode_as({"conn": CONNECTION}, Any, "the result of step 'greet'")
    assert str(caught.value) == (
        "the result of step 'greet' cannot be recorded: value['conn'] is a sqlite3.Connection; use builtin types, "
        "dataclasses, TypedDicts, or msgspec, attrs, pydantic or protobuf classes"
    )


def test_a_part_that_fails_only_within_the_whole_is_reported_at_the_whole():
    class Moody(dict[str, object]):
        """Encodes as a dict; its parts are seen differently from Python."""

        def items(self) -> Any:
            return []

    with pytest.raises(Unencodable) as caught:
        encode(Moody(a=Plain()))
    assert caught.value.path == ""


@pytest.mark.parametrize(
    ("value", "annotation", "reason"),
    [
        ("a", int, "Expected `int`, got `str`"),
        (True, int, "Expected `int`, got `bool`"),
        (None, str, "Expected `str`, got `None`"),
        ({"number": 3}, Card, "Expected `str`, got `int` - at `$.number`"),
        (Card(3), Card, "at `$.number`"),  # pyright: ignore[reportArgumentType]
        ([1, "a"], list[int], r"at `$\[1\]`"),
        (3, StringValue, "Expected `google.protobuf.wrappers_pb2.StringValue`, got `int`"),
        (b"\xff", StringValue, "Error parsing message"),
        (3, pathlib.Path, f"Expected `{pathlib.Path.__module__}.Path`, got `int`"),
        ({"n": "x"}, Decorated, "valid integer"),
        ({"n": 1}, Erratic, "1"),
        ("a", int | Card | Cash, r"Expected `int | .*Card | .*Cash`: Expected `int`, got `str`"),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_its_annotation_is_refused_when_it_is_recorded(
    value: object, annotation: Any, reason: str
):
    with pytest.raises(Unencodable, match=r"^the result of step 'greet' is a .* but its annotation says ") as caught:
        encode_as(value, annotation, "the result of step 'greet'")
    cause = caught.value.__cause__
    assert isinstance(cause, Undecodable)
    assert reason.replace(r"\[", "[").replace(r"\]", "]").split(" | .*")[0] in cause.reason
    assert cause.annotation == type_name(annotation)
    with pytest.raises(Undecodable, match=r"^a recorded value does not decode as "):
        validator(annotation)(encode(value))


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x01\x02", b"\xa5ab"])
@pytest.mark.parametrize("annotation", [Any, str, Card, Card | Cash])
def test_damaged_bytes_are_undecodable(payload: bytes, annotation: Any):
    with pytest.raises(Undecodable):
        decoder(annotation)(payload)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [(Card("1"), Card | Twin), (UUID(int=1), str | UUID), ([Twin("1")], list[Card | Twin])],
    ids=str,
)
def test_a_value_that_fits_two_members_of_a_union_is_refused_when_it_is_recorded(value: object, annotation: Any):
    with pytest.raises(Unencodable, match=r"it fits .* and .*: tell them apart"):
        encode_as(value, annotation, "the result")


def test_a_member_of_a_union_with_a_new_field_is_still_found():
    assert decoder(Card | Cash)(encode({"cents": 4})) == Cash(4)


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (Plain, "nothing decodes tests.core.test_values.Plain"),
        (list[Plain], "nothing decodes tests.core.test_values.Plain"),
        (complex, "nothing decodes complex"),
        (type, "nothing decodes type"),
        (Callable[[int], str], "nothing decodes collections.abc.Callable"),
        (AsyncIterator[int], "nothing decodes collections.abc.AsyncIterator"),
        (Plain | int, "nothing decodes"),
        ("Nope", "Nope"),
        (Broken, "Nowhere"),
        (Either, "more than one dataclass"),
        (Pair, "Enums must contain"),
        (dict[str, Pair] | list[int], "Enums must contain"),
    ],
    ids=str,
)
def test_an_annotation_that_nothing_decodes_is_named(annotation: Any, reason: str):
    with pytest.raises(AnnotationUnresolved) as caught:
        decoder(annotation)
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"annotation {caught.value.annotation} cannot be used: ")
    with pytest.raises(AnnotationUnresolved, match=r"^the result of step 'greet': annotation "):
        encode_as(1, annotation, "the result of step 'greet'")


alias: Any = TypeAliasType
V = TypeVar("V")
Ids = alias("Ids", list[int])
Pairs = alias("Pairs", "tuple[V, list[V]]", type_params=(V,))
Json = alias("Json", "bool | int | float | str | list[Json] | dict[str, Json] | None")
Tree = alias("Tree", "dict[str, V | Tree[V]]", type_params=(V,))
Left = alias("Left", "tuple[int, Right | None]")
Right = alias("Right", "tuple[Left, ...]")


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ([1], Ids),
        ([[1], [2]], list[Ids]),
        ((1, [2]), Pairs[int]),
        ({"a": [1, None, {"b": 2.5}], "c": True}, Json),
        (None, Json),
        ([[[["deep"]]]], Json),
        ({"x": {"a": []}}, dict[str, Json]),
        ({"a": 1, "b": {"c": 2}}, Tree[int]),
        ({"a": Card("1"), "b": {"c": Card("2")}}, Tree[Card]),
        ((1, ((2, None), (3, ((4, None),)))), Left),
        ({"a": [1, None]}, pydantic.JsonValue),
        ([{"a": 1}, "b"], list[pydantic.JsonValue]),
    ],
)
def test_a_named_alias_is_what_it_names_also_if_that_holds_it(value: object, annotation: Any):
    assert decoder(annotation)(encode_as(value, annotation, "it")) == value
    assert validator(annotation)(encode(value)) == value


@pytest.mark.parametrize(
    ("value", "annotation", "reason"),
    [
        (["a"], Ids, "Expected `int`, got `str`"),
        ({"a": [1, b"no"]}, Json, "Expected"),
        ({"a": {"b": "c"}}, Tree[int], "Expected"),
        ((1, ((2, 3),)), Left, "Expected"),
    ],
)
def test_a_value_that_does_not_fit_what_an_alias_names_is_refused(value: object, annotation: Any, reason: str):
    with pytest.raises(Unencodable, match="its annotation says") as caught:
        encode_as(value, annotation, "the result of step 'greet'")
    assert reason in str(caught.value)


ByName: Any = Union[int, list["ByName"]]  # noqa: UP007


def test_a_type_that_holds_itself_without_a_named_alias_is_refused_with_what_to_write():
    with pytest.raises(AnnotationUnresolved, match=r"it holds itself.*TypeAliasType.*Any"):
        decoder(ByName)


def test_decoders_are_kept_ready():
    assert decoder(dict[str, int]) is decoder(dict[str, int])


def test_types_are_named_as_one_writes_them():
    assert [type_name(one) for one in (None, type(None), int, Card, list[int], int | None, Any)] == [
        "None",
        "None",
        "int",
        "tests.core.test_values.Card",
        "list[int]",
        "int | None",
        "Any",
    ]


def test_nothing_of_pydantic_or_protobuf_is_imported():
    program = (
        "import sys; from perdure.core.types import decoder; from perdure.core.values import encode\n"
        "from perdure.errors import PerdureError\n"
        "try: encode(object())\n"
        "except PerdureError: pass\n"
        "try: decoder(range)\n"
        "except PerdureError: pass\n"
        "sys.exit(any(name.startswith(('pydantic', 'google')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- digests ----------------------------------------------------------------------------------------------------------


def test_a_digest_has_eight_bytes_and_tells_payloads_apart():
    assert digest(b"a") == digest(b"a") != digest(b"b")
    assert len(digest(b"")) == 8


UNORDERED = (
    "{'z': {'b', 'a', 'c', 'd'}, 'y': {frozenset({'p', 'q'}), frozenset({'r'}), frozenset({'s', 't'})},"
    " 'x': {1, 'a', None, 2.5, (1, 'b')}, 3: {('k', 2): 1, 'k': 2}, None: [{'u', 'v', 'w'}],"
    " 'o': Order({'m', 'n', 'o'}), 'p': Model(tags={'f', 'g', 'h'}), 'n': {float('nan'), 1.0}}"
)


def test_digests_are_the_same_under_any_hash_seed():
    program = (
        "import dataclasses, pydantic; from perdure.core.values import encode_for_digest\n"
        "@dataclasses.dataclass\nclass Order: tags: set\n"
        "class Model(pydantic.BaseModel): tags: set\n"
        f"print(encode_for_digest({UNORDERED}).hex())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


def test_digests_ignore_the_order_of_mappings_and_keep_that_of_lists():
    assert encode_for_digest({"a": 1, "b": 2}) == encode_for_digest({"b": 2, "a": 1})
    assert encode_for_digest([1, 2]) != encode_for_digest([2, 1])
    assert encode_for_digest([True]) != encode_for_digest([1])


@pytest.mark.parametrize(("value", "annotation"), SURVIVORS)
def test_whatever_can_be_recorded_has_a_digest(value: object, annotation: Any):
    assert encode_for_digest(value) == encode_for_digest(decoder(annotation)(encode(value)))


def test_unset_fields_have_no_part_in_a_digest():
    assert encode_for_digest(Node("a")) == encode_for_digest({"name": "a", "next": None})
    assert encode_for_digest(Node("a", extra=1)) != encode_for_digest(Node("a"))


def test_a_digest_of_what_cannot_be_encoded_names_it():
    for value in ([1, Plain()], cyclic()):
        with pytest.raises(Unencodable, match=r"^the input cannot be recorded: value"):
            encode_for_digest(value, "the input")


@pytest.mark.parametrize("size", [0, 1, 15, 16, 65_535, 65_536])
def test_headers_of_maps_and_arrays_are_msgpack(size: int):
    assert map_header(size) == encode(dict.fromkeys(range(size)))[: len(map_header(size))]
    assert encode_for_digest([b""] * size) == encode([b""] * size)


# the wall clock says nothing about a loaded machine
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# --- properties -------------------------------------------------------------------------------------------------------

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner), max_leaves=20
)


@unhurried
@given(values)
def test_any_builtin_value_survives(value: object):
    assert decoder(Any)(encode_as(value, Any, "it")) == value


@unhurried
@given(st.dictionaries(st.text(), st.lists(st.integers(0, 9) | st.text())))
def test_digests_do_not_depend_on_the_order_of_insertion(value: dict[str, list[int | str]]):
    assert encode_for_digest(value) == encode_for_digest(dict(reversed(value.items())))
    assert encode_for_digest(list(value)) == encode_for_digest(tuple(value))


@unhurried
@given(st.lists(st.builds(Card, st.text(), st.integers(0, 99)) | st.builds(Cash, st.integers(0, 99), st.just([1]))))
def test_a_list_of_two_dataclasses_survives(value: list[Card | Cash]):
    assert decoder(list[Card | Cash])(encode_as(value, list[Card | Cash], "it")) == value


@unhurried
@given(
    st.builds(
        Model,
        In=st.builds(Inner, when=st.just(WHEN)),
        price=st.decimals(allow_nan=False, allow_infinity=False),
        raw=st.binary(),
    )
)
def test_any_pydantic_model_survives(value: Model):
    assert decoder(Model)(encode_as(value, Model, "it")) == value


@unhurried
@given(st.text(st.characters()) | st.text(st.characters(categories=["Cs"])))
def test_text_survives_or_is_refused(text: str):
    try:
        payload = encode_as(text, str, "it")
    except Unencodable:
        with pytest.raises(UnicodeEncodeError):
            text.encode()
    else:
        assert decoder(str)(payload) == text


# --- what was recorded by classes that had fewer fields --------------------------------------------------------------
class Tagged(msgspec.Struct, tag="tagged"):
    a: int
    note: str = "none"


class Listed(msgspec.Struct, array_like=True):
    a: int
    note: str = "none"


class TaggedList(msgspec.Struct, array_like=True, tag=7):
    a: int
    note: str = "none"


class Renamed(msgspec.Struct, rename="camel"):
    an_int: int
    a_note: str = "none"


class Bare(msgspec.Struct, tag=True):
    pass


@pytest.mark.parametrize(
    ("value", "recorded"),
    [
        (Tagged(1), {"type": "tagged", "a": 1}),
        (Tagged(1, "x"), {"type": "tagged", "a": 1, "note": "x"}),
        (Listed(1), [1]),
        (TaggedList(1), [7, 1]),
        (TaggedList(1, "x"), [7, 1, "x"]),
        (Renamed(1), {"anInt": 1}),
        (Bare(), {"type": "Bare"}),
        ([Tagged(1), Listed(2)], [{"type": "tagged", "a": 1}, [2]]),
        ({"k": Renamed(1)}, {"k": {"anInt": 1}}),
    ],
    ids=str,
)
def test_a_struct_agrees_with_what_was_recorded_before_a_field_with_a_default_was_added(value: Any, recorded: Any):
    assert agrees(value, recorded)


@pytest.mark.parametrize(
    ("value", "recorded"),
    [
        (Tagged(1, "x"), {"type": "tagged", "a": 1}),
        (Tagged(1), {"type": "other", "a": 1}),
        (Tagged(1), {"a": 1}),
        (Tagged(1), {"type": "tagged"}),
        (Tagged(1), {"type": "tagged", "a": 1, "gone": 2}),
        (Tagged(1), ["tagged", 2]),
        (Listed(1, "x"), [1]),
        (Listed(1), [1, "none", "more"]),
        (TaggedList(1), [8, 1]),
        (TaggedList(1), []),
        (Renamed(1), {"an_int": 1}),
        (Renamed(1), 1),
    ],
    ids=str,
)
def test_a_struct_with_another_value_tag_or_field_does_not_agree_with_what_was_recorded(value: Any, recorded: Any):
    assert not agrees(value, recorded)
