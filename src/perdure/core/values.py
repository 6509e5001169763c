"""Values as the bytes that a journal keeps.

Values are msgpack, written by msgspec. Knows nothing of annotations, journals, workflows or stores. Reads
`sys.modules` to find loaded classes.

* pydantic models are written by field name (pydantic >= 2.11), without their private attributes; a model that declares
  serializers of its own is written by them. protobuf messages are their own bytes. Both only if loaded.
* Aware datetimes keep their instant. Paths and IP addresses are text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import itertools
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import PurePath
from typing import Any, cast, get_args

import msgspec

from perdure.errors import Unencodable

DECODERS_LIMIT = 1_024
"""Annotations whose decoders are cached."""

FORMS_LIMIT = 256
"""Forms of the arguments of one call that are compared with a recorded digest, before the call counts as another."""

PATH_LIMIT = 64
"""Levels into a value that are searched for the part that cannot be encoded."""

TIP = "use builtin types, dataclasses, TypedDicts, or msgspec, attrs, pydantic or protobuf classes"
SCALARS = frozenset({str, int, float, bool, bytes, type(None)})
"""Classes whose values `encode_scalar` writes unchanged."""
AS_TEXT = (
    PurePath,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
)


# --- to bytes ---------------------------------------------------------------------------------------------------------


def encode(value: object, /, where: str = "the value") -> bytes:
    """Return the msgpack bytes of a value, or raise `Unencodable` naming the part that has no encoding."""
    try:
        return encode_any(value)
    except Exception as error:
        raise unencodable(value, error, where) from error


def encode_for_digest(value: object, /, where: str = "the value", *, omits: Omits | None = None) -> bytes:
    """Return bytes that are the same for equal values in every process: sets and mappings are sorted by their bytes.

    They need not be those of `encode`. Fields that equal their defaults are left out where `omits` says so. Raises
    `Unencodable`.
    """
    try:
        return canonical(value, omits=omits or never)
    except Exception as error:
        raise unencodable(value, error, where) from error


def digest(payload: bytes, /) -> bytes:
    """Return an 8-byte digest (BLAKE2b) of a payload."""
    return hashlib.blake2b(payload, digest_size=8).digest()


def map_header(size: int, /) -> bytes:
    """Return the header of a msgpack map with this many pairs."""
    return _header(0x80, 0xDE, size)


def _header(short: int, long: int, size: int) -> bytes:
    if size < 16:
        return bytes((short | size,))
    return bytes((long,)) + size.to_bytes(2, "big") if size < 65_536 else bytes((long + 1,)) + size.to_bytes(4, "big")


def _foreign(value: Any) -> object:
    """Convert a value that msgspec does not know to one that it knows."""
    if isinstance(value, str):  # a subclass, as are the next two: msgspec wants the classes themselves
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, loaded("pydantic.main", "BaseModel")):
        return _model_fields(value)
    if isinstance(value, loaded("google.protobuf.message", "Message")):
        return value.SerializeToString(deterministic=True)
    if isinstance(value, AS_TEXT) or type(cast("object", value)).__module__ == "pydantic.networks":
        return str(value)
    raise TypeError(TIP)


class NeverLoaded:
    """Stands for a class that is not loaded: nothing is an instance of it."""


def loaded(module: str, name: str) -> type[Any]:
    return getattr(sys.modules.get(module), name, NeverLoaded)


def writes_itself(cls: Any, /) -> bool:
    """Report whether a pydantic model declares serializers of its own."""
    own = cls.__pydantic_decorators__
    marks = (type(mark).__module__ for field in cls.model_fields.values() for mark in field.metadata)
    return bool(own.field_serializers or own.model_serializers or "pydantic.functional_serializers" in marks)


def _model_fields(model: Any) -> object:
    """Return the fields of a pydantic model: as they are held, unless the class declares serializers."""
    cls: Any = model.__class__
    if writes_itself(cls):
        return model.model_dump(by_alias=False, round_trip=True, warnings="error")
    if cls.__pydantic_root_model__:
        return model.root
    fields: dict[str, object] = {name: getattr(model, name) for name in cls.model_fields}
    return fields | cast("dict[str, object]", model.model_extra or {})


encode_any = msgspec.msgpack.Encoder(enc_hook=_foreign).encode
encode_scalar = msgspec.msgpack.Encoder().encode
decode_any = msgspec.msgpack.Decoder().decode


class Field(msgspec.Struct, frozen=True):
    """A field of a class: its name, the encoded name, and its default as `canonical` writes it, if it has one."""

    name: str
    key: bytes
    default: bytes | None = None


Omits = Callable[[type, Field], bool]
"""Tells whether `canonical` leaves out a field that equals its default."""


def never(_cls: type, _field: Field, /) -> bool:
    """Leave out nothing."""
    return False


def always(_cls: type, _field: Field, /) -> bool:
    """Leave out every field that equals its default."""
    return True


def canonical(value: Any, unordered: bool = False, omits: Omits = never) -> bytes:
    """Encode with sets and mappings sorted; with `unordered`, lists too (they may have been sets)."""
    if value.__class__ in SCALARS:
        return encode_scalar(value)
    if isinstance(value, dict):
        entries = cast("dict[Any, Any]", value).items()
        pieces = [canonical(key, unordered, omits) + canonical(item, unordered, omits) for key, item in entries]
        return map_of(sorted(pieces))
    if isinstance(value, list | tuple | set | frozenset):
        values = cast("Iterable[Any]", value)
        items = [
            encode_scalar(item) if item.__class__ in SCALARS else canonical(item, unordered, omits) for item in values
        ]
        if unordered or isinstance(value, set | frozenset):
            items.sort()
        elif isinstance(value, tuple):
            _drop_defaults(cast("tuple[Any, ...]", value), items, omits)
        return list_of(items)
    fields = fields_of(value.__class__)
    if fields is not None:
        return _canonical_fields(value, fields, unordered, omits)
    try:
        return encode_scalar(value)
    except TypeError:
        return canonical(_foreign(value), unordered, omits)


def _canonical_fields(value: Any, fields: Sequence[Field], unordered: bool, omits: Omits) -> bytes:
    shown = _shown(value)
    if shown is not None and not isinstance(shown, dict):
        return canonical(shown, unordered, omits)  # a pydantic model that serializes to another type
    held = cast("dict[str, Any] | None", shown)
    pieces: list[bytes] = []
    for field in fields:
        item = getattr(value, field.name) if held is None else held.get(field.name, msgspec.UNSET)
        if item is msgspec.UNSET or (omits is not never and _omitted(value, field, omits)):
            continue
        pieces.append(field.key + canonical(item, unordered, omits))
    if held is not None and len(held) > len(fields):
        known = {field.name for field in fields}
        others = ((name, item) for name, item in held.items() if name not in known)
        pieces += [canonical(name, unordered, omits) + canonical(item, unordered, omits) for name, item in others]
        pieces.sort()
    return map_of(pieces)


def _omitted(value: Any, field: Field, omits: Omits) -> bool:
    if field.default is None:
        return False
    return canonical(getattr(value, field.name, None)) == field.default and omits(value.__class__, field)


def map_of(pieces: Sequence[bytes], /) -> bytes:
    """Return a msgpack map of encoded pairs."""
    return map_header(len(pieces)) + b"".join(pieces)


def list_of(items: Sequence[bytes], /) -> bytes:
    """Return a msgpack list of encoded items."""
    return _header(0x90, 0xDC, len(items)) + b"".join(items)


def _drop_defaults(value: tuple[Any, ...], items: list[bytes], omits: Omits) -> None:
    """Drop the last items of a named tuple that equal their defaults."""
    fields = _tuple_fields(value.__class__)
    if len(fields) == len(items) and omits is not never:
        while items and canonical(value[len(items) - 1]) == fields[len(items) - 1].default:
            if not omits(value.__class__, fields[len(items) - 1]):
                return
            items.pop()


def _shown(value: Any) -> object:
    """Return the recorded form of a pydantic model, None for other classes."""
    return _model_fields(value) if isinstance(value, loaded("pydantic.main", "BaseModel")) else None


@lru_cache(maxsize=DECODERS_LIMIT)
def fields_of(cls: Any, /) -> tuple[Field, ...] | None:
    """Return the fields of a Struct, dataclass, attrs class or pydantic model, sorted by their encoded names."""
    defaults: Iterable[tuple[str, object]]
    if issubclass(cls, msgspec.Struct):
        defaults = _struct_defaults(cls)
    elif issubclass(cls, loaded("pydantic.main", "BaseModel")):
        if cls.__pydantic_root_model__:
            return None
        defaults = [(name, _pydantic_default(field)) for name, field in cls.model_fields.items()]
    elif dataclasses.is_dataclass(cls):
        defaults = [(field.name, _dataclass_default(field)) for field in dataclasses.fields(cls)]
    elif hasattr(cls, "__attrs_attrs__"):
        defaults = [(attribute.name, _attrs_default(attribute)) for attribute in cls.__attrs_attrs__]
    else:
        return None
    return tuple(sorted((_field(*each) for each in defaults), key=lambda field: field.key))


@lru_cache(maxsize=DECODERS_LIMIT)
def _tuple_fields(cls: Any) -> tuple[Field, ...]:
    known: dict[str, object] = getattr(cls, "_field_defaults", {})
    return tuple(_field(name, known.get(name, _NOTHING)) for name in getattr(cls, "_fields", ()))


def _field(name: str, default: object) -> Field:
    try:
        encoded = None if default is _NOTHING else canonical(default)
    except Exception:  # noqa: BLE001  a default that cannot be recorded equals nothing that can
        encoded = None
    return Field(name, encode_any(name), encoded)


class _Nothing:
    """Stands for the default of a field without one."""


_NOTHING = _Nothing()


def _made(factory: Callable[[], object]) -> object:
    """Return the value of a default factory; nothing if it differs from call to call, as with ids."""
    try:
        one, other = factory(), factory()
        return one if canonical(one) == canonical(other) else _NOTHING
    except Exception:  # noqa: BLE001  it cannot be compared with
        return _NOTHING


def _struct_defaults(cls: type[msgspec.Struct]) -> Iterator[tuple[str, object]]:
    defaults = cls.__struct_defaults__
    first = len(cls.__struct_fields__) - len(defaults)
    for place, name in enumerate(cls.__struct_fields__):
        default: Any = defaults[place - first] if place >= first else msgspec.NODEFAULT
        if default is msgspec.NODEFAULT:
            yield name, _NOTHING
        else:
            factory = getattr(default, "factory", None) if type(default).__module__.startswith("msgspec") else None
            yield name, default if factory is None else _made(factory)


def _dataclass_default(field: dataclasses.Field[Any]) -> object:
    if field.default is not dataclasses.MISSING:
        return field.default
    return _NOTHING if field.default_factory is dataclasses.MISSING else _made(field.default_factory)


def _attrs_default(attribute: Any) -> object:
    default = attribute.default
    if type(default).__name__ == "Factory" and type(default).__module__ == "attr._make":
        return _NOTHING if default.takes_self else _made(default.factory)
    return _NOTHING if default is sys.modules["attr"].NOTHING else default


def _pydantic_default(field: Any) -> object:
    if field.default_factory is not None:
        return _NOTHING if field.default_factory_takes_validated_data else _made(field.default_factory)
    return _NOTHING if field.is_required() else field.default


# --- what was recorded before -----------------------------------------------------------------------------------------


def forms(write: Callable[[Omits], bytes], /) -> Iterator[bytes]:
    """Yield the result of `write` for each set of left-out fields that equal their defaults.

    Older releases left out none; fields added since are in none of their journals.
    """
    found: dict[tuple[type, Field], None] = {}

    def note(cls: type, field: Field) -> bool:
        found[cls, field] = None
        return True

    write(note)
    fields = [*found]
    subsets = itertools.chain.from_iterable(itertools.combinations(fields, size) for size in range(len(fields) + 1))
    for subset in itertools.islice(subsets, FORMS_LIMIT):
        left_out = frozenset(subset)
        yield write(lambda cls, field, left_out=left_out: (cls, field) in left_out)


def is_alike(value: Any, other: Any, /) -> bool:
    """Report whether two values are equal, or have equal recorded forms."""
    try:
        if value == other:
            return True
    except Exception:  # noqa: BLE001  such as that of Decimal("sNaN"): their recorded forms tell
        pass
    if isinstance(value, loaded("pydantic.main", "BaseModel")) and writes_itself(value.__class__):
        return value.__class__ is other.__class__ and all(
            is_alike(getattr(value, name), getattr(other, name)) for name in value.__class__.model_fields
        )
    return canonical(value, unordered=True) == canonical(other, unordered=True)


def agrees(value: Any, recorded: Any, /) -> bool:
    """Report whether a value equals a recorded one in builtin types, ignoring fields that equal their defaults."""
    if isinstance(value, msgspec.Struct):
        return _struct_agrees(value, recorded)
    fields = fields_of(value.__class__)
    if fields is not None and isinstance(recorded, dict):
        shown = _shown(value)
        held = {field.name: getattr(value, field.name) for field in fields} if shown is None else shown
        if isinstance(held, dict):
            return _fields_agree(value, cast("dict[str, Any]", held), fields, cast("dict[Any, Any]", recorded))
    if isinstance(value, dict) and isinstance(recorded, dict):
        given = {canonical(key): item for key, item in cast("dict[Any, Any]", value).items()}
        known = {canonical(key): item for key, item in cast("dict[Any, Any]", recorded).items()}
        return given.keys() == known.keys() and all(agrees(item, known[key]) for key, item in given.items())
    if isinstance(value, list | tuple) and isinstance(recorded, list):
        items, known = cast("Sequence[Any]", value), cast("list[Any]", recorded)
        rest = zip(items[len(known) :], _tuple_fields(items.__class__)[len(known) :], strict=False)
        defaults = sum(canonical(item) == field.default for item, field in rest)
        return len(items) == len(known) + defaults and all(map(agrees, items, known))
    plain = decode_any(encode_any(value))
    unordered = isinstance(value, set | frozenset)
    return canonical(plain, unordered) == canonical(recorded, unordered)


def _struct_agrees(value: msgspec.Struct, recorded: Any) -> bool:
    cls = value.__class__
    config = cls.__struct_config__
    known = _by_key(cls, recorded)
    if known is None or (config.tag is not None and known.pop(config.tag_field, None) != config.tag):
        return False
    defaults = {field.name: field.default for field in fields_of(cls) or ()}
    for name, key in zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True):
        item = getattr(value, name)
        if key in known:
            if not agrees(item, known.pop(key)):
                return False
        elif item is not msgspec.UNSET and canonical(item) != defaults.get(name):
            return False
    return not known


def _by_key(cls: type[msgspec.Struct], recorded: Any) -> dict[Any, Any] | None:
    """Return the recorded fields of a Struct by encoded name; it may be written as a list."""
    if isinstance(recorded, dict):
        return dict(cast("dict[Any, Any]", recorded))
    if not isinstance(recorded, list):
        return None
    config, items = cls.__struct_config__, cast("list[Any]", recorded)
    keys = [*([] if config.tag is None else [config.tag_field]), *cls.__struct_encode_fields__]
    return dict(zip(keys, items, strict=False)) if len(items) <= len(keys) else None


def _fields_agree(value: Any, held: dict[str, Any], fields: Sequence[Field], recorded: dict[Any, Any]) -> bool:
    defaults = {field.name: field.default for field in fields}
    for name, item in held.items():
        if name in recorded:
            if not agrees(item, recorded[name]):
                return False
        elif item is not msgspec.UNSET and canonical(getattr(value, name, None)) != defaults.get(name):
            return False
    return recorded.keys() <= held.keys()


# --- what cannot be encoded, and where it is --------------------------------------------------------------------------


def unencodable(value: object, error: Exception, where: str) -> Unencodable:
    path, culprit, reason = _culprit(value, error)
    kind = type_name(type(culprit))
    return Unencodable(
        f"{where} cannot be recorded: {f'value{path}' if path else 'it'} is a {kind}; {reason}", path=path, type=kind
    )


def _culprit(value: object, error: Exception) -> tuple[str, object, str]:
    """Find the smallest part that cannot be encoded. Return its path, the part and the reason."""
    path, ancestors = "", [value]
    for _ in range(PATH_LIMIT):
        for step, part in _parts(value):
            if any(part is ancestor for ancestor in ancestors):
                return path + step, part, "it contains itself"
            failed = _error_of(part)
            if failed is not None:
                path, value, error = path + step, part, failed
                ancestors.append(part)
                break
        else:
            return path, value, str(error)
    return path, value, f"it is nested more than {PATH_LIMIT} levels deep"


def _error_of(value: object) -> Exception | None:
    try:
        encode_any(value)
    except Exception as error:  # noqa: BLE001  returned, not swallowed
        return error
    return None


def _parts(value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            yield f" key {reprlib.repr(key)}", key
            yield f"[{reprlib.repr(key)}]", item
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", item) for index, item in enumerate(cast("Sequence[Any]", value)))
    elif isinstance(value, set | frozenset):
        yield from ((f" item {reprlib.repr(item)}", item) for item in cast("Iterable[Any]", value))
    else:
        cls: Any = value.__class__
        model = issubclass(cls, loaded("pydantic.main", "BaseModel"))
        names = cls.model_fields if model else [field.name for field in fields_of(cls) or ()]
        yield from ((f".{name}", getattr(value, name, None)) for name in names)


def type_name(annotation: object, /) -> str:
    """Return an annotation as text; classes have their module, unless it is `builtins`."""
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is not Any and isinstance(annotation, type) and not get_args(annotation):
        within = "" if annotation.__module__ == "builtins" else f"{annotation.__module__}."
        return f"{within}{annotation.__qualname__}"
    return str(annotation).replace("typing.", "")
