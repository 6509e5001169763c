"""Forms for the answer to an awakeable, made from its schema, and what people fill in read back as JSON.

It knows no HTML: `approvals` draws the controls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from perdure.core.json_values import DEPTH_LIMIT, is_deeper, members, to_json
from perdure.core.schema import ANY, Field, Node, Schema

DECISION = "approved"
"""An answer with this field, or one that is a bool, is a decision: two buttons give it."""
LONG_TEXTS = ("comment", "comments", "description", "message", "note", "notes", "reason", "text")
"""Names of fields that may need several lines."""

Kind = Literal["line", "lines", "number", "date", "choice", "json"]

HINTS = {
    "datetime": "a time, as in 2026-11-30T12:00:00Z",
    "time": "a time of the day, as in 12:00:00",
    "duration": "a duration, as in PT1H30M",
    "decimal": "a number, as in 1.50",
    "uuid": "a UUID",
    "bytes": "bytes as base64",
}
"""What people are told of fields whose values are written as text."""


class Control(Struct, frozen=True):
    """A part of a form. `field` is the field of the answer that it gives, None if it gives the whole answer.

    `name` is that of the part in the form. `choices` are the texts of the values to choose from.
    """

    name: str
    field: str | None
    kind: Kind
    type: str
    required: bool
    is_nullable: bool
    values: tuple[Any, ...] = ()
    choices: tuple[str, ...] = ()
    hint: str = ""

    @property
    def label(self) -> str:
        """What people call it."""
        return "Answer" if self.field is None else label_of(self.field)


def label_of(field: str) -> str:
    """Return what people call a field."""
    words = field.replace("_", " ").strip()
    return words[:1].upper() + words[1:] or field


class Form(Struct, frozen=True):
    """How an answer is asked for. A decision has two buttons, and controls for what else the answer has.

    `root` is the type of the answer, without None where that is allowed too.
    """

    schema: Schema
    root: Node
    is_decision: bool
    controls: tuple[Control, ...]


def form_of(schema: Schema | None) -> Form:
    """Return the form for answers of a schema; one for any JSON if it is not known."""
    if schema is None:
        schema = Schema(ANY)
    root = _without_none(schema, schema.root)
    if root.kind in ("bool", "null"):
        return Form(schema, root, root.kind == "bool", ())
    if root.kind != "object" or root.item is not None:
        return Form(schema, root, False, (_control(schema, 0, None, schema.root, required=True),))
    is_decision = any(_is_decision(schema, each) for each in root.fields)
    asked = [each for each in root.fields if not (is_decision and _is_decision(schema, each))]
    controls = [_control(schema, n, each, each.type, required=each.required) for n, each in enumerate(asked)]
    return Form(schema, root, is_decision, tuple(controls))


def _without_none(schema: Schema, node: Node) -> Node:
    """Return the one type that a value can have beside None; `any` if there are several."""
    found = members(schema, node)
    others = [each for each in found if each.kind != "null"] or found
    return others[0] if len(others) == 1 else ANY


def _is_decision(schema: Schema, field: Field) -> bool:
    return field.name == DECISION and schema.node(field.type).kind == "bool"


def _control(schema: Schema, number: int, field: Field | None, node: Node, *, required: bool) -> Control:
    only = _without_none(schema, node)
    is_nullable = None in only.values or any(each.kind == "null" for each in members(schema, node))
    name = None if field is None else field.name
    values: tuple[Any, ...] = ()
    match only.kind:
        case "bool":
            kind, values = "choice", (True, False)
        case "values":
            kind, values = "choice", tuple(each for each in only.values if each is not None)
        case "int" | "float":
            kind = "number"
        case "str":
            kind = "lines" if name is None or name in LONG_TEXTS else "line"
        case "date":
            kind = "date"
        case "datetime" | "time" | "duration" | "decimal" | "uuid" | "bytes":
            kind = "line"
        case _:
            kind = "json"
    choices = tuple(map(shown, values))
    hint = "JSON" if kind == "json" else HINTS.get(only.kind, "")
    if field is not None and field.default is not None and (default := _default(schema, field)):
        hint = f"{hint}{'; ' if hint else ''}if empty: {default}"
    return Control(f"f{number}", name, kind, only.kind, required, is_nullable, values, choices, hint)


def _default(schema: Schema, field: Field) -> str:
    """Return the default of a field as people write it; nothing for one that is empty anyway."""
    assert field.default is not None
    value = to_json(Schema(field.type, schema.classes), field.default)
    return "" if value in ("", None, [], {}) else shown(value)


def shown(value: Any) -> str:
    """Return a JSON value as people write it."""
    if isinstance(value, bool):
        return "Yes" if value else "No"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


# --- what was filled in -----------------------------------------------------------------------------------------------
def answer_of(form: Form, given: Mapping[str, str], decision: bool | None) -> tuple[Any, dict[str, str]]:
    """Return the answer as JSON, and what is wrong with it by the names of controls.

    `decision` is what the button says, for a form that is one.
    """
    root = form.root
    if root.kind in ("bool", "null"):
        return decision, {}
    found: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    if root.tag is not None:
        found[root.tag[0]] = root.tag[1]
    if form.is_decision:
        found[DECISION] = decision
    for control in form.controls:
        text = given.get(control.name, "").replace("\r\n", "\n")
        if not text.strip():
            if not control.required:
                continue
            if control.is_nullable:
                found[control.field or ""] = None
            else:
                wrong[control.name] = "it is missing"
            continue
        try:
            found[control.field or ""] = _value(control, text)
        except ValueError as error:
            wrong[control.name] = str(error)
    is_whole = bool(form.controls) and form.controls[0].field is None
    return (found.get("") if is_whole else found), wrong


def _value(control: Control, text: str) -> Any:
    """Return what a text in a control stands for; `ValueError` if nothing."""
    match control.kind:
        case "choice":
            position = text.strip()
            if not position.isdecimal() or int(position) >= len(control.values):
                raise ValueError("choose one of these")
            return control.values[int(position)]
        case "number":
            return _number(text.strip())
        case "json":
            return _json(text)
        case _ if control.type == "str":
            return text
        case _:
            return text.strip()


def _number(text: str) -> int | float:
    try:
        return msgspec.json.decode(text, type=int | float)
    except (ValueError, UnicodeEncodeError):
        raise ValueError("write a number, as in 12 or 1.5") from None


def _json(text: str) -> Any:
    try:
        found = msgspec.json.decode(text)
        if not is_deeper(found, DEPTH_LIMIT):
            return found
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is not JSON: {error}") from None
    raise ValueError(f"it is nested more than {DEPTH_LIMIT} levels deep")


def wrong_controls(form: Form, errors: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Return what is wrong by the names of controls, from JSON pointers into the answer; the rest under ``."""
    found: dict[str, str] = {}
    by_field = {each.field: each.name for each in form.controls}
    for pointer, why in errors:
        first, _, rest = pointer.removeprefix("/").partition("/")
        field = first.replace("~1", "/").replace("~0", "~")
        name = by_field.get(None) or by_field.get(field, "")
        at = pointer if None in by_field else f"/{rest}" if rest else ""
        found.setdefault(name, f"{at}: {why}" if at else why)
    return found
