from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click
import pytest

from perdure.authoring.context import Context
from perdure.authoring.workflow import Workflow, workflow
from perdure.cli.arguments import Arguments, numbered


@dataclass
class Cart:
    user: str
    cents: int = 0


@workflow
async def hello(name: str) -> str:
    return name


@workflow
async def checkout(ctx: Context, cart: Cart, discount: int = 0, *, note: str | None = None) -> None: ...


@workflow
async def everything(a: str, /, *rest: int, flag: bool = False, **others: float) -> None: ...


@workflow
async def untyped(value) -> None: ...  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]


@workflow
async def mixed(value: str | int) -> None: ...


def passed(of: Workflow[..., Any], *texts: str, number: int = 1) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return Arguments(of, texts).of_run(number)


def test_arguments_are_taken_in_order_and_by_name() -> None:
    assert passed(checkout, '{"user": "u"}', "5", "note=hi") == ((Cart("u"), 5), {"note": "hi"})
    assert passed(checkout, "discount=5", 'cart={"user": "u"}') == ((), {"discount": 5, "cart": Cart("u")})
    assert passed(everything, "x", "1", "2", "flag=true", "tax=0.5") == (("x", 1, 2), {"flag": True, "tax": 0.5})


@pytest.mark.parametrize("text", ["greeting=World", "=World", "a b=c", "name", "x==", "NAME=World", " name=World"])
def test_text_with_an_equals_sign_is_passed_as_it_is_unless_a_parameter_has_that_name(text: str) -> None:
    assert passed(hello, text) == ((text,), {})


def test_text_after_the_first_equals_sign_is_the_value() -> None:
    assert passed(hello, "name=a=b") == ((), {"name": "a=b"})


def test_quotes_make_text_of_what_looks_like_a_name() -> None:
    assert passed(hello, '"name=World"') == (("name=World",), {})


def test_positional_only_parameter_has_no_name_on_the_command_line() -> None:
    assert passed(everything, "a=1") == (("a=1",), {})


@pytest.mark.parametrize(
    ("of", "text", "number", "value"),
    [
        (hello, "user-{i}", 1, "user-001"),
        (hello, "user-{i}", 1000, "user-1000"),
        (hello, "{i}", 7, "007"),
        (hello, "{i}-{i}", 7, "007-007"),
        (untyped, "{i}", 7, 7),
        (untyped, "{i}", 100, 100),
        (mixed, "{i}", 7, 7),
        (mixed, "x{i}", 7, "x007"),
        (checkout, '{"user": "user-{i}"}', 7, Cart("user-007")),
        (checkout, '{"user": "user-{i}", "cents": {i}}', 7, Cart("user-7", 7)),
        (checkout, '{"user": "user-{i}", "cents": {i}}', 123, Cart("user-123", 123)),
    ],
)
def test_number_of_the_run_has_three_digits_except_as_a_number(
    of: Workflow[..., Any], text: str, number: int, value: Any
) -> None:
    assert passed(of, text, number=number) == ((value,), {})


def test_number_in_a_key() -> None:
    assert numbered("user-{i}", 12) == "user-012"


def test_arguments_without_a_number_are_read_once() -> None:
    arguments = Arguments(checkout, ['{"user": "u"}'])
    assert arguments.of_run(1) is arguments.of_run(2)


@pytest.mark.parametrize(
    ("of", "texts", "message"),
    [
        (hello, [], r"missing a required argument: 'name'. It takes \(name: "),
        (hello, ["a", "b"], r"too many positional arguments. It takes \(name: "),
        (hello, ["a", "name=b"], r"multiple values for argument 'name'"),
        (hello, ["name=a", "name=b"], r"'name' is given twice"),
        (hello, ["\udcff"], r"argument 'name' of hello is not UTF-8 text"),
        (
            checkout,
            ["{"],
            r"argument 'cart' of checkout takes \S*Cart as JSON, not '\{': it is not JSON: .* For example: '\{.user.: ",
        ),
        (checkout, ['{"user": "u"}', "x"], r"argument 'discount' of checkout takes int as JSON, not 'x'.* example: 1$"),
        (everything, ["x", "1", "y"], r"argument 'rest' of everything takes int as JSON, not 'y'"),
        (everything, ["x", "tax=y"], r"argument 'tax' of everything takes float as JSON, not 'y'"),
    ],
)
def test_wrong_arguments_are_explained(of: Workflow[..., Any], texts: list[str], message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        Arguments(of, texts)


def test_message_shows_no_more_than_the_beginning_of_a_long_text() -> None:
    with pytest.raises(click.UsageError) as refused:
        Arguments(checkout, ["x" * 10_000])
    assert len(str(refused.value)) < 400
