"""Arguments are recorded by name, and come back by name and type."""

from __future__ import annotations

import enum
import functools
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar, Unpack

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.core import signature as module
from perdure.core.context import BodyContext
from perdure.core.signature import Signature, identity_of_arguments
from perdure.core.types import decoder
from perdure.core.values import encode
from perdure.errors import AnnotationUnresolved, InputRefused, NotAWorkflow, Undecodable, Unencodable

if TYPE_CHECKING:
    from somewhere import Context as Elsewhere  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
    from somewhere import Unseen  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

T = TypeVar("T")
WHERE = "the input of workflow 'f'"


class Context(BodyContext):
    pass


class Special(Context):
    pass


Alias = Context


@dataclass
class Order:
    id: str
    cents: int = 0


class Colour(enum.Enum):
    RED = "red"


class Options(TypedDict, total=False):
    deep: bool


class Plain:
    pass


async def one(name: str) -> str: ...
async def two(order: Order, colour: Colour = Colour.RED) -> Order | None: ...
async def defaults(a: int, b: int = 2, c: int = 3, *, d: int = 4) -> None: ...
async def keyword(a: int, *, b: int) -> None: ...
async def positional(a: int, b: int = 2, /, c: int = 3) -> None: ...
async def variadic(a: int, *rest: Order, b: int = 0, **more: Colour) -> None: ...
async def unpacked(*rest: Unpack[tuple[int, str]], **more: Unpack[Options]) -> None: ...  # noqa: UP044  the name
async def untyped(a, b=None, *rest, **more): ...  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]


UNTYPED: Callable[..., Any] = untyped  # pyright: ignore[reportUnknownVariableType]


async def nothing() -> None: ...
async def generic(value: T, again: list[T]) -> T: ...
async def later(value: Further) -> Further: ...
async def constrained(n: Annotated[int, msgspec.Meta(ge=1)]) -> None: ...


@dataclass
class Further:
    n: int


class Service:
    async def method(self, order: Order) -> Order: ...

    @staticmethod
    async def static(order: Order) -> Order: ...

    @classmethod
    async def of_class(cls, order: Order) -> Order: ...

    async def __call__(self, order: Order) -> Order: ...


def wrapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], dict[str, Any]]] = [
    (one, ("a",), {}, {"name": "a"}),
    (one, (), {"name": "a"}, {"name": "a"}),
    (two, (Order("1"),), {}, {"order": {"id": "1", "cents": 0}}),
    (two, (Order("1"), Colour.RED), {}, {"order": {"id": "1", "cents": 0}, "colour": "red"}),
    (two, (), {"colour": Colour.RED, "order": Order("1")}, {"order": {"id": "1", "cents": 0}, "colour": "red"}),
    (defaults, (1,), {}, {"a": 1}),
    (defaults, (1, 5), {}, {"a": 1, "b": 5}),
    (defaults, (1,), {"c": 6}, {"a": 1, "c": 6}),
    (defaults, (1,), {"d": 7}, {"a": 1, "d": 7}),
    (keyword, (1,), {"b": 2}, {"a": 1, "b": 2}),
    (positional, (1,), {}, {"a": 1}),
    (positional, (1,), {"c": 5}, {"a": 1, "c": 5}),
    (variadic, (1,), {}, {"a": 1}),
    (variadic, (1, Order("2"), Order("3")), {}, {"a": 1, "rest": [{"id": "2", "cents": 0}, {"id": "3", "cents": 0}]}),
    (variadic, (1,), {"z": Colour.RED, "b": 4, "y": Colour.RED}, {"a": 1, "b": 4, "more": {"y": "red", "z": "red"}}),
    (unpacked, (1, "a"), {"deep": True}, {"rest": [1, "a"], "more": {"deep": True}}),
    (UNTYPED, (1, [2], 3), {"c": 4}, {"a": 1, "b": [2], "rest": [3], "more": {"c": 4}}),
    (nothing, (), {}, {}),
    (generic, (1, [2]), {}, {"value": 1, "again": [2]}),
    (later, (Further(3),), {}, {"value": {"n": 3}}),
    (constrained, (3,), {}, {"n": 3}),
    (Service().method, (Order("1"),), {}, {"order": {"id": "1", "cents": 0}}),
    (Service.static, (Order("1"),), {}, {"order": {"id": "1", "cents": 0}}),
    (vars(Service)["static"], (Order("1"),), {}, {"order": {"id": "1", "cents": 0}}),
    (Service.of_class, (Order("1"),), {}, {"order": {"id": "1", "cents": 0}}),
    (Service(), (Order("1"),), {}, {"order": {"id": "1", "cents": 0}}),
    (functools.partial(two, colour=Colour.RED), (Order("1"),), {}, {"order": {"id": "1", "cents": 0}}),
    (functools.partial(defaults, 1), (5,), {}, {"b": 5}),
    (wrapped(two), (Order("1"),), {}, {"order": {"id": "1", "cents": 0}}),
    (wrapped(Service().method), (Order("1"),), {}, {"order": {"id": "1", "cents": 0}}),
    (print, (1, 2), {"end": ""}, {"args": [1, 2], "end": ""}),
    (max, (1, 2), {"key": None}, {"args": [1, 2], "kwargs": {"key": None}}),  # says nothing of what it takes
    (Order, ("1",), {}, {"id": "1"}),
]


def effect(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        bound = inspect.signature(fn).bind(*args, **kwargs)
    except ValueError:
        return {"args": args, "kwargs": kwargs}
    bound.apply_defaults()
    return dict(bound.arguments)


@pytest.mark.parametrize("case", range(len(CALLS)))
def test_arguments_are_recorded_by_name_and_make_the_same_call(case: int):
    fn, args, kwargs, recorded = CALLS[case]
    signature = Signature.of(fn)
    payload = signature.encode(args, kwargs, WHERE)
    assert decoder(Any)(payload) == recorded
    assert list(decoder(Any)(payload)) == [one.name for one in signature.parameters if one.name in recorded]
    assert signature.encode(args, kwargs, WHERE, check=False) == payload
    assert effect(fn, *signature.decode(payload)) == effect(fn, args, kwargs)


SAME: list[tuple[Callable[..., Any], list[tuple[tuple[Any, ...], dict[str, Any]]]]] = [
    (
        two,
        [
            ((Order("1"), Colour.RED), {}),
            ((Order("1"),), {"colour": Colour.RED}),
            ((), {"colour": Colour.RED, "order": Order("1")}),
        ],
    ),
    (variadic, [((1,), {"y": Colour.RED, "x": Colour.RED}), ((), {"x": Colour.RED, "y": Colour.RED, "a": 1})]),
]


@pytest.mark.parametrize(("fn", "calls"), SAME)
def test_the_same_call_is_the_same_however_it_is_written(fn: Callable[..., Any], calls: list[Any]):
    signature = Signature.of(fn)
    assert len({signature.encode(args, kwargs, WHERE) for args, kwargs in calls}) == 1
    assert len({signature.digest(args, kwargs) for args, kwargs in calls}) == 1


def test_digests_tell_calls_apart():
    signature = Signature.of(defaults)
    calls: list[Any] = [
        ((1,), {}),
        ((2,), {}),
        ((1, 2), {}),
        ((1,), {"c": 2}),
        ((1,), {"d": 2}),
        ((True,), {}),
        (("1",), {}),
    ]
    assert len({signature.digest(args, kwargs) for args, kwargs in calls}) == len(calls)
    assert {len(signature.digest(args, kwargs)) for args, kwargs in calls} == {8}


def test_digests_are_the_same_under_any_hash_seed():
    program = (
        "from perdure.core.signature import Signature\n"
        "def f(tags, **more): ...\n"
        "call = ({'a', 'b', 'c'},), {'d': {'e', 'f', 'g'}}\n"
        "print(Signature.of(f).digest(*call).hex(), Signature.of(f).identity(*call).hex())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


# --- what tells inputs apart ------------------------------------------------------------------------------------------
def test_the_identity_of_an_input_is_the_same_however_it_is_passed():
    for fn, calls in SAME:
        assert len({Signature.of(fn).identity(args, kwargs) for args, kwargs in calls}) == 1


def test_identities_tell_inputs_apart():
    def fn(a: Any, b: Any = 0, *rest: Any, c: Any = 0, **more: Any) -> None: ...

    signature = Signature.of(fn)
    calls: list[Any] = [
        *(((1,), {}), ((2,), {}), ((1, 2), {}), ((1, 2, 3), {}), ((1, [2, 3]), {}), ((1, [3, 2]), {}), ((True,), {})),
        *(((1,), {"c": 2}), ((1,), {"d": 2}), ((1,), {"c": 1, "d": 2}), ((1,), {"more": 2}), ((1, 2), {"c": 2})),
    ]
    assert len({signature.identity(args, kwargs) for args, kwargs in calls}) == len(calls)


def test_what_is_passed_after_a_gap_is_told_by_name():
    signature = Signature.of(defaults)
    assert signature.identity((1,), {"c": 2}) != signature.identity((1, 2), {})
    assert signature.identity((1,), {"c": 2}) != signature.identity((1,), {"b": 2})


def test_a_caller_who_knows_no_names_asks_for_the_same():
    assert Signature.of(one).identity((), {"name": "x"}) == identity_of_arguments(["x"], {})
    assert Signature.of(variadic).identity((1, 2, 3), {"x": 4}) == identity_of_arguments([1, 2, 3], {"x": 4})
    order = decoder(Order)(encode({"id": "1"}))
    assert vars(order) == {"id": "1"}  # msgspec leaves the default to the class, and would not write it either
    for same in (order, Order("1"), Order("1", 0), {"cents": 0, "id": "1"}):
        assert identity_of_arguments([same], {}) == identity_of_arguments([Order("1")], {})


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "args", "kwargs", "reason"),
    [
        (one, (), {}, "missing a required argument: 'name'"),
        (one, ("a", "b"), {}, "too many positional arguments"),
        (one, ("a",), {"nam": "b"}, "got an unexpected keyword argument 'nam'"),
        (one, ("a",), {"name": "b"}, "multiple values for argument 'name'"),
        (keyword, (1,), {}, "missing a required.* argument: 'b'"),
        (keyword, (1, 2), {}, "too many positional arguments"),
        (positional, (), {"a": 1}, "'a'"),
    ],
)
def test_arguments_that_do_not_match_are_refused_as_python_does(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], reason: str
):
    signature = Signature.of(fn)
    with pytest.raises(InputRefused, match=rf"^the input of workflow 'f': {fn.__name__}\(\): .*{reason}") as caught:
        signature.encode(args, kwargs, WHERE)
    assert isinstance(caught.value, TypeError)
    assert caught.value.parameter == ""
    with pytest.raises(InputRefused, match=rf"^the call of {fn.__name__}\(\): "):
        signature.digest(args, kwargs)


@pytest.mark.parametrize(
    ("fn", "args", "kwargs", "parameter", "reason"),
    [
        (one, (3,), {}, "name", "is a int, but one() takes str: Expected `str`, got `int`"),
        (two, (Order("1"), "blue"), {}, "colour", "Invalid enum value 'blue'"),
        (two, (Order(1),), {}, "order", "Expected `str`, got `int` - at `$.id`"),  # pyright: ignore[reportArgumentType]
        (variadic, (1, 2), {}, "rest", "at `$[0]`"),
        (variadic, (1,), {"x": 2}, "more", "at `$[...]`"),
        (constrained, (0,), {}, "n", "Expected `int` >= 1"),
    ],
)
def test_an_argument_of_the_wrong_type_is_refused_and_named(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], parameter: str, reason: str
):
    signature = Signature.of(fn)
    with pytest.raises(InputRefused, match=rf"^the input of workflow 'f': '{parameter}' is a ") as caught:
        signature.encode(args, kwargs, WHERE)
    assert caught.value.parameter == parameter
    assert reason in str(caught.value)
    payload = signature.encode(args, kwargs, WHERE, check=False)
    with pytest.raises(
        Undecodable, match=rf"^the recorded arguments of {fn.__name__}\(\) do not fit it: "
    ) as undecodable:
        signature.decode(payload)
    assert f"$.{parameter}" in str(undecodable.value)


def test_an_argument_that_cannot_be_encoded_is_named_with_the_function():
    signature = Signature.of(UNTYPED)
    for check in (True, False):
        with pytest.raises(Unencodable) as caught:
            signature.encode((1, {"conn": Plain()}), {}, WHERE, check=check)
        assert str(caught.value).startswith(
            f"{WHERE}: 'b' cannot be recorded: value['conn'] is a tests.core.test_signature.Plain; "
        )
    with pytest.raises(Unencodable) as caught:
        signature.digest((1,), {"b": Plain()})
    assert str(caught.value).startswith(
        "the call of untyped(): 'b' cannot be recorded: it is a tests.core.test_signature.Plain; "
    )
    assert caught.value.type == "tests.core.test_signature.Plain"


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "recorded", "reason"),
    [
        (one, {}, "missing required field `name`"),
        (one, {"name": "a", "other": 1}, "unknown field `other`"),
        (keyword, {"a": 1}, "missing required field `b`"),
        (one, ["a"], "Expected `object`, got `array`"),
        (variadic, {"a": 1, "new": 3}, "Expected `str`, got `int`"),
        (variadic, {"a": 1, 2: 3}, "Expected `str`"),
    ],
)
def test_recorded_arguments_that_no_longer_fit_say_which(fn: Callable[..., Any], recorded: object, reason: str):
    with pytest.raises(Undecodable) as caught:
        Signature.of(fn).decode(encode(recorded))
    assert reason in caught.value.reason
    assert caught.value.annotation == f"the parameters of {fn.__name__}()"


def test_damaged_arguments_are_undecodable():
    for payload in (b"", b"\xc1", b"\x81"):
        with pytest.raises(Undecodable):
            Signature.of(one).decode(payload)


def test_what_is_missing_takes_its_default_and_what_follows_is_still_by_position():
    assert Signature.of(defaults).decode(encode({"a": 1, "c": 5})) == ((1, 2, 5), {})
    assert Signature.of(defaults).decode(encode({"a": 1, "d": 5})) == ((1,), {"d": 5})
    assert Signature.of(positional).decode(encode({"a": 1, "c": 5})) == ((1, 2, 5), {})

    def spread(a: int = 1, *rest: int) -> None: ...

    assert Signature.of(spread).decode(encode({"rest": [2]})) == ((1, 2), {})
    assert Signature.of(spread).decode(encode({})) == ((), {})


def test_the_order_of_the_names_does_not_matter():
    assert Signature.of(two).decode(encode({"colour": "red", "order": {"id": "1"}})) == ((Order("1"), Colour.RED), {})


def test_unknown_names_go_where_any_name_is_taken():
    signature = Signature.of(variadic)
    assert signature.decode(encode({"a": 1, "gone": "red", "more": {"x": "red"}})) == (
        (1,),
        {"gone": Colour.RED, "x": Colour.RED},
    )


# --- types ------------------------------------------------------------------------------------------------------------


def test_types_are_those_of_what_is_recorded():
    signature = Signature.of(variadic)
    assert signature.types == {"a": int, "rest": list[Order], "b": int, "more": dict[str, Colour]}
    assert signature.returns is None or signature.returns is type(None)
    assert Signature.of(UNTYPED).types == {"a": Any, "b": Any, "rest": list[Any], "more": dict[str, Any]}
    assert Signature.of(UNTYPED).returns is Any
    assert Signature.of(one).returns is str
    assert Signature.of(later).returns is Further


def test_names_of_enclosing_functions_are_seen():
    @dataclass
    class Local:
        n: int

    async def uses(value: Local) -> None:
        assert Local

    assert Signature.of(uses).decode(encode({"value": {"n": 1}})) == ((Local(1),), {})


def test_a_name_that_is_not_assigned_yet_is_reported_when_it_is_needed():
    async def uses(value: Late) -> None:
        assert Late

    signature = Signature.of(uses, skip_context=Context)
    assert signature.digest((1,), {})
    with pytest.raises(AnnotationUnresolved, match="Late"):
        signature.encode((1,), {}, WHERE)

    class Late(TypedDict):
        n: int

    assert signature.encode(({"n": 1},), {}, WHERE)


async def unseen(order: Order, thing: list[Unseen]) -> Unseen: ...  # pyright: ignore[reportUnknownParameterType]
async def undecodable(thing: Plain) -> Plain: ...


def test_an_annotation_that_names_nothing_is_named_with_the_function():
    signature = Signature.of(UNSEEN)
    assert signature.digest((Order("1"), [1]), {})
    with pytest.raises(AnnotationUnresolved) as caught:
        signature.encode((Order("1"), []), {}, WHERE)
    assert str(caught.value) == (
        "unseen(): annotation list[Unseen] of parameter 'thing' cannot be resolved (name 'Unseen' is not defined): "
        "define what it names where the function can see it at run time, not in another function or under TYPE_CHECKING"
    )
    with pytest.raises(AnnotationUnresolved, match=r"^unseen\(\): annotation Unseen of its result cannot be resolved"):
        _ = signature.returns
    with pytest.raises(AnnotationUnresolved):
        signature.decode(b"\x80")


def test_an_annotation_that_is_written_out_and_names_nothing_is_named_too():
    def fn(value: Any) -> None: ...

    fn.__annotations__["value"] = list["Nope"]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
    with pytest.raises(AnnotationUnresolved, match=r"fn\(\): annotation list\['Nope'\] of parameter 'value'"):
        _ = Signature.of(fn).types


def test_an_annotation_that_nothing_decodes_is_named_with_the_function():
    signature = Signature.of(undecodable)
    for whose, needed in (("parameter 'thing'", lambda: signature.types), ("its result", lambda: signature.returns)):
        with pytest.raises(
            AnnotationUnresolved, match=rf"^undecodable\(\): {whose}: annotation .*Plain cannot be used"
        ):
            needed()


def test_what_cannot_be_called_is_refused():
    with pytest.raises(NotAWorkflow, match=r"^int cannot be called"):
        Signature.of(3)  # pyright: ignore[reportArgumentType]


def test_what_belongs_to_no_module_sees_no_names():
    assert Signature.of(str.upper).decode(encode({"self": "a"})) == (("a",), {})
    assert module._scope(str.upper) == ({}, {})  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


# --- the context ------------------------------------------------------------------------------------------------------


async def with_context(ctx: Context, order: Order) -> None: ...
async def with_special(ctx: Special, order: Order) -> None: ...
async def with_alias(ctx: Alias, order: Order) -> None: ...
async def with_unresolved(ctx: nowhere.Context, order: Order) -> None: ...  # noqa: F821  # pyright: ignore[reportUndefinedVariable, reportUnknownParameterType, reportUnknownMemberType]
async def with_another(ctx: Elsewhere, order: Order) -> None: ...  # pyright: ignore[reportUnknownParameterType]
async def with_order(order: Order, ctx: Context) -> None: ...


WITH_CONTEXT: list[Callable[..., Any]] = [with_context, with_special, with_alias, with_unresolved]
WITHOUT: list[Callable[..., Any]] = [with_another, with_order, one, nothing, UNTYPED]
UNSEEN: Callable[..., Any] = unseen  # pyright: ignore[reportUnknownVariableType]


@pytest.mark.parametrize("fn", WITH_CONTEXT)
def test_a_first_parameter_that_takes_the_context_is_no_part_of_the_call(fn: Callable[..., Any]):
    signature = Signature.of(fn, skip_context=Context)
    assert signature.takes_context
    assert [parameter.name for parameter in signature.parameters] == ["order"]
    assert signature.decode(signature.encode((Order("1"),), {}, WHERE)) == ((Order("1"),), {})
    with pytest.raises(InputRefused, match="too many positional arguments"):
        signature.encode((Context(), Order("1")), {}, WHERE)


def test_a_context_whose_annotation_is_no_string_is_recognized():
    def fn(ctx: Any, order: Any) -> None: ...

    fn.__annotations__.update(ctx=Context, order=Order)
    assert Signature.of(fn, skip_context=Context).takes_context


@pytest.mark.parametrize("fn", WITHOUT)
def test_other_first_parameters_are_kept(fn: Callable[..., Any]):
    assert not Signature.of(fn, skip_context=Context).takes_context


def test_without_a_context_to_skip_none_is_skipped():
    assert not Signature.of(with_context).takes_context


def test_self_of_a_method_can_be_left_out():
    signature = Signature.of(Service.method, skip_self=True)
    assert signature.name == "Service.method"
    assert signature.decode(signature.encode((Order("1"),), {}, WHERE)) == ((Order("1"),), {})


def test_texts_use_the_name_of_the_function_that_was_written():
    assert Signature.of(functools.partial(two)).name == "two"
    assert Signature.of(Service()).name == "Service.__call__"


# the wall clock says nothing about a loaded machine
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# --- properties -------------------------------------------------------------------------------------------------------

numbers = st.integers(0, 9)
orders = st.builds(Order, st.text(), numbers)
colours = st.just(Colour.RED)


@unhurried
@given(
    st.tuples(numbers) | st.tuples(numbers, orders) | st.tuples(numbers, orders, orders),
    st.fixed_dictionaries({}, optional={"b": numbers, "x": colours, "y": colours, "a b": colours, "more": colours}),
)
def test_any_call_comes_back(args: tuple[Any, ...], kwargs: dict[str, Any]):
    signature = Signature.of(variadic)
    back = signature.decode(signature.encode(args, kwargs, WHERE))
    assert back == (args, kwargs)
    assert signature.encode(*back, WHERE) == signature.encode(args, kwargs, WHERE)
    assert signature.digest(*back) == signature.digest(args, kwargs)


@unhurried
@given(st.tuples(numbers, numbers, numbers, numbers), st.sets(st.sampled_from("bcd")), st.sampled_from([1, 2, 3]))
def test_digest_and_record_do_not_depend_on_how_arguments_are_passed(
    values: tuple[int, ...], given: set[str], split: int
):
    named = dict(zip("abcd", values, strict=True))
    passed = {name: value for name, value in named.items() if name == "a" or name in given}
    leading: list[int] = []
    for name in "abc"[:split]:
        if name not in passed:
            break
        leading.append(passed[name])
    rest = {name: value for name, value in reversed(passed.items()) if name not in "abc"[: len(leading)]}
    signature = Signature.of(defaults)
    assert signature.encode(tuple(leading), rest, WHERE) == signature.encode((), passed, WHERE)
    assert signature.digest(tuple(leading), rest) == signature.digest((), passed)


@pytest.mark.parametrize("value", [2**70, "\ud800"], ids=repr)
def test_digest_of_what_no_encoding_holds_names_the_parameter(value: object) -> None:
    def takes(first: int, second: object) -> None: ...

    with pytest.raises(Unencodable, match="second"):
        Signature.of(takes).digest((1, value), {})
