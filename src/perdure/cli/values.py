"""Values as text on the command line: JSON, read and written by their types."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, cast

import msgspec
from msgspec import inspect

from perdure.core.types import decoder, from_wire, wire_type
from perdure.core.values import encode
from perdure.errors import PerdureError

SAMPLE_DEPTH_LIMIT = 8


# --- reading ----------------------------------------------------------------------------------------------------------
def reader(annotation: Any, /) -> Callable[[str], Any]:
    """Return the function that reads JSON as an annotation says; it raises ValueError with the reason.

    A JSON string (a str, a datetime, an enum of names ...) may leave its quotes out. JSON is tried first:
    for a `str`, both `"5"` and `5` are the str 5; for a `str | int`, `5` is the int. Bytes need their quotes, since
    base64 is easily mistaken for text; so does text that begins like an object or a list where one could be meant.
    """
    if _is_protobuf(annotation):
        return lambda text: _read_protobuf(annotation, text)
    read: Callable[[str], Any] = msgspec.json.Decoder(wire_type(annotation), dec_hook=from_wire).decode
    needs_quotes = annotation in (bytes, bytearray, memoryview)
    takes_containers = not needs_quotes and any(_fits(read, text) for text in ("{}", "[]"))

    def read_text(text: str) -> Any:
        try:
            return read(text)
        except msgspec.DecodeError as error:
            if not needs_quotes and not (takes_containers and text[:1] in ('"', "{", "[")):
                try:
                    return read(json.dumps(text))
                except msgspec.ValidationError as quoted:
                    if not is_json(text) and "got `str`" not in str(quoted):  # text of the right type
                        raise ValueError(f"it does not fit: {quoted}") from error
            why = "it does not fit" if isinstance(error, msgspec.ValidationError) else "it is not JSON"
            raise ValueError(f"{why}: {error}") from error

    return read_text


def is_json(text: str) -> bool:
    """Report whether a text is JSON of any type."""
    return _fits(msgspec.json.decode, text)


def _fits(read: Callable[[str], Any], text: str) -> bool:
    try:
        read(text)
    except msgspec.DecodeError:
        return False
    return True


def _is_protobuf(annotation: Any) -> bool:
    return isinstance(annotation, type) and any(
        each.__module__ == "google.protobuf.message" and each.__name__ == "Message" for each in annotation.__mro__
    )


def _read_protobuf(cls: Any, text: str) -> Any:
    from google.protobuf import json_format  # noqa: PLC0415  where such a class is, it is too

    try:
        return json_format.Parse(text, cls())
    except json_format.ParseError as error:
        raise ValueError(f"it does not fit: {error}") from error


# --- writing ----------------------------------------------------------------------------------------------------------
def as_builtin(value: Any, /) -> Any:
    """Convert a value for JSON; parts without a JSON form become their `repr`."""
    if _is_protobuf(type(value)):
        from google.protobuf import json_format  # noqa: PLC0415  where such a message is, it is too

        return json_format.MessageToDict(value, preserving_proto_field_name=True)
    try:
        return json.loads(msgspec.json.encode(_with_finite_numbers(decoder(Any)(encode(value)))))
    except (TypeError, ValueError, PerdureError):  # such as a mapping whose keys are tuples
        return repr(value)


def _with_finite_numbers(value: Any) -> Any:
    """Replace numbers that JSON does not have, which would become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, dict):
        return {key: _with_finite_numbers(item) for key, item in cast("dict[Any, Any]", value).items()}
    return [*map(_with_finite_numbers, cast("list[Any]", value))] if isinstance(value, list) else value


def to_json(value: Any, /) -> str:
    """Return a value as JSON."""
    return json.dumps(as_builtin(value), ensure_ascii=False)


def to_text(value: Any, /) -> str:
    """Return a str as it is, and anything else as JSON."""
    return value if isinstance(value, str) else to_json(value)


# --- examples ---------------------------------------------------------------------------------------------------------
_SAMPLES: dict[type[inspect.Type], Any] = {
    inspect.BoolType: True,
    inspect.IntType: 1,
    inspect.FloatType: 1.5,
    inspect.StrType: "text",
    inspect.AnyType: "text",
    inspect.NoneType: None,
    inspect.BytesType: "Ynl0ZXM=",
    inspect.DateTimeType: "2026-11-20T12:00:00Z",
    inspect.DateType: "2026-11-20",
    inspect.TimeType: "12:00:00",
    inspect.TimeDeltaType: "PT90S",
    inspect.UUIDType: "0190163d-8694-739b-aea5-966c26f8ad91",
    inspect.DecimalType: "1.50",
}


def sample(annotation: Any, /) -> str | None:
    """Return an example of JSON that an annotation accepts, or None."""
    if _is_protobuf(annotation):
        return None
    found = json.dumps(_sample(inspect.type_info(wire_type(annotation)), SAMPLE_DEPTH_LIMIT))
    return found if _fits(msgspec.json.Decoder(wire_type(annotation), dec_hook=from_wire).decode, found) else None


def _sample(node: inspect.Type, depth: int) -> Any:
    if depth == 0:
        return None
    match node:
        case inspect.ListType() | inspect.SetType() | inspect.FrozenSetType() | inspect.VarTupleType():
            return [_sample(node.item_type, depth - 1)]
        case inspect.TupleType():
            return [_sample(item, depth - 1) for item in node.item_types]
        case inspect.DictType():
            return {str(_sample(node.key_type, depth - 1)): _sample(node.value_type, depth - 1)}
        case inspect.DataclassType() | inspect.TypedDictType() | inspect.StructType():
            fields = [each for each in node.fields if each.required]
            return {each.encode_name: _sample(each.type, depth - 1) for each in fields}
        case inspect.NamedTupleType():
            return [_sample(each.type, depth - 1) for each in node.fields]
        case inspect.UnionType():
            return _sample(node.types[0], depth)
        case inspect.LiteralType():
            return node.values[0]
        case inspect.EnumType():
            return next(iter(cast("Any", node.cls))).value
        case inspect.Metadata():
            return _sample(node.type, depth)
        case _:
            return _SAMPLES.get(type(node))
