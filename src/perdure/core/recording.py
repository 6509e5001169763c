"""Encodes values for a journal, and refuses those that would come back as something else.

Knows nothing of journals, workflows or stores.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, cast

import msgspec
import msgspec.inspect

from perdure.core.types import Choice, classes_in, classes_of, decoder, has_hooks, validator
from perdure.core.values import DECODERS_LIMIT, SCALARS, encode_any, fields_of, loaded, type_name, unencodable
from perdure.errors import AnnotationUnresolved, Undecodable, Unencodable

_PLAIN = frozenset({str, int, float, bool, bytes})


def encode_as(value: object, annotation: Any, where: str, /) -> bytes:
    """Return the bytes of a value after proving that they decode as its annotation says, to what it is.

    Raises `Unencodable` if they do not, `AnnotationUnresolved` if nothing decodes the annotation; both name `where`.
    Builtin types in place of a pydantic model are validated, and recorded as the model holds them.
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
            return again if _is_built(annotation) else payload
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
    """Where a value differs from what it decodes to. `is_raw`: it is of builtin types, to be converted to a class."""

    path: str
    type: str
    reason: str
    is_raw: bool = False


def difference(value: Any, candidate: Any, path: str = "", /) -> Lost | None:
    """Return where a value has another class than it decodes to, or a field that is not written, if anywhere."""
    cls, expected = value.__class__, candidate.__class__
    if cls in SCALARS or expected in SCALARS:
        return None
    if fields_of(expected) is not None:
        if cls is not expected and not _is_same_class(cls, expected):
            if fields_of(cls) is None:
                return Lost(path, type_name(cls), "", is_raw=True)
            return Lost(path, type_name(cls), _as_another(cls, expected))
        if cls is not expected and (anew := _defined_anew(cls, expected)):
            return Lost(path, type_name(cls), anew)
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
    """Report whether an instance keeps its class: the same one, the same defined anew, or its generic origin."""
    if (cls.__module__, cls.__qualname__) == (expected.__module__, expected.__qualname__):
        return True
    mine, other = (getattr(each, "__pydantic_generic_metadata__", {}).get("origin") for each in (cls, expected))
    return (mine or cls) is (other or expected)


def _defined_anew(cls: Any, expected: Any) -> str:
    fields, known = ({field.name for field in fields_of(each) or ()} for each in (cls, expected))
    if fields == known:
        return ""
    changed = " and ".join(map(repr, sorted(fields ^ known)))
    return (
        f", which was defined anew with other fields ({changed}) than the class of the annotation: define the function "
        "that is annotated anew as well"
    )


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
        plain = {one.name for one in info.fields if not any(classes_in(one.type, set()))}
    except Exception:  # noqa: BLE001  a pydantic model, or a field that is never decoded so
        return names
    return tuple(name for name in names if name not in plain)


def _holds_classes(annotation: Any) -> bool:
    try:
        return bool(classes_of(annotation))
    except TypeError:  # not hashable
        return True


def _is_built(annotation: Any) -> bool:
    """Report whether code of the author may change builtin types on decoding: validators of a model, or hooks."""
    if has_hooks(annotation):
        return True
    try:
        found: Iterable[Any] = classes_of(annotation)
    except TypeError:  # not hashable
        return True
    return any(issubclass(cls, (Choice, loaded("pydantic.main", "BaseModel"))) for cls in found)
