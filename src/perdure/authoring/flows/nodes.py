"""Nodes: values to come. They stand for themselves in arguments while a graph is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, NoReturn, TypeVar, cast

from msgspec import Struct

from perdure.errors import NodeHasNoValue

T = TypeVar("T")


class Part(Struct, frozen=True):
    """A part of a value: an attribute, or what is under a key."""

    key: Any
    is_attribute: bool = False


class Node:
    """A value to come. To the type checker it is that value; `node["field"]`, `node[0]` and `node.field` are its parts.

    Whatever else a value can do is refused while the graph is built: it belongs in a step.
    """

    __slots__ = ("__graph__", "__node__", "__parts__")

    def __init__(self, graph: object, name: str, parts: tuple[Part, ...] = ()) -> None:
        self.__graph__ = graph
        self.__node__ = name
        self.__parts__ = parts

    def __repr__(self) -> str:
        return f"<node {self.__node__!r}{''.join(f'[{each.key!r}]' for each in self.__parts__)}>"

    def __getattr__(self, name: str) -> Node:
        if name.startswith("_"):
            raise AttributeError(name)
        return Node(self.__graph__, self.__node__, (*self.__parts__, Part(name, is_attribute=True)))

    def __getitem__(self, key: object) -> Node:
        if not isinstance(key, (str, int)):
            raise NodeHasNoValue(
                f"{self!r}[{key!r}]: a part of a node goes by a str or an int; the rest belongs in a step"
            )
        return Node(self.__graph__, self.__node__, (*self.__parts__, Part(key)))

    def _refuse(self, *_: object) -> NoReturn:
        raise NodeHasNoValue(f"{self!r} has no value while the graph is built: compute with it in a step")

    __call__ = __bool__ = __iter__ = __len__ = __str__ = __format__ = __int__ = __float__ = __index__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __floordiv__ = __mod__ = __pow__ = __and__ = __or__ = __xor__ = _refuse
    __invert__ = __neg__ = __pos__ = __abs__ = __contains__ = __await__ = __setitem__ = __delitem__ = _refuse
    __enter__ = __exit__ = __aenter__ = __aexit__ = __aiter__ = _refuse

    def __eq__(self, other: object) -> bool:
        return True if self is other else self._refuse()

    def __hash__(self) -> int:
        return hash((self.__node__, self.__parts__))


class Ref(Struct, frozen=True):
    """A node in an argument: the name of what gives its value, and which part of that it is."""

    node: str
    parts: tuple[Part, ...] = ()

    def of(self, values: Mapping[str, Any]) -> Any:
        """Return the value, once it is there."""
        found = values[self.node]
        for n, part in enumerate(self.parts):
            try:
                found = getattr(found, part.key) if part.is_attribute else found[part.key]
            except (AttributeError, LookupError, TypeError) as error:
                shown = f"{self.node}{''.join(f'[{each.key!r}]' for each in self.parts[: n + 1])}"
                raise ValueError(f"node {shown} has no value: {type(error).__name__}: {error}") from error
        return found


class Varying(Struct, frozen=True):
    """The argument of `map` that differs from call to call."""

    items: Any


def Each(items: Iterable[T], /) -> T:
    """Mark the argument of `map` that differs from call to call. Several go together, as in `zip(strict=True)`."""
    return cast("T", Varying(items))


def refs_in(value: Any) -> Iterator[Ref]:
    """Yield the nodes in an argument, whose lists, tuples and mappings may hold nodes."""
    match value:
        case Ref():
            yield value
        case list() | tuple():
            for item in cast("Iterable[Any]", value):
                yield from refs_in(item)
        case dict():
            yield from refs_in([*cast("dict[Any, Any]", value).items()])
        case Varying(items=items):
            yield from refs_in(items)
        case _:
            pass


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a copy of an argument in which what is neither a list, a tuple nor a mapping is changed."""
    match value:
        case list():
            return [changed(item, change) for item in cast("list[Any]", value)]
        case tuple() if type(cast("object", value)) is tuple:
            return tuple(changed(item, change) for item in cast("tuple[Any, ...]", value))
        case dict() if type(cast("object", value)) is dict:
            items = cast("dict[Any, Any]", value).items()
            return {changed(key, change): changed(item, change) for key, item in items}
        case _:
            return change(value)


def filled(value: Any, values: Mapping[str, Any]) -> Any:
    """Return an argument with the values of its nodes. Constants are copied: what is called may change its own."""
    return changed(value, lambda found: found.of(values) if isinstance(found, Ref) else deepcopy(found))
