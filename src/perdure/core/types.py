"""Decodes recorded values as annotations say.

Reads payloads strictly, by msgspec. Knows nothing of journals, workflows or stores. Reads `sys.modules` to find
loaded classes.

* pydantic models are read by field name (pydantic >= 2.11). protobuf messages are their own bytes. Both only if loaded.
* Aware datetimes come back in UTC.
* A union that msgspec refuses is read as the one member that the bytes fit without loss; see `Choice`.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import date, datetime
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
    fields_of,
    loaded,
    type_name,
    writes_itself,
)
from perdure.errors import AnnotationUnresolved, Undecodable

# --- from bytes -------------------------------------------------------------------------------------------------------


def decoder(annotation: object, /) -> Callable[[bytes], Any]:
    """Return the function that decodes recorded payloads as an annotation says, strictly.

    Recorded values are not validated again: validators of pydantic models do not run, except where their type cannot be
    rebuilt without them. The function raises `Undecodable`. A missing annotation is `Any`, which gives builtin types;
    so are `object` and type variables; `NoReturn` is `None`. Raises `AnnotationUnresolved` for a type that nothing can
    decode.
    """
    try:
        return _cached_decoder(annotation)
    except TypeError:  # not hashable, such as Annotated[int, []]
        return _new_decoder(annotation)


def validator(annotation: object, /) -> Callable[[bytes], Any]:
    """Return the function that decodes and validates payloads from outside. Raises as `decoder` does."""
    try:
        return _cached_validator(annotation)
    except TypeError:
        return _new_validator(annotation)


def wire_type(annotation: object, /, *, read: Read | None = None) -> Any:
    """Return the type to give to msgspec for an annotation, with `from_wire` or `from_record`.

    `read` makes the decoders of the members of unions; the default is `validator`. Raises `AnnotationUnresolved`.
    """
    try:
        wanted = _wire_type(annotation, read or validator)
        for cls in _custom_types(msgspec.inspect.type_info(wanted), set()):
            if not issubclass(cls, _decodable()):
                raise _unusable(annotation, f"nothing decodes {type_name(cls)}; {TIP}")
    except AnnotationUnresolved:
        raise
    except Exception as error:  # msgspec: mostly TypeError; NameError for fields with unknown names
        raise _unusable(annotation, _why_unusable(error)) from error
    return wanted


def from_record(cls: Any, value: Any, /) -> Any:
    """Build a recorded value of a class that msgspec does not know, without validating it again."""
    if issubclass(cls, loaded("pydantic.main", "BaseModel")):
        return _recorded_model(cls, value)
    return from_wire(cls, value)


def from_wire(cls: Any, value: Any, /) -> Any:
    """Build a value of a class that msgspec does not know, and validate it: the `dec_hook` for a `wire_type`."""
    if cls is object:
        return value
    if issubclass(cls, Choice):
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
    wanted = wire_type(annotation, read=decoder)
    if has_hooks(annotation):
        return _hooked_decoder(annotation, msgspec.msgpack.Decoder[Any](wanted, dec_hook=from_record).decode)
    known = _custom_types(msgspec.inspect.type_info(wanted), set())
    if not any(issubclass(cls, (Choice, loaded("pydantic.main", "BaseModel"))) for cls in known):
        return _reading(annotation, msgspec.msgpack.Decoder[Any](wanted, dec_hook=from_wire).decode)
    decode = msgspec.msgpack.Decoder[Any](wanted, dec_hook=from_record).decode
    validate = validator(annotation)

    def decode_payload(payload: bytes) -> Any:
        try:
            return decode(payload)
        except Exception:  # noqa: BLE001  a type that takes a validator to rebuild, or a union that it tells apart
            return validate(payload)

    return decode_payload


def _hooked_decoder(annotation: object, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    validate = validator(annotation)

    def decode_payload(payload: bytes) -> Any:
        with suppress(Exception):
            found = decode(payload)
            if encode_any(found) == payload:  # the hooks changed nothing
                return found
        with suppress(Exception):
            return _rebuilt(annotation, decode_any(payload))
        return validate(payload)

    return decode_payload


@lru_cache(maxsize=DECODERS_LIMIT)
def _cached_validator(annotation: object) -> Callable[[bytes], Any]:
    return _new_validator(annotation)


def _new_validator(annotation: object) -> Callable[[bytes], Any]:
    wanted = wire_type(annotation)
    return _reading(annotation, msgspec.msgpack.Decoder[Any](wanted, dec_hook=from_wire).decode)


def _reading(annotation: object, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Convert errors of a decoder to `Undecodable`."""

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


def _why_unusable(error: Exception) -> str:
    if isinstance(error, RecursionError) or "ForwardRef(" in str(error) or "Type ''" in str(error):
        return (
            f"it holds itself, or a name that is not defined ({error}): give such a type a name by `type X = ...` "
            '(from Python 3.12) or `typing_extensions.TypeAliasType("X", ...)`, and write Any for it in the fields of '
            "classes"
        )
    return str(error)


def _decodable() -> tuple[type[Any], ...]:
    known = (Choice, loaded("pydantic.main", "BaseModel"), loaded("google.protobuf.message", "Message"))
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


Read = Callable[[object], Callable[[bytes], Any]]
"""Makes the decoder of an annotation: `decoder` or `validator`."""

_NAMED_ALIAS: Any = getattr(typing, "TypeAliasType", NeverLoaded)  # `type X = ...`, Python 3.12


def _alias_in(annotation: Any) -> Any:
    """Return the named alias that an annotation is, also one with arguments (`Tree[int]`); None if it is none."""
    named = (_NAMED_ALIAS, loaded("typing_extensions", "TypeAliasType"))
    found = annotation if isinstance(annotation, named) else get_origin(annotation)
    return found if isinstance(found, named) else None


def _named_by(annotation: Any, alias: Any) -> Any:
    """Return what a named alias stands for, with its arguments in place of its parameters."""
    value = resolved(alias.__value__, names_in(getattr(alias, "__module__", None)), {})
    arguments: dict[Any, Any] = dict(zip(getattr(alias, "__type_params__", ()), get_args(annotation), strict=False))
    parameters: tuple[Any, ...] = getattr(value, "__parameters__", ())
    if isinstance(value, TypeVar):
        return arguments.get(value, value)
    return value[tuple(arguments.get(one, one) for one in parameters)] if parameters and arguments else value


def _holds(annotation: Any, alias: Any, seen: set[Any]) -> bool:
    """Report whether a named alias is anywhere in an annotation."""
    inner = _alias_in(annotation)
    if inner is alias:
        return True
    if inner is not None and inner not in seen:
        seen.add(inner)
        if _holds(_named_by(annotation, inner), alias, seen):
            return True
    return any(_holds(argument, alias, seen) for argument in get_args(annotation))


@lru_cache(maxsize=DECODERS_LIMIT)
def _recursion(annotation: Any, value: Any, read: Read) -> Any:
    """Return a type for a named alias that holds itself: what it stands for is decoded when a value is met."""
    return _HasAnyInstance("Recursion", (Recursion,), {"name": type_name(annotation), "value": value, "read": (read,)})


def _wire_type(annotation: Any, read: Read) -> Any:
    if annotation is object or isinstance(annotation, TypeVar):
        return Any
    if annotation is NoReturn or annotation is typing.Never:
        return None
    if (alias := _alias_in(annotation)) is not None:
        value = _named_by(annotation, alias)
        return _recursion(annotation, value, read) if _holds(value, alias, set()) else _wire_type(value, read)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Iterable or origin is Iterable:
        return list[_wire_type(arguments[0] if arguments else Any, read)]
    if not arguments or origin is Literal:
        return annotation
    if origin is Annotated:
        inner = _wire_type(arguments[0], read)
        return annotation if inner is arguments[0] else Annotated[(inner, *arguments[1:])]
    wired = tuple(_wire_type(argument, read) for argument in arguments)
    if origin is Union or origin is types.UnionType:
        return _union(annotation, arguments, wired, read)
    same = all(new is old for new, old in zip(wired, arguments, strict=True))
    return annotation if same else origin[wired]


def _union(annotation: object, members: tuple[Any, ...], wired: tuple[Any, ...], read: Read) -> Any:
    union: Any = Union[wired]  # noqa: UP007  built from a tuple
    try:
        msgspec.inspect.type_info(union)
    except TypeError:
        some = tuple(member for member in members if member is not type(None))
        options = tuple((type_name(member), read(member)) for member in some)
        choice: Any = _HasAnyInstance(
            "Choice", (Choice,), {"name": type_name(annotation), "options": options, "members": some}
        )
        return choice if len(some) == len(members) else choice | None
    return union


def _has_all_fields(candidate: Any, value: object) -> bool:
    """Report whether a value has every field of a dataclass or attrs class; msgspec writes only fields that are set."""
    cls = candidate.__class__
    if isinstance(candidate, msgspec.Struct) or not (dataclasses.is_dataclass(cls) or hasattr(cls, "__attrs_attrs__")):
        return True
    return not isinstance(value, dict) or len(cast("dict[str, Any]", value)) == len(fields_of(cls) or ())


class _HasAnyInstance(type):
    def __instancecheck__(cls, instance: object, /) -> bool:
        return True


class Choice(metaclass=_HasAnyInstance):  # msgspec checks that `from_wire` returns an instance of it
    """A union that msgspec refuses, such as one of two dataclasses.

    A value is decoded as the one member that it fits without loss, else as the only member that it fits at all (unknown
    fields are dropped, as anywhere). A value that fits several equally is refused: `encode_as` finds that when the
    value is first recorded.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[tuple[str, Callable[[bytes], Any]], ...]]
    members: ClassVar[tuple[Any, ...]]

    @classmethod
    def pick(cls, value: object) -> object:
        payload, wanted = encode_any(value), canonical(value, unordered=True)
        exact: list[tuple[str, Any]] = []
        loose: list[tuple[str, Any]] = []
        reasons: list[str] = []
        for name, decode in cls.options:
            try:
                candidate = decode(payload)
            except Undecodable as error:
                reasons.append(error.reason)
                continue
            again = canonical(decode_any(encode_any(candidate)), unordered=True)
            whole = again == wanted and _has_all_fields(candidate, value)
            (exact if whole else loose).append((name, candidate))
        fitting = exact or loose
        for _, candidate in fitting:  # the base of the others: `encode_as` refuses any other
            if all(isinstance(other, candidate.__class__) for _, other in fitting):
                return candidate
        if fitting:
            names = " and ".join(name for name, _ in fitting)
            raise ValueError(f"it fits {names}: tell them apart, as by a field `kind: Literal[...]` in each")
        raise ValueError(f"Expected `{cls.name}`: {'; '.join(reasons)}")


class Recursion(Choice):
    """A named alias that holds itself, such as that of JSON."""

    value: ClassVar[Any]
    read: ClassVar[tuple[Read]]

    @classmethod
    def pick(cls, value: object) -> object:
        try:
            return cls.read[0](cls.value)(encode_any(value))
        except Undecodable as error:
            raise ValueError(error.reason) from error


# --- which classes a type holds ---------------------------------------------------------------------------------------


@lru_cache(maxsize=DECODERS_LIMIT)
def classes_of(annotation: Any, /) -> frozenset[Any]:
    """Return the classes with fields, and the tagged unions, anywhere in an annotation."""
    return frozenset(classes_in(msgspec.inspect.type_info(wire_type(annotation)), set()))


def classes_in(node: Any, seen: set[int], /) -> Iterator[type[Any]]:
    """Find the classes with fields, and the tagged unions, anywhere in a type."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, msgspec.inspect.StructType | msgspec.inspect.DataclassType):
        yield get_origin(node.cls) or node.cls
    if isinstance(node, msgspec.inspect.CustomType):
        yield get_origin(node.cls) or node.cls
    elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field):
        for name in node.__struct_fields__:
            yield from classes_in(getattr(node, name), seen)
    elif isinstance(node, tuple):
        for item in cast("tuple[object, ...]", node):
            yield from classes_in(item, seen)


# --- objects with hooks -----------------------------------------------------------------------------------------------


def has_hooks(annotation: Any, /) -> bool:
    """Report whether decoding runs code of the author: `__post_init__` of a class, or validators of attrs."""
    try:
        return any(_is_hooked(cls) for cls in classes_of(annotation))
    except TypeError:  # not hashable
        return False


@lru_cache(maxsize=DECODERS_LIMIT)
def _is_hooked(cls: Any) -> bool:
    if issubclass(cls, Choice | loaded("pydantic.main", "BaseModel")) or fields_of(cls) is None:
        return False
    attributes: Iterable[Any] = getattr(cls, "__attrs_attrs__", ())
    return _hook_of(cls) is not None or any(attribute.validator is not None for attribute in attributes)


def _hook_of(cls: Any) -> str | None:
    return next((name for name in ("__attrs_post_init__", "__post_init__") if hasattr(cls, name)), None)


def _rebuilt(annotation: Any, plain: Any) -> Any:
    """Convert builtin types as an annotation says. Hooks run, but cannot refuse or change what was recorded."""
    if (alias := _alias_in(annotation)) is not None:
        return _rebuilt(_named_by(annotation, alias), plain)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _rebuilt(arguments[0], plain)
    if origin is Union or origin is types.UnionType:
        return _rebuilt_member(arguments, plain)
    cls: Any = origin or annotation
    if isinstance(cls, type) and has_hooks(annotation):
        if isinstance(plain, dict) and fields_of(cls) is not None:
            return _rebuilt_object(
                cls,
                dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False)),
                cast("dict[str, Any]", plain),
            )
        if isinstance(plain, dict) and issubclass(cls, Mapping):
            pairs = cast("dict[Any, Any]", plain).items()
            return {_rebuilt(arguments[0], key): _rebuilt(arguments[1], item) for key, item in pairs}
        if isinstance(plain, list):
            items = cast("list[Any]", plain)
            if cls is tuple and Ellipsis not in arguments:
                return tuple(map(_rebuilt, arguments, items))
            made = [_rebuilt(arguments[0], item) for item in items]
            return cast("Any", cls)(made) if cls in (tuple, set, frozenset) else made
    return (
        decoder(annotation)(encode_any(plain))
        if not has_hooks(annotation)
        else validator(annotation)(encode_any(plain))
    )


def _rebuilt_member(members: tuple[Any, ...], plain: Any) -> Any:
    if plain is None and type(None) in members:
        return None
    found: list[Any] = []
    for member in members:
        try:
            found.append(_rebuilt(member, plain))
        except Exception:  # noqa: BLE001  it is not this one
            continue
        if canonical(decode_any(encode_any(found[-1])), unordered=True) == canonical(plain, unordered=True):
            return found[-1]
    return found[0]


_OF_CLASS: Any = vars(object)["__class__"]


@lru_cache(maxsize=DECODERS_LIMIT)
def _without_hook(cls: type[msgspec.Struct]) -> type[Any]:
    """Return a subclass without the hook, whose instances then become instances of `cls`."""
    frozen = cls.__struct_config__.frozen
    return msgspec.defstruct(cls.__name__, [], bases=(cls,), namespace={"__post_init__": _nothing}, frozen=frozen)


def _nothing(_: object, /) -> None: ...


def _rebuilt_object(cls: Any, parameters: Mapping[Any, Any], plain: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(cls, include_extras=True)
    info: Any = msgspec.inspect.type_info(cls)
    values: dict[str, Any] = {}
    for field in info.fields:
        hint = hints.get(field.name, Any)
        if field.encode_name in plain:
            values[field.name] = _rebuilt(parameters.get(hint, hint), plain[field.encode_name])
        elif field.required:
            raise ValueError(f"Object missing required field `{field.encode_name}`")
        else:
            made = field.default_factory is not msgspec.NODEFAULT
            values[field.name] = field.default_factory() if made else field.default
    put: Callable[[Any, str, Any], None] = object.__setattr__
    if issubclass(cls, msgspec.Struct):
        put, built = msgspec.structs.force_setattr, _without_hook(cls)(**values)
        _OF_CLASS.__set__(built, cls)
    else:
        built = cls.__new__(cls)
    for name, value in values.items():
        put(built, name, value)
    hook = _hook_of(cls)
    if hook is not None:
        with suppress(Exception):  # it accepted the value when it was recorded; that it refuses it now does not count
            getattr(built, hook)()
        for name, value in values.items():
            put(built, name, value)
    return built


# --- pydantic models, rebuilt without validation ----------------------------------------------------------------------


class _Shape(msgspec.Struct, frozen=True):
    """How the fields of a model are read: all at once, and some by pydantic's rules for their type alone."""

    decode: Callable[[bytes], Any]
    adapters: Mapping[str, Any]


def _recorded_model(cls: Any, value: Any) -> Any:
    """Rebuild a recorded pydantic model. Its hooks run, but cannot refuse or change what was recorded.

    Raises for a model that only its validators can rebuild; `decoder` falls back on them.
    """
    if writes_itself(cls):
        raise TypeError(f"{type_name(cls)} declares serializers, which its own validators undo")
    held: dict[str, Any] = {"root": value} if cls.__pydantic_root_model__ else value
    fields: dict[str, Any] = cls.model_fields
    shape = _shape(cls)
    known = shape.decode(encode_any({name: held[name] for name in fields if name in held}))
    values: dict[str, Any] = {}
    for name, found in zip(fields, msgspec.structs.astuple(known), strict=True):
        if found is msgspec.UNSET:
            values[name] = fields[name].get_default(call_default_factory=True, validated_data=values)
        else:
            values[name] = shape.adapters[name].validate_python(found) if name in shape.adapters else found
    extra = {name: item for name, item in held.items() if name not in fields}
    allowed = cls.model_config.get("extra")
    if extra and allowed == "forbid":
        raise ValueError(f"{type_name(cls)} forbids {sorted(extra)}")
    model = cls.__new__(cls)
    _set_slots(model, values, set(held) & set(fields), extra if allowed == "allow" else None)
    return model


def _set_slots(model: Any, values: dict[str, Any], given: set[str], extra: dict[str, Any] | None) -> None:
    cls = model.__class__
    object.__setattr__(model, "__dict__", dict(values))
    object.__setattr__(model, "__pydantic_fields_set__", given)
    if not cls.__pydantic_root_model__:
        object.__setattr__(model, "__pydantic_extra__", extra)
    object.__setattr__(model, "__pydantic_private__", None)  # its hook makes it, before any code of the author
    if cls.__pydantic_post_init__:
        with suppress(Exception):  # it accepted the value when it was recorded; that it refuses it now does not count
            model.model_post_init(None)
        model.__dict__.update(values)
        object.__setattr__(model, "__pydantic_fields_set__", given)


@lru_cache(maxsize=DECODERS_LIMIT)
def _shape(cls: Any) -> _Shape:
    fields: list[tuple[str, Any, Any]] = []
    names: dict[str, str] = {}
    adapters: dict[str, Any] = {}
    for place, (name, field) in enumerate(cls.model_fields.items()):
        try:
            wanted = wire_type(_without_rules(field.annotation), read=decoder)
        except AnnotationUnresolved:
            wanted, adapters[name] = Any, sys.modules["pydantic"].TypeAdapter(field.annotation)
        fields.append((f"p{place}", wanted, msgspec.UNSET))
        names[f"p{place}"] = name
        if field.is_required():
            fields[-1] = cast("Any", (f"p{place}", wanted))
    shape = msgspec.defstruct(cls.__name__, fields, kw_only=True, rename=names)
    return _Shape(msgspec.msgpack.Decoder(shape, dec_hook=from_record).decode, adapters)


_TIMES = {
    **dict.fromkeys(("FutureDate", "PastDate"), date),
    **dict.fromkeys(("FutureDatetime", "PastDatetime", "AwareDatetime", "NaiveDatetime"), datetime),
}


def _without_rules(annotation: Any) -> Any:
    """Return an annotation without what pydantic's `Annotated` adds to it, and without its rules for times."""
    if getattr(annotation, "__module__", "") == "pydantic.types" and annotation.__name__ in _TIMES:
        return _TIMES[annotation.__name__]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _without_rules(arguments[0])
    if not arguments or origin is Literal:
        return annotation
    stripped = tuple(_without_rules(argument) for argument in arguments)
    if all(new is old for new, old in zip(stripped, arguments, strict=True)):
        return annotation
    if origin is Union or origin is types.UnionType:
        return Union[stripped]  # noqa: UP007  built from a tuple
    return origin[stripped]


# --- names ------------------------------------------------------------------------------------------------------------


def names_in(module: str | None, /) -> Mapping[str, Any]:
    """Return the global names of a module, none if it is not loaded."""
    return getattr(sys.modules.get(module or ""), "__dict__", {})


def resolved(annotation: object, scope: Mapping[str, Any], local: Mapping[str, Any], /) -> Any:
    """Return an annotation with its strings evaluated. Raises the errors of that, mostly `NameError`."""
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    return typing.get_type_hints(holder, dict(scope), dict(local), include_extras=True)["it"]
