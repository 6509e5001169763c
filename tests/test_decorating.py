"""A mistake that can be seen in a function is refused when it is decorated, and a text says what to do."""

from __future__ import annotations

import abc
import asyncio
import functools
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeVar, cast

import attrs
import pytest

from perdure import Context, step, workflow
from perdure.errors import BadId, NotAsync, NotAWorkflow, Unencodable
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


async def optional(ctx: Context | None = None) -> None: ...


async def optional_by_name(ctx: "Context | None") -> None: ...  # noqa: UP037


async def by_keyword(*, ctx: Context) -> None: ...


class CallsAGenerator:
    def __call__(self, n: int) -> Iterator[int]:
        yield n


WRONG: list[tuple[object, str]] = [
    (cast("Any", unannotated), "parameter 'ctx' has no annotation"),
    (cast("Any", unannotated_context), "write `context: Context`"),
    (second, "parameter 'ctx' is the context, which must be the first"),
    (optional, "parameter 'ctx' may be something else than the context, which is always passed: write `ctx: Context`"),
    (optional_by_name, "write `ctx: Context`"),
    (by_keyword, "parameter 'ctx' is the context, which must be the first parameter, and not by keyword only"),
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


async def test_context_may_be_annotated_with_more() -> None:
    @workflow
    async def annotated(ctx: Annotated[Context, "of this invocation"], n: int) -> str:
        return f"{ctx.invocation_id} {n}"

    async with Environment(annotated) as env:
        handle = await env.client.start(annotated, 3)
        assert await handle.result() == f"{handle.id} 3"


# --- callables --------------------------------------------------------------------------------------------------------
class Multiplies:
    def __init__(self, by: int) -> None:
        self.by = by

    async def __call__(self, n: int) -> int:
        return self.by * n


async def plus_one(n: int) -> int:
    return n + 1


def logged(fn: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return fn(*args, **kwargs)

    return wrapper


@dataclass
class Point:
    x: int


@step
async def made_of(n: int) -> int:
    return n


CALLABLES: list[tuple[Any, object]] = [
    (Multiplies(5), 15),
    (logged(plus_one), 4),
    (logged(logged(plus_one)), 4),
    (functools.partial(plus_one, 3), 4),
    (functools.partial(Multiplies(2)), 6),
    (functools.partial(made_of), 3),
    (logged(made_of), 3),
]


@pytest.mark.parametrize(("fn", "result"), CALLABLES)
async def test_whatever_gives_a_coroutine_is_a_workflow_and_a_step(fn: Any, result: object) -> None:
    args = () if getattr(fn, "args", ()) else (3,)
    called = step(fn, name="called")

    @workflow
    async def calls() -> Any:
        return await called(*args)

    body = loosely(fn, name="body")
    async with Environment(calls, body) as env:
        assert await env.client.run(calls) == result
        assert await env.client.run(body, *args) == result


async def test_class_as_a_step_makes_an_instance() -> None:
    make, partly = step(Point), step(functools.partial(Point, 4), name="partly")

    @workflow
    async def makes() -> list[Point]:
        return [await make(3), await partly()]

    async with Environment(makes) as env:
        assert await env.client.run(makes) == [Point(3), Point(4)]


@pytest.mark.parametrize("made", [made_of, Holder().method, workflow(plus_one)])
def test_libraries_see_that_a_step_is_async(made: Any) -> None:
    assert inspect.iscoroutinefunction(made) or inspect.iscoroutinefunction(made.__call__) or is_old
    assert cast("Any", asyncio).iscoroutinefunction(made)


is_old = sys.version_info < (3, 12)


def test_libraries_see_on_each_python_that_a_step_is_async_by_how_it_is_called() -> None:
    assert inspect.iscoroutinefunction(made_of.__call__)
    assert not inspect.iscoroutinefunction(logged(cast("Any", lambda: None)))

    @functools.wraps(made_of)
    def in_a_script(n: int) -> int:
        return asyncio.run(made_of(n))

    assert not cast("Any", asyncio).iscoroutinefunction(in_a_script)
    assert in_a_script(3) == 3


class Account:
    @step
    async def method(self, n: int) -> int:
        return n

    @classmethod
    @step
    async def of_class(cls, n: int) -> int:
        return n


async def test_step_given_an_instance_or_class_says_how_to_call_it() -> None:
    @workflow
    async def unbound() -> int:
        return await loose_step(Account.method.fn)(Account(), 3)

    @workflow
    async def of_class() -> int:
        return await loose_step(Account.method.fn, name="of")(Account, 3)

    async with Environment(unbound, of_class) as env:
        for each in (unbound, of_class):
            with pytest.raises(Unencodable, match="call it on an instance, or put @step above @classmethod"):
                await env.client.run(each)


@pytest.mark.parametrize("decorate", [step, workflow])
def test_empty_name_is_refused(decorate: Any) -> None:
    with pytest.raises(BadId):
        decorate(plus_one, name="")


@attrs.define
class Base:
    n: int

    @step
    async def method(self) -> int:
        return self.n


@attrs.define
class Derived(Base):
    @step
    async def method(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1 + await super().method()


async def test_step_of_a_class_with_slots_calls_its_base() -> None:
    @workflow
    async def calls() -> int:
        return await Derived(3).method()

    async with Environment(calls) as env:
        assert await env.client.run(calls) == 4


def test_abstract_method_may_be_a_step() -> None:
    class Abstract(abc.ABC):
        @step
        @abc.abstractmethod
        async def below(self) -> None: ...

        @abc.abstractmethod
        @step
        async def above(self) -> None: ...

    assert Abstract.__abstractmethods__ == {"below", "above"}


def test_step_and_workflow_show_their_names() -> None:
    assert repr(made_of) == "<step 'made_of'>"
    assert repr(loosely(plus_one, name="adds")) == "<workflow 'adds'>"
