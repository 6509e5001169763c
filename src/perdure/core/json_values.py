"""Recorded values as JSON, and back, as their schema says.

What JSON has no form for is written as text where the schema tells what it means: bytes as base64, times as in RFC
3339, durations as in ISO 8601, decimals and UUIDs. Where the schema does not tell, and for what JSON cannot hold at
all, there is an object with one field:

    {"$perdure": {"bytes": "AAE="}}              bytes, datetime, where the type is not known
    {"$perdure": {"float": "nan"}}               numbers that are not finite
    {"$perdure": {"int": "9007199254740993"}}    integers beyond 2^53, which many readers would round
    {"$perdure": {"map": [[1, "a"]]}}            a map with keys that are not strings, or that looks like one of these
"""

from __future__ import annotations

import base64
import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import msgspec

from perdure.core.schema import ANY, Field, Node, Schema
from perdure.core.values import decode_any, encode_any
from perdure.errors import ValueRefused

DEPTH_LIMIT = 64
"""How deep a JSON value may be nested."""
WRITTEN_DEPTH_LIMIT = 200
"""Levels of a recorded value that are written as JSON; of what is nested deeper, only that is said."""
ERRORS_LIMIT = 20
"""Errors that are reported of one value."""
SAFE_INT = 2**53
"""Integers up to this size are the same in every reader of JSON (RFC 8259, 6)."""
MARK = "$perdure"


# --- to JSON ----------------------------------------------------------------------------------------------------------
def to_json(schema: Schema, data: bytes, /) -> Any:
    """Return a recorded value as builtin types that JSON can hold.

    What does not fit the schema is written as if nothing were known of it, so this works for every recorded value.
    """
    return _Writer(schema).value(schema.root, decode_any(data))


class _Writer:
    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._depth = 0

    def value(self, node: Node, value: Any) -> Any:
        node = self._schema.node(node)
        self._depth += 1
        try:
            return self._value(node, value)
        finally:
            self._depth -= 1

    def _value(self, node: Node, value: Any) -> Any:
        match value:
            case list() | dict() if self._depth > WRITTEN_DEPTH_LIMIT:
                return _marked("other", f"nested more than {WRITTEN_DEPTH_LIMIT} levels deep")
            case None | bool() | str():
                return value
            case int():
                return value if -SAFE_INT <= value <= SAFE_INT else _marked("int", str(value))
            case float():
                return value if math.isfinite(value) else _marked("float", str(value))
            case bytes():
                text = base64.b64encode(value).decode()
                return text if self._is(node, "bytes") else _marked("bytes", text)
            case datetime():
                text = value.isoformat().replace("+00:00", "Z")
                return text if self._is(node, "datetime") else _marked("datetime", text)
            case list():
                return self._list(among(self._schema, node, LISTS), cast("list[Any]", value))
            case dict():
                return self._map(node, cast("dict[Any, Any]", value))
            case _:  # an extension type
                return _marked("other", repr(value))

    def _list(self, node: Node, items: Sequence[Any]) -> list[Any]:
        if node.kind in ("list", "set") and node.item is not None:
            return [self.value(node.item, item) for item in items]
        nodes = [*node.items]
        if node.kind == "array":
            nodes = [*([ANY] if node.tag is not None else []), *(field.type for field in node.fields)]
        return [self.value(nodes[n] if n < len(nodes) else ANY, item) for n, item in enumerate(items)]

    def _map(self, node: Node, value: dict[Any, Any]) -> Any:
        node = among(self._schema, node, MAPS, value)
        types = {field.name: field.type for field in node.fields}
        rest = node.item if node.kind == "map" and node.item is not None else ANY
        if all(isinstance(key, str) for key in value) and set(value) != {MARK}:
            return {key: self.value(types.get(key, rest), item) for key, item in value.items()}
        keys = node.key if node.kind == "map" and node.key is not None else ANY
        return _marked("map", [[self.value(keys, key), self.value(rest, item)] for key, item in value.items()])

    def _is(self, node: Node, kind: str) -> bool:
        """Report whether a text can only mean this kind."""
        kinds = {each.kind for each in members(self._schema, node)}
        return kind in kinds and kinds <= {kind, *_NOT_TEXT}


_NOT_TEXT = ("null", "bool", "int", "float", "list", "set", "tuple", "array", "map", "object")


LISTS = ("list", "set", "tuple", "array")
MAPS = ("map", "object")


def among(schema: Schema, node: Node, kinds: Sequence[str], value: Mapping[Any, Any] | None = None, /) -> Node:
    """Return the member of a union that a list or map belongs to, `any` if that is not certain."""
    found = [each for each in members(schema, node) if each.kind in kinds]
    if value is not None and len(found) > 1:
        found = [each for each in found if each.tag is not None and value.get(each.tag[0]) == each.tag[1]]
    return found[0] if len(found) == 1 else ANY


def members(schema: Schema, node: Node, /) -> list[Node]:
    """Return the members of a union, also those of unions in it; of another type, itself."""
    node = schema.node(node)
    return [each for item in node.items for each in members(schema, item)] if node.kind == "union" else [node]


def _marked(kind: str, what: Any) -> dict[str, Any]:
    return {MARK: {kind: what}}


# --- from JSON --------------------------------------------------------------------------------------------------------
def from_json(schema: Schema, value: Any, /, *, what: str = "the value") -> bytes:
    """Return the recorded form of a value that was decoded from JSON. Raises `ValueRefused`, with all that is wrong."""
    reader = _Reader(schema)
    if is_deeper(value, DEPTH_LIMIT):
        reader.refuse("", f"it is nested more than {DEPTH_LIMIT} levels deep")
        found = None
    else:
        found = reader.value(schema.root, value, "")
    if reader.errors:
        at, why = reader.errors[0]
        more = f" (and {len(reader.errors) - 1} more)" if len(reader.errors) > 1 else ""
        text = f"{what} does not fit its type: {f'{at}: ' if at else ''}{why}{more}"
        raise ValueRefused(text, errors=tuple(reader.errors))
    return encode_any(found)


def is_deeper(value: Any, limit: int, /) -> bool:
    """Report whether lists and maps are nested deeper than that."""
    level: list[Any] = [value]
    for _ in range(limit + 1):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += cast("dict[str, Any]", each).values()
            elif isinstance(each, list):
                inner += cast("list[Any]", each)
        if not inner:
            return False
        level = inner
    return True


_REFUSED: Any = object()
"""What `_Reader.value` returns for a value that it has refused."""
_TEXTS: dict[str, tuple[Any, str]] = {
    "datetime": (datetime, "a time such as '2026-11-30T12:00:00Z'"),
    "date": (date, "a date such as '2026-11-30'"),
    "time": (time, "a time of the day such as '12:00:00'"),
    "duration": (timedelta, "a duration such as 'PT1.5S'"),
    "decimal": (Decimal, "a decimal number as a string, such as '1.50'"),
    "uuid": (UUID, "a UUID"),
}
"""Kinds that are written as text: the type that reads it, as msgspec does when the value is decoded."""
_NAMES = {
    "null": "null",
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bytes": "bytes as base64",
    "list": "a list",
    "set": "a list",
    "tuple": "a list",
    "array": "a list",
    "map": "an object",
    "object": "an object",
    **{kind: name for kind, (_, name) in _TEXTS.items()},
}
_FLOAT_MOST = 2**1023
_INT_LEAST, _INT_MOST = -(2**63), 2**64 - 1
_BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "gt": ("greater than", operator.gt),
    "ge": ("at least", operator.ge),
    "lt": ("less than", operator.lt),
    "le": ("at most", operator.le),
    "multiple_of": ("a multiple of", lambda value, bound: value % bound == 0),
    "flags": ("made of the bits of", lambda value, bound: int(value) | int(bound) == int(bound) and value >= 0),
}


_Known = dict[tuple[int, int, str], tuple[Any, list[tuple[str, str]]]]
"""What was read, and what was wrong, for each union, value and place."""


class _Reader:
    """Converts and checks at once. What is wrong is collected, with JSON pointers (RFC 6901)."""

    def __init__(self, schema: Schema, known: _Known | None = None) -> None:
        self.errors: list[tuple[str, str]] = []
        self._schema = schema
        self._known: _Known = {} if known is None else known
        self._readers: dict[str, Callable[[Node, Any, str], Any]] = {
            "null": lambda node, value, at: None if value is None else self._expected(node, value, at),
            "bool": lambda node, value, at: value if isinstance(value, bool) else self._expected(node, value, at),
            **dict.fromkeys(("int", "float"), self._number),
            **dict.fromkeys(("str", "bytes", *_TEXTS), self._text),
            **dict.fromkeys(("list", "set", "tuple", "array"), self._list),
            "object": self._object,
            "map": self._map_of_object,
            "values": self._one_of_values,
        }

    def refuse(self, at: str, why: str) -> Any:
        if len(self.errors) < ERRORS_LIMIT:
            self.errors.append((at, why))
        return _REFUSED

    def value(self, node: Node, value: Any, at: str) -> Any:
        node = self._schema.node(node)
        kind = node.kind
        if kind == "union":
            return self._union(node, value, at)
        if kind == "any":
            return self._any(value, at)
        marked = _mark_of(value)
        if marked is not None:
            return self._marked(node, *marked, at)
        return self._readers[kind](node, value, at)

    def _expected(self, node: Node, value: Any, at: str) -> Any:
        return self.refuse(at, f"expected {_NAMES[node.kind]}, got {_kind_of(value)}")

    # --- simple values ------------------------------------------------------------------------------------------------
    def _number(self, node: Node, value: Any, at: str) -> Any:
        is_int = isinstance(value, int) and not isinstance(value, bool)
        if not is_int and not (isinstance(value, float) and node.kind == "float"):
            return self._expected(node, value, at)
        if is_int and node.kind == "float" and SAFE_INT < abs(value) < _FLOAT_MOST:
            value, is_int = float(value), False
        if is_int and not _INT_LEAST <= value <= _INT_MOST:
            return self.refuse(at, "the integer is too large: at most 64 bits")
        for name, bound in node.bounds.items():
            text, holds = _BOUNDS[name]
            if not holds(value, bound):
                return self.refuse(at, f"expected a number that is {text} {bound:g}, got {value}")
        return value

    def _one_of_values(self, node: Node, value: Any, at: str) -> Any:
        if any(value == each and type(value) is type(each) for each in node.values):
            return value
        shown = ", ".join(map(_shown, node.values[:10]))
        return self.refuse(at, f"expected one of {shown}, got {_shown(value)}")

    def _text(self, node: Node, value: Any, at: str) -> Any:
        if not isinstance(value, str):
            return self._expected(node, value, at)
        if node.kind == "bytes":
            try:
                data = base64.b64decode(value, validate=True)
            except ValueError:
                return self.refuse(at, f"expected {_NAMES['bytes']}, got a string that is no base64")
            return self._sized(node, data, at)
        if node.kind == "str":
            try:
                value.encode()
            except UnicodeEncodeError:
                return self.refuse(at, "the string has half of a surrogate pair, which is no character")
            if node.pattern is not None and re.search(node.pattern, value) is None:
                return self.refuse(at, f"expected a string that matches {node.pattern!r}")
            return self._sized(node, value, at)
        type, name = _TEXTS[node.kind]
        try:
            found = msgspec.convert(value, type)
            encode_any(found)  # not every time with a zone is in the calendar of UTC
        except (ValueError, OverflowError):  # of msgspec, or of half of a surrogate pair
            return self.refuse(at, f"expected {name}, got {_shown(value)}")
        has_zone = isinstance(found, datetime | time) and found.tzinfo is not None
        if node.is_aware is not None and has_zone != node.is_aware:
            return self.refuse(at, f"expected a time {'with' if node.is_aware else 'without'} a time zone")
        return found

    def _sized(self, node: Node, value: Any, at: str) -> Any:
        if node.least is not None and len(value) < node.least:
            return self.refuse(at, f"expected a length of at least {node.least}, got {len(value)}")
        if node.most is not None and len(value) > node.most:
            return self.refuse(at, f"expected a length of at most {node.most}, got {len(value)}")
        return value

    # --- lists, maps and objects --------------------------------------------------------------------------------------
    def _list(self, node: Node, value: Any, at: str) -> Any:
        if not isinstance(value, list):
            return self._expected(node, value, at)
        items = cast("list[Any]", value)
        if node.kind in ("list", "set"):
            found = [self.value(node.item or ANY, item, f"{at}/{n}") for n, item in enumerate(items)]
            if node.kind == "set":
                found = [*{encode_any(each): each for each in found if each is not _REFUSED}.values()]
            return self._sized(node, found, at)
        if node.kind == "tuple":
            if len(items) != len(node.items):
                return self.refuse(at, f"expected a list of {len(node.items)}, got one of {len(items)}")
            pairs = zip(node.items, items, strict=True)
            return [self.value(each, item, f"{at}/{n}") for n, (each, item) in enumerate(pairs)]
        return self._array(node, items, at)

    def _array(self, node: Node, items: list[Any], at: str) -> Any:
        found: list[Any] = []
        if node.tag is not None:
            if not items or items[0] != node.tag[1]:
                return self.refuse(f"{at}/0", f"expected {_shown(node.tag[1])}")
            found.append(items[0])
        rest = items[len(found) :]
        required = least_length(node)
        if len(rest) < required or (node.is_strict and len(rest) > len(node.fields)):
            return self.refuse(at, f"expected a list of {required + len(found)} or more, got one of {len(items)}")
        for n, (field, item) in enumerate(zip(node.fields, rest, strict=False), start=len(found)):
            found.append(self.value(field.type, item, f"{at}/{n}"))
        return found

    def _object(self, node: Node, given: Any, at: str) -> Any:
        if not isinstance(given, dict):
            return self._expected(node, given, at)
        value, found = cast("dict[str, Any]", given), dict[str, Any]()
        if node.tag is not None:
            name, tag = node.tag
            if value.get(name, tag) != tag:
                return self.refuse(f"{at}/{_escaped(name)}", f"expected {_shown(tag)}, got {_shown(value[name])}")
            found[name] = tag
        known: dict[str, Field] = {field.name: field for field in node.fields}
        for field in node.fields:
            if field.name in value:
                found[field.name] = self.value(field.type, value[field.name], f"{at}/{_escaped(field.name)}")
            elif field.required:
                self.refuse(at, f"the field {field.name!r} is missing")
            elif field.default is not None:
                found[field.name] = decode_any(field.default)  # as a caller with the classes records it
        if node.item is not None:
            others = [name for name in value if name not in known and name not in found]
            found |= {name: self.value(node.item, value[name], f"{at}/{_escaped(name)}") for name in others}
        if node.is_strict:
            for name in value:
                if name not in known and not (node.tag is not None and name == node.tag[0]):
                    names = ", ".join(map(repr, known)) or "none"
                    self.refuse(f"{at}/{_escaped(name)}", f"there is no such field: the fields are {names}")
        return found

    def _map_of_object(self, node: Node, value: Any, at: str) -> Any:
        if not isinstance(value, dict):
            return self._expected(node, value, at)
        items = cast("dict[str, Any]", value).items()
        return self._map(node, [(key, item, f"{at}/{_escaped(key)}") for key, item in items], at, keys_are_text=True)

    def _map(self, node: Node, pairs: Sequence[tuple[Any, Any, str]], at: str, *, keys_are_text: bool) -> Any:
        key_node, item_node = self._schema.node(node.key or ANY), node.item or ANY
        found: dict[Any, Any] = {}
        for key, item, place in pairs:
            if keys_are_text and key_node.kind == "int" and re.fullmatch(r"-?\d{1,20}", key):
                key = int(key)
            read = self.value(key_node, key, place)
            if isinstance(read, list | dict):
                self.refuse(place, "a list or an object cannot be a key")
                continue
            value = self.value(item_node, item, place)
            if read is not _REFUSED:
                found[read] = value
        return self._sized(node, found, at)

    # --- what may be several things -----------------------------------------------------------------------------------
    def _union(self, node: Node, value: Any, at: str) -> Any:
        if not isinstance(value, list | dict):
            return self._one_ofmembers(node, value, at)
        # Once for each place: members that hold the union again would take time exponential in the depth.
        place = id(node), id(cast("object", value)), at
        if place not in self._known:
            attempt = _Reader(self._schema, self._known)
            found = attempt._one_ofmembers(node, value, at)
            self._known[place] = found, attempt.errors
        found, errors = self._known[place]
        for where, why in errors:
            self.refuse(where, why)
        return found

    def _one_ofmembers(self, node: Node, value: Any, at: str) -> Any:
        members = [self._schema.node(each) for each in node.items]
        if isinstance(value, dict) and _mark_of(value) is None:
            tagged = [each for each in members if each.tag is not None and each.kind == "object"]
            for each in tagged:
                assert each.tag is not None
                if each.tag[0] in value and value[each.tag[0]] == each.tag[1]:
                    return self.value(each, value, at)
            members = [each for each in members if each not in tagged]
            if tagged and not any(each.kind in ("object", "map", "any", "union") for each in members):
                names = ", ".join(_shown(each.tag[1]) for each in tagged if each.tag is not None)
                tag = cast("tuple[str, str | int]", tagged[0].tag)[0]
                return self.refuse(f"{at}/{_escaped(tag)}", f"expected one of {names}")
        reasons: list[list[tuple[str, str]]] = []
        fitting: list[tuple[Node, Any]] = []
        for each in members:
            attempt = _Reader(self._schema, self._known)
            found = attempt.value(each, value, at)
            if attempt.errors:
                reasons.append(attempt.errors)
            elif not node.is_strict:
                return found
            else:
                fitting.append((each, found))
        fitting = [each for each in fitting if _keeps_all(each[0], value)] or fitting
        if len(fitting) == 1:
            return fitting[0][1]
        if fitting:
            names = " and ".join(dict.fromkeys(_named(each) for each, _ in fitting))
            return self.refuse(at, f"it may be {names}: add what tells them apart")
        likely = [errors for errors in reasons if any(where != at for where, _ in errors)]
        if len(likely) == 1:  # the others failed at once: it was meant to be this one
            for where, why in likely[0]:
                self.refuse(where, why)
            return _REFUSED
        names = list(dict.fromkeys(_named(each) for each in node.items))
        return self.refuse(at, f"expected {', '.join(names[:-1])} or {names[-1]}, got {_kind_of(value)}")

    def _any(self, value: Any, at: str) -> Any:
        marked = _mark_of(value)
        if marked is not None:
            return self._marked(ANY, *marked, at)
        if isinstance(value, list):
            return [self._any(item, f"{at}/{n}") for n, item in enumerate(cast("list[Any]", value))]
        if isinstance(value, dict):
            items = cast("dict[str, Any]", value).items()
            return {self._any(key, at): self._any(item, f"{at}/{_escaped(key)}") for key, item in items}
        if isinstance(value, str):
            return self._text(Node("str"), value, at)
        if isinstance(value, int) and not isinstance(value, bool):
            return self._number(Node("int"), value, at)
        return value

    def _marked(self, node: Node, kind: str, what: Any, at: str) -> Any:
        """Read an object with the one field `$perdure`."""
        match kind, what:
            case "int", str() if re.fullmatch(r"-?\d{1,20}", what) and node.kind in ("int", "float", "any"):
                return self._number(node, int(what), at)
            case "float", ("nan" | "inf" | "-inf") if node.kind in ("float", "any"):
                return float(what)
            case "bytes", str() if node.kind in ("bytes", "any"):
                return self._text(Node("bytes", least=node.least, most=node.most), what, at)
            case "datetime", str() if node.kind in ("datetime", "any"):
                return self._text(Node("datetime", is_aware=node.is_aware), what, at)
            case "map", list() if node.kind in ("map", "any"):
                pairs = cast("list[Any]", what)
                if all(isinstance(pair, list) and len(cast("list[Any]", pair)) == 2 for pair in pairs):
                    places = [(key, item, f"{at}/{MARK}/map/{n}") for n, (key, item) in enumerate(pairs)]
                    return self._map(node, places, at, keys_are_text=False)
            case _:
                pass
        wanted = "" if node.kind == "any" else f", and {_named(node)} is expected"
        return self.refuse(at, f'{{"{MARK}": {{"{_text_of(kind)}": …}}}} does not say a value{wanted}')


def _keeps_all(node: Node, value: Any) -> bool:
    """Report whether a value that fits a member of a union has no fields that the member does not know."""
    if node.kind != "object" or node.item is not None or not isinstance(value, dict):
        return True
    names = {field.name for field in node.fields} | ({node.tag[0]} if node.tag is not None else set[str]())
    return cast("dict[str, Any]", value).keys() <= names


def least_length(node: Node) -> int:
    """Return how many fields an array has at least: up to the last one that is required."""
    return max((n for n, field in enumerate(node.fields, start=1) if field.required), default=0)


def _mark_of(value: Any) -> tuple[str, Any] | None:
    """Return what an object with the one field `$perdure` holds: a kind, and what is of it."""
    if isinstance(value, dict) and cast("dict[str, Any]", value).keys() == {MARK}:
        inner = cast("dict[str, Any]", value)[MARK]
        if isinstance(inner, dict) and len(cast("dict[str, Any]", inner)) == 1:
            return next(iter(cast("dict[str, Any]", inner).items()))
        return "?", cast("object", inner)
    return None


def _escaped(name: str) -> str:
    return _text_of(name).replace("~", "~0").replace("/", "~1")


def _text_of(text: str) -> str:
    """Return text that can be encoded: halves of surrogate pairs are shown."""
    return text.encode(errors="backslashreplace").decode()


def _shown(value: Any) -> str:
    try:
        text = msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # half of a surrogate pair, which is shown escaped
        text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


def _named(node: Node) -> str:
    return f"a {node.name}" if node.kind == "class" else _NAMES.get(node.kind, "one of some values")
