"""Values as the bytes that a journal keeps.

Values are msgpack, written by msgspec. Knows nothing of annotations, journals, workflows or stores. Reads
`sys.modules`, to find classes that are loaded.

* pydantic models are written by field name (pydantic >= 2.11), without their private attributes; a model that declares
  serializers of its own is written by them. protobuf messages are their own bytes. Both only if loaded.
* Aware datetimes keep their instant. Paths and IP addresses are text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import reprlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import PurePath
from typing import Any, cast, get_args

import msgspec

from perdure.errors import Unencodable

DECODERS_LIMIT = 1_024
"""Annotations whose decoders are kept ready."""

PATH_LIMIT = 64
"""Levels into a value that the search for what cannot be encoded goes."""

TIP = "use builtin types, dataclasses, TypedDicts, or msgspec, attrs, pydantic or protobuf classes"
SCALARS = frozenset({str, int, float, bool, bytes, type(None)})
"""Classes whose values `encode_scalar` writes as they are."""
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
    """Return the msgpack bytes of a value, or raise `Unencodable` naming `where` it is from and what is in the way."""
    try:
        return encode_any(value)
    except Exception as error:
        raise unencodable(value, error, where) from error


def encode_for_digest(value: object, /, where: str = "the value") -> bytes:
    """Return bytes that are the same for equal values in every process: sets and mappings are sorted by their bytes.

    They need not be those of `encode`. Raises `Unencodable`.
    """
    try:
        return canonical(value)
    except Exception as error:
        raise unencodable(value, error, where) from error


def digest(payload: bytes, /) -> bytes:
    """Return 8 bytes (BLAKE2b) that tell payloads apart."""
    return hashlib.blake2b(payload, digest_size=8).digest()


def map_header(size: int, /) -> bytes:
    """Return the bytes that open a msgpack map of this many pairs."""
    return _header(0x80, 0xDE, size)


def _header(short: int, long: int, size: int) -> bytes:
    if size < 16:
        return bytes((short | size,))
    return bytes((long,)) + size.to_bytes(2, "big") if size < 65_536 else bytes((long + 1,)) + size.to_bytes(4, "big")


def _foreign(value: Any) -> object:
    """Give msgspec something it knows in place of a value it does not."""
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


def _model_fields(model: Any) -> object:
    """Return a pydantic model by field name: as it is held, unless the class says how it wants to be written."""
    cls: Any = model.__class__
    own = cls.__pydantic_decorators__
    marks = (type(mark).__module__ for field in cls.model_fields.values() for mark in field.metadata)
    if own.field_serializers or own.model_serializers or "pydantic.functional_serializers" in marks:
        return model.model_dump(by_alias=False, round_trip=True, warnings="error")
    if cls.__pydantic_root_model__:
        return model.root
    fields: dict[str, object] = {name: getattr(model, name) for name in cls.model_fields}
    return fields | cast("dict[str, object]", model.model_extra or {})


encode_any = msgspec.msgpack.Encoder(enc_hook=_foreign).encode
encode_scalar = msgspec.msgpack.Encoder().encode
decode_any = msgspec.msgpack.Decoder().decode


def canonical(value: Any, unordered: bool = False) -> bytes:
    """Encode with sets and mappings sorted; with `unordered`, lists too (they may have been sets)."""
    if value.__class__ in SCALARS:
        return encode_scalar(value)
    if isinstance(value, dict):
        entries = cast("dict[Any, Any]", value).items()
        pairs = sorted(canonical(key, unordered) + canonical(item, unordered) for key, item in entries)
        return map_header(len(pairs)) + b"".join(pairs)
    if isinstance(value, list | tuple | set | frozenset):
        values = cast("Iterable[Any]", value)
        items = [encode_scalar(item) if item.__class__ in SCALARS else canonical(item, unordered) for item in values]
        if unordered or isinstance(value, set | frozenset):
            items.sort()
        return _header(0x90, 0xDC, len(items)) + b"".join(items)
    names = _field_names(value.__class__)
    if names is not None:
        held = [(key, getattr(value, name)) for key, name in names]
        pairs = [key + canonical(item, unordered) for key, item in held if item is not msgspec.UNSET]
        return map_header(len(pairs)) + b"".join(pairs)
    try:
        return encode_scalar(value)
    except TypeError:
        return canonical(_foreign(value), unordered)


@lru_cache(maxsize=DECODERS_LIMIT)
def _field_names(cls: Any) -> tuple[tuple[bytes, str], ...] | None:
    """Return the fields of a Struct, dataclass or attrs class: their names encoded, in that order, and as they are."""
    if issubclass(cls, msgspec.Struct):
        names: Iterable[str] = cls.__struct_fields__
    elif dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls)]
    elif hasattr(cls, "__attrs_attrs__"):
        names = [attribute.name for attribute in cls.__attrs_attrs__]
    else:
        return None
    return tuple(sorted((encode_any(name), name) for name in names))


# --- what cannot be encoded, and where it is --------------------------------------------------------------------------


def unencodable(value: object, error: Exception, where: str) -> Unencodable:
    path, culprit, reason = _culprit(value, error)
    kind = type_name(type(culprit))
    return Unencodable(
        f"{where} cannot be recorded: {f'value{path}' if path else 'it'} is a {kind}; {reason}", path=path, type=kind
    )


def _culprit(value: object, error: Exception) -> tuple[str, object, str]:
    """Follow what cannot be encoded down to the smallest part. Return its path, itself and why."""
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
        names = cls.model_fields if model else [name for _, name in _field_names(cls) or ()]
        yield from ((f".{name}", getattr(value, name, None)) for name in names)


def type_name(annotation: object, /) -> str:
    """Return an annotation as a reader would write it, classes with their module unless it is `builtins`."""
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is not Any and isinstance(annotation, type) and not get_args(annotation):
        within = "" if annotation.__module__ == "builtins" else f"{annotation.__module__}."
        return f"{within}{annotation.__qualname__}"
    return str(annotation).replace("typing.", "")
