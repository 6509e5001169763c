"""What recorded values come back as: annotations decide.

Reads payloads strictly, by msgspec. Knows nothing of journals, workflows or stores. Reads `sys.modules`, to find
classes that are loaded.

* pydantic models are read by field name (pydantic >= 2.11). protobuf messages are their own bytes. Both only if loaded.
* Aware datetimes come back in UTC.
* A union that msgspec refuses is read as the one member that the bytes fit without loss; see `_Choice`.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin

import msgspec
import msgspec.inspect

from perdure.core.values import (
    AS_TEXT,
    DECODERS_LIMIT,
    TIP,
    NeverLoaded,
    canonical,
    decode_any,
    encode_any,
    loaded,
    type_name,
    unencodable,
)
from perdure.errors import AnnotationUnresolved, Undecodable, Unencodable

_PLAIN = frozenset({str, int, float, bool, bytes})


def encode_as(value: object, annotation: Any, where: str, /) -> bytes:
    """Return the bytes of a value after proving that they decode as its annotation says.

    Raises `Unencodable` if they do not, `AnnotationUnresolved` if nothing decodes the annotation; both name `where`.
    """
    try:
        payload = encode_any(value)
    except Exception as error:
        raise unencodable(value, error, where) from error
    if (value.__class__ is annotation and annotation in _PLAIN) or annotation is Any or value is None is annotation:
        return payload
    try:
        decoder(annotation)(payload)
    except Undecodable as error:
        kind = type_name(value.__class__)
        text = f"{where} is a {kind}, but its annotation says {error.annotation}: {error.reason}"
        raise Unencodable(text, type=kind) from error
    except AnnotationUnresolved as error:
        raise AnnotationUnresolved(f"{where}: {error}", annotation=error.annotation, reason=error.reason) from error
    return payload


def decoder(annotation: object, /) -> Callable[[bytes], Any]:
    """Return the function that decodes payloads as an annotation says, strictly.

    It raises `Undecodable`. No annotation is `Any`: builtin types. `object` and type variables are `Any` too;
    `NoReturn` is `None`. Raises `AnnotationUnresolved` for a type that nothing can decode.
    """
    try:
        return _cached_decoder(annotation)
    except TypeError:  # not hashable, such as Annotated[int, []]
        return _new_decoder(annotation)


def wire_type(annotation: object, /) -> Any:
    """Return what msgspec must be given, with `from_wire`, for an annotation. Raises `AnnotationUnresolved`."""
    try:
        wanted = _wire_type(annotation)
        for cls in _custom_types(msgspec.inspect.type_info(wanted), set()):
            if not issubclass(cls, _decodable()):
                raise _unusable(annotation, f"nothing decodes {type_name(cls)}; {TIP}")
    except AnnotationUnresolved:
        raise
    except Exception as error:  # msgspec: TypeError mostly, NameError for fields that name nothing
        raise _unusable(annotation, str(error)) from error
    return wanted


def from_wire(cls: Any, value: Any, /) -> Any:
    """Build what msgspec does not know, as the `dec_hook` of a decoder for a `wire_type`."""
    if cls is object:
        return value
    if issubclass(cls, _Choice):
        return cls.pick(value)
    if issubclass(cls, loaded("pydantic.main", "BaseModel")):
        return cls.model_validate(value, strict=False, by_alias=False, by_name=True)
    if issubclass(cls, loaded("google.protobuf.message", "Message")):
        if isinstance(value, bytes):
            return cls.FromString(value)
    elif isinstance(value, str):
        return cls(value)
    raise TypeError(f"Expected `{type_name(cls)}`, got `{type_name(value.__class__)}`")


@lru_cache(maxsize=DECODERS_LIMIT)
def _cached_decoder(annotation: object) -> Callable[[bytes], Any]:
    return _new_decoder(annotation)


def _new_decoder(annotation: object) -> Callable[[bytes], Any]:
    decode = msgspec.msgpack.Decoder[Any](wire_type(annotation), dec_hook=from_wire).decode

    def decode_payload(payload: bytes) -> Any:
        try:
            return decode(payload)
        except Exception as error:
            name, reason = type_name(annotation), str(error)
            text = f"a recorded value does not decode as {name}: {reason}"
            raise Undecodable(text, annotation=name, reason=reason) from error

    return decode_payload


def _unusable(annotation: object, reason: str) -> AnnotationUnresolved:
    name = type_name(annotation)
    return AnnotationUnresolved(f"annotation {name} cannot be used: {reason}", annotation=name, reason=reason)


def _decodable() -> tuple[type[Any], ...]:
    known = (_Choice, loaded("pydantic.main", "BaseModel"), loaded("google.protobuf.message", "Message"))
    return *known, *AS_TEXT


def _custom_types(node: object, seen: set[int]) -> Iterator[type[Any]]:
    """Find the classes that msgspec leaves to `from_wire`, anywhere in a type."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, msgspec.inspect.CustomType):
        if node.cls is not object:
            yield get_origin(node.cls) or node.cls
    elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field):
        for name in node.__struct_fields__:
            yield from _custom_types(getattr(node, name), seen)
    elif isinstance(node, tuple):
        for item in cast("tuple[object, ...]", node):
            yield from _custom_types(item, seen)


_NAMED_ALIAS: Any = getattr(typing, "TypeAliasType", NeverLoaded)  # `type X = ...`, Python 3.12


def _wire_type(annotation: Any) -> Any:
    if annotation is object or isinstance(annotation, TypeVar):
        return Any
    if annotation is NoReturn or annotation is typing.Never:
        return None
    if isinstance(annotation, _NAMED_ALIAS):
        return _wire_type(annotation.__value__)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Iterable or origin is Iterable:
        return list[_wire_type(arguments[0] if arguments else Any)]
    if not arguments or origin is Literal:
        return annotation
    if origin is Annotated:
        inner = _wire_type(arguments[0])
        return annotation if inner is arguments[0] else Annotated[(inner, *arguments[1:])]
    wired = tuple(_wire_type(argument) for argument in arguments)
    if origin is Union or origin is types.UnionType:
        return _union(annotation, arguments, wired)
    same = all(new is old for new, old in zip(wired, arguments, strict=True))
    return annotation if same else origin[wired]


def _union(annotation: object, members: tuple[Any, ...], wired: tuple[Any, ...]) -> Any:
    union: Any = Union[wired]  # noqa: UP007  built from a tuple
    try:
        msgspec.inspect.type_info(union)
    except TypeError:
        some = tuple(member for member in members if member is not type(None))
        options = tuple((type_name(member), decoder(member)) for member in some)
        choice: Any = _HasAnyInstance("Choice", (_Choice,), {"name": type_name(annotation), "options": options})
        return choice if len(some) == len(members) else choice | None
    return union


class _HasAnyInstance(type):
    def __instancecheck__(cls, instance: object, /) -> bool:
        return True


class _Choice(metaclass=_HasAnyInstance):  # msgspec checks that what `from_wire` returns is an instance of it
    """A union that msgspec refuses, such as one of two dataclasses.

    The one member is taken that the value fits without loss, or failing that the only one that it fits at all (fields
    that this member does not know are dropped, as anywhere). A value that fits several equally is refused: `encode_as`
    finds out when it is first recorded.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[tuple[str, Callable[[bytes], Any]], ...]]

    @classmethod
    def pick(cls, value: object) -> object:
        payload, wanted = encode_any(value), canonical(value, unordered=True)
        exact: list[tuple[str, object]] = []
        loose: list[tuple[str, object]] = []
        reasons: list[str] = []
        for name, decode in cls.options:
            try:
                candidate = decode(payload)
            except Undecodable as error:
                reasons.append(error.reason)
                continue
            again = canonical(decode_any(encode_any(candidate)), unordered=True)
            (exact if again == wanted else loose).append((name, candidate))
        fitting = exact or loose
        if len(fitting) == 1:
            return fitting[0][1]
        if fitting:
            names = " and ".join(name for name, _ in fitting)
            raise ValueError(f"it fits {names}: tell them apart, as by a field `kind: Literal[...]` in each")
        raise ValueError(f"Expected `{cls.name}`: {'; '.join(reasons)}")


def names_in(module: str | None, /) -> Mapping[str, Any]:
    """Return the global names of a module, none if it is not loaded."""
    return getattr(sys.modules.get(module or ""), "__dict__", {})


def resolved(annotation: object, scope: Mapping[str, Any], local: Mapping[str, Any], /) -> Any:
    """Return an annotation with the strings in it evaluated. Raises what that raises, `NameError` mostly."""
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    return typing.get_type_hints(holder, dict(scope), dict(local), include_extras=True)["it"]
