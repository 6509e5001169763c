"""Invocations as tables for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import click
from msgspec import Struct
from rich.table import Table
from rich.text import Text

from perdure.cli.summary import duration_text
from perdure.cli.terminal import print_rich
from perdure.cli.values import as_builtin, to_text
from perdure.core.json_schema import json_schema
from perdure.core.schema import Schema
from perdure.operations.bulk import BulkProgress
from perdure.operations.describe import AwakeableInfo, Invocation, JournalStep
from perdure.operations.listing import Filters
from perdure.operations.schedules import ScheduleInfo

VALUE_LIMIT = 80
"""Characters of a value in a row of a table."""
FIELD_LIMIT = 1_000
"""Characters of a value on a line of its own."""
ROWS_LIMIT = 1_000
"""Rows of one table; more are in further tables."""
TRACEBACK_LIMIT = 12
"""Lines of a traceback that are shown, from its end."""

_INDEXED = (
    *("id", "handler", "status", "key", "tags", "created_at", "updated_at", "due"),
    *("waiting_for", "waiting_since", "waiting_until", "attempt"),
)
_NARROW = {"#", "status", "created", "changed", "began"}
_STYLES = {
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "paused": "magenta",
    "running": "cyan",
}


# --- JSON -------------------------------------------------------------------------------------------------------------
def print_json(what: object) -> None:
    """Print one JSON object on a line of its own, values whole."""
    click.echo(json.dumps(plain(what), ensure_ascii=False))


def plain(what: Any) -> Any:
    """Convert structs and their contents for JSON: times to ISO 8601, schemas to JSON Schema.

    What has no form in JSON is given as its `repr`.
    """
    if isinstance(what, dict):
        return {str(name): plain(value) for name, value in what.items()}  # type: ignore[reportUnknownVariableType]
    if isinstance(what, Schema):
        return json_schema(what)
    if isinstance(what, Struct):
        return {name: plain(getattr(what, name)) for name in what.__struct_fields__}
    if isinstance(what, datetime):
        return what.isoformat()
    if isinstance(what, tuple):
        return [plain(each) for each in what]  # type: ignore[reportUnknownVariableType]
    return as_builtin(what)


def indexed(invocation: Invocation) -> dict[str, Any]:
    """Return the fields of an invocation that `list` fills in, from the index."""
    return {name: plain(getattr(invocation, name)) for name in _INDEXED}


# --- text -------------------------------------------------------------------------------------------------------------
def shown(value: Any, limit: int = VALUE_LIMIT) -> str:
    """Return a value in one line of at most `limit` characters, without control characters."""
    text = to_text(value)
    cut = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in cut)


def time_text(at: datetime | None) -> str:
    """Return a time in UTC, to the second."""
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def age_text(at: datetime | None) -> str:
    """Return how long ago a time was, in the largest unit that is not too coarse."""
    if at is None:
        return ""
    seconds = max(0, round((datetime.now(UTC) - at).total_seconds()))
    for unit, size, most in (("s", 1, 120), ("m", 60, 7_200), ("h", 3_600, 172_800)):
        if seconds < most:
            return f"{seconds // size}{unit} ago"
    return f"{seconds // 86_400}d ago"


def status_text(status: str) -> Text:
    return Text(status, style=_STYLES.get(status, ""))


# --- tables -----------------------------------------------------------------------------------------------------------
def print_invocations(found: Sequence[Invocation]) -> None:
    """Print a table of invocations."""
    with_key = any(each.key is not None for each in found)
    rows = [
        [
            *(each.id, each.handler, status_text(each.status)),
            *([shown(each.key or "")] if with_key else []),
            *(age_text(each.created_at), age_text(each.updated_at)),
        ]
        for each in found
    ]
    print_table(["id", "handler", "status", *(["key"] if with_key else []), "created", "changed"], rows)


def print_awakeables(found: Sequence[AwakeableInfo]) -> None:
    """Print a table of awakeables."""
    rows = [
        [
            *(each.id, each.handler, shown(each.title or ""), shown(", ".join(each.assignees))),
            *(age_text(each.created_at), time_text(each.expires_at), "answered" if each.resolved else "open"),
        ]
        for each in found
    ]
    print_table(["id", "handler", "title", "assignees", "created", "expires", "status"], rows)


def print_schedules(found: Sequence[ScheduleInfo]) -> None:
    """Print a table of schedules."""
    rows = [
        [
            *(shown(each.name), each.handler, shown(_when(each))),
            *("paused" if each.paused_at else time_text(each.next_at), each.runs[-1] if each.runs else ""),
            *(f"{each.started:,}", f"{each.skipped:,}", f"{each.missed:,}", f"{each.refused:,}"),
        ]
        for each in found
    ]
    print_table(["name", "handler", "when", "next", "last run", "started", "skipped", "missed", "refused"], rows)


def print_schedule(one: ScheduleInfo) -> None:
    """Print all fields of a schedule, one per line."""
    unserved = "no worker here serves the handler: runs wait for one" if one.served is False else None
    print_fields(
        {
            "name": one.name,
            "handler": one.handler,
            "": unserved,
            "when": _when(one),
            "next": time_text(one.next_at),
            "paused": None if one.paused_at is None else f"since {time_text(one.paused_at)} {one.note}",
            "input": to_text(dict(one.input)),
            "overlap": one.overlap,
            "catches up with": duration_text(one.catch_up),
            "jitter": duration_text(one.jitter) if one.jitter else None,
            "key": one.key,
            "time limit": None if one.timeout is None else duration_text(one.timeout),
            "tags": ", ".join(f"{name}:{value}" for name, value in one.tags.items()),
            "made": time_text(one.created_at),
            "changed": time_text(one.changed_at),
            "runs now": ", ".join(one.running),
            "waits": ", ".join(one.waiting),
            "last run": one.runs[-1] if one.runs else None,
            "runs": f"{one.started:,} started, {one.refused:,} refused",
            "ticks left out": f"{one.skipped:,} skipped, {one.missed:,} missed",
        }
    )


def _when(one: ScheduleInfo) -> str:
    return f"every {duration_text(one.every)}" if one.every is not None else f"{one.cron} ({one.timezone})"


def print_fields(texts: Mapping[str, str | None]) -> None:
    """Print names and texts in two columns, without those that are empty."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in texts.items():
        if text:
            table.add_row(name, shown(text, FIELD_LIMIT))
    print_rich(table)


def print_steps(steps: Sequence[JournalStep]) -> None:
    """Print the commands of a journal and their outcomes."""
    rows = [
        [
            *(str(each.number), shown(each.step_type), status_text(each.status), str(each.attempts or "")),
            *(time_text(each.started_at), _took(each), _outcome(each)),
        ]
        for each in steps
    ]
    print_table(["#", "step", "status", "failed attempts", "began", "took", "result or error"], rows)


def _took(step: JournalStep) -> str:
    if step.started_at is None or step.ended_at is None or step.ended_at <= step.started_at:
        return ""  # begun and ended between two commits: how long it took is not recorded
    return duration_text((step.ended_at - step.started_at).total_seconds())


def _outcome(step: JournalStep) -> str:
    if step.error is not None:
        again = "" if step.due is None else f" (again at {time_text(step.due)})"
        return shown(step.error) + again
    if step.status == "pending":
        return "" if step.due is None else f"until {time_text(step.due)}"
    if step.invocation_id is not None and step.result is None:
        return step.invocation_id
    return "" if step.result is None else shown(step.result)


def print_jobs(found: Sequence[BulkProgress]) -> None:
    """Print a table of bulk jobs."""
    rows = [
        [
            *(each.id, each.verb, filters_text(each.filters), each.state, age_text(each.created_at)),
            *(f"{count:,}" for count in (each.matched, each.applied, each.accepted, each.refused, each.errors)),
        ]
        for each in found
    ]
    counts = ("matched", "applied", "accepted", "refused", "errors")
    print_table(["id", "verb", "filters", "state", "created", *counts], rows)


def filters_text(filters: Filters) -> str:
    """Return filters in one line."""
    found: list[str] = []
    for name, value in filters.items():
        if isinstance(value, Mapping):
            found += [f"tag={shown(tag)}:{shown(text)}" for tag, text in cast("Mapping[str, str]", value).items()]
        else:
            text = time_text(value) if isinstance(value, datetime) else shown(value)
            found.append(f"{name}={text}")
    return " ".join(found)


def print_counts(title: str, counts: Mapping[Any, int]) -> None:
    rows = [
        [status_text(name) if title == "status" else shown(name), Text(f"{count:,}", justify="right")]
        for name, count in counts.items()
    ]
    print_table([title, "invocations"], rows)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold", no_wrap=title in _NARROW)
    for row in rows:
        table.add_row(*row)
    print_rich(table)


def print_description(invocation: Invocation) -> None:
    """Print all fields of one invocation, one per line; the journal is only counted."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _fields(invocation):
        table.add_row(name, value)
    print_rich(table)
    if invocation.traceback is not None:
        lines = invocation.traceback.rstrip().splitlines()
        cut = lines[-TRACEBACK_LIMIT:]
        print_rich(
            "\n" + "\n".join([*(["…"] if len(cut) < len(lines) else []), *(shown(each, FIELD_LIMIT) for each in cut)])
        )


def _fields(one: Invocation) -> Iterable[tuple[str, str | Text]]:
    yield "id", one.id
    yield "handler", one.handler
    yield "status", status_text(one.status)
    texts = {
        "key": one.key,
        "parent": one.parent_id,
        "waits for": one.waiting_for,
        "paused because": one.paused_because if one.status == "paused" else None,
        "accepted, not applied": ", ".join(one.mail),
        "created": time_text(one.created_at),
        "due": time_text(one.due) if one.due != one.created_at else None,
        "began": time_text(one.started_at),
        "last change": time_text(one.updated_at),
        "ended": time_text(one.ended_at),
        "time limit": time_text(one.deadline),
        "cancel requested": time_text(one.cancel_requested_at),
        "retries": str(one.retries) if one.retries else None,
        "worker": f"{one.worker}, number {one.epoch}" if one.worker else None,
        "input": to_text(dict(one.input)),
        "steps": _counted(one.journal),
        "current step": _current(one.current_step),
    }
    for name, text in texts.items():
        if text:
            yield name, shown(text, FIELD_LIMIT)
    for name, value in one.state.items():
        yield "state", f"{shown(name)} = {shown(value, FIELD_LIMIT)}"
    for name, count in one.streams.items():
        yield "stream", f"{shown(name)} ({count:,} items)"
    for awakeable in one.awakeables:
        yield "awakeable", f"{awakeable.id} ({_told(awakeable)})"
    if one.status == "completed":
        yield "result", shown(one.result, FIELD_LIMIT)
    if one.error is not None:
        yield "error", shown(one.error, FIELD_LIMIT)


def _told(awakeable: AwakeableInfo) -> str:
    told = ["answered" if awakeable.resolved else "open"]
    if awakeable.expires_at is not None and not awakeable.resolved:
        told.append(f"until {time_text(awakeable.expires_at)}")
    if awakeable.assignees:
        told.append(f"for {shown(', '.join(awakeable.assignees), FIELD_LIMIT)}")
    if awakeable.title is not None:
        told.append(shown(awakeable.title, FIELD_LIMIT))
    return ", ".join(told)


def _counted(steps: Sequence[JournalStep]) -> str:
    counts: dict[str, int] = {}
    for step in steps:
        counts[step.status] = counts.get(step.status, 0) + 1
    return ", ".join(f"{count:,} {status}" for status, count in counts.items())


def _current(step: JournalStep | None) -> str | None:
    if step is None:
        return None
    text = f"#{step.number} {step.step_type}, since {time_text(step.started_at)}"
    if step.attempts:
        text += f", {step.attempts} failed attempts, the last: {step.error}"
    return text if step.due is None else f"{text}, due {time_text(step.due)}"
