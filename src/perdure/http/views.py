"""What the routes give: invocations, steps, awakeables and handlers as JSON.

Times are text (RFC 3339), but that of an awakeable's creation, which is in seconds since the Unix epoch. Values are
written by their schema (`core.json_values`), where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct

from perdure.core.failures import Failure
from perdure.core.interface import Interface
from perdure.core.json_schema import json_schema
from perdure.core.json_values import to_json
from perdure.core.schema import ANY, Schema
from perdure.core.values import encode_any
from perdure.operations.describe import AwakeableInfo, Invocation, JournalStep
from perdure.operations.listing import Status
from perdure.operations.port import Minute, Outcome, Value

UNTYPED = Schema(ANY)


class WorkflowRow(Struct, frozen=True):
    """An invocation, as lists show it: `attempt` is that of a step that is tried again, 0 if none is."""

    invocation_id: str
    handler: str
    status: Status
    key: str | None
    tags: Mapping[str, str]
    created_at: datetime | None
    updated_at: datetime | None
    due: datetime | None
    waiting_for: str | None
    waiting_since: datetime | None
    waiting_until: datetime | None
    attempt: int


class WorkflowPage(Struct, frozen=True):
    """Some invocations, newest first, and the cursor of the page after them: null on the last one."""

    workflows: list[WorkflowRow]
    next: str | None


class Step(Struct, frozen=True, omit_defaults=True):
    """A command of an invocation, and what became of it. `took` is in seconds."""

    step_number: int
    step_type: str
    status: str
    started_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: int = 0
    result: Any = None
    error: str | None = None
    due: datetime | None = None
    invocation_id: str | None = None
    took: float | None = None


class JournalPage(Struct, frozen=True):
    """Some steps, and the number from which the next page goes on: null on the last one."""

    journal: list[Step]
    next: int | None


class AwakeableState(Struct, frozen=True, omit_defaults=True):
    """An awakeable of an invocation. `created_at` is in seconds since the Unix epoch."""

    resolved: bool
    created_at: float
    title: str | None = None
    description: str | None = None
    assignees: tuple[str, ...] = ()
    expires_at: datetime | None = None


class AwakeableRow(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An awakeable, as lists show it. Its id is a name, not a right. `schema` is the JSON Schema of its answer."""

    id: str
    invocation_id: str
    handler: str
    open: bool
    created_at: datetime
    title: str | None = None
    description: str | None = None
    assignees: tuple[str, ...] = ()
    expires_at: datetime | None = None
    schema: dict[str, Any] | None = None


class AwakeablePageView(Struct, frozen=True):
    """Some awakeables, oldest first, and the cursor of the page after them: null on the last one."""

    awakeables: list[AwakeableRow]
    next: str | None


class WorkflowView(Struct, frozen=True):
    """An invocation. `journal` has its first steps; there are `total_steps`, and the journal's own route has all.

    `current_step` is the number of the first step that has not ended. `streams` tells how many items each stream has.
    """

    invocation_id: str
    handler: str
    status: Status
    total_steps: int
    current_step: int | None
    current_step_type: str | None
    journal: list[Step]
    workflow_state: dict[str, Any]
    awakeables: dict[str, AwakeableState]
    key: str | None
    tags: Mapping[str, str]
    created_at: datetime | None
    updated_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    due: datetime | None
    deadline: datetime | None
    waiting_for: str | None
    waiting_since: datetime | None
    waiting_until: datetime | None
    attempt: int
    input: Any
    result: Any
    error: str | None
    traceback: str | None
    paused_because: str | None
    cancel_requested_at: datetime | None
    epoch: int
    retries: int
    worker: str | None
    parent_id: str | None
    children: list[str]
    mail: tuple[str, ...]
    streams: Mapping[str, int]


class FailureView(Struct, frozen=True, omit_defaults=True):
    """How an invocation failed: the class of the exception, its text, and its traceback."""

    type: str
    message: str
    traceback: str = ""


class Accepted(Struct, frozen=True):
    """A start that is durable. Where to look at it, and where to wait for its result."""

    invocation_id: str
    status_url: str
    result_url: str


class AllAccepted(Struct, frozen=True):
    """Starts that are durable, in the order in which they were given."""

    workflows: list[Accepted]


class Ended(Struct, frozen=True):
    """How an invocation ended: completed with a `result`, failed with an `error`, or cancelled."""

    invocation_id: str
    status: Status
    result: Any = None
    error: FailureView | None = None


class Applied(Struct, frozen=True):
    """A request that was applied to an invocation."""

    invocation_id: str
    status: Status


class HandlerView(Struct, frozen=True):
    """A handler: what it takes and gives, as JSON Schema."""

    name: str
    description: str
    interface: str
    input: dict[str, Any]
    result: dict[str, Any]


class HandlerList(Struct, frozen=True):
    """All handlers that workers have published."""

    handlers: list[HandlerView]


class StatsView(Struct, frozen=True):
    """How many invocations there are."""

    total: int
    by_status: Mapping[Status, int]
    by_handler: Mapping[str, int]


class MinuteList(Struct, frozen=True):
    """What ended, by minute, handler and status, in order. What was purged is not counted."""

    minutes: list[Minute]


class KeyView(Struct, frozen=True):
    """A key: the state that its invocations share, as the last one to end left it."""

    key: str
    state: dict[str, Any]


class Health(Struct, frozen=True):
    """Whether this server works."""

    status: str


# --- made from what the operations give -------------------------------------------------------------------------------
def plain(value: Any) -> Any:
    """Return a value without a schema, of builtin types that JSON can hold."""
    return to_json(UNTYPED, encode_any(value))


def row_of(invocation: Invocation) -> WorkflowRow:
    found = invocation
    times = (found.created_at, found.updated_at, found.due)
    waits = (found.waiting_for, found.waiting_since, found.waiting_until, found.attempt)
    return WorkflowRow(found.id, found.handler, found.status, found.key, dict(found.tags), *times, *waits)


def step_of(step: JournalStep) -> Step:
    return Step(
        step.number,
        step.step_type,
        step.status,
        step.started_at,
        step.ended_at,
        step.attempts,
        plain(step.result),
        step.error,
        step.due,
        step.invocation_id,
        step.took,
    )


def awakeable_row(info: AwakeableInfo) -> AwakeableRow:
    return AwakeableRow(
        id=info.id,
        invocation_id=info.invocation_id,
        handler=info.handler,
        open=not info.resolved,
        created_at=info.created_at,
        title=info.title,
        description=info.description,
        assignees=info.assignees,
        expires_at=info.expires_at,
        schema=None if info.schema is None else json_schema(info.schema),
    )


def _awakeable_state(info: AwakeableInfo) -> AwakeableState:
    told = (info.title, info.description, info.assignees, info.expires_at)
    return AwakeableState(info.resolved, info.created_at.timestamp(), *told)


def workflow_of(invocation: Invocation, interface: Interface | None, steps_limit: int) -> WorkflowView:
    """Return all that is known of an invocation, with its first steps."""
    found, step = invocation, invocation.current_step
    input = encode_any(dict(found.input))
    result = None if found.result is None else encode_any(found.result)
    return WorkflowView(
        invocation_id=found.id,
        handler=found.handler,
        status=found.status,
        total_steps=len(found.journal),
        current_step=None if step is None else step.number,
        current_step_type=None if step is None else step.step_type,
        journal=[step_of(each) for each in found.journal[:steps_limit]],
        workflow_state={name: plain(value) for name, value in found.state.items()},
        awakeables={each.id: _awakeable_state(each) for each in found.awakeables},
        key=found.key,
        tags=dict(found.tags),
        created_at=found.created_at,
        updated_at=found.updated_at,
        started_at=found.started_at,
        ended_at=found.ended_at,
        due=found.due,
        deadline=found.deadline,
        waiting_for=found.waiting_for,
        waiting_since=found.waiting_since,
        waiting_until=found.waiting_until,
        attempt=found.attempt,
        input=to_json(UNTYPED if interface is None else interface.input, input),
        result=None if result is None else to_json(UNTYPED if interface is None else interface.result, result),
        error=found.error,
        traceback=found.traceback,
        paused_because=found.paused_because,
        cancel_requested_at=found.cancel_requested_at,
        epoch=found.epoch,
        retries=found.retries,
        worker=found.worker,
        parent_id=found.parent_id,
        children=[each.invocation_id for each in found.journal if each.invocation_id is not None],
        mail=found.mail,
        streams=dict(found.streams),
    )


def ended_of(id: str, outcome: Outcome, interface: Interface | None, *, shown: bool) -> Ended:
    """Return how an invocation ended; unless values are `shown`, without its value, and with the class of its error."""
    if isinstance(outcome, Value):
        if not shown:
            return Ended(id, "completed")
        return Ended(id, "completed", to_json(UNTYPED if interface is None else interface.result, outcome.data))
    if isinstance(outcome, Failure):
        if not shown:
            return Ended(id, "failed", error=FailureView(outcome.type, ""))
        return Ended(id, "failed", error=FailureView(outcome.type, outcome.message, outcome.traceback))
    return Ended(id, "cancelled")
