"""What the client does with one call: encode it for the operations, decode what became of it, refuse it in a body."""

from __future__ import annotations

import os
import time
from typing import Any

from perdure.authoring.workflow import Workflow
from perdure.core.failures import Failure, rebuild
from perdure.core.ids import new_id
from perdure.core.turn import current_turn
from perdure.core.types import decoder
from perdure.errors import InvocationCancelled, IoInWorkflow, NotAWorkflow
from perdure.operations.port import Outcome, Submission, Value
from perdure.runtime.worker import Translators


def submission_of(workflow: Workflow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Submission:
    """Encode a call. Its id is new unless the workflow's options choose one."""
    if not isinstance(workflow, Workflow):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise NotAWorkflow(f"{workflow!r} is not a workflow: decorate the function with @workflow")
    data, digest = workflow.encode_arguments(args, kwargs)
    options = workflow.options
    return Submission(
        options.id or new_id(time.time(), os.urandom(10)),
        workflow.name,
        data,
        digest,
        options.id is not None,
        options.key,
        options.delay,
        options.timeout,
        options.tags,
        workflow.interface_hash,
        workflow.execution,
        options.when_busy,
    )


def value_of(id: str, outcome: Outcome, workflow: Workflow[..., Any] | None, translators: Translators) -> Any:
    """Return the value of an outcome, or raise its failure."""
    if type(outcome) is Value:
        return workflow.decode_result(outcome.data) if workflow is not None else decoder(Any)(outcome.data)
    if isinstance(outcome, Failure):
        raise rebuild(outcome, translators=translators())
    raise InvocationCancelled(f"invocation {id!r} was cancelled", invocation_id=id)


def refuse_in_body(call: str, instead: str = "do it in a step") -> None:
    """Raise `IoInWorkflow` inside the body of a workflow, which must reach others through its journal only."""
    if (turn := current_turn()) is not None:
        where = f"{call} was called in the body of workflow {turn.start.handler!r} (invocation {turn.start.id!r})"
        raise IoInWorkflow(f"{where}, where replay would call it again: {instead}")
