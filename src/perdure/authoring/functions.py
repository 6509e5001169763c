"""Inspects a function when it is decorated: its name, its location, and whether it can be called as its signature says.

A mistake that can be found here is an error here, not in the first invocation.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable
from inspect import Parameter
from typing import Any, TypeVar, cast

from perdure.core.context import BodyContext
from perdure.core.signature import is_context, may_be_context, parameters_of
from perdure.errors import NotAsync, NotAWorkflow

T = TypeVar("T")


def copy_of(original: T) -> T:
    """Return a shallow copy, made without `__init__`."""
    other = object.__new__(type(original))
    other.__dict__.update(original.__dict__)
    return other


def name_of(fn: Any) -> str:
    """Return the name of a function, or of the function that a partial calls."""
    while isinstance(fn, functools.partial):
        fn = cast("functools.partial[Any]", fn).func
    return getattr(fn, "__name__", None) or type(fn).__name__


def where_of(fn: Any) -> str:
    """Return the module and name of a function, for error texts."""
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', name_of(fn))}"


def is_async(fn: Any) -> bool:
    """Report whether calling `fn` returns a coroutine."""
    while isinstance(fn, functools.partial):
        fn = cast("functools.partial[Any]", fn).func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def mark_async(cls: type) -> None:
    """Let `iscoroutinefunction` say yes to the instances of a class, so that decorators of libraries await them.

    The class is marked and not each instance: `functools.wraps` would copy the mark to any wrapper of one.
    """
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(cls)
    else:
        marked: Any = cls
        marked._is_coroutine = vars(asyncio.coroutines)["_is_coroutine"]  # noqa: SLF001


def line_of(fn: Any, /) -> str:
    """Return the file and line of a function in brackets, for error texts; empty if it has none."""
    code = getattr(inspect.unwrap(fn), "__code__", None)
    return "" if code is None else f" ({code.co_filename}:{code.co_firstlineno})"


def is_same_code(one: Any, other: Any, /) -> bool:
    """Report whether two functions have the same code, like a function and its copy after a reload."""
    if one is other:
        return True
    codes = [getattr(inspect.unwrap(each), "__code__", None) for each in (one, other)]
    return codes[0] is not None and codes[0] == codes[1]


# --- checks -----------------------------------------------------------------------------------------------------------
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_CONTEXT_NAMES = ("ctx", "context")
_SELF_NAMES = ("self", "cls")


def check_workflow(fn: Any, /) -> None:
    """Raise `NotAWorkflow` if a worker could not run `fn` as the body of a workflow."""
    if not callable(fn):
        hint = f"; for another name write @workflow(name={fn!r})" if isinstance(fn, str) else ""
        raise NotAWorkflow(f"@workflow goes on an async function, not on {fn!r}{hint}")
    where = f"workflow {where_of(fn)}"
    if isinstance(fn, type):
        raise NotAWorkflow(f"{where} is a class: @workflow goes on an async function")
    if _is_generator(fn):
        raise NotAsync(f"{where} is a generator: a workflow returns one value; return a list, or send what comes first")
    if not is_async(fn) and not is_async(inspect.unwrap(fn)):  # a plain wrapper may pass a coroutine on
        raise NotAsync(f"{where} is not async: write `async def`; plain functions can be steps")
    _check_wrapper(fn, where)
    parameters = _parameters(fn)
    if parameters and parameters[0].name in _SELF_NAMES and _is_method(fn):
        raise NotAWorkflow(
            f"{where} is a method, and a worker has no {parameters[0].name!r} to give it: put @workflow on a function, "
            "or on a static method"
        )
    if parameters and parameters[0].name in _CONTEXT_NAMES and parameters[0].annotation is Parameter.empty:
        name = parameters[0].name
        raise NotAWorkflow(
            f"{where}: parameter {name!r} has no annotation, so it would be an input: write `{name}: Context` for the "
            "context, or annotate it with the type of the input"
        )
    for place, one in enumerate(parameters):
        if is_context(one.annotation, fn, BodyContext) and (place or one.kind not in _POSITIONAL):
            raise NotAWorkflow(
                f"{where}: parameter {one.name!r} is the context, which must be the first parameter, and not by "
                "keyword only"
            )
        if may_be_context(one.annotation, fn, BodyContext):
            raise NotAWorkflow(
                f"{where}: parameter {one.name!r} may be something else than the context, which is always passed: "
                f"write `{one.name}: Context`"
            )


def check_step(fn: Any, /) -> None:
    """Raise `NotAWorkflow` if `fn` cannot be a step."""
    if not callable(fn):
        hint = f"; for another name write @step(name={fn!r})" if isinstance(fn, str) else ""
        raise NotAWorkflow(f"@step goes on a function, not on {fn!r}{hint}")
    where = f"step {where_of(fn)}"
    if _is_generator(fn):
        raise NotAWorkflow(f"{where} is a generator, whose values cannot be recorded: return a list")
    if getattr(fn, "is_reference", None) is not None:
        raise NotAWorkflow(f"{where} is a workflow: call it as a child, or decorate its function .fn")
    _check_wrapper(fn, where)
    for one in _parameters(fn):
        if is_context(one.annotation, fn, BodyContext) or may_be_context(one.annotation, fn, BodyContext):
            raise NotAWorkflow(
                f"{where}: parameter {one.name!r} is a workflow's context, which is not passed to steps: pass the "
                "values that the step needs, and call step_info() for the idempotency key"
            )


def _check_wrapper(fn: Callable[..., Any], where: str) -> None:
    """Refuse a decorated function that declares, by functools.wraps, parameters that its wrapper does not take."""
    try:
        claimed, own = parameters_of(fn), parameters_of(fn, follow_wrapped=False)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    parameters = claimed.parameters.values()
    positional = [None for one in parameters if one.kind in _POSITIONAL]
    named = {one.name: None for one in parameters if one.kind is Parameter.KEYWORD_ONLY}
    try:
        own.bind(*positional, **named)
    except TypeError as error:
        raise NotAWorkflow(
            f"{where}: the decorator beneath takes {_shown(own)} but declares {_shown(claimed)}, so calls would fail "
            f"({error}): let its wrapper take *args and **kwargs"
        ) from error


def _shown(signature: inspect.Signature) -> str:
    return f"({', '.join(str(one.replace(annotation=Parameter.empty)) for one in signature.parameters.values())})"


def _parameters(fn: Callable[..., Any]) -> list[Parameter]:
    try:
        return [*parameters_of(fn).parameters.values()]
    except (TypeError, ValueError):  # a builtin without a signature
        return []


def _is_method(fn: Any) -> bool:
    holder = getattr(fn, "__qualname__", "").rpartition(".")[0]
    return bool(holder) and not holder.endswith("<locals>")


def _is_generator(fn: Any) -> bool:
    while isinstance(fn, functools.partial):
        fn = cast("functools.partial[Any]", fn).func
    call = fn if inspect.isroutine(fn) or isinstance(fn, type) else getattr(fn, "__call__", None)  # noqa: B004
    return inspect.isasyncgenfunction(call) or inspect.isgeneratorfunction(call)
