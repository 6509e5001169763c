"""A field with a default may be added to a class while invocations that pass it are in flight."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pydantic
import pytest

from perdure.core.journal import CallChild, CallStep, Start, changed_arguments
from perdure.core.signature import Signature
from perdure.core.types import decoder
from perdure.core.values import Field, agrees, always, encode, encode_for_digest, is_alike, never
from perdure.errors import Diverged
from perdure.testing import replay
from tests.core import new_fields
from tests.core.new_fields import KINDS, export, program

GOLDEN = Path(__file__).parent / "golden_fields"
DEFAULTS = ('str = ""', "int | None = None", "tuple[int, ...] = ()")


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("kind", KINDS)
async def test_new_field_with_a_default_is_safe_for_steps_children_sends_and_state(kind: str, default: str) -> None:
    history = await export(kind)
    replay(program(kind), history)
    replay(program(kind, default), history)


@pytest.mark.parametrize("kind", KINDS)
def test_histories_of_a_release_that_counted_every_field_replay_with_and_without_a_new_one(kind: str) -> None:
    history = (GOLDEN / f"{kind}.json").read_bytes()
    replay(program(kind), history)
    for default in DEFAULTS:
        replay(program(kind, default), history)


@pytest.mark.parametrize("default", ["list[int] = dataclasses.field(default_factory=list)", "float = 1e300"])
async def test_default_may_come_from_a_factory(default: str) -> None:
    replay(program("dataclass", default), await export("dataclass"))


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (("pay(order, [", "pay(Order(id, 6), ["), "with another value of 'order'"),
        (("dict(a=order)", "dict(b=order)"), "with another value of 'by_name'"),
        (("await child(order)", "await child(Order(9))"), "with another value of 'order'"),
        (("ctx.send(sent, order)", "ctx.send(sent, Order(9))"), "with another value of 'order'"),
        (("pay(order, [", "pay(Order(7), [Order(3),"), "with another value of 'order' and 'others'"),
    ],
)
@pytest.mark.parametrize("golden", [False, True])
async def test_divergence_names_the_argument_that_changed(
    edit: tuple[str, str], text: str, golden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = (GOLDEN / "dataclass.json").read_bytes() if golden else await export("dataclass")
    monkeypatch.setattr("tests.core.new_fields.PROGRAM", edited(*edit))
    with pytest.raises(Diverged) as raised:
        replay(program("dataclass"), history)
    # a history of the earlier release has the digest of all arguments of a step, and the whole input of a child
    assert (text in str(raised.value)) is (not golden or ("pay" not in edit[0] and "dict" not in edit[0]))


def edited(old: str, new: str) -> str:
    assert old in new_fields.PROGRAM
    return new_fields.PROGRAM.replace(old, new)


@pytest.mark.parametrize("default", ["str", 'str = "x"'])
async def test_value_other_than_the_default_counts(default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    history = await export("dataclass", 'str = ""')
    monkeypatch.setattr("tests.core.new_fields.PROGRAM", edited("order = Order(id)", 'order = Order(id, 5, "y")'))
    with pytest.raises(Diverged):
        replay(program("dataclass", 'str = ""'), history)


# --- the parts --------------------------------------------------------------------------------------------------------
class Extra(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    n: int = 1


class AsText(pydantic.BaseModel):
    n: int = 1

    @pydantic.model_serializer
    def _as_text(self) -> str:
        return f"#{self.n}"


class Doubles(pydantic.BaseModel):
    n: int = 1

    @pydantic.field_serializer("n")
    def _doubled(self, n: int) -> int:
        return n * 2


class Made(pydantic.BaseModel):
    id: str = pydantic.Field(default_factory=lambda: str(uuid4()))
    first: int = pydantic.Field(default_factory=lambda data: len(data))
    broken: int = pydantic.Field(default_factory=lambda: 1 // 0)


def omitting(value: object) -> bytes:
    return encode_for_digest(value, omits=always)


def test_models_with_extra_fields_and_serializers_have_digests_without_defaults():
    assert omitting(Extra(n=1)) == omitting({})
    assert omitting(Extra.model_validate({"z": 2, "a": 3})) == omitting({"a": 3, "z": 2})
    assert omitting(AsText(n=1)) == omitting("#1")
    assert omitting(Doubles(n=1)) == omitting({})
    assert omitting(Doubles(n=2)) == omitting({"n": 4})


def test_default_that_is_another_each_time_or_cannot_be_made_counts():
    value = Made(id="i", first=1, broken=2)
    assert omitting(value) == omitting({"id": "i", "first": 1, "broken": 2})


def test_values_agree_with_what_was_recorded_of_them():
    values: list[object] = [Extra.model_validate({"z": 2}), AsText(n=3), Doubles(n=3), {"a": [1]}]
    for value in values:
        assert agrees(value, decoder(Any)(encode(value)))
    assert not agrees(AsText(n=3), {"n": 3})
    assert not agrees({"a": 1}, {"b": 1})
    assert not agrees(Extra(n=2), {})
    assert agrees(Extra(n=1), {})
    assert agrees(decoder(Optional)(encode({})), {})


class Optional(msgspec.Struct):
    n: int | msgspec.UnsetType = msgspec.UNSET


class NoArguments:
    """Says that nothing changed."""

    def repeat(self, recorded: CallStep | Start, /) -> bool:
        return False

    def changed(self, recorded: CallStep | Start, /) -> list[str]:
        return []


def test_arguments_of_other_commands_are_not_compared():
    start = Start("i", "handler", b"\x80", 1.0, 1.0, 7)
    other = Start("i", "other", b"\x80", 1.0, 1.0, 7)
    step = CallStep(0, "a", b"1")
    assert changed_arguments(step, step, None) == ""
    for issued, recorded in (
        (step, CallStep(0, "b", b"1")),
        (step, CallChild(0, start)),
        (CallChild(0, start), CallChild(0, other)),
        (CallChild(0, start), None),
    ):
        assert changed_arguments(issued, recorded, NoArguments()) == ""


def test_the_one_argument_of_a_step_is_named_and_several_only_if_they_can_be_told_apart():
    def one(n: int) -> None: ...
    def two(n: int, m: int = 0) -> None: ...

    given = Signature.of(one).given((2,), {})
    assert given.changed(CallStep(0, "one", b"digest")) == ["n"]
    assert Signature.of(two).given((2,), {"m": 1}).changed(CallStep(0, "two", b"digest")) == []


def test_values_that_are_recorded_alike_are_alike():
    assert is_alike({1, 2}, [2, 1])
    assert not is_alike(Doubles(n=1), Doubles(n=2))
    assert is_alike(Hides(n=1), Hides(n=1))
    assert not is_alike(Hides(n=1), {"n": 1})


class Hides(pydantic.BaseModel):
    n: int
    _own: object = pydantic.PrivateAttr(default_factory=object)

    @pydantic.field_serializer("n")
    def _as_it_is(self, n: int) -> int:
        return n


def test_nothing_is_omitted_from_what_tells_starts_apart():
    assert encode_for_digest(Extra(n=1), omits=never) == encode_for_digest({"n": 1})
    assert never(Extra, Field("n", b"")) is False
