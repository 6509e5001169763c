"""A field with a default may be added to a class while invocations that pass it are in flight."""

from __future__ import annotations

from pathlib import Path

import pytest

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
