"""Schemas of recorded values: what an annotation says, as data that a program without the classes can use.

A schema is made by a worker, from an annotation. With it a server converts recorded values to JSON and back (see
`json_values`), and describes them to callers as JSON Schema, without importing what the author wrote.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any, Literal, cast, get_origin

import msgspec
import msgspec.inspect as inspect
from msgspec import Struct

from perdure.core.types import Choice, Recursion, wire_type
from perdure.core.values import DECODERS_LIMIT, decode_any, encode_any, fields_of, loaded, writes_itself
from perdure.errors import AnnotationUnresolved

CLASSES_LIMIT = 1_000
"""Classes that one schema may describe; those beyond are `any`."""
ANSWER_SCHEMA_LIMIT_BYTES = 4_096
"""The longest schema of an answer that is recorded with its awakeable."""

Kind = Literal[
    "any",
    "null",
    "bool",
    "int",
    "float",
    "str",
    "bytes",
    "datetime",
    "date",
    "time",
    "duration",
    "decimal",
    "uuid",
    "list",
    "set",
    "tuple",
    "map",
    "object",
    "array",
    "values",
    "union",
    "class",
]


class Field(Struct, frozen=True, omit_defaults=True, array_like=True):
    """A field of an object or array: its recorded name, its type, and its recorded default, if it has a fixed one.

    A field that is not required may be left out; then it has its default, or one that is made anew. `attribute` is its
    name in the class, if that is another one than is recorded, or if none is recorded.
    """

    name: str
    type: Node
    required: bool = True
    default: bytes | None = None
    attribute: str = ""


class Node(Struct, frozen=True, omit_defaults=True):
    """A type of recorded values.

    | kind | the value, and the fields that say more |
    |---|---|
    | `list`, `set` | of `item`; `least` and `most` bound their lengths, as those of `str` and `bytes` |
    | `tuple` | one of each of `items` |
    | `map` | from `key` to `item` |
    | `object` | a map with `fields` by name, and `tag`, a name and a value, if it is told apart by that; if it takes
      other fields, these are of `item` |
    | `array` | the same as a list, the tag first |
    | `int`, `float` | within `bounds`; the one named `flags` has all bits that the value may have |
    | `values` | one of `values` |
    | `datetime`, `time` | with a time zone if `is_aware`, without one if not; None: either |
    | `union` | one of `items`, the first that a value fits; the only one, if `is_strict` |
    | `class` | the class `name` of the schema |
    """

    kind: Kind
    name: str = ""
    item: Node | None = None
    key: Node | None = None
    items: tuple[Node, ...] = ()
    fields: tuple[Field, ...] = ()
    tag: tuple[str, str | int] | None = None
    values: tuple[str | int | None, ...] = ()
    is_strict: bool = False
    is_aware: bool | None = None
    least: int | None = None
    most: int | None = None
    bounds: dict[str, int | float] = {}
    pattern: str | None = None


class Schema(Struct, frozen=True, omit_defaults=True):
    """The type of a value, and the classes in it by name."""

    root: Node
    classes: dict[str, Node] = {}

    def encode(self) -> bytes:
        """Return the schema as JSON, the same for equal schemas."""
        return _encode(self)

    @property
    def hash(self) -> str:
        """A name for the contents of the schema: 32 hexadecimal digits (BLAKE2b)."""
        return hashlib.blake2b(self.encode(), digest_size=16).hexdigest()

    def node(self, node: Node) -> Node:
        """Return a node, that of its class if it names one."""
        return self.classes[node.name] if node.kind == "class" else node


decode_schema = msgspec.json.Decoder(Schema).decode
_encode = msgspec.json.Encoder(order="deterministic").encode

ANY = Node("any")


def schema_of(annotation: object, /) -> Schema:
    """Return the schema of an annotation. Raises `AnnotationUnresolved` for a type that nothing can decode."""
    builder = _Builder()
    root = builder.of(annotation)
    return Schema(root, builder.classes)


def answer_schema(annotation: object, /) -> bytes:
    """Return the encoded schema of an awakeable's answer, to be recorded with it.

    It is empty if the schema says nothing, is too long, or cannot be made: then an answer is asked for as plain JSON.
    """
    try:
        return _cached_answer_schema(annotation)
    except TypeError:  # not hashable, such as Annotated[int, []]
        return _new_answer_schema(annotation)


@lru_cache(maxsize=DECODERS_LIMIT)
def _cached_answer_schema(annotation: object) -> bytes:
    return _new_answer_schema(annotation)


def _new_answer_schema(annotation: object) -> bytes:
    try:
        schema = schema_of(annotation)
        data = schema.encode()
    except Exception:  # noqa: BLE001  annotations may be anything; a body must not fail because one is not described
        return b""
    return b"" if schema.root == ANY or len(data) > ANSWER_SCHEMA_LIMIT_BYTES else data


def schema_of_fields(fields: Iterable[tuple[str, object, bool]], /) -> Schema:
    """Return the schema of an object with these fields: name, annotation, whether it is required."""
    builder = _Builder()
    made = tuple(Field(name, builder.of(type), required) for name, type, required in fields)
    return Schema(Node("object", fields=made, is_strict=True), builder.classes)


class _Builder:
    """Builds nodes from annotations, and collects classes, each under a name of its own."""

    def __init__(self) -> None:
        self.classes: dict[str, Node] = {}
        self._names: dict[Any, str] = {}
        self._makers: dict[type[Any], Callable[[Any], Node]] = {
            **{info: partial(_simple, kind) for info, kind in _SIMPLE.items()},
            **dict.fromkeys((inspect.IntType, inspect.FloatType), _number),
            **dict.fromkeys((inspect.BytesType, inspect.ByteArrayType, inspect.MemoryViewType), _bytes),
            **dict.fromkeys((inspect.ListType, inspect.VarTupleType, inspect.CollectionType), self._list),
            **dict.fromkeys((inspect.SetType, inspect.FrozenSetType), self._list),
            **dict.fromkeys((inspect.StructType, inspect.DataclassType), lambda info: self._class(info.cls, info)),
            **dict.fromkeys((inspect.TypedDictType, inspect.NamedTupleType), lambda info: self._class(info.cls, info)),
            inspect.StrType: _string,
            inspect.DateTimeType: lambda info: Node("datetime", is_aware=info.tz),
            inspect.TimeType: lambda info: Node("time", is_aware=info.tz),
            inspect.TupleType: lambda info: Node("tuple", items=tuple(map(self._node, info.item_types))),
            inspect.DictType: self._map,
            inspect.EnumType: lambda info: _values_of(info.cls),
            inspect.LiteralType: lambda info: Node("values", values=tuple(info.values)),
            inspect.UnionType: lambda info: Node("union", items=tuple(map(self._node, info.types))),
            inspect.CustomType: lambda info: self._custom(info.cls),
        }

    def of(self, annotation: Any) -> Node:
        return self._node(inspect.type_info(wire_type(annotation, read=_reads)))

    def _node(self, info: Any) -> Node:
        if isinstance(info, inspect.Metadata):
            return self._node(info.type)
        make = self._makers.get(cast("type[Any]", type(info)))
        return ANY if make is None else make(info)

    def _list(self, info: Any) -> Node:
        is_set = isinstance(info, inspect.SetType | inspect.FrozenSetType)
        item = self._node(info.item_type)
        return Node("set" if is_set else "list", item=item, least=info.min_length, most=info.max_length)

    def _map(self, info: Any) -> Node:
        key, value = self._node(info.key_type), self._node(info.value_type)
        return Node("map", key=key, item=value, least=info.min_length, most=info.max_length)

    def _class(self, cls: Any, info: Any = None) -> Node:
        """Return a reference to a class, which `info` describes; without it, to a model of pydantic."""
        if cls not in self._names:
            if len(self._names) >= CLASSES_LIMIT:
                return ANY
            wanted = getattr(get_origin(cls) or cls, "__name__", "Class")
            self._names[cls] = name = self._free(wanted)
            self.classes[name] = ANY  # it may hold itself
            self.classes[name] = self._pydantic(cls) if info is None else self._object(info)
        return Node("class", name=self._names[cls])

    def _free(self, wanted: str) -> str:
        wanted = re.sub(r"[^\w.-]+", "_", wanted).strip("_") or "Class"  # it becomes part of a URI
        name, number = wanted, 1
        while name in self.classes:
            number += 1
            name = f"{wanted}{number}"
        return name

    def _object(self, info: Any) -> Node:
        if isinstance(info, inspect.NamedTupleType):
            return Node("array", fields=tuple(self._field(each) for each in info.fields), is_strict=True)
        is_array = isinstance(info, inspect.StructType) and info.array_like
        fields = tuple(self._field(each, is_named=not is_array) for each in info.fields)
        if not isinstance(info, inspect.StructType):
            return Node("object", fields=fields)
        tag = None
        if info.tag is not None and info.tag_field is not None:
            tag = (info.tag_field, info.tag)
        kind: Kind = "array" if info.array_like else "object"
        return Node(kind, fields=fields, tag=tag, is_strict=info.forbid_unknown_fields)

    def _field(self, field: inspect.Field, *, is_named: bool = True) -> Field:
        default = None
        if field.default is not msgspec.NODEFAULT and field.default is not msgspec.UNSET:
            default = _recorded(lambda: field.default)
        elif field.default_factory is not msgspec.NODEFAULT:
            default = _recorded(field.default_factory)
        attribute = "" if is_named and field.encode_name == field.name else field.name
        return Field(field.encode_name, self._node(field.type), field.required, default, attribute)

    # --- classes that msgspec does not know ---------------------------------------------------------------------------
    def _custom(self, cls: Any) -> Node:
        if cls is object:
            return ANY
        if issubclass(cls, Recursion):
            return self._recursion(cls)
        if issubclass(cls, _HasOptions):
            return Node("union", items=tuple(self.of(each) for each in _options_of(cls)), is_strict=True)
        if issubclass(cls, _model()):
            return self._class(cls)
        if issubclass(cls, loaded("google.protobuf.message", "Message")):
            return Node("bytes")
        return Node("str")  # written as text

    def _recursion(self, cls: Any) -> Node:
        """Return a reference to a named alias that holds itself."""
        if cls not in self._names:
            self._names[cls] = name = self._free(cls.name)
            self.classes[name] = ANY  # it holds itself
            self.classes[name] = self.of(cls.value)
        return Node("class", name=self._names[cls])

    def _pydantic(self, cls: Any) -> Node:
        if writes_itself(cls):
            return ANY
        cls.model_rebuild(raise_errors=False)  # pydantic finds what an annotation names when the model is first used
        if cls.__pydantic_root_model__:
            return self._of_pydantic(cls.model_fields["root"].annotation)
        defaults = {field.name: field.default for field in fields_of(cls) or ()}
        fields = tuple(
            Field(name, self._of_pydantic(field.annotation), field.is_required(), defaults.get(name))
            for name, field in cls.model_fields.items()
        )
        extra = cls.model_config.get("extra")
        return Node("object", fields=fields, is_strict=extra == "forbid", item=ANY if extra == "allow" else None)

    def _of_pydantic(self, annotation: Any) -> Node:
        """Return the node of a field. pydantic's own rules are checked by the worker, and not said here."""
        try:
            return self.of(annotation)
        except AnnotationUnresolved:
            return ANY


_SIMPLE: Mapping[type[Any], Kind] = {
    inspect.AnyType: "any",
    inspect.RawType: "any",
    inspect.ExtType: "any",
    inspect.NoneType: "null",
    inspect.BoolType: "bool",
    inspect.DateType: "date",
    inspect.TimeDeltaType: "duration",
    inspect.DecimalType: "decimal",
    inspect.UUIDType: "uuid",
}

_HasOptions: type[Any] = Choice


def _simple(kind: Kind, _info: Any) -> Node:
    return Node(kind)


def _number(info: Any) -> Node:
    bounds = {name: getattr(info, name) for name in ("gt", "ge", "lt", "le", "multiple_of")}
    kind: Kind = "int" if isinstance(info, inspect.IntType) else "float"
    return Node(kind, bounds={name: value for name, value in bounds.items() if value is not None})


def _string(info: Any) -> Node:
    return Node("str", least=info.min_length, most=info.max_length, pattern=info.pattern)


def _bytes(info: Any) -> Node:
    return Node("bytes", least=info.min_length, most=info.max_length)


def _reads(_annotation: object) -> Callable[[bytes], Any]:
    """Make the decoder of a member of a union, which a schema does not need."""
    return decode_any


def _options_of(cls: Any) -> tuple[Any, ...]:
    return cls.members


def _model() -> type[Any]:
    return loaded("pydantic.main", "BaseModel")


def _values_of(cls: type[enum.Enum]) -> Node:
    if issubclass(cls, enum.Flag):
        flags = 0
        for member in cls:
            flags |= member.value
        return Node("int", bounds={"flags": flags})
    return Node("values", values=tuple(member.value for member in cls))


def _recorded(make: Callable[[], Any]) -> bytes | None:
    """Return a default as it is recorded; None if it cannot be, or is made anew each time."""
    try:
        one, other = encode_any(make()), encode_any(make())
    except Exception:  # noqa: BLE001  a default that cannot be recorded is not described
        return None
    return one if one == other else None
