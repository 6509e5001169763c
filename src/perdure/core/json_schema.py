"""Schemas as JSON Schema (draft 2020-12), for OpenAPI documents and forms. It describes what `json_values` takes.

It is a little stricter than that: what is written as `{"$perdure": …}` is described only where a value can be nothing
else, for the keys of maps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perdure.core.json_values import MARK, least_length, to_json
from perdure.core.schema import Field, Node, Schema

Json = dict[str, Any]


def json_schema(schema: Schema, /, *, where: str = "#/$defs/") -> Json:
    """Return the JSON Schema of a schema. Its classes are under `$defs`, and referred to as `where` says."""
    return {
        **root_schema(schema, where=where),
        **({"$defs": defs} if (defs := definitions(schema, where=where)) else {}),
    }


def root_schema(schema: Schema, /, *, where: str) -> Json:
    """Return the JSON Schema of the value alone, whose classes are elsewhere."""
    return _Describer(schema, where).describe(schema.root)


def definitions(schema: Schema, /, *, where: str) -> Json:
    """Return the JSON Schema of each class, by name."""
    describer = _Describer(schema, where)
    return {name: describer.describe(node) for name, node in schema.classes.items()}


_FORMATS: dict[str, Json] = {
    "null": {"type": "null"},
    "bool": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "duration": {"type": "string", "format": "duration"},
    "decimal": {"type": "string", "format": "decimal"},
    "uuid": {"type": "string", "format": "uuid"},
}
_BOUNDS = {
    "gt": "exclusiveMinimum",
    "ge": "minimum",
    "lt": "exclusiveMaximum",
    "le": "maximum",
    "multiple_of": "multipleOf",
}


class _Describer:
    def __init__(self, schema: Schema, where: str) -> None:
        self._schema = schema
        self._where = where
        self._describers: dict[str, Callable[[Node], Json]] = {
            "any": lambda _: {},
            "int": lambda node: self._number("integer", node),
            "float": lambda node: self._number("number", node),
            "str": _string,
            "bytes": lambda _: {"type": "string", "contentEncoding": "base64"},  # lengths there are of the text
            "datetime": lambda node: {"type": "string", **({} if node.is_aware is False else {"format": "date-time"})},
            "list": self._list,
            "set": self._list,
            "tuple": lambda node: self._items([self.describe(each) for each in node.items], len(node.items)),
            "array": self._array,
            "map": self._map,
            "object": self._object,
            "values": lambda node: {"enum": [*node.values]},
            "union": self._union,
            "class": lambda node: {"$ref": f"{self._where}{node.name}"},
        }

    def describe(self, node: Node) -> Json:
        known = _FORMATS.get(node.kind)
        return dict(known) if known is not None else self._describers[node.kind](node)

    def _number(self, type: str, node: Node) -> Json:
        flags = {"minimum": 0, "maximum": node.bounds["flags"]} if "flags" in node.bounds else {}
        return {"type": type, **flags, **{_BOUNDS[name]: node.bounds[name] for name in node.bounds.keys() & _BOUNDS}}

    def _list(self, node: Node) -> Json:
        item = {} if node.item is None else self.describe(node.item)
        return {"type": "array", "items": item, **_sizes(node, "minItems", "maxItems")}

    def _items(self, items: list[Json], required: int, *, is_open: bool = False) -> Json:
        closed = {} if is_open else {"maxItems": len(items)}
        return {"type": "array", **({"prefixItems": items} if items else {}), "minItems": required, **closed}

    def _array(self, node: Node) -> Json:
        tag = [] if node.tag is None else [{"const": node.tag[1]}]
        fields = [self._field(field) for field in node.fields]
        required = len(tag) + least_length(node)
        return self._items([*tag, *fields], required, is_open=not node.is_strict)

    def _map(self, node: Node) -> Json:
        key = None if node.key is None else self._schema.node(node.key)
        item = {} if node.item is None else self.describe(node.item)
        plain: Json = {"type": "object", "additionalProperties": item, **_sizes(node, "minProperties", "maxProperties")}
        if key is None or key.kind in ("any", "str", "values", "date", "time", "uuid", "decimal"):
            return plain
        pair = self._items([{} if node.key is None else self.describe(node.key), item], 2)
        marked = _object({"map": {"type": "array", "items": pair}}, ["map"], is_strict=True)
        return {"anyOf": [plain, _object({MARK: marked}, [MARK], is_strict=True)]}

    def _object(self, node: Node) -> Json:
        tag: Json = {} if node.tag is None else {node.tag[0]: {"const": node.tag[1]}}
        fields = {field.name: self._field(field) for field in node.fields}
        required = [*tag, *(field.name for field in node.fields if field.required)]
        described = _object({**tag, **fields}, required, is_strict=node.is_strict)
        return described if node.item is None else {**described, "additionalProperties": self.describe(node.item)}

    def _field(self, field: Field) -> Json:
        described = self.describe(field.type)
        if field.default is not None:
            described = {**described, "default": to_json(Schema(field.type, self._schema.classes), field.default)}
        return described

    def _union(self, node: Node) -> Json:
        return {"anyOf": [self.describe(each) for each in node.items]}


def _object(properties: Json, required: list[str], *, is_strict: bool) -> Json:
    described: Json = {"type": "object", "properties": properties}
    if required:
        described["required"] = required
    if is_strict:
        described["additionalProperties"] = False
    return described


def _string(node: Node) -> Json:
    pattern = {} if node.pattern is None else {"pattern": node.pattern}
    return {"type": "string", **pattern, **_sizes(node, "minLength", "maxLength")}


def _sizes(node: Node, least: str, most: str) -> Json:
    sizes = ((least, node.least), (most, node.most))
    return {name: size for name, size in sizes if size is not None}


def without_defaults(described: Json) -> Json:
    """Return a JSON Schema without defaults, which are values."""
    found = {name: part for name, part in described.items() if name != "default"}
    for name in ("properties", "$defs"):
        if name in found:
            found[name] = {each: without_defaults(part) for each, part in found[name].items()}
    for name in ("prefixItems", "anyOf"):
        if name in found:
            found[name] = [without_defaults(part) for part in found[name]]
    for name in ("items", "additionalProperties"):
        if isinstance(found.get(name), dict):
            found[name] = without_defaults(found[name])
    return found
