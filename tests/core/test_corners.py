"""Corners that no other test of the core turns."""

from __future__ import annotations

import asyncio
import types
from typing import Annotated, Any, TypeVar

import pytest

from perdure.authoring.context import Context
from perdure.core.context import BodyContext
from perdure.core.failures import failure_of
from perdure.core.signature import Signature, may_be_context
from perdure.core.types import decoder
from perdure.core.values import encode
from perdure.errors import NonRetryable, Unencodable
from tests.core.driver import START, Driver, make_turn, step


def test_time_does_not_go_back_for_a_body_that_has_begun():
    async def body(_: Context) -> float:
        await step("a")
        return asyncio.get_running_loop().time()

    driver = Driver(body)
    driver.turn.wait_until(START.due - 5)
    assert driver.turn.waited() is None
    driver.finish()
    assert driver.value >= START.due


def test_interruption_after_the_body_went_on_is_no_part_of_what_is_kept():
    async def body(_: Context) -> None:
        one, other = asyncio.ensure_future(step("one")), asyncio.ensure_future(step("other"))
        await step("go")
        one.cancel()
        other.cancel()
        await asyncio.wait([one])
        asyncio.ensure_future(step("more")).add_done_callback(lambda _: None)
        await asyncio.wait([other])
        raise NonRetryable("by itself")

    driver = Driver(body)
    driver.returns(0)
    driver.interrupts(1)
    driver.interrupts(2)
    driver.finish()
    driver.retries()
    driver.finish()
    driver.check_replay()


class _Broken:
    """A loader whose source cannot be read."""

    def get_source(self, name: str) -> str:
        raise RuntimeError(f"no source of {name}")


def test_traceback_through_a_module_whose_loader_breaks_is_left_out():
    module = types.ModuleType("broken_module")
    module.__dict__.update({"__loader__": _Broken(), "__name__": "broken_module"})
    exec(compile("def fails():\n    raise ValueError('no')\n", "nowhere_to_be_found.py", "exec"), module.__dict__)
    with pytest.raises(ValueError, match="no") as caught:
        module.fails()
    failure = failure_of(caught.value)
    assert failure.message == "no"


def test_union_with_the_context_is_found_if_it_can_be_resolved():
    def fn(ctx: Any) -> None: ...

    context: type[BodyContext] = Context
    assert may_be_context(Context | None, fn, context)
    assert may_be_context("Context | None", test_union_with_the_context_is_found_if_it_can_be_resolved, context)
    assert not may_be_context("Nowhere | None", fn, context)
    assert not may_be_context(int, fn, context)
    assert not may_be_context(int | None, fn, context)


def test_annotated_context_is_the_context():
    async def takes(ctx: Annotated[Context, "a note"], n: int) -> None: ...

    assert Signature.of(takes, skip_context=Context).takes_context


def test_instance_that_is_given_by_hand_is_told_of():
    def method(self: Any, n: int) -> None: ...

    with pytest.raises(Unencodable, match="if this is a method, call it on an instance"):
        Signature.of(method).encode((object(), 1), {}, "the arguments of step 'method'")


def test_turn_of_a_start_that_was_due_later_begins_then():
    turn = make_turn(lambda _: step("a"))
    turn.wait_until(START.due)
    assert turn.loop.now == START.due


@pytest.mark.parametrize("value", [[1, [2]], []])
def test_typing_extensions_alias_of_itself_is_read(value: Any):
    typing_extensions = pytest.importorskip("typing_extensions")
    item = TypeVar("item")
    same = typing_extensions.TypeAliasType("same", item, type_params=(item,))
    assert decoder(list[same[Any]])(encode(value)) == value


def test_alias_that_is_named_twice_in_another_is_read():
    typing_extensions = pytest.importorskip("typing_extensions")
    number = typing_extensions.TypeAliasType("number", int)
    pair = typing_extensions.TypeAliasType("pair", tuple[number, number])
    assert decoder(pair)(encode((1, 2))) == (1, 2)
