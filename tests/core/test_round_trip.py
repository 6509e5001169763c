"""What is recorded comes back as what it was, or is refused before it is recorded; and is not validated again."""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict, defaultdict
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
import pytest
from typing_extensions import TypeAliasType

from perdure.core.recording import encode_as
from perdure.core.signature import Signature
from perdure.core.types import decoder, validator
from perdure.core.values import encode
from perdure.errors import Undecodable, Unencodable

T = TypeVar("T")
PAST = datetime(2001, 2, 3, tzinfo=UTC)
WHERE = "the result of step 'greet'"


def back(value: object, annotation: Any) -> Any:
    return decoder(annotation)(encode_as(value, annotation, WHERE))


# --- subclasses, and other classes ------------------------------------------------------------------------------------
@dataclasses.dataclass
class Base:
    x: int


@dataclasses.dataclass
class Derived(Base):
    z: int = 0


@dataclasses.dataclass
class Same(Base):
    pass


@dataclasses.dataclass
class Other:
    x: int


@dataclasses.dataclass
class Holder:
    one: Base
    many: list[Base] = dataclasses.field(default_factory=list[Base])


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: int


@dataclasses.dataclass(frozen=True)
class FrozenDerived(Frozen):
    z: int = 0


class Model(pydantic.BaseModel):
    x: int


class DerivedModel(Model):
    z: int = 0


class Record(msgspec.Struct):
    x: int


class DerivedRecord(Record):
    z: int = 0


@attrs.define
class Defined:
    x: int


@attrs.define
class DerivedDefined(Defined):
    z: int = 0


@attrs.define
class Hidden:
    x: int
    _y: int = 0


@attrs.define
class HoldsHidden:
    hidden: Hidden


@pytest.mark.parametrize(
    ("value", "annotation", "path", "text"),
    [
        (Derived(1, 2), Base, "", "it is a tests.core.test_round_trip.Derived, and would come back as a "),
        (Derived(1, 2), Base, "", "without 'z'"),
        (Same(1), Base, "", "annotate it as tests.core.test_round_trip.Same"),
        (Other(1), Base, "", "come back as a tests.core.test_round_trip.Base"),
        ([Base(1), Derived(1)], list[Base], "[1]", "value[1] is a tests.core.test_round_trip.Derived"),
        ({"a": (Derived(1),)}, dict[str, tuple[Base, ...]], "['a'][0]", "Derived"),
        ({FrozenDerived(1)}, set[Frozen], " item FrozenDerived(x=1, z=0)", "FrozenDerived"),
        (Holder(Derived(1)), Holder, ".one", "value.one is a"),
        (Holder(Base(1), [Same(2)]), Holder, ".many[0]", "value.many[0] is a"),
        (DerivedModel(x=1), Model, "", "without 'z'"),
        ([DerivedModel(x=1)], list[Model], "[0]", "without 'z'"),
        (DerivedRecord(1), Record, "", "without 'z'"),
        (DerivedDefined(1), Defined, "", "without 'z'"),
        (Derived(1), Base | None, "", "without 'z'"),
        (Same(1), Base | Same, "", "such as `kind: Literal[...]`"),
        (Hidden(1, 5), Hidden, "", "whose field '_y' would be lost"),
        (HoldsHidden(Hidden(1)), HoldsHidden, ".hidden", "whose field '_y' would be lost"),
        ([Hidden(1)], list[Hidden], "[0]", "rename it"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused_before_it_is_recorded(
    value: object, annotation: Any, path: str, text: str
):
    with pytest.raises(Unencodable) as raised:
        encode_as(value, annotation, WHERE)
    assert str(raised.value).startswith(f"{WHERE} cannot be recorded: ")
    assert text in str(raised.value)
    assert raised.value.path == path


def test_refusal_of_an_argument_names_it():
    async def takes(base: Base) -> None: ...

    with pytest.raises(
        Unencodable, match=r"^workflow 'w': 'base' cannot be recorded: it is a .*Derived, and would come"
    ):
        Signature.of(takes).encode((Derived(1, 2),), {}, "workflow 'w'")


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Base(1), Base | Derived),
        (Derived(1), Base | Derived),
        (Derived(1, 2), Derived | Base),
        (Base(1), Base | Same),
        ([Base(1), Derived(1), Derived(1, 5)], list[Base | Derived]),
        (Model(x=1), Model | DerivedModel),
        (DerivedModel(x=1), DerivedModel | Model),
        (Defined(1), Defined | DerivedDefined),
        (DerivedDefined(1), Defined | DerivedDefined | None),
        (Record(1), Record | DerivedRecord),
        (Holder(Base(1), [Base(2)]), Holder),
    ],
)
def test_member_of_a_union_of_a_class_and_those_derived_from_it_comes_back_as_its_class(value: Any, annotation: Any):
    found = back(value, annotation)
    assert (found, type(found)) == (value, type(value))


class Box(pydantic.BaseModel, Generic[T]):
    item: T


class Colour(enum.Enum):
    RED = 1
    SCARLET = 1  # noqa: PIE796  an alias
    BLUE = 2


class Options(TypedDict, total=False):
    name: str
    size: int


class Pair(NamedTuple):
    one: Base
    n: int = 3


@dataclasses.dataclass(slots=True, kw_only=True)
class Slots:
    n: int
    computed: int = dataclasses.field(init=False, default=4)


UserId = NewType("UserId", int)


class Text(str):
    __slots__ = ()


class Raw(bytes):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Box[int](item=3), Box[int]),
        (Box[Model](item=Model(x=1)), Box[Model]),
        (Box(item=3), Box[int]),
        (Colour.SCARLET, Colour),
        ({"size": 3}, Options),
        (Pair(Base(1)), Pair),
        (Slots(n=1), Slots),
        (UserId(4), UserId),
        (Text("t"), str),
        (OrderedDict([("b", 1), ("a", 2)]), dict[str, int]),
        (defaultdict(list[int], a=[1]), dict[str, list[int]]),
        (float("inf"), float),
        (Decimal("1.500"), Decimal),
        (2**63, int),
        (True, bool | int),
        ({1: Base(2)}, dict[int, Base]),
        (frozenset({Frozen(1)}), frozenset[Frozen]),
    ],
)
def test_odd_values_come_back_equal(value: Any, annotation: Any):
    assert back(value, annotation) == value


@pytest.mark.parametrize("value", [2**64, "\ud800", {1, "\udfff"}, -(2**63) - 1])
def test_what_no_journal_can_hold_is_refused(value: object):
    with pytest.raises(Unencodable):
        encode_as(value, type(value), WHERE)


def test_union_of_a_date_and_text_is_refused_for_what_could_be_either():
    with pytest.raises(Unencodable, match=r"it fits datetime\.date and str"):
        encode_as(date(2026, 1, 1), date | str, WHERE)


def test_instance_of_a_class_that_was_defined_anew_is_taken_as_one_of_it():
    old = dataclasses.make_dataclass("Base", [("x", int)])
    old.__module__, old.__qualname__ = Base.__module__, Base.__qualname__
    assert back(old(1), Base) == Base(1)


@pytest.mark.parametrize(("fields", "named"), [(["x", "note"], "'note'"), (["x", "a", "b"], "'a' and 'b'")])
def test_instance_of_a_class_that_was_defined_anew_with_other_fields_is_refused(fields: list[str], named: str):
    anew = dataclasses.make_dataclass("Base", [(name, int, 0) for name in fields])
    anew.__module__, anew.__qualname__ = Base.__module__, Base.__qualname__
    for value, annotation in ((anew(1), Base), ([anew(1)], list[Base])):
        with pytest.raises(Unencodable, match=f"was defined anew with other fields .{named}. than"):
            encode_as(value, annotation, WHERE)


# --- not validated again ----------------------------------------------------------------------------------------------
class Deadline(pydantic.BaseModel):
    due: pydantic.FutureDatetime
    day: pydantic.FutureDate | None = None
    more: list[pydantic.FutureDatetime] = []


class Strict(pydantic.BaseModel):
    """Its validators accept nothing any more, and would change what they accept."""

    model_config = pydantic.ConfigDict(frozen=True)
    name: Annotated[str, pydantic.AfterValidator(lambda value: value + "!")]
    size: Annotated[int, pydantic.Field(gt=100)] = 7
    inner: Model | None = None
    _cache: dict[str, int] = pydantic.PrivateAttr(default_factory=dict[str, int])

    @pydantic.field_validator("size", mode="before")
    @classmethod
    def _never(cls, value: int) -> int:
        raise ValueError("no more")

    @pydantic.model_validator(mode="after")
    def _nor_as_a_whole(self) -> Strict:
        raise ValueError("nor this")

    @pydantic.computed_field
    @property
    def length(self) -> int:
        return len(self.name)

    def remember(self) -> int:
        self._cache["length"] = self.length
        return self._cache["length"]


def strict() -> Strict:
    return Strict.model_construct(name="n", size=1, inner=Model(x=2))


def test_datetime_that_was_in_the_future_when_it_was_recorded_comes_back():
    value = Deadline.model_construct(due=PAST, day=PAST.date(), more=[PAST])
    assert decoder(Deadline)(encode(value)) == value
    assert back(value, Deadline) == value
    with pytest.raises(Undecodable):
        validator(Deadline)(encode(value))


@pytest.mark.parametrize("annotation", [Strict, Strict | None, list[Strict], dict[str, Strict], Strict | Model])
def test_validators_do_not_run_when_a_model_is_read(annotation: Any):
    value = strict()
    held = [value] if annotation == list[Strict] else {"a": value} if annotation == dict[str, Strict] else value
    found = back(held, annotation)
    assert found == held
    one = found
    if annotation == list[Strict]:
        one = found[0]
    elif annotation == dict[str, Strict]:
        one = found["a"]
    assert isinstance(one.inner, Model)
    assert (one.length, one.remember(), one.model_fields_set) == (1, 1, {"name", "size", "inner"})


def test_validators_do_not_run_within_a_dataclass_an_argument_or_a_root():
    @dataclasses.dataclass
    class Holds:
        one: Strict

    class Root(pydantic.RootModel[list[Strict]]):
        pass

    async def takes(one: Strict, *, other: Strict | None = None) -> None: ...

    assert back(Holds(strict()), Holds) == Holds(strict())
    root = Root.model_construct(root=[strict()])
    assert back(root, Root) == root
    signature = Signature.of(takes)
    payload = signature.encode((strict(),), {"other": strict()}, "workflow 'w'")
    assert signature.decode(payload) == ((strict(),), {"other": strict()})


class Versioned(pydantic.BaseModel):
    name: str
    added: int = 7
    made: list[int] = pydantic.Field(default_factory=lambda: [1])
    of_name: str = pydantic.Field(default_factory=lambda data: data["name"] + "?", alias="named")


def test_new_fields_of_a_model_have_their_defaults():
    assert decoder(Versioned)(encode({"name": "n"})) == Versioned(name="n")


class Aliased(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    one: int = pydantic.Field(alias="two")
    two: int = pydantic.Field(alias="one")


def test_aliases_that_cross_and_extra_fields_come_back():
    value = Aliased(two=1, one=2, more=[3])  # pyright: ignore[reportCallIssue]
    found = back(value, Aliased)
    assert (found, found.model_extra) == (value, {"more": [3]})


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: Annotated[int, pydantic.Field(le=9)]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    lives: int


class Owner(pydantic.BaseModel):
    pet: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
    small_or_large: Annotated[int, pydantic.Field(lt=10)] | Annotated[float, pydantic.Field(gt=100)] = 1


def test_discriminated_unions_come_back_as_the_class_they_were():
    for pet in (Cat.model_construct(lives=12), Dog(lives=1)):
        value = Owner.model_construct(pet=pet, small_or_large=50)
        assert type(back(value, Owner).pet) is type(pet)
        assert back(value, Owner) == value


class Low(pydantic.BaseModel):
    n: Annotated[int, pydantic.Field(lt=0)]


class High(pydantic.BaseModel):
    n: Annotated[int, pydantic.Field(ge=0)]


def test_union_that_only_validators_tell_apart_comes_back():
    assert [back(value, Low | High) for value in (Low(n=-1), High(n=1))] == [Low(n=-1), High(n=1)]


class Custom(pydantic.BaseModel):
    secret: pydantic.ByteSize
    url: pydantic.HttpUrl
    counts: Annotated[dict[str, int], pydantic.Field(min_length=1)]


def test_types_that_only_pydantic_knows_come_back():
    value = Custom(secret=pydantic.ByteSize(3), url=pydantic.HttpUrl("https://a.example/"), counts={"a": 1})
    assert back(value, Custom) == value


class Written(pydantic.BaseModel):
    n: int

    @pydantic.field_serializer("n")
    def _as_text(self, n: int) -> str:
        return f"#{n}"

    @pydantic.field_validator("n", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return value.removeprefix("#") if isinstance(value, str) else value


def test_model_with_serializers_is_read_by_its_validators():
    assert back(Written(n=3), Written) == Written(n=3)


class Remembers(pydantic.BaseModel):
    n: int
    _doubled: int = pydantic.PrivateAttr(default=0)

    def model_post_init(self, context: Any, /) -> None:
        self._doubled = self.n * 2
        self.n += 1
        if self.n > 5:
            raise ValueError("too large by now")


def test_hook_of_a_model_runs_and_neither_changes_nor_refuses_what_was_recorded():
    value = Remembers(n=1)
    found = back(value, Remembers)
    assert (found.n, found._doubled) == (2, 4)  # noqa: SLF001
    assert decoder(Remembers)(encode({"n": 6})).n == 6


def test_builtin_types_given_for_a_model_are_validated_once_and_recorded_as_the_model_holds_them():
    class Mail(pydantic.BaseModel):
        to: Annotated[str, pydantic.AfterValidator(str.lower)]
        count: Annotated[int, pydantic.Field(gt=0)]

    payload = encode_as({"to": "A@B", "count": "3"}, Mail, WHERE)
    assert decoder(Any)(payload) == {"to": "a@b", "count": 3}
    with pytest.raises(Unencodable, match="greater than 0"):
        encode_as([{"to": "A@B", "count": 0}], list[Mail], WHERE)


# --- hooks of other classes -------------------------------------------------------------------------------------------
closed: list[bool] = []
"""Not empty when hooks accept nothing any more."""


@dataclasses.dataclass
class Counts:
    n: int
    doubled: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        self.n += 1
        self.doubled = self.n * 2
        self.seen = "by its hook"
        if closed:
            raise ValueError("closed")


class CountsInStruct(msgspec.Struct, frozen=True, tag="counted"):
    n: int

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "n", self.n + 1)
        if closed:
            raise ValueError("closed")


class CountsInArray(msgspec.Struct, kw_only=True, rename="camel"):
    one_name: int
    other_name: Counts | None = None

    def __post_init__(self) -> None:
        self.one_name += 1
        if closed:
            raise KeyError("closed")


def _open(*_: object) -> None:
    if closed:
        raise ValueError("closed")


@attrs.define
class CountsInAttrs:
    n: int = attrs.field(validator=_open)
    more: list[Counts] = attrs.field(factory=list[Counts])

    def __attrs_post_init__(self) -> None:
        self.n += 1


@attrs.frozen(kw_only=True)
class Validated:
    n: int = attrs.field(validator=_open, converter=lambda n: n + 1)


@dataclasses.dataclass
class HoldsHooked:
    one: Counts
    by_name: dict[str, tuple[CountsInStruct, ...]]
    either: Counts | None = None


HOOKED: list[tuple[Any, Any]] = [
    (Counts(1), Counts),
    ([Counts(1)], list[Counts]),
    (CountsInStruct(1), CountsInStruct),
    (CountsInArray(one_name=1, other_name=Counts(4)), CountsInArray | None),
    (CountsInAttrs(1, [Counts(3)]), CountsInAttrs),
    (Validated(n=1), Validated),
    (HoldsHooked(Counts(1), {"a": (CountsInStruct(2),)}), HoldsHooked),
    (HoldsHooked(Counts(1), {}, Counts(7)), Annotated[HoldsHooked, "note"]),
    ({"a": (1, Counts(2))}, dict[str, tuple[int, Counts]]),
]


@pytest.mark.parametrize(("value", "annotation"), HOOKED)
@pytest.mark.parametrize("is_closed", [False, True])
def test_hooks_of_classes_neither_change_nor_refuse_what_was_recorded(
    value: Any, annotation: Any, is_closed: bool, monkeypatch: pytest.MonkeyPatch
):
    async def takes(one: Any, *, other: int = 0) -> None: ...

    takes.__annotations__["one"] = annotation

    signature = Signature.of(takes)
    recorded, call = encode_as(value, annotation, WHERE), signature.encode((value,), {}, "workflow 'w'")
    monkeypatch.setattr(f"{__name__}.closed", [True] if is_closed else [])
    assert decoder(annotation)(recorded) == value
    assert signature.decode(call) == ((value,), {})
    assert encode_as(value, annotation, WHERE) == recorded


def test_hook_still_makes_what_is_no_field():
    assert back(Counts(1), Counts).seen == "by its hook"


def test_hook_of_what_is_given_as_builtin_types_runs_once(monkeypatch: pytest.MonkeyPatch):
    payload = encode_as({"n": 1}, Counts, WHERE)
    assert decoder(Counts)(payload).n == 2
    monkeypatch.setattr(f"{__name__}.closed", [True])
    with pytest.raises(Unencodable, match="closed"):
        encode_as({"n": 1}, Counts, WHERE)


class Forbids(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    n: int


def test_model_that_forbids_other_fields_refuses_those_that_were_recorded():
    with pytest.raises(Undecodable, match="Extra inputs are not permitted"):
        decoder(Forbids)(encode({"n": 1, "gone": 2}))


def test_builtin_types_given_under_an_annotation_that_cannot_be_hashed_are_taken():
    assert back({"x": 1}, Annotated[Model, []]) == Model(x=1)
    assert back(Model(x=1), Annotated[Model, []]) == Model(x=1)


def test_recorded_object_without_a_required_field_is_refused():
    for plain in ({}, {"n": "text"}, [1]):
        with pytest.raises(Undecodable):
            decoder(Counts)(encode(plain))


def test_hooked_members_of_unions_come_back_as_what_they_were():
    holder = HoldsEither(Counts(1), [Counts(2), 3, None])
    assert back(holder, HoldsEither) == holder
    assert back({Frozen(1), 2}, set[Frozen | int]) == {Frozen(1), 2}
    assert decoder(HoldsEither)(encode({"one": {"n": 1, "gone": 1}, "many": []})).one.n == 1


@dataclasses.dataclass
class HoldsEither:
    one: int | Counts
    many: list[Counts | int | None]
    frozen: frozenset[FrozenHooked] = frozenset()


@dataclasses.dataclass(frozen=True)
class FrozenHooked:
    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", self.n + 1)


def test_hooked_items_of_sets_come_back_as_what_they_were():
    holder = HoldsEither(1, [], frozenset({FrozenHooked(3), FrozenHooked(5)}))
    assert back(holder, HoldsEither) == holder


alias: Any = TypeAliasType
Counted = alias("Counted", Counts)
CountedTree = alias("CountedTree", "Counts | list[CountedTree]")


def test_hooked_class_under_a_named_alias_comes_back():
    assert back(Counts(1), Counted) == Counts(1)
    assert back([Counts(1), [Counts(2)]], CountedTree) == [Counts(1), [Counts(2)]]
