"""Log records as lines of JSON, and what they are about: invocation, handler, step and attempt.

The fields come from `extra=` or, for a record made in a step or a body, from where it was made. Nothing here raises for
a record that cannot be shown: a log call must not fail what it tells of.
"""

from __future__ import annotations

import json
import logging
import traceback
from copy import copy
from datetime import UTC, datetime
from typing import Any

from perdure.authoring.step import current_step
from perdure.core.turn import current_turn

_ABOUT = {"invocation_id": "invocation", "handler": "handler", "step": "step", "attempt": "attempt"}
"""Attributes of records, and the fields that show them."""
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
"""Attributes that every record has."""
_OURS = "perdure."
"""Begins the names of Perdure's own loggers, whose records say themselves what they are about."""


class InvocationFilter(logging.Filter):
    """Adds `invocation_id`, `handler`, `step` and `attempt` to records that are made in a step or a body.

    A record of a body that replays also has `replaying`. For handlers with a formatter of their own, and for a
    `QueueHandler`; `JsonFormatter` does the same.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        _note_origin(record)
        return True


def _note_origin(record: logging.LogRecord) -> None:
    """Add what a record is about, if it does not say so itself."""
    if record.name.startswith(_OURS) or hasattr(record, "invocation_id"):
        return
    found: dict[str, Any] = {}
    if (turn := current_turn()) is not None:
        found = {"invocation_id": turn.start.id, "handler": turn.start.handler}
        if turn.replaying:
            found["replaying"] = True
    elif (info := current_step.get(None)) is not None:
        found = {"invocation_id": info.invocation_id, "handler": info.handler}
        found |= {"step": info.step, "attempt": info.attempt}
    for name, value in found.items():
        if not hasattr(record, name):
            setattr(record, name, value)


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON.

    The fields are `time` (RFC 3339, in UTC), `level`, `logger`, `message`; `invocation`, `handler`, `step` and
    `attempt`, if it is about one; what `extra=` has besides; and `exception`, a traceback. What JSON has no form for is
    written as its `repr`. An extra with the name of another field gets an underscore behind.
    """

    def format(self, record: logging.LogRecord) -> str:
        _note_origin(record)
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="microseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message_of(record),
        }
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        for name, field in _ABOUT.items():
            if name in extra:
                found[field] = extra.pop(name)
        ends = self._ends(record)
        for name, value in extra.items():
            found[f"{name}_" if name in found or name in ends else name] = value
        return _json(found | ends)

    def _ends(self, record: logging.LogRecord) -> dict[str, str]:
        found: dict[str, str] = {}
        if record.exc_info and record.exc_info[0] is not None:
            try:
                found["exception"] = self.formatException(record.exc_info)
            except Exception:  # noqa: BLE001  an exception of the author's that cannot be shown
                frames = "".join(traceback.format_tb(record.exc_info[2]))
                found["exception"] = f"{frames}{record.exc_info[0].__name__}"
        if record.stack_info:
            found["stack"] = record.stack_info
        return found


class TextFormatter(logging.Formatter):
    """Writes records as `logging.Formatter` does, those included whose message cannot be formatted."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(record)
        except Exception:  # noqa: BLE001  the text and its values do not fit, or a value cannot be shown
            shown = copy(record)
            shown.msg, shown.args = _message_of(record), None
            return super().format(shown)


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001  the text and its values do not fit, or a value cannot be shown
        return f"{_shown(record.msg)} with {_shown(record.args)}, which cannot be formatted: {_shown(error)}"


def _json(fields: dict[str, Any]) -> str:
    try:
        return _encode(fields)
    except Exception:  # noqa: BLE001  a value has no form in JSON, or cannot be shown
        return _encode({name: _encodable(value) for name, value in fields.items()})


def _encodable(value: Any) -> Any:
    try:
        _encode(value)
    except Exception:  # noqa: BLE001  it is shown in another way
        return _shown(value)
    return value


def _encode(value: Any) -> str:
    # In ASCII: a stream that cannot encode a character would replace it by something that is not JSON.
    return json.dumps(value, allow_nan=False, default=repr)


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  an object of the author's
        return f"<{type(value).__name__} that cannot be shown>"
