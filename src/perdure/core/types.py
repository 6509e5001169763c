"""What recorded values come back as: annotations decide.

Reads payloads strictly, by msgspec. Knows nothing of journals, workflows or stores. Reads `sys.modules`, to find
classes that are loaded.

* pydantic models are read by field name (pydantic >= 2.11). protobuf messages are their own bytes. Both only if loaded.
* Aware datetimes come back in UTC.
* A union that msgspec refuses is read as the one member that the bytes fit without loss; see `_Choice`.
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
    SCALARS,
    TIP,
    NeverLoaded,
    canonical,
    decode_any,
    encode_any,
    fields_of,
    loaded,
    type_name,
    unencodable,
    writes_itself,
)
from perdure.errors import AnnotationUnresolved, Undecodable, Unencodable

_PLAIN = frozenset({str, int, float, bool, bytes})


def encode_as(value: object, annotation: Any, where: str, /) -> bytes:
    """Return the bytes of a value after proving that they decode as its annotation says, to what it is.

    Raises `Unencodable` if they do not, `AnnotationUnresolved` if nothing decodes the annotation; both name `where`.
    What is given as builtin types in place of a pydantic model is validated, and recorded as the model holds it.
    """
    try:
        payload = encode_any(value)
    except Exception as error:
        raise unencodable(value, error, where) from error
    if (value.__class__ is annotation and annotation in _PLAIN) or annotation is Any or value is None is annotation:
        return payload
    try:
        candidate = decoder(annotation)(payload)
        lost = difference(value, candidate) if _holds_classes(annotation) else None
        if lost is not None and lost.is_raw:
            again = encode_any(validator(annotation)(payload))
            return again if _holds_models(annotation) else payload
    except Undecodable as error:
        kind = type_name(value.__class__)
        text = f"{where} is a {kind}, but its annotation says {error.annotation}: {error.reason}"
        raise Unencodable(text, type=kind) from error
    except AnnotationUnresolved as error:
        raise AnnotationUnresolved(f"{where}: {error}", annotation=error.annotation, reason=error.reason) from error
    if lost is not None:
        text = f"{where} cannot be recorded: {f'value{lost.path}' if lost.path else 'it'} is a {lost.type}{lost.reason}"
        raise Unencodable(text, path=lost.path, type=lost.type)
    return payload


# --- what would come back as something else ---------------------------------------------------------------------------


class Lost(msgspec.Struct, frozen=True):
    """Where a value is not what it would come back as. `is_raw` if it is of builtin types, to be made a class of."""

    path: str
    type: str
    reason: str
    is_raw: bool = False


def difference(value: Any, candidate: Any, path: str = "", /) -> Lost | None:
    """Return where a value has another class than what it decodes to, or a field that is not written, if anywhere."""
    cls, expected = value.__class__, candidate.__class__
    if cls in SCALARS or expected in SCALARS:
        return None
    if fields_of(expected) is not None:
        if cls is not expected and not _is_same_class(cls, expected):
            if fields_of(cls) is None:
                return Lost(path, type_name(cls), "", is_raw=True)
            return Lost(path, type_name(cls), _as_another(cls, expected))
        hidden = _hidden_field(cls)
        if hidden is not None:
            reason = (
                f", whose field {hidden!r} would be lost: rename it, as no attrs field with an underscore is recorded"
            )
            return Lost(path, type_name(cls), reason)
        parts = ((f".{name}", getattr(value, name), getattr(candidate, name, None)) for name in _looked_into(expected))
    elif isinstance(value, dict) and isinstance(candidate, dict):
        held, others = cast("dict[Any, Any]", value), cast("dict[Any, Any]", candidate)
        parts = ((f"[{key!r}]", item, others.get(key)) for key, item in held.items())
    elif isinstance(value, list | tuple) and isinstance(candidate, list | tuple):
        pairs = zip(cast("list[Any]", value), cast("list[Any]", candidate), strict=False)
        parts = ((f"[{place}]", *pair) for place, pair in enumerate(pairs))
    elif isinstance(value, set | frozenset) and isinstance(candidate, set | frozenset):
        return _difference_of_sets(cast("set[Any]", value), cast("set[Any]", candidate), path)
    else:
        return None
    return next((lost for step, *pair in parts if (lost := difference(pair[0], pair[1], path + step))), None)


def _difference_of_sets(value: Iterable[Any], candidate: Iterable[Any], path: str) -> Lost | None:
    classes = {item.__class__ for item in candidate}
    if len(classes) != 1 or not (expected := classes.pop()) or fields_of(expected) is None:
        return None
    others = (item for item in value if not _is_same_class(item.__class__, expected))
    odd = next((item for item in others if fields_of(item.__class__) is not None), None)
    if odd is None:
        return None
    return Lost(f"{path} item {odd!r}", type_name(odd.__class__), _as_another(odd.__class__, expected))


def _is_same_class(cls: Any, expected: Any) -> bool:
    """Tell whether an instance of one comes back as what it is: of the same class, defined anew, or its generic one."""
    if (cls.__module__, cls.__qualname__) == (expected.__module__, expected.__qualname__):
        return True
    mine, other = (getattr(each, "__pydantic_generic_metadata__", {}).get("origin") for each in (cls, expected))
    return (mine or cls) is (other or expected)


def _as_another(cls: Any, expected: Any) -> str:
    kept = {field.name for field in fields_of(expected) or ()}
    more = [field.name for field in fields_of(cls) or () if field.name not in kept]
    without = f" without {' and '.join(map(repr, more))}" if more else ""
    known = type_name(expected)
    return (
        f", and would come back as a {known}{without}: annotate it as {type_name(cls)}, or as a union of both whose "
        "members differ in a field, such as `kind: Literal[...]`"
    )


def _hidden_field(cls: Any) -> str | None:
    if issubclass(cls, msgspec.Struct) or not hasattr(cls, "__attrs_attrs__"):
        return None
    return next((field.name for field in fields_of(cls) or () if field.name.startswith("_")), None)


@lru_cache(maxsize=DECODERS_LIMIT)
def _looked_into(cls: Any) -> tuple[str, ...]:
    """Return the fields of a class that may hold instances of classes."""
    names = tuple(field.name for field in fields_of(cls) or ())
    try:
        info: Any = msgspec.inspect.type_info(cls)
        plain = {one.name for one in info.fields if not any(_classes_in(one.type, set()))}
    except Exception:  # noqa: BLE001  a pydantic model, or a field that is never decoded so
        return names
    return tuple(name for name in names if name not in plain)


def _holds_classes(annotation: Any) -> bool:
    try:
        return bool(_classes_of(annotation))
    except TypeError:  # not hashable
        return True


def _holds_models(annotation: Any) -> bool:
    try:
        found: Iterable[Any] = _classes_of(annotation)
    except TypeError:  # not hashable
        return True
    return any(issubclass(cls, (_Choice, loaded("pydantic.main", "BaseModel"))) for cls in found)


@lru_cache(maxsize=DECODERS_LIMIT)
def _classes_of(annotation: Any) -> frozenset[Any]:
    return frozenset(_classes_in(msgspec.inspect.type_info(wire_type(annotation)), set()))


def _classes_in(node: Any, seen: set[int]) -> Iterator[type[Any]]:
    """Find the classes with fields, and the unions that are told apart, anywhere in a type."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, msgspec.inspect.StructType | msgspec.inspect.DataclassType):
        yield get_origin(node.cls) or node.cls
    if isinstance(node, msgspec.inspect.CustomType):
        yield get_origin(node.cls) or node.cls
    elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field):
        for name in node.__struct_fields__:
            yield from _classes_in(getattr(node, name), seen)
    elif isinstance(node, tuple):
        for item in cast("tuple[object, ...]", node):
            yield from _classes_in(item, seen)


# --- from bytes -------------------------------------------------------------------------------------------------------


def decoder(annotation: object, /) -> Callable[[bytes], Any]:
    """Return the function that decodes recorded payloads as an annotation says, strictly.

    What was recorded is not validated again: the validators of pydantic models do not run, except where their type
    cannot be rebuilt without them. It raises `Undecodable`. No annotation is `Any`: builtin types. `object` and type
    variables are `Any` too; `NoReturn` is `None`. Raises `AnnotationUnresolved` for a type that nothing can decode.
    """
    try:
        return _cached_decoder(annotation)
    except TypeError:  # not hashable, such as Annotated[int, []]
        return _new_decoder(annotation)


def validator(annotation: object, /) -> Callable[[bytes], Any]:
    """Return the function that decodes payloads which nobody has validated yet. It raises what `decoder` does."""
    try:
        return _cached_validator(annotation)
    except TypeError:
        return _new_validator(annotation)


def wire_type(annotation: object, /, *, read: Read | None = None) -> Any:
    """Return what msgspec must be given for an annotation, with `from_wire` or `from_record`.

    `read` makes the decoders of the members of unions: `validator` unless told. Raises `AnnotationUnresolved`.
    """
    try:
        wanted = _wire_type(annotation, read or validator)
        for cls in _custom_types(msgspec.inspect.type_info(wanted), set()):
            if not issubclass(cls, _decodable()):
                raise _unusable(annotation, f"nothing decodes {type_name(cls)}; {TIP}")
    except AnnotationUnresolved:
        raise
    except Exception as error:  # msgspec: TypeError mostly, NameError for fields that name nothing
        raise _unusable(annotation, str(error)) from error
    return wanted


def from_record(cls: Any, value: Any, /) -> Any:
    """Build what msgspec does not know from what was recorded, without validating it again."""
    if issubclass(cls, loaded("pydantic.main", "BaseModel")):
        return _recorded_model(cls, value)
    return from_wire(cls, value)


def from_wire(cls: Any, value: Any, /) -> Any:
    """Build what msgspec does not know, as the `dec_hook` of a decoder for a `wire_type`; models are validated."""
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
    wanted = wire_type(annotation, read=decoder)
    known = _custom_types(msgspec.inspect.type_info(wanted), set())
    if not any(issubclass(cls, (_Choice, loaded("pydantic.main", "BaseModel"))) for cls in known):
        return _reading(annotation, msgspec.msgpack.Decoder[Any](wanted, dec_hook=from_wire).decode)
    decode = msgspec.msgpack.Decoder[Any](wanted, dec_hook=from_record).decode
    validate = validator(annotation)

    def decode_payload(payload: bytes) -> Any:
        try:
            return decode(payload)
        except Exception:  # noqa: BLE001  a type that takes a validator to rebuild, or a union that it tells apart
            return validate(payload)

    return decode_payload


@lru_cache(maxsize=DECODERS_LIMIT)
def _cached_validator(annotation: object) -> Callable[[bytes], Any]:
    return _new_validator(annotation)


def _new_validator(annotation: object) -> Callable[[bytes], Any]:
    wanted = wire_type(annotation)
    return _reading(annotation, msgspec.msgpack.Decoder[Any](wanted, dec_hook=from_wire).decode)


def _reading(annotation: object, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Let what a decoder raises be `Undecodable`."""

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


Read = Callable[[object], Callable[[bytes], Any]]
"""Makes the decoder of an annotation: `decoder` or `validator`."""

_NAMED_ALIAS: Any = getattr(typing, "TypeAliasType", NeverLoaded)  # `type X = ...`, Python 3.12


def _wire_type(annotation: Any, read: Read) -> Any:
    if annotation is object or isinstance(annotation, TypeVar):
        return Any
    if annotation is NoReturn or annotation is typing.Never:
        return None
    if isinstance(annotation, _NAMED_ALIAS):
        return _wire_type(annotation.__value__, read)
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
        choice: Any = _HasAnyInstance("Choice", (_Choice,), {"name": type_name(annotation), "options": options})
        return choice if len(some) == len(members) else choice | None
    return union


def _has_all_fields(candidate: Any, value: object) -> bool:
    """Tell whether a value names every field of a dataclass or attrs class, of which msgspec writes only those set."""
    cls = candidate.__class__
    if isinstance(candidate, msgspec.Struct) or not (dataclasses.is_dataclass(cls) or hasattr(cls, "__attrs_attrs__")):
        return True
    return not isinstance(value, dict) or len(cast("dict[str, Any]", value)) == len(fields_of(cls) or ())


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
        for _, candidate in fitting:  # the one that the others derive from: `encode_as` refuses any other
            if all(isinstance(other, candidate.__class__) for _, other in fitting):
                return candidate
        if fitting:
            names = " and ".join(name for name, _ in fitting)
            raise ValueError(f"it fits {names}: tell them apart, as by a field `kind: Literal[...]` in each")
        raise ValueError(f"Expected `{cls.name}`: {'; '.join(reasons)}")


# --- pydantic models, rebuilt without validation ----------------------------------------------------------------------


class _Shape(msgspec.Struct, frozen=True):
    """How the fields of a model are read: all at once, and some by pydantic's rules for their type alone."""

    decode: Callable[[bytes], Any]
    adapters: Mapping[str, Any]


def _recorded_model(cls: Any, value: Any) -> Any:
    """Return a pydantic model that holds what was recorded. Its hooks run, but neither refuse nor change that.

    Raises for a model that only its validators can rebuild: `decoder` falls back on them.
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
    object.__setattr__(model, "__pydantic_private__", None)  # its hook makes it, before anything of the author's
    if cls.__pydantic_post_init__:
        with suppress(Exception):  # it was content when the value was recorded; what it says now does not count
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
    """Return an annotation with the strings in it evaluated. Raises what that raises, `NameError` mostly."""
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    return typing.get_type_hints(holder, dict(scope), dict(local), include_extras=True)["it"]
