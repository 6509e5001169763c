"""A mistake that can be seen in a function is refused when it is decorated, and a text says what to do."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import pytest

from perdure import Context, step, workflow
from perdure.errors import NotAsync, NotAWorkflow
from perdure.testing import Environment

P = ParamSpec("P")
R = TypeVar("R")
loosely: Any = workflow
loose_step: Any = step


def refused(decorate: Callable[[], object], text: str, kind: type[NotAWorkflow] = NotAWorkflow) -> None:
    with pytest.raises(kind) as raised:
        decorate()
    assert text in str(raised.value)


async def unannotated(ctx, n: int) -> int:  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
    return n


async def unannotated_context(context) -> None: ...  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]


async def second(n: int, ctx: Context) -> None: ...


class Holder:
    async def method(self, n: int) -> None: ...

    @classmethod
    async def of_class(cls, n: int) -> None: ...


async def streams(n: int) -> AsyncIterator[int]:
    yield n


def yields(n: int) -> Iterator[int]:
    yield n


class CallsAGenerator:
    def __call__(self, n: int) -> Iterator[int]:
        yield n


WRONG: list[tuple[object, str]] = [
    (cast("Any", unannotated), "parameter 'ctx' has no annotation"),
    (cast("Any", unannotated_context), "write `context: Context`"),
    (second, "parameter 'ctx' is the context, which must be the first"),
    (Holder.method, "is a method, and a worker has no 'self' to give it"),
    (vars(Holder)["of_class"], "not on"),
    (Holder, "is a class"),
    (streams, "is a generator"),
    (yields, "is a generator"),
    ("another name", "write @workflow(name='another name')"),
    (3, "not on 3"),
    (step(lambda: None), "is already a step"),
    (workflow.ref("there"), "is already a workflow"),
]


@pytest.mark.parametrize(("fn", "text"), WRONG)
def test_what_no_worker_could_run_is_refused_as_a_workflow(fn: object, text: str) -> None:
    refused(lambda: loosely(fn), text)


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (streams, "is a generator, whose values cannot be recorded: return a list"),
        (yields, "return a list"),
        (CallsAGenerator(), "return a list"),
        (functools.partial(yields, 1), "return a list"),
        (
            second,
            "is a workflow's context, which is not passed to steps: pass the values that the step needs, and call",
        ),
        ("another name", "write @step(name='another name')"),
        (step(lambda: None), "is already a step"),
        (workflow.ref("there"), "is a workflow: call it as a child"),
    ],
)
def test_what_could_not_be_recorded_is_refused_as_a_step(fn: object, text: str) -> None:
    refused(lambda: loose_step(fn), text)


def test_plain_function_is_told_to_be_async() -> None:
    refused(lambda: loosely(lambda: None), "write `async def`", NotAsync)


def forgets(fn: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
    @functools.wraps(fn)
    async def wrapper(n: int) -> R:
        return await fn(n, 0)

    return wrapper


def adds(fn: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
    @functools.wraps(fn)
    async def wrapper(n: int, m: int, required: int) -> R:
        return await fn(n, m)

    return wrapper


def passes_positions(fn: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
    @functools.wraps(fn)
    async def wrapper(*args: Any) -> R:
        return await fn(*args)

    return wrapper


def passes_all(fn: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    @functools.wraps(fn)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return await fn(*args, **kwargs)

    return wrapper


def test_decorator_whose_wrapper_does_not_take_what_it_claims_is_refused_beneath_a_workflow_and_a_step() -> None:
    async def two(n: int, m: int) -> int:
        return n + m

    async def named(n: int, *, m: int) -> int:
        return n + m

    for decorate in (loosely, loose_step):
        refused(lambda decorate=decorate: decorate(forgets(two)), "takes (n) but declares (n, m)")
        refused(lambda decorate=decorate: decorate(adds(two)), "takes (n, m, required) but declares (n, m)")
        refused(lambda decorate=decorate: decorate(passes_positions(named)), "let its wrapper take *args and **kwargs")


async def test_decorator_that_passes_everything_on_is_taken() -> None:
    @step
    @passes_all
    async def double(n: int, *, twice: bool = True) -> int:
        return n * 2 if twice else n

    @workflow
    @passes_all
    async def program(ctx: Context, n: int, m: int = 1) -> int:
        return await double(n, twice=m == 1)

    async with Environment(program) as env:
        assert await env.client.run(program, 3) == 6
        assert await env.client.run(program, 3, m=2) == 3


async def test_parameters_may_have_any_name() -> None:
    @workflow
    async def program(__x: int, _: int, self: int, p0: int = 7, *, __struct_config__: int = 8) -> list[int]:
        return [__x, _, self, p0, __struct_config__]

    call: Any = program
    async with Environment(program) as env:
        assert await env.client.run(call, 1, 2, 3, __struct_config__=4) == [1, 2, 3, 7, 4]
        assert await env.client.run(call, 1, 2, 3) == [1, 2, 3, 7, 8]


async def test_static_method_is_a_workflow_in_either_order() -> None:
    class Namespace:
        @workflow
        @staticmethod
        async def beneath(n: int) -> int:
            return n

        @staticmethod
        @workflow
        async def above(n: int) -> int:
            return n + 1

    beneath, above = cast("Any", Namespace.beneath), Namespace.above
    async with Environment(beneath, above) as env:
        assert [await env.client.run(beneath, 1), await env.client.run(above, 1)] == [1, 2]


async def test_context_may_be_named_and_imported_as_one_likes() -> None:
    @workflow
    async def program(c: Context, ctx: int) -> int:
        return ctx

    async with Environment(program) as env:
        assert await env.client.run(program, 3) == 3
