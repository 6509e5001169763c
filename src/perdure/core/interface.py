"""What a handler takes and returns, as data: for programs that start it without having its code.

A worker makes it from the function and publishes it. With it a server reads an input from JSON, and gives it the digest
that a caller with the classes gives it: so a start through both is one start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from inspect import Parameter
from typing import Any, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.core.json_schema import Json, definitions, root_schema
from perdure.core.json_values import LISTS, MAPS, among, from_json, to_json
from perdure.core.schema import Field, Node, Schema, schema_of, schema_of_fields
from perdure.core.signature import POSITIONAL, Signature, digest_of_pieces
from perdure.core.values import SCALARS, canonical, decode_any, encode_any, encode_scalar, list_of, map_of
from perdure.errors import ValueRefused

BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Interface(Struct, frozen=True, omit_defaults=True):
    """The parameters of a handler, as fields of an object, and its result.

    `positional` are those that a caller may give by position. `rest` names the one that takes further positional ones
    (`*args`), `others` the one that takes further named ones (`**kwargs`). `defaults` are recorded values. They are
    only shown: an input does not have the parameters that its caller left out.
    """

    input: Schema
    result: Schema
    positional: tuple[str, ...] = ()
    rest: str | None = None
    others: str | None = None
    description: str = ""
    defaults: dict[str, bytes] = {}

    def encode(self) -> bytes:
        """Return it as JSON, the same for equal ones."""
        return _encode(self)

    @property
    def hash(self) -> bytes:
        """A name for its contents: 16 bytes (BLAKE2b)."""
        return hashlib.blake2b(self.encode(), digest_size=16).digest()

    @property
    def only(self) -> Field | None:
        """The parameter, if there is just one: then JSON is its value, and not an object by name."""
        fields = self.input.root.fields
        return fields[0] if len(fields) == 1 and self.rest is None and self.others is None else None


decode_interface = msgspec.json.Decoder(Interface).decode
_encode = msgspec.json.Encoder(order="deterministic").encode


def interface_of(signature: Signature, returns: Any, description: str = "") -> Interface:
    """Return the interface of a function. Raises `AnnotationUnresolved`."""
    types = signature.types
    fields: list[tuple[str, object, bool]] = []
    named: dict[Any, str] = {}
    defaults: dict[str, bytes] = {}
    for one in signature.parameters:
        required = one.default is Parameter.empty and one.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        fields.append((one.name, types[one.name], required))
        named[one.kind] = one.name
        if (default := _default_of(one)) is not None:
            defaults[one.name] = default
    return Interface(
        schema_of_fields(fields),
        schema_of(returns),
        tuple(one.name for one in signature.parameters if one.kind in BY_POSITION),
        named.get(Parameter.VAR_POSITIONAL),
        named.get(Parameter.VAR_KEYWORD),
        description,
        defaults,
    )


def _default_of(parameter: Parameter) -> bytes | None:
    try:
        return None if parameter.default is Parameter.empty else encode_any(parameter.default)
    except Exception:  # noqa: BLE001  a default that cannot be recorded is not described
        return None


# --- inputs as JSON ---------------------------------------------------------------------------------------------------
MISSING: Any = object()
"""Stands for an input that the caller left out."""


def input_from_json(interface: Interface, value: Any, /) -> bytes:
    """Return the recorded form of an input that was decoded from JSON. Raises `ValueRefused`, with all that is wrong.

    It is the value of the one parameter, or else an object by name.
    """
    only = interface.only
    if only is not None and (value is not MISSING or only.required):
        if value is MISSING:
            raise ValueRefused(f"the input is missing: {only.name!r}", errors=(("", "it is missing"),))
        return _recorded({only.name: decode_any(from_json(_schema(interface, only.type), value, what="the input"))})
    given: Any = {} if value is MISSING or (value is None and not interface.input.root.fields) else value
    if interface.others is None or not isinstance(given, dict):
        return _recorded(decode_any(from_json(interface.input, given, what="the input")))
    root, mapping = interface.input.root, cast("dict[str, Any]", given)
    known = {field.name: field for field in root.fields}
    taken = known.pop(interface.others)
    ours, others = replace(root, fields=tuple(known.values())), {**mapping}
    named = {name: others.pop(name) for name in mapping if name in known}
    found = decode_any(from_json(_schema(interface, ours), named, what="the input"))
    if others:
        found[taken.name] = decode_any(from_json(_schema(interface, taken.type), others, what="the input"))
    return _recorded(found)


def _recorded(arguments: dict[str, Any]) -> bytes:
    """Record arguments as a caller does that has not the classes, so that the worker validates them."""
    return encode_any({POSITIONAL: [], **arguments})


def input_to_json(interface: Interface, data: bytes, /) -> Any:
    """Return a recorded input as an object by name, of builtin types that JSON can hold."""
    return to_json(interface.input, data)


def input_schema(interface: Interface, /, *, where: str) -> Json:
    """Return the JSON Schema of what `input_from_json` takes; its classes are elsewhere, as `where` says."""
    only = interface.only
    if only is not None:
        described = root_schema(_schema(interface, only.type), where=where)
        return {**described, **_default(interface, only)}
    described = root_schema(interface.input, where=where)
    for field in interface.input.root.fields:
        described["properties"][field.name].update(_default(interface, field))
    if interface.others is not None:
        taken: Json = described["properties"].pop(interface.others)
        described["additionalProperties"] = taken.get("additionalProperties", {})
    return described


def _default(interface: Interface, field: Field) -> Json:
    recorded = interface.defaults.get(field.name)
    return {} if recorded is None else {"default": to_json(_schema(interface, field.type), recorded)}


def classes_of(interface: Interface, /, *, where: str) -> tuple[Json, Json]:
    """Return the JSON Schemas of the classes of the input and of the result, by name."""
    return definitions(interface.input, where=where), definitions(interface.result, where=where)


def _schema(interface: Interface, root: Node) -> Schema:
    return Schema(root, interface.input.classes)


# --- digests ----------------------------------------------------------------------------------------------------------
def identity(interface: Interface, data: bytes, /) -> bytes:
    """Return the digest of a recorded input, the one that `Signature.identity` gives a caller with the classes.

    Where the schema does not tell which member of a union a value is, it may be another one.
    """
    recorded: dict[str, Any] = decode_any(data)
    writer = _Canonical(interface.input)
    types = {field.name: field.type for field in interface.input.root.fields}
    positional: list[bytes] = []
    named: dict[str, bytes] = {}
    order = iter(interface.positional)
    for name, value in ((name, recorded[name]) for name in types if name in recorded):
        is_next = not named and name == next(order, None)
        if name == interface.rest and not named and len(positional) == len(interface.positional):
            item = _member(types[name])
            positional += [writer.write(item, each) for each in value]
        elif name == interface.others:
            item = _member(types[name])
            named |= {key: writer.write(item, each) for key, each in value.items()}
        elif is_next:
            positional.append(writer.write(types[name], value))
        else:
            named[name] = writer.write(types[name], value)
    return digest_of_pieces(positional, named)


def _member(node: Node) -> Node:
    return Node("any") if node.item is None else node.item


class _Canonical:
    """Writes recorded values as `values.canonical` writes the objects that they were."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def write(self, node: Node, value: Any) -> bytes:
        if value.__class__ in SCALARS:
            return encode_scalar(value)
        if isinstance(value, list):
            return self._list(node, cast("list[Any]", value))
        if isinstance(value, dict):
            return self._map(node, cast("dict[Any, Any]", value))
        return canonical(value)

    def _list(self, node: Node, items: list[Any]) -> bytes:
        node = among(self._schema, node, LISTS)
        if node.kind == "array":
            return self._array(node, items)
        nodes: Iterable[Node] = node.items if node.kind == "tuple" else [_member(node)] * len(items)
        written = [self.write(each, item) for each, item in zip(nodes, items, strict=False)]
        return list_of(sorted(written) if node.kind == "set" else written)

    def _array(self, node: Node, items: list[Any]) -> bytes:
        values = items if node.tag is None else items[1:]
        found = {field.name: value for field, value in zip(node.fields, values, strict=False)}
        pieces = self._fields(node, found)
        if any(field.attribute for field in node.fields):
            return map_of(sorted(name + piece for name, piece in pieces))
        return list_of([piece for _, piece in pieces])

    def _map(self, node: Node, value: Mapping[Any, Any]) -> bytes:
        node = among(self._schema, node, MAPS, value)
        if node.kind == "object":
            return map_of(sorted(name + piece for name, piece in self._fields(node, value)))
        keys = Node("any") if node.key is None else node.key
        item = _member(node)
        return map_of(sorted(self.write(keys, key) + self.write(item, each) for key, each in value.items()))

    def _fields(self, node: Node, value: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
        """Return the encoded name and value of each field; one that is missing has its default, if it has one."""
        pieces: list[tuple[bytes, bytes]] = []
        for field in node.fields:
            name = encode_scalar(field.attribute or field.name)
            if field.name in value:
                pieces.append((name, self.write(field.type, value[field.name])))
            elif field.default is not None:
                pieces.append((name, self.write(field.type, decode_any(field.default))))
        return pieces
