"""What can be told of a function: its name, where it is, whether it is async."""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar, cast

T = TypeVar("T")


def copy_of(original: T) -> T:
    """Return a shallow copy, made without `__init__`."""
    other = object.__new__(type(original))
    other.__dict__.update(original.__dict__)
    return other


def name_of(fn: Any) -> str:
    """Return the name of a function, or of what a partial calls."""
    while isinstance(fn, functools.partial):
        fn = cast("functools.partial[Any]", fn).func
    return getattr(fn, "__name__", None) or type(fn).__name__


def where_of(fn: Any) -> str:
    """Return the module and name of a function, for texts."""
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', name_of(fn))}"


def is_async(fn: Any) -> bool:
    """Tell whether a call of `fn` gives a coroutine."""
    while isinstance(fn, functools.partial):
        fn = cast("functools.partial[Any]", fn).func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
