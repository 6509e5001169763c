"""Whether a value of one type can never be one of another: what is certain to be wrong, and nothing else."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Annotated, Any, Union, get_args, get_origin, is_typeddict

_NUMBERS = ((bool, int), (bool, float), (int, float), (int, complex), (float, complex))
_COLLECTIONS = (list, tuple, set, frozenset)


def cannot_fit(given: Any, wanted: Any) -> bool:
    """Report whether no value of type `given` is one of type `wanted`. In doubt it may be."""
    given, wanted = _plain(given), _plain(wanted)
    if given is Any or wanted is Any or wanted is object:
        return False
    for members, other, is_given in ((_members(given), wanted, True), (_members(wanted), given, False)):
        if members:
            return all(cannot_fit(each, other) if is_given else cannot_fit(other, each) for each in members)
    one, other = _class_of(given), _class_of(wanted)
    if one is None or other is None or (one, other) in _NUMBERS:
        return False
    if one in _COLLECTIONS and other in _COLLECTIONS and one is not other:
        return False  # a step may take what is like it
    try:
        if not issubclass(one, other) and not issubclass(other, one):
            return not getattr(other, "_is_protocol", False)
    except TypeError:
        return False
    return _parts_cannot_fit(get_args(given), get_args(wanted)) if one is other else False


def element_of(collection: Any) -> Any:
    """Return the type of the elements of a list type; Any if it cannot be told."""
    found = _plain(collection)
    if _class_of(found) not in (list, set, frozenset) and get_origin(found) is not Iterable:
        return Any
    arguments = get_args(found)
    return arguments[0] if len(arguments) == 1 else Any


def list_of(element: Any) -> Any:
    """Return the type of a list with elements of a type."""
    return list if element is Any else list[element]


def _plain(annotation: Any) -> Any:
    return _plain(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()


def _class_of(annotation: Any) -> type[Any] | None:
    """Return the class of an annotation; None for what is no class: a TypeVar, a Literal, a NewType."""
    if annotation is None:
        return type(None)
    found = get_origin(annotation) or annotation
    if is_typeddict(found):
        return dict
    return found if isinstance(found, type) else None


def _parts_cannot_fit(given: tuple[Any, ...], wanted: tuple[Any, ...]) -> bool:
    if len(given) != len(wanted) or Ellipsis in (*given, *wanted):
        return False
    return any(cannot_fit(*pair) for pair in zip(given, wanted, strict=True))
